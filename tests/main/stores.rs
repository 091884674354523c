//! Stores: the store contract and each store's own guarantees.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tollgate::store::contract::Contract;
use tollgate::store::{RotateError, from_fn, from_fn_with};
use tollgate::{Answer, BearerToken, BoxStore, Grant, GrantId, MemoryStore, Subject, TokenDigest, TokenStore};

use crate::kit::*;

fn filled() -> MemoryStore<User> {
    let store = memory();
    store.insert(TokenDigest::of("tg_gone_token"), Grant::new("bob", User("Bob"))).unwrap();
    store.revoke(TokenDigest::of("tg_gone_token"));
    store
}

async fn check<T: TokenStore + std::fmt::Debug>(store: T) {
    Contract::new(store)
        .knows(TOKEN, "alice")
        .knows("tg_another_token_of_alice", "alice")
        .has_revoked("tg_gone_token")
        .check()
        .await;
}

#[tokio::test]
async fn every_store_fulfils_the_contract() {
    check(filled()).await;
    check(Arc::new(filled())).await;
    check(BoxStore::new(filled())).await;
    check(BoxStore::new(Named(waiting()))).await;
    check(Named(waiting())).await;
    let store = filled();
    let closure = from_fn(move |digest| {
        let store = store.clone();
        async move { Ok::<_, io::Error>(store.get(digest).map(|grant| Grant::clone(&grant))) }
    });
    check(Named(closure)).await;
}

fn waiting() -> impl TokenStore<Principal = User> {
    from_fn_with(filled(), |store, digest| async move {
        tokio::task::yield_now().await;
        Ok::<_, Infallible>(store.get(digest).map(|grant| Grant::clone(&grant)))
    })
}

/// Implements `Debug` for closures, which the contract requires.
struct Named<T>(T);

impl<T> std::fmt::Debug for Named<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Named")
    }
}

impl<T: TokenStore> TokenStore for Named<T> {
    type Principal = T::Principal;
    type Error = T::Error;
    type Future = T::Future;

    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
        self.0.lookup(token)
    }
}

#[tokio::test]
async fn a_failing_store_returns_an_error() {
    let down = from_fn(|_| async { Err::<Option<Grant<()>>, _>(io::Error::other("connection reset")) });
    Contract::new(Named(down)).knows(TOKEN, "alice").check_outage().await;
    let boxed = BoxStore::new(from_fn(|_| async { Err::<Option<Grant<()>>, _>("a boxed error") }));
    Contract::new(boxed).knows(TOKEN, "alice").check_outage().await;
}

mod broken {
    //! The contract must detect these broken stores.
    use super::*;

    async fn finds(store: impl TokenStore) -> String {
        let contract = Contract::new(Named(store)).knows(TOKEN, "alice").knows("tg_another_token_of_alice", "alice");
        let failed = tokio::spawn(contract.check()).await.expect_err("the contract is broken").into_panic();
        failed.downcast::<String>().map_or_else(|other| (*other.downcast::<&str>().unwrap()).to_owned(), |text| *text)
    }

    fn knowing(known: impl Fn(&[u8]) -> Option<&'static str> + Send + Sync + 'static) -> impl TokenStore {
        struct Knowing<F>(F);
        impl<F: Fn(&[u8]) -> Option<&'static str> + Send + Sync + 'static> TokenStore for Knowing<F> {
            type Principal = ();
            type Error = Infallible;
            type Future = tollgate::Immediate<tollgate::store::Lookup<(), Infallible>>;
            fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
                Answer::Ready(Ok((self.0)(token.expose()).map(|subject| Arc::new(Grant::new(subject, ())))))
            }
        }
        Knowing(known)
    }

    #[tokio::test]
    async fn wrong_answers_are_detected() {
        assert!(finds(knowing(|_| None)).await.contains("a known token has its grant"));
        assert!(finds(knowing(|_| Some("alice"))).await.contains("an unknown token has no grant"));
        assert!(finds(knowing(|_| Some("mallory"))).await.contains("a known token has its grant"));
        let prefix = |token: &[u8]| (token.len() > 10 && TOKEN.as_bytes().starts_with(&token[..10])).then_some("alice");
        let either = move |token: &[u8]| prefix(token).or((token == b"tg_another_token_of_alice").then_some("alice"));
        assert!(finds(knowing(either)).await.contains("a token like a known one has no grant"));
        let folding = |token: &[u8]| {
            let known = [TOKEN, "tg_another_token_of_alice"];
            known.iter().any(|known| known.as_bytes().eq_ignore_ascii_case(token)).then_some("alice")
        };
        assert!(finds(knowing(folding)).await.contains("a token like a known one has no grant"));
    }

    #[tokio::test]
    #[should_panic(expected = "shows a token")]
    async fn a_store_that_prints_tokens_is_detected() {
        #[derive(Debug)]
        struct Leaky {
            #[expect(dead_code, reason = "printed")]
            tokens: Vec<&'static str>,
            store: MemoryStore<User>,
        }
        impl TokenStore for Leaky {
            type Principal = User;
            type Error = Infallible;
            type Future = <MemoryStore<User> as TokenStore>::Future;
            fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
                self.store.lookup(token)
            }
        }
        check(Leaky { tokens: vec![TOKEN], store: filled() }).await;
    }

    #[tokio::test]
    #[should_panic(expected = "returns an error")]
    async fn a_store_that_hides_an_outage_is_detected() {
        Contract::new(memory()).knows(TOKEN, "alice").check_outage().await;
    }
}

#[test]
fn insert_into_an_existing_token_returns_the_grant() {
    let store = MemoryStore::new();
    store.insert(TokenDigest::of("t"), Grant::new("first", 1)).unwrap();
    let error = store.insert(TokenDigest::of("t"), Grant::new("second", 2)).unwrap_err();
    assert_eq!((error.0.id().as_str(), *error.0.principal()), ("second", 2));
    assert_eq!(store.get(TokenDigest::of("t")).unwrap().id().as_str(), "first");
    assert_eq!(store.replace(TokenDigest::of("t"), *error.0).unwrap().id().as_str(), "first");
    assert_eq!(store.get(TokenDigest::of("t")).unwrap().id().as_str(), "second");
    assert_eq!(store.revoke(TokenDigest::of("t")).unwrap().id().as_str(), "second");
    assert!(store.revoke(TokenDigest::of("t")).is_none());
    assert!(store.is_empty());
}

#[test]
fn a_token_and_its_digest_find_the_same_entry() {
    let store = MemoryStore::new();
    store.insert(TokenDigest::from_bytes(TokenDigest::of("t").to_bytes()), Grant::new("g", ())).unwrap();
    assert!(store.get(TokenDigest::of("t")).is_some());
    assert!(store.get(TokenDigest::of(String::from("t"))).is_some());
}

#[test]
fn a_rotation_keeps_the_subject_and_starts_a_grace_period() {
    let hour = Duration::from_secs(3_600);
    let own = SystemTime::now() + Duration::from_secs(600);
    let store = MemoryStore::from_iter([
        (TokenDigest::of("forever"), Grant::new("a", ()).with_subject("s")),
        (TokenDigest::of("short"), Grant::new("b", ()).with_expiry(own)),
        (TokenDigest::of("at-once"), Grant::new("c", ())),
    ]);
    let begin = SystemTime::now();
    let new = store.rotate(TokenDigest::of("forever"), TokenDigest::of("forever-2"), hour).unwrap();
    assert_eq!((new.id().as_str(), new.subject().as_str(), new.expires_at()), ("a", "s", None));
    let end = store.get(TokenDigest::of("forever")).unwrap().expires_at().unwrap();
    assert!(begin + hour <= end && end <= SystemTime::now() + hour);
    assert_eq!(
        store.get(TokenDigest::of("forever-2")).unwrap().subject(),
        store.get(TokenDigest::of("forever")).unwrap().subject()
    );

    store.rotate(TokenDigest::of("short"), TokenDigest::of("short-2"), hour).unwrap();
    assert_eq!(
        store.get(TokenDigest::of("short")).unwrap().expires_at(),
        store.get(TokenDigest::of("short-2")).unwrap().expires_at(),
        "never past its own expiry"
    );

    store.rotate(TokenDigest::of("at-once"), TokenDigest::of("at-once-2"), Duration::ZERO).unwrap();
    assert!(store.get(TokenDigest::of("at-once")).is_none());
    store.rotate(TokenDigest::of("at-once-2"), TokenDigest::of("at-once-3"), Duration::MAX).unwrap();
    assert_eq!(store.get(TokenDigest::of("at-once-2")).unwrap().expires_at(), None);

    assert_eq!(store.revoke_grant(&GrantId::from("a")), 2);
    assert_eq!(store.revoke_subject(&Subject::from("b")), 2);
}

#[test]
fn purge_removes_expired_tokens() {
    let (hour, now) = (Duration::from_secs(3_600), SystemTime::now());
    let store = MemoryStore::from_iter([
        (TokenDigest::of("rotated"), Grant::new("a", ())),
        (TokenDigest::of("brief"), Grant::new("b", ()).with_expiry(now + 2 * hour)),
        (TokenDigest::of("for-ever"), Grant::new("c", ())),
    ]);
    store.rotate_at(TokenDigest::of("rotated"), TokenDigest::of("new"), hour, now).unwrap();
    let last = |end: SystemTime| end - Duration::from_nanos(1);
    assert_eq!((store.purge(last(now + hour)), store.purge(now + hour)), (0, 1));
    assert_eq!((store.purge(last(now + 2 * hour)), store.purge(now + 2 * hour)), (0, 1));
    assert!(
        ["new", "for-ever"].into_iter().all(|token| store.get(TokenDigest::of(token)).is_some()) && store.len() == 2
    );
}

/// Counts the principals that exist.
struct Counted(Arc<()>);

#[test]
fn a_chain_of_rotations_shares_one_principal_and_frees_it() {
    let exists = Arc::new(());
    let store = MemoryStore::from_iter([(TokenDigest::of("0"), Grant::new("id", Counted(Arc::clone(&exists))))]);
    let first = store.get(TokenDigest::of("0")).unwrap();
    let first_exists = Arc::downgrade(&first);
    for i in 0..10 {
        let (old, new) = (TokenDigest::of(i.to_string()), TokenDigest::of((i + 1).to_string()));
        let grace = Duration::from_secs(i % 2 * 3_600);
        let grant = store.rotate(old, new, grace).unwrap();
        assert!(std::ptr::eq(grant.principal(), first.principal()));
        assert_eq!((grant.id().as_str(), grant.subject().as_str()), ("id", "id"));
        // In a chain, only the first grant is kept beside the newest one.
        let chain = Arc::downgrade(&grant);
        drop(grant);
        assert_eq!((chain.strong_count(), Arc::strong_count(&first.principal().0)), (1, 2));
    }
    drop(first);
    assert_eq!(store.len(), 6, "the newest token, and five within their grace period");
    assert_eq!(first_exists.strong_count(), store.len());
    assert_eq!(store.revoke_grant(&"id".into()), 6);
    assert!(first_exists.upgrade().is_none());
    assert_eq!(Arc::strong_count(&exists), 1, "the principal was dropped");
}

#[test]
fn grants_of_one_plan_share_their_scopes_under_concurrent_changes() {
    let store = MemoryStore::new();
    let plan = |i: usize| {
        let scopes = ["orders:read".to_owned(), format!("plan-{}", i % 3)];
        Grant::new(format!("{i}"), ()).with_scopes(scopes).unwrap()
    };
    thread::scope(|scope| {
        for thread in 0..4 {
            let store = &store;
            scope.spawn(move || {
                for i in (0..1_000).map(|i| 4 * i + thread) {
                    let token = |of: &str| TokenDigest::of(format!("{of}{i}"));
                    store.insert(token("a"), plan(i)).unwrap();
                    // Other scopes, which are soon dropped.
                    store.insert(token("gone"), Grant::new("gone", ()).with_scopes([format!("{i}")]).unwrap()).unwrap();
                    store.rotate(token("a"), token("b"), Duration::from_secs(3_600)).unwrap();
                    store.revoke(token("gone"));
                }
            });
        }
    });
    assert_eq!(store.len(), 8_000);
    assert_eq!(lists_of_scopes(&store), 6, "those of three plans, and those of their rotated tokens");
    store.replace_all((0..100).map(|i| (TokenDigest::of(format!("{i}")), plan(i))));
    assert_eq!(lists_of_scopes(&store), 3);
}

/// Returns the number of lists of scopes in memory.
fn lists_of_scopes(store: &MemoryStore<()>) -> usize {
    let grants = store.grants();
    grants.iter().map(|grant| std::ptr::from_ref(grant.scopes())).collect::<std::collections::HashSet<_>>().len()
}

#[test]
fn a_failed_rotation_changes_nothing() {
    let hour = Duration::from_secs(3_600);
    let store = MemoryStore::from_iter([
        (TokenDigest::of("one"), Grant::new("a", ())),
        (TokenDigest::of("two"), Grant::new("b", ())),
    ]);
    store.rotate(TokenDigest::of("one"), TokenDigest::of("one-2"), hour).unwrap();
    let end = store.get(TokenDigest::of("one")).unwrap().expires_at();
    // A successor of a token in its grace period would expire with that token, unnoticed.
    for (old, new, why) in [
        ("nowhere", "x", RotateError::NotFound),
        ("one", "x", RotateError::Rotated),
        ("one-2", "two", RotateError::Occupied),
        ("one-2", "one", RotateError::Occupied),
        ("two", "two", RotateError::Occupied),
    ] {
        for grace in [Duration::ZERO, hour, Duration::MAX] {
            assert_eq!(
                store.rotate(TokenDigest::of(old), TokenDigest::of(new), grace).unwrap_err(),
                why,
                "{old} to {new}"
            );
        }
    }
    let ids: Vec<_> =
        ["one", "one-2", "two"].map(|token| store.get(TokenDigest::of(token)).unwrap().id().to_string()).into();
    assert_eq!(ids, ["a", "a", "b"]);
    assert_eq!((store.len(), store.get(TokenDigest::of("one")).unwrap().expires_at()), (3, end));

    store.rotate(TokenDigest::of("one-2"), TokenDigest::of("one-3"), Duration::MAX).unwrap();
    assert!(store.get(TokenDigest::of("one-2")).unwrap().is_rotated(), "even with an unlimited grace period");
    assert_eq!(store.rotate(TokenDigest::of("one-2"), TokenDigest::of("x"), hour).unwrap_err(), RotateError::Rotated);
}

#[test]
fn rotate_at_uses_the_given_time() {
    let now = UNIX_EPOCH + Duration::from_secs(1_000);
    let store = MemoryStore::from_iter([(TokenDigest::of("old"), Grant::new("a", ()))]);
    let new = store.rotate_at(TokenDigest::of("old"), TokenDigest::of("new"), Duration::from_secs(60), now).unwrap();
    assert_eq!(store.get(TokenDigest::of("old")).unwrap().expires_at(), Some(now + Duration::from_secs(60)));
    assert_eq!((new.expires_at(), new.is_rotated()), (None, false));
}

#[test]
fn a_principal_that_cannot_be_cloned_is_shared() {
    struct User(&'static str);
    let store = MemoryStore::from_iter([(TokenDigest::of("old"), Grant::new("a", User("Alice")))]);
    let new = store.rotate(TokenDigest::of("old"), TokenDigest::of("new"), Duration::from_secs(60)).unwrap();
    assert_eq!(new.principal().0, "Alice");
    assert!(std::ptr::eq(store.get(TokenDigest::of("old")).unwrap().principal(), new.principal()));
}

#[test]
fn replace_all_never_exposes_missing_or_older_tokens() {
    let generation =
        |g: usize| (0..200).map(move |i| (TokenDigest::of(format!("token-{i}")), Grant::new(format!("{g}"), g)));
    let store = MemoryStore::from_iter(generation(0));
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for g in 1..200 {
                store.replace_all(generation(g));
            }
            done.store(true, Ordering::SeqCst);
        });
        scope.spawn(|| {
            let mut newest = 0;
            while !done.load(Ordering::SeqCst) {
                for i in 0..200 {
                    // No token is ever missing, and no generation is older than one seen before.
                    let seen = *store.get(TokenDigest::of(format!("token-{i}"))).expect("never missing").principal();
                    assert!(seen >= newest, "{seen} after {newest}");
                    newest = seen;
                }
            }
        });
    });
}

/// Checks a rotation concurrent with a revocation: it moves a token from a shard not yet visited to a visited one.
#[test]
fn a_concurrent_rotation_does_not_escape_a_revocation() {
    let others = (0..2_000).map(|i| (TokenDigest::of(format!("other-{i}")), Grant::new("other", ())));
    let store = MemoryStore::from_iter(others);
    for round in 0..300 {
        let first = format!("{round}-0");
        store.insert(TokenDigest::of(&first), Grant::new("g", ()).with_subject("s")).unwrap();
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                let mut at = 0;
                while !done.load(Ordering::SeqCst) {
                    match store.rotate(
                        TokenDigest::of(format!("{round}-{at}")),
                        TokenDigest::of(format!("{round}-{}", at + 1)),
                        Duration::ZERO,
                    ) {
                        Ok(_) => at += 1,
                        Err(_) => break,
                    }
                }
            });
            scope.spawn(|| {
                match round % 2 {
                    0 => store.revoke_subject(&Subject::from("s")),
                    _ => store.revoke_grant(&GrantId::from("g")),
                };
                done.store(true, Ordering::SeqCst);
            });
        });
        assert_eq!(store.len(), 2_000, "round {round}: a token survived the revocation");
    }
}

#[test]
fn the_old_token_works_throughout_a_rotation() {
    let store = MemoryStore::from_iter([(TokenDigest::of("token-0"), Grant::new("g", ()))]);
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            for i in 0..2_000 {
                store
                    .rotate(
                        TokenDigest::of(format!("token-{i}")),
                        TokenDigest::of(format!("token-{}", i + 1)),
                        Duration::from_secs(60),
                    )
                    .unwrap();
            }
            done.store(true, Ordering::SeqCst);
        });
        scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                assert!(store.get(TokenDigest::of("token-0")).is_some(), "the old token works during its grace period");
            }
        });
    });
    assert_eq!(store.len(), 2_001);
}
