//! [`Challenge`]: the values of `WWW-Authenticate` header fields.

use std::fmt;
use std::time::Duration;

use http::HeaderValue;
use thiserror::Error;

use crate::grant::scopes::Scopes;

/// An authentication challenge: a scheme and its parameters (RFC 9110, section 11.6.1; RFC 6750, section 3).
///
/// # Rules
///
/// 1. A Bearer challenge always has a realm. RFC 6750 requires at least one parameter after the scheme.
/// 2. Every value is a quoted string. In the realm and in custom parameters, `"` and `\` are escaped. Other parameters cannot
///    contain these characters.
/// 3. Parameters are separated by a comma and a space. Each occurs at most once, in the order realm, error,
///    error_description, error_uri, scope, acr_values, max_age, resource_metadata.
/// 4. The setters reject invalid values. No parameter is omitted silently.
///
/// # ABNF
///
/// ```text
/// challenge     = auth-scheme 1*SP auth-param *( "," SP auth-param )
/// auth-param    = token "=" quoted-string
/// ```
///
/// # Example
///
/// ```
/// use tollgate::respond::{Challenge, ErrorCode};
///
/// let challenge = Challenge::bearer("example")?.with_error(ErrorCode::InvalidToken);
/// assert_eq!(challenge.to_header_value(), r#"Bearer realm="example", error="invalid_token""#);
/// assert!(Challenge::bearer("two\r\nlines").is_err());
/// # Ok::<_, tollgate::respond::ChallengeError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Challenge {
    scheme: Box<str>,
    realm: Option<Box<str>>,
    error: Option<ErrorCode>,
    error_description: Option<Box<str>>,
    error_uri: Option<Box<str>>,
    scope: Option<Box<str>>,
    acr_values: Option<Box<str>>,
    max_age: Option<u64>,
    resource_metadata: Option<Box<str>>,
    others: Vec<(Box<str>, Box<str>)>,
}

/// The `error` parameter of a Bearer challenge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorCode {
    /// `invalid_request`, with status 400 (RFC 6750, section 3.1).
    InvalidRequest,
    /// `invalid_token`, with status 401 (RFC 6750, section 3.1).
    InvalidToken,
    /// `insufficient_scope`, with status 403 (RFC 6750, section 3.1).
    InsufficientScope,
    /// `insufficient_user_authentication`, with status 401 (RFC 9470, section 3).
    InsufficientUserAuthentication,
}

impl ErrorCode {
    /// Returns the code in the spelling of the `error` parameter.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::InvalidToken => "invalid_token",
            Self::InsufficientScope => "insufficient_scope",
            Self::InsufficientUserAuthentication => "insufficient_user_authentication",
        }
    }
}

/// The error of an invalid challenge parameter.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChallengeError {
    /// The scheme is not an HTTP token (RFC 9110, section 5.6.2).
    #[error("invalid authentication scheme: must be an HTTP token")]
    Scheme,
    /// The realm is missing or empty, or contains a control character or a non-ASCII character.
    #[error("invalid realm: must be one or more characters of printable ASCII")]
    Realm,
    /// The description contains a quote, a backslash, a control character or a non-ASCII character (RFC 6750, section 3).
    #[error("invalid error_description: must consist of %x20-21 / %x23-5B / %x5D-7E")]
    ErrorDescription,
    /// The URI has no scheme, or contains a space, a quote, a backslash, a control character or a non-ASCII character.
    #[error("invalid error_uri or resource_metadata: must be an absolute URI of %x21 / %x23-5B / %x5D-7E")]
    Uri,
    /// The authentication context is empty, or contains a space, a quote, a backslash, a control character or a non-ASCII
    /// character.
    #[error("invalid acr value: must be one or more of %x21 / %x23-5B / %x5D-7E")]
    AcrValue,
    /// The name of the parameter is not an HTTP token, was set before or has its own setter, or the value is not printable
    /// ASCII.
    #[error("invalid challenge parameter: the name must be a new HTTP token and the value printable ASCII")]
    Parameter,
}

impl Challenge {
    /// Removes the error parameters, for requests without credentials.
    pub(super) fn without_error(self) -> Self {
        Self { error: None, error_description: None, error_uri: None, ..self }
    }

    /// Creates a Bearer challenge with this realm.
    ///
    /// # Errors
    ///
    /// Returns an error if the realm is empty, or contains a control character or a non-ASCII character.
    pub fn bearer(realm: &str) -> Result<Self, ChallengeError> {
        Self::of_scheme("Bearer").with_realm(realm)
    }

    /// Creates a challenge of another scheme that the service accepts.
    ///
    /// ```
    /// use tollgate::respond::Challenge;
    ///
    /// let dpop = Challenge::new("DPoP")?.with_parameter("algs", "ES256")?;
    /// assert_eq!(dpop.to_header_value(), r#"DPoP algs="ES256""#);
    /// # Ok::<_, tollgate::respond::ChallengeError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// Returns an error if the scheme is not an HTTP token (RFC 9110, section 5.6.2), or is `Bearer`. Use
    /// [`bearer`](Self::bearer) for Bearer challenges, which need a realm.
    pub fn new(scheme: &str) -> Result<Self, ChallengeError> {
        check(is_http_token(scheme), ChallengeError::Scheme)?;
        check(!scheme.eq_ignore_ascii_case("bearer"), ChallengeError::Realm)?;
        Ok(Self::of_scheme(scheme))
    }

    /// Returns the Bearer challenge of gates without a configured realm.
    pub(super) fn default_bearer() -> Self {
        Self { realm: Some(Self::DEFAULT_REALM.into()), ..Self::of_scheme("Bearer") }
    }

    pub(crate) const DEFAULT_REALM: &'static str = "api";

    fn of_scheme(scheme: &str) -> Self {
        Self {
            scheme: scheme.into(),
            realm: None,
            error: None,
            error_description: None,
            error_uri: None,
            scope: None,
            acr_values: None,
            max_age: None,
            resource_metadata: None,
            others: Vec::new(),
        }
    }

    /// Sets the realm.
    ///
    /// # Errors
    ///
    /// Returns an error if the realm is empty, or contains a control character or a non-ASCII character.
    pub fn with_realm(self, realm: &str) -> Result<Self, ChallengeError> {
        check(!realm.is_empty() && realm.bytes().all(is_printable), ChallengeError::Realm)?;
        Ok(Self { realm: Some(realm.into()), ..self })
    }

    /// Sets the error code. Do not set a code for requests without credentials (RFC 6750, section 3.1).
    #[must_use]
    pub fn with_error(self, error: ErrorCode) -> Self {
        Self { error: Some(error), ..self }
    }

    /// Sets `error_description`, an explanation for developers.
    ///
    /// # Errors
    ///
    /// Returns an error if the text contains a quote, a backslash, a control character or a non-ASCII character.
    pub fn with_error_description(self, description: &str) -> Result<Self, ChallengeError> {
        check(description.bytes().all(|b| b == b' ' || is_nqchar(b)), ChallengeError::ErrorDescription)?;
        Ok(Self { error_description: Some(description.into()), ..self })
    }

    /// Sets `error_uri`, the absolute URI of a page for people.
    ///
    /// # Errors
    ///
    /// Returns an error if the URI has no scheme, or contains a character that RFC 6750, section 3, does not allow.
    pub fn with_error_uri(self, uri: &str) -> Result<Self, ChallengeError> {
        Ok(Self { error_uri: Some(checked_uri(uri)?), ..self })
    }

    /// Sets the required scopes. An empty list removes the parameter.
    #[must_use]
    pub fn with_scope(self, scopes: &Scopes) -> Self {
        Self { scope: (!scopes.is_empty()).then(|| scopes.to_string().into()), ..self }
    }

    /// Sets the acceptable authentication contexts in order of preference (RFC 9470, section 3). An empty list removes the
    /// parameter.
    ///
    /// # Errors
    ///
    /// Returns an error if a value is empty, or contains an invalid character.
    pub fn with_acr_values<I>(self, values: I) -> Result<Self, ChallengeError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        // The grammar is that of scopes.
        let values = Scopes::new(values).map_err(|_| ChallengeError::AcrValue)?;
        Ok(Self { acr_values: (!values.is_empty()).then(|| values.to_string().into()), ..self })
    }

    /// Sets the maximum age of an authentication, rounded down to whole seconds (RFC 9470, section 3).
    #[must_use]
    pub fn with_max_age(self, max_age: Duration) -> Self {
        Self { max_age: Some(max_age.as_secs()), ..self }
    }

    /// Sets the URL of the metadata of the protected resource (RFC 9728, section 5.1).
    ///
    /// Challenges without an error also contain this parameter, because it is not error information.
    ///
    /// # Errors
    ///
    /// Returns an error if the URL has no scheme, or contains an invalid character.
    pub fn with_resource_metadata(self, uri: &str) -> Result<Self, ChallengeError> {
        Ok(Self { resource_metadata: Some(checked_uri(uri)?), ..self })
    }

    /// Sets the URL of the metadata of the protected resource, which was checked before.
    #[cfg(feature = "resource-metadata")]
    pub(crate) fn with_checked_resource_metadata(self, uri: &str) -> Self {
        Self { resource_metadata: Some(uri.into()), ..self }
    }

    /// Adds a custom parameter of the scheme, after all others.
    ///
    /// # Errors
    ///
    /// Returns an error if the name is not an HTTP token, was set before or has its own setter. Returns an error if the value
    /// is not printable ASCII.
    pub fn with_parameter(mut self, name: &str, value: &str) -> Result<Self, ChallengeError> {
        let own = self.parameters().iter().any(|(taken, _)| taken.eq_ignore_ascii_case(name));
        let reserved = RESERVED.iter().any(|reserved| reserved.eq_ignore_ascii_case(name));
        let fits = is_http_token(name) && value.bytes().all(is_printable);
        check(fits && !own && !reserved, ChallengeError::Parameter)?;
        self.others.push((name.into(), value.into()));
        Ok(self)
    }

    /// Returns the realm, if there is one.
    #[must_use]
    pub fn realm(&self) -> Option<&str> {
        self.realm.as_deref()
    }

    /// Copies the authentication contexts and the maximum age of another challenge.
    pub(crate) fn with_authentication_of(self, other: &Self) -> Self {
        Self { acr_values: other.acr_values.clone(), max_age: other.max_age, ..self }
    }

    /// Returns the challenge as the value of one `WWW-Authenticate` field line.
    #[must_use]
    pub fn to_header_value(&self) -> HeaderValue {
        let text = self.to_string();
        // All setters validate their values as printable ASCII, so the conversion succeeds.
        HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("Bearer realm=\"api\""))
    }

    fn parameters(&self) -> Vec<(&str, std::borrow::Cow<'_, str>)> {
        let max_age = self.max_age.map(|seconds| seconds.to_string().into());
        let named = [
            (RESERVED[0], self.realm.as_deref().map(Into::into)),
            (RESERVED[1], self.error.map(|error| error.as_str().into())),
            (RESERVED[2], self.error_description.as_deref().map(Into::into)),
            (RESERVED[3], self.error_uri.as_deref().map(Into::into)),
            (RESERVED[4], self.scope.as_deref().map(Into::into)),
            (RESERVED[5], self.acr_values.as_deref().map(Into::into)),
            (RESERVED[6], max_age),
            (RESERVED[7], self.resource_metadata.as_deref().map(Into::into)),
        ];
        let others = self.others.iter().map(|(name, value)| (&**name, (&**value).into()));
        named.into_iter().filter_map(|(name, value)| Some((name, value?))).chain(others).collect()
    }
}

const RESERVED: [&str; 8] =
    ["realm", "error", "error_description", "error_uri", "scope", "acr_values", "max_age", "resource_metadata"];

impl fmt::Display for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.scheme)?;
        let mut separator = " ";
        for (name, value) in self.parameters() {
            write!(f, "{separator}{name}=\"")?;
            for c in value.chars() {
                // RFC 9110, section 5.6.4: no other characters are escaped.
                if matches!(c, '"' | '\\') {
                    f.write_str("\\")?;
                }
                write!(f, "{c}")?;
            }
            f.write_str("\"")?;
            separator = ", ";
        }
        Ok(())
    }
}

impl fmt::Debug for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Challenge({self})")
    }
}

fn check(fits: bool, error: ChallengeError) -> Result<(), ChallengeError> {
    if fits { Ok(()) } else { Err(error) }
}

fn is_printable(byte: u8) -> bool {
    matches!(byte, 0x20..=0x7e)
}

/// Returns whether a byte is an NQCHAR (RFC 6749, appendix A), without the space.
fn is_nqchar(byte: u8) -> bool {
    matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e)
}

fn is_http_token(text: &str) -> bool {
    // Header names are HTTP tokens. `HeaderName` also folds the case, which does not affect the check.
    http::HeaderName::from_bytes(text.as_bytes()).is_ok()
}

fn checked_uri(uri: &str) -> Result<Box<str>, ChallengeError> {
    let scheme = uri.split_once(':').map_or("", |(scheme, _)| scheme);
    let absolute = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
    check(absolute && uri.bytes().all(is_nqchar), ChallengeError::Uri)?;
    Ok(uri.into())
}
