//! One charge: what is remembered, then the breaker, then Redis, then what the outage policy says.

use std::sync::Arc;
use std::time::Duration;

use super::RedisFuture;
use super::connect::Link;
use super::denied::Denied;
use super::gcra::{self, Part, State};
use super::key::{Everybody, Keys, Tag};
use super::outage::{Outage, Payer};
use super::stocks::Stocks;
use crate::answer::Answer;
use crate::breaker::{Pass, Switch};
use crate::caller::CurrentGrant;
use crate::decision::{Decision, Policy};
use crate::limit::{Charge, RateLimits, Time};

/// What all clones of a limiter share. A clone of this has settings of its own.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) keys: Arc<Keys>,
    pub(super) link: Arc<Link>,
    pub(super) deadline: Duration,
    pub(super) switch: Switch,
    pub(super) denied: Arc<Denied>,
    pub(super) outage: Outage,
    pub(super) limits: RateLimits,
    pub(super) stocks: Option<Arc<Stocks>>,
    pub(super) time: Arc<Time>,
}

/// A charge, and all that is needed to make it later.
pub(super) struct Asked {
    pub(super) tag: Tag,
    pub(super) parts: Vec<Part>,
    pub(super) payer: Payer,
    partition_key: Option<Vec<u8>>,
}

impl Shared {
    pub(super) fn asked(&self, grant: &CurrentGrant, charge: Charge<'_>) -> Asked {
        let tag = self.keys.tag(grant.subject());
        let limits = &self.limits;
        let policy = Policy::named(limits.accounts.name(), grant.quota().unwrap_or(limits.accounts.default_quota()));
        let key = self.keys.of_subject(tag, policy.name());
        let parts = vec![Part { key, policy, cost: limits.cost(charge), binds: true }];
        let partition_key = limits.partition_key.as_ref().map(|key| key(grant.subject()));
        Asked { tag, parts, payer: Payer::Grant(grant.clone()), partition_key }
    }

    pub(super) fn asked_by_anonymous(&self, charge: Charge<'_>) -> Option<Asked> {
        let accounts = &self.limits.anonymous.as_ref()?.accounts;
        let policy = Policy::named(accounts.name(), accounts.default_quota());
        let key = self.keys.of_all(Everybody::Anonymous, policy.name());
        let parts = vec![Part { key, policy, cost: self.limits.cost(charge), binds: true }];
        Some(Asked { tag: Tag::default(), parts, payer: Payer::Anonymous, partition_key: None })
    }

    pub(super) fn check(self: &Arc<Self>, asked: Asked) -> Answer<RedisFuture> {
        if let Some(states) = self.denied.recall(&asked.tag, &asked.parts, self.time.now_ns()) {
            return Answer::Ready(asked.decision(&states));
        }
        match self.switch.enter() {
            Ok(is_probe) => {
                let pass = Pass::new(&self.switch, is_probe);
                Answer::Pending(RedisFuture(Box::pin(Arc::clone(self).ask(asked, pass))))
            }
            Err(wait) => Answer::Ready(self.without_redis(&asked, wait)),
        }
    }

    async fn ask(self: Arc<Self>, asked: Asked, mut pass: Pass) -> Decision {
        if let Some(stocks) = &self.stocks {
            if let Some(decision) = self.ask_ahead(stocks, &asked, &mut pass).await {
                return decision;
            }
        }
        let asked_at = self.time.now_ns();
        let attempt = self.link.attempt(self.deadline);
        let charge = async {
            let mut open = attempt.clone().open().await?;
            gcra::charge(&mut open, &asked.parts).await
        };
        match tokio::time::timeout(self.deadline, charge).await {
            Ok(Ok(states)) => {
                pass.end(true);
                self.denied.remember(asked.tag, &asked.parts, &states, asked_at, self.time.now_ns());
                asked.decision(&states)
            }
            Ok(Err(_)) | Err(_) => {
                pass.end(false);
                self.link.forget(&attempt);
                self.without_redis(&asked, self.deadline)
            }
        }
    }

    /// `wait` is the time after which Redis may be there again.
    pub(super) fn without_redis(&self, asked: &Asked, wait: Duration) -> Decision {
        asked.named(self.outage.decide(&asked.payer, &asked.parts, wait))
    }
}

impl Asked {
    pub(super) fn decision(&self, states: &[State]) -> Decision {
        let mut decisions = self.parts.iter().zip(states).map(|(part, state)| part.decision(*state));
        // TODO one policy for now
        self.named(decisions.next().unwrap_or_else(Decision::unlimited))
    }

    pub(super) fn named(&self, decision: Decision) -> Decision {
        match &self.partition_key {
            None => decision,
            Some(key) => decision.with_partition_key(key.clone()),
        }
    }
}
