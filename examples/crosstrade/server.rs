//! HTTP/1 on a listener, with bounds on what a client may send before anybody knows who it is.
//!
//! `axum::serve` sets none: it waits for a head as long as a client likes. (HTTP/2 beside it would have to be told from
//! HTTP/1 by its first bytes, and `hyper-util` waits for these without end as well.)

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// The most bytes of a request's head, and the most fields in it. Past either, hyper answers 431.
pub(crate) const MAX_HEAD: usize = 16_384;
const MAX_FIELDS: usize = 64;
/// How long requests, and sockets, may take to end after the service was asked to stop.
pub(crate) const GRACE: Duration = Duration::from_secs(10);

/// Serves until `stop`, then what has begun, for [`GRACE`] at the most. A head has to come within `head_deadline`; an idle
/// connection is closed after it too.
pub(crate) async fn serve(listener: TcpListener, app: Router, head_deadline: Duration, stop: impl Future<Output = ()>) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(head_deadline).max_buf_size(MAX_HEAD).max_headers(MAX_FIELDS);
    let (stopping, stopped) = watch::channel(());
    let mut stop = pin!(stop);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = &mut stop => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                _ = tokio::spawn(connection(http.clone(), stream, peer, app.clone(), stopped.clone()));
            }
            // Of one client, who has gone already.
            Err(error) if is_of_client(error.kind()) => {}
            // Mostly a lack of file descriptors, which takes time to pass.
            Err(_) => sleep(Duration::from_secs(1)).await,
        }
    }
    // New connections are refused from here on, and do not wait in vain.
    drop((listener, stopped));
    stopping.send_replace(());
    // Until no connection listens any more.
    _ = timeout(GRACE, stopping.closed()).await;
}

fn is_of_client(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::ConnectionAborted | ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset)
}

async fn connection(
    http: http1::Builder,
    stream: TcpStream,
    peer: SocketAddr,
    app: Router,
    mut stopped: watch::Receiver<()>,
) {
    // Answers are small, and waiting to send more at once gains nothing.
    _ = stream.set_nodelay(true);
    let app = TowerToHyperService::new(app);
    // The gates want to know who it is that fails.
    let app = service_fn(move |mut request| {
        request.extensions_mut().insert(peer);
        app.call(request)
    });
    let mut served = pin!(http.serve_connection(TokioIo::new(stream), app).with_upgrades());
    // What goes wrong on a connection is the client's affair: it was cut, or too slow.
    tokio::select! {
        _ = &mut served => {}
        _ = stopped.changed() => {
            served.as_mut().graceful_shutdown();
            _ = served.await;
        }
    }
}
