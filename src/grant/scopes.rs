//! [`Scopes`]: the permissions of a grant.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

/// A list of scopes. Scopes are case-sensitive and consist of %x21 / %x23-5B / %x5D-7E (RFC 6749, section 3.3).
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

/// The error of a scope that is empty, or contains a space, a quote, a backslash, a control character or a non-ASCII
/// character.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("invalid scope {0:?}: must be one or more of %x21 / %x23-5B / %x5D-7E")]
pub struct ScopeError(Box<str>);

impl ScopeError {
    /// Returns the error of an empty list where at least one scope is required.
    pub(crate) fn empty() -> Self {
        Self("".into())
    }
}

impl Scopes {
    /// Creates a list of scopes, in the given order.
    ///
    /// # Errors
    ///
    /// Returns an error if a scope is empty or contains a character that RFC 6749 does not allow.
    pub fn new<I>(scopes: I) -> Result<Self, ScopeError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        scopes.into_iter().map(|scope| check_scope(scope.as_ref())).collect::<Result<_, _>>().map(Self)
    }

    /// Returns whether the list contains this scope.
    #[must_use]
    pub fn contains(&self, scope: &str) -> bool {
        self.iter().any(|own| own == scope)
    }

    /// Returns whether the other list contains all scopes of this list.
    ///
    /// ```
    /// use tollgate::Scopes;
    ///
    /// let caller = Scopes::new(["read", "trade"])?;
    /// assert!(Scopes::new(["trade"])?.is_subset(&caller));
    /// assert!(!Scopes::new(["trade", "admin"])?.is_subset(&caller));
    /// assert!(Scopes::default().is_subset(&caller));
    /// # Ok::<_, tollgate::ScopeError>(())
    /// ```
    #[must_use]
    pub fn is_subset(&self, other: &Self) -> bool {
        self.iter().all(|scope| other.contains(scope))
    }

    /// Returns the scopes in their original order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(AsRef::as_ref)
    }

    /// Returns whether the list is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds the scopes that the list does not contain.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(crate) fn union(&self, other: &Self) -> Self {
        let new = other.0.iter().filter(|scope| !self.contains(scope));
        Self(self.0.iter().chain(new).cloned().collect())
    }

    /// Removes scopes.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(crate) fn difference(&self, other: &Self) -> Self {
        Self(self.0.iter().filter(|scope| !other.contains(scope)).cloned().collect())
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

    /// Parses the space-separated form of the `scope` parameter (RFC 6749, section 3.3). An empty text is an empty list.
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
    /// Writes the form of the `scope` parameter: scopes that are separated by single spaces.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(" "))
    }
}

impl fmt::Debug for Scopes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}
