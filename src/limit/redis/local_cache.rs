//! The local caches of a limiter: leased units and cached rejections.
//!
//! # Rules
//!
//! 1. On a route that keeps its own quota, grants with a quota of their own have another bucket (`default\town`) than grants without
//!    one. So there are two caches, as there are two sets of buckets in memory: `apart` for grants with a quota, `usual` for all
//!    others.
//! 2. A rejection is used only if Redis would reject the units of the charge that leases do not cover.

use super::charge::ChargeRequest;
use super::gcra::{Part, State};
use super::key::Tag;
use super::lease::Leases;
use super::lease_table::LeaseTable;
use super::rejection_cache::RejectionCache;
use crate::caller::CurrentGrant;
use crate::grant::Subject;

/// The caches of a limiter.
#[derive(Default)]
pub(super) struct LocalCaches {
    usual: LocalCache,
    apart: LocalCache,
}

/// The cache of one set of buckets.
#[derive(Default)]
pub(super) struct LocalCache {
    pub(super) rejections: RejectionCache,
    /// The leases, if they are enabled.
    pub(super) leases: Option<LeaseTable>,
}

impl LocalCaches {
    pub(super) fn with_leases(leases: Leases) -> Self {
        let cache = || LocalCache { leases: Some(LeaseTable::new(leases)), ..LocalCache::default() };
        Self { usual: cache(), apart: cache() }
    }

    /// Returns empty caches with the same settings.
    pub(super) fn cleared(&self) -> Self {
        self.usual.leases.as_ref().map_or_else(Self::default, |leases| Self::with_leases(leases.settings()))
    }

    pub(super) fn of(&self, is_apart: bool) -> &LocalCache {
        if is_apart { &self.apart } else { &self.usual }
    }

    /// Removes what is known of a subject.
    pub(super) fn remove(&self, tag: &Tag, subject: &Subject) {
        for cache in [&self.usual, &self.apart] {
            cache.rejections.remove(tag);
            if let Some(leases) = &cache.leases {
                leases.remove(subject);
            }
        }
    }
}

impl LocalCache {
    /// Returns the states of the buckets, if Redis would certainly reject this charge.
    pub(super) fn rejection(&self, request: &ChargeRequest, now: u64) -> Option<Vec<State>> {
        let find = |parts: &[Part]| self.rejections.find(&request.tag, parts, now);
        let states = find(&request.parts)?;
        let subject = request.grant.as_ref().map(CurrentGrant::subject);
        match self.leases.as_ref().and_then(|leases| leases.missing(subject, now, &request.parts)) {
            Some(missing) => find(&missing),
            None => Some(states),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::super::lease_table::tests::{MS, access, charge, parts};
    use super::*;

    fn is_rejected(cache: &LocalCache, cost: u32) -> bool {
        let parts = parts(cost).to_vec();
        let request = ChargeRequest { tag: Tag::default(), parts, grant: None, is_look: false, hash: None };
        cache.rejection(&request, MS).is_some()
    }

    #[test]
    fn leased_units_are_no_part_of_a_cached_rejection() {
        let caches = LocalCaches::with_leases(Leases::default());
        let cache = caches.of(false);
        // A bucket of 1,000 units, one per millisecond, with room for one.
        let state = State { fits: false, owed_ns: 999 * MS };
        cache.rejections.insert(Tag::default(), &parts(7), [state].into_iter(), MS, MS);
        assert!(!is_rejected(cache, 1) && is_rejected(cache, 3));
        let leases = cache.leases.as_ref().unwrap();
        charge(leases, access(leases, MS, 1), MS, 1, 5);
        assert!(!is_rejected(cache, 6) && is_rejected(cache, 8));
        assert!(!is_rejected(caches.of(true), 1_000));
    }

    #[test]
    fn cleared_caches_have_the_same_settings() {
        assert!(LocalCaches::default().cleared().of(false).leases.is_none());
        let settings = Leases::default().with_longest(std::time::Duration::from_millis(500));
        let caches = LocalCaches::with_leases(settings);
        let table = |is_apart| caches.of(is_apart).leases.as_ref().unwrap();
        for is_apart in [false, true] {
            charge(table(is_apart), access(table(is_apart), MS, 1), MS, 1, 5);
        }
        let cleared = caches.cleared();
        for is_apart in [false, true] {
            let table = cleared.of(is_apart).leases.as_ref().unwrap();
            assert_eq!((table.settings(), table.len()), (settings, 0));
        }
        let rejected = State { fits: false, owed_ns: 1_000 * MS };
        caches.of(false).rejections.insert(Tag::default(), &parts(1), [rejected].into_iter(), MS, MS);
        caches.remove(&Tag::default(), &"".into());
        assert!(!is_rejected(caches.of(false), 9));
    }
}
