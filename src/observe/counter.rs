//! Counters of the process's recorder, which are optionally looked up once a second instead of at each count.

use std::ptr;
use std::sync::{Arc, OnceLock};
use std::thread;

use arc_swap::ArcSwapOption;
use metrics::{Counter, Key, Level, Metadata, Recorder, with_recorder};

use crate::quota::clock::Time;

pub(super) static METADATA: Metadata<'static> = Metadata::new("tollgate", Level::INFO, Some("tollgate"));

/// How long a counter is kept. Exporters may remove a counter that was not changed for some time, and changes of a removed
/// counter are lost. So this must be less than any such time.
const MAX_AGE_NS: u64 = 1_000_000_000;

/// The recorder whose counters are kept.
static PROCESS_RECORDER: OnceLock<ProcessRecorder> = OnceLock::new();

/// The recorder that was installed for the process, and not for a thread. It is never dropped, so its address identifies it.
struct ProcessRecorder {
    address: usize,
    time: Time,
}

/// Keeps the counters of the process's recorder from now on, if one was installed.
pub(super) fn keep() {
    // A new thread has no recorder of its own.
    let address = thread::Builder::new().spawn(|| with_recorder(address)).map(thread::JoinHandle::join);
    if let Ok(Ok(Some(address))) = address {
        PROCESS_RECORDER.get_or_init(|| ProcessRecorder { address, time: Time::counter() });
    }
}

/// Returns the address of a recorder. Returns `None` for a type without a size, such as that of the recorder that does
/// nothing: another value can have the same address.
fn address(recorder: &dyn Recorder) -> Option<usize> {
    (size_of_val(recorder) > 0).then(|| ptr::from_ref(recorder).addr())
}

/// A counter with its key.
pub(super) struct KeptCounter {
    key: Key,
    registered: ArcSwapOption<Registered>,
}

struct Registered {
    counter: Counter,
    at: u64,
}

impl KeptCounter {
    pub(super) fn new(key: Key) -> Self {
        Self { key, registered: ArcSwapOption::empty() }
    }

    /// Increments the counter in the current recorder.
    ///
    /// Only counters of the process's recorder are kept. Tests install recorders for single threads, and drop them.
    #[inline]
    pub(super) fn count(&self) {
        with_recorder(|recorder| match PROCESS_RECORDER.get() {
            Some(process) if address(recorder) == Some(process.address) => {
                self.count_kept(recorder, process.time.now_ns());
            }
            _ => recorder.register_counter(&self.key, &METADATA).increment(1),
        });
    }

    /// Increments the counter of the process's recorder.
    #[inline]
    fn count_kept(&self, recorder: &dyn Recorder, now: u64) {
        match &*self.registered.load() {
            Some(kept) if now.saturating_sub(kept.at) < MAX_AGE_NS => kept.counter.increment(1),
            _ => self.register(recorder, now),
        }
    }

    #[cold]
    fn register(&self, recorder: &dyn Recorder, now: u64) {
        let counter = recorder.register_counter(&self.key, &METADATA);
        counter.increment(1);
        self.registered.store(Some(Arc::new(Registered { counter, at: now })));
    }
}

/// Increments a counter that is not kept, by a lookup in the recorder.
pub(super) fn count(key: &Key) {
    with_recorder(|recorder| recorder.register_counter(key, &METADATA).increment(1));
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};

    use metrics::{Gauge, Histogram, KeyName, SharedString, Unit};

    use super::*;

    /// A recorder that can drop its counter, as an exporter does with idle metrics.
    #[derive(Default)]
    struct Forgetful(Mutex<Option<Arc<AtomicU64>>>);

    impl Recorder for Forgetful {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
            Counter::from_arc(Arc::clone(self.0.lock().unwrap().get_or_insert_default()))
        }
        fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::noop()
        }
        fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
            Histogram::noop()
        }
    }

    #[test]
    fn counter_that_an_exporter_removed_is_registered_again() {
        let recorder = Forgetful::default();
        let kept = KeptCounter::new(Key::from_static_name("counter"));
        kept.count_kept(&recorder, 0);
        kept.count_kept(&recorder, MAX_AGE_NS - 1);
        let removed = recorder.0.lock().unwrap().take().unwrap();
        assert_eq!(removed.load(Ordering::Relaxed), 2);
        kept.count_kept(&recorder, MAX_AGE_NS);
        assert_eq!(recorder.0.lock().unwrap().as_ref().unwrap().load(Ordering::Relaxed), 1);
        assert_eq!(removed.load(Ordering::Relaxed), 2);
    }

    /// Also after a step back of the clock.
    #[test]
    fn kept_counter_is_not_registered_within_a_second() {
        let recorder = Forgetful::default();
        let kept = KeptCounter::new(Key::from_static_name("counter"));
        for now in [2 * MAX_AGE_NS, 0, 3 * MAX_AGE_NS - 1] {
            kept.count_kept(&recorder, now);
        }
        // One owner is the recorder, the other the kept counter.
        let mut own = recorder.0.lock().unwrap();
        let counter = own.take().unwrap();
        assert_eq!((counter.load(Ordering::Relaxed), Arc::strong_count(&counter)), (3, 2));
    }

    #[test]
    fn recorder_without_a_size_has_no_address() {
        assert_eq!(address(&metrics::NoopRecorder), None);
        assert!(address(&Forgetful::default()).is_some());
    }
}
