//! Locks, atomics and GCRA cells, which the model checker `shuttle` can replace.
//!
//! In tests with `cfg(tollgate_shuttle)`, which tests/interleavings sets, these types are those of `shuttle`. Each access is then a
//! point at which `shuttle` may switch threads. All other builds use the types of the standard library and governor.

#[cfg(not(all(test, tollgate_shuttle)))]
pub(crate) use {
    governor::state::InMemoryState,
    std::sync::atomic::AtomicU32,
    std::sync::{Mutex, MutexGuard},
};

#[cfg(all(test, tollgate_shuttle))]
pub(crate) use {
    model::InMemoryState,
    shuttle::sync::atomic::AtomicU32,
    shuttle::sync::{Mutex, MutexGuard},
};

#[cfg(all(test, tollgate_shuttle))]
mod model {
    use governor::nanos::Nanos;
    use governor::state::{NotKeyed, StateStore};
    use shuttle::sync::atomic::{AtomicU64, Ordering};

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
}
