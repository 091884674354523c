//! [`try_map`]: changes or rejects the grants that another store finds, by an asynchronous function.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::{Lookup, TokenStore};
use crate::grant::Grant;
use crate::pending::answer::Answer;
use crate::rejection::store_error::StoreError;
use crate::token::BearerToken;

/// The store of [`try_map`].
pub struct TryMap<T, F> {
    store: T,
    /// Shared with pending lookups, which call it later.
    f: Arc<F>,
}

/// Changes or rejects each grant that another store finds by an asynchronous function, such as a query for the user.
///
/// | result of the function | response |
/// |---|---|
/// | `Ok(Some(grant))` | the request is admitted by this grant, if the grant is valid |
/// | `Ok(None)` | 401, as for an unknown token |
/// | `Err` | 503; see [`StoreError`] for errors about one token |
///
/// The future of the function must own its data.
///
/// ```
/// use std::sync::Arc;
/// use std::time::Duration;
/// use tollgate::{AuthLayer, Grant, MemoryStore, Subject, TokenDigest, store};
///
/// struct User { name: String }
///
/// #[derive(Clone)]
/// struct Users;
///
/// impl Users {
///     async fn find(&self, id: &Subject) -> Result<Option<User>, std::io::Error> {
///         Ok((id.as_str() == "alice").then(|| User { name: "Alice".to_owned() }))
///     }
/// }
///
/// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
/// let users = Users;
/// let store = store::try_map(tokens, move |grant| {
///     let users = users.clone();
///     async move {
///         let user = users.find(grant.subject()).await?; // an outage: 503
///         Ok::<_, std::io::Error>(user.map(|user| Arc::new(grant.with_principal(user)))) // a deleted user: 401
///     }
/// });
/// let gate = AuthLayer::with_timeout(store, Duration::from_secs(2));
/// # let _ = gate;
/// ```
///
/// See [`map`](super::map) for the grant to return.
///
/// Put a `CachedStore` around the mapped store, so that the function runs for cache misses only. The cache does not notice changes of the
/// user: invalidate the subject, or wait for the `ttl`. A [`CircuitBreaker`](super::CircuitBreaker) around the mapped store has one
/// timeout for the lookup and the function together.
#[must_use]
pub fn try_map<T, F, Fut, Q, E>(store: T, f: F) -> TryMap<T, F>
where
    T: TokenStore,
    F: Fn(Arc<Grant<T::Principal>>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Lookup<Q, E>> + Send + 'static,
{
    TryMap { store, f: Arc::new(f) }
}

impl<T, F, Fut, Q, E> TokenStore for TryMap<T, F>
where
    T: TokenStore,
    F: Fn(Arc<Grant<T::Principal>>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Lookup<Q, E>> + Send + 'static,
    Q: Send + Sync + 'static,
    E: Into<Box<dyn Error + Send + Sync>> + Send + 'static,
{
    type Principal = Q;
    type Error = StoreError;
    type Future = TryMapFuture<T::Future, F, Fut>;

    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
        match self.store.lookup(token) {
            Answer::Ready(Ok(Some(grant))) => {
                Answer::Pending(TryMapFuture { state: State::Function { future: (self.f)(grant) } })
            }
            Answer::Ready(Ok(None)) => Answer::Ready(Ok(None)),
            Answer::Ready(Err(error)) => Answer::Ready(Err(StoreError::new(error))),
            Answer::Pending(future) => {
                Answer::Pending(TryMapFuture { state: State::Store { future, f: Arc::clone(&self.f) } })
            }
        }
    }

    fn is_cached(&self, token: &BearerToken<'_>) -> bool {
        self.store.is_cached(token)
    }
}

pin_project_lite::pin_project! {
    /// The future of a [`TryMap`] store: waits for the inner store, then for the function.
    pub struct TryMapFuture<A, F, Fut> {
        #[pin]
        state: State<A, F, Fut>,
    }
}

pin_project_lite::pin_project! {
    #[project = StateProj]
    enum State<A, F, Fut> {
        Store { #[pin] future: A, f: Arc<F> },
        Function { #[pin] future: Fut },
    }
}

impl<A, F, Fut, P, Q, E, E2> Future for TryMapFuture<A, F, Fut>
where
    A: Future<Output = Lookup<P, E>>,
    F: Fn(Arc<Grant<P>>) -> Fut,
    Fut: Future<Output = Lookup<Q, E2>>,
    E: Into<Box<dyn Error + Send + Sync>>,
    E2: Into<Box<dyn Error + Send + Sync>>,
{
    type Output = Lookup<Q, StoreError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut state = self.project().state;
        loop {
            let future = match state.as_mut().project() {
                StateProj::Store { future, f } => match ready!(future.poll(cx)) {
                    Ok(Some(grant)) => f(grant),
                    Ok(None) => return Poll::Ready(Ok(None)),
                    Err(error) => return Poll::Ready(Err(StoreError::new(error))),
                },
                StateProj::Function { future } => return future.poll(cx).map_err(StoreError::new),
            };
            state.set(State::Function { future });
        }
    }
}

impl<T: Clone, F> Clone for TryMap<T, F> {
    fn clone(&self) -> Self {
        Self { store: self.store.clone(), f: Arc::clone(&self.f) }
    }
}

// Not derived, because closures and their futures do not implement `Debug`.
impl<T: fmt::Debug, F> fmt::Debug for TryMap<T, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TryMap").field("store", &self.store).finish_non_exhaustive()
    }
}

impl<A, F, Fut> fmt::Debug for TryMapFuture<A, F, Fut> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TryMapFuture(..)")
    }
}
