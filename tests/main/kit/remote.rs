//! A remote store behind a cache, for the tests of caches.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tollgate::store::{CachedStore, CachedStoreBuilder, from_fn_with};
use tollgate::{BearerToken, BoxStore, Grant, MemoryStore, StoreError, TokenDigest, TokenStore as _};

use super::{Hands, TOKEN};

pub const TTL: Duration = Duration::from_secs(60);

pub const SECOND: Duration = Duration::from_secs(1);

/// A remote store that counts lookups, can be down, and can delay its answers.
#[derive(Clone)]
pub struct Remote {
    pub tokens: MemoryStore<()>,
    asked: Arc<AtomicUsize>,
    pub down: Arc<AtomicBool>,
    /// The store works, but cannot read the row of any token.
    pub unreadable: Arc<AtomicBool>,
    answers: Arc<Semaphore>,
}

impl Remote {
    pub fn new() -> Self {
        let tokens = MemoryStore::from_iter([
            (TokenDigest::of(TOKEN), Grant::new("alice-1", ()).with_subject("alice")),
            (TokenDigest::of("alice-token-2"), Grant::new("alice-2", ()).with_subject("alice")),
            (TokenDigest::of("bob-token-1"), Grant::new("bob", ())),
        ]);
        let answers = Arc::new(Semaphore::new(Semaphore::MAX_PERMITS));
        Self { tokens, asked: Arc::default(), down: Arc::default(), unreadable: Arc::default(), answers }
    }

    pub fn store(&self) -> BoxStore<()> {
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

    pub fn builder(&self, hands: &Hands) -> CachedStoreBuilder<BoxStore<()>> {
        let (steady, wall) = (hands.clone(), hands.clone());
        CachedStore::builder(self.store(), TTL)
            .with_clock(move || Duration::from_nanos(steady.ns()))
            .with_wall_clock(move || UNIX_EPOCH + Duration::from_nanos(wall.ns()))
    }

    pub fn cache(&self, hands: &Hands) -> CachedStore<BoxStore<()>> {
        self.builder(hands).build().unwrap()
    }

    /// Returns the number of lookups since the last call.
    pub fn asked(&self) -> usize {
        self.asked.swap(0, Ordering::SeqCst)
    }

    /// Delays answers until [`release`](Self::release).
    pub fn hold(&self) {
        self.answers.forget_permits(Semaphore::MAX_PERMITS);
    }

    pub fn release(&self) {
        self.answers.add_permits(Semaphore::MAX_PERMITS);
    }
}

/// Looks a token up. Returns `None` for an error.
pub async fn knows(cache: &CachedStore<BoxStore<()>>, token: &str) -> Option<bool> {
    cache.lookup(&BearerToken::new(token)).await.ok().map(|found| found.is_some())
}

/// Looks a token up in a task, and runs the task until it waits.
pub async fn begin(cache: &CachedStore<BoxStore<()>>, token: &'static str) -> JoinHandle<Option<bool>> {
    let cache = cache.clone();
    let task = tokio::spawn(async move { knows(&cache, token).await });
    tokio::task::yield_now().await;
    task
}

/// Returns the immediate answer for a token, if there is one.
pub fn cached(cache: &CachedStore<BoxStore<()>>, token: &str) -> Option<bool> {
    cache.lookup(&BearerToken::new(token)).ready().map(|found| found.unwrap().is_some())
}
