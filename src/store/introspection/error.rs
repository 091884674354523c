use std::error::Error;
use std::fmt;

use http::StatusCode;
use thiserror::Error as ThisError;

use crate::rejection::store_error::StoreError;

/// Why an [`IntrospectionStore`](super::IntrospectionStore) could not be built.
#[derive(Debug, ThisError, PartialEq, Eq)]
#[non_exhaustive]
pub enum IntrospectionConfigError {
    /// The endpoint is no absolute URL of HTTP.
    #[error("the introspection endpoint is no absolute URL")]
    Endpoint,
    /// The endpoint is not `https`, and neither on this machine nor allowed to be in clear.
    #[error("the introspection endpoint is not https")]
    Insecure,
    /// The endpoint has a user or a password: that is what [`ClientAuth`](super::ClientAuth) is for.
    #[error("the introspection endpoint has a user or a password in its URL")]
    UserInfo,
    /// The endpoint has a fragment.
    #[error("the introspection endpoint has a fragment")]
    Fragment,
    /// The client's identifier is empty.
    #[error("the client's identifier is empty")]
    ClientId,
    /// The service's own token is not of the form of Bearer tokens.
    #[error("the service's own token is no Bearer token")]
    BearerToken,
    /// A time limit is zero.
    #[error("a time limit is zero")]
    Timeout,
    /// No answer has room in the size that was given.
    #[error("the size of answers is limited to nothing")]
    MaxAnswer,
    /// A root certificate cannot be read, or there is none in what was given.
    #[error("a root certificate cannot be read")]
    RootCertificate,
    /// An audience is empty.
    #[error("an audience is empty")]
    Audience,
    /// The HTTP client could not be set up, such as for want of entropy.
    #[error("the HTTP client cannot be set up")]
    Client,
}

/// Why an authorization server could not tell whether a token is good. A gate answers it by 503.
///
/// It holds neither the token nor anything that the server wrote, which may show it.
#[derive(Debug)]
pub struct IntrospectionError(Why);

#[derive(Debug)]
pub(super) enum Why {
    Timeout,
    Transport(Box<dyn Error + Send + Sync>),
    Credentials(StatusCode),
    Status(StatusCode),
    MediaType,
    TooLarge(usize),
    /// In which line and column.
    Json(usize, usize),
    Twice,
    Active,
    Member(&'static str),
    TokenType,
    NoSubject,
    Principal(Box<dyn Error + Send + Sync>),
}

impl Why {
    pub(super) fn transport(error: reqwest::Error) -> Self {
        // The URL may have secrets in its query.
        if error.is_timeout() { Self::Timeout } else { Self::Transport(Box::new(error.without_url())) }
    }

    /// The message of the error is left out, because it can quote the answer.
    pub(super) fn json(error: &serde_json::Error) -> Self {
        if error.is_data() { Self::Twice } else { Self::Json(error.line(), error.column()) }
    }
}

impl From<Why> for IntrospectionError {
    fn from(why: Why) -> Self {
        Self(why)
    }
}

impl IntrospectionError {
    /// Whether the endpoint did not answer in time.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self.0, Why::Timeout)
    }

    /// Whether the endpoint refused the credentials of the service itself (401, 403), which somebody has to set right.
    #[must_use]
    pub fn is_credentials(&self) -> bool {
        matches!(self.0, Why::Credentials(_))
    }

    /// Returns true if the endpoint works and has answered, but its answer about this token cannot be used. See the table of
    /// [`IntrospectionStore`](super::IntrospectionStore#errors).
    #[must_use]
    pub fn concerns_token(&self) -> bool {
        match &self.0 {
            Why::Timeout | Why::Transport(_) | Why::Credentials(_) | Why::MediaType | Why::Json(..) => false,
            Why::Status(status) => is_about_the_token(*status),
            // What a client may cause by its choice of a token.
            Why::TooLarge(_) | Why::Twice | Why::Active | Why::Member(_) | Why::TokenType | Why::NoSubject => true,
            Why::Principal(error) => error.downcast_ref().is_none_or(StoreError::concerns_token),
        }
    }

    /// The status of the endpoint's answer, where that was what is wrong.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        match self.0 {
            Why::Credentials(status) | Why::Status(status) => Some(status),
            _ => None,
        }
    }
}

/// The endpoint rejects the token that it was asked about. 401 and 403 reject the service's own credentials.
fn is_about_the_token(status: StatusCode) -> bool {
    // These depend on the configuration, or on the moment.
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
            Why::Timeout => f.write_str("the introspection endpoint did not answer in time"),
            Why::Transport(_) => f.write_str("the introspection endpoint could not be asked"),
            Why::Credentials(status) => {
                write!(f, "the introspection endpoint refuses this service's own credentials ({})", status.as_u16())
            }
            Why::Status(status) => write!(f, "the introspection endpoint answered with status {}", status.as_u16()),
            Why::MediaType => f.write_str("the introspection endpoint's answer is not declared as JSON"),
            Why::TooLarge(max) => write!(f, "the introspection endpoint's answer is larger than {max} bytes"),
            Why::Json(line, column) => {
                write!(f, "the introspection endpoint's answer is not JSON (line {line}, column {column})")
            }
            Why::Twice => f.write_str("the introspection endpoint's answer is no object, or has a member twice"),
            Why::Active => f.write_str("the introspection endpoint's answer has no boolean `active`"),
            Why::Member(name) => write!(f, "the introspection endpoint's answer has a malformed `{name}`"),
            Why::TokenType => f.write_str("the introspection endpoint's `token_type` is neither Bearer nor DPoP"),
            Why::NoSubject => f.write_str("the introspection endpoint's answer names no one whose token it is"),
            Why::Principal(_) => f.write_str("no principal could be made of the introspection endpoint's answer"),
        }
    }
}

impl Error for IntrospectionError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            Why::Transport(source) | Why::Principal(source) => Some(&**source),
            _ => None,
        }
    }
}
