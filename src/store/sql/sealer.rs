//! Keys that seal tokens, so that only a holder of a key can read them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD};
use chacha20poly1305::{AeadInOut, KeyInit, XChaCha20Poly1305, XNonce};
use thiserror::Error;
use zeroize::Zeroizing;

use super::SqlError;
use crate::grant::GrantId;
use crate::token::TokenDigest;
use crate::token::mint::{RandomnessError, Secret};

/// A secret key that seals tokens: 32 random bytes and an id. Keep it in a secrets manager, apart from the database and its backups.
///
/// The text of a key is `ID:KEY`, with the key in base64 (RFC 4648, section 4), with or without padding:
/// `2026-01:bWTsoYxqmNVkSHlAS9h7YvAyLRo5/GDQYbZCjPJEoQM=`. [`FromStr`] parses it.
///
/// `Debug` shows the id only, and the key is overwritten on drop. The caller must overwrite the bytes or the text that it was
/// created from.
pub struct SealingKey {
    id: Box<str>,
    // Boxed before it is filled, so that no move leaves a copy.
    key: Box<Zeroizing<[u8; KEY_LEN]>>,
}

impl SealingKey {
    /// Creates a key. The bytes must be random, not a password. The id is not secret: it is stored with each sealed token. It has
    /// 1 to 32 lower-case letters, digits, `-` and `_`, such as `2026-01`. Never give one id to two keys.
    ///
    /// # Errors
    ///
    /// [`SealingKeyError::Id`] if the id is invalid.
    pub fn new(id: &str, key: [u8; 32]) -> Result<Self, SealingKeyError> {
        let key = Zeroizing::new(key);
        Self::filled(id, |boxed| {
            boxed.copy_from_slice(&*key);
            Ok(())
        })
    }

    /// Creates a random key with this id.
    ///
    /// ```
    /// use tollgate::store::sql::SealingKey;
    ///
    /// let key = SealingKey::generate("2026-01")?;
    /// // Write the text to the secrets manager.
    /// let text = key.expose();
    /// assert!(text.starts_with("2026-01:"));
    /// assert_eq!(text.parse::<SealingKey>()?.id(), "2026-01");
    /// # Ok::<_, tollgate::store::sql::SealingKeyError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// If the id is invalid, or the system provides no random bytes.
    pub fn generate(id: &str) -> Result<Self, SealingKeyError> {
        Self::filled(id, |key| Ok(getrandom::fill(key).map_err(RandomnessError::new)?))
    }

    fn filled(
        id: &str,
        fill: impl FnOnce(&mut [u8; KEY_LEN]) -> Result<(), SealingKeyError>,
    ) -> Result<Self, SealingKeyError> {
        if !is_key_id(id) {
            return Err(SealingKeyError::Id);
        }
        let mut key = Box::new(Zeroizing::new([0; KEY_LEN]));
        fill(&mut key)?;
        Ok(Self { id: id.into(), key })
    }

    /// Returns the id, which is not secret.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the text `ID:KEY`, to be stored in a secrets manager. Never log it. The caller must overwrite it.
    #[must_use]
    pub fn expose(&self) -> String {
        // Allocated in full, because a reallocation would leave a copy behind.
        let mut text = String::with_capacity(self.id.len() + 1 + TEXT_LEN);
        text.push_str(&self.id);
        text.push(':');
        BASE64_STANDARD.encode_string(&**self.key, &mut text);
        text
    }

    /// Returns the sealed token as text: `v1.`, the id of the key, `.`, and the nonce with the ciphertext and its tag in base64url.
    fn seal(&self, nonce: &[u8; NONCE_LEN], grant: &GrantId, token: &str) -> Result<String, SqlError> {
        let associated = self.associated_data(grant, TokenDigest::of(token));
        // Encrypted in place, and allocated in full, so that no copy of the token is left behind.
        let mut sealed = Vec::with_capacity(NONCE_LEN + token.len() + TAG_LEN);
        sealed.extend_from_slice(nonce);
        sealed.extend_from_slice(token.as_bytes());
        let tag = self.cipher().encrypt_inout_detached(
            &XNonce::from(*nonce),
            &associated,
            sealed[NONCE_LEN..].as_mut().into(),
        );
        // Fails for tokens of 256 GiB only.
        sealed.extend_from_slice(&tag.map_err(|_| SqlError::NotOpened)?);
        Ok(format!("{}{}", self.lead(), BASE64_URL_SAFE_NO_PAD.encode(sealed)))
    }

    /// Opens the part of a sealed token that follows the id of the key.
    fn open(&self, text: &str, grant: &GrantId, digest: TokenDigest) -> Option<Secret> {
        let mut sealed = BASE64_URL_SAFE_NO_PAD.decode(text).ok()?;
        let nonce: [u8; NONCE_LEN] = sealed.get(..NONCE_LEN)?.try_into().ok()?;
        let mut token = Zeroizing::new(sealed.split_off(NONCE_LEN));
        let associated = self.associated_data(grant, digest);
        self.cipher().decrypt_in_place(&XNonce::from(nonce), &associated, &mut *token).ok()?;
        // The associated data has the digest already. This protects from a writer who has the key and seals other tokens.
        if TokenDigest::of(&*token) != digest {
            return None;
        }
        match String::from_utf8(std::mem::take(&mut *token)) {
            Ok(token) => Some(Secret::new(Zeroizing::new(token))),
            Err(error) => {
                drop(Zeroizing::new(error.into_bytes()));
                None
            }
        }
    }

    fn cipher(&self) -> XChaCha20Poly1305 {
        let key: &[u8; KEY_LEN] = &self.key;
        XChaCha20Poly1305::new(key.into())
    }

    /// Returns what a sealed token is bound to. Each part has its length before it, so that no two lists have the same bytes.
    fn associated_data(&self, grant: &GrantId, digest: TokenDigest) -> Vec<u8> {
        let digest = digest.to_bytes();
        let parts = [CONTEXT, self.id.as_bytes(), grant.as_str().as_bytes(), &digest];
        parts.into_iter().flat_map(|part| [&(part.len() as u64).to_le_bytes(), part].concat()).collect()
    }

    /// Returns the beginning of all texts that this key seals.
    pub(super) fn lead(&self) -> String {
        format!("{VERSION}{}.", self.id)
    }
}

impl FromStr for SealingKey {
    type Err = SealingKeyError;

    fn from_str(text: &str) -> Result<Self, SealingKeyError> {
        let (id, text) = text.split_once(':').ok_or(SealingKeyError::Key)?;
        if text.len() > TEXT_LEN {
            return Err(SealingKeyError::Key);
        }
        Self::filled(id, |key| {
            // The decoder asks for a byte more than the key has.
            let mut decoded = Zeroizing::new([0; KEY_LEN + 1]);
            match BASE64.decode_slice(text, &mut *decoded) {
                Ok(KEY_LEN) => {
                    key.copy_from_slice(&decoded[..KEY_LEN]);
                    Ok(())
                }
                _ => Err(SealingKeyError::Key),
            }
        })
    }
}

impl fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SealingKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// Seals new tokens with one key, and opens tokens that were sealed with this key or an older one. Clones share the keys.
///
/// Give it to [`Database::with_sealer`](super::Database::with_sealer). `Debug` shows the ids of the keys only.
///
/// # Several keys
///
/// The text of a sealer is that of its keys, separated by commas or line breaks. The first key seals. To replace a key:
///
/// 1. Add the new key as the *last* one, and restart all processes: now each of them can open what the new key seals.
/// 2. Move the new key to the *first* place, and restart all processes.
/// 3. Call [`Database::reseal`](super::Database::reseal), or run `tollgate token reseal`.
/// 4. Remove the old key.
///
/// ```
/// use tollgate::store::sql::Sealer;
///
/// // From a secrets manager.
/// let keys = "2026-07:bWTsoYxqmNVkSHlAS9h7YvAyLRo5/GDQYbZCjPJEoQM=,2026-01:JVNjAdgRHbjXgnGnQ8MAyqZW5Kl0brFcrRqpGnHdnkc=";
/// let sealer: Sealer = keys.parse()?;
/// # let _ = sealer;
/// # Ok::<_, tollgate::store::sql::SealingKeyError>(())
/// ```
///
/// # Rules
///
/// 1. A token is sealed with XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03) and a random nonce of 24 bytes.
/// 2. The associated data has the id of the key, the id of the grant, and the digest of the token. So a sealed token opens in its own
///    row only.
/// 3. An opened token is returned only if its digest is that of the row.
#[derive(Clone, Debug)]
pub struct Sealer {
    current: Arc<SealingKey>,
    previous: Vec<Arc<SealingKey>>,
}

impl Sealer {
    /// Creates a sealer with the key that seals.
    #[must_use]
    pub fn new(key: SealingKey) -> Self {
        Self { current: Arc::new(key), previous: Vec::new() }
    }

    /// Adds a key that opens tokens, and seals none.
    ///
    /// # Errors
    ///
    /// [`SealingKeyError::Duplicate`] if another key has this id.
    pub fn with_previous_key(mut self, key: SealingKey) -> Result<Self, SealingKeyError> {
        if self.key(key.id()).is_some() {
            return Err(SealingKeyError::Duplicate);
        }
        self.previous.push(Arc::new(key));
        Ok(self)
    }

    /// Returns the key that seals.
    pub(super) fn current(&self) -> &SealingKey {
        &self.current
    }

    fn key(&self, id: &str) -> Option<&SealingKey> {
        std::iter::once(&self.current).chain(&self.previous).find(|key| key.id() == id).map(|key| &**key)
    }

    /// Seals a token with the current key.
    pub(super) fn seal(&self, grant: &GrantId, token: &str) -> Result<String, SqlError> {
        let mut nonce = [0; NONCE_LEN];
        getrandom::fill(&mut nonce).map_err(RandomnessError::new)?;
        self.current.seal(&nonce, grant, token)
    }

    /// Opens a sealed token of a row.
    pub(super) fn open(&self, sealed: &str, grant: &GrantId, digest: TokenDigest) -> Result<Secret, SqlError> {
        let parts = sealed.strip_prefix(VERSION).and_then(|rest| rest.split_once('.'));
        let (id, text) = parts.filter(|(id, _)| is_key_id(id)).ok_or(SqlError::NotOpened)?;
        let key = self.key(id).ok_or_else(|| SqlError::UnknownSealingKey { id: id.to_owned() })?;
        key.open(text, grant, digest).ok_or(SqlError::NotOpened)
    }
}

impl FromStr for Sealer {
    type Err = SealingKeyError;

    fn from_str(text: &str) -> Result<Self, SealingKeyError> {
        let mut keys = text.split([',', '\n']).map(str::trim).filter(|key| !key.is_empty()).map(str::parse);
        let sealer = Self::new(keys.next().ok_or(SealingKeyError::None)??);
        keys.try_fold(sealer, |sealer, key| sealer.with_previous_key(key?))
    }
}

/// The error of an invalid [`SealingKey`] or [`Sealer`]. It contains no part of a key.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SealingKeyError {
    /// The id of a key is invalid.
    #[error("invalid id of a sealing key: must be 1 to 32 lower-case letters, digits, `-` or `_`")]
    Id,
    /// The text of a key is invalid.
    #[error("invalid sealing key: must be ID:KEY, with 32 bytes in base64")]
    Key,
    /// Two keys have the same id.
    #[error("two sealing keys have the same id")]
    Duplicate,
    /// The text has no key.
    #[error("no sealing key")]
    None,
    /// The operating system provides no random bytes for a key.
    #[error(transparent)]
    Randomness(#[from] RandomnessError),
}

fn is_key_id(id: &str) -> bool {
    (1..=MAX_ID_LEN).contains(&id.len())
        && id.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
}

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);
/// The beginning of each sealed token. Another construction gets another version.
const VERSION: &str = "v1.";
const CONTEXT: &[u8] = b"tollgate sealed token v1";
const MAX_ID_LEN: usize = 32;
const KEY_LEN: usize = 32;
/// The length of a key in base64 with padding.
const TEXT_LEN: usize = 44;
const NONCE_LEN: usize = 24;
const TAG_LEN: usize = 16;
