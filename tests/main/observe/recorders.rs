//! Counts reach the recorder that is current at each count: that of the process, installed before or after the gate, or one for
//! a single thread.
//!
//! A process has one recorder for its lifetime, so these tests run in processes of their own.

use std::process::Command;
use std::thread;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use metrics_util::debugging::{DebugValue, DebuggingRecorder};
use tollgate::observe::keep_counters;

use super::*;

const ADMITTED: &str = r#"tollgate_requests_total{outcome="admitted",location="authorization_header"}"#;
const CHARGED: &str = r#"tollgate_limit_decisions_total{policy="default",outcome="admitted"}"#;

/// Runs the test with this name in a process of its own.
fn in_own_process(test: &str, run: impl FnOnce()) {
    const VARIABLE: &str = "TOLLGATE_OWN_PROCESS";

    if std::env::var_os(VARIABLE).is_some() {
        return run();
    }
    let test = format!("observe::recorders::{test}");
    let child =
        Command::new(std::env::current_exe().unwrap()).args(["--exact", &test]).env(VARIABLE, "").output().unwrap();
    let output = format!("{}{}", String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success() && output.contains("1 passed"), "{output}");
}

fn install() -> PrometheusHandle {
    let recorder = PrometheusBuilder::new().build_recorder();
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).unwrap();
    handle
}

/// Sends this many requests to a gate with a limit, and returns the gate.
fn send_to(gate: AuthLayer<MemoryStore<()>, RateLimits>, requests: usize) -> AuthLayer<MemoryStore<()>, RateLimits> {
    let service = gate.layer(echo());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    for _ in 0..requests {
        assert_eq!(runtime.block_on(send(&service, with_token(TOKEN))).status(), 200);
    }
    gate
}

fn limited_gate() -> AuthLayer<MemoryStore<()>, RateLimits> {
    let limits = RateLimits::new(Quota::per_second(1_000_000)).with_clock(|| Duration::ZERO);
    gate(alice()).with_rate_limit(limits)
}

#[track_caller]
fn assert_counted(recorder: &PrometheusHandle, requests: usize) {
    let text = recorder.render();
    for series in [ADMITTED, CHARGED] {
        assert!(
            text.lines().any(|line| line == format!("{series} {requests}")),
            "not {requests} of {series} in\n{text}"
        );
    }
}

/// Returns the counters of a recorder that are not 0.
fn counters(recorder: &DebuggingRecorder) -> usize {
    let values = recorder.snapshotter().snapshot().into_vec().into_iter();
    values.filter(|(_, _, _, value)| matches!(value, DebugValue::Counter(1..))).count()
}

#[test]
fn recorder_installed_before_the_gate_counts_all_requests() {
    in_own_process("recorder_installed_before_the_gate_counts_all_requests", || {
        let recorder = install();
        keep_counters();
        send_to(limited_gate(), 3);
        send_to(limited_gate(), 4);
        assert_counted(&recorder, 7);
    });
}

/// Also before the call of `keep_counters`, and without it.
#[test]
fn recorder_installed_after_the_gate_counts_requests_from_then_on() {
    in_own_process("recorder_installed_after_the_gate_counts_requests_from_then_on", || {
        let gate = send_to(limited_gate(), 2);
        // No recorder is found yet.
        keep_counters();
        let gate = send_to(gate, 2);
        let recorder = install();
        let gate = send_to(gate, 3);
        assert_counted(&recorder, 3);
        keep_counters();
        send_to(gate, 4);
        assert_counted(&recorder, 7);
    });
}

#[test]
fn recorder_of_a_thread_takes_precedence_over_that_of_the_process() {
    in_own_process("recorder_of_a_thread_takes_precedence_over_that_of_the_process", || {
        let recorder = install();
        keep_counters();
        let mut gate = send_to(limited_gate(), 1);
        // The recorders have the same address, one after the other.
        for requests in 1..4 {
            let own = DebuggingRecorder::new();
            gate = metrics::with_local_recorder(&own, || send_to(gate, 1));
            assert_eq!(counters(&own), 2);
            assert_counted(&recorder, requests);
            gate = send_to(gate, 1);
            assert_counted(&recorder, requests + 1);
        }
    });
}

/// The counters of a recorder for a thread must not outlive it.
#[test]
fn recorder_of_a_thread_is_not_mistaken_for_that_of_the_process() {
    in_own_process("recorder_of_a_thread_is_not_mistaken_for_that_of_the_process", || {
        let mut gate = limited_gate();
        for _ in 0..3 {
            let own = DebuggingRecorder::new();
            metrics::with_local_recorder(&own, || {
                keep_counters();
                gate = send_to(gate.clone(), 1);
            });
            assert_eq!(counters(&own), 2);
        }
    });
}

#[test]
fn no_count_is_lost_among_threads_with_and_without_own_recorders() {
    const THREADS: usize = 4;
    const REQUESTS: usize = 1_000;

    in_own_process("no_count_is_lost_among_threads_with_and_without_own_recorders", || {
        let recorder = install();
        let gate = limited_gate();
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for _ in 0..REQUESTS / 10 {
                        send_to(gate.clone(), 10);
                        let own = DebuggingRecorder::new();
                        metrics::with_local_recorder(&own, || send_to(gate.clone(), 1));
                        assert_eq!(counters(&own), 2);
                    }
                });
            }
            // From the middle of the requests, counters are kept.
            scope.spawn(keep_counters);
        });
        assert_counted(&recorder, THREADS * REQUESTS);
    });
}
