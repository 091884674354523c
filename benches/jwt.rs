//! Compares a lookup of a JWT with the verification by the crate `jsonwebtoken` alone, which parses the same claims.
//! `cargo bench --bench jwt --features jwt` prints a table of medians and their ratio.
//!
//! The two sides alternate call by call. A side measured alone takes a different share of changes of the clock rate and of other
//! programs, which moves the ratio by more than its distance from 1.

#![allow(clippy::expect_used, clippy::print_stdout, reason = "a benchmark that panics and prints")]

use std::hint::black_box;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use rcgen::KeyPair;
use serde_json::{Map, Value, json};
use tollgate::store::{JwtAlgorithm, JwtKeys, JwtStore};
use tollgate::{BearerToken, TokenStore};

/// Lookups of each side and row.
const LOOKUPS: usize = 20_000;
const ISSUER: &str = "https://id.example";
const AUDIENCE: &str = "https://api.example";

fn main() {
    println!("| | jsonwebtoken, µs | JwtStore, µs | ratio |\n|---|---:|---:|---:|");
    let row = |name, algorithm, of_the_library, token: &str, pem: &str| {
        let (library, store) = medians(algorithm, of_the_library, token, pem);
        let micros = |time: Duration| time.as_secs_f64() * 1e6;
        println!("| {name} | {:.1} | {:.1} | {:.3} |", micros(library), micros(store), micros(store) / micros(library));
    };
    row("RS256", JwtAlgorithm::Rs256, Algorithm::RS256, RS256_TOKEN, RS256_KEY);
    let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).expect("a key");
    let token = sign(Algorithm::ES256, &EncodingKey::from_ec_der(pair.serialized_der()));
    row("ES256", JwtAlgorithm::Es256, Algorithm::ES256, &token, &pair.public_key_pem());
    let pair = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    let token = sign(Algorithm::EdDSA, &EncodingKey::from_ed_der(pair.serialized_der()));
    row("EdDSA", JwtAlgorithm::EdDsa, Algorithm::EdDSA, &token, &pair.public_key_pem());
}

/// Returns a token with the claims of [`RS256_TOKEN`].
fn sign(algorithm: Algorithm, key: &EncodingKey) -> String {
    let mut header = Header::new(algorithm);
    (header.typ, header.kid) = (Some("at+jwt".to_owned()), Some("bench".to_owned()));
    let claims = json!({
        "iss": ISSUER, "aud": AUDIENCE, "sub": "248289761001", "client_id": "s6BhdRkqt3",
        "jti": "dbe39bf3a3ba4238a513f51d6e1691c4", "scope": "orders:read trade",
        "iat": 1_735_689_600_u64, "exp": 4_102_444_800_u64,
    });
    jsonwebtoken::encode(&header, &claims, key).expect("a token")
}

/// Returns the median times of a verification by the library and of a lookup in the store.
fn medians(algorithm: JwtAlgorithm, of_the_library: Algorithm, token: &str, pem: &str) -> (Duration, Duration) {
    let key = match of_the_library {
        Algorithm::RS256 => DecodingKey::from_rsa_pem(pem.as_bytes()),
        Algorithm::ES256 => DecodingKey::from_ec_pem(pem.as_bytes()),
        _ => DecodingKey::from_ed_pem(pem.as_bytes()),
    };
    let key = key.expect("a key");
    let mut validation = Validation::new(of_the_library);
    validation.set_issuer(&[ISSUER]);
    validation.set_audience(&[AUDIENCE]);
    validation.set_required_spec_claims(&["iss", "aud", "sub", "exp"]);
    let store = JwtStore::builder(ISSUER, AUDIENCE, [algorithm], JwtKeys::pem(pem)).build().expect("settings");

    let library =
        || jsonwebtoken::decode::<Map<String, Value>>(black_box(token), &key, &validation).expect("a valid token");
    // With the digest of the token, which every gate computes.
    let lookup = || {
        let lookup = pin!(store.lookup(&BearerToken::new(black_box(token))).into_future());
        let Poll::Ready(Ok(Some(grant))) = lookup.poll(&mut Context::from_waker(Waker::noop())) else {
            panic!("a fixed key, and a valid token")
        };
        grant
    };
    for _ in 0..LOOKUPS / 10 {
        black_box((library(), lookup()));
    }
    let mut times = [Vec::with_capacity(LOOKUPS), Vec::with_capacity(LOOKUPS)];
    for _ in 0..LOOKUPS {
        times[0].push(elapsed(library));
        times[1].push(elapsed(lookup));
    }
    let [library, store] = times.map(|mut times| {
        times.sort_unstable();
        times[LOOKUPS / 2]
    });
    (library, store)
}

fn elapsed<T>(call: impl Fn() -> T) -> Duration {
    let begin = Instant::now();
    black_box(call());
    begin.elapsed()
}

/// Signed by the private part of [`RS256_KEY`], which was thrown away. It expires in 2100.
const RS256_TOKEN: &str = "eyJ0eXAiOiJhdCtqd3QiLCJhbGciOiJSUzI1NiIsImtpZCI6ImJlbmNoIn0.eyJpc3MiOiJodHRwczovL2lkLmV4YW1wbGUiLCJhdWQiOiJodHRwczovL2FwaS5leGFtcGxlIiwic3ViIjoiMjQ4Mjg5NzYxMDAxIiwiY2xpZW50X2lkIjoiczZCaGRSa3F0MyIsImp0aSI6ImRiZTM5YmYzYTNiYTQyMzhhNTEzZjUxZDZlMTY5MWM0Iiwic2NvcGUiOiJvcmRlcnM6cmVhZCB0cmFkZSIsImlhdCI6MTczNTY4OTYwMCwiZXhwIjo0MTAyNDQ0ODAwfQ.SX2SemMtQIWuBdPucE_XmEU2QG6DXaFDw_8XraD-Qe9vaG5gnTaMrhN2S9YgcumkQLbKmreB85DPCOb5Zd2nwRBbiYkun25hdqTBJ3UYTC-Vc-4PvZA4H4i0smoWjFf6vngYRziPwXoMLOHH4Zynuq-WiqqmGcL1dl2YLg9mCtrsKyYlNuJ5IG7XhQ--6O2a0KPyHa5TPD44RhrvE-cYVnRe7eixg64UzmL4hpyTZYieX8Y2R40rwCGE5SbYdQw4u3-QsI7hxAnUaHXyr5qsv7IomjsEdvmHLW12vLnuPRX_OvvkZLtmnr2lY161Kwy_ReYd8eVgxLrrx04KjztHSw";
const RS256_KEY: &str = "\
-----BEGIN PUBLIC KEY-----
MIIBIjANBgkqhkiG9w0BAQEFAAOCAQ8AMIIBCgKCAQEA1jlFnEU3nqi033yaMqZi
L+r7mF4kB/PLqVTALHvnpt9kMnZ2OB1awVyOXS0Qx1aJTQobHJkxyGtSe35akSE6
5eEl6q2kYpCq81vrCym3p8BXISsRYMEfnXNmDAOs18ThuUWVOVEUieh9jlxEEsKp
H7eXpoom+VlK8AvOV1k9SaO37ufzHzIhCqlt1tqR2qVa1Mcqd1EjAZ4TSmVxPscu
OiKC/EzpR3WY7fSEua/cM37RNt2XRGcvdLaQtb1ptBieXOcQD+kxsaDjPcrZN1k5
tQwCKPM85Qzm2wlqUCu54TLhpyaE+PVzOKKLlVKLUXEmUcLntIdG30+jofExS+SU
UQIDAQAB
-----END PUBLIC KEY-----
";
