//! The keys of buckets in Redis: `tollgate:{rSg4DZs1fwoQpFc0aGV6Xw}:default`.
//!
//! # Rules
//!
//! 1. The text in braces is HMAC-SHA-256 of the subject (RFC 2104), cut to 128 bits, in base64url. A reader of Redis without the
//!    secret can neither learn the subject of a bucket nor find the bucket of a known subject.
//! 2. The braces are a hash tag: all buckets of one subject are in one slot of a cluster.
//! 3. Buckets of anonymous clients are in sets: `tollgate:{anonymous/17}:anonymous`. The number of the set and the hashes in its value
//!    are parts of HMAC-SHA-256 of the client's key, so that no client can choose keys of one set.
//! 4. The policy's name follows the braces, or `default\town` for a grant with its own quota on a route. No policy has this name,
//!    because `\t` is a tab. No key contains a token or anything derived from a token.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::RedisLimitsError;
use crate::grant::Subject;

/// The prefix and the secret of all keys.
#[derive(Clone)]
pub(super) struct Keys {
    prefix: String,
    hmac: Hmac<Sha256>,
}

/// The hash of a subject, used as the hash tag of its keys.
pub(super) type Tag = [u8; 16];

impl Keys {
    const SHORTEST_SECRET: usize = 32;

    pub(super) fn new(secret: &[u8]) -> Result<Self, RedisLimitsError> {
        if secret.len() < Self::SHORTEST_SECRET {
            return Err(RedisLimitsError::ShortSecret);
        }
        // Never an error: HMAC takes keys of any length.
        let hmac = Hmac::new_from_slice(secret).map_err(|_| RedisLimitsError::ShortSecret)?;
        Ok(Self { prefix: "tollgate:".to_owned(), hmac })
    }

    pub(super) fn with_prefix(self, prefix: &str) -> Result<Self, RedisLimitsError> {
        // Redis takes the first braces of a key as its hash tag.
        match prefix.contains(['{', '}']) {
            true => Err(RedisLimitsError::Prefix),
            false => Ok(Self { prefix: prefix.to_owned(), ..self }),
        }
    }

    pub(super) fn tag(&self, subject: &Subject) -> Tag {
        let whole: [u8; 32] = self.hmac.clone().chain_update(subject.as_str()).finalize().into_bytes().into();
        let mut tag = Tag::default();
        tag.copy_from_slice(&whole[..16]);
        tag
    }

    /// Returns the hash of the key of an anonymous client, or of requests without a key.
    pub(super) fn tag_of_client(&self, key: Option<&[u8]>) -> Tag {
        // No subject contains this byte, because subjects are UTF-8.
        let whole =
            self.hmac.clone().chain_update([0xff, u8::from(key.is_some())]).chain_update(key.unwrap_or_default());
        let mut tag = Tag::default();
        tag.copy_from_slice(&whole.finalize().into_bytes()[..16]);
        tag
    }

    /// Returns the key of a set of buckets. Each set is in a slot of its own.
    pub(super) fn of_set(&self, set: u64, policy: &str) -> Vec<u8> {
        self.key(format!("anonymous/{set}").as_bytes(), policy)
    }

    /// Returns the key of a subject's bucket under a policy.
    pub(super) fn of_subject(&self, tag: Tag, policy: &str) -> Vec<u8> {
        let mut text = [0; 22];
        // Never an error: 16 bytes are 22 characters.
        _ = URL_SAFE_NO_PAD.encode_slice(tag, &mut text);
        self.key(&text, policy)
    }

    /// Returns the key of a bucket that several subjects share. The tag is shorter than any hash.
    pub(super) fn of_shared(&self, tag: SharedTag, policy: &str) -> Vec<u8> {
        self.key(tag.text().as_bytes(), policy)
    }

    fn key(&self, tag: &[u8], policy: &str) -> Vec<u8> {
        let mut key = Vec::with_capacity(self.prefix.len() + tag.len() + policy.len() + 3);
        for part in [self.prefix.as_bytes(), b"{", tag, b"}:", policy.as_bytes()] {
            key.extend_from_slice(part);
        }
        key
    }
}

/// The hash tag of a shared bucket.
#[derive(Clone, Copy)]
pub(super) enum SharedTag {
    Anonymous,
    Shared,
}

impl SharedTag {
    fn text(self) -> &'static str {
        match self {
            Self::Anonymous => "anonymous",
            Self::Shared => "shared",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_keyed_hashes_and_prefixes_with_braces_are_rejected() {
        // The secret of RFC 4231, section 4.4 is too short, so the test uses section 4.8, cut to 128 bits.
        let keys = Keys::new(&[0xaa; 131]).unwrap();
        let tag = keys.tag(&"Test Using Larger Than Block-Size Key - Hash Key First".into());
        assert_eq!(tag[..4], [0x60, 0xe4, 0x31, 0x59]);
        let key = String::from_utf8(keys.of_subject(tag, "a policy")).unwrap();
        assert_eq!(key, "tollgate:{YOQxWR7gtn8Niiaqy_W3fw}:a policy");
        assert!(matches!(Keys::new(&[1; 31]), Err(RedisLimitsError::ShortSecret)));
        assert!(matches!(keys.with_prefix("a{b}"), Err(RedisLimitsError::Prefix)));
    }
}
