//! [`JwtKeys`]: where the public keys come from, and [`KeySet`]: the keys.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::DecodingKey;
use jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER;
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use super::algorithm::{JwtAlgorithm, KeyKind};

/// The public keys of an issuer, which [`JwtBuilder::build`](super::JwtBuilder::build) checks.
///
/// | constructor | keys |
/// |---|---|
/// | [`url`](Self::url) | fetched from the issuer, and fetched again when they change |
/// | [`jwk_set`](Self::jwk_set) | fixed, as JSON |
/// | [`pem`](Self::pem) | one fixed key, in PEM |
///
/// # Which key verifies a token?
///
/// The key whose `kid` is that of the token. Otherwise the only key without a `kid` that fits the algorithm. For a token without a
/// `kid`, the only key that fits. If several keys fit, the token is unknown.
///
/// At most one key of a set is tried for a token. If a key that was not chosen by its `kid` does not verify the signature, the issuer
/// may have replaced it. So the set of a URL is fetched again, at most once in each
/// [`with_min_interval`](super::JwtBuilder::with_min_interval).
///
/// A key fits an algorithm if its type and curve do, its `alg` is missing or the same, its `use` is missing or `sig`, and its
/// `key_ops` are missing or contain `verify`. RSA keys need 2,048 to 8,192 bits. Other keys of a set are ignored (RFC 7517, section
/// 5). A set with a private or symmetric key, or with one `kid` twice, is rejected as a whole.
#[derive(Clone)]
pub struct JwtKeys(pub(super) Source);

#[derive(Clone)]
pub(super) enum Source {
    Url(Box<str>),
    JwkSet(Box<[u8]>),
    Pem(Box<[u8]>),
}

impl JwtKeys {
    /// Fetches the keys from the URL of a JWK set (RFC 7517), the `jwks_uri` of the issuer.
    #[must_use]
    pub fn url(url: &str) -> Self {
        Self(Source::Url(url.into()))
    }

    /// Uses the keys of a JWK set (RFC 7517), as JSON.
    #[must_use]
    pub fn jwk_set(json: impl AsRef<[u8]>) -> Self {
        Self(Source::JwkSet(json.as_ref().into()))
    }

    /// Uses one key in PEM: `PUBLIC KEY`, or `RSA PUBLIC KEY` (PKCS #1). It has no `kid`, and verifies tokens with any `kid`.
    #[must_use]
    pub fn pem(pem: impl AsRef<[u8]>) -> Self {
        Self(Source::Pem(pem.as_ref().into()))
    }
}

impl fmt::Debug for JwtKeys {
    /// Omits the keys, because a private key may be passed by mistake, and the query of the URL, which may contain secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JwtKeys(..)")
    }
}

/// The error of keys that cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum KeyError {
    /// Not a JWK set, or not PEM with a public key.
    Syntax,
    /// A private or symmetric key.
    NotPublic,
    DuplicateKid,
    /// No key fits an accepted algorithm.
    NoneFits,
}

/// The public keys of an issuer.
#[derive(Default)]
pub(super) struct KeySet(Vec<Arc<Key>>);

/// A public key.
pub(super) struct Key {
    kid: Option<Box<str>>,
    kind: KeyKind,
    /// The only algorithm of the key, if it names one.
    algorithm: Option<JwtAlgorithm>,
    key: DecodingKey,
}

impl Key {
    fn fits(&self, algorithm: JwtAlgorithm) -> bool {
        self.kind == algorithm.key_kind() && self.algorithm.is_none_or(|own| own == algorithm)
    }

    /// Returns whether the key was chosen by its `kid`, and not because it is the only one that fits.
    pub(super) fn is_named(&self, kid: Option<&str>) -> bool {
        kid.is_some() && self.kid.as_deref() == kid
    }

    /// Returns whether the signature of the message is valid. The key must fit the algorithm.
    pub(super) fn verify(&self, algorithm: JwtAlgorithm, message: &[u8], signature: &Vec<u8>) -> bool {
        // Not by the default provider of the process, which the application may have set to any code, or which may be missing.
        let verifier = (DEFAULT_PROVIDER.verifier_factory)(&algorithm.of_the_library(), &self.key);
        verifier.is_ok_and(|verifier| verifier.verify(message, signature).is_ok())
    }
}

impl KeySet {
    /// Parses the JSON of a JWK set. Ignores keys that cannot verify signatures by one of these algorithms.
    pub(super) fn from_json(json: &[u8], algorithms: &[JwtAlgorithm]) -> Result<Self, KeyError> {
        let set: JwkSet<'_> = serde_json::from_slice(json).map_err(|_| KeyError::Syntax)?;
        let mut keys: Vec<Arc<Key>> = Vec::new();
        for jwk in set.keys {
            // Members of an unexpected type mean that this code cannot use the key.
            let Ok(jwk) = serde_json::from_str::<Jwk>(jwk.get()) else { continue };
            if jwk.kty == "oct" || jwk.d.is_some() {
                return Err(KeyError::NotPublic);
            }
            let Some(key) = jwk.key().filter(|key| algorithms.iter().any(|algorithm| key.fits(*algorithm))) else {
                continue;
            };
            if key.kid.is_some() && keys.iter().any(|other| other.kid == key.kid) {
                return Err(KeyError::DuplicateKid);
            }
            keys.push(Arc::new(key));
        }
        Ok(Self(keys))
    }

    /// Parses one public key in PEM.
    pub(super) fn from_pem(pem: &[u8], algorithms: &[JwtAlgorithm]) -> Result<Self, KeyError> {
        let text = std::str::from_utf8(pem).map_err(|_| KeyError::Syntax)?;
        if text.contains("PRIVATE KEY-----") {
            return Err(KeyError::NotPublic);
        }
        // The parser also accepts certificates, but reads the first bit string in them, whatever it is.
        if !["-----BEGIN PUBLIC KEY-----", "-----BEGIN RSA PUBLIC KEY-----"].iter().any(|label| text.contains(label)) {
            return Err(KeyError::Syntax);
        }
        let (kind, key) = pem_key(pem).ok_or(KeyError::Syntax)?;
        let key = Key { kid: None, kind, algorithm: None, key };
        Self(vec![Arc::new(key)]).with_a_key_for(algorithms)
    }

    /// Returns an error unless a key fits one of these algorithms.
    pub(super) fn with_a_key_for(self, algorithms: &[JwtAlgorithm]) -> Result<Self, KeyError> {
        let fits = self.0.iter().any(|key| algorithms.iter().any(|algorithm| key.fits(*algorithm)));
        fits.then_some(self).ok_or(KeyError::NoneFits)
    }

    /// Returns the key for a token. See [`JwtKeys`].
    pub(super) fn find(&self, algorithm: JwtAlgorithm, kid: Option<&str>) -> Option<&Arc<Key>> {
        let only = |matches: &dyn Fn(&Key) -> bool| {
            let mut keys = self.0.iter().filter(|key| key.fits(algorithm) && matches(key));
            keys.next().filter(|_| keys.next().is_none())
        };
        match kid {
            None => only(&|_| true),
            Some(kid) => match self.0.iter().find(|key| key.kid.as_deref() == Some(kid)) {
                Some(key) => Some(key).filter(|key| key.fits(algorithm)),
                None => only(&|key| key.kid.is_none()),
            },
        }
    }
}

#[derive(Deserialize)]
struct JwkSet<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
}

/// The members of a JWK that decide whether and how it is used (RFC 7517, section 4; RFC 7518, section 6; RFC 8037, section 2).
#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<Box<str>>,
    r#use: Option<String>,
    key_ops: Option<Vec<String>>,
    alg: Option<String>,
    crv: Option<String>,
    x: Option<String>,
    y: Option<String>,
    n: Option<String>,
    e: Option<String>,
    /// The private part, of all types.
    d: Option<IgnoredAny>,
}

impl Jwk {
    /// Returns the key, if it may verify signatures and is well-formed.
    fn key(self) -> Option<Key> {
        if self.r#use.as_deref().is_some_and(|r#use| r#use != "sig") {
            return None;
        }
        if self.key_ops.as_ref().is_some_and(|operations| !operations.iter().any(|operation| operation == "verify")) {
            return None;
        }
        let algorithm = match self.alg.as_deref() {
            None => None,
            Some(name) => Some(JwtAlgorithm::from_name(name)?),
        };
        let bytes = |text: &Option<String>| BASE64_URL_SAFE_NO_PAD.decode(text.as_deref()?).ok();
        let (kind, key) = match (&*self.kty, self.crv.as_deref()) {
            ("RSA", _) => rsa(&bytes(&self.n)?, &bytes(&self.e)?)?,
            ("EC", Some(curve @ ("P-256" | "P-384"))) => {
                let (x, y) = (bytes(&self.x)?, bytes(&self.y)?);
                let size = if curve == "P-256" { 32 } else { 48 };
                ec(&[&[4], &*x, &*y].concat()).filter(|_| x.len() == size && y.len() == size)?
            }
            ("OKP", Some("Ed25519")) => ed25519(&bytes(&self.x)?)?,
            _ => return None,
        };
        Some(Key { kid: self.kid, kind, algorithm, key })
    }
}

/// The object identifiers of the curves in DER (RFC 5480, section 2.1.1.1).
const P256: &[u8] = &[6, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
const P384: &[u8] = &[6, 5, 0x2b, 0x81, 4, 0, 0x22];

fn pem_key(pem: &[u8]) -> Option<(KeyKind, DecodingKey)> {
    if let Ok(key) = DecodingKey::from_ec_pem(pem) {
        let (kind, key) = ec(key.try_get_as_bytes().ok()?)?;
        // The points of other curves, such as secp256k1, have the same length.
        let curve: &[u8] = if kind == KeyKind::P256 { P256 } else { P384 };
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem).ok()?;
        return der.windows(curve.len()).any(|part| part == curve).then_some((kind, key));
    }
    if let Ok(key) = DecodingKey::from_ed_pem(pem) {
        return ed25519(key.try_get_as_bytes().ok()?);
    }
    let key = DecodingKey::from_rsa_pem(pem).ok()?;
    let components = (DEFAULT_PROVIDER.key_utils.rsa_pub_components_from_public_key)(key.try_get_as_bytes().ok()?);
    let (n, e) = components.ok()?;
    rsa(&n, &e)
}

/// Creates an RSA key of 2,048 to 8,192 bits, with an odd exponent from 3 to 2^33 - 1, the range of the verifier.
fn rsa(n: &[u8], e: &[u8]) -> Option<(KeyKind, DecodingKey)> {
    let n = without_leading_zeros(n);
    let bits = 8 * n.len() - n.first()?.leading_zeros() as usize;
    let e = without_leading_zeros(e);
    let exponent = (e.len() <= 5).then(|| e.iter().fold(0_u64, |all, byte| all << 8 | u64::from(*byte)))?;
    let is_usable = (2_048..=8_192).contains(&bits) && (3..1 << 33).contains(&exponent) && exponent % 2 == 1;
    is_usable.then(|| (KeyKind::Rsa, DecodingKey::from_rsa_raw_components(n, e)))
}

fn without_leading_zeros(bytes: &[u8]) -> &[u8] {
    &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..]
}

/// Creates a key from an uncompressed point. The verifier rejects points that are not on the curve.
fn ec(point: &[u8]) -> Option<(KeyKind, DecodingKey)> {
    let kind = match (point.len(), point.first()?) {
        (65, 4) => KeyKind::P256,
        (97, 4) => KeyKind::P384,
        _ => return None,
    };
    Some((kind, DecodingKey::from_ec_der(point)))
}

fn ed25519(key: &[u8]) -> Option<(KeyKind, DecodingKey)> {
    (key.len() == 32).then(|| (KeyKind::Ed25519, DecodingKey::from_ed_der(key)))
}
