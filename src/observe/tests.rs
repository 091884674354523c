//! Each metric by the function that tells it, whoever calls that. Those that a request can reach are tested from outside as
//! well (`tests/main/observe`).

use std::collections::BTreeMap;
use std::time::Duration;

use metrics::{Key, KeyName, Metadata, Recorder, SharedString, Unit};
use metrics_util::debugging::{DebugValue, DebuggingRecorder};

use super::*;
use crate::rejection::RejectionKind;

/// All series that are told by the function, as Prometheus writes them, and their values; of histograms how many.
fn told(tell: impl FnOnce()) -> BTreeMap<String, f64> {
    let recorder = DebuggingRecorder::new();
    metrics::with_local_recorder(&recorder, tell);
    let read = |(key, value): (&Key, DebugValue)| {
        let labels: Vec<String> = key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let value = match value {
            DebugValue::Counter(count) => count as f64,
            DebugValue::Gauge(value) => value.0,
            DebugValue::Histogram(values) => values.len() as f64,
        };
        (format!("{} {}", key.name(), labels.join(",")).trim_end().to_owned(), value)
    };
    let snapshot = recorder.snapshotter().snapshot().into_vec();
    snapshot.into_iter().map(|(key, _, _, value)| read((key.key(), value))).collect()
}

fn assert_told<const N: usize>(tell: impl FnOnce(), expected: [(&str, f64); N]) {
    assert_eq!(told(tell), BTreeMap::from(expected.map(|(series, value)| (series.to_owned(), value))));
}

#[test]
fn what_is_told_is_what_was_said() {
    assert_told(|| throttled(false), [("tollgate_failures_throttled_total outcome=rejected", 1.0)]);
    assert_told(|| throttled(true), [("tollgate_failures_throttled_total outcome=dry_run", 1.0)]);
    assert_told(|| near_limit("p"), [("tollgate_limit_near_total policy=p", 1.0)]);
    assert_told(|| would_reject("p", Some(&"g".into())), [("tollgate_limit_dry_run_total policy=p", 1.0)]);
    assert_told(|| decided_without_redis("p"), [("tollgate_redis_local_decisions_total policy=p", 1.0)]);
    assert_told(queue_timed_out, [("tollgate_redis_queue_timeouts_total", 1.0)]);
    assert_told(|| buckets("p", 7), [("tollgate_limit_accounts policy=p", 7.0)]);
    for (change, word) in [
        (StoreChange::Named, "named"),
        (StoreChange::Added, "added"),
        (StoreChange::Everything, "everything"),
        (StoreChange::Merged, "merged"),
    ] {
        let series = format!("tollgate_store_changes_total change={word}");
        assert_told(|| store_changed(change), [(&*series, 1.0)]);
    }
    for (end, word) in
        [(RedisOutcome::Answered, "answered"), (RedisOutcome::Failed, "failed"), (RedisOutcome::Deadline, "deadline")]
    {
        let series = format!("tollgate_redis_call_seconds outcome={word}");
        assert_told(|| Timer::start().record_redis_call(end), [(&*series, 1.0)]);
    }
    for (verdict, word) in [
        (Verdict::Admitted, "admitted"),
        (Verdict::OverLimit, "over_limit"),
        (Verdict::CostAboveBurst, "cost_above_burst"),
    ] {
        let series = format!("tollgate_limit_decisions_total policy=p,outcome={word}");
        assert_told(|| decided("p", verdict), [(&*series, 1.0)]);
    }
}

/// Each series has a key of its own, and is counted by no other.
#[test]
fn each_number_is_its_own() {
    let kinds = 18;
    let told = told(|| {
        for kind in [
            RejectionKind::Missing,
            RejectionKind::MalformedToken,
            RejectionKind::UnknownToken,
            RejectionKind::NotYetValid,
            RejectionKind::ExpiredToken,
            RejectionKind::SenderConstrained,
            RejectionKind::InvalidRequest,
            RejectionKind::InsufficientScope,
            RejectionKind::InsufficientUserAuthentication,
            RejectionKind::TooManyFailures,
            RejectionKind::OverLimit,
            RejectionKind::CostAboveBurst,
            RejectionKind::BodyTooLarge,
            RejectionKind::BodyUnreadable,
            RejectionKind::BodyTimeout,
            RejectionKind::StoreUnavailable,
            RejectionKind::LimiterUnavailable,
            RejectionKind::Misconfigured,
        ] {
            rejected(&Rejection::new(kind));
        }
        for what in [Cached::Hit, Cached::Unknown, Cached::Stale, Cached::Miss] {
            cached(what);
        }
    });
    assert_eq!(told.len(), kinds + 4);
    assert!(told.values().all(|count| *count == 1.0), "{told:?}");
}

/// Policies beyond those whose keys are kept are counted like the others.
#[test]
fn many_policies_are_counted_by_their_own_names() {
    let told = told(|| {
        for _ in 0..3 {
            for i in 0..100 {
                decided(&format!("policy {i}"), Verdict::Admitted);
            }
        }
    });
    assert_eq!(told.len(), 100);
    assert!(told.values().all(|count| *count == 3.0), "{told:?}");
}

/// A recorder that charges a budget itself must not stop the service.
#[test]
fn a_recorder_may_come_back() {
    struct Again(DebuggingRecorder);

    impl Recorder for Again {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn register_counter(&self, key: &Key, metadata: &Metadata<'_>) -> metrics::Counter {
            metrics::with_local_recorder(&self.0, || decided("inner", Verdict::Admitted));
            self.0.register_counter(key, metadata)
        }
        fn register_gauge(&self, key: &Key, metadata: &Metadata<'_>) -> metrics::Gauge {
            self.0.register_gauge(key, metadata)
        }
        fn register_histogram(&self, key: &Key, metadata: &Metadata<'_>) -> metrics::Histogram {
            self.0.register_histogram(key, metadata)
        }
    }

    let again = Again(DebuggingRecorder::new());
    metrics::with_local_recorder(&again, || decided("outer", Verdict::Admitted));
    assert_eq!(again.0.snapshotter().snapshot().into_vec().len(), 2);
}

#[test]
fn a_timer_measures_seconds() {
    let recorder = DebuggingRecorder::new();
    metrics::with_local_recorder(&recorder, || {
        let since = std::time::Instant::now().checked_sub(Duration::from_millis(1_500)).unwrap();
        Timer { since }.record_lookup(LookupOutcome::Found);
    });
    let told = recorder.snapshotter().snapshot().into_vec();
    let [(_, _, _, DebugValue::Histogram(values))] = &told[..] else { panic!("one histogram") };
    assert!((1.5..100.0).contains(&values[0].0), "{values:?}");
}
