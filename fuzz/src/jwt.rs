//! The parser and verifier of JWTs.
//!
//! The input is a token. Since no input has a valid signature, it is also signed: as a header, as claims, and as a line with a header
//! and the claims after it. So the oracle and the store must agree on all their rules, not only on the signature.

use std::sync::LazyLock;

use jsonwebtoken::{Algorithm, EncodingKey};
use tollgate::store::{JwtAlgorithm, JwtKeys, JwtStore};
use tollgate::{BearerToken, TokenStore};

use crate::oracle::jwt::{self, base64url};

const HEADER: &str = r#"{"typ":"at+jwt","alg":"EdDSA","kid":"k"}"#;
const CLAIMS: &str = r#"{"iss":"i","aud":"a","sub":"s","client_id":"c","jti":"j","iat":1,"exp":4e9,"scope":"x y"}"#;

/// The key of RFC 8037, appendix A.1, as PKCS #8.
const PRIVATE: [u8; 48] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20, 0x9d, 0x61, 0xb1,
    0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c, 0xc4, 0x44, 0x49, 0xc5, 0x69, 0x7b, 0x32,
    0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae, 0x7f, 0x60,
];
const PUBLIC: &str =
    r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"k"}]}"#;

/// The store of RFC 9068, and the one of plain JWTs.
static STORES: LazyLock<[JwtStore; 2]> = LazyLock::new(|| {
    let builder = || JwtStore::builder("i", "a", [JwtAlgorithm::EdDsa], JwtKeys::jwk_set(PUBLIC));
    [builder(), builder().with_plain_jwts()].map(|builder| builder.build().expect("settings"))
});

pub fn check(data: &[u8]) {
    same(data);
    same(signed(data, CLAIMS.as_bytes()).as_bytes());
    same(signed(HEADER.as_bytes(), data).as_bytes());
    if let Some(at) = data.iter().position(|byte| *byte == b'\n') {
        same(signed(&data[..at], &data[at + 1..]).as_bytes());
    }
}

fn signed(header: &[u8], claims: &[u8]) -> String {
    let message = format!("{}.{}", base64url(header), base64url(claims));
    let signature = sign(&message);
    format!("{message}.{signature}")
}

/// Signs a message. Signatures of Ed25519 are deterministic.
fn sign(message: &str) -> String {
    let key = EncodingKey::from_ed_der(&PRIVATE);
    jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::EdDSA).expect("a signature")
}

fn same(token: &[u8]) {
    for (store, plain) in STORES.iter().zip([false, true]) {
        let should_be = jwt::accepts(token, plain, sign);
        let found = futures_executor::block_on(store.lookup(&BearerToken::new(token)).into_future());
        let found = found.expect("fixed keys cause no error");
        assert_eq!(found.is_some(), should_be, "plain: {plain}, {}", token.escape_ascii());
        if let Some(grant) = found {
            assert!(!format!("{grant:?}").contains(&*token.escape_ascii().to_string()));
        }
    }
}

/// Returns inputs that are accepted, and inputs with one error.
pub fn seeds() -> Vec<Vec<u8>> {
    let token = signed(HEADER.as_bytes(), CLAIMS.as_bytes());
    let changes = [
        ("\"exp\":4e9", "\"exp\":-1"),
        ("\"exp\":4e9", "\"exp\":1e400"),
        ("\"aud\":\"a\"", "\"aud\":[\"b\",\"a\"]"),
        ("\"scope\":\"x y\"", "\"scp\":[\"x\",\"y\"],\"cnf\":{}"),
        ("\"iat\":1", "\"iat\":1,\"iat\":1"),
        ("\"sub\":\"s\"", "\"\\u0073ub\":\"s\",\"nbf\":1.5"),
    ];
    let claims = changes.map(|(from, to)| CLAIMS.replace(from, to));
    let headers = [
        HEADER.to_owned(),
        HEADER.replace("at+jwt", "JWT"),
        HEADER.replace("EdDSA", "none"),
        HEADER.replace("{", "{\"crit\":[\"exp\"],"),
        HEADER.replace("{", "{\"alg\":\"EdDSA\","),
    ];
    let both = format!("{HEADER}\n{CLAIMS}");
    let texts = [token, CLAIMS.to_owned(), both, "..".to_owned()].into_iter().chain(claims).chain(headers);
    texts.map(String::into_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oracle_accepts_only_valid_tokens() {
        let accepts = |header: &str, claims: &str| {
            let token = signed(header.as_bytes(), claims.as_bytes());
            [false, true].map(|plain| jwt::accepts(token.as_bytes(), plain, sign))
        };
        assert_eq!(accepts(HEADER, CLAIMS), [true, true]);
        assert_eq!(accepts(&HEADER.replace("at+jwt", "JWT"), CLAIMS), [false, true]);
        assert_eq!(accepts(HEADER, &CLAIMS.replace("jti", "x")), [false, true]);
        assert_eq!(accepts(HEADER, &CLAIMS.replace("exp", "x")), [false, false]);
        assert_eq!(accepts(&HEADER.replace("EdDSA", "none"), CLAIMS), [false, false]);
        let token = signed(HEADER.as_bytes(), CLAIMS.as_bytes());
        assert!(!jwt::accepts(format!("{token}A").as_bytes(), true, sign));
    }

    #[test]
    fn the_seeds_are_read_alike() {
        seeds().iter().for_each(|seed| check(seed));
    }
}
