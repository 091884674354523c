//! A store that is not asked while it is down.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use http::StatusCode;
use tollgate::store::contract::Contract;
use tollgate::store::{BreakerState, CircuitBreaker, from_fn};
use tollgate::{Answer, AuthLayer, BearerToken, BoxStore, Grant, StoreError, TokenDigest, TokenStore};
use tower::ServiceBuilder;

use crate::kit::*;

const DEADLINE: Duration = Duration::from_millis(500);
const SECOND: Duration = Duration::from_secs(1);

/// A store whose health a test decides, and that counts how often it was asked.
#[derive(Clone, Default)]
struct Patient {
    ill: Arc<AtomicBool>,
    /// Its errors concern one token.
    about_tokens: Arc<AtomicBool>,
    /// Does not answer at all while it is ill.
    silent: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
}

impl Patient {
    fn store(&self) -> BoxStore<()> {
        let patient = self.clone();
        BoxStore::new(from_fn(move |digest| {
            let patient = patient.clone();
            async move {
                patient.asked.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                if patient.silent.load(Ordering::SeqCst) {
                    std::future::pending::<()>().await;
                }
                match patient.ill.load(Ordering::SeqCst) {
                    true if patient.about_tokens.load(Ordering::SeqCst) => Err(StoreError::for_token("a bad row")),
                    true => Err(StoreError::new("ill")),
                    false => Ok((digest == TokenDigest::of(TOKEN)).then(|| Grant::new("alice", ()))),
                }
            }
        }))
    }

    fn set(&self, ill: bool) {
        self.ill.store(ill, Ordering::SeqCst);
    }

    fn asked(&self) -> usize {
        self.asked.swap(0, Ordering::SeqCst)
    }
}

fn breaker(patient: &Patient, hands: &Hands) -> CircuitBreaker<BoxStore<()>> {
    let hands = hands.clone();
    CircuitBreaker::with_timeout(patient.store(), DEADLINE)
        .with_failure_threshold(3)
        .with_backoff(SECOND, 5 * SECOND)
        .with_clock(move || Duration::from_nanos(hands.ns()))
}

async fn ask(store: &CircuitBreaker<BoxStore<()>>, token: &str) -> Result<bool, Option<Duration>> {
    let found = store.lookup(&BearerToken::new(token)).await;
    found.map(|found| found.is_some()).map_err(|error| error.retry_after())
}

#[tokio::test]
async fn it_keeps_the_contract() {
    let (patient, hands) = (Patient::default(), Hands::default());
    Contract::new(breaker(&patient, &hands)).knows(TOKEN, "alice").has_revoked("gone-token-1").check().await;
    patient.set(true);
    let tripped = breaker(&patient, &hands);
    for _ in 0..2 {
        // Closed at first, then open.
        Contract::new(tripped.clone()).knows(TOKEN, "alice").has_revoked("gone-token-1").check_outage().await;
        _ = ask(&tripped, TOKEN).await;
    }
    assert_eq!(tripped.state(), BreakerState::Open);
}

#[tokio::test]
async fn failures_in_a_row_open_it_and_one_probe_at_a_time_closes_it() {
    let (patient, hands) = (Patient::default(), Hands::default());
    let store = breaker(&patient, &hands);
    // Not in a row; and "unknown" is no failure.
    for _ in 0..5 {
        patient.set(true);
        assert_eq!(ask(&store, TOKEN).await, Err(None));
        assert_eq!(ask(&store, TOKEN).await, Err(None));
        patient.set(false);
        assert_eq!(ask(&store, "unknown").await, Ok(false));
    }
    assert_eq!((store.state(), patient.asked()), (BreakerState::Closed, 15));

    patient.set(true);
    for _ in 0..3 {
        assert_eq!(ask(&store, TOKEN).await, Err(None));
    }
    patient.asked();
    for pause in [1, 2, 4, 5, 5] {
        assert_eq!(store.state(), BreakerState::Open);
        hands.advance(SECOND / 4);
        // At once, and with the time that is left.
        let answer = store.lookup(&BearerToken::new(TOKEN));
        let Answer::Ready(Err(error)) = answer else { panic!("an open breaker does not wait: {answer:?}") };
        assert_eq!(error.retry_after(), Some(pause * SECOND - SECOND / 4));
        assert_eq!(patient.asked(), 0);
        hands.advance(pause * SECOND - SECOND / 4);

        let probe = store.lookup(&BearerToken::new(TOKEN));
        assert_eq!(store.state(), BreakerState::HalfOpen);
        assert_eq!(ask(&store, TOKEN).await, Err(Some(DEADLINE)), "one at a time");
        assert!(probe.await.is_err());
        assert_eq!(patient.asked(), 1);
    }
    hands.advance(5 * SECOND);
    patient.set(false);
    assert_eq!(ask(&store, TOKEN).await, Ok(true));
    assert_eq!(store.state(), BreakerState::Closed);
    // From the beginning.
    patient.set(true);
    for _ in 0..3 {
        assert_eq!(store.state(), BreakerState::Closed);
        assert_eq!(ask(&store, TOKEN).await, Err(None));
    }
    assert_eq!(ask(&store, TOKEN).await, Err(Some(SECOND)));
}

#[tokio::test(start_paused = true)]
async fn silence_is_a_failure_and_a_caller_who_leaves_is_none() {
    let (patient, hands) = (Patient::default(), Hands::default());
    let store = breaker(&patient, &hands);
    patient.silent.store(true, Ordering::SeqCst);
    for _ in 0..20 {
        let left = tokio::time::timeout(DEADLINE / 2, ask(&store, TOKEN)).await;
        assert!(left.is_err());
    }
    assert_eq!(store.state(), BreakerState::Closed);
    for _ in 0..3 {
        let started = tokio::time::Instant::now();
        assert_eq!(ask(&store, TOKEN).await, Err(None));
        assert_eq!(started.elapsed().as_millis(), DEADLINE.as_millis(), "by the clock that is paused");
    }
    assert_eq!(store.state(), BreakerState::Open);
    hands.advance(SECOND);

    // A probe whose caller leaves, half-way or at once, leaves the turn to the next.
    for patience in [DEADLINE / 2, Duration::ZERO] {
        let left = tokio::time::timeout(patience, ask(&store, TOKEN)).await;
        assert!(left.is_err());
        drop(store.lookup(&BearerToken::new(TOKEN)));
        assert_eq!(store.state(), BreakerState::Open);
    }
    patient.silent.store(false, Ordering::SeqCst);
    assert_eq!(ask(&store, TOKEN).await, Ok(true));
    assert_eq!(store.state(), BreakerState::Closed);
}

#[tokio::test]
async fn errors_about_one_token_count_as_successes() {
    let (patient, hands) = (Patient::default(), Hands::default());
    let store = breaker(&patient, &hands);
    patient.set(true);
    for _ in 0..3 {
        for about_tokens in [false, false, true] {
            patient.about_tokens.store(about_tokens, Ordering::SeqCst);
            let error = store.lookup(&BearerToken::new(TOKEN)).await.unwrap_err();
            assert_eq!((error.concerns_token(), store.state()), (about_tokens, BreakerState::Closed));
        }
    }
    patient.about_tokens.store(false, Ordering::SeqCst);
    for _ in 0..3 {
        assert_eq!(ask(&store, TOKEN).await, Err(None));
    }
    assert_eq!(store.state(), BreakerState::Open);
    hands.advance(SECOND);
    // The probe shows that the store works.
    patient.about_tokens.store(true, Ordering::SeqCst);
    assert_eq!(ask(&store, TOKEN).await, Err(None));
    assert_eq!(store.state(), BreakerState::Closed);

    // Of a store that answers immediately, too.
    struct Immediately(bool);
    impl TokenStore for Immediately {
        type Principal = ();
        type Error = StoreError;
        type Future = tollgate::Immediate<tollgate::store::Lookup<(), StoreError>>;

        fn lookup(&self, _: &BearerToken<'_>) -> Answer<Self::Future> {
            Answer::Ready(Err(if self.0 { StoreError::for_token("a bad row") } else { StoreError::new("down") }))
        }
    }
    for about_tokens in [true, false] {
        let store = CircuitBreaker::with_timeout(Immediately(about_tokens), DEADLINE);
        for _ in 0..20 {
            assert!(store.lookup(&BearerToken::new(TOKEN)).ready().unwrap().is_err());
        }
        assert_eq!(store.state() == BreakerState::Closed, about_tokens);
    }
}

/// Half of the breaker's deadline, from the first poll, makes the difference.
#[tokio::test]
async fn lookups_that_are_dropped_late_are_failures() {
    let (patient, hands) = (Patient::default(), Hands::default());
    let store = breaker(&patient, &hands);
    patient.silent.store(true, Ordering::SeqCst);
    let drop_after = |waited: Duration| {
        let Answer::Pending(mut lookup) = store.lookup(&BearerToken::new(TOKEN)) else { panic!("it has to wait") };
        // The time before the first poll does not count.
        hands.advance(10 * SECOND);
        assert!((&mut lookup).now_or_never().is_none());
        hands.advance(waited);
    };
    for _ in 0..20 {
        drop_after(DEADLINE / 2 - Duration::from_nanos(1));
    }
    assert_eq!(store.state(), BreakerState::Closed);
    for failures in 1..=3 {
        assert_eq!(store.state(), BreakerState::Closed, "{failures}");
        drop_after(DEADLINE / 2);
    }
    assert_eq!(store.state(), BreakerState::Open);
    // A probe that is dropped late opens it for twice as long.
    hands.advance(SECOND);
    drop_after(DEADLINE / 2);
    assert_eq!(ask(&store, TOKEN).await, Err(Some(2 * SECOND)));
    hands.advance(2 * SECOND);
    drop_after(DEADLINE / 2 - Duration::from_nanos(1));
    patient.silent.store(false, Ordering::SeqCst);
    assert_eq!(ask(&store, TOKEN).await, Ok(true));
    assert_eq!(store.state(), BreakerState::Closed);
}

#[tokio::test]
async fn probe_now_ends_the_pause() {
    let (patient, hands) = (Patient::default(), Hands::default());
    let store = breaker(&patient, &hands);
    store.probe_now();
    assert_eq!(store.state(), BreakerState::Closed);
    patient.set(true);
    for _ in 0..3 {
        _ = ask(&store, TOKEN).await;
    }
    for _ in 0..3 {
        hands.advance(5 * SECOND);
        _ = ask(&store, TOKEN).await;
    }
    assert_eq!(ask(&store, TOKEN).await, Err(Some(5 * SECOND)));
    // If the probe fails, the pauses start anew.
    for _ in 0..2 {
        store.probe_now();
        store.probe_now();
        assert_eq!(ask(&store, TOKEN).await, Err(None), "asked");
        assert_eq!(ask(&store, TOKEN).await, Err(Some(SECOND)));
    }
    // A probe that was asked in vain does not keep the next one waiting.
    hands.advance(SECOND);
    patient.silent.store(true, Ordering::SeqCst);
    let Answer::Pending(mut in_vain) = store.lookup(&BearerToken::new(TOKEN)) else { panic!("it probes") };
    assert!((&mut in_vain).now_or_never().is_none());
    assert_eq!(store.state(), BreakerState::HalfOpen);
    patient.silent.store(false, Ordering::SeqCst);
    patient.set(false);
    store.probe_now();
    assert_eq!(ask(&store, TOKEN).await, Ok(true));
    assert_eq!(store.state(), BreakerState::Closed);
    hands.advance(DEADLINE);
    drop(in_vain);
    assert_eq!(store.state(), BreakerState::Closed, "one failure");
}

#[tokio::test]
async fn callers_are_told_when_to_come_back() {
    let (patient, hands) = (Patient::default(), Hands::default());
    let store = breaker(&patient, &hands).with_failure_threshold(0);
    patient.set(true);
    let gate = AuthLayer::with_timeout(store, SECOND);
    let service = ServiceBuilder::new().layer(gate).service(echo());
    let first = send(&service, with_token(TOKEN)).await;
    assert_eq!((first.status(), field(first.headers(), "retry-after")), (StatusCode::SERVICE_UNAVAILABLE, Some("1")));
    hands.advance(SECOND / 3);
    for (protocol, status) in [("text/plain", 503), ("application/grpc", 200)] {
        let mut request = with_token(TOKEN);
        request.headers_mut().insert("content-type", protocol.parse().unwrap());
        let refused = send(&service, request).await;
        assert_eq!(refused.status(), status);
        assert_eq!(field(refused.headers(), "retry-after"), Some("1"), "two thirds of a second, rounded up");
        assert_eq!(field(refused.headers(), "www-authenticate"), None);
    }
}

/// Whatever the order in which look-ups begin, end and are dropped: while it is not closed, an ill store is asked by one
/// look-up at a time, and not before its pause is over; and a healthy one is asked again in the end.
#[test]
fn an_ill_store_is_left_alone_in_whatever_order_things_happen() {
    use proptest::prelude::*;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    proptest!(|(steps in proptest::collection::vec((0..5_u8, 0..1_500_u64), 1..80))| {
        runtime.block_on(async {
            let (patient, hands) = (Patient::default(), Hands::default());
            let store = breaker(&patient, &hands);
            patient.set(true);
            // With each, when it began, if it is a probe.
            let mut waiting: Vec<(Option<u64>, Answer<_>)> = Vec::new();
            let (mut now_ms, mut may_probe_from_ms) = (0, 0);
            for (step, number) in steps {
                let at = number as usize % waiting.len().max(1);
                match step {
                    0 | 1 => {
                        let before = store.state();
                        let answer = store.lookup(&BearerToken::new(TOKEN));
                        let asks = matches!(answer, Answer::Pending(_));
                        let probes = waiting.iter().filter_map(|(began, _)| *began);
                        match before {
                            BreakerState::Closed => prop_assert!(asks),
                            BreakerState::Open => prop_assert!(!asks || now_ms >= may_probe_from_ms),
                            // One that is kept and never polled holds the turn for a second.
                            BreakerState::HalfOpen => {
                                prop_assert!(!asks || probes.into_iter().all(|began| now_ms >= began + 1_000));
                            }
                        }
                        waiting.push(((asks && before != BreakerState::Closed).then_some(now_ms), answer));
                    }
                    2 if !waiting.is_empty() => {
                        if waiting.remove(at).0.is_some() {
                            may_probe_from_ms = now_ms;
                        }
                    }
                    3 if !waiting.is_empty() => {
                        let (before, (probe, answer)) = (store.state(), waiting.remove(at));
                        let was_asked = matches!(answer, Answer::Pending(_));
                        prop_assert!(answer.await.is_err());
                        prop_assert_eq!(patient.asked(), usize::from(was_asked));
                        let reopened = probe.is_some() && before == BreakerState::HalfOpen;
                        if reopened || (before == BreakerState::Closed && store.state() == BreakerState::Open) {
                            may_probe_from_ms = now_ms + 1_000;
                        }
                    }
                    _ => {
                        hands.advance(Duration::from_millis(number));
                        now_ms += number;
                    }
                }
            }
            drop(waiting);
            patient.set(false);
            hands.advance(5 * SECOND);
            prop_assert_eq!(ask(&store, TOKEN).await, Ok(true));
            prop_assert_eq!(store.state(), BreakerState::Closed);
            Ok(())
        })?;
    });
}

/// A caller that keeps a probe and never polls it must not keep the store shut for ever.
#[tokio::test]
async fn a_probe_that_is_kept_and_never_polled_holds_up_nobody() {
    let (patient, hands) = (Patient::default(), Hands::default());
    let store = breaker(&patient, &hands).with_failure_threshold(1);
    patient.set(true);
    assert_eq!(ask(&store, TOKEN).await, Err(None));
    patient.set(false);
    hands.advance(SECOND);
    let kept = store.lookup(&BearerToken::new(TOKEN));
    hands.advance(SECOND - Duration::from_nanos(1));
    assert_eq!(ask(&store, TOKEN).await, Err(Some(DEADLINE)));
    hands.advance(Duration::from_nanos(1));
    assert_eq!(ask(&store, TOKEN).await, Ok(true));
    drop(kept);
    assert_eq!(store.state(), BreakerState::Closed);
}

#[test]
fn no_wait_is_too_long_or_too_short_to_be_told() {
    use tollgate::store::from_fn_with;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    for (wait, told) in
        [(Duration::ZERO, "1"), (Duration::from_nanos(1_000_000_001), "2"), (Duration::MAX, "18446744074")]
    {
        let store = from_fn_with(wait, |wait, _| async move {
            Err::<Option<Grant<()>>, _>(StoreError::new("away").with_retry_after(wait))
        });
        let service = ServiceBuilder::new().layer(AuthLayer::with_timeout(store, SECOND)).service(echo());
        let refused = runtime.block_on(send(&service, with_token(TOKEN)));
        assert_eq!(field(refused.headers(), "retry-after"), Some(told));
    }
}
