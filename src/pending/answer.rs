//! [`Answer`]: the immediate or pending answer of a store or a limiter.

use std::convert::Infallible;
use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

/// The answer of a [`TokenStore`](crate::TokenStore) or a [`Limiter`](crate::Limiter): immediate or pending.
///
/// For [`Ready`](Self::Ready), the gate continues in the same call. It allocates no future and does not clone the inner
/// service. For [`Pending`](Self::Pending), the gate moves the request into one box. That cost is small compared to the
/// network round trip.
///
/// ```
/// use tollgate::{Answer, Immediate};
///
/// // The future of an implementation that never waits cannot be constructed.
/// let answer: Answer<Immediate<u8>> = Answer::Ready(7);
/// assert_eq!(answer.ready(), Some(7));
/// ```
#[must_use = "an answer does nothing unless it is used"]
pub enum Answer<F: Future> {
    /// The answer is available.
    Ready(F::Output),
    /// The answer is pending. The future does nothing before its first poll.
    Pending(F),
}

impl<F: Future> Answer<F> {
    /// Returns the answer, if it is immediate.
    pub fn ready(self) -> Option<F::Output> {
        match self {
            Self::Ready(output) => Some(output),
            Self::Pending(_) => None,
        }
    }
}

impl<F: Future> IntoFuture for Answer<F> {
    type Output = F::Output;
    type IntoFuture = AnswerFuture<F>;

    /// Returns a future of the answer, for `store.lookup(&token).await`.
    fn into_future(self) -> AnswerFuture<F> {
        let state = match self {
            Self::Ready(output) => State::Ready { output: Some(output) },
            Self::Pending(future) => State::Pending { future },
        };
        AnswerFuture { state }
    }
}

pin_project_lite::pin_project! {
    /// The future of an [`Answer`].
    ///
    /// # Panics
    ///
    /// Panics if it is polled again after completion.
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct AnswerFuture<F: Future> {
        #[pin]
        state: State<F>,
    }
}

pin_project_lite::pin_project! {
    #[project = StateProj]
    enum State<F: Future> {
        Ready { output: Option<F::Output> },
        Pending { #[pin] future: F },
    }
}

impl<F: Future> Future for AnswerFuture<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        match self.project().state.project() {
            StateProj::Ready { output } => match output.take() {
                Some(output) => Poll::Ready(output),
                None => panic!("polled after completion"),
            },
            StateProj::Pending { future } => future.poll(cx),
        }
    }
}

impl<F: Future> fmt::Debug for AnswerFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AnswerFuture(..)")
    }
}

impl<F: Future> fmt::Debug for Answer<F> {
    /// Writes the variant only, because the output may contain secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready(_) => "Ready(..)",
            Self::Pending(_) => "Pending(..)",
        })
    }
}

/// The future type of stores and limiters that never wait. No value of this type can exist, so the type has no cost.
pub struct Immediate<T>(Infallible, PhantomData<fn() -> T>);

impl<T> Future for Immediate<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<T> {
        match self.0 {}
    }
}

impl<T> fmt::Debug for Immediate<T> {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {}
    }
}
