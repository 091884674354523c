//! One charge: first leased units and cached rejections, then the circuit breaker, then Redis or the outage policy.

use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use redis::RedisResult;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::connect::{Connection, Link};
use super::gcra::{self, Part, State};
use super::key::{Keys, SharedTag, Tag};
use super::lease_table::LeaseTable;
use super::limits::RedisFuture;
use super::outage::{Fallback, undecided};
use super::refund;
use super::rejection_cache::RejectionCache;
use super::timeout::within;
use crate::caller::CurrentGrant;
use crate::limit::limit::{Limit, Scope};
use crate::limit::state::LimitState;
use crate::limit::{Charge, RateLimits, Refund};
use crate::observe::{self, RedisOutcome, Timer};
use crate::pending::answer::Answer;
use crate::pending::breaker::{Breaker, Permit};
use crate::quota::decision::Decision;

/// The last part of the key for a grant whose quota is not followed, see [`Limit::is_apart`].
const APART: &str = "default@own";

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
    /// The cost for each policy of the limiter.
    pub(super) costs: Vec<u32>,
    /// `None` is an anonymous caller.
    pub(super) grant: Option<CurrentGrant>,
    /// True for a charge of 0 units, which is not reported as a charge.
    pub(super) is_look: bool,
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
        let costs: Vec<_> = self.limits.states().iter().map(|state| state.limit().cost(charge)).collect();
        let is_look = matches!(charge, Charge::Units(0));
        match self.charge_lease(grant, &costs) {
            Some(decision) => Answer::Ready(reported(decision, grant, is_look)),
            None => self.begin(self.request(grant, costs, is_look)),
        }
    }

    /// Returns a charge with its buckets.
    fn request(&self, grant: Option<&CurrentGrant>, costs: Vec<u32>, is_look: bool) -> ChargeRequest {
        let tag = grant.map_or_else(Tag::default, |grant| self.keys.tag(grant.subject()));
        let part = |((at, state), &cost): ((usize, &LimitState), &u32)| {
            let policy = state.policy_of(grant)?;
            let key = self.key(state.limit(), grant, tag, policy.name());
            Some(Part { at, key, policy, cost, binds: !state.limit().is_dry_run })
        };
        let parts = self.limits.states().iter().enumerate().zip(&costs).filter_map(part).collect();
        ChargeRequest { tag, parts, costs, grant: grant.cloned(), is_look }
    }

    /// Returns the key of a caller's bucket under a policy with this name.
    fn key(&self, limit: &Limit, grant: Option<&CurrentGrant>, tag: Tag, policy: &str) -> Vec<u8> {
        match (limit.scope, grant) {
            (Scope::All, _) => self.keys.of_shared(SharedTag::Shared, policy),
            (Scope::Subject, Some(grant)) if limit.is_apart(grant) => self.keys.of_subject(tag, APART),
            (Scope::Subject, Some(_)) => self.keys.of_subject(tag, policy),
            (Scope::Subject, None) => self.keys.of_shared(SharedTag::Anonymous, policy),
        }
    }

    fn begin(self: &Arc<Self>, request: ChargeRequest) -> Answer<RedisFuture> {
        if request.parts.is_empty() {
            return Answer::Ready(Decision::unlimited());
        }
        if let Some(states) = self.rejections.find(&request.tag, &request.parts, self.limits.time.now_ns()) {
            return Answer::Ready(reported(self.decision(&request, &states), request.grant.as_ref(), request.is_look));
        }
        match self.switch.try_acquire() {
            Ok(is_probe) => {
                let (pass, shared) = (Permit::new(&self.switch, is_probe), Arc::clone(self));
                Answer::Pending(RedisFuture::new(async move {
                    let (grant, is_look) = (request.grant.clone(), request.is_look);
                    reported(shared.ask(request, pass).await, grant.as_ref(), is_look)
                }))
            }
            Err(wait) => {
                Answer::Ready(reported(self.decide_locally(&request, wait), request.grant.as_ref(), request.is_look))
            }
        }
    }

    async fn ask(self: Arc<Self>, request: ChargeRequest, mut pass: Permit) -> Decision {
        if let Some(leases) = self.leases.as_ref().filter(|leases| leases.has_leases_for(&request.parts)) {
            // Boxed, so that the future is smaller without leases.
            return Box::pin(self.ask_with_lease(leases, &request, pass)).await;
        }
        let permit = match self.queue(&request, &mut pass).await {
            Ok(permit) => permit,
            Err(decision) => return *decision,
        };
        let sent_at = self.limits.time.now_ns();
        let charge = async |connection: &mut Connection| gcra::charge(connection, &request.parts, &[]).await;
        let Some(reply) = self.with_redis(permit, pass, charge).await else {
            return self.decide_locally(&request, self.timeout);
        };
        let decision = self.decision(&request, &reply.states);
        if !self.limits.has_refunds() {
            let replied_at = self.limits.time.now_ns();
            self.rejections.insert(request.tag, &request.parts, &reply.states, sent_at, replied_at);
            return decision;
        }
        let charged = if decision.is_admitted() { refund::charged(request.parts, &reply) } else { Vec::new() };
        match charged.is_empty() {
            true => decision,
            false => decision.with_refund(Refund::new(move || self.refund(charged))),
        }
    }

    async fn refund(self: Arc<Self>, charged: Vec<refund::Charged>) {
        let Ok(is_probe) = self.switch.try_acquire() else { return };
        let mut pass = Permit::new(&self.switch, is_probe);
        if let Ok(permit) = self.acquire(charged[0].key(), &mut pass).await {
            let refund = async |connection: &mut Connection| refund::refund(connection, &charged).await;
            _ = self.with_redis(permit, pass, refund).await;
        }
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
            Some(states) => Err(self.decision(request, &states).into()),
            None => Ok(permit),
        }
    }

    /// Waits for a connection and for a permit.
    async fn acquire(&self, key: &[u8], pass: &mut Permit) -> Result<SendPermit<'_>, NotSent> {
        // First the connection: charges that wait for an unavailable cluster node must not hold permits.
        let mut connection = self.connection(key, pass).await?;
        let (permit, has_waited) = match self.in_flight.try_acquire() {
            Ok(permit) => (permit, false),
            Err(_) => {
                let waited = within(self.queue_timeout(), self.in_flight.acquire()).await;
                // The semaphore is never closed.
                let Some(Ok(permit)) = waited else {
                    observe::queue_timed_out();
                    return Err(NotSent::QueueTimeout);
                };
                pass.renew().map_err(NotSent::Unavailable)?;
                // The previous connection may have failed meanwhile.
                connection = self.connection(key, pass).await?;
                (permit, true)
            }
        };
        pass.renew().map_err(NotSent::Unavailable)?;
        Ok(SendPermit { connection, has_waited, _permit: permit })
    }

    /// Waits for a connection, for at most the timeout.
    async fn connection(&self, key: &[u8], pass: &mut Permit) -> Result<Connection, NotSent> {
        let mut connection = pin!(self.link.open(key));
        // An open connection needs no timer.
        let timer = Timer::start();
        let opened = match connection.as_mut().now_or_never() {
            Some(opened) => Some(opened),
            None => within(self.timeout, connection).await,
        };
        let end = match opened {
            Some(Ok(connection)) => return Ok(connection),
            Some(Err(_)) => RedisOutcome::Failed,
            None => RedisOutcome::Deadline,
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
        let done = within(self.timeout, command(&mut permit.connection)).await;
        timer.record_redis_call(match &done {
            Some(Ok(_)) => RedisOutcome::Answered,
            Some(Err(_)) => RedisOutcome::Failed,
            None => RedisOutcome::Deadline,
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
        if let Fallback::Local(limits) = &self.fallback {
            limits.follow(&self.limits, self.nodes);
        }
        self.fallback.decide(request, wait)
    }

    pub(super) fn decision(&self, request: &ChargeRequest, states: &[State]) -> Decision {
        let made = |(part, state): (&Part, &State)| self.marked(part.at, part.decision(*state), request.grant.as_ref());
        Decision::all_of(request.parts.iter().zip(states).map(made))
    }

    /// Adds a policy's dry-run and near-limit marks to its decision.
    pub(super) fn marked(&self, at: usize, decision: Decision, grant: Option<&CurrentGrant>) -> Decision {
        match self.limits.states().get(at) {
            Some(state) => state.limit().mark(decision, grant),
            None => decision,
        }
    }
}

/// Reports a decision to metrics and events, and returns it.
fn reported(decision: Decision, grant: Option<&CurrentGrant>, is_look: bool) -> Decision {
    if !is_look {
        observe::charged(&decision, grant);
    }
    decision
}
