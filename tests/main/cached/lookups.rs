//! Cached answers, shared lookups and the bound of memory.

use std::num::NonZeroU32;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt as _;
use tollgate::store::contract::Contract;
use tollgate::store::{CachedStore, CircuitBreaker};
use tollgate::{Answer, BearerToken, BoxStore, Grant, MemoryStore, TokenDigest, TokenStore as _};

use crate::kit::remote::*;
use crate::kit::*;

#[tokio::test]
async fn a_cache_fulfils_the_contract() {
    let (remote, hands) = (Remote::new(), Hands::default());
    remote.tokens.revoke(TokenDigest::of("bob-token-1"));
    let contract = |store| Contract::new(store).knows(TOKEN, "alice").has_revoked("bob-token-1");
    contract(remote.cache(&hands)).check().await;
    Contract::new(BoxStore::new(remote.cache(&hands))).knows(TOKEN, "alice").check().await;
    let in_memory = CachedStore::new(remote.tokens.clone(), TTL).unwrap();
    Contract::new(in_memory).knows(TOKEN, "alice").has_revoked("bob-token-1").check().await;
    remote.down.store(true, Ordering::SeqCst);
    contract(remote.cache(&hands)).check_outage().await;
}

#[tokio::test]
async fn cached_answers_are_immediate_until_they_expire() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let cache = remote.cache(&hands);
    assert_eq!(cached(&cache, TOKEN), None);
    assert_eq!((knows(&cache, TOKEN).await, knows(&cache, "unknown").await), (Some(true), Some(false)));
    assert_eq!((cached(&cache, TOKEN), cached(&cache, "unknown")), (Some(true), Some(false)));
    hands.advance(5 * SECOND - Duration::from_nanos(1));
    assert_eq!(cached(&cache, "unknown"), Some(false));
    hands.advance(Duration::from_nanos(1));
    assert_eq!(cached(&cache, "unknown"), None);
    hands.advance(TTL - 5 * SECOND - Duration::from_nanos(1));
    assert_eq!((cached(&cache, TOKEN), remote.asked()), (Some(true), 2));
    hands.advance(Duration::from_nanos(1));
    assert_eq!((cached(&cache, TOKEN), knows(&cache, TOKEN).await, remote.asked()), (None, Some(true), 1));
}

#[tokio::test]
async fn an_expired_grant_is_looked_up_again() {
    let (remote, hands) = (Remote::new(), Hands::default());
    remote
        .tokens
        .insert(TokenDigest::of("short"), Grant::new("short", ()).with_expiry(UNIX_EPOCH + 10 * SECOND))
        .unwrap();
    let cache =
        remote.builder(&hands).with_stale_on_error(TTL).with_stale_while_revalidate(TTL, |_| {}).build().unwrap();
    assert_eq!(knows(&cache, "short").await, Some(true));
    hands.advance(10 * SECOND - Duration::from_nanos(1));
    assert_eq!(cached(&cache, "short"), Some(true));
    hands.advance(Duration::from_nanos(1));
    assert_eq!(cached(&cache, "short"), None, "stale answers end with the grant");
    remote.down.store(true, Ordering::SeqCst);
    assert_eq!(knows(&cache, "short").await, None);
}

#[tokio::test]
async fn errors_are_not_cached() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let cache = remote.cache(&hands);
    remote.down.store(true, Ordering::SeqCst);
    assert_eq!((knows(&cache, TOKEN).await, knows(&cache, TOKEN).await, remote.asked()), (None, None, 2));
    remote.down.store(false, Ordering::SeqCst);
    assert_eq!(knows(&cache, TOKEN).await, Some(true));
}

#[tokio::test]
async fn concurrent_misses_of_one_token_send_one_lookup() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let cache = remote.cache(&hands);
    remote.hold();
    let mut waiting: Vec<_> = (0..1_000)
        .map(|_| {
            let cache = cache.clone();
            tokio::spawn(async move { knows(&cache, TOKEN).await })
        })
        .collect();
    tokio::task::yield_now().await;
    // Abandoned requests do not affect the others, not even the one that started the lookup.
    for task in waiting.drain(..500) {
        task.abort();
        assert!(task.await.is_err());
    }
    remote.release();
    for task in waiting {
        assert_eq!(task.await.unwrap(), Some(true));
    }
    assert_eq!(remote.asked(), 1);
}

#[tokio::test]
async fn an_abandoned_lookup_is_removed() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let cache = remote.cache(&hands);
    remote.hold();
    for polled in [false, true] {
        let Answer::Pending(mut future) = cache.lookup(&BearerToken::new(TOKEN)) else { panic!("nothing is cached") };
        if polled {
            assert!((&mut future).now_or_never().is_none());
        }
        assert_eq!(remote.asked(), usize::from(polled), "the lookup is lazy");
        drop(future);
    }
    remote.release();
    assert_eq!((knows(&cache, TOKEN).await, remote.asked()), (Some(true), 1), "a new lookup");
}

#[tokio::test]
async fn a_stuck_lookup_is_not_joined() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let cache = remote.cache(&hands);
    remote.hold();
    let stuck = begin(&cache, TOKEN).await;
    hands.advance(5 * SECOND);
    let mut next = cache.lookup(&BearerToken::new(TOKEN));
    let Answer::Pending(future) = &mut next else { panic!("nothing is cached") };
    assert!(future.now_or_never().is_none());
    assert_eq!(remote.asked(), 2);
    remote.release();
    assert!(stuck.await.unwrap().unwrap() && next.await.unwrap().is_some());
}

#[tokio::test]
async fn age_counts_from_the_start_of_the_lookup() {
    for token in [TOKEN, "unknown"] {
        let (remote, hands) = (Remote::new(), Hands::default());
        let cache = remote.cache(&hands);
        let lifetime = if token == TOKEN { TTL } else { 5 * SECOND };
        remote.hold();
        let slow = begin(&cache, token).await;
        hands.advance(3 * SECOND);
        remote.release();
        assert_eq!(slow.await.unwrap(), Some(token == TOKEN));
        hands.advance(lifetime - 3 * SECOND - Duration::from_nanos(1));
        assert_eq!(cached(&cache, token), Some(token == TOKEN));
        hands.advance(Duration::from_nanos(1));
        assert_eq!(cached(&cache, token), None, "counted from the start of the lookup");
    }
}

#[test]
fn an_expired_grant_is_returned_to_the_gate() {
    let memory = MemoryStore::from_iter([(
        TokenDigest::of("past"),
        Grant::new("past", ()).with_expiry(SystemTime::now() - TTL),
    )]);
    let cache = CachedStore::new(memory, TTL).unwrap();
    for _ in 0..2 {
        assert!(
            cache.lookup(&BearerToken::new("past")).ready().unwrap().unwrap().is_some(),
            "the gate checks the expiry"
        );
    }
}

#[tokio::test]
async fn junk_tokens_evict_no_grants_and_memory_is_bounded() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let cache = remote.builder(&hands).with_capacity(100).build().unwrap();
    assert_eq!(knows(&cache, TOKEN).await, Some(true));
    for junk in 0..5_000 {
        assert_eq!(knows(&cache, &format!("junk-{junk}")).await, Some(false));
    }
    assert_eq!(cached(&cache, TOKEN), Some(true));
    for token in 0..1_000 {
        remote
            .tokens
            .insert(TokenDigest::of(format!("token-{token}")), Grant::new(format!("grant-{token}"), ()))
            .unwrap();
        assert_eq!(knows(&cache, &format!("token-{token}")).await, Some(true));
    }
    let cached_grants = (0..1_000).filter(|token| cached(&cache, &format!("token-{token}")).is_some()).count();
    // The capacity is divided among shards.
    assert!((1..=300).contains(&cached_grants), "{cached_grants}");
}

#[tokio::test]
async fn errors_keep_their_details_through_wrappers() {
    let (remote, hands) = (Remote::new(), Hands::default());
    remote.down.store(true, Ordering::SeqCst);
    let breaker = CircuitBreaker::with_timeout(remote.store(), SECOND).with_failure_threshold(NonZeroU32::MIN);
    let cache = CachedStore::new(BoxStore::new(breaker), TTL).unwrap();
    let store = BoxStore::new(cache);
    assert!(store.lookup(&BearerToken::new(TOKEN)).await.is_err());
    let error = store.lookup(&BearerToken::new(TOKEN)).await.unwrap_err();
    assert!(error.retry_after().is_some_and(|wait| wait > Duration::ZERO && wait <= SECOND));
    let source = std::error::Error::source(&error).unwrap();
    assert!(source.is::<tollgate::store::CircuitBreakerError>(), "one level, not one for each wrapper: {source:?}");
    _ = hands;
}
