//! The WebSocket sessions. A socket outlives the request that opened it, and may outlive its token. So a session charges and
//! authenticates every message, and checks the grant after a change.
//!
//! | the token of a silent socket | when the socket is closed with 1008 |
//! |---|---|
//! | was revoked, or belongs to another grant | after the database has reported the change and the token was looked up again |
//! | has expired, or its grace period after a rotation is over | at that time, without a lookup |
//! | changed during an outage of the database | after the outage; messages are answered with 503 until then |

use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tollgate::{Authenticated, Charge, CurrentGrant, Grant, Verdict};

use crate::app::{Service, User};
use crate::connections::RETRY_AFTER;
use crate::live::Subscription;
use crate::problem::ProblemDetails;
use crate::rpc;
use crate::socket::{End, Received, Socket};
use crate::sockets::Place;

/// The sub-protocol of the messages. A client that sends its token as a sub-protocol must offer this one too.
pub(crate) const PROTOCOL: &str = "crosstrade.v1";
/// The interval of pings to a silent client. A client that has sent nothing by the next ping is gone.
pub(crate) const PING_EVERY: Duration = Duration::from_secs(30);

/// Opens a socket. The gate charges one unit for it, as for any request, so that sockets cannot replace messages.
pub(crate) async fn open(
    State(service): State<Arc<Service>>,
    caller: Authenticated<User>,
    request: Request,
) -> Result<Response, ProblemDetails> {
    let (response, socket) = Socket::accept(request, PROTOCOL)?;
    let Some(token) = caller.token_digest() else {
        return Err(ProblemDetails::new(StatusCode::INTERNAL_SERVER_ERROR, "The gate has not recorded the token."));
    };
    let Some(place) = service.sockets.enter(caller.grant().subject()) else {
        return Err(ProblemDetails::too_many("You have the maximum number of sockets open.", RETRY_AFTER));
    };
    tokio::spawn(async move {
        if let Some(socket) = socket.await {
            let grant = Arc::clone(caller.grant());
            let live = service.tokens.live().subscribe(token, &grant);
            Session { service, grant, live, _place: place }.run(socket).await;
        }
    });
    Ok(response)
}

struct Session {
    service: Arc<Service>,
    /// The grant of the last lookup.
    grant: Arc<Grant<User>>,
    live: Subscription,
    _place: Place,
}

impl Session {
    async fn run(mut self, mut socket: Socket) {
        let Err(end) = self.talk(&mut socket).await;
        socket.close(end).await;
    }

    async fn talk(&mut self, socket: &mut Socket) -> Result<Infallible, End> {
        let mut closing = self.service.closing.clone();
        let mut next_ping = Instant::now() + PING_EVERY;
        let mut is_alive = true;
        let mut timer = pin!(sleep_until(next_ping));
        loop {
            self.check_validity()?;
            if Instant::now() >= next_ping {
                if !is_alive {
                    return Err(End::Gone);
                }
                socket.ping().await?;
                next_ping = Instant::now() + PING_EVERY;
                is_alive = false;
            }
            timer.as_mut().reset(self.expires().map_or(next_ping, |end| end.min(next_ping)));
            tokio::select! {
                // Read what a client has sent before its ping times out.
                biased;
                () = async { _ = closing.wait_for(|closing| *closing).await } => {
                    return Err(End::ByService(CloseCode::Away, "the service stops"));
                }
                current = self.live.changed() => self.take_over(current)?,
                received = socket.receive() => {
                    is_alive = true;
                    match received {
                        // Boxed, so that a silent socket takes no memory for it.
                        Received::Text(text) => {
                            let answer = Box::pin(self.answer(&text)).await?;
                            socket.send(answer.to_string()).await?;
                        }
                        Received::Ping | Received::Pong => {}
                        Received::End(end) => return Err(end),
                    }
                }
                () = &mut timer => {}
            }
        }
    }

    /// Charges, authenticates and answers a message, by the same rate limit as the other interfaces. The last known grant is
    /// charged first, so that messages over the limit cause no lookup.
    async fn answer(&mut self, text: &str) -> Result<Value, End> {
        let charge = self.service.ledger.charge(&CurrentGrant::new(Arc::clone(&self.grant)), Charge::Units(1));
        let decision = charge.await;
        if !decision.is_admitted() {
            // The session stays open: the client can wait and continue.
            let (status, error) = match decision.verdict() {
                Verdict::Unavailable => (503, "Rate limits cannot be checked now"),
                _ => (429, "Rate limit exceeded"),
            };
            let retry_after = decision.retry_after_secs();
            return Ok(json!({ "op": "error", "status": status, "error": error, "retry_after": retry_after }));
        }
        match self.live.find().await {
            Ok(current) => {
                self.take_over(current)?;
                Ok(rpc::answer(&self.service, &self.grant, text))
            }
            // The session stays open, because the token may be valid.
            Err(_) => Ok(json!({ "op": "error", "status": 503, "error": "Tokens cannot be checked now" })),
        }
    }

    /// Replaces the grant, whose scopes and quota may have changed. Ends the session if the token has another grant or none.
    fn take_over(&mut self, current: Option<Arc<Grant<User>>>) -> Result<(), End> {
        match current {
            None => Err(End::ByService(CloseCode::Policy, "the token was revoked")),
            Some(grant) if grant.id() != self.grant.id() => {
                Err(End::ByService(CloseCode::Policy, "the token belongs to another grant"))
            }
            Some(grant) => {
                self.grant = grant;
                self.check_validity()
            }
        }
    }

    fn check_validity(&self) -> Result<(), End> {
        match self.grant.is_valid_at((self.service.clocks.wall)()) {
            true => Ok(()),
            false => Err(End::ByService(CloseCode::Policy, "the token has expired")),
        }
    }

    /// Returns when the token expires or its grace period ends, provided that the clock is not set until then.
    fn expires(&self) -> Option<Instant> {
        let left = self.grant.expires_at()?.duration_since((self.service.clocks.wall)()).unwrap_or_default();
        Instant::now().checked_add(left)
    }
}
