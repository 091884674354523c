//! [`Revoked`]: the tokens, ids and subjects that are rejected before their expiry.

use std::collections::HashMap;
use std::sync::{PoisonError, RwLock};
use std::time::SystemTime;

use crate::grant::{GrantId, Subject};
use crate::store::Invalidation;
use crate::token::TokenDigest;

/// The revoked ids, subjects and tokens, and the end of each revocation.
#[derive(Default)]
pub(super) struct Revoked(RwLock<Tables>);

#[derive(Default)]
struct Tables {
    tokens: HashMap<TokenDigest, SystemTime>,
    ids: HashMap<GrantId, SystemTime>,
    subjects: HashMap<Subject, SubjectRevocation>,
}

#[derive(Clone, Copy)]
struct SubjectRevocation {
    /// Tokens that were issued later are valid.
    at: SystemTime,
    until: SystemTime,
}

impl Revoked {
    /// Adds a revocation, and drops those that have ended.
    pub(super) fn add(&self, change: &Invalidation, now: SystemTime, until: SystemTime) {
        let mut tables = self.0.write().unwrap_or_else(PoisonError::into_inner);
        tables.tokens.retain(|_, until| *until > now);
        tables.ids.retain(|_, until| *until > now);
        tables.subjects.retain(|_, revocation| revocation.until > now);
        // A later call never shortens a revocation.
        match change {
            Invalidation::Token(digest) => extend(tables.tokens.entry(*digest).or_insert(until), until),
            Invalidation::Grant(id) => extend(tables.ids.entry(id.clone()).or_insert(until), until),
            Invalidation::Subject(subject) => {
                let entry = tables.subjects.entry(subject.clone()).or_insert(SubjectRevocation { at: now, until });
                extend(&mut entry.at, now);
                extend(&mut entry.until, until);
            }
            Invalidation::Added | Invalidation::Everything => {}
        }
    }

    /// Returns whether a token is revoked. A token without a time of issue counts as issued before every revocation.
    pub(super) fn contains(
        &self,
        token: &TokenDigest,
        id: &GrantId,
        subject: &Subject,
        issued_at: Option<SystemTime>,
    ) -> bool {
        let tables = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let subject = tables.subjects.get(subject);
        tables.tokens.contains_key(token)
            || tables.ids.contains_key(id)
            || subject.is_some_and(|revocation| issued_at.is_none_or(|issued_at| issued_at <= revocation.at))
    }
}

fn extend(time: &mut SystemTime, to: SystemTime) {
    *time = (*time).max(to);
}
