//! [`ReplayBody`]: the request body of the inner service.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

pin_project_lite::pin_project! {
    /// A request body as the inner service gets it: not read by the gate, or read and replayed.
    pub struct ReplayBody<B> {
        #[pin]
        kind: Kind<B>,
    }
}

pin_project_lite::pin_project! {
    #[project = KindProj]
    enum Kind<B> {
        Untouched { #[pin] body: B },
        Received { data: Bytes, trailers: Option<HeaderMap> },
    }
}

impl<B> ReplayBody<B> {
    pub(super) fn untouched(body: B) -> Self {
        Self { kind: Kind::Untouched { body } }
    }

    pub(super) fn received(data: Bytes, trailers: Option<HeaderMap>) -> Self {
        Self { kind: Kind::Received { data, trailers } }
    }

    /// Returns the data that the gate has read.
    pub(super) fn as_bytes(&self) -> &[u8] {
        match &self.kind {
            Kind::Untouched { .. } => &[],
            Kind::Received { data, .. } => data,
        }
    }

    /// Overwrites a part of the data with `*`. The length does not change.
    pub(super) fn mask(&mut self, span: std::ops::Range<usize>) {
        if let Kind::Received { data, .. } = &mut self.kind {
            // This copies only if the buffer is shared.
            let mut masked = BytesMut::from(std::mem::take(data));
            masked[span].fill(b'*');
            *data = masked.freeze();
        }
    }
}

impl<B: Body> Body for ReplayBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match self.project().kind.project() {
            KindProj::Untouched { body } => {
                body.poll_frame(cx).map_ok(|frame| frame.map_data(|mut data| data.copy_to_bytes(data.remaining())))
            }
            KindProj::Received { data, trailers } => Poll::Ready(match std::mem::take(data) {
                data if data.is_empty() => trailers.take().map(|trailers| Ok(Frame::trailers(trailers))),
                data => Some(Ok(Frame::data(data))),
            }),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Untouched { body } => body.is_end_stream(),
            Kind::Received { data, trailers } => data.is_empty() && trailers.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Untouched { body } => body.size_hint(),
            Kind::Received { data, .. } => SizeHint::with_exact(data.len() as u64),
        }
    }
}

impl<B> fmt::Debug for ReplayBody<B> {
    /// Omits the content, which may contain the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match &self.kind {
            Kind::Untouched { .. } => "ReplayBody(untouched)",
            Kind::Received { .. } => "ReplayBody(read)",
        })
    }
}
