//! The WebSocket door. A socket outlives the request that opened it, and so may outlive its token: what the gate did
//! once is done here again for every message, and when the grant changes.
//!
//! | the token of a silent socket | the socket is closed with 1008 |
//! |---|---|
//! | was revoked, or is of another grant now | when the database has told of the change, and the token was looked up again |
//! | has expired, or the grace period of a rotated one is over | then, without a lookup |
//! | while the database cannot be reached | as soon as it can; a message is answered with 503 until then |

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
use crate::live::Subscription;
use crate::problem::ProblemDetails;
use crate::rpc;
use crate::socket::{End, Received, Socket};
use crate::sockets::Place;

/// The protocol that is spoken on the socket. A client that sends its token as a sub-protocol has to offer this too.
pub(crate) const PROTOCOL: &str = "crosstrade.v1";
/// How often a silent client is asked whether it is still there. One that has said nothing by the next time is not.
pub(crate) const PING_EVERY: Duration = Duration::from_secs(30);

/// Opens a socket. That costs one unit, like any request: who could open sockets for nothing would not need messages.
pub(crate) async fn open(
    State(service): State<Arc<Service>>,
    who: Authenticated<User>,
    request: Request,
) -> Result<Response, ProblemDetails> {
    let (response, socket) = Socket::accept(request, PROTOCOL)?;
    let Some(token) = who.token_digest() else {
        return Err(ProblemDetails::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "The gate has not said which token opens this.",
        ));
    };
    let Some(place) = service.sockets.enter(who.grant().subject()) else {
        return Err(ProblemDetails::new(StatusCode::TOO_MANY_REQUESTS, "You have as many sockets open as you may."));
    };
    tokio::spawn(async move {
        if let Some(socket) = socket.await {
            let grant = Arc::clone(who.grant());
            let live = service.tokens.live().subscribe(token, &grant);
            Session { service, grant, live, _place: place }.run(socket).await;
        }
    });
    Ok(response)
}

struct Session {
    service: Arc<Service>,
    /// As it was when it was last looked up.
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
        let mut is_there = true;
        let mut timer = pin!(sleep_until(next_ping));
        loop {
            self.check_validity()?;
            if Instant::now() >= next_ping {
                if !is_there {
                    return Err(End::Gone);
                }
                socket.ping().await?;
                next_ping = Instant::now() + PING_EVERY;
                is_there = false;
            }
            timer.as_mut().reset(self.expires().map_or(next_ping, |end| end.min(next_ping)));
            tokio::select! {
                // What a client has sent counts before the time at which it is given up.
                biased;
                () = async { _ = closing.wait_for(|closing| *closing).await } => {
                    return Err(End::ByService(CloseCode::Away, "the service stops"));
                }
                current = self.live.changed() => self.take_over(current)?,
                received = socket.receive() => {
                    is_there = true;
                    match received {
                        // On the heap, so that a silent socket takes no memory for it.
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

    /// Charges, authenticates, answers: the road of a request, once more. The budget is the same as at the other doors. It is
    /// charged first, by the grant of a moment ago, so that who is over his limit does not have the database asked.
    async fn answer(&mut self, text: &str) -> Result<Value, End> {
        let charge = self.service.ledger.charge(&CurrentGrant::new(Arc::clone(&self.grant)), Charge::Units(1));
        let decision = charge.await;
        if !decision.is_admitted() {
            // No reason to end the session: the client waits and goes on.
            let (status, error) = match decision.verdict() {
                Verdict::Unavailable => (503, "Budgets cannot be charged now"),
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
            // This ends no session: nobody can tell now whether the token is good.
            Err(_) => Ok(json!({ "op": "error", "status": 503, "error": "Tokens cannot be checked now" })),
        }
    }

    /// Takes over the grant as it is now, whose scopes and quota may have changed, unless it is another one, or none.
    fn take_over(&mut self, current: Option<Arc<Grant<User>>>) -> Result<(), End> {
        match current {
            None => Err(End::ByService(CloseCode::Policy, "the token was revoked")),
            Some(grant) if grant.id() != self.grant.id() => {
                Err(End::ByService(CloseCode::Policy, "the token is of somebody else now"))
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

    /// When the token expires, or its grace period ends, if the clock is not set until then.
    fn expires(&self) -> Option<Instant> {
        let left = self.grant.expires_at()?.duration_since((self.service.clocks.wall)()).unwrap_or_default();
        Instant::now().checked_add(left)
    }
}
