//! Tests of a cache under many thread interleavings, by the model checker `shuttle`. Run by `just shuttle`.
//!
//! The tests check one rule: after an invalidation returns, no lookup sees the old entry. Each operation on a table of `quick_cache`
//! is one step, and so is each poll of a shared lookup between two steps of its future. Only the store yields.

use std::sync::Arc;
use std::time::Duration;

use shuttle::future::{block_on, yield_now};
use shuttle::rand::{Rng as _, thread_rng};
use shuttle::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use shuttle::thread;

use super::CachedStore;
use crate::grant::Grant;
use crate::pending::answer::Answer;
use crate::store::{Invalidation, Lookup, TokenStore, from_fn};
use crate::sync::explore;
use crate::token::{BearerToken, TokenDigest};

const TTL: Duration = Duration::from_secs(60);

/// The answer of a store about a token: the principal of a grant, `None` for an unknown token, or an error about the store.
type Found = Result<Option<u64>, ()>;

/// Two answers of the store about all tokens, and the change between them.
#[derive(Clone)]
struct Change {
    before: Found,
    after: Found,
    /// `None` clears the cache.
    invalidation: Option<Invalidation>,
}

const GRANT: Found = Ok(Some(1));
const CHANGED: Found = Ok(Some(2));
const UNKNOWN: Found = Ok(None);

impl Change {
    /// Removes the grant of the token `a`, in one of all ways.
    fn removal(after: Found) -> Self {
        let invalidation = match thread_rng().gen_range(0..4) {
            0 => Some(Invalidation::Token(TokenDigest::of("a"))),
            1 => Some(Invalidation::Grant("g".into())),
            2 => Some(Invalidation::Subject("s".into())),
            _ => None,
        };
        Self { before: GRANT, after, invalidation }
    }

    /// Adds the token `a`.
    fn addition() -> Self {
        let invalidation = match thread_rng().gen_range(0..3) {
            0 => Invalidation::Token(TokenDigest::of("a")),
            1 => Invalidation::Added,
            _ => Invalidation::Everything,
        };
        Self { before: UNKNOWN, after: GRANT, invalidation: Some(invalidation) }
    }
}

/// A cache in front of a store that changes.
struct Scene<T: TokenStore> {
    cache: CachedStore<T>,
    change: Change,
    is_changed: Arc<AtomicBool>,
    is_invalidated: Arc<AtomicBool>,
}

impl<T: TokenStore> Clone for Scene<T> {
    fn clone(&self) -> Self {
        let (is_changed, is_invalidated) = (Arc::clone(&self.is_changed), Arc::clone(&self.is_invalidated));
        Self { cache: self.cache.clone(), change: self.change.clone(), is_changed, is_invalidated }
    }
}

/// Creates a cache of `capacity` grants, by a clock in seconds.
fn scene(change: Change, capacity: u64, seconds: Arc<AtomicU64>) -> Scene<impl TokenStore<Principal = u64>> {
    let is_changed = Arc::new(AtomicBool::new(false));
    let (state, Change { before, after, .. }) = (Arc::clone(&is_changed), change.clone());
    let store = from_fn(move |_| {
        let state = Arc::clone(&state);
        async move {
            yield_now().await;
            let found = if state.load(Ordering::SeqCst) { after } else { before };
            // The answer is on its way.
            yield_now().await;
            found.map(|known| known.map(|number| Grant::new("g", number).with_subject("s"))).map_err(|()| "failed")
        }
    });
    let cache = CachedStore::builder(store, TTL)
        .with_capacity(capacity)
        .with_stale_while_revalidate(TTL, |refresh| drop(shuttle::future::spawn(refresh)))
        .with_stale_on_error(TTL)
        .with_clock(move || Duration::from_secs(seconds.load(Ordering::SeqCst)))
        .build()
        .unwrap();
    Scene { cache, change, is_changed, is_invalidated: Arc::default() }
}

impl<T: TokenStore<Principal = u64>> Scene<T> {
    fn find(&self, token: &str) -> Found {
        let found: Lookup<u64, _> = match self.cache.lookup(&BearerToken::new(token)) {
            Answer::Ready(found) => found,
            Answer::Pending(lookup) => block_on(lookup),
        };
        found.map(|known| known.map(|grant| *grant.principal())).map_err(drop)
    }

    /// Looks tokens up. No lookup sees an entry that was invalidated before.
    fn check(&self, tokens: &[&str]) {
        let is_of_one = matches!(self.change.invalidation, Some(Invalidation::Token(_)));
        for token in tokens {
            let is_invalidated = self.is_invalidated.load(Ordering::SeqCst);
            let found = self.find(token);
            if *token == "a" || !is_of_one {
                assert!(!is_invalidated || found == self.change.after, "{found:?} after an invalidation");
                assert!(found == self.change.before || found == self.change.after, "{found:?} was never the answer");
            }
        }
    }

    fn change(&self) {
        self.is_changed.store(true, Ordering::SeqCst);
        match &self.change.invalidation {
            Some(invalidation) => self.cache.invalidate(invalidation),
            None => self.cache.clear(),
        }
        self.is_invalidated.store(true, Ordering::SeqCst);
    }

    /// Runs a thread for each list of tokens, while the store changes.
    fn run(self, readers: &[&'static [&'static str]]) {
        let readers: Vec<_> = readers
            .iter()
            .map(|&tokens| {
                let scene = self.clone();
                thread::spawn(move || scene.check(tokens))
            })
            .collect();
        self.change();
        self.check(&["a"]);
        for reader in readers {
            reader.join().unwrap();
        }
        self.check(&["a", "b", "a"]);
    }
}

fn at(seconds: u64) -> Arc<AtomicU64> {
    Arc::new(AtomicU64::new(seconds))
}

#[test]
fn removed_grant_is_not_found_by_later_lookups() {
    explore(|| scene(Change::removal(UNKNOWN), 10, at(0)).run(&[&["a", "a"], &["b", "a"]]));
}

#[test]
fn removed_grant_is_not_found_while_the_store_fails() {
    explore(|| scene(Change::removal(Err(())), 10, at(0)).run(&[&["a", "a"], &["a"]]));
}

/// Readers of other tokens evict the entry of the token `a`, and lookups insert it again.
#[test]
fn evictions_lose_no_removals() {
    explore(|| scene(Change::removal(UNKNOWN), 1, at(0)).run(&[&["a", "b"], &["c", "a"]]));
}

/// The entry is stale, so the cache serves it and refreshes it in the background.
#[test]
fn refreshes_restore_no_removed_grants() {
    explore(|| {
        let seconds = at(0);
        let scene = scene(Change::removal(UNKNOWN), 10, Arc::clone(&seconds));
        assert_eq!([scene.find("a"), scene.find("b")], [GRANT; 2]);
        seconds.store(TTL.as_secs() + 1, Ordering::SeqCst);
        scene.run(&[&["a"], &["a"]]);
    });
}

#[test]
fn changed_grant_is_looked_up_after_an_invalidation_of_everything() {
    explore(|| {
        let change = Change { before: GRANT, after: CHANGED, invalidation: Some(Invalidation::Everything) };
        scene(change, 10, at(0)).run(&[&["a", "a"], &["a"]]);
    });
}

#[test]
fn added_token_is_found_by_later_lookups() {
    explore(|| scene(Change::addition(), 10, at(0)).run(&[&["a", "a"], &["a"]]));
}
