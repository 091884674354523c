//! The memory store compared with a map, and under threads: no grant is lost or duplicated.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, SystemTime};
use tollgate::TokenDigest;

use proptest::prelude::*;
use tollgate::store::RotateError;
use tollgate::{BearerToken, Grant, GrantId, MemoryStore, Subject, TokenStore};

const HOUR: Duration = Duration::from_secs(3_600);

#[derive(Clone, Debug)]
enum Change {
    Insert(u8, u8),
    Replace(u8, u8),
    Revoke(u8),
    RevokeGrant(u8),
    RevokeSubject(u8),
    Rotate(u8, u8, Duration),
    ReplaceAll(Vec<(u8, u8)>),
}

const TOKENS: u8 = 12;

fn changes() -> impl Strategy<Value = Change> {
    let token = || 0..TOKENS;
    let grant = || 0..8_u8;
    let graces = vec![Duration::ZERO, HOUR, Duration::MAX];
    prop_oneof![
        3 => (token(), grant()).prop_map(|(token, grant)| Change::Insert(token, grant)),
        3 => (token(), grant()).prop_map(|(token, grant)| Change::Replace(token, grant)),
        2 => token().prop_map(Change::Revoke),
        1 => grant().prop_map(Change::RevokeGrant),
        1 => (0..4_u8).prop_map(Change::RevokeSubject),
        3 => (token(), token(), prop::sample::select(graces)).prop_map(|(old, new, grace)| Change::Rotate(old, new, grace)),
        1 => prop::collection::vec((token(), grant()), 0..6).prop_map(Change::ReplaceAll),
    ]
}

fn name(token: u8) -> String {
    format!("token-{token}")
}

fn subject(grant: u8) -> String {
    format!("subject-{}", grant % 3)
}

/// Returns the expiry of a grant. Half of the grants expire, some of them before any grace period ends.
fn expiry(grant: u8, now: SystemTime) -> Option<SystemTime> {
    [None, Some(now + HOUR / 2), None, Some(now + 2 * HOUR)][usize::from(grant % 4)]
}

fn grant(id: u8, now: SystemTime) -> Grant<u8> {
    let grant = Grant::new(format!("grant-{id}"), id).with_subject(subject(id));
    match expiry(id, now) {
        Some(end) => grant.with_expiry(end),
        None => grant,
    }
}

/// A token's grant and its expiry.
#[derive(Clone, Debug)]
struct Entry {
    id: u8,
    ends: Option<SystemTime>,
    /// Rotated, in its grace period.
    rotated: bool,
}

impl Entry {
    fn of(id: u8, now: SystemTime) -> Self {
        Self { id, ends: expiry(id, now), rotated: false }
    }

    fn matches(&self, found: &Grant<u8>) -> bool {
        let named = found.id().as_str() == format!("grant-{}", self.id) && found.subject().as_str() == subject(self.id);
        let lasting = (found.expires_at(), found.is_rotated()) == (self.ends, self.rotated);
        named && lasting && *found.principal() == self.id
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn a_memory_store_behaves_like_a_map(all in prop::collection::vec(changes(), 0..60)) {
        let now = SystemTime::now();
        let store = MemoryStore::new();
        let mut model: BTreeMap<u8, Entry> = BTreeMap::new();
        for change in all {
            match change {
                Change::Insert(token, id) => {
                    match store.insert(TokenDigest::of(name(token)), grant(id, now)) {
                        Ok(()) => prop_assert!(!model.contains_key(&token)),
                        Err(occupied) => {
                            prop_assert!(model.contains_key(&token));
                            prop_assert!(Entry::of(id, now).matches(&occupied.0), "the grant is returned");
                        }
                    }
                    model.entry(token).or_insert(Entry::of(id, now));
                }
                Change::Replace(token, id) => {
                    let (old, expected) = (store.replace(TokenDigest::of(name(token)), grant(id, now)), model.insert(token, Entry::of(id, now)));
                    prop_assert_eq!(old.is_some(), expected.is_some());
                    prop_assert!(old.is_none_or(|old| expected.is_some_and(|expected| expected.matches(&old))));
                }
                Change::Revoke(token) => {
                    let (old, expected) = (store.revoke(TokenDigest::of(name(token))), model.remove(&token));
                    prop_assert_eq!(old.is_some(), expected.is_some());
                    prop_assert!(old.is_none_or(|old| expected.is_some_and(|expected| expected.matches(&old))));
                }
                Change::RevokeGrant(id) => {
                    let before = model.len();
                    model.retain(|_, own| own.id != id);
                    prop_assert_eq!(store.revoke_grant(&GrantId::from(format!("grant-{id}"))), before - model.len());
                }
                Change::RevokeSubject(of) => {
                    let of = format!("subject-{of}");
                    let before = model.len();
                    model.retain(|_, own| subject(own.id) != of);
                    prop_assert_eq!(store.revoke_subject(&Subject::from(of)), before - model.len());
                }
                Change::Rotate(old, new, grace) => {
                    let rotated = store.rotate_at(TokenDigest::of(name(old)), TokenDigest::of(name(new)), grace, now);
                    let Some(entry) = model.get(&old).filter(|entry| !entry.rotated && !model.contains_key(&new)) else {
                        prop_assert_eq!(rotated.unwrap_err(), match model.get(&old) {
                            None => RotateError::NotFound,
                            Some(entry) if entry.rotated => RotateError::Rotated,
                            Some(_) => RotateError::Occupied,
                        });
                        continue;
                    };
                    let entry = entry.clone();
                    prop_assert!(entry.matches(&rotated.unwrap()));
                    model.remove(&old);
                    if !grace.is_zero() {
                        let ends = [entry.ends, now.checked_add(grace)].into_iter().flatten().min();
                        model.insert(old, Entry { ends, rotated: true, ..entry });
                    }
                    model.insert(new, entry);
                }
                Change::ReplaceAll(grants) => {
                    store.replace_all(grants.iter().map(|&(token, id)| (TokenDigest::of(name(token)), grant(id, now))));
                    model = grants.into_iter().map(|(token, id)| (token, Entry::of(id, now))).collect();
                }
            }
            prop_assert_eq!((store.len(), store.is_empty()), (model.len(), model.is_empty()));
            for token in 0..TOKENS {
                let (got, expected) = (store.get(TokenDigest::of(name(token))), model.get(&token));
                let looked_up = store.lookup(&BearerToken::new(&name(token))).ready().unwrap().unwrap();
                prop_assert_eq!(got.is_some(), expected.is_some());
                prop_assert_eq!(looked_up.is_some(), expected.is_some());
                for found in got.iter().chain(&looked_up) {
                    prop_assert!(expected.unwrap().matches(found), "{:?} is not {:?}", found, expected);
                }
            }
            let mut listed: Vec<_> = store.grants().iter().map(|grant| *grant.principal()).collect();
            listed.sort_unstable();
            let mut expected: Vec<_> = model.values().map(|entry| entry.id).collect();
            expected.sort_unstable();
            prop_assert_eq!(listed, expected);
        }
    }
}

/// Pseudo-random numbers, different for each thread and the same in every run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % end
    }
}

/// The grants that one thread inserted, and those that came back.
#[derive(Default)]
struct Ledger {
    inserted: Vec<u64>,
    returned: Vec<u64>,
}

/// Few tokens for four threads, so that they collide.
const SHARED: u64 = 2;

const STEPS: usize = 20_000;

/// Changes tokens that all threads share, and some of this thread's own.
fn work(store: &MemoryStore<u64>, next: &AtomicU64, thread: u64) -> Ledger {
    let mut ledger = Ledger::default();
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15 ^ (thread + 1));
    let own = Subject::from(format!("thread-{thread}"));
    for step in 0..STEPS {
        let shared = format!("shared-{}", numbers.below(SHARED));
        let id = next.fetch_add(1, Ordering::Relaxed);
        let grant = || Grant::new(id.to_string(), id);
        match numbers.below(8) {
            0..=2 => {
                ledger.inserted.push(id);
                ledger.returned.extend(
                    store.insert(TokenDigest::of(shared), grant()).err().map(|occupied| *occupied.0.principal()),
                );
            }
            3 | 4 => {
                ledger.inserted.push(id);
                ledger.returned.extend(store.replace(TokenDigest::of(shared), grant()).map(|old| *old.principal()));
            }
            5 => ledger.returned.extend(store.revoke(TokenDigest::of(shared)).map(|old| *old.principal())),
            6 => {
                // To a token that no other thread knows, from which it is revoked later.
                let moved = format!("moved-{thread}-{step}");
                if let Ok(grant) = store.rotate(TokenDigest::of(shared), TokenDigest::of(moved.clone()), Duration::ZERO)
                {
                    assert_eq!(
                        store.get(TokenDigest::of(moved.clone())).map(|found| *found.principal()),
                        Some(*grant.principal())
                    );
                    if step % 16 != 0 {
                        ledger.returned.extend(store.revoke(TokenDigest::of(moved)).map(|old| *old.principal()));
                    }
                }
            }
            _ => {
                let mine = |n: u64| format!("own-{thread}-{n}");
                for n in 0..3 {
                    store
                        .insert(TokenDigest::of(mine(n)), Grant::new(own.as_str(), id).with_subject(own.clone()))
                        .unwrap();
                }
                assert_eq!(store.get(TokenDigest::of(mine(1))).map(|found| *found.principal()), Some(id));
                let gone = match step % 2 {
                    0 => store.revoke_subject(&own),
                    _ => store.revoke_grant(&GrantId::from(own.as_str())),
                };
                assert_eq!(gone, 3, "all of its own grants and no others");
                assert!((0..3).all(|n| store.get(TokenDigest::of(mine(n))).is_none()));
            }
        }
    }
    ledger
}

#[test]
fn concurrent_changes_lose_and_duplicate_no_grant() {
    let store = MemoryStore::from_iter([(TokenDigest::of("anchor"), Grant::new("anchor", u64::MAX))]);
    let (next, done) = (AtomicU64::new(0), AtomicBool::new(false));
    let ledgers: Vec<Ledger> = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                assert!(store.get(TokenDigest::of("anchor")).is_some(), "an untouched token is always present");
                for shared in 0..SHARED {
                    if let Some(found) = store.get(TokenDigest::of(format!("shared-{shared}"))) {
                        assert_eq!(found.id().as_str(), found.principal().to_string(), "grants are never mixed");
                    }
                }
                // Each thread has at most three own tokens.
                assert!(store.grants().len() <= 1 + SHARED as usize + 4 * (3 + 1 + STEPS / 16));
            }
        });
        let (store, next) = (&store, &next);
        let workers: Vec<_> = (0..4).map(|thread| scope.spawn(move || work(store, next, thread))).collect();
        let ledgers = workers.into_iter().map(|worker| worker.join());
        let ledgers: Result<Vec<_>, _> = ledgers.collect();
        done.store(true, Ordering::SeqCst);
        reader.join().unwrap();
        ledgers.unwrap()
    });
    let mut inserted: Vec<u64> = ledgers.iter().flat_map(|ledger| ledger.inserted.iter().copied()).collect();
    let mut found: Vec<u64> = ledgers.iter().flat_map(|ledger| ledger.returned.iter().copied()).collect();
    found.extend(store.grants().iter().map(|grant| *grant.principal()).filter(|id| *id != u64::MAX));
    inserted.sort_unstable();
    found.sort_unstable();
    assert!(inserted.len() > 5_000, "too few operations");
    assert_eq!(inserted, found, "every grant was returned once or is in the store once");
    assert_eq!(store.len(), store.grants().len());
}
