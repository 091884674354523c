//! The errors of the website, and their pages.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Redirect, Response};
use maud::html;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use thiserror::Error;
use tollgate::store::sql::SqlError;
use tollgate::{Rejection, RejectionKind};

use super::layout;

#[derive(Debug, Error)]
pub(crate) enum PageError {
    /// The visitor has to sign in first. The page is shown afterwards.
    #[error("not signed in")]
    NotSignedIn { then: Option<String> },
    #[error("this page is for support")]
    NotSupport,
    #[error("no such user")]
    NoUser,
    #[error("the user has no active token")]
    NoToken,
    #[error("the token was changed at the same time")]
    Changed,
    /// The token was imported, so it cannot be shown before it is replaced.
    #[error("the token is not sealed")]
    NotSealed,
    #[error("the token cannot be opened")]
    NotOpened(#[source] SqlError),
    #[error("users cannot replace their token")]
    NotSelfService,
    #[error("the request came without HTTPS")]
    Plaintext,
    #[error("the form was sent by another site")]
    OtherSite,
    #[error("too many requests")]
    TooMany(Option<Duration>),
    #[error("this page does not take this method")]
    Method,
    #[error("{0}")]
    BadRequest(&'static str),
    #[error("the database has failed")]
    Database(#[source] SqlError),
    #[error("the database has failed")]
    Pool(#[from] sqlx::Error),
    #[error("the session cannot be read")]
    Session(#[from] tower_sessions::session::Error),
    #[error("the session cannot be saved")]
    NotSaved,
    #[error("Redis is unavailable")]
    LimitsUnavailable,
    #[error("{0}")]
    Internal(&'static str),
}

impl PageError {
    fn status(&self) -> StatusCode {
        match self {
            Self::NotSignedIn { .. } => StatusCode::UNAUTHORIZED,
            Self::NotSupport | Self::NotSelfService | Self::Plaintext | Self::OtherSite => StatusCode::FORBIDDEN,
            Self::NoUser => StatusCode::NOT_FOUND,
            Self::NoToken | Self::Changed | Self::NotSealed => StatusCode::CONFLICT,
            Self::TooMany(_) => StatusCode::TOO_MANY_REQUESTS,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::Database(_) | Self::Pool(_) | Self::Session(_) | Self::NotSaved | Self::LimitsUnavailable => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::NotOpened(_) | Self::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    fn text(&self) -> &'static str {
        match self {
            Self::NotSignedIn { .. } => "Sign in first.",
            Self::NotSupport => "This page is for support.",
            Self::NoUser => "There is no user with this name.",
            Self::NoToken => "This account has no active token.",
            Self::Changed => "This token was changed at the same time. Look at the page again.",
            Self::NotSealed | Self::NotOpened(_) => "Your token cannot be shown. Ask support to replace it.",
            Self::OtherSite => "This form was sent by another site, so nothing was done.",
            Self::NotSelfService => "Ask support to replace your token.",
            Self::Plaintext => "Use HTTPS. If you have sent a password, change it.",
            Self::TooMany(_) => "There were too many attempts. Wait before you try again.",
            Self::Method => "This page does not take this method.",
            Self::BadRequest(text) => text,
            Self::Internal(_) => "Something failed here. Try again later.",
            Self::Database(_) | Self::Pool(_) | Self::Session(_) | Self::NotSaved | Self::LimitsUnavailable => {
                "The service is unavailable for a moment. Try again."
            }
        }
    }
}

impl From<SqlError> for PageError {
    fn from(error: SqlError) -> Self {
        match error {
            // Pages are shown before they are used: another member of support may be faster.
            SqlError::NotFound | SqlError::Revoked | SqlError::Expired | SqlError::TooManyGrants { .. } => {
                Self::Changed
            }
            SqlError::NotSealed => Self::NotSealed,
            SqlError::UnknownSealingKey { .. } | SqlError::NotOpened => Self::NotOpened(error),
            other => Self::Database(other),
        }
    }
}

impl From<Rejection> for PageError {
    fn from(rejection: Rejection) -> Self {
        match rejection.kind() {
            RejectionKind::TooManyFailures | RejectionKind::OverLimit => {
                Self::TooMany(rejection.retry_after_secs().map(Duration::from_secs))
            }
            _ => Self::Internal("attempts cannot be counted"),
        }
    }
}

impl IntoResponse for PageError {
    fn into_response(self) -> Response {
        let status = self.status();
        if status.is_server_error() {
            let cause = std::error::Error::source(&self).map(ToString::to_string);
            tracing::warn!(cause, "{self}");
        }
        if let Self::NotSignedIn { then: Some(then) } = &self {
            let then = utf8_percent_encode(then, NON_ALPHANUMERIC);
            return Redirect::to(&format!("/sign-in?then={then}")).into_response();
        }
        let content = html! {
            section.card.narrow {
                h1 { (status.canonical_reason().unwrap_or("Error")) }
                p { (self.text()) }
                p { a.button href="/account" { "Go to my account" } }
            }
        };
        let mut response = (status, layout::page("Error", None, content)).into_response();
        if let Self::TooMany(Some(wait)) = self {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs().max(1)));
        }
        response
    }
}
