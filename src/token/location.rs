//! Where in a request a token was, and what is known of it afterwards.

use std::fmt;

use super::digest::TokenDigest;

/// Where in a request a token was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TokenLocation {
    /// `Authorization: Bearer` (RFC 6750, section 2.1).
    AuthorizationHeader,
    /// A header field of the service's own, such as `X-API-Key`.
    ApiKeyHeader,
    /// The query of the target (RFC 6750, section 2.3).
    Query,
    /// `Sec-WebSocket-Protocol`.
    WebSocketProtocol,
    /// A form in the body (RFC 6750, section 2.2).
    FormBody,
    /// A member of a JSON body.
    JsonBody,
    /// A field of a text body.
    TextBody,
    /// Where a closure found it.
    Other,
}

impl TokenLocation {
    /// Returns the name that metrics use as label `location`, such as `authorization_header`.
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

impl fmt::Display for TokenLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a request presented, when the token itself is gone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Credential {
    pub(crate) location: TokenLocation,
    pub(crate) digest: Option<TokenDigest>,
}

impl Default for Credential {
    /// What a test presents that puts a grant into a request by itself.
    fn default() -> Self {
        Self { location: TokenLocation::AuthorizationHeader, digest: None }
    }
}
