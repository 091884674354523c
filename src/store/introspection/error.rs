//! [`IntrospectionConfigError`] and [`IntrospectionError`].

use std::error::Error;
use std::fmt;

use http::StatusCode;
use thiserror::Error as ThisError;

use crate::rejection::store_error::StoreError;
use crate::store::claims::Malformed;
use crate::store::client::{BodyError, ClientError};

/// The error of an [`IntrospectionStore`](super::IntrospectionStore) with an invalid setting.
#[derive(Debug, ThisError, PartialEq, Eq)]
#[non_exhaustive]
pub enum IntrospectionConfigError {
    /// The endpoint is not an absolute HTTP URL.
    #[error("invalid introspection endpoint: must be an absolute https URL")]
    Endpoint,
    /// The endpoint is not `https`, not on this machine, and not allowed to be `http`.
    #[error("invalid introspection endpoint: must be https")]
    Insecure,
    /// The endpoint contains a user or a password. Use [`ClientAuth`](super::ClientAuth) instead.
    #[error("invalid introspection endpoint: must not contain a user or a password")]
    UserInfo,
    /// The endpoint contains a fragment.
    #[error("invalid introspection endpoint: must not contain a fragment")]
    Fragment,
    /// The client identifier is empty.
    #[error("invalid client identifier: must not be empty")]
    ClientId,
    /// The service's own token does not have the syntax of Bearer tokens.
    #[error("invalid Bearer token for the introspection endpoint")]
    BearerToken,
    /// A timeout is zero.
    #[error("invalid introspection timeout: must be more than 0")]
    Timeout,
    /// The maximum length of a response is zero.
    #[error("invalid maximum length of introspection responses: must be at least 1")]
    MaxAnswer,
    /// A root certificate cannot be read, or the PEM text contains none.
    #[error("invalid root certificate")]
    RootCertificate,
    /// An audience is empty.
    #[error("invalid audience: must not be empty")]
    Audience,
    /// The HTTP client could not be created, for example without entropy.
    #[error("the HTTP client could not be created")]
    Client,
}

/// The error of a failed introspection. The gate responds with 503.
///
/// It contains neither the token nor text of the response, which may repeat the token.
#[derive(Debug)]
pub struct IntrospectionError(Cause);

#[derive(Debug)]
pub(super) enum Cause {
    Timeout,
    Transport(Box<dyn Error + Send + Sync>),
    Credentials(StatusCode),
    Status(StatusCode),
    MediaType,
    TooLarge(usize),
    Json {
        line: usize,
        column: usize,
        /// Whether the response is the beginning of an object. Users may choose text in it, such as a name.
        is_object: bool,
    },
    NotOneObject,
    NoActive,
    Member(&'static str),
    TokenType,
    NoSubject,
    Principal(Box<dyn Error + Send + Sync>),
}

impl Cause {
    pub(super) fn transport(error: reqwest::Error) -> Self {
        BodyError::from(error).into()
    }

    /// Omits the message of the error, because it can quote the response.
    pub(super) fn json(error: &serde_json::Error, response: &[u8]) -> Self {
        if error.is_data() {
            return Self::NotOneObject;
        }
        let is_object = error.is_syntax() && response.trim_ascii_start().starts_with(b"{");
        Self::Json { line: error.line(), column: error.column(), is_object }
    }
}

impl From<BodyError> for Cause {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::Timeout => Self::Timeout,
            BodyError::Transport(error) => Self::Transport(error),
            BodyError::TooLarge(max) => Self::TooLarge(max),
        }
    }
}

impl From<Malformed> for Cause {
    fn from(Malformed(name): Malformed) -> Self {
        Self::Member(name)
    }
}

impl From<ClientError> for IntrospectionConfigError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Url => Self::Endpoint,
            ClientError::Insecure => Self::Insecure,
            ClientError::UserInfo => Self::UserInfo,
            ClientError::Fragment => Self::Fragment,
            ClientError::Timeout => Self::Timeout,
            ClientError::RootCertificate => Self::RootCertificate,
            ClientError::Client => Self::Client,
        }
    }
}

impl From<Cause> for IntrospectionError {
    fn from(cause: Cause) -> Self {
        Self(cause)
    }
}

impl IntrospectionError {
    /// Returns whether the request timed out.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self.0, Cause::Timeout)
    }

    /// Returns whether the endpoint rejected the credentials of this service (401, 403). An operator must correct them.
    #[must_use]
    pub fn is_credentials(&self) -> bool {
        matches!(self.0, Cause::Credentials(_))
    }

    /// Returns true if the endpoint works, but its response about this token cannot be used. See the table of
    /// [`IntrospectionStore`](super::IntrospectionStore#errors).
    #[must_use]
    pub fn concerns_token(&self) -> bool {
        match &self.0 {
            Cause::Timeout | Cause::Transport(_) | Cause::Credentials(_) | Cause::MediaType => false,
            Cause::Json { is_object, .. } => *is_object,
            Cause::Status(status) => is_about_the_token(*status),
            // A client can cause these by its choice of token.
            Cause::TooLarge(_)
            | Cause::NotOneObject
            | Cause::NoActive
            | Cause::Member(_)
            | Cause::TokenType
            | Cause::NoSubject => true,
            Cause::Principal(error) => StoreError::within(&**error).is_none_or(StoreError::concerns_token),
        }
    }

    /// Returns the status of the response, if the status is the error.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        match self.0 {
            Cause::Credentials(status) | Cause::Status(status) => Some(status),
            _ => None,
        }
    }
}

/// Returns whether the status rejects the token. 401 and 403 reject the service's own credentials, and are not passed here.
fn is_about_the_token(status: StatusCode) -> bool {
    // These depend on the configuration or on the time.
    let is_about_the_service = matches!(
        status,
        StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::PROXY_AUTHENTICATION_REQUIRED
            | StatusCode::REQUEST_TIMEOUT
            | StatusCode::UNSUPPORTED_MEDIA_TYPE
            | StatusCode::TOO_MANY_REQUESTS
    );
    status.is_client_error() && !is_about_the_service
}

impl From<IntrospectionError> for StoreError {
    fn from(error: IntrospectionError) -> Self {
        match error.concerns_token() {
            true => Self::for_token(error),
            false => Self::new(error),
        }
    }
}

impl fmt::Display for IntrospectionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Cause::Timeout => f.write_str("the introspection request timed out"),
            Cause::Transport(_) => f.write_str("the introspection request failed"),
            Cause::Credentials(status) => {
                write!(f, "the introspection endpoint rejected the credentials of this service ({})", status.as_u16())
            }
            Cause::Status(status) => write!(f, "the introspection endpoint responded with status {}", status.as_u16()),
            Cause::MediaType => f.write_str("the introspection response has no JSON media type"),
            Cause::TooLarge(max) => write!(f, "the introspection response is larger than {max} bytes"),
            Cause::Json { line, column, .. } => {
                write!(f, "the introspection response is not JSON (line {line}, column {column})")
            }
            Cause::NotOneObject => {
                f.write_str("the introspection response is not an object, or has a duplicate member")
            }
            Cause::NoActive => f.write_str("the introspection response has no boolean `active`"),
            Cause::Member(name) => write!(f, "the introspection response has a malformed `{name}`"),
            Cause::TokenType => {
                f.write_str("the `token_type` of the introspection response is neither Bearer nor DPoP")
            }
            Cause::NoSubject => f.write_str("the introspection response has no subject"),
            Cause::Principal(_) => f.write_str("the principal could not be created from the introspection response"),
        }
    }
}

impl Error for IntrospectionError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            Cause::Transport(source) | Cause::Principal(source) => Some(&**source),
            _ => None,
        }
    }
}
