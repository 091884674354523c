//! What threads share, under names behind which a model checker can stand.
//!
//! Compiled as tests with `--cfg tollgate_shuttle` (`just shuttle`), locks and cells are those of `shuttle`, and each use
//! of one is a point at which another thread may go on. Everywhere else they are what the standard library and governor
//! have.

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

    /// governor's cell, step by step, on an atomic that the model checker sees.
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
