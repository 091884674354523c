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
    /// The number of entries at which ended ones are dropped.
    sweep_at: usize,
}

#[derive(Clone, Copy)]
struct SubjectRevocation {
    /// Tokens that were issued later are valid.
    at: SystemTime,
    until: SystemTime,
}

impl Tables {
    /// The minimum number of entries for a sweep.
    const FEW: usize = 64;

    /// Drops revocations that have ended, if the number of entries has doubled. So a sweep costs constant time per call on average.
    fn sweep_if_due(&mut self, now: SystemTime) {
        if self.len() >= self.sweep_at {
            self.tokens.retain(|_, until| *until > now);
            self.ids.retain(|_, until| *until > now);
            self.subjects.retain(|_, revocation| revocation.until > now);
            self.sweep_at = (2 * self.len()).max(Self::FEW);
        }
    }

    fn len(&self) -> usize {
        self.tokens.len() + self.ids.len() + self.subjects.len()
    }
}

impl Revoked {
    /// Adds a revocation that was made at this time.
    pub(super) fn add(&self, change: &Invalidation, at: SystemTime, until: SystemTime, now: SystemTime) {
        let mut tables = self.0.write().unwrap_or_else(PoisonError::into_inner);
        tables.sweep_if_due(now);
        // A later call never shortens a revocation.
        match change {
            Invalidation::Token(digest) => extend(tables.tokens.entry(*digest).or_insert(until), until),
            Invalidation::Grant(id) => extend(tables.ids.entry(id.clone()).or_insert(until), until),
            Invalidation::Subject(subject) => {
                let entry = tables.subjects.entry(subject.clone()).or_insert(SubjectRevocation { at, until });
                extend(&mut entry.at, at);
                extend(&mut entry.until, until);
            }
            Invalidation::Added | Invalidation::Everything => {}
        }
    }

    /// Returns whether a token is revoked. A token without a time of issue counts as issued before every revocation.
    ///
    /// `digests` are those of all texts of the token. They are computed only if single tokens are revoked.
    pub(super) fn contains(
        &self,
        digests: impl FnOnce() -> Vec<TokenDigest>,
        id: &GrantId,
        subject: &Subject,
        issued_at: Option<SystemTime>,
        now: SystemTime,
    ) -> bool {
        let tables = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let lasts = |until: &SystemTime| *until > now;
        let subject = tables.subjects.get(subject).filter(|revocation| lasts(&revocation.until));
        tables.ids.get(id).is_some_and(lasts)
            || subject.is_some_and(|revocation| issued_at.is_none_or(|issued_at| issued_at <= revocation.at))
            || (!tables.tokens.is_empty()
                && digests().iter().any(|digest| tables.tokens.get(digest).is_some_and(lasts)))
    }
}

fn extend(time: &mut SystemTime, to: SystemTime) {
    *time = (*time).max(to);
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    #[test]
    fn revocations_that_have_ended_are_dropped_before_the_tables_double() {
        let (revoked, second) = (Revoked::default(), Duration::from_secs(1));
        for number in 0..10_000_u32 {
            let now = UNIX_EPOCH + number * second;
            let subject = Subject::from(number.to_string());
            for change in [Invalidation::Subject(subject), Invalidation::Grant(number.to_string().into())] {
                revoked.add(&change, now, now + 10 * second, now);
            }
        }
        let tables = revoked.0.read().unwrap();
        assert!((20..=64).contains(&tables.len()), "{}", tables.len());
    }
}
