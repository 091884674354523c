//! What a cache remembers, and for how long; and that it forgets at once.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::FutureExt as _;
use http::StatusCode;
use proptest::prelude::*;
use tokio::sync::Semaphore;
use tollgate::store::contract::Contract;
use tollgate::store::{CacheSettingsError, CachedStore, CircuitBreaker, Invalidation, from_fn, from_fn_with};
use tollgate::{Answer, AuthLayer, BearerToken, BoxStore, Grant, MemoryStore, StoreError, TokenDigest, TokenStore};
use tower::ServiceBuilder;

use crate::kit::*;

const TTL: Duration = Duration::from_secs(60);
const SECOND: Duration = Duration::from_secs(1);

/// A store behind a network: it counts, it can be down, and its answers can be held back after they were made.
#[derive(Clone)]
struct Remote {
    tokens: MemoryStore<()>,
    asked: Arc<AtomicUsize>,
    down: Arc<AtomicBool>,
    /// It works, and cannot read a row.
    unreadable: Arc<AtomicBool>,
    answers: Arc<Semaphore>,
}

impl Remote {
    fn new() -> Self {
        let tokens = MemoryStore::from_iter([
            (TokenDigest::of(TOKEN), Grant::new("alice-1", ()).with_subject("alice")),
            (TokenDigest::of("alice-token-2"), Grant::new("alice-2", ()).with_subject("alice")),
            (TokenDigest::of("bob-token-1"), Grant::new("bob", ())),
        ]);
        let answers = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        Self { tokens, asked: Arc::default(), down: Arc::default(), unreadable: Arc::default(), answers }
    }

    fn store(&self) -> BoxStore<()> {
        BoxStore::new(from_fn_with(self.clone(), |remote, digest| async move {
            remote.asked.fetch_add(1, Ordering::SeqCst);
            let found = remote.tokens.get(digest).map(|grant| Grant::clone(&grant));
            remote.answers.acquire().await.unwrap().forget();
            remote.answers.add_permits(1);
            match remote.down.load(Ordering::SeqCst) {
                true => Err(StoreError::new("down")),
                false if remote.unreadable.load(Ordering::SeqCst) => Err(StoreError::for_token("a bad row")),
                false => Ok(found),
            }
        }))
    }

    fn cache(&self, hands: &Hands) -> CachedStore<BoxStore<()>> {
        let (steady, wall) = (hands.clone(), hands.clone());
        CachedStore::new(self.store(), TTL)
            .unwrap()
            .with_clock(move || Duration::from_nanos(steady.ns()))
            .with_wall_clock(move || UNIX_EPOCH + Duration::from_nanos(wall.ns()))
    }

    fn asked(&self) -> usize {
        self.asked.swap(0, Ordering::SeqCst)
    }

    /// Holds answers back, until [`release`](Self::release).
    fn hold(&self) {
        self.answers.forget_permits(Semaphore::MAX_PERMITS);
    }

    fn release(&self) {
        self.answers.add_permits(Semaphore::MAX_PERMITS);
    }
}

async fn knows(cache: &CachedStore<BoxStore<()>>, token: &str) -> Option<bool> {
    cache.lookup(&BearerToken::new(token)).await.ok().map(|found| found.is_some())
}

fn at_once(cache: &CachedStore<BoxStore<()>>, token: &str) -> Option<bool> {
    cache.lookup(&BearerToken::new(token)).ready().map(|found| found.unwrap().is_some())
}

#[tokio::test]
async fn it_keeps_the_contract() {
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
async fn what_is_remembered_is_answered_at_once_until_it_is_old() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let cache = remote.cache(&hands);
    assert_eq!(at_once(&cache, TOKEN), None);
    assert_eq!((knows(&cache, TOKEN).await, knows(&cache, "unknown").await), (Some(true), Some(false)));
    assert_eq!((at_once(&cache, TOKEN), at_once(&cache, "unknown")), (Some(true), Some(false)));
    hands.advance(5 * SECOND - Duration::from_nanos(1));
    assert_eq!(at_once(&cache, "unknown"), Some(false));
    hands.advance(Duration::from_nanos(1));
    assert_eq!(at_once(&cache, "unknown"), None);
    hands.advance(TTL - 5 * SECOND - Duration::from_nanos(1));
    assert_eq!((at_once(&cache, TOKEN), remote.asked()), (Some(true), 2));
    hands.advance(Duration::from_nanos(1));
    assert_eq!((at_once(&cache, TOKEN), knows(&cache, TOKEN).await, remote.asked()), (None, Some(true), 1));
}

#[tokio::test]
async fn a_grant_is_asked_for_anew_when_it_expires() {
    let (remote, hands) = (Remote::new(), Hands::default());
    remote
        .tokens
        .insert(TokenDigest::of("short"), Grant::new("short", ()).with_expiry(UNIX_EPOCH + 10 * SECOND))
        .unwrap();
    let cache = remote.cache(&hands).with_stale_on_error(TTL).unwrap();
    let cache = cache.with_stale_while_revalidate(TTL, |_| {}).unwrap();
    assert_eq!(knows(&cache, "short").await, Some(true));
    hands.advance(10 * SECOND - Duration::from_nanos(1));
    assert_eq!(at_once(&cache, "short"), Some(true));
    hands.advance(Duration::from_nanos(1));
    assert_eq!(at_once(&cache, "short"), None, "stale answers end with the grant too");
    remote.down.store(true, Ordering::SeqCst);
    assert_eq!(knows(&cache, "short").await, None);
}

/// The database reports that anything may have changed when it has just come back, or has not quite.
#[tokio::test]
async fn entries_that_may_be_outdated_are_used_only_while_the_store_fails() {
    for (stale, bound) in [(None, TTL), (Some(30 * SECOND), TTL + 30 * SECOND)] {
        let (remote, hands) = (Remote::new(), Hands::default());
        let mut cache =
            remote.cache(&hands).with_stale_while_revalidate(TTL, |refresh| _ = tokio::spawn(refresh)).unwrap();
        if let Some(stale) = stale {
            cache = cache.with_stale_on_error(stale).unwrap();
        }
        for token in [TOKEN, "bob-token-1", "unknown"] {
            assert!(knows(&cache, token).await.is_some());
        }
        remote.down.store(true, Ordering::SeqCst);
        cache.invalidate(&Invalidation::Everything);
        remote.asked();
        for round in 1..=3 {
            assert_eq!(at_once(&cache, TOKEN), None, "it asks first");
            assert_eq!((knows(&cache, TOKEN).await, remote.asked()), (Some(true), round.min(1)));
            assert_eq!(knows(&cache, "alice-token-2").await, None, "it was never read");
            assert_eq!(knows(&cache, "unknown").await, None);
            remote.asked();
        }
        // A revocation that was reported by name counts.
        cache.invalidate(&Invalidation::Grant("bob".into()));
        assert_eq!(knows(&cache, "bob-token-1").await, None);
        hands.advance(bound - Duration::from_nanos(1));
        assert_eq!(knows(&cache, TOKEN).await, Some(true), "counted from when it was read");
        hands.advance(Duration::from_nanos(1));
        assert_eq!(knows(&cache, TOKEN).await, None);
    }
}

#[tokio::test]
async fn once_the_store_has_answered_the_answer_counts() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let cache = remote.cache(&hands).with_stale_on_error(TTL).unwrap();
    for token in [TOKEN, "bob-token-1", "alice-token-2"] {
        assert_eq!(knows(&cache, token).await, Some(true));
    }
    remote.tokens.revoke(TokenDigest::of(TOKEN));
    remote.tokens.replace(TokenDigest::of("alice-token-2"), Grant::new("alice-2", ()).with_subject("another"));
    cache.invalidate(&Invalidation::Everything);
    remote.asked();
    assert_eq!(knows(&cache, TOKEN).await, Some(false));
    assert_eq!(knows(&cache, "bob-token-1").await, Some(true));
    assert_eq!(knows(&cache, "alice-token-2").await, Some(true));
    assert_eq!(remote.asked(), 3);
    // From here on they are cached as ever.
    assert_eq!((at_once(&cache, TOKEN), at_once(&cache, "bob-token-1")), (Some(false), Some(true)));
    let subject = |cache: &CachedStore<BoxStore<()>>| {
        let found = cache.lookup(&BearerToken::new("alice-token-2"));
        async move { found.await.unwrap().unwrap().subject().to_string() }
    };
    assert_eq!(subject(&cache).await, "another");
    remote.down.store(true, Ordering::SeqCst);
    cache.invalidate(&Invalidation::Everything);
    assert_eq!((knows(&cache, TOKEN).await, knows(&cache, "bob-token-1").await), (None, Some(true)));
    assert_eq!(subject(&cache).await, "another");
}

/// The answer was read before the message, and so may be outdated. It is newer than the entry all the same.
#[tokio::test]
async fn an_answer_that_may_be_outdated_replaces_what_is_older() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let cache = remote.cache(&hands);
    assert_eq!(knows(&cache, "alice-token-2").await, Some(true));
    cache.invalidate(&Invalidation::Everything);
    remote.tokens.replace(TokenDigest::of("alice-token-2"), Grant::new("alice-2", ()).with_subject("another"));
    remote.hold();
    let waiting = tokio::spawn({
        let cache = cache.clone();
        async move { knows(&cache, "alice-token-2").await }
    });
    tokio::task::yield_now().await;
    cache.invalidate(&Invalidation::Everything);
    remote.release();
    assert_eq!(waiting.await.unwrap(), Some(true));
    assert_eq!(at_once(&cache, "alice-token-2"), None, "asked again");
    remote.down.store(true, Ordering::SeqCst);
    let found = cache.lookup(&BearerToken::new("alice-token-2")).await.unwrap().unwrap();
    assert_eq!(found.subject().as_str(), "another");
}

#[tokio::test]
async fn a_thousand_lookups_of_an_outdated_entry_ask_once() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let cache = remote.cache(&hands);
    assert_eq!(knows(&cache, TOKEN).await, Some(true));
    cache.invalidate(&Invalidation::Everything);
    remote.asked();
    remote.hold();
    let waiting: Vec<_> = (0..1_000)
        .map(|_| {
            let cache = cache.clone();
            tokio::spawn(async move { knows(&cache, TOKEN).await })
        })
        .collect();
    tokio::task::yield_now().await;
    remote.release();
    for task in waiting {
        assert_eq!(task.await.unwrap(), Some(true));
    }
    assert_eq!(remote.asked(), 1);
}

#[tokio::test]
async fn clear_removes_everything_also_while_the_store_fails() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let cache = remote.cache(&hands).with_stale_on_error(TTL).unwrap();
    assert_eq!((knows(&cache, TOKEN).await, knows(&cache, "unknown").await), (Some(true), Some(false)));
    remote.down.store(true, Ordering::SeqCst);
    cache.clear();
    assert_eq!((knows(&cache, TOKEN).await, knows(&cache, "unknown").await), (None, None));
    remote.down.store(false, Ordering::SeqCst);
    assert_eq!((knows(&cache, TOKEN).await, at_once(&cache, TOKEN)), (Some(true), Some(true)));
}

/// The store works, so that its error is an answer about this token.
#[tokio::test]
async fn an_error_about_a_token_is_not_answered_by_an_older_entry() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let cache = remote.cache(&hands).with_stale_on_error(TTL).unwrap();
    assert_eq!((knows(&cache, TOKEN).await, knows(&cache, "bob-token-1").await), (Some(true), Some(true)));
    hands.advance(TTL);
    remote.unreadable.store(true, Ordering::SeqCst);
    let error = cache.lookup(&BearerToken::new(TOKEN)).await.unwrap_err();
    assert!(error.concerns_token());
    // Not cached, neither as an error nor as unknown.
    remote.asked();
    assert_eq!((knows(&cache, TOKEN).await, remote.asked()), (None, 1));
    // Nor is the entry used in an outage that comes later; another one is.
    remote.unreadable.store(false, Ordering::SeqCst);
    remote.down.store(true, Ordering::SeqCst);
    assert_eq!((knows(&cache, TOKEN).await, knows(&cache, "bob-token-1").await), (None, Some(true)));
    remote.down.store(false, Ordering::SeqCst);
    assert_eq!(knows(&cache, TOKEN).await, Some(true));
}

/// Otherwise a flood of messages about grants that nobody has would keep the cache empty.
#[tokio::test]
async fn an_answer_is_kept_if_something_else_was_invalidated_meanwhile() {
    let changes = [
        Invalidation::Grant("nobody".into()),
        Invalidation::Subject("nobody".into()),
        Invalidation::Token(TokenDigest::of("nobody")),
    ];
    for token in [TOKEN, "unknown"] {
        let (remote, hands) = (Remote::new(), Hands::default());
        // Those that share a place by chance are not kept, which two caches do not do alike.
        let caches = [remote.cache(&hands), remote.cache(&hands)];
        remote.hold();
        let waiting = caches.clone().map(|cache| tokio::spawn(async move { knows(&cache, token).await }));
        tokio::task::yield_now().await;
        for cache in &caches {
            changes.iter().for_each(|change| cache.invalidate(change));
        }
        remote.release();
        for answer in waiting {
            assert_eq!(answer.await.unwrap(), Some(token == TOKEN));
        }
        assert!(caches.iter().any(|cache| at_once(cache, token) == Some(token == TOKEN)), "{token}");
    }
}

#[tokio::test]
async fn failures_are_not_remembered() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let cache = remote.cache(&hands);
    remote.down.store(true, Ordering::SeqCst);
    assert_eq!((knows(&cache, TOKEN).await, knows(&cache, TOKEN).await, remote.asked()), (None, None, 2));
    remote.down.store(false, Ordering::SeqCst);
    assert_eq!(knows(&cache, TOKEN).await, Some(true));
}

#[tokio::test]
async fn a_thousand_misses_of_one_token_ask_once() {
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
    // Those who leave harm nobody, the first one least of all, on whom the look-up hung.
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
async fn a_look_up_that_everybody_has_left_is_forgotten() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let cache = remote.cache(&hands);
    remote.hold();
    for polled in [false, true] {
        let Answer::Pending(mut future) = cache.lookup(&BearerToken::new(TOKEN)) else {
            panic!("nothing is remembered")
        };
        if polled {
            assert!((&mut future).now_or_never().is_none());
        }
        assert_eq!(remote.asked(), usize::from(polled), "lazy");
        drop(future);
    }
    remote.release();
    assert_eq!((knows(&cache, TOKEN).await, remote.asked()), (Some(true), 1), "asked anew");
}

#[tokio::test]
async fn nobody_joins_a_look_up_that_does_not_come_back() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let cache = remote.cache(&hands);
    remote.hold();
    let stuck = tokio::spawn({
        let cache = cache.clone();
        async move { knows(&cache, TOKEN).await }
    });
    tokio::task::yield_now().await;
    hands.advance(5 * SECOND);
    let mut next = cache.lookup(&BearerToken::new(TOKEN));
    let Answer::Pending(future) = &mut next else { panic!("nothing is remembered") };
    assert!(future.now_or_never().is_none());
    assert_eq!(remote.asked(), 2);
    remote.release();
    assert!(stuck.await.unwrap().unwrap() && next.await.unwrap().is_some());
}

#[tokio::test]
async fn what_has_changed_is_forgotten_and_nothing_else() {
    let everyone = [TOKEN, "alice-token-2", "bob-token-1", "unknown"];
    for (change, forgotten) in [
        (Invalidation::Token(TokenDigest::of(TOKEN)), &everyone[..1]),
        (Invalidation::Token(TokenDigest::of("unknown")), &everyone[3..]),
        (Invalidation::Grant("alice-1".into()), &everyone[..1]),
        (Invalidation::Subject("alice".into()), &everyone[..2]),
        (Invalidation::Added, &everyone[3..]),
        (Invalidation::Everything, &everyone[..]),
        (Invalidation::Grant("nobody".into()), &[]),
    ] {
        let (remote, hands) = (Remote::new(), Hands::default());
        let cache = remote.cache(&hands);
        // Twice: what is remembered anew is forgotten too.
        for _ in 0..2 {
            for token in everyone {
                knows(&cache, token).await.unwrap();
            }
            cache.invalidate(&change);
            for token in everyone {
                assert_eq!(at_once(&cache, token).is_none(), forgotten.contains(&token), "{change:?}, {token}");
            }
        }
    }
}

/// The race that a cache has to win: the store has read the grant, the grant is revoked, the answer comes.
#[tokio::test]
async fn an_answer_from_before_an_invalidation_is_not_kept_nor_joined() {
    for change in
        [Invalidation::Grant("alice-1".into()), Invalidation::Token(TokenDigest::of(TOKEN)), Invalidation::Everything]
    {
        let (remote, hands) = (Remote::new(), Hands::default());
        let cache = remote.cache(&hands);
        remote.hold();
        let before = tokio::spawn({
            let cache = cache.clone();
            async move { knows(&cache, TOKEN).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(remote.asked(), 1);

        remote.tokens.revoke(TokenDigest::of(TOKEN));
        cache.invalidate(&change);
        let after = tokio::spawn({
            let cache = cache.clone();
            async move { knows(&cache, TOKEN).await }
        });
        tokio::task::yield_now().await;
        assert_eq!(remote.asked(), 1, "asked by itself");
        remote.release();
        assert_eq!(before.await.unwrap(), Some(true), "it began before");
        assert_eq!(after.await.unwrap(), Some(false));
        assert_eq!(knows(&cache, TOKEN).await, Some(false), "{change:?}");
    }
}

#[tokio::test]
async fn a_token_that_becomes_known_is_known_when_it_is_told() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let cache = remote.cache(&hands);
    assert_eq!(knows(&cache, "new").await, Some(false));
    remote.tokens.insert(TokenDigest::of("new"), Grant::new("new", ())).unwrap();
    assert_eq!(knows(&cache, "new").await, Some(false));
    cache.invalidate(&Invalidation::Added);
    assert_eq!(knows(&cache, "new").await, Some(true));

    let patient = remote.cache(&hands).with_unknown_ttl(10 * TTL).unwrap();
    assert_eq!(knows(&patient, "unknown").await, Some(false));
    hands.advance(TTL);
    assert_eq!(at_once(&patient, "unknown"), None, "no longer than a grant");
    let forgetful = remote.cache(&hands).with_unknown_ttl(Duration::ZERO).unwrap();
    assert_eq!(knows(&forgetful, "newer").await, Some(false));
    remote.tokens.insert(TokenDigest::of("newer"), Grant::new("newer", ())).unwrap();
    assert_eq!(knows(&forgetful, "newer").await, Some(true));
}

#[tokio::test]
async fn the_old_is_answered_while_a_task_asks_anew() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let tasks = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&tasks);
    let cache = remote
        .cache(&hands)
        .with_stale_while_revalidate(10 * SECOND, move |refresh| {
            count.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(refresh);
        })
        .unwrap();
    assert_eq!(knows(&cache, TOKEN).await, Some(true));
    remote.tokens.revoke(TokenDigest::of(TOKEN));
    remote.asked();
    hands.advance(TTL + 10 * SECOND - Duration::from_nanos(1));
    remote.hold();
    for _ in 0..5 {
        assert_eq!(at_once(&cache, TOKEN), Some(true));
        tokio::task::yield_now().await;
    }
    assert_eq!((tasks.load(Ordering::SeqCst), remote.asked()), (1, 1), "one task");
    remote.release();
    tokio::task::yield_now().await;
    assert_eq!(at_once(&cache, TOKEN), Some(false), "the task has learnt it");

    // Past the bound one waits.
    assert_eq!(knows(&cache, "bob-token-1").await, Some(true));
    hands.advance(TTL + 10 * SECOND);
    assert_eq!(at_once(&cache, "bob-token-1"), None);
    // What was forgotten is not answered, however young.
    assert_eq!(knows(&cache, "bob-token-1").await, Some(true));
    hands.advance(TTL);
    cache.invalidate(&Invalidation::Grant("bob".into()));
    assert_eq!(at_once(&cache, "bob-token-1"), None);
}

#[tokio::test]
async fn the_old_is_answered_while_the_store_is_down_for_as_long_as_was_said() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let cache = remote.cache(&hands).with_stale_on_error(30 * SECOND).unwrap();
    let gate = AuthLayer::with_timeout(cache.clone(), SECOND);
    let service = ServiceBuilder::new().layer(gate).service(echo());
    let status = |token| {
        let service = service.clone();
        async move { send(&service, with_token(token)).await.status() }
    };
    assert_eq!(status(TOKEN).await, StatusCode::OK);
    assert_eq!(status("bob-token-1").await, StatusCode::OK);
    remote.down.store(true, Ordering::SeqCst);
    assert_eq!(status("alice-token-2").await, StatusCode::SERVICE_UNAVAILABLE, "it was never seen");
    hands.advance(TTL + 30 * SECOND - Duration::from_nanos(1));
    assert_eq!(status(TOKEN).await, StatusCode::OK);
    cache.invalidate(&Invalidation::Subject("bob".into()));
    assert_eq!(status("bob-token-1").await, StatusCode::SERVICE_UNAVAILABLE, "forgotten is forgotten");
    hands.advance(Duration::from_nanos(1));
    assert_eq!(status(TOKEN).await, StatusCode::SERVICE_UNAVAILABLE);
    remote.down.store(false, Ordering::SeqCst);
    assert_eq!(status(TOKEN).await, StatusCode::OK);
}

#[tokio::test]
async fn a_flood_of_junk_pushes_out_no_grant_and_memory_is_bounded() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let cache = remote.cache(&hands).with_capacity(100).unwrap();
    assert_eq!(knows(&cache, TOKEN).await, Some(true));
    for junk in 0..5_000 {
        assert_eq!(knows(&cache, &format!("junk-{junk}")).await, Some(false));
    }
    assert_eq!(at_once(&cache, TOKEN), Some(true));
    for token in 0..1_000 {
        remote
            .tokens
            .insert(TokenDigest::of(format!("token-{token}")), Grant::new(format!("grant-{token}"), ()))
            .unwrap();
        assert_eq!(knows(&cache, &format!("token-{token}")).await, Some(true));
    }
    let remembered = (0..1_000).filter(|token| at_once(&cache, &format!("token-{token}")).is_some()).count();
    // Its parts are counted each by itself.
    assert!((1..=300).contains(&remembered), "{remembered}");
}

#[tokio::test]
async fn an_error_keeps_what_it_knows_through_the_layers() {
    let (remote, hands) = (Remote::new(), Hands::default());
    remote.down.store(true, Ordering::SeqCst);
    let breaker = CircuitBreaker::with_timeout(remote.store(), SECOND).with_failure_threshold(1);
    let cache = CachedStore::new(BoxStore::new(breaker), TTL).unwrap();
    let store = BoxStore::new(cache);
    assert!(store.lookup(&BearerToken::new(TOKEN)).await.is_err());
    let error = store.lookup(&BearerToken::new(TOKEN)).await.unwrap_err();
    assert!(error.retry_after().is_some_and(|wait| wait > Duration::ZERO && wait <= SECOND));
    let source = std::error::Error::source(&error).unwrap();
    assert!(source.is::<tollgate::store::CircuitBreakerError>(), "one level, not one a layer: {source:?}");
    _ = hands;
}

#[test]
fn what_no_cache_can_be_set_to_is_refused() {
    let cache = |ttl| CachedStore::new(MemoryStore::<()>::new(), ttl);
    assert_eq!(cache(Duration::ZERO).unwrap_err(), CacheSettingsError::Time);
    assert_eq!(cache(Duration::MAX).unwrap_err(), CacheSettingsError::Time);
    assert_eq!(cache(TTL).unwrap().with_capacity(0).unwrap_err(), CacheSettingsError::Capacity);
    assert_eq!(cache(TTL).unwrap().with_unknown_ttl(Duration::MAX).unwrap_err(), CacheSettingsError::Time);
    assert_eq!(cache(TTL).unwrap().with_stale_on_error(Duration::ZERO).unwrap_err(), CacheSettingsError::Time);
    let revalidating = cache(TTL).unwrap().with_stale_while_revalidate(Duration::MAX, |_| {});
    assert_eq!(revalidating.unwrap_err(), CacheSettingsError::Time);
}

/// Threads look up while others revoke and tell it: who begins after the telling never sees the grant.
#[test]
fn no_thread_sees_a_grant_after_its_revocation_was_told() {
    let tokens: Vec<String> = (0..64).map(|token| format!("token-{token}")).collect();
    for round in 0..20 {
        let memory = MemoryStore::from_iter(tokens.iter().map(|token| (TokenDigest::of(token), Grant::new(token, ()))));
        let told: Vec<AtomicBool> = tokens.iter().map(|_| AtomicBool::new(false)).collect();
        let store = from_fn_with(memory.clone(), |memory, digest| async move {
            let found = memory.get(digest).map(|grant| Grant::clone(&grant));
            for _ in 0..3 {
                tokio::task::yield_now().await;
            }
            Ok::<_, Infallible>(found)
        });
        let cache = CachedStore::new(store, TTL).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                    for at in (0..tokens.len()).cycle().take(2_000) {
                        let was_told = told[at].load(Ordering::SeqCst);
                        let found =
                            runtime.block_on(cache.lookup(&BearerToken::new(&tokens[at])).into_future()).unwrap();
                        assert!(!(was_told && found.is_some()), "a revoked token works");
                    }
                });
            }
            scope.spawn(|| {
                for (at, token) in tokens.iter().enumerate() {
                    assert_eq!(memory.revoke_grant(&token.into()), 1);
                    cache.invalidate(&match round % 3 {
                        0 => Invalidation::Grant(token.into()),
                        1 => Invalidation::Subject(token.into()),
                        _ => Invalidation::Token(TokenDigest::of(token)),
                    });
                    told[at].store(true, Ordering::SeqCst);
                    std::thread::yield_now();
                }
            });
        });
    }
}

#[derive(Clone, Debug)]
enum Step {
    Pass(u64),
    Set(usize, bool),
    Down(bool),
    Tell(usize, u8),
    Look(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..40_u64).prop_map(Step::Pass),
        (0..4_usize, any::<bool>()).prop_map(|(token, known)| Step::Set(token, known)),
        any::<bool>().prop_map(Step::Down),
        (0..4_usize, 0..4_u8).prop_map(|(token, how)| Step::Tell(token, how)),
        (0..4_usize).prop_map(Step::Look),
    ]
}

proptest! {
    /// Against a history of what was true when: no answer is older than the settings say, nor from before it was told.
    #[test]
    fn no_answer_is_older_than_it_may_be(steps in proptest::collection::vec(step(), 1..120)) {
        let (ttl, unknown_ttl, stale) = (60, 5, 30);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (remote, hands) = (Remote::new(), Hands::default());
        let cache = remote.cache(&hands).with_stale_on_error(stale * SECOND).unwrap();
        let tokens: Vec<String> = (0..4).map(|token| format!("model-{token}")).collect();
        let (mut now, mut down) = (0_u64, false);
        // For each token, what was true since which second; since when nothing older may be told; and since when only while
        // the store fails.
        let mut history: HashMap<usize, Vec<(u64, bool)>> = (0..4).map(|token| (token, vec![(0, false)])).collect();
        let (mut told, mut doubted) = ([0_usize; 4], [0_usize; 4]);
        for step in steps {
            match step {
                Step::Pass(seconds) => {
                    hands.advance(Duration::from_secs(seconds));
                    now += seconds;
                }
                Step::Set(token, known) => {
                    match known {
                        true => _ = remote.tokens.replace(TokenDigest::of(&tokens[token]), Grant::new(format!("grant-{token}"), ())),
                        false => _ = remote.tokens.revoke(TokenDigest::of(&tokens[token])),
                    }
                    history.get_mut(&token).unwrap().push((now, known));
                }
                Step::Down(is_down) => {
                    remote.down.store(is_down, Ordering::SeqCst);
                    down = is_down;
                }
                Step::Tell(token, how) => {
                    let change = match how {
                        0 => Invalidation::Token(TokenDigest::of(&tokens[token])),
                        // A grant cannot be told by who does not know it: "unknown" goes with `Added`.
                        1 => Invalidation::Grant(format!("grant-{token}").into()),
                        2 => Invalidation::Added,
                        _ => Invalidation::Everything,
                    };
                    cache.invalidate(&change);
                    match how {
                        0 => told[token] = history[&token].len() - 1,
                        3 => doubted.iter_mut().enumerate().for_each(|(token, told)| *told = history[&token].len() - 1),
                        _ => {}
                    }
                }
                Step::Look(token) => {
                    remote.asked();
                    let found = runtime.block_on(cache.lookup(&BearerToken::new(&tokens[token])).into_future());
                    let facts = &history[&token];
                    if !down && remote.asked() > 0 {
                        // Once the store has answered, nothing older counts.
                        told[token] = facts.len() - 1;
                    }
                    let oldest = if down { told[token] } else { told[token].max(doubted[token]) };
                    let was_true = |answer: bool, age: u64| {
                        facts.iter().enumerate().skip(oldest).any(|(at, (_, known))| {
                            let until = facts.get(at + 1).map_or(u64::MAX, |(next, _)| *next);
                            *known == answer && until.saturating_add(age) > now
                        })
                    };
                    match found {
                        Ok(Some(_)) => {
                            let oldest = ttl + if down { u64::from(stale) } else { 0 };
                            prop_assert!(was_true(true, oldest + 1));
                        }
                        Ok(None) => prop_assert!(was_true(false, unknown_ttl + 1)),
                        Err(_) => prop_assert!(down),
                    }
                }
            }
        }
    }
}

#[test]
fn a_grant_of_the_past_is_no_panic() {
    let memory = MemoryStore::from_iter([(
        TokenDigest::of("past"),
        Grant::new("past", ()).with_expiry(SystemTime::now() - TTL),
    )]);
    let cache = CachedStore::new(memory, TTL).unwrap();
    for _ in 0..2 {
        assert!(cache.lookup(&BearerToken::new("past")).ready().unwrap().unwrap().is_some(), "the gate judges it");
    }
}

#[tokio::test]
async fn an_answer_is_as_old_as_its_question() {
    for token in [TOKEN, "unknown"] {
        let (remote, hands) = (Remote::new(), Hands::default());
        let cache = remote.cache(&hands);
        let lifetime = if token == TOKEN { TTL } else { 5 * SECOND };
        remote.hold();
        let slow = tokio::spawn({
            let cache = cache.clone();
            async move { knows(&cache, token).await }
        });
        tokio::task::yield_now().await;
        hands.advance(3 * SECOND);
        remote.release();
        assert_eq!(slow.await.unwrap(), Some(token == TOKEN));
        hands.advance(lifetime - 3 * SECOND - Duration::from_nanos(1));
        assert_eq!(at_once(&cache, token), Some(token == TOKEN));
        hands.advance(Duration::from_nanos(1));
        assert_eq!(at_once(&cache, token), None, "counted from the question");
    }
}

/// A "no" may come too late to be remembered. It still ends what was remembered before.
#[tokio::test]
async fn a_grant_that_is_not_found_any_more_is_no_help_in_an_outage() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let cache = remote.cache(&hands).with_stale_on_error(TTL).unwrap();
    assert_eq!(knows(&cache, TOKEN).await, Some(true));
    hands.advance(TTL);
    remote.tokens.revoke(TokenDigest::of(TOKEN));
    remote.hold();
    let late = tokio::spawn({
        let cache = cache.clone();
        async move { knows(&cache, TOKEN).await }
    });
    tokio::task::yield_now().await;
    cache.invalidate(&Invalidation::Added);
    remote.release();
    assert_eq!(late.await.unwrap(), Some(false));
    remote.down.store(true, Ordering::SeqCst);
    assert_eq!(knows(&cache, TOKEN).await, None);
}

#[test]
fn what_a_store_says_at_once_is_not_late() {
    let (memory, hands) =
        (MemoryStore::from_iter([(TokenDigest::of(TOKEN), Grant::new("alice", ()))]), Hands::default());
    let clock = hands.clone();
    let cache = CachedStore::new(memory.clone(), TTL).unwrap().with_clock(move || Duration::from_nanos(clock.ns()));
    let cache = cache.with_stale_while_revalidate(TTL, |_| panic!("there is nothing to wait for")).unwrap();
    let knows = || cache.lookup(&BearerToken::new(TOKEN)).ready().unwrap().unwrap().is_some();
    assert!(knows());
    memory.revoke(TokenDigest::of(TOKEN));
    hands.advance(TTL - Duration::from_nanos(1));
    assert!(knows());
    hands.advance(Duration::from_nanos(1));
    assert!(!knows());
}

/// A store that says nothing at all has not failed. A breaker makes a failure of it, before the gate gives up.
#[tokio::test(start_paused = true)]
async fn a_breaker_between_cache_and_store_makes_a_failure_of_silence() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let clock = {
        let hands = hands.clone();
        move || Duration::from_nanos(hands.ns())
    };
    let breaker =
        CircuitBreaker::with_timeout(remote.store(), SECOND / 2).with_failure_threshold(2).with_clock(clock.clone());
    let behind_breaker = CachedStore::new(BoxStore::new(breaker), TTL).unwrap().with_clock(clock);
    for (cache, status) in [(remote.cache(&hands), 503), (behind_breaker, 200)] {
        let cache = cache.with_stale_on_error(TTL).unwrap();
        let gate = AuthLayer::with_timeout(cache, SECOND);
        let service = ServiceBuilder::new().layer(gate).service(echo());
        assert_eq!(send(&service, with_token(TOKEN)).await.status(), 200);
        hands.advance(TTL);
        remote.hold();
        for _ in 0..4 {
            assert_eq!(send(&service, with_token(TOKEN)).await.status(), status);
        }
        // The breaker is open: who is not remembered is refused at once, and told when to come back.
        let refused = send(&service, with_token("bob-token-1")).await;
        assert_eq!(refused.status(), 503);
        assert_eq!(field(refused.headers(), "retry-after"), Some("1"));
        hands.advance(TTL);
        assert_eq!(send(&service, with_token(TOKEN)).await.status(), 503, "the bound is over");
        remote.release();
    }
}

/// Threads look up while one changes a grant and tells it, time passes, and the store fails now and then: who begins after
/// a change was told never sees an older version, neither fresh, nor stale, nor of a refresh that was under way. If it was told
/// that anything may have changed, an older version is seen only while the store fails, and never after a newer one.
#[test]
fn no_thread_sees_a_version_older_than_was_told() {
    use std::sync::atomic::AtomicU64;
    for round in 0..6_u64 {
        let (current, told, asked) = (Arc::new(AtomicU64::new(0)), AtomicU64::new(0), Arc::new(AtomicU64::new(0)));
        let (hands, is_over) = (Hands::default(), AtomicBool::new(false));
        let (version, count, clock) = (Arc::clone(&current), asked, hands.clone());
        // How many lookups have failed, and how many are about to.
        let (failures, failing) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (newest, failed, to_fail) = (AtomicU64::new(0), Arc::clone(&failures), Arc::clone(&failing));
        let store = from_fn(move |_digest| {
            let (version, count) = (Arc::clone(&version), Arc::clone(&count));
            let (failed, to_fail) = (Arc::clone(&failed), Arc::clone(&to_fail));
            async move {
                let fails = count.fetch_add(1, Ordering::SeqCst) % 5 == 4;
                to_fail.fetch_add(u64::from(fails), Ordering::SeqCst);
                let seen = version.load(Ordering::SeqCst);
                tokio::task::yield_now().await;
                failed.fetch_add(u64::from(fails), Ordering::SeqCst);
                to_fail.fetch_sub(u64::from(fails), Ordering::SeqCst);
                if fails { Err("down") } else { Ok(Some(Grant::new("alice", seen).with_subject("everybody"))) }
            }
        });
        let cache = CachedStore::new(store, TTL).unwrap().with_clock(move || Duration::from_nanos(clock.ns()));
        let cache = cache.with_stale_on_error(1_000 * TTL).unwrap();
        let cache = cache.with_stale_while_revalidate(10 * TTL, |refresh| _ = tokio::spawn(refresh)).unwrap();
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..2_u64)
                .map(|reader| {
                    let (cache, told, hands) = (&cache, &told, &hands);
                    let (newest, failures, failing) = (&newest, &failures, &failing);
                    scope.spawn(move || {
                        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                        runtime.block_on(async {
                            for at in 0..5_000_u64 {
                                let (oldest, newest_before) =
                                    (told.load(Ordering::SeqCst), newest.load(Ordering::SeqCst));
                                let failures_before = failures.load(Ordering::SeqCst);
                                let is_failing = failing.load(Ordering::SeqCst) > 0;
                                if let Ok(found) = cache.lookup(&BearerToken::new(TOKEN)).await {
                                    let seen = *found.unwrap().principal();
                                    let may_be_outdated = round % 4 == 3
                                        && (is_failing || failures.load(Ordering::SeqCst) > failures_before);
                                    assert!(seen >= oldest || may_be_outdated, "{seen} was over, {oldest} was told");
                                    assert!(seen >= newest_before, "{seen} after {newest_before}");
                                    newest.fetch_max(seen, Ordering::SeqCst);
                                }
                                match (at + reader) % 7 {
                                    0 => hands.advance(TTL),
                                    3 => tokio::task::yield_now().await,
                                    _ => {}
                                }
                            }
                        });
                    })
                })
                .collect();
            scope.spawn(|| {
                while !is_over.load(Ordering::SeqCst) {
                    let version = current.fetch_add(1, Ordering::SeqCst) + 1;
                    cache.invalidate(&match round % 4 {
                        0 => Invalidation::Grant("alice".into()),
                        1 => Invalidation::Subject("everybody".into()),
                        2 => Invalidation::Token(TokenDigest::of(TOKEN)),
                        _ => Invalidation::Everything,
                    });
                    told.store(version, Ordering::SeqCst);
                    std::thread::yield_now();
                }
            });
            let ended: Vec<_> = readers.into_iter().map(|reader| reader.join()).collect();
            is_over.store(true, Ordering::SeqCst);
            assert!(ended.iter().all(Result::is_ok), "a reader saw what was over");
        });
    }
}
