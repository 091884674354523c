//! [`Scopes`]: what a grant allows.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A set of scopes: tokens of %x21 / %x23-5B / %x5D-7E (RFC 6749, section 3.3), case-sensitive.
///
/// ```
/// use tollgate::Scopes;
///
/// let scopes = Scopes::new(["orders:read", "orders:write"])?;
/// assert!(scopes.contains("orders:read"));
/// assert_eq!(scopes.to_string(), "orders:read orders:write");
/// assert!(Scopes::new(["two words"]).is_err());
/// # Ok::<_, tollgate::ScopeError>(())
/// ```
#[derive(Clone, Default, PartialEq, Eq, Hash)]
pub struct Scopes(Box<[Box<str>]>);

/// A scope that is empty or has a space, a quote, a backslash, a control or a non-ASCII character.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{0:?} is no scope: one or more of %x21 / %x23-5B / %x5D-7E")]
pub struct ScopeError(Box<str>);

impl ScopeError {
    /// For lists that must not be empty.
    pub(crate) fn empty() -> Self {
        Self("".into())
    }
}

impl Scopes {
    /// Checks and keeps scopes, in this order.
    ///
    /// # Errors
    ///
    /// If one of them is empty or has a character that RFC 6749 does not allow.
    pub fn new<I>(scopes: I) -> Result<Self, ScopeError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        scopes.into_iter().map(|scope| check_scope(scope.as_ref())).collect::<Result<_, _>>().map(Self)
    }

    /// Whether this scope is among them.
    #[must_use]
    pub fn contains(&self, scope: &str) -> bool {
        self.iter().any(|own| own == scope)
    }

    /// The scopes, in the order in which they were given.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(AsRef::as_ref)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn check_scope(scope: &str) -> Result<Box<str>, ScopeError> {
    match !scope.is_empty() && scope.bytes().all(|b| matches!(b, 0x21 | 0x23..=0x5b | 0x5d..=0x7e)) {
        true => Ok(scope.into()),
        false => Err(ScopeError(scope.into())),
    }
}

impl FromStr for Scopes {
    type Err = ScopeError;

    /// Parses scopes with spaces between them, as the `scope` parameter has them (RFC 6749, section 3.3). The empty text is no
    /// scope.
    fn from_str(text: &str) -> Result<Self, ScopeError> {
        Self::new(text.split(' ').filter(|scope| !scope.is_empty()))
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for Scopes {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for Scopes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Scopes {
    /// The scopes with single spaces between, as the `scope` parameter has them.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(" "))
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
