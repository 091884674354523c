//! Locks, atomics, GCRA cells and tables, which the model checker `shuttle` can replace.
//!
//! In tests with `cfg(tollgate_shuttle)`, which tests/interleavings sets, these types are those of `shuttle`. Each access is then a
//! point at which `shuttle` may switch threads. All other builds use the types of the standard library and governor.

#[cfg(not(all(test, tollgate_shuttle)))]
pub(crate) use {
    governor::state::InMemoryState,
    std::sync::{Mutex, MutexGuard, atomic},
};

/// Prepares a table of another crate, each access to which is one step.
#[cfg(all(feature = "cache", not(all(test, tollgate_shuttle))))]
pub(crate) use std::convert::identity as stepped;

/// A table after [`stepped`].
#[cfg(all(feature = "cache", not(all(test, tollgate_shuttle))))]
pub(crate) type Stepped<T> = T;

#[cfg(all(test, tollgate_shuttle))]
pub(crate) use {
    model::{InMemoryState, Stepped, explore, stepped},
    shuttle::sync::{Mutex, MutexGuard, atomic},
};

#[cfg(all(test, tollgate_shuttle))]
mod model {
    use std::num::NonZeroUsize;
    use std::ops::Deref;

    use governor::nanos::Nanos;
    use governor::state::{NotKeyed, StateStore};
    use shuttle::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    /// A copy of governor's cell with the same steps, on an atomic of `shuttle`.
    #[derive(Default)]
    pub(crate) struct InMemoryState(AtomicU64);

    impl StateStore for InMemoryState {
        type Key = NotKeyed;

        fn measure_and_replace<T, F, E>(&self, _: &NotKeyed, f: F) -> Result<T, E>
        where
            F: Fn(Option<Nanos>) -> Result<(T, Nanos), E>,
        {
            let mut old = self.0.load(Ordering::SeqCst);
            loop {
                let (outcome, new) = f((old != 0).then(|| old.into()))?;
                match self.0.compare_exchange_weak(old, new.into(), Ordering::SeqCst, Ordering::SeqCst) {
                    Ok(_) => return Ok(outcome),
                    Err(now) => old = now,
                }
            }
        }
    }

    /// A value before each access to which `shuttle` may switch threads.
    pub(crate) struct Stepped<T>(T, AtomicBool);

    pub(crate) fn stepped<T>(value: T) -> Stepped<T> {
        Stepped(value, AtomicBool::default())
    }

    impl<T> Deref for Stepped<T> {
        type Target = T;

        fn deref(&self) -> &T {
            _ = self.1.load(Ordering::SeqCst);
            &self.0
        }
    }

    /// Runs a model with two schedulers: random schedules, and schedules with few thread switches, which find rare orders soon.
    pub(crate) fn explore(model: impl Fn() + Clone + Send + Sync + 'static) {
        shuttle::check_random(model.clone(), runs());
        shuttle::check_pct(model, runs(), 4);
    }

    /// Returns the number of runs per model and scheduler. By default, all models together take less than half a minute. Set
    /// `TOLLGATE_SHUTTLE_RUNS` for longer searches.
    fn runs() -> usize {
        let configured = std::env::var("TOLLGATE_SHUTTLE_RUNS").ok().and_then(|runs| runs.parse::<NonZeroUsize>().ok());
        configured.map_or(5_000, NonZeroUsize::get)
    }
}
