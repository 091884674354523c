//! The WebSocket door. A socket outlives the request that opened it, and so may outlive its token: what the gate did
//! once is done here again for every message.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade, close_code};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, timeout};
use tollgate::{Authenticated, Charge, CurrentGrant, Grant, TokenDigest, Verdict};

use crate::app::{MAX_BODY, Service, User};
use crate::problem::Problem;
use crate::rpc;
use crate::sockets::Place;

/// The protocol that is spoken on the socket. A client that sends its token as a sub-protocol has to offer this too.
pub(crate) const PROTOCOL: &str = "crosstrade.v1";
/// How long a silent socket may outlive its token.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a client may take to read an answer, or to close.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a silent client is asked whether it is still there. One that has said nothing by the next time is not.
pub(crate) const PING_EVERY: Duration = Duration::from_secs(30);

/// Opens a socket. That costs one unit, like any request: who could open sockets for nothing would not need messages.
pub(crate) async fn open(
    State(service): State<Arc<Service>>,
    who: Authenticated<User>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let upgrade = upgrade.map_err(|rejection| Problem::new(rejection.status(), rejection.body_text()))?;
    let Some(token) = who.token_digest() else {
        return Err(Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "The gate has not said which token opens this."));
    };
    let Some(place) = service.sockets.enter(who.grant().subject()) else {
        return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, "You have as many sockets open as you may."));
    };
    let session = Session { service, token, grant: Arc::clone(who.grant()), _place: place };
    let upgrade = upgrade.protocols([PROTOCOL]).max_message_size(MAX_BODY).max_frame_size(MAX_BODY);
    Ok(upgrade.on_upgrade(|socket| session.run(socket)))
}

struct Session {
    service: Arc<Service>,
    token: TokenDigest,
    /// As it was when it was last looked at.
    grant: Arc<Grant<User>>,
    _place: Place,
}

/// Why the service ends a session: a close code and a word.
type End = (u16, &'static str);

/// Why a message is not answered.
enum Gone {
    End(u16, &'static str),
    /// Nobody can tell now whether the token is good. That ends no session.
    Unavailable,
}

impl Session {
    async fn run(mut self, mut socket: WebSocket) {
        let mut closing = self.service.closing.clone();
        let [mut look, mut ping] = [LOOK_EVERY, PING_EVERY].map(every);
        let mut is_there = true;
        let end = loop {
            let message = tokio::select! {
                () = async { _ = closing.wait_for(|closing| *closing).await } => break (close_code::AWAY, "the service stops"),
                message = socket.recv() => message,
                _ = look.tick() => match self.look().await {
                    Ok(()) => continue,
                    Err(Gone::Unavailable) => {
                        // Whoever is down is not asked by all sockets each second.
                        look.reset_after(PATIENCE);
                        continue;
                    }
                    Err(Gone::End(code, reason)) => break (code, reason),
                },
                _ = ping.tick() => {
                    if !is_there || !send(&mut socket, Message::Ping(Bytes::new())).await {
                        return;
                    }
                    is_there = false;
                    continue;
                }
            };
            is_there = true;
            let answer = match message {
                Some(Ok(Message::Text(text))) => self.answer(&text).await,
                Some(Ok(Message::Binary(_))) => break (close_code::UNSUPPORTED, "messages are text"),
                // Pings are answered by the library.
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                Some(Ok(Message::Close(_)) | Err(_)) | None => return,
            };
            match answer {
                Ok(answer) if send(&mut socket, Message::text(answer.to_string())).await => {}
                Ok(_) => return,
                Err(end) => break end,
            }
        };
        close(socket, end).await;
    }

    /// Charges, authenticates, answers: the road of a request, once more. The budget is the same as at the other doors. It is
    /// charged first, by the grant of a moment ago, so that who is over his limit does not have the database asked.
    async fn answer(&mut self, text: &str) -> Result<Value, End> {
        let charge = self.service.ledger.charge(&CurrentGrant::new(Arc::clone(&self.grant)), Charge::Units(1));
        let decision = charge.wait().await;
        if !decision.is_admitted() {
            // No reason to end the session: the client waits and goes on.
            let (status, error) = match decision.verdict() {
                Verdict::Unavailable => (503, "Budgets cannot be charged now"),
                _ => (429, "Rate limit exceeded"),
            };
            let retry_after = decision.retry_after_secs();
            return Ok(json!({ "op": "error", "status": status, "error": error, "retry_after": retry_after }));
        }
        match self.look().await {
            Ok(()) => Ok(rpc::answer(&self.service, &self.grant, text)),
            Err(Gone::End(code, reason)) => Err((code, reason)),
            Err(Gone::Unavailable) => {
                Ok(json!({ "op": "error", "status": 503, "error": "Tokens cannot be checked now" }))
            }
        }
    }

    /// Looks at the grant as it is now: its scopes and quota may have changed, and it may be over.
    async fn look(&mut self) -> Result<(), Gone> {
        let ended = |reason| Err(Gone::End(close_code::POLICY, reason));
        // By the token, not by the grant's name: of a grant with two tokens one alone may be revoked.
        match self.service.tokens.current(self.token).await {
            Err(_) => Err(Gone::Unavailable),
            Ok(None) => ended("the token was revoked"),
            Ok(Some(grant)) if grant.id() != self.grant.id() => ended("the token is of somebody else now"),
            Ok(Some(grant)) if !grant.is_valid_at((self.service.clocks.wall)()) => ended("the token has expired"),
            Ok(Some(grant)) => {
                self.grant = grant;
                Ok(())
            }
        }
    }
}

fn every(period: Duration) -> Interval {
    let mut ticks = interval_at(Instant::now() + period, period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Whether the client has taken it.
async fn send(socket: &mut WebSocket, message: Message) -> bool {
    matches!(timeout(PATIENCE, socket.send(message)).await, Ok(Ok(())))
}

/// Says why, and waits for the client to have heard it: a connection that is dropped while messages are still coming in
/// is reset, and a reset can overtake what was said.
async fn close(mut socket: WebSocket, (code, reason): End) {
    let goodbye = Message::Close(Some(CloseFrame { code, reason: reason.into() }));
    _ = timeout(PATIENCE, async {
        if socket.send(goodbye).await.is_ok() {
            while let Some(Ok(_)) = socket.recv().await {}
        }
    })
    .await;
}
