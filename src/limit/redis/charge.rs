//! One charge: first leased units and cached rejections, then the circuit breaker, then Redis or the outage policy.

use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use redis::RedisResult;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::connect::{Connection, Link};
use super::gcra::{self, Part, Reply, State};
use super::key::{Keys, SharedTag, Tag};
use super::key_set;
use super::lease_table::LeaseTable;
use super::limits::RedisFuture;
use super::outage::{Fallback, undecided};
use super::refund::{self, Charged};
use super::rejection_cache::RejectionCache;
use super::timeout::within;
use crate::caller::CurrentGrant;
use crate::limit::limit::{Limit, Scope};
use crate::limit::state::LimitState;
use crate::limit::{Charge, RateLimits, Refund};
use crate::observe::{self, RedisOutcome, Timer};
use crate::pending::answer::Answer;
use crate::pending::breaker::{Breaker, Permit};
use crate::quota::Quota;
use crate::quota::decision::Decision;

/// The last part of the key for a grant whose quota is not followed, see [`Limit::is_apart`].
pub(super) const APART: &str = "default@own";

/// The state of a limiter, shared by its clones. Each clone of this struct has its own settings.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) keys: Arc<Keys>,
    pub(super) link: Arc<Link>,
    pub(super) timeout: Duration,
    pub(super) switch: Breaker,
    pub(super) rejections: Arc<RejectionCache>,
    pub(super) fallback: Fallback,
    pub(super) nodes: NonZeroU32,
    pub(super) limits: RateLimits,
    /// One permit for each command that may be in flight.
    pub(super) in_flight: Arc<Semaphore>,
    /// The timeout for a permit; `None` is twice the reply timeout.
    pub(super) queue_timeout: Option<Duration>,
    /// The leases, if they are enabled.
    pub(super) leases: Option<Arc<LeaseTable>>,
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

/// A permit to send a command, with the connection to send it on.
pub(super) struct SendPermit<'a> {
    connection: Connection,
    /// True if the charge had to wait in the queue.
    has_waited: bool,
    _permit: SemaphorePermit<'a>,
}

/// An error before a command is sent.
enum NotSent {
    /// The queue timeout has expired.
    QueueTimeout,
    /// Redis has failed, and may be available after this time.
    Unavailable(Duration),
}

impl Shared {
    /// Computes the costs of a charge, and makes it.
    pub(super) fn charge(self: &Arc<Self>, grant: Option<&CurrentGrant>, charge: Charge<'_>) -> Answer<RedisFuture> {
        let cost = |state: &LimitState| state.limit().cost(charge);
        let is_look = matches!(charge, Charge::Units(0));
        let Some(leases) = &self.leases else {
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
        if let Some(states) = self.rejections.find(&request.tag, &request.parts, self.limits.time.now_ns()) {
            return Answer::Ready(request.reported(self.decision(&request, states)));
        }
        match self.switch.try_acquire() {
            Ok(is_probe) => {
                let (pass, shared) = (Permit::new(&self.switch, is_probe), Arc::clone(self));
                Answer::Pending(RedisFuture::new(async move {
                    let decision = shared.ask(&request, pass).await;
                    request.reported(decision)
                }))
            }
            Err(wait) => Answer::Ready(request.reported(self.decide_locally(&request, wait))),
        }
    }

    async fn ask(self: &Arc<Self>, request: &ChargeRequest, mut pass: Permit) -> Decision {
        if let Some(leases) = self.leases.as_ref().filter(|leases| leases.has_leases_for(&request.parts)) {
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
        self.rejections.insert(request.tag, &request.parts, reply.states(), sent_at, replied_at);
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

    /// Sends a command about a key. Returns `None` if Redis has failed, or is not asked.
    pub(super) async fn command<T>(
        &self,
        key: &[u8],
        command: impl AsyncFnOnce(&mut Connection) -> RedisResult<T>,
    ) -> Option<T> {
        let mut pass = Permit::new(&self.switch, self.switch.try_acquire().ok()?);
        let permit = self.acquire(key, &mut pass).await.ok()?;
        self.with_redis(permit, pass, command).await
    }

    /// Waits until a charge may be sent to Redis. Returns a decision instead if Redis need not or must not be asked.
    ///
    /// These are the cases: the bucket is known to be exhausted, there is no connection, the breaker is open, or the queue timeout has
    /// expired.
    pub(super) async fn queue(
        &self,
        request: &ChargeRequest,
        pass: &mut Permit,
    ) -> Result<SendPermit<'_>, Box<Decision>> {
        let permit = match self.acquire(&request.parts[0].key, pass).await {
            Ok(permit) => permit,
            Err(NotSent::QueueTimeout) => return Err(undecided(request, self.queue_timeout()).into()),
            Err(NotSent::Unavailable(wait)) => return Err(self.decide_locally(request, wait).into()),
        };
        let find = || self.rejections.find(&request.tag, &request.parts, self.limits.time.now_ns());
        match permit.has_waited.then(find).flatten() {
            Some(states) => Err(self.decision(request, states).into()),
            None => Ok(permit),
        }
    }

    /// Waits for a connection and for a permit. Usually both are there.
    async fn acquire(&self, key: &[u8], pass: &mut Permit) -> Result<SendPermit<'_>, NotSent> {
        let permit = match self.acquire_now() {
            Some(permit) => permit,
            // Boxed like all rare steps, so that the future of a charge is smaller.
            None => Box::pin(self.wait_for_permit(key, pass)).await?,
        };
        pass.renew().map_err(NotSent::Unavailable)?;
        Ok(permit)
    }

    fn acquire_now(&self) -> Option<SendPermit<'_>> {
        let permit = self.in_flight.try_acquire().ok()?;
        Some(SendPermit { connection: self.link.opened()?, has_waited: false, _permit: permit })
    }

    async fn wait_for_permit(&self, key: &[u8], pass: &mut Permit) -> Result<SendPermit<'_>, NotSent> {
        // First the connection: charges that wait for an unavailable cluster node must not hold permits.
        if !self.link.is_open() {
            let connection = self.connection(key, pass).await?;
            if let Ok(permit) = self.in_flight.try_acquire() {
                return Ok(SendPermit { connection, has_waited: false, _permit: permit });
            }
        }
        let waited = within(self.queue_timeout(), pin!(self.in_flight.acquire())).await;
        // The semaphore is never closed.
        let Some(Ok(permit)) = waited else {
            observe::queue_timed_out();
            return Err(NotSent::QueueTimeout);
        };
        pass.renew().map_err(NotSent::Unavailable)?;
        // A previous connection may have failed meanwhile.
        let connection = self.connection(key, pass).await?;
        Ok(SendPermit { connection, has_waited: true, _permit: permit })
    }

    /// Waits for a connection, for at most the timeout.
    async fn connection(&self, key: &[u8], pass: &mut Permit) -> Result<Connection, NotSent> {
        let mut connection = pin!(self.link.open(key));
        // An open connection needs no timer.
        let timer = Timer::start();
        let opened = match connection.as_mut().now_or_never() {
            Some(opened) => Some(opened),
            None => within(self.timeout, connection.as_mut()).await,
        };
        let end = match opened {
            Some(Ok(connection)) => return Ok(connection),
            Some(Err(_)) => RedisOutcome::Failed,
            None => RedisOutcome::Timeout,
        };
        timer.record_redis_call(end);
        pass.end(false);
        self.link.failed(None);
        Err(NotSent::Unavailable(self.timeout))
    }

    fn queue_timeout(&self) -> Duration {
        self.queue_timeout.unwrap_or(self.timeout.saturating_mul(2))
    }

    /// Sends a command. Returns `None` if Redis has failed: there was no reply within the timeout, or an error.
    pub(super) async fn with_redis<T>(
        &self,
        mut permit: SendPermit<'_>,
        mut pass: Permit,
        command: impl AsyncFnOnce(&mut Connection) -> RedisResult<T>,
    ) -> Option<T> {
        let timer = Timer::start();
        let done = within(self.timeout, pin!(command(&mut permit.connection))).await;
        timer.record_redis_call(match &done {
            Some(Ok(_)) => RedisOutcome::Answered,
            Some(Err(_)) => RedisOutcome::Failed,
            None => RedisOutcome::Timeout,
        });
        let done = done.and_then(Result::ok);
        pass.end(done.is_some());
        if done.is_none() {
            self.link.failed(Some(&permit.connection));
        }
        done
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
