//! [`Claims`]: the statements of an authorization server about a token.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::grant::scopes::Scopes;

/// The claims about a token: the members of an introspection response (RFC 7662, section 2.2), or of a JWT (RFC 7519, section 4).
///
/// [`get`](Self::get) returns any claim, including non-standard ones. `Debug` is redacted, because claims contain personal data, and
/// a response may repeat the token.
pub struct Claims {
    members: Map<String, Value>,
    scopes: Scopes,
    not_before: Option<SystemTime>,
    expires_at: Option<SystemTime>,
    issued_at: Option<SystemTime>,
    sender_constrained: bool,
}

impl Claims {
    /// Checks the types of the members that this type interprets. The caller has read the scopes. `sender_constrained` is true if
    /// the caller has found a constraint apart from `cnf`.
    pub(super) fn new(Members(members): Members, scopes: Scopes, sender_constrained: bool) -> Result<Self, Malformed> {
        for name in ["sub", "client_id", "jti", "iss"] {
            text(&members, name)?;
        }
        let is_audience = match members.get("aud") {
            None | Some(Value::String(_)) => true,
            Some(Value::Array(all)) => all.iter().all(Value::is_string),
            Some(_) => false,
        };
        if !is_audience {
            return Err(Malformed("aud"));
        }
        let bound = match members.get("cnf") {
            None => false,
            Some(Value::Object(_)) => true,
            Some(_) => return Err(Malformed("cnf")),
        };
        Ok(Self {
            scopes,
            not_before: date(&members, "nbf", f64::ceil)?,
            expires_at: date(&members, "exp", f64::floor)?,
            issued_at: date(&members, "iat", f64::floor)?,
            sender_constrained: sender_constrained || bound,
            members,
        })
    }

    /// Returns `sub`, the subject of the token at the authorization server.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        self.text("sub")
    }

    /// Returns `client_id`, the client that requested the token.
    #[must_use]
    pub fn client_id(&self) -> Option<&str> {
        self.text("client_id")
    }

    /// Returns `username`, a human-readable name of the resource owner in introspection responses.
    #[must_use]
    pub fn username(&self) -> Option<&str> {
        self.text("username")
    }

    /// Returns `iss`, the issuer of the token.
    #[must_use]
    pub fn issuer(&self) -> Option<&str> {
        self.text("iss")
    }

    /// Returns `jti`, the identifier of the token.
    #[must_use]
    pub fn token_id(&self) -> Option<&str> {
        self.text("jti")
    }

    /// Returns `aud`, the audiences of the token.
    pub fn audiences(&self) -> impl Iterator<Item = &str> {
        let (one, several) = match self.get("aud") {
            Some(Value::Array(all)) => (None, &**all),
            one => (one, &[][..]),
        };
        one.into_iter().chain(several).filter_map(Value::as_str)
    }

    /// Returns `scope`, the scopes of the token.
    #[must_use]
    pub fn scopes(&self) -> &Scopes {
        &self.scopes
    }

    /// Returns `nbf`, the start of the token's validity, rounded up to a second.
    #[must_use]
    pub fn not_before(&self) -> Option<SystemTime> {
        self.not_before
    }

    /// Returns `exp`, the expiry of the token, rounded down to a second.
    #[must_use]
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.expires_at
    }

    /// Returns `iat`, the time of issue, rounded down to a second.
    #[must_use]
    pub fn issued_at(&self) -> Option<SystemTime> {
        self.issued_at
    }

    /// Returns whether the sender must prove possession of a key: `cnf` is present, or `token_type` is DPoP.
    #[must_use]
    pub fn is_sender_constrained(&self) -> bool {
        self.sender_constrained
    }

    /// Returns a claim by its name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.members.get(name)
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(Value::as_str)
    }
}

impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Claims(..)")
    }
}

/// The error of a member that has another type than the standard says. It contains the name of the member.
#[derive(Debug, Error)]
#[error("malformed `{0}`")]
pub(super) struct Malformed(pub(super) &'static str);

/// Reads a member that must be a non-empty string if it is present.
pub(super) fn text<'a>(members: &'a Map<String, Value>, name: &'static str) -> Result<Option<&'a str>, Malformed> {
    match members.get(name) {
        None => Ok(None),
        Some(Value::String(text)) if !text.is_empty() => Ok(Some(text)),
        Some(_) => Err(Malformed(name)),
    }
}

/// Reads a member with scopes that are separated by spaces (RFC 6749, section 3.3).
pub(super) fn scopes(members: &Map<String, Value>, name: &'static str) -> Result<Scopes, Malformed> {
    match members.get(name) {
        None => Ok(Scopes::default()),
        Some(Value::String(scopes)) => scopes.parse().map_err(|_| Malformed(name)),
        Some(_) => Err(Malformed(name)),
    }
}

/// Reads a NumericDate (RFC 7519, section 2). Rounds fractions, and limits the result to [`LATEST`].
fn date(
    members: &Map<String, Value>,
    name: &'static str,
    round: fn(f64) -> f64,
) -> Result<Option<SystemTime>, Malformed> {
    let seconds = match members.get(name) {
        None => return Ok(None),
        // Integers are not converted to floats, which would change those above 2^53.
        Some(Value::Number(number)) => match (number.as_u64(), number.as_f64()) {
            (Some(seconds), _) => seconds,
            (None, Some(seconds)) if seconds >= 0.0 && seconds.is_finite() => whole(round(seconds)),
            _ => return Err(Malformed(name)),
        },
        Some(_) => return Err(Malformed(name)),
    };
    Ok(Some(UNIX_EPOCH + Duration::from_secs(seconds.min(LATEST))))
}

/// About the year 2600, which a grant treats as "never": nanoseconds since 1970 no longer fit into 64 bits.
const LATEST: u64 = 20_000_000_000;

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a non-negative integer; `as` saturates")]
fn whole(seconds: f64) -> u64 {
    seconds as u64
}

/// The members of a JSON object without duplicate names.
pub(super) struct Members(pub(super) Map<String, Value>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Once;
        impl<'de> Visitor<'de> for Once {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Map::new();
                while let Some((name, value)) = map.next_entry()? {
                    if members.insert(name, value).is_some() {
                        return Err(A::Error::custom("duplicate member"));
                    }
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Once)
    }
}
