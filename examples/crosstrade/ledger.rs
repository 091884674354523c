//! The ledger: rate limits, and the limits that alerts set themselves. This file has the ledger of one service, in memory;
//! `replicas.rs` has that of several.

use std::pin::Pin;
use std::sync::Arc;

use tollgate::limit::{Clock, Limiter};
use tollgate::{Answer, Charge, CurrentGrant, Decision, Quota, RateLimits, Rejection, Subject};

use crate::self_limit::{Denied, SelfLimit, SelfLimits};

pub(crate) trait Ledger: Send + Sync {
    /// Charges the rate limit of a caller.
    fn charge(&self, caller: &CurrentGrant, charge: Charge<'_>) -> Answer<Later<'static, Decision>>;

    /// Charges one unit for an alert, and counts the alert towards its own limit, with its id: both or neither. The alert's
    /// own limit is checked first.
    fn charge_alert<'a>(&'a self, caller: &'a CurrentGrant, own: Option<(&'a [u8], SelfLimit)>) -> Later<'a, Charged>;

    /// Returns the state of a subject's rate limit, without a charge. Returns `None` if it is unknown.
    fn usage<'a>(&'a self, subject: &'a Subject, quota: Option<Quota>) -> Later<'a, Option<Decision>>;

    /// Makes the bucket of a subject full. Returns false if this failed.
    fn reset<'a>(&'a self, subject: &'a Subject) -> Later<'a, bool>;
}

pub(crate) type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
pub(crate) type Charged = Result<Decision, Denied<Rejection>>;

/// The rate limits of a ledger, as a limiter for gates.
#[derive(Clone)]
pub(crate) struct LedgerLimiter(pub(crate) Arc<dyn Ledger>);

impl Limiter for LedgerLimiter {
    type Future = Later<'static, Decision>;

    fn charge(&self, grant: &CurrentGrant, charge: Charge<'_>) -> Answer<Self::Future> {
        self.0.charge(grant, charge)
    }
}

/// The ledger in the memory of this process.
pub(crate) struct Memory {
    limits: RateLimits,
    self_limits: SelfLimits,
    /// The clock of the self-limits. The rate limits have their own.
    clock: Arc<dyn Clock>,
}

impl Memory {
    pub(crate) fn new(limits: RateLimits, clock: Arc<dyn Clock>) -> Self {
        Self { limits, self_limits: SelfLimits::default(), clock }
    }
}

impl Ledger for Memory {
    fn charge(&self, caller: &CurrentGrant, charge: Charge<'_>) -> Answer<Later<'static, Decision>> {
        Answer::Ready(self.limits.charge(caller, charge))
    }

    fn charge_alert<'a>(&'a self, caller: &'a CurrentGrant, own: Option<(&'a [u8], SelfLimit)>) -> Later<'a, Charged> {
        let charge = || self.limits.charge(caller, Charge::Units(1)).into_result();
        let charged = match own {
            None => charge().map_err(Denied::NotAccepted),
            Some((id, limit)) => {
                self.self_limits.admit((caller.subject().as_str().as_bytes(), id), limit, self.clock.now(), charge)
            }
        };
        Box::pin(std::future::ready(charged))
    }

    fn usage<'a>(&'a self, subject: &'a Subject, quota: Option<Quota>) -> Later<'a, Option<Decision>> {
        Box::pin(std::future::ready(Some(self.limits.usage(subject, quota))))
    }

    fn reset<'a>(&'a self, subject: &'a Subject) -> Later<'a, bool> {
        self.limits.reset(subject);
        Box::pin(std::future::ready(true))
    }
}
