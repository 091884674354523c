//! One connection: the TLS handshake, then HTTP/1 or HTTP/2 until its end.
//!
//! HTTP/2 needs TLS. On plaintext `hyper-util` would wait without a time limit for the first bytes, by which it distinguishes
//! the two versions. With TLS, ALPN has chosen the version before.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tollgate::RequestHead;
use tollgate::gate::HttpsConnection;

use crate::body::{HeldBody, TimedBody};
use crate::connections::{Connections, Permit, RETRY_AFTER};
use crate::io::TimedIo;
use crate::plaintext;
use crate::problem::ProblemDetails;
use crate::server::Limits;
use crate::streams::{Expired, Stream, Streams};
use crate::tls::HTTP2;

/// The maximum size of a request's head in bytes, and the maximum number of its fields. The answer is 431 beyond.
pub(crate) const MAX_HEAD: usize = 16_384;
pub(crate) const MAX_FIELDS: usize = 64;
/// The maximum number of open streams of an HTTP/2 connection. Each may have a body in memory.
pub(crate) const MAX_STREAMS: u32 = 32;
/// The bytes of a body that a client may send before they are read, on one stream and on all streams of a connection.
const STREAM_WINDOW: u32 = 65_535;
const CONNECTION_WINDOW: u32 = 4 * STREAM_WINDOW;
/// The bytes of a response that wait for the client, per stream.
const SEND_BUFFER: usize = 65_536;
/// A year (RFC 6797). Subdomains are not included: they may be other services.
const HSTS: HeaderValue = HeaderValue::from_static("max-age=31536000");

/// An accepted connection, and the state that its requests need.
pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    pub(crate) peer: SocketAddr,
    pub(crate) permit: Permit,
    pub(crate) tls: Option<TlsAcceptor>,
    pub(crate) app: Router,
    pub(crate) limits: Limits,
    pub(crate) connections: Connections,
}

impl Connection {
    /// Serves the connection until it ends. Errors are the client's: it closed the connection, or was too slow.
    pub(crate) async fn serve(self) {
        let Self { stream, peer, permit, tls, app, limits, connections } = self;
        let (stopping, write) = (permit.stopping(), limits.write);
        let permit = Arc::new(permit);
        let io = TimedIo::new(stream, write, Arc::clone(&permit));
        let is_tls = tls.is_some();
        let app = TowerToHyperService::new(app);
        let requests = Arc::new(Requests { app, peer, is_tls, permit, limits, connections, stopping });
        match tls {
            None => requests.serve_http1(io).await,
            // Boxed, so that a plaintext connection takes no memory for it.
            Some(tls) => Box::pin(requests.serve_tls(tls, io)).await,
        }
    }
}

/// The requests of one connection.
struct Requests {
    app: TowerToHyperService<Router>,
    peer: SocketAddr,
    is_tls: bool,
    permit: Arc<Permit>,
    limits: Limits,
    connections: Connections,
    stopping: watch::Receiver<bool>,
}

impl Requests {
    async fn serve_tls(self: Arc<Self>, tls: TlsAcceptor, io: TimedIo<TcpStream>) {
        let handshake = timeout(self.limits.handshake, handshake(tls, io));
        let mut stopping = self.stopping.clone();
        let io = tokio::select! {
            biased;
            io = handshake => io,
            () = end_of(&mut stopping) => return,
        };
        match io {
            Ok(Some(io)) if io.get_ref().1.alpn_protocol() == Some(HTTP2) => self.serve_http2(io).await,
            Ok(Some(io)) => self.serve_http1(io).await,
            Ok(None) | Err(_) => {}
        }
    }

    async fn serve_http1(self: Arc<Self>, io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let (limits, mut stopping) = (self.limits.clone(), self.stopping.clone());
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_FIELDS)
            // A client that shuts down its side after the request waits for the answer.
            .half_close(true);
        let service = service_fn(move |request| {
            let requests = Arc::clone(&self);
            async move {
                let mut response = requests.answer(request, None).await;
                if *requests.stopping.borrow() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(response)
            }
        });
        let mut served = pin!(http.serve_connection(TokioIo::new(io), service).with_upgrades());
        tokio::select! {
            biased;
            _ = &mut served => return,
            stopped = stopping.wait_for(|stopping| *stopping) => if stopped.is_err() { return },
        }
        tokio::select! {
            biased;
            _ = &mut served => return,
            () = sleep(limits.drain) => served.as_mut().graceful_shutdown(),
        }
        tokio::select! {
            _ = served => {}
            () = end_of(&mut stopping) => {}
        }
    }

    async fn serve_http2(self: Arc<Self>, io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static) {
        let (limits, mut stopping) = (self.limits.clone(), self.stopping.clone());
        // The limits on streams that the client resets are those of h2.
        let mut http = http2::Builder::new(TokioExecutor::new());
        http.timer(TokioTimer::new())
            .max_header_list_size(MAX_HEAD as u32)
            .max_concurrent_streams(MAX_STREAMS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .keep_alive_interval(limits.head)
            .keep_alive_timeout(limits.write);
        let streams = Streams::default();
        let opening = streams.clone();
        let service = service_fn(move |request| {
            let (requests, stream) = (Arc::clone(&self), opening.open());
            async move { Ok::<_, Infallible>(requests.answer(request, Some(stream)).await) }
        });
        let mut served = pin!(http.serve_connection(TokioIo::new(io), service));
        tokio::select! {
            biased;
            _ = &mut served => return,
            expired = streams.expired(limits.head, limits.write) => if expired == Expired::Unread { return },
            stopped = stopping.wait_for(|stopping| *stopping) => if stopped.is_err() { return },
        }
        // Sends GOAWAY. Requests that the client has sent before it sees that are answered.
        served.as_mut().graceful_shutdown();
        tokio::select! {
            biased;
            _ = &mut served => {}
            _ = streams.expired(limits.drain, limits.write) => {}
            () = end_of(&mut stopping) => {}
        }
    }

    /// Answers a request, on a stream for HTTP/2.
    async fn answer(&self, request: Request<Incoming>, stream: Option<Stream>) -> Response {
        let mut request = request.map(|body| TimedBody::new(body, self.limits.body));
        // The gates limit failures by the peer's address, or by the address that a proxy at that address sends.
        request.extensions_mut().insert(self.peer);
        if self.is_tls {
            request.extensions_mut().insert(HttpsConnection);
        }
        let has_hsts = self.is_tls && !is_local(&request);
        let mut response = self.answer_client(request).await;
        if has_hsts {
            response.headers_mut().insert(header::STRICT_TRANSPORT_SECURITY, HSTS);
        }
        match stream {
            None => response,
            Some(stream) => response.map(|body| Body::new(stream.respond(body))),
        }
    }

    /// Answers a request, and counts it as a connection of the client if it comes through a proxy.
    async fn answer_client(&self, request: Request<TimedBody>) -> Response {
        // hyper limits them for HTTP/1 only.
        if request.headers().len() > MAX_FIELDS {
            let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
            return ProblemDetails::new(status, "The request has too many header fields.").into_response();
        }
        let proxies = self.limits.proxies.as_ref();
        let client = proxies.and_then(|proxies| proxies.client(&RequestHead::of(&request)));
        let Some(client) = client else { return self.call(request).await };
        let Some(place) = self.connections.enter(client) else {
            tracing::warn!(peer = %client, "request rejected: too many of this client are in progress");
            let detail = "Too many requests of this address are in progress.";
            let rejection = ProblemDetails::new(StatusCode::SERVICE_UNAVAILABLE, detail);
            return rejection.with_retry_after(RETRY_AFTER).into_response();
        };
        let response = self.call(request).await;
        match response.status() {
            // The connection is the client's from now on.
            StatusCode::SWITCHING_PROTOCOLS => {
                self.permit.hold(place);
                response
            }
            _ => response.map(|body| Body::new(HeldBody::new(body, place))),
        }
    }

    async fn call(&self, request: Request<TimedBody>) -> Response {
        self.app.call(request).await.unwrap_or_else(|never: Infallible| match never {})
    }
}

/// Returns `None` if the handshake fails. The client gets an alert.
async fn handshake(tls: TlsAcceptor, io: TimedIo<TcpStream>) -> Option<TlsStream<TimedIo<TcpStream>>> {
    match tls.accept(io).into_fallible().await {
        Ok(io) => Some(io),
        Err((_, mut io)) => {
            // Otherwise a reset could overtake the alert.
            _ = io.shutdown().await;
            None
        }
    }
}

/// Waits until `serve` has returned: the time of all connections is over.
async fn end_of(stopping: &mut watch::Receiver<bool>) {
    while stopping.changed().await.is_ok() {}
}

/// Returns whether a request is for `localhost`. HSTS would force HTTPS on all other services of a developer's machine.
fn is_local<B>(request: &Request<B>) -> bool {
    plaintext::authority(&RequestHead::of(request))
        .is_some_and(|authority| authority.host().eq_ignore_ascii_case("localhost"))
}
