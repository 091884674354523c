//! One charge: what is remembered, then the breaker, then Redis, then what is decided without it.

use std::sync::Arc;
use std::time::Duration;

use redis::RedisResult;

use super::connect::{Link, Open};
use super::denied::Denied;
use super::gcra::{self, Part, State};
use super::key::{Everybody, Keys, Tag};
use super::limits::RedisFuture;
use super::outage::Outage;
use super::refund;
use crate::answer::Answer;
use crate::breaker::{Pass, Switch};
use crate::caller::CurrentGrant;
use crate::decision::Decision;
use crate::limit::rule::{Rule, Scope};
use crate::limit::{Charge, RateLimits, Refund};
use crate::policy::Policy;

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
}

/// A charge, and all that is needed to make it later.
pub(super) struct Asked {
    tag: Tag,
    /// Those policies that limit this caller.
    pub(super) parts: Vec<Part>,
    /// What each policy costs.
    pub(super) costs: Vec<u32>,
    /// `None` is an anonymous caller.
    pub(super) grant: Option<CurrentGrant>,
}

impl Shared {
    /// Counts what a charge costs, and finds its budgets.
    pub(super) fn asked(&self, grant: Option<&CurrentGrant>, charge: Charge<'_>) -> Asked {
        let tag = grant.map_or_else(Tag::default, |grant| self.keys.tag(grant.subject()));
        let costs: Vec<_> = self.limits.rules().map(|rule| rule.cost(charge)).collect();
        let part = |((at, rule), &cost): ((usize, &Rule), &u32)| {
            let (key, policy) = self.budget(rule, grant, tag)?;
            Some(Part { at, key, policy, cost, binds: !rule.is_dry_run })
        };
        let parts = self.limits.rules().enumerate().zip(&costs).filter_map(part).collect();
        Asked { tag, parts, costs, grant: grant.cloned() }
    }

    /// Which budget a caller has by a rule, if it limits him.
    fn budget(&self, rule: &Rule, grant: Option<&CurrentGrant>, tag: Tag) -> Option<(Vec<u8>, Policy)> {
        let (name, quota) = match (rule.scope, grant) {
            (Scope::All, _) => (rule.name.clone(), rule.quota),
            (Scope::Subject, Some(grant)) => (rule.name.clone(), rule.quota_of(grant).unwrap_or(rule.quota)),
            (Scope::Subject, None) => (rule.anonymous_name(), rule.anonymous?),
        };
        let policy = Policy::named(&name, quota);
        let key = match (rule.scope, grant) {
            (Scope::All, _) => self.keys.of_all(Everybody::Shared, policy.name()),
            (Scope::Subject, Some(_)) => self.keys.of_subject(tag, policy.name()),
            (Scope::Subject, None) => self.keys.of_all(Everybody::Anonymous, policy.name()),
        };
        Some((key, policy))
    }

    pub(super) fn check(self: &Arc<Self>, asked: Asked) -> Answer<RedisFuture> {
        if asked.parts.is_empty() {
            return Answer::Ready(Decision::unlimited());
        }
        if let Some(states) = self.denied.recall(&asked.tag, &asked.parts, self.limits.time.now_ns()) {
            return Answer::Ready(self.decision(&asked, &states));
        }
        match self.switch.enter() {
            Ok(is_probe) => {
                let pass = Pass::new(&self.switch, is_probe);
                Answer::Pending(RedisFuture::new(Arc::clone(self).ask(asked, pass)))
            }
            Err(wait) => Answer::Ready(self.outage.decide(&asked, wait)),
        }
    }

    async fn ask(self: Arc<Self>, asked: Asked, pass: Pass) -> Decision {
        let asked_at = self.limits.time.now_ns();
        let charge = async |open: &mut Open| gcra::charge(open, &asked.parts).await;
        let Some(reply) = self.with_redis(pass, charge).await else {
            return self.outage.decide(&asked, self.deadline);
        };
        let decision = self.decision(&asked, &reply.states);
        if !self.limits.has_refunds {
            let told_at = self.limits.time.now_ns();
            self.denied.remember(asked.tag, &asked.parts, &reply.states, asked_at, told_at);
            return decision;
        }
        let charged = if decision.is_admitted() { refund::charged(asked.parts, &reply) } else { Vec::new() };
        match charged.is_empty() {
            true => decision,
            false => decision.with_refund(Refund::new(move || self.give_back(charged))),
        }
    }

    async fn give_back(self: Arc<Self>, charged: Vec<refund::Charged>) {
        if let Ok(is_probe) = self.switch.enter() {
            let pass = Pass::new(&self.switch, is_probe);
            _ = self.with_redis(pass, async |open: &mut Open| refund::give_back(open, &charged).await).await;
        }
    }

    /// Runs a command within the deadline. `None`: Redis has failed.
    async fn with_redis<T>(&self, mut pass: Pass, command: impl AsyncFnOnce(&mut Open) -> RedisResult<T>) -> Option<T> {
        let attempt = self.link.attempt(self.deadline);
        let command = async {
            let mut open = attempt.clone().open().await?;
            command(&mut open).await
        };
        let done = tokio::time::timeout(self.deadline, command).await.ok().and_then(Result::ok);
        pass.end(done.is_some());
        if done.is_none() {
            self.link.forget(&attempt);
        }
        done
    }

    fn decision(&self, asked: &Asked, states: &[State]) -> Decision {
        let made = |(part, state): (&Part, &State)| {
            let decision = part.decision(*state);
            match self.limits.rules().nth(part.at) {
                Some(rule) => rule.mark(decision, asked.grant.as_ref()),
                None => decision,
            }
        };
        Decision::all_of(asked.parts.iter().zip(states).map(made))
    }
}
