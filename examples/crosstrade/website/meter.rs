//! The state of a user's rate limit, as server-sent events.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::HeaderName;
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::stream;
use serde_json::json;
use tokio::time::{Instant, sleep};
use tollgate::{Decision, Quota, Subject};
use tower_sessions::Session;

use super::error::PageError;
use super::{Site, Unattended, plan, tokens};
use crate::sockets::Place;

/// The path of the events.
pub(crate) const PATH: &str = "/account/usage";
/// The interval at which the limiter is asked.
const INTERVAL: Duration = Duration::from_millis(500);
/// The interval at which the session and the plan are read again.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// An open meter.
struct Meter {
    site: Arc<Site>,
    session: Session,
    user: String,
    quota: Quota,
    check_at: Instant,
    sent: Option<String>,
    /// Counts the meter while it is open.
    _place: Place,
}

/// Sends the state of the user's bucket when it changes, until the session ends.
///
/// The last event is `end`. The stream does not extend the session: a page that is left open is no activity.
pub(crate) async fn events(
    State(site): State<Arc<Site>>,
    Unattended(visit): Unattended,
) -> Result<impl IntoResponse, PageError> {
    let place = site.meters.enter(&Subject::from(visit.user.name.as_str())).ok_or(PageError::TooMany(None))?;
    let meter = Meter {
        site,
        session: visit.session,
        user: visit.user.name,
        quota: crate::app::QUOTA,
        check_at: Instant::now(),
        sent: None,
        _place: place,
    };
    let events = stream::unfold(Some(meter), |meter| async {
        let mut meter = meter?;
        match meter.next().await {
            Next::Changed(data) => Some((Ok::<_, Infallible>(Event::default().data(data)), Some(meter))),
            Next::SignedOut => Some((Ok(Event::default().event("end").data("signed out")), None)),
            // The browser opens a new stream.
            Next::Interrupted => None,
        }
    });
    // nginx would collect events otherwise.
    let unbuffered = [(HeaderName::from_static("x-accel-buffering"), "no")];
    Ok((unbuffered, Sse::new(events).keep_alive(KeepAlive::default())))
}

enum Next {
    Changed(String),
    SignedOut,
    Interrupted,
}

impl Meter {
    async fn next(&mut self) -> Next {
        let mut closing = self.site.service.closing.clone();
        loop {
            if Instant::now() >= self.check_at {
                match self.check().await {
                    Ok(true) => self.check_at = Instant::now() + CHECK_INTERVAL,
                    Ok(false) => return Next::SignedOut,
                    Err(_) => return Next::Interrupted,
                }
            }
            // While Redis is unavailable, the meter shows that it does not know.
            let usage = self.site.service.ledger.usage(&Subject::from(self.user.as_str()), Some(self.quota)).await;
            let data = usage.map_or_else(|| json!({ "unknown": true }), |usage| self.data(&usage)).to_string();
            if self.sent.as_ref() != Some(&data) {
                self.sent = Some(data.clone());
                return Next::Changed(data);
            }
            tokio::select! {
                () = sleep(INTERVAL) => {}
                _ = closing.wait_for(|closing| *closing) => return Next::Interrupted,
            }
        }
    }

    /// Reads the session, the user and the plan again. Returns false if the session has ended.
    async fn check(&mut self) -> Result<bool, PageError> {
        self.session.load().await?;
        let website = &self.site.website;
        let state = website.sessions.state(&self.session).await?;
        if state.is_none_or(|state| state.user != self.user) || website.users.find(&self.user).await?.is_none() {
            return Ok(false);
        }
        let grant = tokens::grant_of(&website.database, &self.user, self.site.now()).await?;
        self.quota = grant.as_ref().map_or(crate::app::QUOTA, plan::quota_of);
        Ok(true)
    }

    fn data(&self, usage: &Decision) -> serde_json::Value {
        json!({
            "remaining": usage.remaining(),
            "burst": self.quota.burst(),
            "full_in_s": usage.full_in().as_secs_f64().ceil(),
        })
    }
}
