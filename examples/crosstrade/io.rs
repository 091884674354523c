//! A connection with a time limit for clients that do not read.

use std::io::{self, ErrorKind, IoSlice};
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use crate::connections::Permit;

/// How long a connection is read after its last response. See [`TimedIo::poll_shutdown`].
pub(crate) const LINGER: Duration = Duration::from_secs(1);

/// Limits the time that a client takes to read, and counts the connection as open until it is dropped.
///
/// The time runs while bytes wait to be sent, until all of them were taken. Taking a few bytes does not extend it.
pub(crate) struct TimedIo<S> {
    stream: S,
    max_wait: Duration,
    /// Runs since the first byte had to wait.
    waiting: Option<Pin<Box<Sleep>>>,
    /// Runs since the last byte was sent.
    lingering: Option<Pin<Box<Sleep>>>,
    _permit: Option<Arc<Permit>>,
}

impl<S> TimedIo<S> {
    pub(crate) fn new(stream: S, max_wait: Duration, permit: impl Into<Option<Arc<Permit>>>) -> Self {
        Self { stream, max_wait, waiting: None, lingering: None, _permit: permit.into() }
    }

    /// Checks the time after a write of `offered` bytes.
    fn timed(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
        offered: usize,
    ) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(taken)) if taken >= offered => self.waiting = None,
            Poll::Ready(_) => {}
            Poll::Pending => {
                let max_wait = self.max_wait;
                let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(max_wait)));
                ready!(waiting.as_mut().poll(cx));
                return Poll::Ready(Err(ErrorKind::TimedOut.into()));
            }
        }
        written
    }
}

impl<S: AsyncWrite + AsyncRead + Unpin> AsyncWrite for TimedIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        self.timed(cx, written, bytes.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.timed(cx, written, slices.iter().map(|slice| slice.len()).sum())
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    /// Shuts down the sending side, and reads until the client closes or [`LINGER`] is over.
    ///
    /// The kernel resets a connection that is closed with unread bytes, and the reset can overtake the last response: after
    /// a request with an unread body, or before the next request of a pipeline.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.lingering.is_none() {
            ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
        }
        let lingering = this.lingering.get_or_insert_with(|| Box::pin(sleep(LINGER)));
        let mut ignored = [MaybeUninit::uninit(); 2048];
        while lingering.as_mut().poll(cx).is_pending() {
            let mut buffer = ReadBuf::uninit(&mut ignored);
            let read = ready!(Pin::new(&mut this.stream).poll_read(cx, &mut buffer));
            if read.is_err() || buffer.filled().is_empty() {
                break;
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TimedIo<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}
