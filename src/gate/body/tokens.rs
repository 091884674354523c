//! [`BodyTokens`]: the token locations in the body, with the limits for reading it.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use crate::extract::body::{BodyLocation, BodyTokens as Locations};
use crate::extract::{Extracted, InvalidRequest, TokenLocationError, TokenSyntax, enable, location_name};
use crate::pending::timeout::{BoxSleep, Sleep, Timeout};
use crate::request_head::RequestHead;
use crate::token::TokenLocation;

/// The token locations in request bodies, for clients that cannot set headers, such as TradingView webhooks.
///
/// ```
/// use std::time::Duration;
/// use axum::{Router, routing::{get, post}};
/// use tollgate::gate::BodyTokens;
/// use tollgate::{AuthLayer, Grant, MemoryStore, TokenDigest};
///
/// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
/// let gate = AuthLayer::new(tokens);
/// let body = BodyTokens::with_timeout(Duration::from_secs(2)).with_json("key")?.with_text("key")?;
/// let app: Router = Router::new()
///     .route("/orders", get(|| async {}).route_layer(gate.clone()))
///     .route("/webhook", post(|| async {}).route_layer(gate.with_body_tokens(body)));
/// # Ok::<_, tollgate::extract::TokenLocationError>(())
/// ```
///
/// Accept tokens in the body only on routes that need it. On such a route, bodies of an accepted type are limited in size
/// even if the token is in a header, because the gate must find a second token in the body.
///
/// # Reading
///
/// A body is read if all of this is true:
///
/// - The method is `POST`, `PUT` or `PATCH`.
/// - The content type is that of an accepted location.
/// - The body has no content encoding.
///
/// The gate reads the body up to the limit before it calls the handler. The handler gets the body byte for byte, with its
/// trailers. If the body cannot be read to its end, the handler is not called.
///
/// While the gate reads, the inner service that was made ready for the request waits, with its permits. A slow client holds
/// them until the timeout. Use a short timeout, and limit concurrency outside of the gate, not behind it.
#[derive(Clone)]
pub struct BodyTokens {
    locations: Locations,
    limit: usize,
    timeout: Timeout,
}

impl BodyTokens {
    /// The default limit on the size of a body: 64 KiB.
    pub const DEFAULT_LIMIT: usize = 65_536;

    /// Creates settings without a token location: add one or more.
    ///
    /// Requests whose body takes longer than `timeout` to arrive are rejected with 408. The timer is tokio's;
    /// [`with_timer`](Self::with_timer) takes another.
    #[cfg(feature = "tokio")]
    #[must_use]
    pub fn with_timeout(timeout: Duration) -> Self {
        Self::with_timer(timeout, tokio::time::sleep)
    }

    /// Creates settings without a token location, with the timer of any runtime.
    ///
    /// Requests whose body takes longer than `timeout` to arrive are rejected with 408. `sleep` returns a future that is ready
    /// after the given time.
    #[must_use]
    pub fn with_timer(timeout: Duration, sleep: impl Sleep) -> Self {
        Self { locations: Locations::default(), limit: Self::DEFAULT_LIMIT, timeout: Timeout::new(timeout, sleep) }
    }

    /// Accepts a token in this member of a JSON object. The content types are `application/json` and `*/*+json`.
    ///
    /// See [`extract::json`](crate::extract::json) for the syntax.
    ///
    /// # Errors
    ///
    /// Returns an error if the name is empty, or if a JSON member is set already.
    pub fn with_json(mut self, member: &str) -> Result<Self, TokenLocationError> {
        enable(&mut self.locations.json, location_name(member)?)?;
        Ok(self)
    }

    /// Accepts a token in this field of a `name=value;` text. The content type is `text/plain`.
    ///
    /// See [`extract::text`](crate::extract::text) for the syntax.
    ///
    /// # Errors
    ///
    /// Returns an error in these cases:
    ///
    /// - The name is empty, contains `=` or `;`, or begins or ends with white space. No field can have such a name.
    /// - A text field is set already.
    pub fn with_text(mut self, field: &str) -> Result<Self, TokenLocationError> {
        self.locations.enable_text(field)?;
        Ok(self)
    }

    /// Accepts a token in this form field (RFC 6750, section 2.2: `access_token`).
    ///
    /// The content type is `application/x-www-form-urlencoded`. See [`extract::form`](crate::extract::form) for the syntax.
    ///
    /// # Errors
    ///
    /// Returns an error if the name is empty, or if a form field is set already.
    pub fn with_form(mut self, field: &str) -> Result<Self, TokenLocationError> {
        enable(&mut self.locations.form, location_name(field)?)?;
        Ok(self)
    }

    /// Parses a `text/plain` body as JSON if its first character is `{`. Some senders, such as TradingView, send JSON as text.
    ///
    /// Requires [`with_json`](Self::with_json), which names the member.
    ///
    /// One byte order mark and any spaces, tabs and line ends before the first character are skipped. Only the first
    /// character decides:
    ///
    /// - A body that begins with `{` is JSON. Fields such as `key=...;` in it are ignored. If it is not valid JSON, the
    ///   request is rejected with 400, and the body is not parsed as a text.
    /// - Any other body is a text, even if a value contains JSON. Without [`with_text`](Self::with_text), it has no token.
    ///
    /// # Security
    ///
    /// The handler must parse the body by the same rule. Otherwise it may act on fields that the gate did not check.
    /// [`CurrentGrant::location`](crate::CurrentGrant::location) is [`TokenLocation::JsonBody`] if the gate found the token in
    /// JSON, whatever the content type.
    ///
    /// The author of the first character of a text chooses the parser. Do not let a text begin with a placeholder whose value
    /// comes from another party.
    #[must_use]
    pub fn with_json_in_text(mut self) -> Self {
        self.locations.sniff = true;
        self
    }

    /// Sets the maximum nesting depth of arrays and objects in JSON. Default: 64. Deeper bodies are rejected with 400.
    #[must_use]
    pub fn with_max_depth(mut self, depth: usize) -> Self {
        self.locations.max_depth = depth;
        self
    }

    /// Sets the maximum size of a body in bytes. Default: [`DEFAULT_LIMIT`](Self::DEFAULT_LIMIT). Larger bodies are rejected
    /// with 413.
    #[must_use]
    pub fn with_limit(mut self, bytes: usize) -> Self {
        self.limit = bytes;
        self
    }

    /// Returns whether tokens are accepted in this form field.
    #[cfg(feature = "resource-metadata")]
    pub(in crate::gate) fn is_form_field(&self, name: &str) -> bool {
        self.locations.form.as_deref() == Some(name)
    }

    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    pub(super) fn start_timeout(&self) -> BoxSleep {
        self.timeout.start()
    }

    /// Returns the location that a request may have its token in, or `None` if the body is not to be read.
    pub(super) fn location_of(&self, head: &RequestHead<'_>) -> Result<Option<BodyLocation>, InvalidRequest> {
        self.locations.location_for(head)
    }

    /// Returns the credential in a body, its location, and its position.
    pub(super) fn extract<'a>(
        &self,
        location: BodyLocation,
        body: &'a [u8],
        syntax: TokenSyntax,
    ) -> (Extracted<'a>, TokenLocation, Range<usize>) {
        self.locations.extract(location, body, syntax)
    }
}

impl fmt::Debug for BodyTokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BodyTokens")
            .field("locations", &self.locations)
            .field("limit", &self.limit)
            .field("timeout", &self.timeout.duration)
            .finish()
    }
}
