//! How a limiter in memory decides a charge.

use std::sync::Arc;

use super::RateLimits;
use crate::caller::CurrentGrant;
use crate::limit::buckets::Removed;
use crate::limit::rule::{GrantQuotas, Rule};
use crate::limit::state::{LimitState, MadeCharge};
use crate::limit::{Charge, Limiter, all_or_nothing};
use crate::observe;
use crate::pending::answer::{Answer, Immediate};
use crate::quota::decision::Decision;
use crate::quota::refund::Refund;

impl RateLimits {
    /// [`check`](Limiter::charge) without the wrapping: budgets in memory never wait.
    #[must_use = "a decision that nobody looks at limits nobody"]
    #[inline]
    pub fn charge(&self, grant: &CurrentGrant, charge: Charge<'_>) -> Decision {
        self.decide(Some(grant), charge)
    }

    /// The state of a budget, without a charge.
    #[must_use]
    pub fn peek(&self, grant: &CurrentGrant) -> Decision {
        self.charge(grant, Charge::Units(0))
    }

    /// Forgets subjects who owe nothing and whose grants are gone. Happens by itself while new subjects come.
    pub fn sweep(&self) {
        let now = self.time.now_ns();
        self.lanes().iter().for_each(|lane| lane.sweep(now));
    }

    /// How many subjects are remembered.
    #[must_use]
    pub fn subjects(&self) -> usize {
        self.lanes().iter().map(LimitState::subjects).max().unwrap_or(0)
    }

    #[cfg(test)]
    pub(in crate::limit) fn buckets(&self) -> &crate::limit::buckets::Buckets {
        self.first.buckets()
    }

    /// The decision about a caller; `None` is an anonymous one.
    #[inline]
    fn decide(&self, grant: Option<&CurrentGrant>, charge: Charge<'_>) -> Decision {
        let decision = if self.more.is_some() || self.has_refunds() {
            self.decide_rare(grant, &|_, rule| rule.cost(charge))
        } else {
            let (now, cost) = (self.time.now_ns(), self.first.rule().cost(charge));
            let decision = self.first.charge(grant, now, cost, &mut Removed::default());
            decision.map_or_else(Decision::unlimited, |decision| self.first.rule().mark(decision, grant))
        };
        // Who only looks charges nothing.
        if !matches!(charge, Charge::Units(0)) {
            observe::charged(&decision, grant);
        }
        decision
    }

    /// The same where it has been counted already what each policy costs.
    #[cfg(feature = "redis")]
    pub(crate) fn decide_counted(&self, grant: Option<&CurrentGrant>, costs: &[u32]) -> Decision {
        self.decide_rare(grant, &|at, _| costs.get(at).copied().unwrap_or(0))
    }

    fn decide_rare(&self, grant: Option<&CurrentGrant>, cost: &dyn Fn(usize, &Rule) -> u32) -> Decision {
        let now = self.time.now_ns();
        let given = self.given.as_ref().map(|given| {
            let before = |lane: &LimitState| *lane.refunded(given, grant);
            (given, self.lanes().iter().map(before).collect::<Vec<_>>())
        });
        let mut made: Vec<(usize, MadeCharge)> = Vec::new();
        let decision = match &self.more {
            Some(more) => {
                let keep = given.is_some().then_some(&mut made);
                all_or_nothing::charge(&more.lanes, &more.turns, grant, now, cost, keep)
            }
            None => {
                let (rule, cost) = (self.first.rule(), cost(0, self.first.rule()));
                let decision = self.first.charge(grant, now, cost, &mut Removed::default());
                made.extend(
                    decision.iter().filter_map(|decision| Some((0, self.first.made_charge(decision, now, cost)?))),
                );
                decision.map_or_else(Decision::unlimited, |decision| rule.mark(decision, grant))
            }
        };
        let Some((given, before)) = given.filter(|_| !made.is_empty()) else { return decision };
        let made: Vec<_> = made
            .into_iter()
            .filter_map(|(at, made)| Some((self.lanes().get(at)?.clone(), made.after(*before.get(at)?))))
            .collect();
        let (time, given, grant) = (Arc::clone(&self.time), Arc::clone(given), grant.cloned());
        decision.with_refund(Refund::new(move || {
            let now = time.now_ns();
            made.iter().for_each(|(lane, made)| lane.refund(&given, grant.as_ref(), now, *made));
            std::future::ready(())
        }))
    }

    pub(in crate::limit) fn has_refunds(&self) -> bool {
        self.given.is_some()
    }

    /// Whether [`for_route`](Limiter::for_route) changes anything.
    pub(in crate::limit) fn follows_grants_by_default(&self) -> bool {
        self.lanes().iter().any(|lane| lane.rule().grant_quotas == GrantQuotas::FollowedByDefault)
    }

    pub(in crate::limit) fn limits_anonymous(&self) -> bool {
        self.lanes().iter().any(|lane| lane.rule().limits_anonymous())
    }
}

impl Limiter for RateLimits {
    type Future = Immediate<Decision>;

    #[inline]
    fn charge(&self, grant: &CurrentGrant, charge: Charge<'_>) -> Answer<Self::Future> {
        Answer::Ready(self.charge(grant, charge))
    }

    fn charge_anonymous(&self, charge: Charge<'_>) -> Answer<Self::Future> {
        // The usual limiter does not limit them: then a preflight costs no reading of the clock.
        match self.limits_anonymous() {
            true => Answer::Ready(self.decide(None, charge)),
            false => Answer::Ready(Decision::unlimited()),
        }
    }

    fn for_route(self) -> Self {
        match self.follows_grants_by_default() {
            true => self.change_all(|rule| {
                if rule.grant_quotas == GrantQuotas::FollowedByDefault {
                    rule.grant_quotas = GrantQuotas::Ignored;
                }
            }),
            false => self,
        }
    }
}
