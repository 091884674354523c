//! The token locations of an [`AuthLayer`] in the head of a request.

use std::sync::Arc;

use http::HeaderName;

use super::layer::AuthLayer;
use super::marker::ReadsTokens;
use crate::extract::{HeadLocations, TokenLocationError, enable, location_name};
use crate::request_head::RequestHead;

/// Token locations. By default, a gate extracts tokens from the `Authorization` header only.
impl<T, L, R, B: ReadsTokens> AuthLayer<T, L, R, B> {
    /// Ignores the `Authorization` header, for routes where the field belongs to another party, such as a proxy in front.
    ///
    /// The gate neither reads nor removes the field. Enable another token location; otherwise all requests are rejected.
    /// Requests without credentials still get a Bearer challenge.
    #[must_use]
    pub fn without_authorization_header(self) -> Self {
        self.map_settings(|settings| settings.locations.authorization_disabled = true)
    }

    /// Extracts tokens from this header field as well, such as `X-API-Key`. The field value is the token alone.
    ///
    /// There is no standard for such fields, and no challenge. Requests without credentials still get a Bearer challenge.
    ///
    /// ```
    /// use http::HeaderName;
    /// use tollgate::{AuthLayer, Grant, MemoryStore, TokenDigest};
    ///
    /// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
    /// let gate = AuthLayer::new(tokens).with_api_key_header(HeaderName::from_static("x-api-key"))?;
    /// # let _ = gate;
    /// # Ok::<_, tollgate::extract::TokenLocationError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Returns an error if the field has another purpose, such as `Authorization`, or if an API key header is set already.
    pub fn with_api_key_header(self, name: HeaderName) -> Result<Self, TokenLocationError> {
        self.with_location(|locations| locations.enable_api_key(name, false))
    }

    /// Extracts tokens from this header field as well, but ignores the field in requests with Bearer credentials.
    ///
    /// This is for services behind a gateway that uses the field for its own purpose. Beside Bearer credentials, the field
    /// does not count as a second credential.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`with_api_key_header`](Self::with_api_key_header).
    pub fn with_api_key_header_unless_bearer(self, name: HeaderName) -> Result<Self, TokenLocationError> {
        self.with_location(|locations| locations.enable_api_key(name, true))
    }

    /// Extracts tokens from this query parameter of `GET` and `HEAD` requests as well (RFC 6750, section 2.3: `access_token`).
    ///
    /// # Security
    ///
    /// Current best practice forbids this (RFC 9700, section 4.3.2), because URLs appear in logs, histories and `Referer`
    /// fields. Responses get `Cache-Control: private` and `Referrer-Policy: no-referrer`. Logs outside of the gate still
    /// contain the token.
    ///
    /// # Errors
    ///
    /// Returns an error if the name is empty, or if a query parameter is set already.
    pub fn with_discouraged_query_token(self, parameter: &str) -> Result<Self, TokenLocationError> {
        self.with_location(|locations| enable(&mut locations.query, location_name(parameter)?))
    }

    /// Extracts tokens from WebSocket sub-protocols as well, after this prefix and in base64url without padding.
    ///
    /// See [`extract::websocket`](crate::extract::websocket).
    ///
    /// ```
    /// use tollgate::{AuthLayer, Grant, MemoryStore, TokenDigest};
    ///
    /// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
    /// let gate = AuthLayer::new(tokens).with_websocket_token("base64url.bearer.authorization.example.")?;
    /// # let _ = gate;
    /// # Ok::<_, tollgate::extract::TokenLocationError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Returns an error in these cases:
    ///
    /// - The prefix is empty, or has a character that a sub-protocol cannot have (RFC 9110, section 5.6.2: `token`).
    /// - A prefix is set already.
    pub fn with_websocket_token(self, prefix: &str) -> Result<Self, TokenLocationError> {
        self.with_location(|locations| locations.enable_websocket(prefix))
    }

    /// Extracts tokens from the request head with a closure as well, such as from a cookie or another scheme.
    ///
    /// The closure returns all tokens that it finds. An `Option` suffices for a location with at most one token. Each must
    /// have the syntax of a token. A request with several credentials is rejected with 400.
    ///
    /// The gate does not know the position of the credential, so it can neither mark nor remove it.
    ///
    /// ```
    /// use tollgate::{AuthLayer, Grant, MemoryStore, TokenDigest};
    ///
    /// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
    /// let gate = AuthLayer::new(tokens).with_token_from(|head| {
    ///     let lines = head.headers.get_all("authorization").iter();
    ///     lines.filter_map(|line| line.as_bytes().strip_prefix(b"Token ")).map(<[u8]>::to_vec).collect::<Vec<_>>()
    /// });
    /// # let _ = gate;
    /// ```
    #[must_use]
    pub fn with_token_from<I>(self, find: impl Fn(&RequestHead<'_>) -> I + Send + Sync + 'static) -> Self
    where
        I: IntoIterator<Item = Vec<u8>>,
    {
        let find = move |head: &RequestHead<'_>| {
            let mut found = find(head).into_iter();
            (found.next(), found.next().is_some())
        };
        self.map_settings(|settings| settings.locations.others.push(Arc::new(find)))
    }

    fn with_location(
        self,
        add: impl FnOnce(&mut HeadLocations) -> Result<(), TokenLocationError>,
    ) -> Result<Self, TokenLocationError> {
        let mut result = Ok(());
        let layer = self.map_settings(|settings| result = add(&mut settings.locations));
        result.map(|()| layer)
    }
}
