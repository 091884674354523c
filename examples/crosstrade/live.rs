//! The grants of open sockets, which are looked up after a change only.
//!
//! A socket subscribes with its token. [`LiveGrants::refresh`] reports a change. Each affected token is then looked up once,
//! even if many sockets have it. [`WORKERS`] lookups run at the same time. A change during the lookups queues each token at
//! most once more, so no change is lost and the queue stays bounded.
//!
//! While the database fails, each worker retries every [`RETRY`]. A token that cannot be read is looked up again after the
//! next change of its grant. Until then a socket keeps its grant, but cannot use it: each message is checked by a lookup of
//! its own.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tollgate::store::{Invalidation, Lookup};
use tollgate::{Grant, GrantId, StoreError, Subject, TokenDigest};

use crate::app::User;

/// The maximum number of concurrent lookups. The requests of other callers need the database too.
pub(crate) const WORKERS: usize = 4;
/// The pause of a worker after a failed lookup.
pub(crate) const RETRY: Duration = Duration::from_secs(2);

/// The current grant of a token, if it has one.
type Current = Option<Arc<Grant<User>>>;
type Find = dyn Fn(TokenDigest) -> Pin<Box<dyn Future<Output = Lookup<User, StoreError>> + Send>> + Send + Sync;

/// The grants of all open sockets. Clones share them.
#[derive(Clone)]
pub(crate) struct LiveGrants(Arc<Inner>);

struct Inner {
    find: Box<Find>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tokens: HashMap<TokenDigest, Token>,
    /// The tokens to look up, each once, lowest number first.
    queue: BTreeMap<i64, TokenDigest>,
    workers: usize,
}

/// A token with at least one open socket.
struct Token {
    grant: GrantId,
    subject: Subject,
    /// The number in the queue.
    queued: Option<i64>,
    sockets: usize,
    current: watch::Sender<Current>,
}

/// A socket's subscription to its grant. Dropping it unsubscribes.
pub(crate) struct Subscription {
    live: LiveGrants,
    token: TokenDigest,
    current: watch::Receiver<Current>,
}

impl LiveGrants {
    pub(crate) fn new<F>(find: impl Fn(TokenDigest) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Lookup<User, StoreError>> + Send + 'static,
    {
        let find = Box::new(move |token| -> Pin<Box<dyn Future<Output = _> + Send>> { Box::pin(find(token)) });
        Self(Arc::new(Inner { find, state: Mutex::default() }))
    }

    /// Looks up the grant of a token.
    pub(crate) async fn find(&self, token: TokenDigest) -> Lookup<User, StoreError> {
        (self.0.find)(token).await
    }

    /// Subscribes to the grant of a token, and queues a lookup: the grant may have changed since the gate's lookup, and a cache
    /// may have been stale even then.
    pub(crate) fn subscribe(&self, token: TokenDigest, grant: &Arc<Grant<User>>) -> Subscription {
        let mut state = self.state();
        let entry = state.tokens.entry(token).or_insert_with(|| Token {
            grant: grant.id().clone(),
            subject: grant.subject().clone(),
            queued: None,
            sockets: 0,
            current: watch::Sender::new(Some(Arc::clone(grant))),
        });
        entry.sockets += 1;
        let current = entry.current.subscribe();
        state.enqueue(token, End::Back);
        self.start_workers(&mut state);
        Subscription { live: self.clone(), token, current }
    }

    /// Queues a lookup of all grants that a change affects.
    pub(crate) fn refresh(&self, change: &Invalidation) {
        let mut state = self.state();
        let concerns = |digest: &TokenDigest, token: &Token| match change {
            Invalidation::Token(changed) => changed == digest,
            Invalidation::Grant(changed) => *changed == token.grant,
            Invalidation::Subject(changed) => *changed == token.subject,
            // The token of an open socket is known already.
            Invalidation::Added => false,
            // Unknown kinds of changes affect everything.
            _ => true,
        };
        // A named change goes first. `Everything` queues many tokens that have not changed.
        let end = match change {
            Invalidation::Token(_) | Invalidation::Grant(_) | Invalidation::Subject(_) => End::Front,
            _ => End::Back,
        };
        let tokens = state.tokens.iter().filter(|(digest, token)| concerns(digest, token));
        for token in tokens.map(|(digest, _)| *digest).collect::<Vec<_>>() {
            state.enqueue(token, end);
        }
        self.start_workers(&mut state);
    }

    fn start_workers(&self, state: &mut State) {
        while state.workers < WORKERS.min(state.queue.len()) {
            state.workers += 1;
            tokio::spawn(self.clone().work());
        }
    }

    /// Looks up the queued tokens until the queue is empty.
    async fn work(self) {
        while let Some(token) = self.next() {
            match self.find(token).await {
                Ok(current) => self.publish(token, current),
                Err(error) if error.concerns_token() => {}
                Err(_) => {
                    self.state().enqueue(token, End::Back);
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Takes the next token from the queue. Later changes queue it again.
    fn next(&self) -> Option<TokenDigest> {
        let mut state = self.state();
        let Some((_, digest)) = state.queue.pop_first() else {
            state.workers -= 1;
            return None;
        };
        if let Some(token) = state.tokens.get_mut(&digest) {
            token.queued = None;
        }
        Some(digest)
    }

    fn publish(&self, digest: TokenDigest, current: Current) {
        let mut state = self.state();
        let Some(token) = state.tokens.get_mut(&digest) else { return };
        if let Some(grant) = current.as_ref().filter(|grant| *grant.id() != token.grant) {
            // A change of the new grant may have been reported before the token belonged to it.
            (token.grant, token.subject) = (grant.id().clone(), grant.subject().clone());
            token.current.send_replace(current);
            state.enqueue(digest, End::Back);
        } else {
            token.current.send_replace(current);
        }
    }

    /// Returns whether no token is subscribed to, queued or being looked up.
    #[cfg(test)]
    pub(crate) fn is_idle(&self) -> bool {
        let state = self.state();
        state.tokens.is_empty() && state.queue.is_empty() && state.workers == 0
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Queues a token. A queued token is moved to the front, or keeps its place.
    fn enqueue(&mut self, digest: TokenDigest, end: End) {
        let Some(token) = self.tokens.get_mut(&digest) else { return };
        let place = match (end, token.queued) {
            (End::Back, Some(_)) => return,
            (End::Back, None) => self.queue.last_key_value().map_or(0, |(last, _)| last + 1),
            (End::Front, queued) => {
                if let Some(place) = queued {
                    self.queue.remove(&place);
                }
                self.queue.first_key_value().map_or(0, |(first, _)| first - 1)
            }
        };
        token.queued = Some(place);
        self.queue.insert(place, digest);
    }
}

#[derive(Clone, Copy)]
enum End {
    Front,
    Back,
}

impl Subscription {
    /// Waits until the grant was looked up again; it may be unchanged. `None` means that the token has no grant any more.
    pub(crate) async fn changed(&mut self) -> Current {
        if self.current.changed().await.is_err() {
            // The sender lives as long as the subscription.
            std::future::pending::<()>().await;
        }
        self.current.borrow_and_update().clone()
    }

    /// Looks up the grant immediately.
    pub(crate) async fn find(&self) -> Lookup<User, StoreError> {
        self.live.find(self.token).await
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        let mut state = self.live.state();
        if let Some(token) = state.tokens.get_mut(&self.token) {
            token.sockets -= 1;
            if token.sockets == 0 {
                let queued = state.tokens.remove(&self.token).and_then(|token| token.queued);
                queued.map(|place| state.queue.remove(&place));
            }
        }
    }
}
