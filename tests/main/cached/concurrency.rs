//! Lookups and invalidations in several threads.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tollgate::store::{CachedStore, Invalidation, from_fn, from_fn_with};
use tollgate::{BearerToken, Grant, MemoryStore, TokenDigest, TokenStore as _};

use crate::kit::remote::*;
use crate::kit::*;

/// Threads look up while others revoke and invalidate. A lookup after an invalidation never returns the grant.
#[test]
fn no_thread_sees_a_grant_after_its_invalidation() {
    let tokens: Vec<String> = (0..64).map(|token| format!("token-{token}")).collect();
    for round in 0..20 {
        let memory = MemoryStore::from_iter(tokens.iter().map(|token| (TokenDigest::of(token), Grant::new(token, ()))));
        let reported: Vec<AtomicBool> = tokens.iter().map(|_| AtomicBool::new(false)).collect();
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
                        let was_reported = reported[at].load(Ordering::SeqCst);
                        let found =
                            runtime.block_on(cache.lookup(&BearerToken::new(&tokens[at])).into_future()).unwrap();
                        assert!(!(was_reported && found.is_some()), "a revoked token works");
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
                    reported[at].store(true, Ordering::SeqCst);
                    std::thread::yield_now();
                }
            });
        });
    }
}

/// Threads look up while another thread changes a grant and invalidates it. Time passes, and the store fails sometimes. A lookup
/// after an invalidation never returns an older version: neither fresh, nor stale, nor from a pending refresh. After
/// `Everything`, an older version is returned only while the store fails, and never after a newer one.
#[test]
fn no_thread_sees_a_version_from_before_its_invalidation() {
    use std::sync::atomic::AtomicU64;
    for round in 0..6_u64 {
        let (current, reported, asked) = (Arc::new(AtomicU64::new(0)), AtomicU64::new(0), Arc::new(AtomicU64::new(0)));
        let (hands, is_over) = (Hands::default(), AtomicBool::new(false));
        let (version, count, clock) = (Arc::clone(&current), asked, hands.clone());
        // The numbers of lookups that have failed, and that are going to fail.
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
                if fails { Err("down") } else { Ok(Some(Grant::new("alice", seen).with_subject("all"))) }
            }
        });
        let cache = CachedStore::builder(store, TTL)
            .with_clock(move || Duration::from_nanos(clock.ns()))
            .with_stale_on_error(1_000 * TTL)
            .with_stale_while_revalidate(10 * TTL, |refresh| _ = tokio::spawn(refresh))
            .build()
            .unwrap();
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..2_u64)
                .map(|reader| {
                    let (cache, reported, hands) = (&cache, &reported, &hands);
                    let (newest, failures, failing) = (&newest, &failures, &failing);
                    scope.spawn(move || {
                        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
                        runtime.block_on(async {
                            for at in 0..5_000_u64 {
                                let (oldest, newest_before) =
                                    (reported.load(Ordering::SeqCst), newest.load(Ordering::SeqCst));
                                let failures_before = failures.load(Ordering::SeqCst);
                                let is_failing = failing.load(Ordering::SeqCst) > 0;
                                if let Ok(found) = cache.lookup(&BearerToken::new(TOKEN)).await {
                                    let seen = *found.unwrap().principal();
                                    let may_be_outdated = round % 4 == 3
                                        && (is_failing || failures.load(Ordering::SeqCst) > failures_before);
                                    assert!(seen >= oldest || may_be_outdated, "{seen} is older than {oldest}");
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
                        1 => Invalidation::Subject("all".into()),
                        2 => Invalidation::Token(TokenDigest::of(TOKEN)),
                        _ => Invalidation::Everything,
                    });
                    reported.store(version, Ordering::SeqCst);
                    std::thread::yield_now();
                }
            });
            let ended: Vec<_> = readers.into_iter().map(|reader| reader.join()).collect();
            is_over.store(true, Ordering::SeqCst);
            assert!(ended.iter().all(Result::is_ok), "a reader saw an old version");
        });
    }
}
