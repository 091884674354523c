//! [`TokenLocation`]: the part of a request that contained a token.

use std::fmt;

use super::digest::TokenDigest;

/// The part of a request that contained the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TokenLocation {
    /// The header field `Authorization: Bearer` (RFC 6750, section 2.1).
    AuthorizationHeader,
    /// A custom header field, such as `X-API-Key`.
    ApiKeyHeader,
    /// The query of the request target (RFC 6750, section 2.3).
    Query,
    /// The header field `Sec-WebSocket-Protocol`.
    WebSocketProtocol,
    /// A form in the body (RFC 6750, section 2.2).
    FormBody,
    /// A member of a JSON body.
    JsonBody,
    /// A field of a text body.
    TextBody,
    /// Another part of the request, which a closure of the service reads.
    Other,
}

impl TokenLocation {
    /// Returns the name of the location, such as `authorization_header`. It is the value of the metrics label `location`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AuthorizationHeader => "authorization_header",
            Self::ApiKeyHeader => "api_key_header",
            Self::Query => "query",
            Self::WebSocketProtocol => "websocket_protocol",
            Self::FormBody => "form_body",
            Self::JsonBody => "json_body",
            Self::TextBody => "text_body",
            Self::Other => "other",
        }
    }
}

impl TokenLocation {
    const ALL: [Self; 8] = [
        Self::AuthorizationHeader,
        Self::ApiKeyHeader,
        Self::Query,
        Self::WebSocketProtocol,
        Self::FormBody,
        Self::JsonBody,
        Self::TextBody,
        Self::Other,
    ];

    /// Returns the location with this [name](Self::as_str). Returns `None` for an unknown name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|location| location.as_str() == name)
    }
}

impl fmt::Display for TokenLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The location and digest of a token, without the token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Credential {
    pub(crate) location: TokenLocation,
    pub(crate) digest: Option<TokenDigest>,
}

impl Default for Credential {
    /// Returns the credential of tests, which insert a grant into a request without a gate.
    fn default() -> Self {
        Self { location: TokenLocation::AuthorizationHeader, digest: None }
    }
}
