//! Bodies over real connections.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tollgate::gate::{BodyAuthLayer, BodyTokens};
use tollgate::{AuthLayer, Limiter, TokenStore};
use tower::ServiceBuilder;

use crate::kit::body::*;
use crate::kit::*;

pin_project_lite::pin_project! {
    /// A body that counts the bytes read from the connection.
    struct Counted {
        #[pin]
        body: Incoming,
        read: Arc<AtomicUsize>,
        begun: Arc<Notify>,
    }
}

impl http_body::Body for Counted {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let this = self.project();
        let polled = this.body.poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &polled {
            this.read.fetch_add(frame.data_ref().map_or(0, Bytes::len), Ordering::SeqCst);
            this.begun.notify_one();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A server for one connection.
struct Server {
    addr: SocketAddr,
    runs: Runs,
    read: Arc<AtomicUsize>,
    /// Notified when the first bytes of a body were read.
    begun: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Server {
    async fn start<T: TokenStore, L: Limiter>(layer: BodyAuthLayer<T, L>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (runs, read, begun) = (Runs::default(), Arc::<AtomicUsize>::default(), Arc::<Notify>::default());
        let counting = {
            let (read, begun) = (Arc::clone(&read), Arc::clone(&begun));
            move |request: Request<Incoming>| {
                request.map(|body| Counted { body, read: Arc::clone(&read), begun: Arc::clone(&begun) })
            }
        };
        let service = ServiceBuilder::new().map_request(counting).layer(layer).service(reader(&runs));
        let task = tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let service = TowerToHyperService::new(service);
            let connection =
                http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service);
            // Some tests interrupt the connection on purpose.
            drop(connection.await);
        });
        Self { addr, runs, read, begun, task }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.addr).await.unwrap()
    }

    /// Waits for the end of the connection and returns the runs of the handler.
    async fn end(self) -> usize {
        self.task.await.unwrap();
        self.runs.count()
    }
}

fn head(fields: &str) -> String {
    format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n{fields}\r\n\r\n")
}

fn in_chunks(body: &str) -> String {
    let chunks: String = body
        .as_bytes()
        .chunks(7)
        .map(|chunk| format!("{:x}\r\n{}\r\n", chunk.len(), std::str::from_utf8(chunk).unwrap()))
        .collect();
    format!("{chunks}0\r\nx-sum: 42\r\n\r\n")
}

async fn read_to_end(mut stream: impl tokio::io::AsyncRead + Unpin) -> String {
    let mut answer = Vec::new();
    // Bytes read before an error count.
    _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn bodies_over_sockets_are_read_in_any_framing() {
    let body = json_with(TOKEN);
    let server = Server::start(gate()).await;
    let mut client = server.connect().await;
    let sized = format!("{}{body}", head(&format!("content-length: {}", body.len())));
    let chunked = format!("{}{}", head("transfer-encoding: chunked\r\ntrailer: x-sum"), in_chunks(&body));
    let unknown =
        format!("{}{}", head("transfer-encoding: chunked\r\nconnection: close"), in_chunks(&json_with("tg_no")));
    for request in [sized, chunked, unknown] {
        client.write_all(request.as_bytes()).await.unwrap();
    }
    let answers = read_to_end(client).await;
    let statuses: Vec<_> = answers.match_indices("HTTP/1.1 ").map(|(at, _)| &answers[at + 9..at + 12]).collect();
    let read: Vec<_> = answers.match_indices(&body).collect();
    assert_eq!(statuses, ["200", "200", "401"], "{answers}");
    assert_eq!(read.len(), 2, "{answers}");
    assert!(answers.contains("x-seen-sum: 42"), "{answers}");
    assert_eq!(server.end().await, 2);
}

#[tokio::test]
async fn a_silent_client_gets_408() {
    let hasty = BodyTokens::with_timeout(Duration::from_millis(300)).with_json("key").unwrap();
    for (framing, body) in [
        ("content-length: 1000", ""),
        ("content-length: 1000", "{\"key\":"),
        ("transfer-encoding: chunked", ""),
        ("transfer-encoding: chunked", "3\r\n{\"k\r\n"),
        ("transfer-encoding: chunked", "3\r\n{\"k\r\n3\r\ney"),
    ] {
        let server = Server::start(AuthLayer::new(memory()).with_body_tokens(hasty.clone())).await;
        let mut client = server.connect().await;
        client.write_all(format!("{}{body}", head(framing)).as_bytes()).await.unwrap();
        let answer = read_to_end(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 408 "), "{framing} {body:?}: {answer}");
        drop(client);
        assert_eq!(server.end().await, 0);
    }
}

#[tokio::test]
async fn a_client_that_disconnects_mid_body_never_reaches_the_handler() {
    let body = json_with(TOKEN);
    let sized = format!("content-length: {}", body.len() + 1);
    let chunk = format!("{:x}\r\n{body}\r\n", body.len());
    for (framing, sent) in [(&*sized, &body), ("transfer-encoding: chunked", &chunk)] {
        let request = format!("{}{sent}", head(framing));

        let server = Server::start(gate()).await;
        let mut half = server.connect().await;
        half.write_all(request.as_bytes()).await.unwrap();
        half.shutdown().await.unwrap();
        let answer = read_to_end(&mut half).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert_eq!(server.end().await, 0, "{framing}, half closed");

        let server = Server::start(gate()).await;
        let mut reset = server.connect().await;
        reset.write_all(request.as_bytes()).await.unwrap();
        server.begun.notified().await;
        reset.set_zero_linger().unwrap();
        drop(reset);
        assert_eq!(server.end().await, 0, "{framing}, reset");
    }
}

#[tokio::test]
async fn bodies_above_the_limit_are_not_read() {
    // With a `content-length`, nothing is read.
    let server = Server::start(gate()).await;
    let mut client = server.connect().await;
    client.write_all(head("content-length: 10000000").as_bytes()).await.unwrap();
    assert!(read_to_end(&mut client).await.starts_with("HTTP/1.1 413 "));
    drop(client);
    assert_eq!(server.read.load(Ordering::SeqCst), 0);
    assert_eq!(server.end().await, 0);

    // Without a `content-length`, about the limit is read. hyper may read a piece more.
    let server = Server::start(gate()).await;
    let (client, mut writer) = server.connect().await.into_split();
    let sending = tokio::spawn(async move {
        writer.write_all(head("transfer-encoding: chunked").as_bytes()).await?;
        let chunk = format!("1000\r\n{}\r\n", " ".repeat(0x1000));
        for _ in 0..4_096 {
            writer.write_all(chunk.as_bytes()).await?;
        }
        writer.flush().await
    });
    assert!(read_to_end(client).await.starts_with("HTTP/1.1 413 "));
    assert!(sending.await.unwrap().is_err(), "the server has closed the connection");
    let read = Arc::clone(&server.read);
    assert_eq!(server.end().await, 0);
    let read = read.load(Ordering::SeqCst);
    assert!(read <= BodyTokens::DEFAULT_LIMIT + 512 * 1024, "{read} bytes were read");
}
