//! Stores made of other stores: `map`, `try_map`, `first_of`, `by_prefix`.

use std::convert::Infallible;
use std::fmt::Debug;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use tollgate::store::contract::Contract;
use tollgate::store::{
    BreakerState, CachedStore, CircuitBreaker, DuplicatePrefixError, ImmediateStore, Invalidation, by_prefix, first_of,
    from_fn, map, try_map,
};
use tollgate::{
    AuthLayer, BearerToken, BoxStore, CurrentGrant, Grant, MemoryStore, Quota, StoreError, Subject, TokenDigest,
    TokenStore,
};
use tower::Layer;

use crate::kit::*;

const TTL: Duration = Duration::from_secs(60);
const TIMEOUT: Duration = Duration::from_secs(5);
const ANOTHER: &str = "tg_another_token_of_alice";

fn empty() -> MemoryStore<User> {
    MemoryStore::new()
}

fn slow_empty() -> BoxStore<User> {
    pending(empty())
}

fn down() -> BoxStore<User> {
    BoxStore::new(from_fn(|_| async {
        tokio::task::yield_now().await;
        Err::<Option<Grant<User>>, _>(io::Error::other("connection reset"))
    }))
}

/// Returns a store that counts the lookups that were polled.
fn counted(inner: MemoryStore<User>, polled: &Arc<AtomicUsize>) -> BoxStore<User> {
    let polled = Arc::clone(polled);
    BoxStore::new(from_fn(move |digest| {
        let (inner, polled) = (inner.clone(), Arc::clone(&polled));
        async move {
            polled.fetch_add(1, Ordering::SeqCst);
            tokio::task::yield_now().await;
            Ok::<_, Infallible>(inner.get(digest).map(|grant| Grant::clone(&grant)))
        }
    }))
}

/// Maps by an asynchronous function that waits and returns the grant unchanged.
fn checked_later(store: impl TokenStore<Principal = User>) -> impl TokenStore<Principal = User> + Debug {
    let store = BoxStore::new(store);
    try_map(store, |grant| async move {
        tokio::task::yield_now().await;
        Ok::<_, Infallible>(Some(grant))
    })
}

async fn found<T: TokenStore>(store: &T, token: &str) -> Result<Option<Arc<Grant<T::Principal>>>, StoreError> {
    store.lookup(&BearerToken::new(token)).await.map_err(StoreError::new)
}

async fn status<T: TokenStore>(store: T, token: &str) -> u16 {
    let service = AuthLayer::with_timeout(store, TIMEOUT).layer(echo());
    send(&service, with_token(token)).await.status().as_u16()
}

mod contract {
    use super::*;

    async fn check<T: TokenStore + Debug>(store: T) {
        Contract::new(store).knows(TOKEN, "alice").knows(ANOTHER, "alice").has_revoked("tg_gone").check().await;
    }

    #[tokio::test]
    async fn mapped_stores_fulfil_it() {
        check(map(memory(), |grant| grant)).await;
        check(map(slow(), |grant| Arc::new(grant.with_principal(17)))).await;
        check(checked_later(memory())).await;
        check(checked_later(slow())).await;
        check(map(slow(), |grant| grant).clone()).await;
        check(CachedStore::new(checked_later(map(slow(), |grant| grant)), TTL).unwrap()).await;
        check(checked_later(CachedStore::new(slow(), TTL).unwrap())).await;
        check(CircuitBreaker::with_timeout(checked_later(slow()), TIMEOUT)).await;
    }

    #[tokio::test]
    async fn stores_asked_in_turn_fulfil_it() {
        check(first_of(memory(), empty())).await;
        check(first_of(empty(), memory())).await;
        check(first_of(slow_empty(), memory())).await;
        check(first_of(empty(), slow())).await;
        check(first_of(slow_empty(), slow())).await;
        check(first_of(slow(), slow_empty())).await;
        let (one, other) = (memory(), memory());
        one.revoke(TokenDigest::of(TOKEN));
        other.revoke(TokenDigest::of(ANOTHER));
        let cached = |memory| CachedStore::new(counted(memory, &Arc::default()), TTL).unwrap();
        check(first_of(cached(one.clone()), first_of(slow_empty(), cached(other.clone())))).await;
        check(CachedStore::new(first_of(checked_later(one), checked_later(other)), TTL).unwrap()).await;
    }

    #[tokio::test]
    async fn stores_by_prefix_fulfil_it() {
        check(by_prefix([("tg_", memory())]).unwrap()).await;
        check(by_prefix([("tg_", slow()), ("old_", slow_empty())]).unwrap()).await;
        check(by_prefix([("tg_a", slow()), ("", slow())]).unwrap()).await;
        check(CachedStore::new(by_prefix([("tg_", slow())]).unwrap(), TTL).unwrap()).await;
    }

    #[tokio::test]
    async fn outages_are_never_unknown_tokens() {
        async fn check_outage<T: TokenStore + Debug>(store: T) {
            Contract::new(store).knows(TOKEN, "alice").check_outage().await;
        }
        check_outage(map(down(), |grant| grant)).await;
        check_outage(checked_later(down())).await;
        check_outage(try_map(memory(), |_| async { Err::<Option<Arc<Grant<()>>>, _>("a boxed error") })).await;
        check_outage(try_map(slow(), |_| async { Err::<Option<Arc<Grant<()>>>, _>("a boxed error") })).await;
        check_outage(first_of(down(), memory())).await;
        check_outage(first_of(empty(), down())).await;
        check_outage(first_of(slow_empty(), down())).await;
        check_outage(by_prefix([("tg_", down()), ("", slow())]).unwrap()).await;
    }
}

#[test]
fn immediate_stores_stay_immediate() {
    fn check<T: TokenStore + ImmediateStore>(store: T) {
        let answer = |token: &str| store.lookup(&BearerToken::new(token)).ready().and_then(Result::ok);
        assert!(matches!(answer(TOKEN), Some(Some(_))));
        assert!(matches!(answer("tg_unknown"), Some(None)));
        let _ = AuthLayer::new(store);
    }
    check(map(memory(), |grant| grant));
    check(first_of(empty(), memory()));
    check(by_prefix([("tg_", memory())]).unwrap());
    check(map(first_of(memory(), by_prefix([("tg_", memory())]).unwrap()), |grant| grant));
}

#[tokio::test]
async fn map_changes_the_quota_and_the_principal_of_a_request() {
    let quota = Quota::per_minute(600);
    for store in [BoxStore::new(memory()), slow()] {
        let store = map(store, move |grant| {
            Arc::new(Grant::clone(&grant).with_quota(quota).with_principal(grant.principal().0.len()))
        });
        let service = AuthLayer::with_timeout(store, TIMEOUT).layer(echo());
        let response = send(&service, with_token(TOKEN)).await;
        let grant = response.extensions().get::<CurrentGrant>().unwrap();
        assert_eq!((grant.quota(), grant.principal::<usize>()), (Some(quota), Some(&5)));
    }
}

#[tokio::test]
async fn an_unchanged_grant_is_the_grant_of_the_store() {
    let tokens = memory();
    let mapped = found(&map(tokens.clone(), |grant| grant), TOKEN).await.unwrap().unwrap();
    assert!(Arc::ptr_eq(&mapped, &tokens.get(TokenDigest::of(TOKEN)).unwrap()));
    let mapped = found(&checked_later(tokens.clone()), TOKEN).await.unwrap().unwrap();
    assert!(Arc::ptr_eq(&mapped, &tokens.get(TokenDigest::of(TOKEN)).unwrap()));
}

#[test]
fn with_principal_keeps_all_other_data() {
    let now = SystemTime::now();
    let grant = Grant::new("key", 1).with_subject("alice").with_scopes(["trade"]).unwrap();
    let grant = grant.with_quota(Quota::per_minute(60)).with_not_before(now).with_expiry(now + TTL);
    let tokens = MemoryStore::from_iter([(TokenDigest::of("old"), grant.with_sender_constraint())]);
    tokens.rotate(TokenDigest::of("old"), TokenDigest::of("new"), TTL).unwrap();
    for token in ["old", "new"] {
        let grant = tokens.get(TokenDigest::of(token)).unwrap();
        let other = grant.with_principal("Alice");
        assert_eq!(*other.principal(), "Alice");
        assert_eq!((other.is_rotated(), other.is_sender_constrained()), (token == "old", true));
        assert_eq!(format!("{other:?}"), format!("{grant:?}"));
    }
}

#[tokio::test]
async fn an_expired_grant_is_rejected_after_its_user_was_found() {
    let expired = Grant::new("alice", ()).with_expiry(SystemTime::UNIX_EPOCH + TTL);
    let tokens = MemoryStore::from_iter([(TokenDigest::of(TOKEN), expired)]);
    let store = try_map(tokens, |grant| async move { Ok::<_, Infallible>(Some(Arc::new(grant.with_principal(1)))) });
    assert_eq!(status(store, TOKEN).await, 401);
}

/// Users of a service, in a table beside the tokens.
#[derive(Clone, Default)]
struct Users {
    is_deleted: Arc<AtomicBool>,
    is_down: Arc<AtomicBool>,
    row_is_unreadable: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
}

impl Users {
    async fn find(&self, id: &Subject) -> Result<Option<String>, StoreError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        tokio::task::yield_now().await;
        match (self.is_down.load(Ordering::SeqCst), self.row_is_unreadable.load(Ordering::SeqCst)) {
            (true, _) => Err(StoreError::new("connection reset")),
            (_, true) => Err(StoreError::for_token("a bad row")),
            _ => Ok((!self.is_deleted.load(Ordering::SeqCst)).then(|| id.to_string())),
        }
    }

    fn of(&self, store: impl TokenStore) -> BoxStore<String> {
        let users = self.clone();
        BoxStore::new(try_map(store, move |grant| {
            let users = users.clone();
            async move {
                let user = users.find(grant.subject()).await?;
                Ok::<_, StoreError>(user.map(|user| Arc::new(grant.with_principal(user))))
            }
        }))
    }
}

#[tokio::test]
async fn a_deleted_user_is_401_and_an_outage_503() {
    for store in [BoxStore::new(memory()), slow()] {
        let users = Users::default();
        let service = AuthLayer::with_timeout(users.of(store), TIMEOUT).layer(echo());
        let response = send(&service, with_token(TOKEN)).await;
        assert_eq!(response.extensions().get::<CurrentGrant>().unwrap().principal::<String>().unwrap(), "alice");
        all_at_once(
            &service,
            (0..20).map(|i| if i % 2 == 0 { (with_token(TOKEN), 200) } else { (with_token("tg_x"), 401) }),
        )
        .await;
        assert_eq!(users.asked.load(Ordering::SeqCst), 11, "no query for unknown tokens");
        users.is_deleted.store(true, Ordering::SeqCst);
        assert_eq!(send(&service, with_token(TOKEN)).await.status(), 401);
        users.is_down.store(true, Ordering::SeqCst);
        assert_eq!(send(&service, with_token(TOKEN)).await.status(), 503);
        assert_eq!(send(&service, with_token("tg_x")).await.status(), 401, "an unknown token needs no user");
    }
}

#[tokio::test]
async fn a_circuit_breaker_counts_outages_of_the_function_only() {
    let users = Users::default();
    let breaker = CircuitBreaker::with_timeout(users.of(slow()), TIMEOUT);
    for (fault, state) in [(&users.row_is_unreadable, BreakerState::Closed), (&users.is_down, BreakerState::Open)] {
        fault.store(true, Ordering::SeqCst);
        for _ in 0..10 {
            assert!(found(&breaker, TOKEN).await.is_err());
        }
        assert_eq!(breaker.state(), state);
    }
}

#[tokio::test]
async fn a_cached_map_runs_the_function_for_misses_only() {
    let users = Users::default();
    let cache = CachedStore::builder(users.of(slow()), TTL).with_stale_on_error(TTL).build().unwrap();
    for _ in 0..3 {
        assert!(found(&cache, TOKEN).await.unwrap().is_some());
    }
    assert_eq!(users.asked.swap(0, Ordering::SeqCst), 1);
    // The user table is down: the cache serves the mapped grant.
    users.is_down.store(true, Ordering::SeqCst);
    cache.invalidate(&Invalidation::Everything);
    assert_eq!(found(&cache, TOKEN).await.unwrap().unwrap().principal(), "alice");
    assert_eq!(users.asked.swap(0, Ordering::SeqCst), 1);
    // The user was deleted, and the service invalidates the subject.
    users.is_down.store(false, Ordering::SeqCst);
    users.is_deleted.store(true, Ordering::SeqCst);
    cache.invalidate(&Invalidation::Subject("alice".into()));
    assert!(found(&cache, TOKEN).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_function_that_hangs_is_ended_by_the_timeout_of_the_gate() {
    let hangs = |store| try_map(store, |_| std::future::pending::<Result<Option<Arc<Grant<()>>>, Infallible>>());
    assert_eq!(status(hangs(BoxStore::new(memory())), TOKEN).await, 503);
    assert_eq!(status(hangs(slow()), TOKEN).await, 503);
}

#[tokio::test(start_paused = true)]
async fn a_circuit_breaker_ends_a_function_that_hangs_and_the_cache_serves_the_old_grant() {
    let hangs = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&hangs);
    let store = try_map(slow(), move |grant| {
        let hangs = switch.load(Ordering::SeqCst);
        async move {
            if hangs {
                std::future::pending::<()>().await;
            }
            Ok::<_, Infallible>(Some(grant))
        }
    });
    let breaker = CircuitBreaker::with_timeout(store, TIMEOUT / 2);
    let cache = CachedStore::builder(breaker, TTL).with_stale_on_error(TTL).build().unwrap();
    let service = AuthLayer::with_timeout(cache.clone(), TIMEOUT).layer(echo());
    assert_eq!(send(&service, with_token(TOKEN)).await.status(), 200);
    hangs.store(true, Ordering::SeqCst);
    cache.invalidate(&Invalidation::Everything);
    all_at_once(&service, (0..20).map(|_| (with_token(TOKEN), 200))).await;
    assert_eq!(send(&service, with_token(ANOTHER)).await.status(), 503, "not in the cache");
}

#[tokio::test]
async fn the_second_store_is_asked_for_unknown_tokens_only() {
    for (first, polls) in
        [(BoxStore::new(memory()), 0), (slow(), 0), (BoxStore::new(empty()), 1), (slow_empty(), 1), (down(), 0)]
    {
        let polled = Arc::default();
        let store = first_of(first, counted(memory(), &polled));
        _ = found(&store, TOKEN).await;
        assert_eq!(polled.load(Ordering::SeqCst), polls);
    }
}

#[tokio::test]
async fn an_outage_of_the_first_store_is_503_for_all_tokens() {
    assert_eq!(status(first_of(down(), memory()), TOKEN).await, 503);
    assert_eq!(status(first_of(empty(), down()), TOKEN).await, 503);
    assert_eq!(status(first_of(memory(), down()), TOKEN).await, 200);
    assert_eq!(status(first_of(slow_empty(), memory()), TOKEN).await, 200);
    assert_eq!(status(first_of(slow_empty(), empty()), TOKEN).await, 401);
}

#[tokio::test]
async fn the_longest_prefix_selects_the_store() {
    let store = |name: &'static str| {
        let tokens = ["a_1", "a_b_1", "c_1", "A_1", "a"];
        tokens.map(|token| (TokenDigest::of(token), Grant::new(name, ()))).into_iter().collect::<MemoryStore<()>>()
    };
    let all = [("", store("rest")), ("a_", store("short")), ("a_b_", store("long"))];
    let (front, back) = (all.clone(), all.into_iter().rev());
    for stores in [by_prefix(front).unwrap(), by_prefix(back).unwrap()] {
        for (token, name) in [("a_1", "short"), ("a_b_1", "long"), ("c_1", "rest"), ("A_1", "rest"), ("a", "rest")] {
            assert_eq!(found(&stores, token).await.unwrap().unwrap().id().as_str(), name, "{token}");
        }
    }
    let without_rest = by_prefix([("a_b_", store("long"))]).unwrap();
    for token in ["a_1", "c_1", "a"] {
        assert!(found(&without_rest, token).await.unwrap().is_none(), "{token}");
    }
}

#[test]
fn duplicate_prefixes_return_an_error() {
    let error: DuplicatePrefixError = by_prefix([("a_", empty()), ("b_", empty()), ("a_", memory())]).unwrap_err();
    assert_eq!(error.to_string(), "duplicate token prefix: \"a_\"");
}

#[tokio::test]
async fn an_outage_of_one_prefix_does_not_affect_the_others() {
    let stores = || by_prefix([("tg_", slow()), ("old_", down())]).unwrap();
    for (token, expected) in [(TOKEN, 200), ("tg_unknown", 401), ("old_token", 503), ("neither", 401)] {
        assert_eq!(status(stores(), token).await, expected, "{token}");
    }
}

/// The failure throttle calls `is_cached`.
#[tokio::test]
async fn combinators_forward_is_cached() {
    async fn check(store: impl TokenStore) {
        let is_cached = |token: &str| store.is_cached(&BearerToken::new(token));
        assert!(is_cached(TOKEN) && !is_cached(ANOTHER) && !is_cached("neither"));
    }
    let cache = CachedStore::new(slow(), TTL).unwrap();
    assert!(found(&cache, TOKEN).await.unwrap().is_some());
    check(map(cache.clone(), |grant| grant)).await;
    check(checked_later(cache.clone())).await;
    check(first_of(cache.clone(), empty())).await;
    check(first_of(slow_empty(), cache.clone())).await;
    check(by_prefix([("tg_", cache)]).unwrap()).await;
}
