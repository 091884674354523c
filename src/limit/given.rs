//! How much has been given back, by policy and subject, so that refunds do not count on what another one has taken already.
//!
//! # Rules
//!
//! 1. A sum only grows. It is read before a charge, so that no refund in between is missed.
//! 2. Refunds of one sum come one after the other.
//! 3. Subjects may share a sum, since there are only so many. Then a refund gives back less, and never more.

use std::hash::{BuildHasher as _, RandomState};

use crate::grant::Subject;
use crate::sync::{Mutex, MutexGuard};

pub(super) struct GivenBack {
    hasher: RandomState,
    /// In nanoseconds.
    sums: Box<[Mutex<u64>]>,
}

impl GivenBack {
    const SUMS: usize = 4_096;

    pub(super) fn new() -> Self {
        let sums = std::iter::repeat_with(|| Mutex::new(0)).take(Self::SUMS).collect();
        Self { hasher: RandomState::new(), sums }
    }

    /// What has been given back so far. No other refund comes while this is held.
    pub(super) fn sum(&self, policy: &str, who: Option<&Subject>) -> MutexGuard<'_, u64> {
        let hash = self.hasher.hash_one((policy, who));
        // A number is whole at all times.
        self.sums[hash as usize % self.sums.len()].lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}
