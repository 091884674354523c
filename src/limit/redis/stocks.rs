//! The stocks of all subjects on this server, by the rules of `lease.rs`.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::OwnedMutexGuard;

use super::gcra::{Part, Reply};
use super::lease::{Leases, Order, Stock, Taken};
use super::timeout::within;
use crate::grant::Subject;
use crate::quota::Quota;
use crate::quota::decision::Decision;

/// All stocks of a server.
pub(super) struct Stocks {
    leases: Leases,
    hasher: RandomState,
    /// Many, so that threads seldom want the same one. The last is that of anonymous callers.
    shards: Vec<Mutex<Shard>>,
    nobody: Subject,
}

#[derive(Default)]
struct Shard {
    shelves: HashMap<Subject, Shelf>,
    /// The number of shelves at which the next sweep is due.
    sweep_at: usize,
}

/// What there is for one subject: a stock a budget, in the order of the limiter's policies.
struct Shelf {
    turn: Arc<Turn>,
    stocks: Vec<Stock>,
}

/// Whose turn it is to buy, and how many wait for it.
#[derive(Default)]
struct Turn {
    buyer: Arc<tokio::sync::Mutex<()>>,
    waiting: AtomicU32,
}

/// One who waits: dropped, one waits less.
struct Waiting<'a>(&'a AtomicU32);

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicU32) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// One who goes to Redis.
pub(super) struct Entered {
    turn: Arc<Turn>,
    /// Held by the one who may buy ahead.
    buyer: Option<OwnedMutexGuard<()>>,
    /// Whether somebody else still buys.
    is_late: bool,
}

/// A charge that is on its way to Redis, and what this server gives to it.
pub(super) struct Purchase {
    taken: Vec<Taken>,
    orders: Vec<Order>,
    /// Nobody else buys ahead until this goes, and the shelf stays.
    entered: Entered,
}

impl Purchase {
    pub(super) fn orders(&self) -> &[Order] {
        &self.orders
    }
}

impl Stocks {
    const SHARDS: usize = 16;
    /// Below this number of shelves in a shard nothing is swept.
    const FEW: usize = 64;

    pub(super) fn new(leases: Leases) -> Self {
        let shard = || Mutex::new(Shard { sweep_at: Self::FEW, ..Shard::default() });
        let shards = (0..=Self::SHARDS).map(|_| shard()).collect();
        Self { leases, hasher: RandomState::new(), shards, nobody: "".into() }
    }

    /// The same leases, and nothing bought.
    pub(super) fn emptied(&self) -> Self {
        Self::new(self.leases)
    }

    /// Pays from what is here, if there is enough of everything. Without a cost, tells what is known if that is new.
    pub(super) fn pay(&self, who: Option<&Subject>, now: u64, costs: &[(usize, Quota, u32)]) -> Option<Vec<Decision>> {
        let (subject, mut shard) = self.shard(who);
        let shelf = shard.shelves.get_mut(subject).filter(|shelf| shelf.is_of(costs.iter().map(|of| of.1)))?;
        let can_pay = |(stock, &(_, _, cost)): (&Stock, &(usize, Quota, u32))| match cost {
            0 => stock.knows(now),
            cost => stock.left(now) >= cost,
        };
        if !shelf.stocks.iter().zip(costs).all(can_pay) {
            return None;
        }
        let pay = |(stock, &(_, _, cost)): (&mut Stock, &(usize, Quota, u32))| {
            _ = stock.take(now, cost);
            stock.admitted(now)
        };
        Some(shelf.stocks.iter_mut().zip(costs).map(pay).collect())
    }

    /// Whether cells of all these budgets can be bought ahead.
    pub(super) fn have_leases_of(&self, parts: &[Part]) -> bool {
        parts.iter().all(|part| self.leases.plan(part.policy.quota()).is_some())
    }

    /// Waits until nobody else buys for this subject, if that is of use, and for at most `longest`. A charge that has waited so
    /// long asks Redis by itself, and buys nothing ahead: that others buy slowly is no sign that Redis is away.
    pub(super) async fn enter(
        &self,
        who: Option<&Subject>,
        now: impl Fn() -> u64,
        parts: &[Part],
        longest: Duration,
    ) -> Entered {
        let turn = self.turn(who, now(), parts);
        let may_buy = || self.with(who, parts, |shelf| shelf.may_buy(now(), parts)).unwrap_or(false);
        let (mut buyer, mut is_late) = (None, false);
        if may_buy() {
            buyer = Arc::clone(&turn.buyer).try_lock_owned().ok();
            if buyer.is_none() {
                let _waiting = Waiting::begin(&turn.waiting);
                buyer = within(longest, Arc::clone(&turn.buyer).lock_owned()).await;
                is_late = buyer.is_none();
            }
        }
        // If others were told meanwhile that there is little left, it is of no use to come one after the other.
        Entered { turn, buyer: buyer.filter(|_| may_buy()), is_late }
    }

    /// Takes what is here for a charge. Returns the parts that are left for Redis.
    pub(super) fn begin(
        &self,
        who: Option<&Subject>,
        now: u64,
        entered: Entered,
        parts: &[Part],
    ) -> (Purchase, Vec<Part>) {
        let others = entered.turn.waiting.load(Ordering::Relaxed);
        let begun = self.with(who, parts, |shelf| {
            let take = |(stock, part): (&mut Stock, &Part)| {
                let taken = stock.take(now, part.cost);
                let order = match entered.buyer.is_some() && taken.cells < part.cost {
                    true => stock.order(now, others.saturating_mul(part.cost)),
                    false => Order::default(),
                };
                (taken, order)
            };
            shelf.stocks.iter_mut().zip(parts).map(take).unzip()
        });
        let (taken, orders): (Vec<Taken>, Vec<Order>) = begun.unwrap_or_default();
        let here = taken.iter().map(|taken| taken.cells).chain(std::iter::repeat(0));
        let rest = parts.iter().zip(here).map(|(part, here)| Part { cost: part.cost - here, ..part.clone() }).collect();
        (Purchase { taken, orders, entered }, rest)
    }

    /// Ends a purchase with what Redis has said of the parts that were left for it; `None` if it has said nothing. Puts
    /// back what was not spent. Returns a decision for each part that was paid.
    pub(super) fn end(
        &self,
        who: Option<&Subject>,
        (asked_at, now): (u64, u64),
        purchase: &Purchase,
        parts: &[Part],
        reply: Option<&Reply>,
    ) -> Vec<Option<Decision>> {
        let states = reply.map_or(&[][..], |reply| &reply.states);
        let is_admitted = reply.is_some() && parts.iter().zip(states).all(|(part, state)| !part.binds || state.fits);
        let ended = self.with(who, parts, |shelf| {
            let end = |at: usize, stock: &mut Stock| {
                let (taken, order) = (purchase.taken.get(at)?, purchase.orders.get(at)?);
                let state = states.get(at).inspect(|state| stock.hear(now, **state));
                if !state.is_some_and(|state| is_admitted && state.fits) {
                    stock.put_back(*taken);
                    return None;
                }
                let ahead = reply.and_then(|reply| reply.ahead.get(at)).copied().unwrap_or(0);
                let charged = parts.get(at).map_or(0, |part| part.cost);
                // A look says nothing of the pace, and neither does a charge beside a purchase that is being made.
                if charged > 0 && !purchase.entered.is_late {
                    stock.receive(asked_at, now, charged, *order, ahead);
                }
                Some(stock.admitted(now))
            };
            shelf.stocks.iter_mut().enumerate().map(|(at, stock)| end(at, stock)).collect()
        });
        ended.unwrap_or_else(|| vec![None; parts.len()])
    }

    /// How many subjects are remembered.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().unwrap_or_else(PoisonError::into_inner).shelves.len()).sum()
    }

    /// The cells that are there, ended or not.
    #[cfg(test)]
    pub(super) fn left(&self, who: Option<&Subject>) -> Vec<u32> {
        let (subject, shard) = self.shard(who);
        shard.shelves.get(subject).map_or(Vec::new(), |shelf| shelf.stocks.iter().map(|stock| stock.left(0)).collect())
    }

    /// The subject's turn, on a shelf that fits these budgets.
    fn turn(&self, who: Option<&Subject>, now: u64, parts: &[Part]) -> Arc<Turn> {
        let (subject, mut shard) = self.shard(who);
        if let Some(shelf) = shard.shelves.get(subject) {
            if shelf.is_of(parts.iter().map(|part| part.policy.quota())) {
                return Arc::clone(&shelf.turn);
            }
        }
        let stock = |part: &Part| Some(Stock::new(part.policy.clone(), self.leases.plan(part.policy.quota())?));
        let (turn, stocks) = (Arc::<Turn>::default(), parts.iter().filter_map(stock).collect());
        shard.insert(subject, Shelf { turn: Arc::clone(&turn), stocks }, now);
        turn
    }

    /// Calls `f` with the subject's shelf, if it still is one of these budgets.
    fn with<T>(&self, who: Option<&Subject>, parts: &[Part], f: impl FnOnce(&mut Shelf) -> T) -> Option<T> {
        let (subject, mut shard) = self.shard(who);
        let shelf = shard.shelves.get_mut(subject)?;
        shelf.is_of(parts.iter().map(|part| part.policy.quota())).then(|| f(shelf))
    }

    fn shard<'a>(&'a self, who: Option<&'a Subject>) -> (&'a Subject, MutexGuard<'a, Shard>) {
        let at = who.map_or(Self::SHARDS, |subject| self.hasher.hash_one(subject) as usize % Self::SHARDS);
        // Nothing under the lock can panic half-way through a change.
        (who.unwrap_or(&self.nobody), self.shards[at].lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Shard {
    fn insert(&mut self, subject: &Subject, shelf: Shelf, now: u64) {
        if self.shelves.len() >= self.sweep_at {
            // Not while somebody buys for it.
            self.shelves.retain(|_, shelf| {
                Arc::strong_count(&shelf.turn) > 1 || !shelf.stocks.iter().all(|stock| stock.is_over(now))
            });
            self.shelves.shrink_to(self.shelves.len() * 2);
            // Twice what is left, so that the cost of a sweep is spread over as many that come.
            self.sweep_at = (self.shelves.len() * 2).max(Stocks::FEW);
        }
        self.shelves.insert(subject.clone(), shelf);
    }
}

impl Shelf {
    fn is_of(&self, quotas: impl ExactSizeIterator<Item = Quota>) -> bool {
        quotas.len() == self.stocks.len() && self.stocks.iter().zip(quotas).all(|(stock, quota)| stock.quota() == quota)
    }

    /// Whether something is missing, and may be had ahead.
    fn may_buy(&self, now: u64, parts: &[Part]) -> bool {
        let is_missing = |(stock, part): (&Stock, &Part)| stock.left(now) < part.cost && stock.may_buy(now);
        self.stocks.iter().zip(parts).any(is_missing)
    }
}
