//! [`Parsed`]: a token before its signature is verified.

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use super::algorithm::JwtAlgorithm;
use crate::grant::scopes::Scopes;
use crate::store::claims::{self, Claims, Members};

/// The required contents of a token.
pub(super) struct Requirements {
    pub(super) issuer: Box<str>,
    pub(super) audiences: Vec<Box<str>>,
    pub(super) algorithms: Vec<JwtAlgorithm>,
    /// Accepts tokens that do not follow RFC 9068.
    pub(super) plain: bool,
    /// The maximum length of a token in bytes.
    pub(super) max_token: usize,
}

/// A token in JWS compact serialization (RFC 7515, section 7.1) whose signature has not been verified.
pub(super) struct Parsed {
    pub(super) algorithm: JwtAlgorithm,
    pub(super) kid: Option<String>,
    /// The signed bytes: the first two parts of the token.
    pub(super) message: Zeroizing<Vec<u8>>,
    pub(super) signature: Vec<u8>,
    pub(super) claims: Claims,
}

impl Parsed {
    /// Parses a token. Returns `None` if it is malformed, or for another issuer, audience or purpose.
    ///
    /// All checks that need no key come first, so that they cost little, and tokens for others cause no fetch of keys.
    pub(super) fn new(token: &[u8], required: &Requirements) -> Option<Self> {
        if token.len() > required.max_token {
            return None;
        }
        let [header, payload, signature] = parts(token)?;
        let (algorithm, kid) = header_of(&object(header)?, required)?;
        let claims = claims_of(object(payload)?, required)?;
        let message = Zeroizing::new(token[..header.len() + 1 + payload.len()].to_vec());
        let signature = BASE64_URL_SAFE_NO_PAD.decode(signature).ok()?;
        Some(Self { algorithm, kid, message, signature, claims })
    }
}

/// Splits a token into its header, payload and signature.
pub(super) fn parts(token: &[u8]) -> Option<[&[u8]; 3]> {
    let mut parts = token.split(|byte| *byte == b'.');
    let all = [parts.next()?, parts.next()?, parts.next()?];
    parts.next().is_none().then_some(all)
}

/// Decodes a part of a token: base64url without padding, of a JSON object without duplicate members.
pub(super) fn object(part: &[u8]) -> Option<Members> {
    let json = Zeroizing::new(BASE64_URL_SAFE_NO_PAD.decode(part).ok()?);
    serde_json::from_slice(&json).ok()
}

/// Checks the header. Ignores keys and their addresses in it (`jwk`, `jku`, `x5c`, `x5u`), which the signer chooses.
pub(super) fn header_of(Members(header): &Members, required: &Requirements) -> Option<(JwtAlgorithm, Option<String>)> {
    let algorithm = JwtAlgorithm::from_name(header.get("alg")?.as_str()?)?;
    if !required.algorithms.contains(&algorithm) {
        return None;
    }
    // This code understands no extension (RFC 7515, section 4.1.11), and no unencoded payload (RFC 7797).
    if header.contains_key("crit") || header.contains_key("b64") {
        return None;
    }
    match header.get("typ") {
        None if required.plain => {}
        Some(Value::String(typ)) if is_accepted_type(typ, required.plain) => {}
        _ => return None,
    }
    let kid = match header.get("kid") {
        None => None,
        Some(Value::String(kid)) => Some(kid.clone()),
        Some(_) => return None,
    };
    Some((algorithm, kid))
}

/// Compares a media type, whose prefix may be omitted (RFC 7515, section 4.1.9), in upper and lower case.
fn is_accepted_type(typ: &str, plain: bool) -> bool {
    let typ = typ.to_ascii_lowercase();
    let short = typ.strip_prefix("application/").unwrap_or(&typ);
    short == "at+jwt" || (plain && short == "jwt")
}

fn claims_of(members: Members, required: &Requirements) -> Option<Claims> {
    let scopes = scopes(&members.0)?;
    let claims = Claims::new(members, scopes, false).ok()?;
    let is_for_this_service =
        claims.audiences().any(|audience| required.audiences.iter().any(|accepted| **accepted == *audience));
    if claims.issuer() != Some(&*required.issuer) || !is_for_this_service || claims.expires_at().is_none() {
        return None;
    }
    let follows_rfc_9068 = [claims.subject(), claims.client_id(), claims.token_id()].iter().all(Option::is_some)
        && claims.issued_at().is_some();
    (required.plain || follows_rfc_9068).then_some(claims)
}

/// Reads `scope`, and `scp`, which some issuers send as a string or as an array. The result contains both, without duplicates.
fn scopes(members: &Map<String, Value>) -> Option<Scopes> {
    let scope = claims::scopes(members, "scope").ok()?;
    let scp = match members.get("scp") {
        Some(Value::Array(all)) => Scopes::new(all.iter().map(Value::as_str).collect::<Option<Vec<_>>>()?).ok()?,
        _ => claims::scopes(members, "scp").ok()?,
    };
    Scopes::new(scope.iter().chain(scp.iter().filter(|other| !scope.contains(other)))).ok()
}
