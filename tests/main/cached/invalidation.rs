//! Invalidations: immediate, complete, and nothing else is removed.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tollgate::store::{CachedStore, Invalidation, from_fn_with};
use tollgate::{BearerToken, BoxStore, Grant, TokenDigest, TokenStore as _};

use crate::kit::remote::*;
use crate::kit::*;

/// A database reports `Everything` after a reconnection, when it may still fail.
#[tokio::test]
async fn outdated_entries_are_served_only_while_the_store_fails() {
    for (stale, bound) in [(None, TTL), (Some(30 * SECOND), TTL + 30 * SECOND)] {
        let (remote, hands) = (Remote::new(), Hands::default());
        let mut builder = remote.builder(&hands).with_stale_while_revalidate(TTL, |refresh| _ = tokio::spawn(refresh));
        if let Some(stale) = stale {
            builder = builder.with_stale_on_error(stale);
        }
        let cache = builder.build().unwrap();
        for token in [TOKEN, "bob-token-1", "unknown"] {
            assert!(knows(&cache, token).await.is_some());
        }
        remote.down.store(true, Ordering::SeqCst);
        cache.invalidate(&Invalidation::Everything);
        remote.asked();
        for round in 1..=3 {
            assert_eq!(cached(&cache, TOKEN), None, "the store is asked first");
            assert_eq!((knows(&cache, TOKEN).await, remote.asked()), (Some(true), round.min(1)));
            assert_eq!(knows(&cache, "alice-token-2").await, None, "never cached");
            assert_eq!(knows(&cache, "unknown").await, None);
            remote.asked();
        }
        // A named revocation removes the entry.
        cache.invalidate(&Invalidation::Grant("bob".into()));
        assert_eq!(knows(&cache, "bob-token-1").await, None);
        hands.advance(bound - Duration::from_nanos(1));
        assert_eq!(knows(&cache, TOKEN).await, Some(true), "counted from the lookup");
        hands.advance(Duration::from_nanos(1));
        assert_eq!(knows(&cache, TOKEN).await, None);
    }
}

#[tokio::test]
async fn a_new_answer_replaces_an_outdated_entry() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let cache = remote.builder(&hands).with_stale_on_error(TTL).build().unwrap();
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
    // From here on they are cached as usual.
    assert_eq!((cached(&cache, TOKEN), cached(&cache, "bob-token-1")), (Some(false), Some(true)));
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

/// The answer was read before the invalidation, so it may be outdated. It is newer than the entry.
#[tokio::test]
async fn an_outdated_answer_replaces_an_older_one() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let cache = remote.cache(&hands);
    assert_eq!(knows(&cache, "alice-token-2").await, Some(true));
    cache.invalidate(&Invalidation::Everything);
    remote.tokens.replace(TokenDigest::of("alice-token-2"), Grant::new("alice-2", ()).with_subject("another"));
    remote.hold();
    let waiting = begin(&cache, "alice-token-2").await;
    cache.invalidate(&Invalidation::Everything);
    remote.release();
    assert_eq!(waiting.await.unwrap(), Some(true));
    assert_eq!(cached(&cache, "alice-token-2"), None, "a new lookup");
    remote.down.store(true, Ordering::SeqCst);
    let found = cache.lookup(&BearerToken::new("alice-token-2")).await.unwrap().unwrap();
    assert_eq!(found.subject().as_str(), "another");
}

/// A slow answer from before a change must not replace the answer after it. Returns whether the token is in the cache, and the subject.
async fn cached_after_a_slow_grant(newer: Option<&'static str>) -> (Option<bool>, Option<String>) {
    let (asked, hands) = (Arc::new(AtomicUsize::new(0)), Hands::default());
    let (reply, slow) = tokio::sync::watch::channel(false);
    let store = from_fn_with((asked, slow), move |(asked, mut slow), _| async move {
        if asked.fetch_add(1, Ordering::SeqCst) > 0 {
            return Ok::<_, std::io::Error>(newer.map(|id| Grant::new(id, ())));
        }
        slow.wait_for(|may_reply| *may_reply).await.unwrap();
        Ok(Some(Grant::new("alice-1", ())))
    });
    let cache = CachedStore::builder(BoxStore::new(store), TTL).with_clock(hands.clock()).build().unwrap();
    let early = begin(&cache, TOKEN).await;
    // The token is changed at the server. An unrelated change prevents that the next lookup joins the slow one.
    cache.invalidate(&Invalidation::Subject("bob".into()));
    assert_eq!(knows(&cache, TOKEN).await, Some(newer.is_some()));
    reply.send_replace(true);
    assert_eq!(early.await.unwrap(), Some(true), "asked before the change");
    let is_cached = cached(&cache, TOKEN);
    let found = cache.lookup(&BearerToken::new(TOKEN)).await.unwrap();
    (is_cached, found.map(|grant| grant.subject().as_str().to_owned()))
}

#[tokio::test]
async fn a_grant_does_not_replace_a_newer_answer() {
    assert_eq!(cached_after_a_slow_grant(None).await, (Some(false), None));
    assert_eq!(cached_after_a_slow_grant(Some("alice-2")).await, (Some(true), Some("alice-2".to_owned())));
}

#[tokio::test]
async fn a_grant_replaces_a_negative_answer_of_the_same_time() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let cache = remote.builder(&hands).with_unknown_ttl(Duration::ZERO).build().unwrap();
    assert_eq!(knows(&cache, "carol-token").await, Some(false));
    remote.tokens.insert(TokenDigest::of("carol-token"), Grant::new("carol", ())).unwrap();
    assert_eq!(knows(&cache, "carol-token").await, Some(true));
    assert_eq!(cached(&cache, "carol-token"), Some(true));
}

#[tokio::test]
async fn concurrent_lookups_of_an_outdated_entry_send_one_lookup() {
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
async fn clear_removes_everything_even_while_the_store_fails() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let cache = remote.builder(&hands).with_stale_on_error(TTL).build().unwrap();
    assert_eq!((knows(&cache, TOKEN).await, knows(&cache, "unknown").await), (Some(true), Some(false)));
    remote.down.store(true, Ordering::SeqCst);
    cache.clear();
    assert_eq!((knows(&cache, TOKEN).await, knows(&cache, "unknown").await), (None, None));
    remote.down.store(false, Ordering::SeqCst);
    assert_eq!((knows(&cache, TOKEN).await, cached(&cache, TOKEN)), (Some(true), Some(true)));
}

#[tokio::test]
async fn an_answer_from_before_a_clear_is_not_cached() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let cache = remote.cache(&hands);
    remote.hold();
    let before = begin(&cache, TOKEN).await;
    cache.clear();
    remote.release();
    assert_eq!((before.await.unwrap(), cached(&cache, TOKEN)), (Some(true), None));
}

#[tokio::test]
async fn a_negative_answer_from_before_an_invalidation_is_not_cached() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let cache = remote.cache(&hands);
    remote.hold();
    let before = begin(&cache, "new").await;
    cache.invalidate(&Invalidation::Token(TokenDigest::of("new")));
    remote.release();
    assert_eq!((before.await.unwrap(), cached(&cache, "new")), (Some(false), None));
    // A newer answer replaces it as usual.
    assert_eq!((knows(&cache, "new").await, cached(&cache, "new")), (Some(false), Some(false)));
}

/// Otherwise many invalidations of unused grants would keep the cache empty.
#[tokio::test]
async fn an_unrelated_invalidation_does_not_discard_an_answer() {
    let changes = [
        Invalidation::Grant("unused".into()),
        Invalidation::Subject("unused".into()),
        Invalidation::Token(TokenDigest::of("unused")),
    ];
    for token in [TOKEN, "unknown"] {
        let (remote, hands) = (Remote::new(), Hands::default());
        // Hash collisions prevent caching. Two caches have different collisions.
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
        assert!(caches.iter().any(|cache| cached(cache, token) == Some(token == TOKEN)), "{token}");
    }
}

#[tokio::test]
async fn an_invalidation_removes_its_entries_and_no_others() {
    let all = [TOKEN, "alice-token-2", "bob-token-1", "unknown"];
    for (change, removed) in [
        (Invalidation::Token(TokenDigest::of(TOKEN)), &all[..1]),
        (Invalidation::Token(TokenDigest::of("unknown")), &all[3..]),
        (Invalidation::Grant("alice-1".into()), &all[..1]),
        (Invalidation::Subject("alice".into()), &all[..2]),
        (Invalidation::Added, &all[3..]),
        (Invalidation::Everything, &all[..]),
        (Invalidation::Grant("unused".into()), &[]),
    ] {
        let (remote, hands) = (Remote::new(), Hands::default());
        let cache = remote.cache(&hands);
        // Twice, because new entries must be removed too.
        for _ in 0..2 {
            for token in all {
                knows(&cache, token).await.unwrap();
            }
            cache.invalidate(&change);
            for token in all {
                assert_eq!(cached(&cache, token).is_none(), removed.contains(&token), "{change:?}, {token}");
            }
        }
    }
}

/// Order of events: the store reads the grant, the grant is revoked, the answer arrives.
#[tokio::test]
async fn an_answer_from_before_an_invalidation_is_neither_cached_nor_joined() {
    for change in
        [Invalidation::Grant("alice-1".into()), Invalidation::Token(TokenDigest::of(TOKEN)), Invalidation::Everything]
    {
        let (remote, hands) = (Remote::new(), Hands::default());
        let cache = remote.cache(&hands);
        remote.hold();
        let before = begin(&cache, TOKEN).await;
        assert_eq!(remote.asked(), 1);

        remote.tokens.revoke(TokenDigest::of(TOKEN));
        cache.invalidate(&change);
        let after = begin(&cache, TOKEN).await;
        assert_eq!(remote.asked(), 1, "a lookup of its own");
        remote.release();
        assert_eq!(before.await.unwrap(), Some(true), "started before");
        assert_eq!(after.await.unwrap(), Some(false));
        assert_eq!(knows(&cache, TOKEN).await, Some(false), "{change:?}");
    }
}

#[tokio::test]
async fn an_added_token_is_known_after_its_invalidation() {
    let (remote, hands) = (Remote::new(), Hands::default());
    let cache = remote.cache(&hands);
    assert_eq!(knows(&cache, "new").await, Some(false));
    remote.tokens.insert(TokenDigest::of("new"), Grant::new("new", ())).unwrap();
    assert_eq!(knows(&cache, "new").await, Some(false));
    cache.invalidate(&Invalidation::Added);
    assert_eq!(knows(&cache, "new").await, Some(true));

    let long = remote.builder(&hands).with_unknown_ttl(10 * TTL).build().unwrap();
    assert_eq!(knows(&long, "unknown").await, Some(false));
    hands.advance(TTL);
    assert_eq!(cached(&long, "unknown"), None, "not longer than a grant");
    let uncached = remote.builder(&hands).with_unknown_ttl(Duration::ZERO).build().unwrap();
    assert_eq!(knows(&uncached, "newer").await, Some(false));
    remote.tokens.insert(TokenDigest::of("newer"), Grant::new("newer", ())).unwrap();
    assert_eq!(knows(&uncached, "newer").await, Some(true));
}
