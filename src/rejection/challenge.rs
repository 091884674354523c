//! `WWW-Authenticate`: the one place where a challenge is written.

use std::fmt;
use std::time::Duration;

use http::HeaderValue;
use thiserror::Error;

use crate::grant::scopes::Scopes;

/// A challenge: a scheme and what its parameters say (RFC 9110, section 11.6.1; RFC 6750, section 3).
///
/// # Rules
///
/// 1. A Bearer challenge always has a realm, so that the scheme is followed by a parameter, as RFC 6750 demands.
/// 2. Every value is a quoted string. In the realm `"` and `\` are escaped; in the others they cannot occur.
/// 3. Parameters are separated by a comma and a space, each at most once, in the order realm, error,
///    error_description, error_uri, scope, acr_values, max_age, resource_metadata.
/// 4. What cannot be written is refused when it is given, never left out.
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
    /// RFC 6750, section 3.1, with status 400.
    InvalidRequest,
    /// RFC 6750, section 3.1, with status 401.
    InvalidToken,
    /// RFC 6750, section 3.1, with status 403.
    InsufficientScope,
    /// RFC 9470, section 3, with status 401.
    InsufficientUserAuthentication,
}

impl ErrorCode {
    /// The code as it stands in a challenge.
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

/// What cannot be written into a challenge.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ChallengeError {
    /// A scheme that is no token (RFC 9110, section 5.6.2).
    #[error("an authentication scheme is one or more of the characters of an HTTP token")]
    Scheme,
    /// A realm that is empty, or has a control or a non-ASCII character.
    #[error("a realm is one or more characters of printable ASCII")]
    Realm,
    /// A description with a quote, a backslash, a control or a non-ASCII character (RFC 6750, section 3).
    #[error("an error_description is of %x20-21 / %x23-5B / %x5D-7E")]
    ErrorDescription,
    /// A URI with a space, a quote, a backslash, a control or a non-ASCII character, or without a scheme.
    #[error("an error_uri or resource_metadata is an absolute URI of %x21 / %x23-5B / %x5D-7E")]
    Uri,
    /// An authentication context that is empty, or has a space, a quote, a backslash, a control or a non-ASCII character.
    #[error("an acr value is one or more of %x21 / %x23-5B / %x5D-7E")]
    AcrValue,
    /// A parameter whose name is no token or belongs to a method of its own, or whose value is not printable ASCII.
    #[error("a parameter is a token of its own and printable ASCII")]
    Parameter,
}

impl Challenge {
    /// The same of somebody who has not tried yet.
    pub(super) fn without_error(self) -> Self {
        Self { error: None, error_description: None, error_uri: None, ..self }
    }

    /// A Bearer challenge for this protection space.
    ///
    /// # Errors
    ///
    /// If the realm is empty or has a control or a non-ASCII character.
    pub fn bearer(realm: &str) -> Result<Self, ChallengeError> {
        Self::of_scheme("Bearer").with_realm(realm)
    }

    /// A challenge of another scheme that the service takes as well.
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
    /// If the scheme is no token (RFC 9110, section 5.6.2), or is Bearer, which is never without a realm: see
    /// [`bearer`](Self::bearer).
    pub fn new(scheme: &str) -> Result<Self, ChallengeError> {
        check(is_http_token(scheme), ChallengeError::Scheme)?;
        check(!scheme.eq_ignore_ascii_case("bearer"), ChallengeError::Realm)?;
        Ok(Self::of_scheme(scheme))
    }

    /// The Bearer challenge of a gate that was told no realm.
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

    /// The same for another protection space.
    ///
    /// # Errors
    ///
    /// If the realm is empty or has a control or a non-ASCII character.
    pub fn with_realm(self, realm: &str) -> Result<Self, ChallengeError> {
        check(!realm.is_empty() && realm.bytes().all(is_printable), ChallengeError::Realm)?;
        Ok(Self { realm: Some(realm.into()), ..self })
    }

    /// The same with an error code. Never for a request that presented nothing (RFC 6750, section 3.1).
    #[must_use]
    pub fn with_error(self, error: ErrorCode) -> Self {
        Self { error: Some(error), ..self }
    }

    /// The same with an explanation for developers.
    ///
    /// # Errors
    ///
    /// If it has a quote, a backslash, a control or a non-ASCII character.
    pub fn with_error_description(self, description: &str) -> Result<Self, ChallengeError> {
        check(description.bytes().all(|b| b == b' ' || is_nqchar(b)), ChallengeError::ErrorDescription)?;
        Ok(Self { error_description: Some(description.into()), ..self })
    }

    /// The same with the absolute URI of a page for people.
    ///
    /// # Errors
    ///
    /// If it has a character that RFC 6750, section 3, does not allow, or no scheme.
    pub fn with_error_uri(self, uri: &str) -> Result<Self, ChallengeError> {
        Ok(Self { error_uri: Some(checked_uri(uri)?), ..self })
    }

    /// The same with the scopes that are needed; none is no parameter.
    #[must_use]
    pub fn with_scope(self, scopes: &Scopes) -> Self {
        Self { scope: (!scopes.is_empty()).then(|| scopes.to_string().into()), ..self }
    }

    /// The same with the authentication contexts that would do, most wanted first (RFC 9470, section 3); none is no
    /// parameter.
    ///
    /// # Errors
    ///
    /// If one is empty or has a character that cannot stand there.
    pub fn with_acr_values<I>(self, values: I) -> Result<Self, ChallengeError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        // The same grammar as scopes.
        let values = Scopes::new(values).map_err(|_| ChallengeError::AcrValue)?;
        Ok(Self { acr_values: (!values.is_empty()).then(|| values.to_string().into()), ..self })
    }

    /// The same with the age that an authentication may have, in whole seconds, cut (RFC 9470, section 3).
    #[must_use]
    pub fn with_max_age(self, max_age: Duration) -> Self {
        Self { max_age: Some(max_age.as_secs()), ..self }
    }

    /// The same with the URL of the protected resource's metadata (RFC 9728, section 5.1). It is no error information,
    /// so that it stands in every challenge.
    ///
    /// # Errors
    ///
    /// If it has a character that cannot stand there, or no scheme.
    pub fn with_resource_metadata(self, uri: &str) -> Result<Self, ChallengeError> {
        Ok(Self { resource_metadata: Some(checked_uri(uri)?), ..self })
    }

    /// The same with a parameter of the scheme's own, after all others.
    ///
    /// # Errors
    ///
    /// If the name is no token, was given before or has a method of its own, or the value is not printable ASCII.
    pub fn with_parameter(mut self, name: &str, value: &str) -> Result<Self, ChallengeError> {
        let own = self.parameters().iter().any(|(taken, _)| taken.eq_ignore_ascii_case(name));
        let reserved = RESERVED.iter().any(|reserved| reserved.eq_ignore_ascii_case(name));
        let fits = is_http_token(name) && value.bytes().all(is_printable);
        check(fits && !own && !reserved, ChallengeError::Parameter)?;
        self.others.push((name.into(), value.into()));
        Ok(self)
    }

    /// The realm, if there is one.
    #[must_use]
    pub fn realm(&self) -> Option<&str> {
        self.realm.as_deref()
    }

    /// The same with the methods and age that another challenge asks for.
    pub(crate) fn with_authentication_of(self, other: &Self) -> Self {
        Self { acr_values: other.acr_values.clone(), max_age: other.max_age, ..self }
    }

    /// The challenge as the value of one `WWW-Authenticate` field line.
    #[must_use]
    pub fn to_header_value(&self) -> HeaderValue {
        let text = self.to_string();
        // Every part was checked when it was given: printable ASCII only.
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
                // RFC 9110, section 5.6.4: nothing else is to be escaped.
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

/// RFC 6749, appendix A: NQCHAR without the space.
fn is_nqchar(byte: u8) -> bool {
    matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e)
}

fn is_http_token(text: &str) -> bool {
    // Header names are tokens, and `http` knows them; it would fold the case, which is of no matter here.
    http::HeaderName::from_bytes(text.as_bytes()).is_ok()
}

fn checked_uri(uri: &str) -> Result<Box<str>, ChallengeError> {
    let scheme = uri.split_once(':').map_or("", |(scheme, _)| scheme);
    let absolute = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'));
    check(absolute && uri.bytes().all(is_nqchar), ChallengeError::Uri)?;
    Ok(uri.into())
}
