//! [`GrantId`] and [`Subject`]: the names in a grant.

use std::borrow::Borrow;
use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use smol_str::SmolStr;

macro_rules! name {
    ($(#[$doc:meta])* $Name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $Name(pub(super) SmolStr);

        impl $Name {
            /// Returns the text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $Name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $Name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $Name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<String> for $Name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }

        impl From<&String> for $Name {
            fn from(text: &String) -> Self {
                Self(text.into())
            }
        }

        impl From<&$Name> for $Name {
            fn from(name: &$Name) -> Self {
                name.clone()
            }
        }

        impl From<Arc<str>> for $Name {
            fn from(text: Arc<str>) -> Self {
                Self(text.into())
            }
        }

        impl FromStr for $Name {
            type Err = Infallible;

            fn from_str(text: &str) -> Result<Self, Infallible> {
                Ok(text.into())
            }
        }

        #[cfg(feature = "serde")]
        impl serde::Serialize for $Name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        #[cfg(feature = "serde")]
        impl<'de> serde::Deserialize<'de> for $Name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer).map(Self::from)
            }
        }

        impl fmt::Display for $Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

name! {
    /// The identifier of a grant in logs and administration. Identifiers are not secret: never derive one from a token.
    ///
    /// Identifiers of up to 23 bytes take no memory outside of the grant.
    GrantId
}
name! {
    /// The owner of a rate limit. All grants of one subject share its limit.
    ///
    /// Subjects of up to 23 bytes take no memory outside of the grant.
    ///
    /// ```
    /// use tollgate::Subject;
    ///
    /// let alice = Subject::from("alice");
    /// assert_eq!(alice.as_str(), "alice");
    /// ```
    Subject
}
