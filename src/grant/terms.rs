//! [`Terms`]: what many grants have in common, and [`SharedTerms`]: one copy of it for all grants of a store.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, LazyLock};
use std::time::{SystemTime, UNIX_EPOCH};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::scopes::Scopes;
use crate::quota::Quota;

/// The data of a grant that a request reads rarely, and that is equal in many grants.
#[derive(Clone, Default, Hash)]
pub(crate) struct Terms {
    pub(super) scopes: Scopes,
    pub(super) quota: Option<Quota>,
    /// `None` if the head of the grant contains the whole validity.
    pub(super) validity: Option<Validity>,
    /// Whether the token has a successor.
    pub(super) rotated: bool,
}

/// The validity of a grant that is not only limited by an expiry.
#[derive(Clone, Copy, Hash)]
pub(super) struct Validity {
    /// Nanoseconds since 1970. 0 means no start.
    pub(super) not_before_ns: u64,
    /// Nanoseconds since 1970. `u64::MAX` means no expiry.
    pub(super) expires_ns: u64,
    pub(super) sender_constrained: bool,
}

impl Terms {
    /// Returns the terms of grants without any.
    pub(super) fn none() -> &'static Self {
        static NONE: LazyLock<Terms> = LazyLock::new(Terms::default);
        &NONE
    }

    /// Returns whether other grants are likely to have equal terms. Times are usually those of one grant.
    fn may_be_shared(&self) -> bool {
        self.validity.is_none()
    }

    /// Returns whether terms that may be shared are the same, including the text of the quota.
    fn is_identical(&self, other: &Self) -> bool {
        let is_same_quota = match (&self.quota, &other.quota) {
            (Some(quota), Some(other)) => quota.is_identical(other),
            (None, None) => true,
            _ => false,
        };
        is_same_quota && self.scopes == other.scopes && self.rotated == other.rotated
    }
}

/// Returns the nanoseconds since 1970. Earlier times are 0; times after the year 2554 are `u64::MAX`.
pub(super) fn unix_ns(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

/// The terms of the grants in a store. Grants with equal terms share one copy.
pub(crate) struct SharedTerms {
    table: HashTable<Arc<Terms>>,
    /// Scopes may come from clients, so the hash has random keys.
    keys: RandomState,
    /// The number of terms at which the next sweep is due.
    sweep_at: usize,
}

impl SharedTerms {
    /// The minimum number of terms for a sweep.
    const FEW: usize = 64;

    /// Replaces terms by equal ones that other grants have.
    pub(super) fn share(&mut self, terms: &mut Arc<Terms>) {
        if !terms.may_be_shared() {
            return;
        }
        if self.table.len() >= self.sweep_at {
            // Only grants and this table refer to terms, and grants get them from this table under its lock. So a count of 1
            // cannot grow here.
            self.table.retain(|terms| Arc::strong_count(terms) > 1);
            // Twice the remaining number, so that the cost of a sweep is amortised over as many new terms.
            self.sweep_at = (self.table.len() * 2).max(Self::FEW);
        }
        let hash = |terms: &Arc<Terms>| self.keys.hash_one(&**terms);
        match self.table.entry(hash(terms), |known| known.is_identical(terms), hash) {
            Entry::Occupied(known) => *terms = Arc::clone(known.get()),
            Entry::Vacant(vacant) => _ = vacant.insert(Arc::clone(terms)),
        }
    }
}

impl Default for SharedTerms {
    fn default() -> Self {
        Self { table: HashTable::new(), keys: RandomState::new(), sweep_at: Self::FEW }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use std::sync::{Mutex, PoisonError};
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::grant::Grant;

    fn with_quota(text: &str) -> Grant<()> {
        Grant::new("id", ()).with_scopes(["a", "b"]).unwrap().with_quota(text.parse().unwrap())
    }

    fn is_shared(a: &Grant<()>, b: &Grant<()>) -> bool {
        std::ptr::eq(a.scopes(), b.scopes())
    }

    #[test]
    fn only_identical_terms_are_shared() {
        let mut all = SharedTerms::default();
        let mut shared = |mut grant: Grant<()>| {
            grant.share_terms(&mut all);
            grant
        };
        let first = shared(with_quota("60/min"));
        assert!(is_shared(&first, &shared(with_quota("60/min"))));
        assert!(is_shared(&first, &shared(with_quota("60/min").with_subject("other"))));
        assert!(is_shared(&first, &shared(with_quota("60/min").with_expiry(UNIX_EPOCH + Duration::from_secs(1)))));

        // An equal quota in another time unit has another text.
        let other_text = shared(with_quota("1/s burst 60"));
        assert_eq!(other_text.quota().unwrap().to_string(), "1/s burst 60");
        for other in [
            with_quota("60/min").into_rotated(None),
            with_quota("60/min").with_scopes(["a"]).unwrap(),
            with_quota("60/min").with_sender_constraint(),
            with_quota("60/min").with_not_before(UNIX_EPOCH + Duration::from_secs(1)),
            Grant::new("id", ()).with_scopes(["a", "b"]).unwrap(),
        ] {
            let (rotated, constrained, start) = (other.is_rotated(), other.is_sender_constrained(), other.not_before());
            let other = shared(other);
            assert!(!is_shared(&first, &other));
            assert_eq!(
                (rotated, constrained, start),
                (other.is_rotated(), other.is_sender_constrained(), other.not_before())
            );
        }
        assert!(!first.is_rotated() && !first.is_sender_constrained());
    }

    #[test]
    fn terms_of_dropped_grants_are_released() {
        let mut all = SharedTerms::default();
        let mut kept = with_quota("1/h");
        kept.share_terms(&mut all);
        for i in 1..=10_000 {
            with_quota(&format!("{i}/s")).share_terms(&mut all);
            assert!(all.table.len() <= SharedTerms::FEW, "{}", all.table.len());
        }
        let mut equal = with_quota("1/h");
        equal.share_terms(&mut all);
        assert!(is_shared(&kept, &equal), "terms of a living grant were released");
    }

    #[test]
    fn living_grants_share_equal_terms_under_concurrent_sweeps() {
        let all = Mutex::new(SharedTerms::default());
        let kept = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for thread in 0..4 {
                let (all, kept) = (&all, &kept);
                scope.spawn(move || {
                    for i in 0..2_000 {
                        // Terms of one thread cause sweeps. The others are those of all threads.
                        let text =
                            if i % 2 == 0 { format!("{}/s", 100 * i + thread + 1) } else { format!("{}/h", i % 7 + 1) };
                        let mut grant = with_quota(&text);
                        grant.share_terms(&mut all.lock().unwrap_or_else(PoisonError::into_inner));
                        if i % 31 == 1 {
                            kept.lock().unwrap().push(grant);
                        }
                    }
                });
            }
        });
        let kept = kept.into_inner().unwrap();
        let is_right = |a: &Grant<()>, b: &Grant<()>| is_shared(a, b) == (a.quota() == b.quota());
        assert!(kept.iter().all(|grant| kept.iter().all(|other| is_right(grant, other))));
    }
}
