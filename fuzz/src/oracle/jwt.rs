//! JWT access tokens (RFC 7515, RFC 7519, RFC 9068) for the issuer `i`, the audience `a` and an Ed25519 key with the id `k`.

use super::json::{Json, read_within};
use super::latin_1;

const ALPHABET: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
/// The depth at which the crate's JSON library stops.
const DEPTH: usize = 127;

/// Returns whether the token is valid apart from its dates. Signatures are deterministic, so they are compared as text.
pub fn accepts(token: &[u8], plain: bool, sign: impl Fn(&str) -> String) -> bool {
    let text = latin_1(token);
    let parts: Vec<&str> = text.split('.').collect();
    let [header, payload, signature] = parts[..] else { return false };
    let read = || {
        let (header, claims) = (Members::read(header)?, Members::read(payload)?);
        Some(header_is_accepted(&header, plain) && claims_are_accepted(&claims, plain))
    };
    token.len() <= 8_192 && read().unwrap_or(false) && signature == sign(&format!("{header}.{payload}"))
}

fn header_is_accepted(header: &Members, plain: bool) -> bool {
    let typ = match header.get("typ") {
        Value::Absent => plain,
        Value::Text(typ) => {
            let typ = typ.to_ascii_lowercase();
            let types: &[&str] = if plain { &["at+jwt", "jwt"] } else { &["at+jwt"] };
            types.iter().any(|name| typ == *name || typ == format!("application/{name}"))
        }
        Value::Other(_) => false,
    };
    typ && matches!(header.get("alg"), Value::Text("EdDSA" | "Ed25519"))
        && matches!(header.get("kid"), Value::Absent | Value::Text("k"))
        && matches!((header.get("crit"), header.get("b64")), (Value::Absent, Value::Absent))
}

fn claims_are_accepted(claims: &Members, plain: bool) -> bool {
    let names = ["sub", "client_id", "jti"].map(|name| claims.get(name));
    let dates = ["exp", "iat", "nbf"].map(|name| claims.get(name));
    let is_name = |value: &Value<'_>| match value {
        Value::Absent => true,
        Value::Text(text) => !text.is_empty(),
        Value::Other(_) => false,
    };
    let is_date = |value: &Value<'_>| match value {
        Value::Absent => true,
        Value::Other(Json::Number(number)) => number.parse::<f64>().is_ok_and(|seconds| seconds >= 0.0),
        _ => false,
    };
    let is_ours = match claims.get("aud") {
        Value::Text(aud) => aud == "a",
        Value::Other(Json::Array(all)) => {
            all.iter().all(|item| matches!(item, Json::Text(_))) && all.contains(&Json::Text("a".to_owned()))
        }
        _ => false,
    };
    let are_scopes = |text: &str| text.chars().all(|c| (' '..='~').contains(&c) && c != '"' && c != '\\');
    let scope = match claims.get("scope") {
        Value::Absent => true,
        Value::Text(text) => are_scopes(text),
        Value::Other(_) => false,
    };
    let scp = match claims.get("scp") {
        Value::Absent => true,
        Value::Text(text) => are_scopes(text),
        Value::Other(Json::Array(all)) => all.iter().all(|item| match item {
            Json::Text(text) => are_scopes(text) && !text.contains(' ') && !text.is_empty(),
            _ => false,
        }),
        Value::Other(_) => false,
    };
    let has = |value: &Value<'_>| !matches!(value, Value::Absent);
    let required = match plain {
        true => has(&names[0]) || has(&names[1]),
        false => names.iter().all(has) && has(&dates[1]),
    };
    matches!(claims.get("iss"), Value::Text("i"))
        && is_ours
        && names.iter().all(is_name)
        && dates.iter().all(is_date)
        && has(&dates[0])
        && matches!(claims.get("cnf"), Value::Absent | Value::Other(Json::Object(_)))
        && scope
        && scp
        && required
}

/// The members of an object without duplicates.
struct Members(Vec<(String, Json)>);

enum Value<'a> {
    Absent,
    Text(&'a str),
    Other(&'a Json),
}

impl Members {
    fn read(part: &str) -> Option<Self> {
        let text = String::from_utf8(decoded(part)?).ok()?;
        let Json::Object(members) = read_within(&text, DEPTH)? else { return None };
        let is_duplicate = |at: usize| members[..at].iter().any(|(name, _)| *name == members[at].0);
        let is_wrong = (0..members.len()).any(is_duplicate) || members.iter().any(|(_, value)| is_out_of_range(value));
        (!is_wrong).then_some(Self(members))
    }

    fn get(&self, name: &str) -> Value<'_> {
        match self.0.iter().find(|(own, _)| own == name) {
            None => Value::Absent,
            Some((_, Json::Text(text))) => Value::Text(text),
            Some((_, other)) => Value::Other(other),
        }
    }
}

/// Returns whether a value contains a number that no double can hold, which the crate's JSON library rejects.
fn is_out_of_range(value: &Json) -> bool {
    match value {
        Json::Number(number) => number.parse::<f64>().is_ok_and(f64::is_infinite),
        Json::Array(items) => items.iter().any(is_out_of_range),
        Json::Object(members) => members.iter().any(|(_, value)| is_out_of_range(value)),
        Json::Null | Json::Boolean | Json::Text(_) => false,
    }
}

/// Encodes base64url without padding (RFC 4648, section 5), bit by bit.
pub fn base64url(bytes: &[u8]) -> String {
    let bits: Vec<u8> = bytes.iter().flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1)).collect();
    let digit = |six: &[u8]| (0..6).fold(0, |all, at| all << 1 | usize::from(six.get(at).copied().unwrap_or(0)));
    bits.chunks(6).map(|six| char::from(ALPHABET.as_bytes()[digit(six)])).collect()
}

/// Decodes what [`base64url`] encodes, and nothing else.
fn decoded(text: &str) -> Option<Vec<u8>> {
    let digits = text.chars().map(|c| ALPHABET.find(c)).collect::<Option<Vec<usize>>>()?;
    let bits: Vec<u8> = digits.iter().flat_map(|digit| (0..6).rev().map(move |at| (digit >> at & 1) as u8)).collect();
    let bytes: Vec<u8> = bits.chunks_exact(8).map(|eight| eight.iter().fold(0, |all, bit| all << 1 | bit)).collect();
    (base64url(&bytes) == text).then_some(bytes)
}
