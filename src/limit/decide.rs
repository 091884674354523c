//! One decision, as a function of a cell, a quota, a cost and the time. governor decides.

use std::cell::Cell;
use std::num::NonZeroU32;
use std::time::Duration;

use governor::clock::Clock;
use governor::middleware::StateInformationMiddleware;
use governor::nanos::Nanos;
use governor::state::{NotKeyed, StateStore};

use crate::quota::{MAX_SPAN_NS, Quota};
use crate::sync::InMemoryState;

/// The latest time at which decisions are made, 146 years after the epoch of the clock.
pub(super) const LATEST_NS: u64 = MAX_SPAN_NS - 1;

/// The theoretical arrival time of a cell that is closed for ever.
///
/// The latest true one is `LATEST_NS` plus a quota's span, below 2^63. From here governor can add a span and subtract
/// the tolerance (both below 2^62) without overflow, and what is left is still later than any time of a decision.
pub(super) const FROZEN: u64 = 3 * MAX_SPAN_NS - 1;

pub(super) enum Outcome {
    /// `tat` is the theoretical arrival time after the charge, `now` the time the decision was made at.
    Admitted { tat: u64 },
    /// Nothing was charged. The same charge fits after `wait`.
    Refused { tat: u64, wait: u64 },
    /// Nothing was charged. The charge is above the burst.
    AboveBurst,
    /// The cell is closed.
    Frozen,
}

/// Charges `cost` cells of `quota` at time `now`, in nanoseconds of a clock, at most [`LATEST_NS`].
#[inline]
pub(super) fn decide(cell: &InMemoryState, quota: Quota, now: u64, cost: NonZeroU32) -> Outcome {
    // governor multiplies first and compares then, which overflows: a dear charge would be a cheap one.
    if cost > quota.cells() {
        return Outcome::AboveBurst;
    }
    // A quota's interval is never 0, so that governor cannot refuse it.
    let Some(gcra) = governor::Quota::with_period(Duration::from_nanos(quota.interval_ns())) else {
        return Outcome::AboveBurst;
    };
    let tat = Cell::new(0);
    let limiter: governor::RateLimiter<_, _, _, StateInformationMiddleware> = governor::RateLimiter::new(
        gcra.allow_burst(quota.cells()),
        Borrowed { cell, tat: &tat },
        Given { next: Cell::new(0), now },
    );
    match limiter.check_n(cost) {
        Ok(Ok(_)) => Outcome::Admitted { tat: tat.get() },
        Ok(Err(_)) if tat.get() >= FROZEN => Outcome::Frozen,
        Ok(Err(refusal)) => {
            // Below 2^64 nanoseconds, since both times are.
            Outcome::Refused { tat: tat.get(), wait: refusal.wait_time_from(Nanos::new(now)).as_nanos() as u64 }
        }
        Err(_) => Outcome::AboveBurst,
    }
}

/// A cell lent to a limiter that lives for one decision, and a note of what it read or wrote last.
struct Borrowed<'a> {
    cell: &'a InMemoryState,
    tat: &'a Cell<u64>,
}

impl StateStore for Borrowed<'_> {
    type Key = NotKeyed;

    #[inline]
    fn measure_and_replace<T, F, E>(&self, key: &NotKeyed, f: F) -> Result<T, E>
    where
        F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
    {
        self.cell.measure_and_replace(key, |old| {
            self.tat.set(old.map_or(0, Nanos::as_u64));
            let (outcome, new) = f(old)?;
            self.tat.set(new.as_u64());
            Ok((outcome, new))
        })
    }
}

/// A clock that is read twice: for the limiter's start, which is the epoch, and for the decision.
struct Given {
    next: Cell<u64>,
    now: u64,
}

impl Clock for Given {
    type Instant = Nanos;

    #[inline]
    fn now(&self) -> Nanos {
        Nanos::new(self.next.replace(self.now))
    }
}

/// Writes a theoretical arrival time and returns the one before.
pub(super) fn swap(cell: &InMemoryState, tat: u64) -> u64 {
    let never_fails: Result<u64, ()> =
        cell.measure_and_replace(&NotKeyed::NonKey, |old| Ok((old.map_or(0, Nanos::as_u64), Nanos::new(tat))));
    never_fails.unwrap_or(0)
}

/// Takes a charge of so many nanoseconds back, unless the cell is closed.
pub(super) fn give_back(cell: &InMemoryState, ns: u64) {
    let _: Result<(), ()> = cell.measure_and_replace(&NotKeyed::NonKey, |old| match old.map_or(0, Nanos::as_u64) {
        closed if closed >= FROZEN => Err(()),
        tat => Ok(((), Nanos::new(tat.saturating_sub(ns)))),
    });
}

/// The theoretical arrival time; 0 if nothing was ever charged.
pub(super) fn read(cell: &InMemoryState) -> u64 {
    // governor lets a state be read only by a decision; one that refuses changes nothing.
    let always_fails: Result<(), u64> =
        cell.measure_and_replace(&NotKeyed::NonKey, |old| Err(old.map_or(0, Nanos::as_u64)));
    always_fails.err().unwrap_or(0)
}
