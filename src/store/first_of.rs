//! [`first_of`]: two stores, asked in turn.

use std::error::Error;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use super::sealed::NeverWaits;
use super::{Lookup, TokenStore};
use crate::pending::answer::{Answer, AnswerFuture};
use crate::rejection::store_error::StoreError;
use crate::token::BearerToken;

/// The store of [`first_of`].
#[derive(Clone, Debug)]
pub struct FirstOf<A, B> {
    first: A,
    second: B,
}

/// Combines two stores. The second one is asked for the tokens that are unknown to the first one.
///
/// | first store | second store | response |
/// |---|---|---|
/// | a grant | is not asked | that of the grant |
/// | unknown | a grant, unknown or an error | that of the second store |
/// | an error | is not asked | 503, because the token may belong to the first store |
///
/// An outage of the first store therefore rejects the tokens of the second one. [`by_prefix`](super::by_prefix) avoids this where
/// tokens have prefixes. A `CheckedStore` as the first store avoids it for tokens in another format.
///
/// Answers are immediate if both stores answer immediately. If the first store waits, the lookup of the second store is created as
/// well, and starts only when it is needed.
///
/// ```
/// use std::time::Duration;
/// use tollgate::{AuthLayer, Grant, MemoryStore, TokenDigest, store};
///
/// let from_file = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("monitoring", ()))]);
/// let from_database = store::from_fn(|_digest| async { Ok::<Option<Grant<()>>, std::io::Error>(None) });
///
/// let gate = AuthLayer::with_timeout(store::first_of(from_file, from_database), Duration::from_secs(2));
/// # let _ = gate;
/// ```
///
/// For more than two stores, use `first_of(a, first_of(b, c))`.
#[must_use]
pub fn first_of<A, B>(first: A, second: B) -> FirstOf<A, B>
where
    A: TokenStore,
    B: TokenStore<Principal = A::Principal>,
{
    FirstOf { first, second }
}

impl<A, B> TokenStore for FirstOf<A, B>
where
    A: TokenStore,
    B: TokenStore<Principal = A::Principal>,
{
    type Principal = A::Principal;
    type Error = StoreError;
    type Future = FirstOfFuture<A::Future, B::Future>;

    #[inline]
    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
        match self.first.lookup(token) {
            Answer::Ready(Ok(None)) => match self.second.lookup(token) {
                Answer::Ready(found) => Answer::Ready(found.map_err(StoreError::new)),
                second @ Answer::Pending(_) => {
                    Answer::Pending(FirstOfFuture { first: None, second: second.into_future() })
                }
            },
            Answer::Ready(found) => Answer::Ready(found.map_err(StoreError::new)),
            // Create the other lookup now, so that the future does not have to own the token. It is lazy.
            Answer::Pending(first) => {
                let second = self.second.lookup(token).into_future();
                Answer::Pending(FirstOfFuture { first: Some(first), second })
            }
        }
    }

    fn is_cached(&self, token: &BearerToken<'_>) -> bool {
        self.first.is_cached(token) || self.second.is_cached(token)
    }
}

pin_project_lite::pin_project! {
    /// The future of a [`FirstOf`] store.
    pub struct FirstOfFuture<A, B: Future> {
        // Empty after the first store has found nothing.
        #[pin]
        first: Option<A>,
        #[pin]
        second: AnswerFuture<B>,
    }
}

impl<A, B, P, E, E2> Future for FirstOfFuture<A, B>
where
    A: Future<Output = Lookup<P, E>>,
    B: Future<Output = Lookup<P, E2>>,
    E: Into<Box<dyn Error + Send + Sync>>,
    E2: Into<Box<dyn Error + Send + Sync>>,
{
    type Output = Lookup<P, StoreError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Some(first) = this.first.as_mut().as_pin_mut() {
            match ready!(first.poll(cx)) {
                Ok(None) => this.first.set(None),
                found => return Poll::Ready(found.map_err(StoreError::new)),
            }
        }
        this.second.poll(cx).map_err(StoreError::new)
    }
}

// It is created only for a pending answer of one of the stores, which have none.
impl<A: NeverWaits, B: Future + NeverWaits> NeverWaits for FirstOfFuture<A, B> {}

impl<A, B: Future> fmt::Debug for FirstOfFuture<A, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FirstOfFuture(..)")
    }
}
