//! One charge: first leased units and cached rejections, then Redis or the outage policy.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use redis::RedisResult;
use tokio::sync::Semaphore;

use super::connect::{Connection, Link};
use super::gcra::{self, Part, Reply, State};
use super::key::{Keys, SharedTag, Tag};
use super::key_set;
use super::limits::RedisFuture;
use super::local_cache::{LocalCache, LocalCaches};
use super::outage::Fallback;
use super::refund::{self, Charged};
use crate::caller::CurrentGrant;
use crate::limit::limit::{Limit, Scope};
use crate::limit::state::LimitState;
use crate::limit::{Charge, RateLimits, Refund};
use crate::observe;
use crate::pending::answer::Answer;
use crate::pending::breaker::{Breaker, Permit};
use crate::quota::Quota;
use crate::quota::decision::Decision;

/// The last part of the key for a grant whose quota is not followed, see [`Limit::is_apart`]. No policy's name contains a tab.
pub(super) const APART: &str = "default\town";

/// A limiter. Clones share connections, caches and breakers, and have settings of their own.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) keys: Arc<Keys>,
    pub(super) link: Arc<Link>,
    pub(super) timeout: Duration,
    /// The circuit breaker of a single server, or of a cluster until its slots are known. Each node then has its own.
    pub(super) breaker: Breaker,
    pub(super) caches: Arc<LocalCaches>,
    pub(super) fallback: Fallback,
    pub(super) nodes: NonZeroU32,
    pub(super) limits: RateLimits,
    /// One permit for each command that may be in flight.
    pub(super) in_flight: Arc<Semaphore>,
    /// The timeout for a permit; `None` is twice the reply timeout.
    pub(super) queue_timeout: Option<Duration>,
}

/// A charge to be made in Redis.
pub(super) struct ChargeRequest {
    pub(super) tag: Tag,
    /// The buckets of the policies that limit this caller.
    pub(super) parts: Vec<Part>,
    /// `None` is an anonymous caller.
    pub(super) grant: Option<CurrentGrant>,
    /// True for a charge of 0 units, which is not reported as a charge.
    pub(super) is_look: bool,
    /// The hash of the client's key, if the only part is a set of buckets.
    pub(super) hash: Option<u64>,
}

impl ChargeRequest {
    async fn send(&self, connection: &mut Connection, has_refunds: bool) -> RedisResult<Reply> {
        match self.hash {
            Some(hash) => key_set::charge(connection, &self.parts[0], hash, has_refunds).await,
            None if has_refunds => gcra::charge_with_refunds(connection, &self.parts).await,
            None => gcra::charge(connection, &self.parts, &[]).await,
        }
    }

    /// Reports a decision about this charge, and returns it.
    fn reported(&self, decision: Decision) -> Decision {
        reported(decision, self.grant.as_ref(), self.is_look)
    }
}

impl Shared {
    /// Computes the costs of a charge, and makes it.
    pub(super) fn charge(self: &Arc<Self>, grant: Option<&CurrentGrant>, charge: Charge<'_>) -> Answer<RedisFuture> {
        let cost = |state: &LimitState| state.limit().cost(charge);
        let is_look = matches!(charge, Charge::Units(0));
        let Some(leases) = &self.cache(grant).leases else {
            return self.begin(self.request(grant, is_look, |_, state| cost(state)));
        };
        let costs: Vec<_> = self.limits.states().iter().map(cost).collect();
        match self.charge_lease(leases, grant, &costs) {
            Some(decision) => Answer::Ready(reported(decision, grant, is_look)),
            None => self.begin(self.request(grant, is_look, |at, _| costs[at])),
        }
    }

    /// Returns a charge with its buckets. `cost` returns the cost for a policy.
    fn request(
        &self,
        grant: Option<&CurrentGrant>,
        is_look: bool,
        cost: impl Fn(usize, &LimitState) -> u32,
    ) -> ChargeRequest {
        let tag = grant.map_or_else(Tag::default, |grant| self.keys.tag(grant.subject()));
        let part = |(at, state): (usize, &LimitState)| {
            let policy = state.policy_of(grant)?;
            let key = self.key(state.limit(), grant.map(CurrentGrant::quota), tag, policy.name());
            Some(Part { at, key, policy, cost: cost(at, state), binds: !state.limit().is_dry_run })
        };
        let parts = self.limits.states().iter().enumerate().filter_map(part).collect();
        ChargeRequest { tag, parts, grant: grant.cloned(), is_look, hash: None }
    }

    /// Returns the key of a caller's bucket under a policy with this name. `quota` is the caller's own quota, or `None` for anonymous
    /// callers.
    pub(super) fn key(&self, limit: &Limit, quota: Option<Option<Quota>>, tag: Tag, policy: &str) -> Vec<u8> {
        match (limit.scope, quota) {
            (Scope::All, _) => self.keys.of_shared(SharedTag::Shared, policy),
            (Scope::Subject, Some(quota)) if limit.is_apart(quota) => self.keys.of_subject(tag, APART),
            (Scope::Subject, Some(_)) => self.keys.of_subject(tag, policy),
            (Scope::Subject, None) => self.keys.of_shared(SharedTag::Anonymous, policy),
        }
    }

    pub(super) fn begin(self: &Arc<Self>, request: ChargeRequest) -> Answer<RedisFuture> {
        if request.parts.is_empty() {
            return Answer::Ready(Decision::unlimited());
        }
        if let Some(states) = self.cached_rejection(&request) {
            return Answer::Ready(request.reported(self.decision(&request, states)));
        }
        match self.breaker_of(&request.parts[0].key).acquire() {
            Ok(pass) => {
                let shared = Arc::clone(self);
                Answer::Pending(RedisFuture::new(async move {
                    let decision = shared.ask(&request, pass).await;
                    request.reported(decision)
                }))
            }
            Err(wait) => {
                self.link.refresh_in_outage();
                Answer::Ready(request.reported(self.decide_locally(&request, wait)))
            }
        }
    }

    async fn ask(self: &Arc<Self>, request: &ChargeRequest, mut pass: Permit) -> Decision {
        let cache = self.cache(request.grant.as_ref());
        if let Some(leases) = cache.leases.as_ref().filter(|leases| leases.has_leases_for(&request.parts)) {
            // Boxed, so that the future is smaller without leases.
            return Box::pin(self.ask_with_lease(leases, request, pass)).await;
        }
        let permit = match self.queue(request, &mut pass).await {
            Ok(permit) => permit,
            Err(decision) => return *decision,
        };
        let sent_at = self.limits.time.now_ns();
        let has_refunds = self.limits.has_refunds();
        let charge = async |connection: &mut Connection| request.send(connection, has_refunds).await;
        let Some(reply) = self.with_redis(permit, pass, charge).await else {
            return self.decide_locally(request, self.timeout);
        };
        if has_refunds {
            return self.refundable(request, &reply);
        }
        let replied_at = self.limits.time.now_ns();
        cache.rejections.insert(request.tag, &request.parts, reply.states(), sent_at, replied_at);
        self.decision(request, reply.states())
    }

    /// Returns the decision, with refunds if something was charged.
    fn refundable(self: &Arc<Self>, request: &ChargeRequest, reply: &Reply) -> Decision {
        let decision = self.decision(request, reply.states());
        if !decision.is_admitted() {
            return decision;
        }
        let decisions = request.parts.iter().zip(reply.states()).enumerate().map(|(at, (part, state))| {
            let decision = self.marked(part.at, part.decision(state), request.grant.as_ref());
            let history = reply.history(at).unwrap_or_default();
            match (Charged::of(part, state, history, reply.now_us), self.limits.states().get(part.at)) {
                (Some(charged), Some(limit)) => {
                    let shared = Arc::clone(self);
                    let charged = charged.in_set(request.hash);
                    let refund = Refund::new(move || shared.refund(charged));
                    limit.limit().with_refund(decision, refund, part.charged_ns())
                }
                _ => decision,
            }
        });
        Decision::all_of(decisions)
    }

    async fn refund(self: Arc<Self>, charged: Charged) {
        let refund = async |connection: &mut Connection| refund::refund(connection, &charged).await;
        _ = self.command(charged.key(), refund).await;
    }

    /// Returns the local cache for a caller.
    pub(super) fn cache(&self, grant: Option<&CurrentGrant>) -> &LocalCache {
        let is_apart = |quota| self.limits.states().iter().any(|state| state.limit().is_apart(quota));
        self.caches.of(grant.is_some_and(|grant| is_apart(grant.quota())))
    }

    /// Returns the states of the buckets, if Redis would certainly reject this charge.
    pub(super) fn cached_rejection(&self, request: &ChargeRequest) -> Option<Vec<State>> {
        self.cache(request.grant.as_ref()).rejection(request, self.limits.time.now_ns())
    }

    /// Decides a charge without Redis. `wait` is the time after which Redis may be available.
    pub(super) fn decide_locally(&self, request: &ChargeRequest, wait: Duration) -> Decision {
        match &self.fallback {
            Fallback::Local(limits) => limits.follow(&self.limits, self.nodes),
            Fallback::LocalKeys(limits) => limits.follow(&self.limits, self.nodes),
            Fallback::Reject | Fallback::Admit => {}
        }
        self.fallback.decide(request, wait)
    }

    pub(super) fn decision(&self, request: &ChargeRequest, states: impl IntoIterator<Item = State>) -> Decision {
        let made = |(part, state): (&Part, State)| self.marked(part.at, part.decision(state), request.grant.as_ref());
        let mut decisions = request.parts.iter().zip(states).map(made);
        match *request.parts {
            // The usual charge needs no vector of decisions.
            [_] => decisions.next().unwrap_or_else(Decision::unlimited),
            _ => Decision::all_of(decisions),
        }
    }

    /// Adds a policy's dry-run and near-limit marks to its decision.
    pub(super) fn marked(&self, at: usize, mut decision: Decision, grant: Option<&CurrentGrant>) -> Decision {
        if let Some(state) = self.limits.states().get(at) {
            state.limit().mark(&mut decision, grant);
        }
        decision
    }
}

/// Reports a decision to metrics and events, and returns it.
fn reported(decision: Decision, grant: Option<&CurrentGrant>, is_look: bool) -> Decision {
    if !is_look {
        observe::charged(&decision, grant);
    }
    decision
}
