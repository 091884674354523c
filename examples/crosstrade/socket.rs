//! One WebSocket (RFC 6455): its handshake, its messages, and how the connection ends.
//!
//! It uses `tokio-tungstenite` directly. axum's extractor uses it too, but hides the connection, which [`Socket::close`] needs
//! to send a Close frame that no reset overtakes.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_util::{SinkExt as _, StreamExt as _};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::ProtocolError;
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message, Utf8Bytes};

use crate::app::MAX_BODY;
use crate::problem::ProblemDetails;

/// How long a client may take to read a message, and to close.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The size of the buffer of each open socket. Larger messages take more until they are read.
const READ_BUFFER: usize = 2_048;

pub(crate) struct Socket(WebSocketStream<TokioIo<Upgraded>>);

/// A message of the client.
pub(crate) enum Received {
    Text(Utf8Bytes),
    Ping,
    Pong,
    /// The socket must end for this reason.
    End(End),
}

/// Why a socket ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    /// The client has sent a Close frame. It is answered with the same code.
    ByClient,
    /// The service sends a Close frame.
    ByService(CloseCode, &'static str),
    /// The connection is lost, or the client does not read.
    Gone,
}

impl Socket {
    /// Answers a handshake with 101, and with `protocol` if the client offers it. The second value resolves to
    /// the socket after the response was sent.
    pub(crate) fn accept(
        request: Request,
        protocol: &'static str,
    ) -> Result<(Response, impl Future<Output = Option<Self>> + Send + 'static), ProblemDetails> {
        let mut response = create_response_with_body(&request, Body::empty)
            .map_err(|error| ProblemDetails::bad_request(format!("This is not a WebSocket handshake. {error}.")))?;
        let lines = request.headers().get_all(header::SEC_WEBSOCKET_PROTOCOL).iter();
        let mut offers = lines.flat_map(|line| line.as_bytes().split(|&byte| byte == b','));
        if offers.any(|offer| offer.trim_ascii() == protocol.as_bytes()) {
            response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
        }
        let upgrade = hyper::upgrade::on(request);
        let socket = async {
            let config = WebSocketConfig::default()
                .read_buffer_size(READ_BUFFER)
                .max_message_size(Some(MAX_BODY))
                .max_frame_size(Some(MAX_BODY));
            let io = TokioIo::new(upgrade.await.ok()?);
            Some(Self(WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await))
        };
        Ok((response, socket))
    }

    /// Waits for a message. Dropping the future loses nothing.
    pub(crate) async fn receive(&mut self) -> Received {
        match self.0.next().await {
            Some(Ok(Message::Text(text))) => Received::Text(text),
            Some(Ok(Message::Ping(_))) => {
                // The answer is queued. Nothing is read until it was sent: otherwise a client that sends pings and reads no
                // answer would grow the queue.
                match timeout(TIMEOUT, self.0.flush()).await {
                    Ok(Ok(())) => Received::Ping,
                    _ => Received::End(End::Gone),
                }
            }
            Some(Ok(Message::Pong(_) | Message::Frame(_))) => Received::Pong,
            Some(Ok(Message::Binary(_))) => {
                Received::End(End::ByService(CloseCode::Unsupported, "send text messages only"))
            }
            Some(Ok(Message::Close(_))) => Received::End(End::ByClient),
            Some(Err(error)) => Received::End(End::of(&error)),
            None => Received::End(End::Gone),
        }
    }

    /// Sends a message and waits until the connection has taken it.
    pub(crate) async fn send(&mut self, message: String) -> Result<(), End> {
        self.write(Message::text(message)).await
    }

    pub(crate) async fn ping(&mut self) -> Result<(), End> {
        self.write(Message::Ping(Bytes::new())).await
    }

    async fn write(&mut self, message: Message) -> Result<(), End> {
        match timeout(TIMEOUT, self.0.send(message)).await {
            Ok(Ok(())) => Ok(()),
            _ => Err(End::Gone),
        }
    }

    /// Ends the connection: sends or answers the Close frame, and waits for that of the client.
    ///
    /// After an error the connection is not simply dropped. With unread bytes, dropping would send a reset. The reset can overtake
    /// the Close frame, and browsers would report 1006.
    pub(crate) async fn close(mut self, end: End) {
        // Boxed, so that an open socket takes no memory for it.
        _ = timeout(TIMEOUT, Box::pin(self.end(end))).await;
    }

    async fn end(&mut self, end: End) {
        let mut is_closed = false;
        match end {
            End::Gone => return,
            // The answer was queued when the frame was read. Reading on sends it.
            End::ByClient => is_closed = true,
            End::ByService(code, reason) => {
                let frame = CloseFrame { code, reason: Utf8Bytes::from_static(reason) };
                if self.0.send(Message::Close(Some(frame))).await.is_err() {
                    return;
                }
            }
        }
        while let Some(Ok(message)) = self.0.next().await {
            is_closed |= message.is_close();
        }
        let connection = self.0.get_mut();
        if !is_closed && connection.shutdown().await.is_ok() {
            let mut ignored = [0; 1_024];
            while connection.read(&mut ignored).await.is_ok_and(|read| read > 0) {}
        }
    }
}

impl End {
    fn of(error: &Error) -> Self {
        match error {
            Error::Capacity(_) => Self::ByService(CloseCode::Size, "the message is too large"),
            Error::Utf8(_) => Self::ByService(CloseCode::Invalid, "the message is not valid UTF-8"),
            Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => Self::Gone,
            Error::Protocol(_) => Self::ByService(CloseCode::Protocol, "the frame breaks the protocol"),
            _ => Self::Gone,
        }
    }
}
