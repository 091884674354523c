use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::error::Why;
use crate::grant::scopes::Scopes;

/// What an authorization server says of an active token (RFC 7662, section 2.2).
///
/// Members that the standard does not know are there by [`get`](Self::get). `Debug` is redacted: an
/// answer is about people, and may repeat the token.
pub struct Claims {
    members: Map<String, Value>,
    scopes: Scopes,
    not_before: Option<SystemTime>,
    expires_at: Option<SystemTime>,
    issued_at: Option<SystemTime>,
    sender_constrained: bool,
}

impl Claims {
    pub(super) fn new(Members(members): Members) -> Result<Self, Why> {
        for name in ["sub", "client_id", "username", "jti", "iss"] {
            match members.get(name) {
                None => {}
                Some(Value::String(text)) if !text.is_empty() => {}
                Some(_) => return Err(Why::Member(name)),
            }
        }
        let scopes = match members.get("scope") {
            None => Scopes::default(),
            Some(Value::String(scopes)) => {
                Scopes::new(scopes.split(' ').filter(|scope| !scope.is_empty())).map_err(|_| Why::Member("scope"))?
            }
            Some(_) => return Err(Why::Member("scope")),
        };
        let is_audience = match members.get("aud") {
            None | Some(Value::String(_)) => true,
            Some(Value::Array(all)) => all.iter().all(Value::is_string),
            Some(_) => false,
        };
        if !is_audience {
            return Err(Why::Member("aud"));
        }
        let dpop = match members.get("token_type") {
            None => false,
            Some(Value::String(own)) if own.eq_ignore_ascii_case("Bearer") => false,
            Some(Value::String(own)) if own.eq_ignore_ascii_case("DPoP") => true,
            Some(Value::String(_)) => return Err(Why::TokenType),
            Some(_) => return Err(Why::Member("token_type")),
        };
        let bound = match members.get("cnf") {
            None => false,
            Some(Value::Object(_)) => true,
            Some(_) => return Err(Why::Member("cnf")),
        };
        Ok(Self {
            scopes,
            not_before: date(&members, "nbf", f64::ceil)?,
            expires_at: date(&members, "exp", f64::floor)?,
            issued_at: date(&members, "iat", f64::floor)?,
            sender_constrained: dpop || bound,
            members,
        })
    }

    /// `sub`: whose token it is, in the server's own words.
    #[must_use]
    pub fn subject(&self) -> Option<&str> {
        self.text("sub")
    }

    /// `client_id`: the client that the token was given to.
    #[must_use]
    pub fn client_id(&self) -> Option<&str> {
        self.text("client_id")
    }

    /// `username`: whose token it is, for people to read.
    #[must_use]
    pub fn username(&self) -> Option<&str> {
        self.text("username")
    }

    /// `iss`: who has issued the token.
    #[must_use]
    pub fn issuer(&self) -> Option<&str> {
        self.text("iss")
    }

    /// `jti`: the name of the token.
    #[must_use]
    pub fn token_id(&self) -> Option<&str> {
        self.text("jti")
    }

    /// `aud`: for whom the token is meant, one or several.
    pub fn audiences(&self) -> impl Iterator<Item = &str> {
        let (one, several) = match self.get("aud") {
            Some(Value::Array(all)) => (None, &**all),
            one => (one, &[][..]),
        };
        one.into_iter().chain(several).filter_map(Value::as_str)
    }

    /// `scope`: what the token allows.
    #[must_use]
    pub fn scopes(&self) -> &Scopes {
        &self.scopes
    }

    /// `nbf`: from when on the token is valid, rounded up to a second.
    #[must_use]
    pub fn not_before(&self) -> Option<SystemTime> {
        self.not_before
    }

    /// `exp`: when the token expires, rounded down to a second.
    #[must_use]
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.expires_at
    }

    /// `iat`: when the token was issued, rounded down to a second.
    #[must_use]
    pub fn issued_at(&self) -> Option<SystemTime> {
        self.issued_at
    }

    /// Whether its sender must prove a key: there is a `cnf`, or the `token_type` is DPoP.
    #[must_use]
    pub fn is_sender_constrained(&self) -> bool {
        self.sender_constrained
    }

    /// Any member of the answer, by its name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.members.get(name)
    }

    pub(super) fn is_refresh_token(&self) -> bool {
        self.text("token_use") == Some("refresh_token")
    }

    fn text(&self, name: &str) -> Option<&str> {
        self.get(name).and_then(Value::as_str)
    }
}

impl fmt::Debug for Claims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Claims(..)")
    }
}

/// A NumericDate (RFC 7519, section 2), of which fractions are rounded. What is later than any clock shows is the last
/// moment that there is: never, for a gate.
fn date(members: &Map<String, Value>, name: &'static str, round: fn(f64) -> f64) -> Result<Option<SystemTime>, Why> {
    let seconds = match members.get(name) {
        None => return Ok(None),
        // Whole ones are not made floating: those beyond 2^53 would change.
        Some(Value::Number(number)) => match (number.as_u64(), number.as_f64()) {
            (Some(seconds), _) => seconds,
            (None, Some(seconds)) if seconds >= 0.0 && seconds.is_finite() => whole(round(seconds)),
            _ => return Err(Why::Member(name)),
        },
        Some(_) => return Err(Why::Member(name)),
    };
    Ok(Some(UNIX_EPOCH + Duration::from_secs(seconds.min(LATEST))))
}

/// About the year 2600, when nanoseconds since 1970 have no room in 64 bits any more, which is "never" to a grant.
const LATEST: u64 = 20_000_000_000;

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a whole number from 0 on; `as` saturates")]
fn whole(seconds: f64) -> u64 {
    seconds as u64
}

/// The members of a JSON object, each of which is there once.
pub(super) struct Members(Map<String, Value>);

impl Members {
    pub(super) fn active(&self) -> Result<bool, Why> {
        self.0.get("active").and_then(Value::as_bool).ok_or(Why::Active)
    }
}

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
                        return Err(A::Error::custom("a member twice"));
                    }
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Once)
    }
}
