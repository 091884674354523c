//! [`from_fn`] and [`from_fn_with`]: stores from closures.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use super::{Lookup, TokenStore};
use crate::grant::Grant;
use crate::pending::answer::Answer;
use crate::token::{BearerToken, TokenDigest};

/// The store of [`from_fn`] and [`from_fn_with`].
#[derive(Clone, Copy)]
pub struct FromFn<F>(F);

/// Creates a store from a closure. The future of the closure must own its data.
///
/// ```
/// use std::time::Duration;
/// use tollgate::{AuthLayer, Grant, TokenDigest, store};
///
/// let store = store::from_fn(|digest| async move {
///     let known = digest == TokenDigest::of("a-token");
///     Ok::<_, std::io::Error>(known.then(|| Grant::new("alice", ())))
/// });
/// let gate = AuthLayer::with_timeout(store, Duration::from_secs(2));
/// # let _ = gate;
/// ```
pub fn from_fn<F, Fut, P, E>(f: F) -> FromFn<F>
where
    F: Fn(TokenDigest) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Option<Grant<P>>, E>> + Send + 'static,
{
    FromFn(f)
}

/// Creates a store from a closure and a state, such as a connection pool. Each call gets a clone of the state.
///
/// ```
/// use tollgate::{Grant, TokenDigest, store};
///
/// #[derive(Clone)]
/// struct Pool;
///
/// impl Pool {
///     async fn find(&self, digest: TokenDigest) -> Result<Option<Grant<u64>>, std::io::Error> {
///         Ok((digest == TokenDigest::of("a-token")).then(|| Grant::new("alice", 17)))
///     }
/// }
///
/// let store = store::from_fn_with(Pool, |pool, digest| async move { pool.find(digest).await });
/// # let _ = store;
/// ```
pub fn from_fn_with<S, F, Fut, P, E>(state: S, f: F) -> FromFn<impl Fn(TokenDigest) -> Fut + Send + Sync + 'static>
where
    S: Clone + Send + Sync + 'static,
    F: Fn(S, TokenDigest) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Option<Grant<P>>, E>> + Send + 'static,
{
    FromFn(move |digest| f(state.clone(), digest))
}

impl<F, Fut, P, E> TokenStore for FromFn<F>
where
    F: Fn(TokenDigest) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Option<Grant<P>>, E>> + Send + 'static,
    P: Send + Sync + 'static,
    E: Into<Box<dyn Error + Send + Sync>> + Send + 'static,
{
    type Principal = P;
    type Error = E;
    type Future = FromFnFuture<Fut>;

    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
        Answer::Pending(FromFnFuture { future: (self.0)(*token.digest()) })
    }
}

pin_project_lite::pin_project! {
    /// The future of a [`FromFn`] store.
    pub struct FromFnFuture<Fut> {
        #[pin]
        future: Fut,
    }
}

impl<Fut, P, E> Future for FromFnFuture<Fut>
where
    Fut: Future<Output = Result<Option<Grant<P>>, E>>,
{
    type Output = Lookup<P, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(ready!(self.project().future.poll(cx)).map(|grant| grant.map(Arc::new)))
    }
}

// Not derived, because closures and their futures do not implement `Debug`.
impl<F> fmt::Debug for FromFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FromFn(..)")
    }
}

impl<Fut> fmt::Debug for FromFnFuture<Fut> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FromFnFuture(..)")
    }
}
