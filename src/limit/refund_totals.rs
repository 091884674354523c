//! [`RefundTotals`]: the total of refunds by limit and subject.
//!
//! A refund has to consider the refunds that were made since its charge.
//!
//! # Rules
//!
//! 1. A total only grows. It is read before a charge, so that no later refund is missed.
//! 2. Refunds of one total are serialised by its lock.
//! 3. The number of totals is fixed, so subjects may share one. Then a refund is smaller, and never larger.

use std::hash::{BuildHasher as _, RandomState};

use crate::grant::Subject;
use crate::sync::{Mutex, MutexGuard};

/// A fixed table of totals, indexed by a hash of limit and subject.
pub(super) struct RefundTotals {
    hasher: RandomState,
    /// In nanoseconds.
    totals: Box<[Mutex<u64>]>,
}

impl RefundTotals {
    const LEN: usize = 4_096;

    pub(super) fn new() -> Self {
        let totals = std::iter::repeat_with(|| Mutex::new(0)).take(Self::LEN).collect();
        Self { hasher: RandomState::new(), totals }
    }

    /// Locks and returns a total. The lock blocks other refunds.
    pub(super) fn lock(&self, limit: &str, subject: Option<&Subject>) -> MutexGuard<'_, u64> {
        let hash = self.hasher.hash_one((limit, subject));
        // A panic under the lock cannot leave a partial change.
        self.totals[hash as usize % self.totals.len()].lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
