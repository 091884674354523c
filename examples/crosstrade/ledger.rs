//! Where it is counted what callers spend: budgets, and the limits that alerts set themselves. In memory for one service;
//! `replicas.rs` has the same for several.

use std::pin::Pin;
use std::sync::Arc;

use tollgate::limit::{Clock, Limiter};
use tollgate::{Answer, Charge, CurrentGrant, Decision, RateLimits, Rejection};

use crate::self_limit::{Denied, SelfLimit, SelfLimits};

pub(crate) trait Ledger: Send + Sync {
    /// Charges a budget.
    fn charge(&self, who: &CurrentGrant, charge: Charge<'_>) -> Answer<Later<'static, Decision>>;

    /// Charges one unit for an alert and counts it towards the limit that it sets itself, with its id: both or neither. The
    /// alert's own limit comes first.
    fn pay_alert<'a>(&'a self, who: &'a CurrentGrant, own: Option<(&'a [u8], SelfLimit)>) -> Later<'a, Paid>;
}

pub(crate) type Later<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
pub(crate) type Paid = Result<Decision, Denied<Rejection>>;

/// The budgets of a ledger, for gates.
#[derive(Clone)]
pub(crate) struct Budgets(pub(crate) Arc<dyn Ledger>);

impl Limiter for Budgets {
    type Future = Later<'static, Decision>;

    fn charge(&self, grant: &CurrentGrant, charge: Charge<'_>) -> Answer<Self::Future> {
        self.0.charge(grant, charge)
    }
}

/// All in the memory of this process.
pub(crate) struct Memory {
    limits: RateLimits,
    self_limits: SelfLimits,
    /// For the self-limits; budgets have one of their own.
    clock: Arc<dyn Clock>,
}

impl Memory {
    pub(crate) fn new(limits: RateLimits, clock: Arc<dyn Clock>) -> Self {
        Self { limits, self_limits: SelfLimits::default(), clock }
    }
}

impl Ledger for Memory {
    fn charge(&self, who: &CurrentGrant, charge: Charge<'_>) -> Answer<Later<'static, Decision>> {
        Answer::Ready(self.limits.charge(who, charge))
    }

    fn pay_alert<'a>(&'a self, who: &'a CurrentGrant, own: Option<(&'a [u8], SelfLimit)>) -> Later<'a, Paid> {
        let charge = || self.limits.charge(who, Charge::Units(1)).into_result();
        let paid = match own {
            None => charge().map_err(Denied::NotAccepted),
            Some((id, limit)) => {
                self.self_limits.admit((who.subject().as_str().as_bytes(), id), limit, self.clock.now(), charge)
            }
        };
        Box::pin(std::future::ready(paid))
    }
}
