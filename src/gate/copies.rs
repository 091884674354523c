//! [`Copies`]: a copy of a gate for each thread.
//!
//! Every request counts a reference to its gate. With one counter, all threads would write to one cache line at every request.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use super::settings::Gate;

/// The copies of a gate, one for each thread. They share the store, the limiter and all other parts.
pub(super) struct Copies<T, L, R>(Box<[Copy<T, L, R>]>);

type Copy<T, L, R> = OnceLock<Arc<Gate<T, L, R>>>;

/// With more threads, several threads share a copy.
const THREADS: usize = 16;

impl<T, L, R> Copies<T, L, R> {
    /// Returns the copies of a gate that a layer holds.
    pub(super) fn new() -> Self {
        Self((0..THREADS).map(|_| OnceLock::new()).collect())
    }

    /// Returns no copies, for a gate that is a copy itself.
    fn none() -> Self {
        Self(Box::default())
    }
}

impl<T, L, R> Gate<T, L, R> {
    /// Returns a reference to this gate that this thread counts.
    #[inline]
    pub(super) fn counted(self: &Arc<Self>) -> Arc<Self> {
        match self.copies.0.get(thread()) {
            Some(copy) => Arc::clone(copy.get_or_init(|| Arc::new(self.copy(Copies::none())))),
            None => Arc::clone(self),
        }
    }
}

/// Returns the number of this thread, below [`THREADS`].
#[inline]
fn thread() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static THREAD: usize = NEXT.fetch_add(1, Ordering::Relaxed) % THREADS);
    THREAD.with(|thread| *thread)
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::gate::AuthLayer;
    use crate::grant::Grant;
    use crate::store::MemoryStore;
    use crate::token::TokenDigest;

    #[test]
    fn each_thread_counts_references_of_its_own() {
        let layer = AuthLayer::new(MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]));
        let counted = || thread::scope(|scope| scope.spawn(|| layer.gate.counted()).join());
        let all: Vec<_> = (0..8).flat_map(|_| counted()).collect();
        assert!(all.iter().all(|copy| !Arc::ptr_eq(copy, &layer.gate) && Arc::ptr_eq(&copy.store, &layer.gate.store)));
        // Other tests start threads too, so that two of these threads may share a copy.
        assert!(all.iter().any(|copy| !Arc::ptr_eq(copy, &all[0])));
        // A reference that is counted again, such as that of a request, is counted in the same place.
        assert!(all.iter().all(|copy| Arc::ptr_eq(copy, &copy.counted())));
    }

    #[test]
    fn a_changed_gate_has_no_copies_of_the_gate_before() {
        let layer = AuthLayer::new(MemoryStore::<()>::new());
        drop(layer.gate.counted());
        let layer = layer.with_max_token_len(1);
        assert_eq!(layer.gate.counted().settings.syntax.max_len(), 1);
        let Ok(layer) = layer.with_realm("trading") else { panic!("the realm is valid") };
        assert!(Arc::ptr_eq(&layer.gate.counted().terms, &layer.gate.terms));
    }
}
