//! [`MetadataService`]: responds to requests for the metadata before the gate.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::{Request, Response};
use tower_service::Service;

use super::document::Document;
use super::layer::{FromBytes, WriteMetadata};
use crate::gate::future::ResponseOr;
use crate::request_head::RequestHead;

/// The service of an [`AuthLayer`](crate::AuthLayer) with a protected resource. `S` is the service of the gate.
///
/// The service of a gate without a resource has no check for the metadata, so that its requests cost nothing more.
pub struct MetadataService<S, F = FromBytes> {
    gate: S,
    document: Arc<Document>,
    body: F,
}

impl<S, F> MetadataService<S, F> {
    pub(super) fn new(gate: S, document: Arc<Document>, body: F) -> Self {
        Self { gate, document, body }
    }
}

impl<S, F, ReqB, ResB> Service<Request<ReqB>> for MetadataService<S, F>
where
    S: Service<Request<ReqB>, Response = Response<ResB>>,
    F: WriteMetadata<ResB>,
{
    type Response = Response<ResB>;
    type Error = S::Error;
    type Future = MetadataFuture<S::Future, ResB>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.gate.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqB>) -> Self::Future {
        let head = RequestHead::of(&request);
        let state = match self.document.is_for(&head) {
            true => {
                let response = self.document.respond(&head).map(|content| self.body.body(content));
                ResponseOr::Response { response: Some(response) }
            }
            false => ResponseOr::Future { future: self.gate.call(request) },
        };
        MetadataFuture { state }
    }
}

impl<S: Clone, F: Clone> Clone for MetadataService<S, F> {
    fn clone(&self) -> Self {
        Self { gate: self.gate.clone(), document: Arc::clone(&self.document), body: self.body.clone() }
    }
}

impl<S: fmt::Debug, F> fmt::Debug for MetadataService<S, F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetadataService")
            .field("gate", &self.gate)
            .field("document", &self.document)
            .finish_non_exhaustive()
    }
}

pin_project_lite::pin_project! {
    /// The future of a [`MetadataService`].
    ///
    /// # Panics
    ///
    /// Panics if it is polled again after it was ready.
    #[must_use = "futures do nothing unless you `.await` or poll them"]
    pub struct MetadataFuture<F, B> {
        #[pin]
        state: ResponseOr<F, B>,
    }
}

impl<F, B, E> Future for MetadataFuture<F, B>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = Result<Response<B>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().state.poll(cx)
    }
}

impl<F, B> fmt::Debug for MetadataFuture<F, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MetadataFuture(..)")
    }
}
