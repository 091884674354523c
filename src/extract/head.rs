//! Token locations in the head of a request, and their combined result.

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, header};
use thiserror::Error;

use super::{Extracted, InvalidRequest, TokenSyntax, api_key, authorization, is_tchar, query, websocket};
use crate::request_head::RequestHead;
use crate::token::TokenLocation;

/// An invalid token location, found when a gate is built.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenLocationError {
    /// The name is empty, or has a character that is not allowed in this location.
    #[error("invalid name of a token location")]
    Name,
    /// The header field is used by the gate or by HTTP itself.
    #[error("reserved header field: it cannot hold a token")]
    Field,
    /// A location of this kind is already enabled.
    #[error("a token location of this kind is already enabled")]
    AlreadyEnabled,
}

/// Enables a location, under this name.
pub(crate) fn enable<T>(location: &mut Option<T>, name: T) -> Result<(), TokenLocationError> {
    match location.replace(name) {
        None => Ok(()),
        Some(_) => Err(TokenLocationError::AlreadyEnabled),
    }
}

/// Checks the name of a query parameter, form field or JSON member: it must not be empty.
pub(crate) fn location_name(name: &str) -> Result<Arc<str>, TokenLocationError> {
    if name.is_empty() { Err(TokenLocationError::Name) } else { Ok(name.into()) }
}

/// The enabled locations in the head of a request.
#[derive(Clone, Default)]
pub(crate) struct HeadLocations {
    /// `true` if `Authorization` is not read. It is the only location that is enabled by default.
    pub(crate) authorization_disabled: bool,
    pub(crate) api_key: Option<HeaderName>,
    /// `true` if the API key is ignored in requests with Bearer credentials.
    pub(crate) api_key_is_fallback: bool,
    pub(crate) query: Option<Arc<str>>,
    pub(crate) websocket: Option<Arc<str>>,
    pub(crate) others: Vec<Arc<CustomLocation>>,
}

/// A custom location: returns the value, and whether there is more than one.
pub(crate) type CustomLocation = dyn Fn(&RequestHead<'_>) -> (Option<Vec<u8>>, bool) + Send + Sync;

impl HeadLocations {
    /// Enables the API-key header.
    pub(crate) fn enable_api_key(&mut self, name: HeaderName, is_fallback: bool) -> Result<(), TokenLocationError> {
        const RESERVED: [HeaderName; 12] = [
            header::ACCESS_CONTROL_REQUEST_METHOD,
            header::AUTHORIZATION,
            header::CONNECTION,
            header::CONTENT_ENCODING,
            header::CONTENT_LENGTH,
            header::CONTENT_TYPE,
            header::COOKIE,
            header::HOST,
            header::ORIGIN,
            header::SEC_WEBSOCKET_PROTOCOL,
            header::TRANSFER_ENCODING,
            header::UPGRADE,
        ];
        if RESERVED.contains(&name) {
            return Err(TokenLocationError::Field);
        }
        self.api_key_is_fallback = is_fallback;
        enable(&mut self.api_key, name)
    }

    /// Enables WebSocket sub-protocols. The prefix must be an HTTP token.
    pub(crate) fn enable_websocket(&mut self, prefix: &str) -> Result<(), TokenLocationError> {
        let prefix = location_name(prefix)?;
        match prefix.bytes().all(is_tchar) {
            true => enable(&mut self.websocket, prefix),
            false => Err(TokenLocationError::Name),
        }
    }

    /// Returns whether `Authorization` is the only enabled location, as by default.
    #[inline]
    pub(crate) fn is_authorization_only(&self) -> bool {
        !self.authorization_disabled
            && self.api_key.is_none()
            && self.query.is_none()
            && self.websocket.is_none()
            && self.others.is_empty()
    }

    fn authorization<'a>(&self, headers: &'a HeaderMap, syntax: TokenSyntax) -> Extracted<'a> {
        match self.authorization_disabled {
            true => Extracted::Nothing,
            false => authorization(headers, syntax),
        }
    }

    /// Returns the API-key header, if this request's is read.
    pub(crate) fn api_key_beside(&self, headers: &HeaderMap, syntax: TokenSyntax) -> Option<&HeaderName> {
        let is_ignored =
            || self.api_key_is_fallback && !matches!(self.authorization(headers, syntax), Extracted::Nothing);
        self.api_key.as_ref().filter(|_| !is_ignored())
    }

    /// Reads all enabled locations of the head.
    pub(crate) fn extract<'a>(&self, head: &RequestHead<'a>, syntax: TokenSyntax) -> (Extracted<'a>, TokenLocation) {
        let mut found = (self.authorization(head.headers, syntax), TokenLocation::AuthorizationHeader);
        let mut add = |extracted: Extracted<'a>, location| {
            let (before, of) = std::mem::replace(&mut found, (Extracted::Nothing, location));
            found = before.and(of, extracted, location);
        };
        if let Some(name) = self.api_key_beside(head.headers, syntax) {
            add(api_key(head.headers, name, syntax), TokenLocation::ApiKeyHeader);
        }
        if let Some(name) = &self.query {
            add(query(head.method, head.uri, name, syntax), TokenLocation::Query);
        }
        if let Some(prefix) = &self.websocket {
            add(websocket(head, prefix, syntax), TokenLocation::WebSocketProtocol);
        }
        for other in &self.others {
            let extracted = match other(head) {
                (None, _) => Extracted::Nothing,
                (Some(value), false) => Extracted::value(value, syntax),
                (Some(_), true) => Extracted::Ambiguous(InvalidRequest::SeveralCredentials),
            };
            add(extracted, TokenLocation::Other);
        }
        found
    }
}

impl fmt::Debug for HeadLocations {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeadLocations")
            .field("authorization", &!self.authorization_disabled)
            .field("api_key", &self.api_key)
            .field("query", &self.query)
            .field("websocket", &self.websocket)
            .field("others", &self.others.len())
            .finish()
    }
}
