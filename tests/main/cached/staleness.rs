//! Stale grants: background refresh and outages.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use http::StatusCode;
use tollgate::store::{CachedStore, CircuitBreaker, Invalidation, Lookup};
use tollgate::{
    Answer, AuthLayer, BearerToken, BoxStore, Grant, Immediate, MemoryStore, StoreError, TokenDigest, TokenStore,
};
use tower::ServiceBuilder;

use crate::kit::remote::*;
use crate::kit::*;

/// The store works, so its error is an answer about this token.
#[tokio::test]
async fn an_error_about_a_token_removes_the_older_entry() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let cache = remote.builder(&hands).with_stale_on_error(TTL).build().unwrap();
    assert_eq!((knows(&cache, TOKEN).await, knows(&cache, "bob-token-1").await), (Some(true), Some(true)));
    hands.advance(TTL);
    remote.unreadable.store(true, Ordering::SeqCst);
    let error = cache.lookup(&BearerToken::new(TOKEN)).await.unwrap_err();
    assert!(error.concerns_token());
    // The error is cached neither as an error nor as unknown.
    remote.asked();
    assert_eq!((knows(&cache, TOKEN).await, remote.asked()), (None, 1));
    // A later outage does not use the entry either, but uses another one.
    remote.unreadable.store(false, Ordering::SeqCst);
    remote.down.store(true, Ordering::SeqCst);
    assert_eq!((knows(&cache, TOKEN).await, knows(&cache, "bob-token-1").await), (None, Some(true)));
    remote.down.store(false, Ordering::SeqCst);
    assert_eq!(knows(&cache, TOKEN).await, Some(true));
}

#[tokio::test]
async fn stale_grants_are_served_while_a_task_refreshes_them() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let tasks = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tasks);
    let cache = remote
        .builder(&hands)
        .with_stale_while_revalidate(10 * SECOND, move |refresh| {
            count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(refresh);
        })
        .build()
        .unwrap();
    assert_eq!(knows(&cache, TOKEN).await, Some(true));
    remote.tokens.revoke(TokenDigest::of(TOKEN));
    remote.asked();
    hands.advance(TTL + 10 * SECOND - Duration::from_nanos(1));
    remote.hold();
    for _ in 0..5 {
        assert_eq!(cached(&cache, TOKEN), Some(true));
        tokio::task::yield_now().await;
    }
    assert_eq!((tasks.load(Ordering::SeqCst), remote.asked()), (1, 1), "one task");
    remote.release();
    tokio::task::yield_now().await;
    assert_eq!(cached(&cache, TOKEN), Some(false), "the task has removed it");

    // Above the bound, a lookup waits.
    assert_eq!(knows(&cache, "bob-token-1").await, Some(true));
    hands.advance(TTL + 10 * SECOND);
    assert_eq!(cached(&cache, "bob-token-1"), None);
    // A removed entry is not served, whatever its age.
    assert_eq!(knows(&cache, "bob-token-1").await, Some(true));
    hands.advance(TTL);
    cache.invalidate(&Invalidation::Grant("bob".into()));
    assert_eq!(cached(&cache, "bob-token-1"), None);
}

#[tokio::test]
async fn stale_grants_are_served_during_an_outage_up_to_the_bound() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let cache = remote.builder(&hands).with_stale_on_error(30 * SECOND).build().unwrap();
    let gate = AuthLayer::with_timeout(cache.clone(), SECOND);
    let service = ServiceBuilder::new().layer(gate).service(echo());
    let status = |token| {
        let service = service.clone();
        async move { send(&service, with_token(token)).await.status() }
    };
    assert_eq!(status(TOKEN).await, StatusCode::OK);
    assert_eq!(status("bob-token-1").await, StatusCode::OK);
    remote.down.store(true, Ordering::SeqCst);
    assert_eq!(status("alice-token-2").await, StatusCode::SERVICE_UNAVAILABLE, "never cached");
    let is_cached = |token| cache.is_cached(&BearerToken::new(token));
    assert_eq!((is_cached(TOKEN), is_cached("alice-token-2")), (true, false));
    hands.advance(TTL + 30 * SECOND - Duration::from_nanos(1));
    assert_eq!(status(TOKEN).await, StatusCode::OK);
    cache.invalidate(&Invalidation::Subject("bob".into()));
    assert_eq!(status("bob-token-1").await, StatusCode::SERVICE_UNAVAILABLE, "removed entries are not served");
    hands.advance(Duration::from_nanos(1));
    assert!(!is_cached(TOKEN));
    assert_eq!(status(TOKEN).await, StatusCode::SERVICE_UNAVAILABLE);
    remote.down.store(false, Ordering::SeqCst);
    assert_eq!(status(TOKEN).await, StatusCode::OK);
}

/// A negative answer may be too late to be cached. It still removes the older grant.
#[tokio::test]
async fn a_revoked_grant_is_not_served_during_an_outage() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let cache = remote.builder(&hands).with_stale_on_error(TTL).build().unwrap();
    assert_eq!(knows(&cache, TOKEN).await, Some(true));
    hands.advance(TTL);
    remote.tokens.revoke(TokenDigest::of(TOKEN));
    remote.hold();
    let late = begin(&cache, TOKEN).await;
    cache.invalidate(&Invalidation::Added);
    remote.release();
    assert_eq!(late.await.unwrap(), Some(false));
    remote.down.store(true, Ordering::SeqCst);
    assert_eq!(knows(&cache, TOKEN).await, None);
}

#[test]
fn an_immediate_store_needs_no_refresh_task() {
    let (memory, hands) =
        (MemoryStore::from_iter([(TokenDigest::of(TOKEN), Grant::new("alice", ()))]), Hands::default());
    let clock = hands.clone();
    let cache = CachedStore::builder(memory.clone(), TTL)
        .with_clock(move || Duration::from_nanos(clock.ns()))
        .with_stale_while_revalidate(TTL, |_| panic!("a task for an immediate store"))
        .build()
        .unwrap();
    let knows = || cache.lookup(&BearerToken::new(TOKEN)).ready().unwrap().unwrap().is_some();
    assert!(knows());
    memory.revoke(TokenDigest::of(TOKEN));
    hands.advance(TTL - Duration::from_nanos(1));
    assert!(knows());
    hands.advance(Duration::from_nanos(1));
    assert!(!knows());
}

/// An immediate store with one grant, which can fail.
struct Fallible {
    is_down: AtomicBool,
    is_unreadable: AtomicBool,
}

impl TokenStore for Fallible {
    type Principal = ();
    type Error = StoreError;
    type Future = Immediate<Lookup<(), StoreError>>;

    fn lookup(&self, _: &BearerToken<'_>) -> Answer<Self::Future> {
        Answer::Ready(match self.is_down.load(Ordering::SeqCst) {
            true => Err(StoreError::new("down")),
            false if self.is_unreadable.load(Ordering::SeqCst) => Err(StoreError::for_token("a bad row")),
            false => Ok(Some(Arc::new(Grant::new("alice", ())))),
        })
    }
}

#[test]
fn an_immediate_error_is_returned_instead_of_a_stale_grant_only_if_it_concerns_the_token() {
    let store = Arc::new(Fallible { is_down: AtomicBool::new(false), is_unreadable: AtomicBool::new(false) });
    let hands = Hands::default();
    let clock = hands.clone();
    let cache = CachedStore::builder(Arc::clone(&store), TTL)
        .with_clock(move || Duration::from_nanos(clock.ns()))
        .with_stale_while_revalidate(TTL, |_| panic!("a task for an immediate store"))
        .build()
        .unwrap();
    let lookup = || cache.lookup(&BearerToken::new(TOKEN)).ready().unwrap();
    assert!(lookup().unwrap().is_some());
    hands.advance(TTL);
    store.is_down.store(true, Ordering::SeqCst);
    assert!(lookup().unwrap().is_some());
    store.is_down.store(false, Ordering::SeqCst);
    store.is_unreadable.store(true, Ordering::SeqCst);
    assert!(lookup().unwrap_err().concerns_token());
}

/// A store without any answer has not failed. A breaker turns it into a failure before the timeout of the gate.
#[tokio::test(start_paused = true)]
async fn a_breaker_turns_missing_answers_into_failures() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let clock = {
        let hands = hands.clone();
        move || Duration::from_nanos(hands.ns())
    };
    let breaker = CircuitBreaker::with_timeout(remote.store(), SECOND / 2)
        .with_failure_threshold(NonZeroU32::new(2).unwrap())
        .with_clock(clock.clone());
    let with_breaker = CachedStore::builder(BoxStore::new(breaker), TTL).with_clock(clock);
    for (builder, status) in [(remote.builder(&hands), 503), (with_breaker, 200)] {
        let cache = builder.with_stale_on_error(TTL).build().unwrap();
        let gate = AuthLayer::with_timeout(cache, SECOND);
        let service = ServiceBuilder::new().layer(gate).service(echo());
        assert_eq!(send(&service, with_token(TOKEN)).await.status(), 200);
        hands.advance(TTL);
        remote.hold();
        for _ in 0..4 {
            assert_eq!(send(&service, with_token(TOKEN)).await.status(), status);
        }
        // The breaker is open: a token that is not cached is rejected immediately, with `Retry-After`.
        let rejected = send(&service, with_token("bob-token-1")).await;
        assert_eq!(rejected.status(), 503);
        assert_eq!(field(rejected.headers(), "retry-after"), Some("1"));
        hands.advance(TTL);
        assert_eq!(send(&service, with_token(TOKEN)).await.status(), 503, "above the bound");
        remote.release();
    }
}
