//! An issuer of JWTs: keys, tokens, and a server of JWK sets over real connections.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::StatusCode;
use jsonwebtoken::{Algorithm, EncodingKey};
use rcgen::KeyPair;
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tollgate::store::{Claims, JwtAlgorithm, JwtBuilder, JwtKeys, JwtStore};
use tollgate::{BearerToken, Grant, StoreError, TokenStore as _};

use super::Hands;

pub const ISSUER: &str = "https://id.example";
pub const AUDIENCE: &str = "https://api.example";

/// A private key of the issuer.
pub struct Signer {
    pub kid: String,
    pub pem: String,
    pub point: Vec<u8>,
    algorithm: Algorithm,
    key: EncodingKey,
}

impl Signer {
    pub fn ed25519(kid: &str) -> Self {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        Self::new(kid, &pair, Algorithm::EdDSA, EncodingKey::from_ed_der(pair.serialized_der()))
    }

    pub fn es256(kid: &str) -> Self {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        Self::new(kid, &pair, Algorithm::ES256, EncodingKey::from_ec_der(pair.serialized_der()))
    }

    pub fn es384(kid: &str) -> Self {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
        Self::new(kid, &pair, Algorithm::ES384, EncodingKey::from_ec_der(pair.serialized_der()))
    }

    fn new(kid: &str, pair: &KeyPair, algorithm: Algorithm, key: EncodingKey) -> Self {
        let (pem, point) = (pair.public_key_pem(), pair.public_key_raw().to_vec());
        Self { kid: kid.to_owned(), pem, point, algorithm, key }
    }

    /// Returns the public key as a JWK.
    pub fn jwk(&self) -> Value {
        let encode = |bytes: &[u8]| BASE64_URL_SAFE_NO_PAD.encode(bytes);
        let ec = |curve: &str| {
            let (x, y) = self.point[1..].split_at(self.point.len() / 2);
            json!({"kty": "EC", "crv": curve, "x": encode(x), "y": encode(y), "kid": self.kid})
        };
        match self.algorithm {
            Algorithm::EdDSA => json!({"kty": "OKP", "crv": "Ed25519", "x": encode(&self.point), "kid": self.kid}),
            Algorithm::ES256 => ec("P-256"),
            _ => ec("P-384"),
        }
    }

    /// Returns the header of an access token.
    pub fn header(&self) -> Value {
        json!({"typ": "at+jwt", "alg": self.algorithm, "kid": self.kid})
    }

    /// Signs any texts as header and payload.
    pub fn sign(&self, header: &str, payload: &str) -> String {
        let message = format!("{}.{}", encode(header), encode(payload));
        let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &self.key, self.algorithm).unwrap();
        format!("{message}.{signature}")
    }

    /// Signs an access token with these claims.
    pub fn token(&self, claims: &Value) -> String {
        self.sign(&self.header().to_string(), &claims.to_string())
    }
}

pub fn encode(text: impl AsRef<[u8]>) -> String {
    BASE64_URL_SAFE_NO_PAD.encode(text)
}

/// Returns the JSON of a JWK set.
pub fn jwk_set<'a>(signers: impl IntoIterator<Item = &'a Signer>) -> String {
    json!({"keys": signers.into_iter().map(Signer::jwk).collect::<Vec<_>>()}).to_string()
}

pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Returns the claims of a valid access token.
pub fn claims() -> Value {
    json!({
        "iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "client_id": "app", "jti": "t-1", "scope": "orders:read trade",
        "iat": now() - 60, "exp": now() + 3_600,
    })
}

/// Returns the claims of a valid access token with other values. `null` removes a claim.
pub fn claims_with(changes: Value) -> Value {
    let mut claims = claims();
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => _ = claims.as_object_mut().unwrap().remove(name),
            value => claims[name] = value.clone(),
        }
    }
    claims
}

pub const ALGORITHMS: [JwtAlgorithm; 3] = [JwtAlgorithm::EdDsa, JwtAlgorithm::Es256, JwtAlgorithm::Es384];

pub fn builder(keys: JwtKeys) -> JwtBuilder {
    // Long enough for a slow machine.
    JwtStore::builder(ISSUER, AUDIENCE, ALGORITHMS, keys).with_timeout(Duration::from_secs(60))
}

/// Returns a store with one fixed key.
pub fn fixed(signer: &Signer) -> JwtBuilder {
    builder(JwtKeys::jwk_set(jwk_set([signer])))
}

pub async fn ask<P: Send + Sync + 'static>(
    store: &JwtStore<P>,
    token: &str,
) -> Result<Option<Arc<Grant<P>>>, StoreError> {
    store.lookup(&BearerToken::new(token)).await
}

pub async fn accepts<P: Send + Sync + 'static>(store: &JwtStore<P>, token: &str) -> bool {
    ask(store, token).await.unwrap().is_some()
}

/// A server of a JWK set, which counts requests, can be down, and can delay its answers.
#[derive(Clone)]
pub struct Jwks {
    pub address: SocketAddr,
    body: Arc<Mutex<(StatusCode, String)>>,
    asked: Arc<AtomicUsize>,
    answers: Arc<Semaphore>,
}

impl Jwks {
    pub async fn serve(body: String) -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            body: Arc::new(Mutex::new((StatusCode::OK, body))),
            asked: Arc::default(),
            answers: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
        };
        let state = server.clone();
        let app = Router::new().fallback(move || {
            let state = state.clone();
            async move {
                // The body of the time of the request, as if it had been read from a database.
                let answer = state.body.lock().unwrap().clone();
                state.asked.fetch_add(1, Ordering::SeqCst);
                drop(state.answers.acquire().await.unwrap());
                answer
            }
        });
        tokio::spawn(async move { axum::serve(listener, app).await });
        server
    }

    pub fn set(&self, status: StatusCode, body: impl Into<String>) {
        *self.body.lock().unwrap() = (status, body.into());
    }

    /// Returns the number of requests since the last call.
    pub fn asked(&self) -> usize {
        self.asked.swap(0, Ordering::SeqCst)
    }

    /// Waits for a request.
    pub async fn has_been_asked(&self) {
        let asked = async {
            while self.asked.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), asked).await.expect("a request for the keys");
    }

    /// Delays answers until [`release`](Self::release).
    pub fn hold(&self) {
        self.answers.forget_permits(Semaphore::MAX_PERMITS);
    }

    pub fn release(&self) {
        self.answers.add_permits(Semaphore::MAX_PERMITS);
    }

    pub fn builder(&self, hands: &Hands) -> JwtBuilder {
        builder(JwtKeys::url(&format!("http://{}/jwks", self.address)))
            .with_min_interval(FLOOR)
            .with_max_key_age(MAX_AGE)
            .with_clock(hands.clock())
    }

    pub fn store(&self, hands: &Hands) -> JwtStore<Claims> {
        self.builder(hands).build().unwrap()
    }
}

pub const FLOOR: Duration = Duration::from_secs(10);
pub const MAX_AGE: Duration = Duration::from_secs(600);
