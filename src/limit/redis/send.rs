//! Sends a command to Redis: the circuit breaker, the queue, the connection and the timeouts.

use std::pin::pin;
use std::time::Duration;

use futures_util::FutureExt as _;
use redis::{ErrorKind, RedisResult, ServerErrorKind};
use tokio::sync::SemaphorePermit;

use super::charge::{ChargeRequest, Shared};
use super::cluster::Route;
use super::connect::{Connection, Link};
use super::outage::undecided;
use super::timeout::{Begun, within_counted};
use crate::observe::{self, RedisOutcome, Timer};
use crate::pending::breaker::{Breaker, BreakerState, Permit};
use crate::quota::decision::Decision;

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

/// A command that waits for its reply.
struct Sent<'a> {
    shared: &'a Shared,
    permit: SendPermit<'a>,
    pass: Permit,
    begun: Begun,
}

impl Sent<'_> {
    fn failed(&mut self) {
        let connection = &self.permit.connection;
        // A redirection may have led to another node.
        if let Some(state) = connection.route.as_ref().and_then(Route::breaker) {
            self.pass.move_to(self.shared.breaker.with_state(state));
        }
        self.pass.end(false);
        self.shared.link.failed(Some(connection));
    }
}

impl Drop for Sent<'_> {
    /// A command that is dropped after half of the timeout has failed. Otherwise callers with a shorter timeout would use a silent
    /// connection forever.
    fn drop(&mut self) {
        if !self.pass.has_ended() && self.begun.is_half_over() {
            self.failed();
        }
    }
}

/// A charge that waits for a connection.
struct Connecting<'a> {
    link: &'a Link,
    pass: &'a mut Permit,
    begun: Begun,
    is_over: bool,
}

impl Drop for Connecting<'_> {
    /// As for a command.
    fn drop(&mut self) {
        if !self.is_over && self.begun.is_half_over() {
            self.pass.end(false);
            self.link.failed(None);
        }
    }
}

impl Shared {
    /// Returns the circuit breaker of the server that has a key. Until the slots of a cluster are known, all charges share one.
    pub(super) fn breaker_of(&self, key: &[u8]) -> Breaker {
        let Some(state) = self.link.breaker_of(key) else { return self.breaker.clone() };
        // Charges do not use the shared breaker any longer, so none would close it.
        if self.breaker.is_tripped() {
            self.breaker.succeeded(true);
        }
        self.breaker.with_state(state)
    }

    /// Returns the state of the circuit breaker. For a cluster: open if that of any node is open, otherwise half-open if any is.
    pub(super) fn state(&self) -> BreakerState {
        let nodes = self.link.breakers().into_iter().map(|state| self.breaker.with_state(state).state());
        let states: Vec<_> = nodes.chain([self.breaker.state()]).collect();
        let worst_first = [BreakerState::Open, BreakerState::HalfOpen];
        worst_first.into_iter().find(|state| states.contains(state)).unwrap_or(BreakerState::Closed)
    }

    /// Sends a command about a key. Returns `None` if Redis has failed, or is not asked.
    pub(super) async fn command<T>(
        &self,
        key: &[u8],
        command: impl AsyncFnOnce(&mut Connection) -> RedisResult<T>,
    ) -> Option<T> {
        let mut pass = self.breaker_of(key).acquire().ok()?;
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
        match permit.has_waited.then(|| self.cached_rejection(request)).flatten() {
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

    /// Charges that wait for a connection hold no permit, since charges of other nodes need it.
    async fn wait_for_permit(&self, key: &[u8], pass: &mut Permit) -> Result<SendPermit<'_>, NotSent> {
        // Both waits in the queue share its timeout.
        let queue_time = Begun::default();
        let (mut permit, mut has_waited) = match self.in_flight.try_acquire() {
            Ok(permit) => (permit, false),
            Err(_) => (self.wait_in_queue(&queue_time).await?, true),
        };
        self.move_to_node(key, pass);
        pass.renew().map_err(NotSent::Unavailable)?;
        let connection = match self.link.open(key).now_or_never() {
            Some(Ok(connection)) => connection,
            _ => {
                drop(permit);
                let connection = self.connection(key, pass).await?;
                (permit, has_waited) = (self.wait_in_queue(&queue_time).await?, true);
                connection
            }
        };
        Ok(SendPermit { connection, has_waited, _permit: permit })
    }

    async fn wait_in_queue(&self, begun: &Begun) -> Result<SemaphorePermit<'_>, NotSent> {
        match within_counted(self.queue_timeout(), pin!(self.in_flight.acquire()), begun).await {
            Some(Ok(permit)) => Ok(permit),
            // The semaphore is never closed.
            _ => {
                observe::queue_timed_out();
                Err(NotSent::QueueTimeout)
            }
        }
    }

    /// Waits for a connection, for at most the timeout.
    async fn connection(&self, key: &[u8], pass: &mut Permit) -> Result<Connection, NotSent> {
        let mut connection = pin!(self.link.open(key));
        // An open connection needs no timer.
        let timer = Timer::start();
        let opened = match connection.as_mut().now_or_never() {
            Some(opened) => Some(opened),
            None => {
                let mut wait = Connecting { link: &self.link, pass, begun: Begun::default(), is_over: false };
                let opened = within_counted(self.timeout, connection.as_mut(), &wait.begun).await;
                wait.is_over = true;
                opened
            }
        };
        // The slots may be known only now. Otherwise a failure is that of the node whose connection was awaited.
        if pass.is_of(&self.breaker) {
            self.move_to_node(key, pass);
        }
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

    /// Moves a charge to the breaker of the node that has its key now. This may be another one than before a wait.
    fn move_to_node(&self, key: &[u8], pass: &mut Permit) {
        if self.link.is_cluster() {
            pass.move_to(self.breaker_of(key));
        }
    }

    pub(super) fn queue_timeout(&self) -> Duration {
        self.queue_timeout.unwrap_or(self.timeout.saturating_mul(2))
    }

    /// Sends a command. Returns `None` if Redis has failed: there was no reply within the timeout, or an error.
    pub(super) async fn with_redis<T>(
        &self,
        permit: SendPermit<'_>,
        pass: Permit,
        command: impl AsyncFnOnce(&mut Connection) -> RedisResult<T>,
    ) -> Option<T> {
        let mut sent = Sent { shared: self, permit, pass, begun: Begun::default() };
        let timer = Timer::start();
        let done = within_counted(self.timeout, pin!(command(&mut sent.permit.connection)), &sent.begun).await;
        timer.record_redis_call(match &done {
            Some(Ok(_)) => RedisOutcome::Answered,
            Some(Err(_)) => RedisOutcome::Failed,
            None => RedisOutcome::Timeout,
        });
        match &done {
            Some(Ok(_)) => sent.pass.end(true),
            // The node is available. One caller's keys are moving.
            Some(Err(error)) if error.kind() == ErrorKind::Server(ServerErrorKind::TryAgain) => sent.pass.end(true),
            _ => sent.failed(),
        }
        done.and_then(Result::ok)
    }
}
