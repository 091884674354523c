//! Merging of change reports, so that floods of notifications cause a bounded number of reports.
//!
//! # Rules
//!
//! 1. Each change is reported, or an `Everything` is reported after it, which includes all changes.
//! 2. `Everything` and `Added` are reported immediately, and then at most once in each interval, at its end.
//! 3. At most [`MAX_NAMED`] named grants are reported in each interval. Further ones are reported as `Everything`.

use std::time::Duration;

#[cfg(feature = "postgres")]
use tokio::time::Instant;

#[cfg(feature = "postgres")]
use crate::observe::{self, StoreChange};
use crate::store::Invalidation;

#[cfg(feature = "postgres")]
const MAX_NAMED: u32 = 100;

pub(super) struct Reporter<F> {
    on_change: F,
    #[cfg(feature = "postgres")]
    pace: Pace,
}

/// The state of the limits on reports of notifications, which any database role can send.
#[cfg(feature = "postgres")]
struct Pace {
    interval: Duration,
    everything: Merged,
    added: Merged,
    /// The start of the interval in which `named` grants were reported.
    named_since: Option<Instant>,
    named: u32,
}

#[cfg(feature = "postgres")]
#[derive(Default)]
struct Merged {
    last: Option<Instant>,
    is_waiting: bool,
}

#[cfg(feature = "postgres")]
impl Merged {
    /// Returns true if the change is to be reported immediately. Otherwise the change waits.
    fn admit(&mut self, now: Instant, interval: Duration) -> bool {
        self.is_waiting = self.last.is_some_and(|last| now.saturating_duration_since(last) < interval);
        if !self.is_waiting {
            self.last = Some(now);
        }
        !self.is_waiting
    }

    /// Returns the time until the waiting change is due.
    fn due_in(&self, now: Instant, interval: Duration) -> Option<Duration> {
        let last = self.last.filter(|_| self.is_waiting)?;
        Some(interval.saturating_sub(now.saturating_duration_since(last)))
    }
}

impl<F: FnMut(Invalidation)> Reporter<F> {
    #[cfg_attr(not(feature = "postgres"), allow(unused_variables, reason = "changes are read once in each interval"))]
    pub(super) fn new(interval: Duration, on_change: F) -> Self {
        Self {
            on_change,
            #[cfg(feature = "postgres")]
            pace: Pace {
                interval,
                everything: Merged::default(),
                added: Merged::default(),
                named_since: None,
                named: 0,
            },
        }
    }

    /// Reports a change immediately, without limits.
    pub(super) fn report_now(&mut self, change: Invalidation) {
        #[cfg(feature = "postgres")]
        if change == Invalidation::Everything {
            self.pace.everything = Merged { last: Some(Instant::now()), is_waiting: false };
            self.pace.added.is_waiting = false;
        }
        (self.on_change)(change);
    }
}

#[cfg(feature = "postgres")]
impl<F: FnMut(Invalidation)> Reporter<F> {
    pub(super) fn interval(&self) -> Duration {
        self.pace.interval
    }

    /// Reports a change of a notification, within the limits.
    pub(super) fn report(&mut self, change: Invalidation) {
        let (now, pace) = (Instant::now(), &mut self.pace);
        let change = match change {
            Invalidation::Added | Invalidation::Everything => change,
            named if pace.admits_named(now) => named,
            _ => Invalidation::Everything,
        };
        let is_admitted = match change {
            Invalidation::Added => pace.added.admit(now, pace.interval),
            Invalidation::Everything => pace.everything.admit(now, pace.interval),
            _ => true,
        };
        match is_admitted {
            true => self.report_now(change),
            false => observe::store_changed(StoreChange::Merged),
        }
    }

    /// Reports the changes that are due. Returns the time until the next change is due.
    pub(super) fn report_due(&mut self) -> Option<Duration> {
        let (now, interval) = (Instant::now(), self.pace.interval);
        let is_due = |merged: &Merged| merged.due_in(now, interval).is_some_and(|wait| wait.is_zero());
        if is_due(&self.pace.everything) {
            self.report_now(Invalidation::Everything);
        } else if is_due(&self.pace.added) {
            self.pace.added = Merged { last: Some(now), is_waiting: false };
            self.report_now(Invalidation::Added);
        }
        let (everything, added) = (&self.pace.everything, &self.pace.added);
        everything.due_in(now, interval).into_iter().chain(added.due_in(now, interval)).min()
    }

    /// Reports all waiting changes.
    pub(super) fn report_waiting(&mut self) {
        if self.pace.everything.is_waiting || self.pace.added.is_waiting {
            self.report_now(Invalidation::Everything);
        }
    }
}

#[cfg(feature = "postgres")]
impl Pace {
    fn admits_named(&mut self, now: Instant) -> bool {
        let is_over = self.named_since.is_none_or(|since| now.saturating_duration_since(since) >= self.interval);
        if is_over {
            (self.named_since, self.named) = (Some(now), 0);
        }
        self.named = self.named.saturating_add(1);
        self.named <= MAX_NAMED
    }
}

#[cfg(all(test, feature = "postgres"))]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INTERVAL: Duration = Duration::from_secs(5);

    #[derive(Clone, Debug)]
    enum Step {
        Pass(u64),
        Announce(Invalidation, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..3_000_u64).prop_map(Step::Pass),
            (1..5_usize).prop_map(|times| Step::Announce(Invalidation::Everything, times)),
            (1..5_usize).prop_map(|times| Step::Announce(Invalidation::Added, times)),
            (1..80_usize).prop_map(|times| Step::Announce(Invalidation::Grant("a".into()), times)),
        ]
    }

    proptest! {
        /// Each change is reported within an interval, by itself or by `Everything`, and no more often than the rules allow.
        #[test]
        fn changes_are_reported_within_an_interval_and_within_the_limits(steps in prop::collection::vec(step(), 1..100)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            runtime.block_on(async {
                let mut reported: Vec<(Invalidation, Instant)> = Vec::new();
                let mut announced: Vec<(Invalidation, Instant)> = Vec::new();
                let mut reporter = Reporter::new(INTERVAL, |change| reported.push((change, Instant::now())));
                let end = Step::Pass(u64::try_from(INTERVAL.as_millis()).unwrap());
                for step in steps.into_iter().chain([end]) {
                    match step {
                        Step::Pass(ms) => {
                            let until = Instant::now() + Duration::from_millis(ms);
                            loop {
                                let due = reporter.report_due().map(|due| Instant::now() + due);
                                let next = due.map_or(until, |due| due.min(until));
                                tokio::time::sleep_until(next).await;
                                if next == until {
                                    break;
                                }
                            }
                            reporter.report_due();
                        }
                        Step::Announce(change, times) => {
                            for _ in 0..times {
                                announced.push((change.clone(), Instant::now()));
                                reporter.report(change.clone());
                            }
                        }
                    }
                }
                for (change, at) in &announced {
                    let is_reported = reported.iter().any(|(reported, time)| {
                        time >= at && *time <= *at + INTERVAL && (reported == change || *reported == Invalidation::Everything)
                    });
                    prop_assert!(is_reported, "{change:?}");
                }
                for kind in [Invalidation::Everything, Invalidation::Added] {
                    let times: Vec<_> = reported.iter().filter(|(change, _)| *change == kind).map(|(_, at)| *at).collect();
                    prop_assert!(times.windows(2).all(|pair| pair[1] - pair[0] >= INTERVAL), "{kind:?}");
                }
                let named: Vec<_> = reported.iter().filter(|(change, _)| matches!(change, Invalidation::Grant(_))).collect();
                let first_and_last = named.windows(2 * MAX_NAMED as usize + 1);
                prop_assert!(first_and_last.into_iter().all(|many| many[many.len() - 1].1 - many[0].1 >= INTERVAL));
                Ok(())
            })?;
        }
    }
}
