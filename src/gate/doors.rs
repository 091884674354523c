use std::fmt;
use std::time::Duration;

use crate::extract::body::BodyTokens as Doors;
use crate::extract::{TokenLocationError, enable, location_name};
use crate::pending::timeout::{Sleep, Timeout};

/// The doors in the body: for callers who cannot set headers, such as TradingView's webhooks.
///
/// A body is read only if a door is open that fits the request: `POST`, `PUT` or `PATCH`, with the content type of the
/// door, not encoded. It is read up to the limit and handed on unchanged, byte for byte, with its trailers. While it is
/// read the handler does not run; if it cannot be read to its end, never.
///
/// The inner service that was made ready for the request waits meanwhile, with whatever permit that has, and for as long as a
/// stranger likes to take, up to the deadline: keep that short, and bound concurrency outside of the gate, not behind it.
///
/// A route with an open door takes no larger bodies of that type than the limit, however the caller presented the token:
/// a second token in the body would have to be noticed. So open doors on the routes that need them, and no others:
///
/// ```
/// use std::time::Duration;
/// use axum::{Router, routing::{get, post}};
/// use tollgate::gate::BodyTokens;
/// use tollgate::{AuthLayer, Grant, MemoryStore, TokenDigest};
///
/// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
/// let gate = AuthLayer::new(tokens);
/// let doors = BodyTokens::with_timeout(Duration::from_secs(2)).with_json("key")?.with_text("key")?;
/// let app: Router = Router::new()
///     .route("/orders", get(|| async {}).route_layer(gate.clone()))
///     .route("/webhook", post(|| async {}).route_layer(gate.with_body_tokens(doors)));
/// # Ok::<_, tollgate::extract::TokenLocationError>(())
/// ```
#[derive(Clone)]
pub struct BodyTokens {
    pub(super) doors: Doors,
    pub(super) limit: usize,
    pub(super) timeout: Timeout,
}

impl BodyTokens {
    /// The most bytes of a body unless something else is said: 64 KiB.
    pub const DEFAULT_LIMIT: usize = 65_536;

    /// Accepts no body tokens yet. Requests whose body takes longer than `timeout` to arrive are rejected with 408.
    ///
    /// The timer is tokio's; [`with_timer`](Self::with_timer) takes another.
    #[cfg(feature = "tokio")]
    #[must_use]
    pub fn with_timeout(timeout: Duration) -> Self {
        Self::with_timer(timeout, tokio::time::sleep)
    }

    /// Accepts no body tokens yet, with the timer of any runtime.
    ///
    /// Requests whose body takes longer than `timeout` to arrive are rejected with 408. `sleep` returns a future that is ready
    /// after the given time.
    #[must_use]
    pub fn with_timer(timeout: Duration, sleep: impl Sleep) -> Self {
        Self { doors: Doors::default(), limit: Self::DEFAULT_LIMIT, timeout: Timeout::new(timeout, sleep) }
    }

    /// The same, and a token is taken from this member of a JSON object, in `application/json` and `*/*+json`; see
    /// [`extract::json`](crate::extract::json).
    ///
    /// # Errors
    ///
    /// If the name is empty, or the door is open already.
    pub fn with_json(mut self, member: &str) -> Result<Self, TokenLocationError> {
        enable(&mut self.doors.json, location_name(member)?)?;
        Ok(self)
    }

    /// The same, and a token is taken from this field of a `name=value;` text, in `text/plain`; see
    /// [`extract::text`](crate::extract::text).
    ///
    /// # Errors
    ///
    /// If no field can have this name (it is empty, has `=` or `;` in it, or white space around it), or the door is open
    /// already.
    pub fn with_text(mut self, field: &str) -> Result<Self, TokenLocationError> {
        self.doors.enable_text(field)?;
        Ok(self)
    }

    /// The same, and a token is taken from this field of a form (RFC 6750, section 2.2: `access_token`), in
    /// `application/x-www-form-urlencoded`; see [`extract::form`](crate::extract::form).
    ///
    /// # Errors
    ///
    /// If the name is empty, or the door is open already.
    pub fn with_form(mut self, field: &str) -> Result<Self, TokenLocationError> {
        enable(&mut self.doors.form, location_name(field)?)?;
        Ok(self)
    }

    /// Parses a `text/plain` body as JSON if its first character is `{`, for senders that send JSON as text, as TradingView
    /// does at times. Needs [`with_json`](Self::with_json), whose member it reads.
    ///
    /// The first character is what follows at most one byte order mark and any spaces, tabs and line ends. It alone decides:
    ///
    /// - A body that begins with `{` is JSON. Fields such as `key=...;` in it are not looked at. If it is not valid JSON, the
    ///   request is rejected with 400, and is not parsed as a text.
    /// - Any other body is a text, also one that has JSON in a value. If [`with_text`](Self::with_text) is not set, it has no
    ///   token.
    ///
    /// # Security
    ///
    /// The handler must parse the body by the same rule; otherwise it may act on fields that the gate did not check.
    /// [`CurrentGrant::location`](crate::CurrentGrant::location) is [`TokenLocation::JsonBody`](crate::TokenLocation::JsonBody) if the gate
    /// found the token in JSON, whatever the content type.
    ///
    /// Whoever writes the first character of a text chooses the parser. So let no text begin with a placeholder that somebody
    /// else can fill.
    #[must_use]
    pub fn with_json_in_text(mut self) -> Self {
        self.doors.sniff = true;
        self
    }

    /// The same with another limit than 64 on how deep arrays and objects of a JSON body may be nested. What is deeper is
    /// refused with 400.
    #[must_use]
    pub fn with_max_depth(mut self, depth: usize) -> Self {
        self.doors.max_depth = depth;
        self
    }

    /// The same with another limit on the bytes of a body. Longer ones are refused with 413.
    #[must_use]
    pub fn with_limit(mut self, bytes: usize) -> Self {
        self.limit = bytes;
        self
    }
}

impl fmt::Debug for BodyTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyTokens")
            .field("doors", &self.doors)
            .field("limit", &self.limit)
            .field("deadline", &self.timeout.duration)
            .finish()
    }
}
