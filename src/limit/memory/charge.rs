//! Charges of [`RateLimits`], and its [`Limiter`] implementation.

use std::sync::Arc;

use super::RateLimits;
use crate::caller::CurrentGrant;
use crate::limit::bucket_map::Removed;
use crate::limit::limit::{GrantQuotas, Limit};
use crate::limit::refunds::MadeCharge;
use crate::limit::state::LimitState;
use crate::limit::{Charge, Limiter, all_or_nothing};
use crate::observe;
use crate::pending::answer::{Answer, Immediate};
use crate::quota::decision::Decision;
use crate::quota::refund::Refund;

impl RateLimits {
    /// Charges a caller. This is [`Limiter::charge`] without the wrapper, because limits in memory never wait.
    #[must_use = "a charge limits nothing unless the decision is used"]
    #[inline(always)]
    pub fn charge(&self, grant: &CurrentGrant, charge: Charge<'_>) -> Decision {
        self.decide(Some(grant), charge)
    }

    /// Returns the state of a caller's buckets without a charge.
    #[must_use]
    pub fn peek(&self, grant: &CurrentGrant) -> Decision {
        self.charge(grant, Charge::Units(0))
    }

    /// Drops all buckets that are full and whose grants were dropped. New subjects cause sweeps automatically.
    pub fn sweep(&self) {
        let now = self.time.now_ns();
        self.states().iter().for_each(|state| state.sweep(now));
    }

    /// Returns the number of subjects that have a bucket.
    ///
    /// A subject counts twice if it is charged by the quota of its grant and, on a route, by the quota of the limit.
    #[must_use]
    pub fn subjects(&self) -> usize {
        self.states().iter().map(LimitState::subjects).max().unwrap_or(0)
    }

    #[cfg(test)]
    pub(in crate::limit) fn buckets(&self) -> &crate::limit::buckets::Buckets {
        self.first.buckets()
    }

    /// Charges a caller. `grant` is `None` for anonymous callers.
    #[inline(always)]
    fn decide(&self, grant: Option<&CurrentGrant>, charge: Charge<'_>) -> Decision {
        let decision = if self.several.is_some() || self.has_refunds() {
            self.decide_rare(grant, &|_, limit| limit.cost(charge))
        } else {
            let (now, cost) = (self.time.now_ns(), self.first.limit().cost(charge));
            // Most requests find their bucket in the grant.
            let mut decision = match self.first.charge_own(grant, now, cost) {
                Some(decision) => decision,
                None => self.charge_elsewhere(grant, now, cost),
            };
            self.first.limit().mark(&mut decision, grant);
            decision
        };
        // 0 units are a look, not a charge.
        if !matches!(charge, Charge::Units(0)) {
            observe::charged(&decision, grant);
        }
        decision
    }

    /// Charges these costs, one for each limit. Emits no metrics.
    #[cfg(feature = "redis")]
    pub(crate) fn decide_counted(&self, grant: Option<&CurrentGrant>, costs: &[u32]) -> Decision {
        self.decide_rare(grant, &|at, _| costs.get(at).copied().unwrap_or(0))
    }

    /// Not inlined, because the path of most requests is shorter without this code.
    #[inline(never)]
    fn charge_elsewhere(&self, grant: Option<&CurrentGrant>, now: u64, cost: u32) -> Decision {
        self.first.charge(grant, now, cost, &mut Removed::default()).unwrap_or_else(Decision::unlimited)
    }

    fn decide_rare(&self, grant: Option<&CurrentGrant>, cost: &dyn Fn(usize, &Limit) -> u32) -> Decision {
        let now = self.time.now_ns();
        // Totals are read before the charge, so that no later refund is missed.
        let before = |state: &LimitState| {
            let total = state.refund_total(grant).filter(|_| self.has_refunds)?;
            Some((total.get(), total))
        };
        let totals: Vec<_> = self.states().iter().map(before).collect();
        let refund = |at: usize, made: MadeCharge| {
            let (refunded, total) = totals.get(at)?.as_ref()?;
            let (made, total, state) = (made.after(*refunded), Arc::clone(total), self.states().get(at)?.clone());
            let (time, grant) = (Arc::clone(&self.time), grant.cloned());
            Some(Refund::new(move || {
                total.refund(made, time.now_ns(), |ns| state.refund(grant.as_ref(), made.quota(), ns));
                std::future::ready(())
            }))
        };
        let (states, locks) = match &self.several {
            Some(limits) => (&***limits, self.locks.get()),
            None => (std::slice::from_ref(&self.first), None),
        };
        all_or_nothing::charge(states, locks, grant, now, cost, &refund)
    }

    pub(in crate::limit) fn has_refunds(&self) -> bool {
        self.has_refunds
    }

    /// Returns whether [`for_route`](Limiter::for_route) changes this limiter.
    pub(in crate::limit) fn follows_grants_by_default(&self) -> bool {
        self.states().iter().any(|state| state.limit().grant_quotas == GrantQuotas::FollowedByDefault)
    }

    pub(in crate::limit) fn limits_anonymous(&self) -> bool {
        self.states().iter().any(|state| state.limit().limits_anonymous())
    }
}

impl Limiter for RateLimits {
    type Future = Immediate<Decision>;

    #[inline(always)]
    fn charge(&self, grant: &CurrentGrant, charge: Charge<'_>) -> Answer<Self::Future> {
        Answer::Ready(self.charge(grant, charge))
    }

    fn charge_anonymous(&self, charge: Charge<'_>) -> Answer<Self::Future> {
        // Without such a limit, a preflight does not read the clock.
        match self.limits_anonymous() {
            true => Answer::Ready(self.decide(None, charge)),
            false => Answer::Ready(Decision::unlimited()),
        }
    }

    fn for_route(self) -> Self {
        match self.follows_grants_by_default() {
            true => self.change_all(Limit::unfollow),
            false => self,
        }
    }
}
