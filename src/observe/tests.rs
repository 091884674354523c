//! Metrics, each by the function that reports it. Metrics that requests reach are tested in `tests/main/observe` too.

use std::collections::BTreeMap;
use std::time::Duration;

use metrics::{Key, KeyName, Metadata, Recorder, SharedString, Unit};
use metrics_util::debugging::{DebugValue, DebuggingRecorder};

use super::*;
use crate::rejection::RejectionKind;

/// Returns all series that a function reports, in the form of Prometheus, with their values; for histograms the count.
fn reported(report: impl FnOnce()) -> BTreeMap<String, f64> {
    let recorder = DebuggingRecorder::new();
    metrics::with_local_recorder(&recorder, report);
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

fn assert_reported<const N: usize>(report: impl FnOnce(), expected: [(&str, f64); N]) {
    assert_eq!(reported(report), BTreeMap::from(expected.map(|(series, value)| (series.to_owned(), value))));
}

#[test]
fn each_report_changes_one_series() {
    assert_reported(|| throttled(false), [("tollgate_failures_throttled_total outcome=rejected", 1.0)]);
    assert_reported(|| throttled(true), [("tollgate_failures_throttled_total outcome=dry_run", 1.0)]);
    assert_reported(|| near_limit("p"), [("tollgate_limit_near_total policy=p", 1.0)]);
    assert_reported(|| would_reject("p", Some(&"g".into())), [("tollgate_limit_dry_run_total policy=p", 1.0)]);
    assert_reported(|| decided_without_redis("p"), [("tollgate_redis_local_decisions_total policy=p", 1.0)]);
    assert_reported(queue_timed_out, [("tollgate_redis_queue_timeouts_total", 1.0)]);
    assert_reported(|| buckets("p", 7), [("tollgate_limit_subjects policy=p", 7.0)]);
    for (change, name) in [
        (StoreChange::Named, "named"),
        (StoreChange::Added, "added"),
        (StoreChange::Everything, "everything"),
        (StoreChange::Merged, "merged"),
    ] {
        let series = format!("tollgate_store_changes_total change={name}");
        assert_reported(|| store_changed(change), [(&*series, 1.0)]);
    }
    for (end, name) in
        [(RedisOutcome::Answered, "answered"), (RedisOutcome::Failed, "failed"), (RedisOutcome::Timeout, "timeout")]
    {
        let series = format!("tollgate_redis_call_seconds outcome={name}");
        assert_reported(|| Timer::start().record_redis_call(end), [(&*series, 1.0)]);
    }
    for (verdict, name) in [
        (Verdict::Admitted, "admitted"),
        (Verdict::OverLimit, "over_limit"),
        (Verdict::CostAboveBurst, "cost_above_burst"),
    ] {
        let series = format!("tollgate_limit_decisions_total policy=p,outcome={name}");
        assert_reported(|| decided("p", verdict), [(&*series, 1.0)]);
    }
}

/// Each kind and each cache result has its own series.
#[test]
fn rejections_and_cache_lookups_have_separate_series() {
    let kinds = RejectionKind::ALL;
    let reported = reported(|| {
        for kind in kinds {
            rejected(&Rejection::new(kind));
        }
        for what in [Cached::Hit, Cached::Unknown, Cached::Stale, Cached::Miss] {
            cached(what);
        }
    });
    assert_eq!(reported.len(), kinds.len() + 4);
    assert!(reported.values().all(|count| *count == 1.0), "{reported:?}");
}

#[cfg(feature = "tonic")]
#[test]
fn status_of_a_method_is_reported_and_that_of_a_gate_is_not_reported_again() {
    let missing = "tollgate_requests_total outcome=missing,location=none";
    assert_reported(|| _ = tonic::Status::from(Rejection::missing()), [(missing, 1.0)]);
    assert_reported(|| _ = tonic::Status::from(&Rejection::missing()), []);
}

/// Policies whose keys are not kept are counted too.
#[test]
fn more_policies_than_kept_keys_are_counted_by_name() {
    let reported = reported(|| {
        for _ in 0..3 {
            for i in 0..100 {
                decided(&format!("policy {i}"), Verdict::Admitted);
            }
        }
    });
    assert_eq!(reported.len(), 100);
    assert!(reported.values().all(|count| *count == 3.0), "{reported:?}");
}

/// A recorder that charges a bucket itself must not block the service.
#[test]
fn recorder_may_report_metrics_itself() {
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
fn timer_records_seconds() {
    let recorder = DebuggingRecorder::new();
    metrics::with_local_recorder(&recorder, || {
        let since = std::time::Instant::now().checked_sub(Duration::from_millis(1_500)).unwrap();
        Timer { since }.record_lookup(LookupOutcome::Found);
    });
    let reported = recorder.snapshotter().snapshot().into_vec();
    let [(_, _, _, DebugValue::Histogram(values))] = &reported[..] else { panic!("one histogram") };
    assert!((1.5..100.0).contains(&values[0].0), "{values:?}");
}
