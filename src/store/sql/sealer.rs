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
        BASE64_STANDARD.encode_string(self.key.as_slice(), &mut text);
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

    /// Returns the associated data, to which a sealed token is bound. Each part has its length before it, so that no two lists have the same bytes.
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
/// 1. Add the new key as the *last* one, and restart all processes: now each of them can open tokens that the new key seals.
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::Index;

    use super::*;

    const TOKEN: &str = "acme_4nQzH0vJ2cUe8RkYpT6wGdB1xMfS9aLhVi3oXy7EtKq3mlp22";

    fn key(id: &str, byte: u8) -> SealingKey {
        SealingKey::new(id, [byte; KEY_LEN]).unwrap()
    }

    fn open(sealer: &Sealer, sealed: &str, grant: &str, token: &str) -> Result<String, SqlError> {
        sealer.open(sealed, &grant.into(), TokenDigest::of(token)).map(|secret| secret.expose().to_owned())
    }

    /// The key and the nonce are those of draft-irtf-cfrg-xchacha-03, appendix A.3.1. The text is by libsodium 1.0.20 (PyNaCl),
    /// which also reproduces the vector of the appendix.
    #[test]
    fn sealed_text_is_that_of_libsodium() {
        const SEALED: &str = "v1.2026-01.QEFCQ0RFRkdISUpLTE1OT1BRUlNUVVZXkG8ekQTEmguBWkelvJz-AFd_IAVcNMjavf2RTnMtQK5TBXExQzv2Tl6LmH\
             4r5xUr8nzGZJ4JJWoHTGoptdDSm5YdVuyXOA";
        let key = || "2026-01:gIGCg4SFhoeIiYqLjI2Oj5CRkpOUlZaXmJmam5ydnp8=".parse::<SealingKey>().unwrap();
        let nonce = std::array::from_fn(|at| 0x40 + at as u8);
        assert_eq!(key().seal(&nonce, &"key-17".into(), TOKEN).unwrap(), SEALED);
        assert_eq!(open(&Sealer::new(key()), SEALED, "key-17", TOKEN).unwrap(), TOKEN);
    }

    #[test]
    fn a_changed_sealed_token_does_not_open() {
        // All keys have the same bytes, so that only the id differs.
        let ids = ["b", "c", "bb"].map(|id| key(id, 7));
        let sealer = Sealer::new(key("a", 7));
        let sealer = ids.into_iter().fold(sealer, |sealer, key| sealer.with_previous_key(key).unwrap());
        let sealed = sealer.seal(&"key-17".into(), TOKEN).unwrap();
        assert_eq!(open(&sealer, &sealed, "key-17", TOKEN).unwrap(), TOKEN);
        let mut changed = Vec::new();
        for at in 0..sealed.len() {
            let (before, rest) = sealed.split_at(at);
            changed.push(before.to_owned());
            changed.push(format!("{before}{}", &rest[1..]));
            let others = (b' '..=b'~').map(char::from).filter(|other| !rest.starts_with(*other));
            changed.extend(others.clone().map(|other| format!("{before}{other}{}", &rest[1..])));
            changed.extend(others.map(|other| format!("{before}{other}{rest}")));
        }
        changed.extend([format!("{sealed}="), format!("{sealed}A"), format!("{sealed}\n"), sealed.repeat(2)]);
        for text in changed {
            let opened = open(&sealer, &text, "key-17", TOKEN);
            let is_rejected = matches!(opened, Err(SqlError::NotOpened | SqlError::UnknownSealingKey { .. }));
            assert!(is_rejected, "{text}: {opened:?}");
        }
    }

    #[test]
    fn a_token_opens_with_its_own_key_only() {
        let sealed = Sealer::new(key("old", 7)).seal(&"key-17".into(), TOKEN).unwrap();
        let both = Sealer::new(key("new", 8)).with_previous_key(key("old", 7)).unwrap();
        assert_eq!(open(&both.clone(), &sealed, "key-17", TOKEN).unwrap(), TOKEN);
        let other = open(&Sealer::new(key("old", 8)), &sealed, "key-17", TOKEN);
        assert!(matches!(other, Err(SqlError::NotOpened)), "{other:?}");
        let missing = open(&Sealer::new(key("new", 7)), &sealed, "key-17", TOKEN);
        assert!(matches!(&missing, Err(SqlError::UnknownSealingKey { id }) if id == "old"), "{missing:?}");
        assert!(matches!(both.with_previous_key(key("new", 9)), Err(SealingKeyError::Duplicate)));
    }

    /// A writer with the key seals another token for a row.
    #[test]
    fn a_token_with_another_digest_is_not_returned() {
        let key = key("a", 7);
        let associated = key.associated_data(&"key-17".into(), TokenDigest::of(TOKEN));
        let mut sealed = vec![1; NONCE_LEN];
        sealed.extend(b"acme_another");
        let nonce = XNonce::from([1; NONCE_LEN]);
        let buffer = sealed[NONCE_LEN..].as_mut().into();
        let tag = key.cipher().encrypt_inout_detached(&nonce, &associated, buffer).unwrap();
        sealed.extend(&tag);
        let text = format!("v1.a.{}", BASE64_URL_SAFE_NO_PAD.encode(sealed));
        assert!(matches!(open(&Sealer::new(key), &text, "key-17", TOKEN), Err(SqlError::NotOpened)));
    }

    #[test]
    fn nonces_differ() {
        let sealer = Sealer::new(key("a", 7));
        let sealed: std::collections::HashSet<_> =
            (0..1_000).map(|_| sealer.seal(&"key-17".into(), TOKEN).unwrap()[..40].to_owned()).collect();
        assert_eq!(sealed.len(), 1_000);
    }

    #[test]
    fn keys_are_overwritten_on_drop_and_not_printed() {
        fn is_zeroised<T: zeroize::ZeroizeOnDrop>(_: &T) {}
        let text = "2026-01:gIGCg4SFhoeIiYqLjI2Oj5CRkpOUlZaXmJmam5ydnp8";
        let key: SealingKey = text.parse().unwrap();
        is_zeroised(&*key.key);
        is_zeroised(&key.cipher());
        assert_eq!(key.expose(), format!("{text}="));
        assert_eq!(format!("{key:?}"), r#"SealingKey { id: "2026-01", .. }"#);
        let previous = SealingKey::new("b", [7; KEY_LEN]).unwrap();
        let sealer = Sealer::new(key).with_previous_key(previous).unwrap();
        assert_eq!(
            format!("{sealer:?}"),
            r#"Sealer { current: SealingKey { id: "2026-01", .. }, previous: [SealingKey { id: "b", .. }] }"#
        );
    }

    #[test]
    fn texts_of_keys_are_parsed_and_others_are_errors() {
        let text = |id: &str, byte: u8| key(id, byte).expose();
        let (a, b) = (text("a", 1), text("b", 2));
        for keys in
            [format!("{a},{b}"), format!("{a}\n{b}\n"), format!("\r\n{a}\r\n\r\n {b} ,\n"), format!(",{a},,{b}")]
        {
            let sealer: Sealer = keys.parse().unwrap();
            assert_eq!((sealer.current.expose(), sealer.previous[0].expose()), (a.clone(), b.clone()));
        }
        for keys in ["", " \n,", "\n"] {
            assert!(matches!(keys.parse::<Sealer>(), Err(SealingKeyError::None)), "{keys:?}");
        }
        assert!(matches!(format!("{a},{a}").parse::<Sealer>(), Err(SealingKeyError::Duplicate)));
        assert!(matches!(format!("{a} {b}").parse::<Sealer>(), Err(SealingKeyError::Key)));
        for id in ["", "A", "a.b", "a:b", "a b", "\u{e9}", &"x".repeat(33)] {
            assert!(matches!(SealingKey::new(id, [1; 32]), Err(SealingKeyError::Id)), "{id}");
            assert!(matches!(SealingKey::generate(id), Err(SealingKeyError::Id)), "{id}");
        }
        assert!(SealingKey::new(&"x".repeat(32), [1; 32]).is_ok());
        let body = a.strip_prefix("a:").unwrap();
        for bad in [
            body,
            &format!("A:{body}"),
            "a:",
            "a",
            &a[..a.len() - 2],
            &format!("{a}A"),
            &format!("{a}="),
            &a.replace("AQ", "A-"),
            &format!("a:{}", BASE64_STANDARD.encode([1; 31])),
            &format!("a:{}", BASE64_STANDARD.encode([1; 33])),
            // 64 hexadecimal digits are base64 of 48 bytes.
            &format!("a:{}", "01".repeat(32)),
        ] {
            let error = bad.parse::<SealingKey>().unwrap_err();
            assert!(matches!(error, SealingKeyError::Key | SealingKeyError::Id), "{bad}: {error:?}");
            let printed = format!("{error} {error:?}");
            assert!(!printed.contains(&body[..8]), "{printed}");
        }
        let generated = [(); 2].map(|()| SealingKey::generate("a").unwrap().expose());
        assert_ne!(generated[0], generated[1]);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Rows of any grants, tokens and keys: a sealed token opens in its own row, and in no row that is mixed of others.
        #[test]
        fn a_sealed_token_opens_in_its_own_row_only(
            rows in prop::collection::vec(("[a-c:.]{1,4}", "[a-c_]{0,4}", 0..3_usize), 2..8),
            picks in prop::collection::vec((any::<Index>(), any::<Index>(), any::<Index>()), 20),
        ) {
            let ids = ["a", "ab", "b"];
            // The keys have the same bytes: only the associated data has the id.
            let [a, ab, b] = ids.map(|id| key(id, 7));
            let all = Sealer::new(a).with_previous_key(ab).unwrap().with_previous_key(b).unwrap();
            let sealed: Vec<String> = rows.iter().map(|(grant, token, at)| {
                Sealer::new(key(ids[*at], 7)).seal(&grant.as_str().into(), token).unwrap()
            }).collect();
            for ((grant, token, _), sealed) in rows.iter().zip(&sealed) {
                prop_assert_eq!(&open(&all, sealed, grant, token).unwrap(), token);
            }
            for (from, grant, token) in picks {
                let from = from.index(rows.len());
                let (grant, token) = (&rows[grant.index(rows.len())].0, &rows[token.index(rows.len())].1);
                let is_own = (grant, token) == (&rows[from].0, &rows[from].1);
                let opened = open(&all, &sealed[from], grant, token);
                prop_assert_eq!(opened.is_ok(), is_own, "{:?} {} {}", rows[from], grant, token);
                // The same text under the id of another key.
                let body = sealed[from].rsplit_once('.').unwrap().1;
                for other in ids.iter().filter(|id| **id != ids[rows[from].2]) {
                    let renamed = format!("v1.{other}.{body}");
                    prop_assert!(open(&all, &renamed, &rows[from].0, &rows[from].1).is_err());
                }
            }
        }
    }
}
