//! Circuit breakers: states, pauses, probes and what counts as a failure.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt as _;
use http::StatusCode;
use tollgate::store::contract::Contract;
use tollgate::store::{BackoffError, BreakerState, CircuitBreaker, first_of, from_fn};
use tollgate::{Answer, AuthLayer, BearerToken, BoxStore, Grant, StoreError, TokenDigest, TokenStore};
use tower::ServiceBuilder;

use crate::kit::*;

const TIMEOUT: Duration = Duration::from_millis(500);
const SECOND: Duration = Duration::from_secs(1);

/// A store that the test can take down, and that counts lookups.
#[derive(Clone, Default)]
struct Flaky {
    down: Arc<AtomicBool>,
    /// Its errors concern one token.
    about_tokens: Arc<AtomicBool>,
    /// True if the store never answers.
    silent: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
}

impl Flaky {
    fn store(&self) -> BoxStore<()> {
        let flaky = self.clone();
        BoxStore::new(from_fn(move |digest| {
            let flaky = flaky.clone();
            async move {
                flaky.asked.fetch_add(1, Ordering::SeqCst);
                tokio::task::yield_now().await;
                if flaky.silent.load(Ordering::SeqCst) {
                    std::future::pending::<()>().await;
                }
                match flaky.down.load(Ordering::SeqCst) {
                    true if flaky.about_tokens.load(Ordering::SeqCst) => Err(StoreError::for_token("a bad row")),
                    true => Err(StoreError::new("down")),
                    false => Ok((digest == TokenDigest::of(TOKEN)).then(|| Grant::new("alice", ()))),
                }
            }
        }))
    }

    fn set(&self, down: bool) {
        self.down.store(down, Ordering::SeqCst);
    }

    fn asked(&self) -> usize {
        self.asked.swap(0, Ordering::SeqCst)
    }
}

fn breaker(flaky: &Flaky, hands: &Hands) -> CircuitBreaker<BoxStore<()>> {
    let hands = hands.clone();
    CircuitBreaker::with_timeout(flaky.store(), TIMEOUT)
        .with_failure_threshold(NonZeroU32::new(3).unwrap())
        .with_backoff(SECOND, 5 * SECOND)
        .unwrap()
        .with_clock(move || Duration::from_nanos(hands.ns()))
}

async fn ask(store: &CircuitBreaker<BoxStore<()>>, token: &str) -> Result<bool, Option<Duration>> {
    let found = store.lookup(&BearerToken::new(token)).await;
    found.map(|found| found.is_some()).map_err(|error| error.retry_after())
}

#[tokio::test]
async fn a_circuit_breaker_fulfils_the_contract() {
    let (flaky, hands) = (Flaky::default(), Hands::default());
    Contract::new(breaker(&flaky, &hands)).knows(TOKEN, "alice").has_revoked("gone-token-1").check().await;
    flaky.set(true);
    let tripped = breaker(&flaky, &hands);
    for _ in 0..2 {
        Contract::new(tripped.clone()).knows(TOKEN, "alice").has_revoked("gone-token-1").check_outage().await;
        _ = ask(&tripped, TOKEN).await;
    }
    assert_eq!(tripped.state(), BreakerState::Open);
}

#[tokio::test]
async fn consecutive_failures_open_it_and_one_probe_closes_it() {
    let (flaky, hands) = (Flaky::default(), Hands::default());
    let store = breaker(&flaky, &hands);
    // The failures are not consecutive, and "unknown" is a success.
    for _ in 0..5 {
        flaky.set(true);
        assert_eq!(ask(&store, TOKEN).await, Err(None));
        assert_eq!(ask(&store, TOKEN).await, Err(None));
        flaky.set(false);
        assert_eq!(ask(&store, "unknown").await, Ok(false));
    }
    assert_eq!((store.state(), flaky.asked()), (BreakerState::Closed, 15));

    flaky.set(true);
    for _ in 0..3 {
        assert_eq!(ask(&store, TOKEN).await, Err(None));
    }
    flaky.asked();
    for pause in [1, 2, 4, 5, 5] {
        assert_eq!(store.state(), BreakerState::Open);
        hands.advance(SECOND / 4);
        // An immediate error with the remaining time.
        let answer = store.lookup(&BearerToken::new(TOKEN));
        let Answer::Ready(Err(error)) = answer else { panic!("an open breaker fails immediately: {answer:?}") };
        assert_eq!(error.retry_after(), Some(pause * SECOND - SECOND / 4));
        assert_eq!(flaky.asked(), 0);
        hands.advance(pause * SECOND - SECOND / 4);

        let Answer::Pending(mut probe) = store.lookup(&BearerToken::new(TOKEN)) else { panic!("a probe") };
        assert_eq!(store.state(), BreakerState::Open);
        assert!((&mut probe).now_or_never().is_none());
        assert_eq!(store.state(), BreakerState::HalfOpen);
        assert_eq!(ask(&store, TOKEN).await, Err(Some(TIMEOUT)), "one probe at a time");
        assert!(probe.await.is_err());
        assert_eq!(flaky.asked(), 1);
    }
    hands.advance(5 * SECOND);
    flaky.set(false);
    assert_eq!(ask(&store, TOKEN).await, Ok(true));
    assert_eq!(store.state(), BreakerState::Closed);
    flaky.set(true);
    for _ in 0..3 {
        assert_eq!(store.state(), BreakerState::Closed);
        assert_eq!(ask(&store, TOKEN).await, Err(None));
    }
    assert_eq!(ask(&store, TOKEN).await, Err(Some(SECOND)));
}

#[tokio::test(start_paused = true)]
async fn timeouts_count_as_failures_and_early_drops_do_not() {
    let (flaky, hands) = (Flaky::default(), Hands::default());
    let store = breaker(&flaky, &hands);
    flaky.silent.store(true, Ordering::SeqCst);
    for _ in 0..20 {
        assert!(tokio::time::timeout(TIMEOUT / 2, ask(&store, TOKEN)).await.is_err());
    }
    assert_eq!(store.state(), BreakerState::Closed);
    for _ in 0..3 {
        let started = tokio::time::Instant::now();
        assert_eq!(ask(&store, TOKEN).await, Err(None));
        assert_eq!(started.elapsed().as_millis(), TIMEOUT.as_millis(), "measured by the paused clock");
    }
    assert_eq!(store.state(), BreakerState::Open);
    hands.advance(SECOND);

    // A dropped probe, polled or not, lets the next request probe.
    for timeout in [TIMEOUT / 2, Duration::ZERO] {
        assert!(tokio::time::timeout(timeout, ask(&store, TOKEN)).await.is_err());
        drop(store.lookup(&BearerToken::new(TOKEN)));
        assert_eq!(store.state(), BreakerState::Open);
    }
    flaky.silent.store(false, Ordering::SeqCst);
    assert_eq!(ask(&store, TOKEN).await, Ok(true));
    assert_eq!(store.state(), BreakerState::Closed);
}

#[tokio::test]
async fn errors_about_one_token_count_as_successes() {
    let (flaky, hands) = (Flaky::default(), Hands::default());
    let store = breaker(&flaky, &hands);
    flaky.set(true);
    for _ in 0..3 {
        for about_tokens in [false, false, true] {
            flaky.about_tokens.store(about_tokens, Ordering::SeqCst);
            let error = store.lookup(&BearerToken::new(TOKEN)).await.unwrap_err();
            assert_eq!((error.concerns_token(), store.state()), (about_tokens, BreakerState::Closed));
        }
    }
    flaky.about_tokens.store(false, Ordering::SeqCst);
    for _ in 0..3 {
        assert_eq!(ask(&store, TOKEN).await, Err(None));
    }
    assert_eq!(store.state(), BreakerState::Open);
    hands.advance(SECOND);
    // The probe shows that the store works.
    flaky.about_tokens.store(true, Ordering::SeqCst);
    assert_eq!(ask(&store, TOKEN).await, Err(None));
    assert_eq!(store.state(), BreakerState::Closed);

    // The same applies to an immediate store.
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
        let store = CircuitBreaker::with_timeout(Immediately(about_tokens), TIMEOUT);
        for _ in 0..20 {
            assert!(store.lookup(&BearerToken::new(TOKEN)).ready().unwrap().is_err());
        }
        assert_eq!(store.state() == BreakerState::Closed, about_tokens);
    }
}

/// Half of the breaker's timeout is the limit, measured from the first poll.
#[tokio::test]
async fn lookups_that_are_dropped_late_count_as_failures() {
    let (flaky, hands) = (Flaky::default(), Hands::default());
    let store = breaker(&flaky, &hands);
    flaky.silent.store(true, Ordering::SeqCst);
    let drop_after = |waited: Duration| {
        let Answer::Pending(mut lookup) = store.lookup(&BearerToken::new(TOKEN)) else { panic!("a pending answer") };
        // The time before the first poll does not count.
        hands.advance(10 * SECOND);
        assert!((&mut lookup).now_or_never().is_none());
        hands.advance(waited);
    };
    for _ in 0..20 {
        drop_after(TIMEOUT / 2 - Duration::from_nanos(1));
    }
    assert_eq!(store.state(), BreakerState::Closed);
    for failures in 1..=3 {
        assert_eq!(store.state(), BreakerState::Closed, "{failures}");
        drop_after(TIMEOUT / 2);
    }
    assert_eq!(store.state(), BreakerState::Open);
    // A probe that is dropped late opens the breaker for twice as long.
    hands.advance(SECOND);
    drop_after(TIMEOUT / 2);
    assert_eq!(ask(&store, TOKEN).await, Err(Some(2 * SECOND)));
    hands.advance(2 * SECOND);
    drop_after(TIMEOUT / 2 - Duration::from_nanos(1));
    flaky.silent.store(false, Ordering::SeqCst);
    assert_eq!(ask(&store, TOKEN).await, Ok(true));
    assert_eq!(store.state(), BreakerState::Closed);
}

#[tokio::test]
async fn probe_now_ends_the_pause() {
    let (flaky, hands) = (Flaky::default(), Hands::default());
    let store = breaker(&flaky, &hands);
    store.probe_now();
    assert_eq!(store.state(), BreakerState::Closed);
    flaky.set(true);
    for _ in 0..3 {
        _ = ask(&store, TOKEN).await;
    }
    for _ in 0..3 {
        hands.advance(5 * SECOND);
        _ = ask(&store, TOKEN).await;
    }
    assert_eq!(ask(&store, TOKEN).await, Err(Some(5 * SECOND)));
    // If the probe fails, the pauses start with the shortest one.
    for _ in 0..2 {
        store.probe_now();
        store.probe_now();
        assert_eq!(ask(&store, TOKEN).await, Err(None), "the probe");
        assert_eq!(ask(&store, TOKEN).await, Err(Some(SECOND)));
    }
    // A pending probe does not block the next one.
    hands.advance(SECOND);
    flaky.silent.store(true, Ordering::SeqCst);
    let Answer::Pending(mut pending) = store.lookup(&BearerToken::new(TOKEN)) else { panic!("a probe") };
    assert!((&mut pending).now_or_never().is_none());
    assert_eq!(store.state(), BreakerState::HalfOpen);
    flaky.silent.store(false, Ordering::SeqCst);
    flaky.set(false);
    store.probe_now();
    assert_eq!(ask(&store, TOKEN).await, Ok(true));
    assert_eq!(store.state(), BreakerState::Closed);
    hands.advance(TIMEOUT);
    drop(pending);
    assert_eq!(store.state(), BreakerState::Closed, "one failure");
}

#[tokio::test]
async fn rejections_have_retry_after() {
    let (flaky, hands) = (Flaky::default(), Hands::default());
    let store = breaker(&flaky, &hands).with_failure_threshold(NonZeroU32::MIN);
    flaky.set(true);
    let gate = AuthLayer::with_timeout(store, SECOND);
    let service = ServiceBuilder::new().layer(gate).service(echo());
    let first = send(&service, with_token(TOKEN)).await;
    assert_eq!((first.status(), field(first.headers(), "retry-after")), (StatusCode::SERVICE_UNAVAILABLE, Some("1")));
    hands.advance(SECOND / 3);
    for (protocol, status) in [("text/plain", 503), ("application/grpc", 200)] {
        let mut request = with_token(TOKEN);
        request.headers_mut().insert("content-type", protocol.parse().unwrap());
        let rejected = send(&service, request).await;
        assert_eq!(rejected.status(), status);
        assert_eq!(field(rejected.headers(), "retry-after"), Some("1"), "two thirds of a second, rounded up");
        assert_eq!(field(rejected.headers(), "www-authenticate"), None);
    }
}

/// Lookups begin, complete and are dropped in any order. While the breaker is not closed, one lookup at a time reaches the store, and
/// none before the end of the pause. After the store has recovered, the breaker closes.
#[test]
fn a_failing_store_gets_one_probe_at_a_time() {
    use proptest::prelude::*;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    proptest!(|(steps in proptest::collection::vec((0..6_u8, 0..1_500_u64), 1..80))| {
        runtime.block_on(async {
            let (flaky, hands) = (Flaky::default(), Hands::default());
            let store = breaker(&flaky, &hands);
            flaky.set(true);
            // Each lookup, with its start if it is a probe that was polled.
            let mut waiting: Vec<(Option<u64>, _)> = Vec::new();
            let (mut now_ms, mut may_probe_from_ms) = (0, 0);
            for (step, number) in steps {
                let before = store.state();
                let may_ask = match before {
                    BreakerState::Closed => true,
                    BreakerState::Open => now_ms >= may_probe_from_ms,
                    // A probe that is neither polled nor dropped blocks the next one for a second.
                    _ => waiting.iter().filter_map(|(began, _)| *began).all(|began| now_ms >= began + 1_000),
                };
                let at = number as usize % waiting.len().max(1);
                match step {
                    0 | 1 => match store.lookup(&BearerToken::new(TOKEN)) {
                        Answer::Pending(lookup) => {
                            prop_assert!(may_ask);
                            prop_assert_eq!(store.state(), before);
                            waiting.push((None, lookup));
                        }
                        Answer::Ready(found) => prop_assert!(found.is_err() && before != BreakerState::Closed),
                    },
                    2 if !waiting.is_empty() => {
                        if waiting.remove(at).0.is_some() {
                            may_probe_from_ms = now_ms;
                        }
                    }
                    3 | 4 if !waiting.is_empty() => {
                        let (began, lookup) = &mut waiting[at];
                        let mut has_ended = lookup.now_or_never().map(|found| found.is_err());
                        let was_asked = flaky.asked() == 1;
                        prop_assert!(!was_asked || may_ask);
                        if was_asked && before != BreakerState::Closed {
                            *began = Some(now_ms);
                        }
                        if step == 4 && has_ended.is_none() {
                            has_ended = Some(lookup.await.is_err());
                        }
                        if let Some(is_error) = has_ended {
                            prop_assert!(is_error);
                            let is_probe = waiting.remove(at).0.is_some();
                            // A probe that another one has replaced changes nothing any more.
                            let reopened = is_probe && (was_asked || before == BreakerState::HalfOpen);
                            if reopened || (before == BreakerState::Closed && store.state() == BreakerState::Open) {
                                may_probe_from_ms = now_ms + 1_000;
                            }
                        }
                    }
                    _ => {
                        hands.advance(Duration::from_millis(number));
                        now_ms += number;
                    }
                }
            }
            drop(waiting);
            flaky.set(false);
            hands.advance(5 * SECOND);
            prop_assert_eq!(ask(&store, TOKEN).await, Ok(true));
            prop_assert_eq!(store.state(), BreakerState::Closed);
            Ok(())
        })?;
    });
}

/// A probe that is kept but not polled again must not keep the breaker open for ever.
#[tokio::test]
async fn a_stopped_probe_does_not_block_the_next_one_for_ever() {
    let (flaky, hands) = (Flaky::default(), Hands::default());
    let store = breaker(&flaky, &hands);
    flaky.set(true);
    for _ in 0..3 {
        assert_eq!(ask(&store, TOKEN).await, Err(None));
    }
    flaky.set(false);
    hands.advance(SECOND);
    let Answer::Pending(mut kept) = store.lookup(&BearerToken::new(TOKEN)) else { panic!("a probe") };
    assert!((&mut kept).now_or_never().is_none());
    hands.advance(SECOND - Duration::from_nanos(1));
    assert_eq!(ask(&store, TOKEN).await, Err(Some(TIMEOUT)));
    hands.advance(Duration::from_nanos(1));
    assert_eq!(ask(&store, TOKEN).await, Ok(true));
    drop(kept);
    assert_eq!(store.state(), BreakerState::Closed, "one failure");
}

/// `first_of` creates lookups of its second store that it never polls. They must not be the probe.
#[tokio::test]
async fn lookups_that_are_not_polled_do_not_probe() {
    let (first, second, hands) = (Flaky::default(), Flaky::default(), Hands::default());
    let breaker = breaker(&second, &hands).with_failure_threshold(NonZeroU32::MIN);
    second.set(true);
    assert_eq!(ask(&breaker, "unknown").await, Err(None));
    second.set(false);
    hands.advance(SECOND);
    second.asked();

    let both = first_of(first.store(), breaker.clone());
    first.silent.store(true, Ordering::SeqCst);
    let mut waits: Vec<_> = (0..3).map(|_| both.lookup(&BearerToken::new(TOKEN)).into_future()).collect();
    for wait in &mut waits {
        assert!(wait.now_or_never().is_none());
    }
    assert_eq!((breaker.state(), second.asked()), (BreakerState::Open, 0));
    assert_eq!(ask(&breaker, TOKEN).await, Ok(true), "the probe");
    assert_eq!(breaker.state(), BreakerState::Closed);
    drop(waits);
    assert_eq!((breaker.state(), second.asked()), (BreakerState::Closed, 1));
}

/// Lookups that were created before the breaker opened, and are polled after that, do not reach the store.
#[tokio::test]
async fn a_lookup_is_checked_again_when_it_begins() {
    let (flaky, hands) = (Flaky::default(), Hands::default());
    let store = breaker(&flaky, &hands).with_failure_threshold(NonZeroU32::MIN);
    let early = store.lookup(&BearerToken::new(TOKEN));
    flaky.set(true);
    assert_eq!(ask(&store, TOKEN).await, Err(None));
    flaky.asked();
    let error = early.await.unwrap_err();
    assert_eq!((error.retry_after(), flaky.asked()), (Some(SECOND), 0));
}

#[test]
fn every_wait_is_advertised_in_whole_seconds() {
    use tollgate::store::from_fn_with;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    for (wait, advertised) in
        [(Duration::ZERO, "1"), (Duration::from_nanos(1_000_000_001), "2"), (Duration::MAX, "18446744074")]
    {
        let store = from_fn_with(wait, |wait, _| async move {
            Err::<Option<Grant<()>>, _>(StoreError::new("down").with_retry_after(wait))
        });
        let service = ServiceBuilder::new().layer(AuthLayer::with_timeout(store, SECOND)).service(echo());
        let rejected = runtime.block_on(send(&service, with_token(TOKEN)));
        assert_eq!(field(rejected.headers(), "retry-after"), Some(advertised));
    }
}

#[test]
fn a_backoff_with_a_longest_pause_below_the_first_is_an_error() {
    let (flaky, hands) = (Flaky::default(), Hands::default());
    let error: BackoffError = breaker(&flaky, &hands).with_backoff(SECOND, SECOND / 2).unwrap_err();
    assert_eq!(error.to_string(), "invalid backoff: the longest pause must not be shorter than the first pause");
    assert!(breaker(&flaky, &hands).with_backoff(SECOND, SECOND).is_ok());
}

#[test]
#[should_panic(expected = "must be called before the circuit breaker is cloned")]
fn a_new_clock_panics_while_a_clone_exists() {
    let breaker = breaker(&Flaky::default(), &Hands::default());
    let _clone = breaker.clone();
    _ = breaker.with_clock(|| Duration::ZERO);
}
