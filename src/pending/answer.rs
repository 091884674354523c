//! [`Answer`]: immediate or pending.

use std::convert::Infallible;
use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};

/// The one shape in which a [`TokenStore`](crate::TokenStore) or a [`Limiter`](crate::Limiter) replies: at once, or
/// later.
///
/// A gate that gets [`Ready`](Self::Ready) goes on inside the same call: nothing is boxed, the inner service is not
/// cloned. Only [`Pending`](Self::Pending) parks the request, in one box, where a network hop is paid anyway.
///
/// ```
/// use tollgate::{Answer, Immediate};
///
/// // A seam that never waits has a future that cannot exist.
/// let answer: Answer<Immediate<u8>> = Answer::Ready(7);
/// assert_eq!(answer.ready(), Some(7));
/// ```
#[must_use = "an answer does nothing unless it is looked at"]
pub enum Answer<F: Future> {
    /// The answer is known.
    Ready(F::Output),
    /// The answer has to be waited for. The future does nothing before its first poll.
    Pending(F),
}

impl<F: Future> Answer<F> {
    /// The answer, if it was known at once.
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

    /// Waits for the answer: `store.lookup(&token).await`.
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
    /// If it is polled again after it was ready.
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
    /// Names the variant only: an output may hold what must not be printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready(_) => "Ready(..)",
            Self::Pending(_) => "Pending(..)",
        })
    }
}

/// The future of a seam that never waits. No value of it exists, so it costs nothing.
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
