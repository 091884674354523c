//! The doors in the head of a request, and what they hold together.

use std::fmt;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, header};
use thiserror::Error;

use super::{Extracted, InvalidRequest, TokenSyntax, api_key, authorization, is_tchar, query, websocket};
use crate::request_head::RequestHead;
use crate::token::TokenLocation;

/// A door that cannot be opened, found when a gate is set up.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum TokenLocationError {
    /// The name is empty, or has a character that it cannot have where it would be looked for.
    #[error("no request can hold a credential under this name")]
    Name,
    /// The header field is one that the gate or HTTP itself reads in another way.
    #[error("the header field has another purpose")]
    Field,
    /// There is one door of a kind.
    #[error("a door of this kind is open already")]
    Open,
}

/// Opens a door that was closed.
pub(crate) fn open<T>(door: &mut Option<T>, name: T) -> Result<(), TokenLocationError> {
    match door.replace(name) {
        None => Ok(()),
        Some(_) => Err(TokenLocationError::Open),
    }
}

/// The name of a parameter, field or member, for doors that find any name but none.
pub(crate) fn door_name(name: &str) -> Result<Arc<str>, TokenLocationError> {
    if name.is_empty() { Err(TokenLocationError::Name) } else { Ok(name.into()) }
}

/// The open doors in the head of a request.
#[derive(Clone, Default)]
pub(crate) struct HeadDoors {
    /// Whether `Authorization` is of another purpose: the one door that is open unless it is closed.
    pub(crate) authorization_closed: bool,
    pub(crate) api_key: Option<HeaderName>,
    /// Whether the API key is not looked at where there are Bearer credentials.
    pub(crate) api_key_yields: bool,
    pub(crate) query: Option<Arc<str>>,
    pub(crate) websocket: Option<Arc<str>>,
    pub(crate) others: Vec<Arc<OtherDoor>>,
}

/// A door of the service's own: what is behind it, and whether there is more.
pub(crate) type OtherDoor = dyn Fn(&RequestHead<'_>) -> (Option<Vec<u8>>, bool) + Send + Sync;

impl HeadDoors {
    /// Opens the door of an API key.
    pub(crate) fn open_api_key(&mut self, name: HeaderName, yields: bool) -> Result<(), TokenLocationError> {
        const OTHERWISE_USED: [HeaderName; 12] = [
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
        if OTHERWISE_USED.contains(&name) {
            return Err(TokenLocationError::Field);
        }
        self.api_key_yields = yields;
        open(&mut self.api_key, name)
    }

    /// Opens the door in WebSocket sub-protocols, which are HTTP tokens.
    pub(crate) fn open_websocket(&mut self, prefix: &str) -> Result<(), TokenLocationError> {
        let prefix = door_name(prefix)?;
        match prefix.bytes().all(is_tchar) {
            true => open(&mut self.websocket, prefix),
            false => Err(TokenLocationError::Name),
        }
    }

    /// Whether `Authorization` is the only open door, as usual.
    #[inline]
    pub(crate) fn are_usual(&self) -> bool {
        !self.authorization_closed
            && self.api_key.is_none()
            && self.query.is_none()
            && self.websocket.is_none()
            && self.others.is_empty()
    }

    fn authorization<'a>(&self, headers: &'a HeaderMap, form: TokenSyntax) -> Extracted<'a> {
        match self.authorization_closed {
            true => Extracted::Nothing,
            false => authorization(headers, form),
        }
    }

    /// The field of the API key, if it is looked at beside what `Authorization` holds.
    pub(crate) fn api_key_beside(&self, headers: &HeaderMap, form: TokenSyntax) -> Option<&HeaderName> {
        let yields = || self.api_key_yields && !matches!(self.authorization(headers, form), Extracted::Nothing);
        self.api_key.as_ref().filter(|_| !yields())
    }

    /// What the head of a request holds, behind all open doors together.
    pub(crate) fn look<'a>(&self, head: &RequestHead<'a>, form: TokenSyntax) -> (Extracted<'a>, TokenLocation) {
        let mut found = (self.authorization(head.headers, form), TokenLocation::AuthorizationHeader);
        let mut add = |presented: Extracted<'a>, location| {
            let (before, of) = std::mem::replace(&mut found, (Extracted::Nothing, location));
            found = before.and(of, presented, location);
        };
        if let Some(name) = self.api_key_beside(head.headers, form) {
            add(api_key(head.headers, name, form), TokenLocation::ApiKeyHeader);
        }
        if let Some(name) = &self.query {
            add(query(head.method, head.uri, name, form), TokenLocation::Query);
        }
        if let Some(prefix) = &self.websocket {
            add(websocket(head, prefix, form), TokenLocation::WebSocketProtocol);
        }
        for other in &self.others {
            let presented = match other(head) {
                (None, _) => Extracted::Nothing,
                (Some(value), false) => Extracted::value(value, form),
                (Some(_), true) => Extracted::Ambiguous(InvalidRequest::SeveralCredentials),
            };
            add(presented, TokenLocation::Other);
        }
        found
    }
}

impl fmt::Debug for HeadDoors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeadDoors")
            .field("authorization", &!self.authorization_closed)
            .field("api_key", &self.api_key)
            .field("query", &self.query)
            .field("websocket", &self.websocket)
            .field("others", &self.others.len())
            .finish()
    }
}
