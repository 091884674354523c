//! One charge: what is remembered, then the breaker, then Redis, then what is decided without it.

use std::num::NonZeroU32;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use redis::RedisResult;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::connect::{Link, Open};
use super::denied::Denied;
use super::gcra::{self, Part, State};
use super::key::{Everybody, Keys, Tag};
use super::limits::RedisFuture;
use super::outage::{Outage, undecided};
use super::refund;
use super::stocks::Stocks;
use super::timeout::within;
use crate::caller::CurrentGrant;
use crate::limit::limit::{Limit, Scope};
use crate::limit::{Charge, RateLimits, Refund};
use crate::observe::{self, AtRedis, Timer};
use crate::pending::answer::Answer;
use crate::pending::breaker::{Pass, Switch};
use crate::quota::Quota;
use crate::quota::decision::Decision;
use crate::quota::policy::Policy;

/// What all clones of a limiter share. A clone of this has settings of its own.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) keys: Arc<Keys>,
    pub(super) link: Arc<Link>,
    pub(super) deadline: Duration,
    pub(super) switch: Switch,
    pub(super) denied: Arc<Denied>,
    pub(super) outage: Outage,
    pub(super) nodes: NonZeroU32,
    pub(super) limits: RateLimits,
    /// A permit for each command that may wait for its reply at the same time.
    pub(super) in_flight: Arc<Semaphore>,
    /// How long a charge may wait for a permit; `None` is twice the deadline.
    pub(super) queue_timeout: Option<Duration>,
    /// What was bought ahead, if that is wanted.
    pub(super) stocks: Option<Arc<Stocks>>,
}

/// A charge, and all that is needed to make it later.
pub(super) struct Asked {
    pub(super) tag: Tag,
    /// Those policies that limit this caller.
    pub(super) parts: Vec<Part>,
    /// What each policy costs.
    pub(super) costs: Vec<u32>,
    /// `None` is an anonymous caller.
    pub(super) grant: Option<CurrentGrant>,
    /// Whether nothing is to be charged, so that there is no charge to tell of.
    pub(super) is_look: bool,
}

/// A charge's turn to send a command.
pub(super) struct Turn<'a> {
    open: Open,
    /// Whether there were too many commands in flight before.
    has_waited: bool,
    _permit: SemaphorePermit<'a>,
}

/// Why a charge cannot send a command.
enum NoTurn {
    /// The queue timeout has passed.
    Busy,
    /// Redis has failed. It may be there again after this time.
    Down(Duration),
}

impl Shared {
    /// Counts what a charge costs, and makes it.
    pub(super) fn check(self: &Arc<Self>, grant: Option<&CurrentGrant>, charge: Charge<'_>) -> Answer<RedisFuture> {
        let costs: Vec<_> = self.limits.iter().map(|rule| rule.cost(charge)).collect();
        let is_look = matches!(charge, Charge::Units(0));
        match self.pay(grant, &costs) {
            Some(decision) => Answer::Ready(told(decision, grant, is_look)),
            None => self.begin(self.asked(grant, costs, is_look)),
        }
    }

    /// Finds the budgets of a charge.
    fn asked(&self, grant: Option<&CurrentGrant>, costs: Vec<u32>, is_look: bool) -> Asked {
        let tag = grant.map_or_else(Tag::default, |grant| self.keys.tag(grant.subject()));
        let part = |((at, rule), &cost): ((usize, &Limit), &u32)| {
            let (key, policy) = self.budget(rule, grant, tag)?;
            Some(Part { at, key, policy, cost, binds: !rule.is_dry_run })
        };
        let parts = self.limits.iter().enumerate().zip(&costs).filter_map(part).collect();
        Asked { tag, parts, costs, grant: grant.cloned(), is_look }
    }

    /// Which budget a caller has by a rule, if it limits him.
    fn budget(&self, rule: &Limit, grant: Option<&CurrentGrant>, tag: Tag) -> Option<(Vec<u8>, Policy)> {
        let quota = quota_of(rule, grant)?;
        let policy = match (rule.scope, grant) {
            (Scope::Subject, None) => Policy::named(&rule.anonymous_name(), quota),
            _ => Policy::named(&rule.name, quota),
        };
        let key = match (rule.scope, grant) {
            (Scope::All, _) => self.keys.of_all(Everybody::Shared, policy.name()),
            (Scope::Subject, Some(_)) => self.keys.of_subject(tag, policy.name()),
            (Scope::Subject, None) => self.keys.of_all(Everybody::Anonymous, policy.name()),
        };
        Some((key, policy))
    }

    fn begin(self: &Arc<Self>, asked: Asked) -> Answer<RedisFuture> {
        if asked.parts.is_empty() {
            return Answer::Ready(Decision::unlimited());
        }
        if let Some(states) = self.denied.recall(&asked.tag, &asked.parts, self.limits.time.now_ns()) {
            return Answer::Ready(told(self.decision(&asked, &states), asked.grant.as_ref(), asked.is_look));
        }
        match self.switch.enter() {
            Ok(is_probe) => {
                let (pass, shared) = (Pass::new(&self.switch, is_probe), Arc::clone(self));
                Answer::Pending(RedisFuture::new(async move {
                    let (grant, is_look) = (asked.grant.clone(), asked.is_look);
                    told(shared.ask(asked, pass).await, grant.as_ref(), is_look)
                }))
            }
            Err(wait) => Answer::Ready(told(self.outage.decide(&asked, wait), asked.grant.as_ref(), asked.is_look)),
        }
    }

    async fn ask(self: Arc<Self>, asked: Asked, mut pass: Pass) -> Decision {
        if let Some(stocks) = self.stocks.as_ref().filter(|stocks| stocks.have_leases_of(&asked.parts)) {
            // Boxed, so that who has no leases moves no room for it.
            return Box::pin(self.ask_ahead(stocks, &asked, pass)).await;
        }
        let turn = match self.queue(&asked, &mut pass).await {
            Ok(turn) => turn,
            Err(decision) => return *decision,
        };
        let asked_at = self.limits.time.now_ns();
        let charge = async |open: &mut Open| gcra::charge(open, &asked.parts, &[]).await;
        let Some(reply) = self.with_redis(turn, pass, charge).await else {
            return self.outage.decide(&asked, self.deadline);
        };
        let decision = self.decision(&asked, &reply.states);
        if !self.limits.has_refunds() {
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
        let Ok(is_probe) = self.switch.enter() else { return };
        let mut pass = Pass::new(&self.switch, is_probe);
        if let Ok(turn) = self.turn(charged[0].key(), &mut pass).await {
            let give_back = async |open: &mut Open| refund::give_back(open, &charged).await;
            _ = self.with_redis(turn, pass, give_back).await;
        }
    }

    /// Waits until a charge may be sent to Redis. Returns a decision instead if Redis need not or must not be asked any more:
    /// the budget is known to be spent, there is no connection, the breaker has opened, or the queue timeout has passed.
    pub(super) async fn queue(&self, asked: &Asked, pass: &mut Pass) -> Result<Turn<'_>, Box<Decision>> {
        let turn = match self.turn(&asked.parts[0].key, pass).await {
            Ok(turn) => turn,
            Err(NoTurn::Busy) => return Err(undecided(asked, self.queue_timeout()).into()),
            Err(NoTurn::Down(wait)) => return Err(self.outage.decide(asked, wait).into()),
        };
        let recall = || self.denied.recall(&asked.tag, &asked.parts, self.limits.time.now_ns());
        match turn.has_waited.then(recall).flatten() {
            Some(states) => Err(self.decision(asked, &states).into()),
            None => Ok(turn),
        }
    }

    /// Waits for a connection, and for a place among the commands that are in flight.
    async fn turn(&self, key: &[u8], pass: &mut Pass) -> Result<Turn<'_>, NoTurn> {
        // First the connection: those that wait for a node of a cluster which is away take no places from others.
        let mut open = self.connection(key, pass).await?;
        let (permit, has_waited) = match self.in_flight.try_acquire() {
            Ok(permit) => (permit, false),
            Err(_) => {
                let waited = within(self.queue_timeout(), self.in_flight.acquire()).await;
                // The semaphore is never closed.
                let Some(Ok(permit)) = waited else {
                    observe::queue_timed_out();
                    return Err(NoTurn::Busy);
                };
                pass.renew().map_err(NoTurn::Down)?;
                // The one before may have failed meanwhile.
                open = self.connection(key, pass).await?;
                (permit, true)
            }
        };
        pass.renew().map_err(NoTurn::Down)?;
        Ok(Turn { open, has_waited, _permit: permit })
    }

    /// Waits for a connection, within the deadline.
    async fn connection(&self, key: &[u8], pass: &mut Pass) -> Result<Open, NoTurn> {
        let mut open = pin!(self.link.open(key));
        // The usual one is there, and needs no timer.
        let timer = Timer::start();
        let opened = match open.as_mut().now_or_never() {
            Some(opened) => Some(opened),
            None => within(self.deadline, open).await,
        };
        let end = match opened {
            Some(Ok(open)) => return Ok(open),
            Some(Err(_)) => AtRedis::Failed,
            None => AtRedis::Deadline,
        };
        timer.asked_redis(end);
        pass.end(false);
        self.link.failed(None);
        Err(NoTurn::Down(self.deadline))
    }

    fn queue_timeout(&self) -> Duration {
        self.queue_timeout.unwrap_or(self.deadline.saturating_mul(2))
    }

    /// Sends a command. Returns `None` if Redis has failed: no reply within the deadline, or an error.
    pub(super) async fn with_redis<T>(
        &self,
        mut turn: Turn<'_>,
        mut pass: Pass,
        command: impl AsyncFnOnce(&mut Open) -> RedisResult<T>,
    ) -> Option<T> {
        let timer = Timer::start();
        let done = within(self.deadline, command(&mut turn.open)).await;
        timer.asked_redis(match &done {
            Some(Ok(_)) => AtRedis::Answered,
            Some(Err(_)) => AtRedis::Failed,
            None => AtRedis::Deadline,
        });
        let done = done.and_then(Result::ok);
        pass.end(done.is_some());
        if done.is_none() {
            self.link.failed(Some(&turn.open));
        }
        done
    }

    pub(super) fn decision(&self, asked: &Asked, states: &[State]) -> Decision {
        let made = |(part, state): (&Part, &State)| self.marked(part.at, part.decision(*state), asked.grant.as_ref());
        Decision::all_of(asked.parts.iter().zip(states).map(made))
    }

    /// The decision of one policy, with what else is to be told of it.
    pub(super) fn marked(&self, at: usize, decision: Decision, grant: Option<&CurrentGrant>) -> Decision {
        match self.limits.iter().nth(at) {
            Some(rule) => rule.mark(decision, grant),
            None => decision,
        }
    }
}

/// A decision that those who watch have been told of.
fn told(decision: Decision, grant: Option<&CurrentGrant>, is_look: bool) -> Decision {
    if !is_look {
        observe::charged(&decision, grant);
    }
    decision
}

/// What a caller has by a rule, if it limits him.
pub(super) fn quota_of(rule: &Limit, grant: Option<&CurrentGrant>) -> Option<Quota> {
    match (rule.scope, grant) {
        (Scope::All, _) => Some(rule.quota),
        (Scope::Subject, Some(grant)) => Some(rule.quota_of(grant).unwrap_or(rule.quota)),
        (Scope::Subject, None) => rule.anonymous,
    }
}
