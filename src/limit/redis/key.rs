//! Under which keys budgets stand in Redis: `tollgate:{rSg4DZs1fwoQpFc0aGV6Xw}:default`.
//!
//! # Rules
//!
//! 1. Between the braces is HMAC-SHA-256 of the subject (RFC 2104), cut to 128 bits, in base64url. Who reads Redis and
//!    does not know the secret cannot tell whose budget it is, nor whether that of somebody he knows is there.
//! 2. The braces are a hash tag: all budgets of one subject are in one slot of a cluster.
//! 3. Behind them is the policy's name. No key holds a token, or anything made of one.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, Mac};
use sha2::Sha256;

use super::RedisLimitsError;
use crate::grant::Subject;

/// A prefix, and a secret.
#[derive(Clone)]
pub(super) struct Keys {
    prefix: String,
    hmac: Hmac<Sha256>,
}

/// The hash of a subject, by which its budgets are found.
pub(super) type Tag = [u8; 16];

impl Keys {
    const SHORTEST_SECRET: usize = 32;

    pub(super) fn new(secret: &[u8]) -> Result<Self, RedisLimitsError> {
        if secret.len() < Self::SHORTEST_SECRET {
            return Err(RedisLimitsError::ShortSecret);
        }
        // HMAC takes keys of any length.
        let hmac = Hmac::new_from_slice(secret).map_err(|_| RedisLimitsError::ShortSecret)?;
        Ok(Self { prefix: "tollgate:".to_owned(), hmac })
    }

    pub(super) fn with_prefix(self, prefix: &str) -> Result<Self, RedisLimitsError> {
        // The first braces of a key are its hash tag, and must be ours.
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

    /// The key of a subject's budget under a policy.
    pub(super) fn of_subject(&self, tag: Tag, policy: &str) -> Vec<u8> {
        self.key(&URL_SAFE_NO_PAD.encode(tag), policy)
    }

    /// The key of a budget that many subjects share. No hash is as short as these words.
    pub(super) fn of_all(&self, who: Everybody, policy: &str) -> Vec<u8> {
        self.key(who.word(), policy)
    }

    fn key(&self, tag: &str, policy: &str) -> Vec<u8> {
        let mut key = Vec::with_capacity(self.prefix.len() + tag.len() + policy.len() + 3);
        for part in [&self.prefix, "{", tag, "}:", policy] {
            key.extend_from_slice(part.as_bytes());
        }
        key
    }
}

/// Who shares a budget.
#[derive(Clone, Copy)]
pub(super) enum Everybody {
    Anonymous,
    Shared,
}

impl Everybody {
    fn word(self) -> &'static str {
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
    fn keys_are_keyed_hashes_and_the_prefix_has_no_tag() {
        // RFC 4231, section 4.4: a key of 20 bytes is too short for us, so the one of section 4.8, cut.
        let keys = Keys::new(&[0xaa; 131]).unwrap();
        let tag = keys.tag(&"Test Using Larger Than Block-Size Key - Hash Key First".into());
        assert_eq!(tag[..4], [0x60, 0xe4, 0x31, 0x59]);
        let key = String::from_utf8(keys.of_subject(tag, "a policy")).unwrap();
        assert_eq!(key, "tollgate:{YOQxWR7gtn8Niiaqy_W3fw}:a policy");
        assert!(matches!(Keys::new(&[1; 31]), Err(RedisLimitsError::ShortSecret)));
        assert!(matches!(keys.with_prefix("a{b}"), Err(RedisLimitsError::Prefix)));
    }
}
