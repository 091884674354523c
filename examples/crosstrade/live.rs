//! The grants of open sockets. They are looked up when they change, and not in between.
//!
//! A socket subscribes by its token. Whoever learns of a change tells it by [`LiveGrants::tell`]; then each token that it concerns
//! is looked up once, however many sockets have it, and [`WORKERS`] at a time, however many tokens there are. A change that
//! comes while many are being looked up adds each token once more at most, so that nothing is lost and nothing piles up.
//!
//! If the database cannot be asked, each worker tries again every [`RETRY`]. If one token cannot be read, it is not looked up again
//! before the next change of its grant. Until then a socket keeps the grant that it has: it can do nothing by it, since each
//! message is checked by a lookup of its own.

use std::collections::{BTreeMap, HashMap};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tollgate::store::{Invalidation, Lookup};
use tollgate::{Grant, GrantId, StoreError, Subject, TokenDigest};

use crate::app::User;

/// How many lookups there are at a time. The requests of all other callers need the database too.
pub(crate) const WORKERS: usize = 4;
/// How long a worker waits after a lookup has failed.
pub(crate) const RETRY: Duration = Duration::from_secs(2);

/// What belongs to a token now, if anything does.
type Current = Option<Arc<Grant<User>>>;
type Find = dyn Fn(TokenDigest) -> Pin<Box<dyn Future<Output = Lookup<User, StoreError>> + Send>> + Send + Sync;

/// Clones are the same.
#[derive(Clone)]
pub(crate) struct LiveGrants(Arc<Inner>);

struct Inner {
    find: Box<Find>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tokens: HashMap<TokenDigest, Token>,
    /// The tokens to look up, each once, the lowest number first.
    queue: BTreeMap<i64, TokenDigest>,
    workers: usize,
}

/// A token that opens at least one socket.
struct Token {
    grant: GrantId,
    subject: Subject,
    /// The place in the queue.
    queued: Option<i64>,
    sockets: usize,
    current: watch::Sender<Current>,
}

/// The grant of one socket, until it is dropped.
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

    /// Subscribes to the grant of a token. It is looked up first of all: what has changed since the gate looked it up was told
    /// before, and a cache may have been behind even then.
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

    /// Has all grants looked up that a change concerns.
    pub(crate) fn tell(&self, change: &Invalidation) {
        let mut state = self.state();
        let concerns = |digest: &TokenDigest, token: &Token| match change {
            Invalidation::Token(changed) => changed == digest,
            Invalidation::Grant(changed) => *changed == token.grant,
            Invalidation::Subject(changed) => *changed == token.subject,
            // An open socket has a token that is known.
            Invalidation::Added => false,
            // Changes of a kind that is not known here are about everything.
            _ => true,
        };
        // A revocation does not wait for what may not have changed at all.
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

    /// Looks up what is queued, until there is no more.
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

    /// The next token to look up. A change that is told from now on queues it again.
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
            // A change of this grant may have been told meanwhile, when the token was that of another.
            (token.grant, token.subject) = (grant.id().clone(), grant.subject().clone());
            token.current.send_replace(current);
            state.enqueue(digest, End::Back);
        } else {
            token.current.send_replace(current);
        }
    }

    /// Whether no token is subscribed to, queued or being looked up.
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
    /// A token that is queued already is moved to the front, or stays where it is.
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
    /// Waits until the grant was looked up again, which does not mean that it differs. `None` if there is none any more.
    pub(crate) async fn changed(&mut self) -> Current {
        if self.current.changed().await.is_err() {
            // The sender lives as long as this.
            std::future::pending::<()>().await;
        }
        self.current.borrow_and_update().clone()
    }

    /// Looks up the grant now.
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
