//! [`JwtConfigError`] and [`JwtError`].

use std::error::Error;
use std::fmt;

use http::StatusCode;
use thiserror::Error as ThisError;

use super::keys::KeyError;
use crate::rejection::store_error::StoreError;
use crate::store::client::{BodyError, ClientError};

/// The error of a [`JwtStore`](super::JwtStore) with an invalid setting. It contains no key.
#[derive(Debug, ThisError, PartialEq, Eq)]
#[non_exhaustive]
pub enum JwtConfigError {
    /// The issuer is empty.
    #[error("invalid issuer: must not be empty")]
    Issuer,
    /// An audience is empty.
    #[error("invalid audience: must not be empty")]
    Audience,
    /// The list of algorithms is empty.
    #[error("invalid list of JWT algorithms: must contain at least one")]
    Algorithms,
    /// The URL of the JWK set is not an absolute HTTP URL.
    #[error("invalid URL of the JWK set: must be an absolute https URL")]
    Url,
    /// The URL is not `https`, not on this machine, and not allowed to be `http`.
    #[error("invalid URL of the JWK set: must be https")]
    Insecure,
    /// The URL contains a user or a password.
    #[error("invalid URL of the JWK set: must not contain a user or a password")]
    UserInfo,
    /// The URL contains a fragment.
    #[error("invalid URL of the JWK set: must not contain a fragment")]
    Fragment,
    /// The fixed keys are neither a JWK set nor a public key in PEM.
    #[error("invalid JWT keys: must be a JWK set, or a public key in PEM")]
    Keys,
    /// The fixed keys contain a private or symmetric key. Consider a private key that got here as leaked.
    #[error("invalid JWT keys: must not contain private or symmetric keys")]
    PrivateKey,
    /// A `kid` occurs twice.
    #[error("invalid JWT keys: duplicate `kid`")]
    DuplicateKid,
    /// No fixed key can be used with an accepted algorithm.
    #[error("invalid JWT keys: no key fits an accepted algorithm")]
    NoKey,
    /// The leeway is longer than 5 minutes.
    #[error("invalid leeway: must be at most 5 minutes")]
    Leeway,
    /// The maximum length of a token is zero.
    #[error("invalid maximum length of tokens: must be at least 1")]
    MaxToken,
    /// The maximum length of a response is zero.
    #[error("invalid maximum length of JWK sets: must be at least 1")]
    MaxAnswer,
    /// A timeout is zero.
    #[error("invalid timeout of JWK sets: must be more than 0")]
    Timeout,
    /// The minimum interval of fetches is zero, or longer than the maximum age of keys.
    #[error("invalid interval of JWK sets: must be more than 0 and at most the maximum age")]
    Interval,
    /// A root certificate cannot be read, or the PEM text contains none.
    #[error("invalid root certificate")]
    RootCertificate,
    /// The HTTP client could not be created, for example without entropy.
    #[error("the HTTP client could not be created")]
    Client,
}

impl From<ClientError> for JwtConfigError {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Url => Self::Url,
            ClientError::Insecure => Self::Insecure,
            ClientError::UserInfo => Self::UserInfo,
            ClientError::Fragment => Self::Fragment,
            ClientError::Timeout => Self::Timeout,
            ClientError::RootCertificate => Self::RootCertificate,
            ClientError::Client => Self::Client,
        }
    }
}

impl From<KeyError> for JwtConfigError {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Syntax => Self::Keys,
            KeyError::NotPublic => Self::PrivateKey,
            KeyError::DuplicateKid => Self::DuplicateKid,
            KeyError::NoneFits => Self::NoKey,
        }
    }
}

/// The error of a token that could not be checked. The gate responds with 503.
///
/// It contains neither the token, nor its claims, nor text of the JWK set.
#[derive(Debug)]
pub struct JwtError(Cause);

#[derive(Debug)]
pub(super) enum Cause {
    Body(BodyError),
    Status(StatusCode),
    Keys(KeyError),
    /// The task of the fetch was dropped, or could not be started.
    Interrupted,
    Principal(Box<dyn Error + Send + Sync>),
}

impl From<BodyError> for Cause {
    fn from(error: BodyError) -> Self {
        Self::Body(error)
    }
}

impl JwtError {
    /// Returns whether the request for the keys timed out.
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(self.0, Cause::Body(BodyError::Timeout))
    }

    /// Returns the status of the response to the request for the keys, if the status is the error.
    #[must_use]
    pub fn status(&self) -> Option<StatusCode> {
        match self.0 {
            Cause::Status(status) => Some(status),
            _ => None,
        }
    }

    /// Returns true if [`with_principal`](super::JwtBuilder::with_principal) failed for this token. Returns false if the keys could
    /// not be fetched, or the error is one of [`StoreError::new`](crate::StoreError::new).
    #[must_use]
    pub fn concerns_token(&self) -> bool {
        match &self.0 {
            Cause::Principal(error) => StoreError::within(&**error).is_none_or(StoreError::concerns_token),
            _ => false,
        }
    }
}

impl From<Cause> for StoreError {
    fn from(cause: Cause) -> Self {
        let error = JwtError(cause);
        match error.concerns_token() {
            true => Self::for_token(error),
            false => Self::new(error),
        }
    }
}

impl fmt::Display for JwtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Cause::Body(BodyError::Timeout) => f.write_str("the request for the JWK set timed out"),
            Cause::Body(BodyError::Transport(_)) => f.write_str("the request for the JWK set failed"),
            Cause::Body(BodyError::TooLarge(max)) => write!(f, "the JWK set is larger than {max} bytes"),
            Cause::Status(status) => write!(f, "the server of the JWK set responded with status {}", status.as_u16()),
            Cause::Keys(KeyError::NotPublic) => f.write_str("the JWK set contains a private or symmetric key"),
            Cause::Keys(KeyError::DuplicateKid) => f.write_str("the JWK set contains a duplicate `kid`"),
            Cause::Keys(KeyError::Syntax | KeyError::NoneFits) => f.write_str("the response is not a JWK set"),
            Cause::Interrupted => f.write_str("the request for the JWK set was interrupted"),
            Cause::Principal(_) => f.write_str("the principal could not be created from the claims"),
        }
    }
}

impl Error for JwtError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match &self.0 {
            Cause::Body(BodyError::Transport(source)) | Cause::Principal(source) => Some(&**source),
            _ => None,
        }
    }
}
