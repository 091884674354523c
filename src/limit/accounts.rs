//! What subjects owe: one [`Account`] a subject, known to the limiter's [`Accounts`] and remembered by grants.
//!
//! # Rules
//!
//! 1. A subject has at most one open account in an `Accounts`. Accounts are opened, replaced and dropped only under
//!    its lock.
//! 2. An account has one policy for life. When a request comes with another quota, the old account is frozen, for
//!    ever, and its debt is carried into a new one. Who still charges the frozen one is told to look again.
//! 3. An account is dropped only when nobody but the map holds it (so that nobody can charge it meanwhile) and it owes
//!    nothing (so that no information is lost).
//! 4. An account stands in the grant itself, beside what each request reads anyway, as long as no other grant is charged
//!    to it and somebody keeps the grant: a store in memory. The map then holds the grant. An account that has to be found
//!    by several grants is closed like one whose policy changes, and opened apart.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use crate::grant::Subject;
use crate::grant::erased::Erased;
use crate::observe;
use crate::quota::Quota;
use crate::quota::bucket::{Account, Memo};
use crate::quota::policy::{Policy, PolicyName};
use crate::sync::{Mutex, MutexGuard};

/// Who is charged.
#[derive(Clone, Copy)]
pub(super) struct Payer<'a> {
    pub(super) subject: &'a Subject,
    pub(super) memo: &'a Memo,
    pub(super) quota: Option<Quota>,
    /// Whose memory that is, if it is a grant's.
    pub(super) grant: Option<&'a Arc<dyn Erased>>,
}

/// All accounts of one limiter.
pub(super) struct Accounts {
    /// By which memos tell this from other limiters.
    id: u64,
    name: PolicyName,
    /// The policy of grants without a quota of their own, so that the usual request looks nothing up.
    default: Policy,
    map: Mutex<Map>,
}

#[derive(Default)]
struct Map {
    places: HashMap<Subject, Place>,
    /// The number of accounts at which the next sweep is due.
    sweep_at: usize,
}

/// Where a subject's account stands.
#[derive(Clone)]
enum Place {
    Grant(Arc<dyn Erased>),
    Apart(Arc<Account>),
}

impl Place {
    fn account(&self, accounts: u64) -> Option<&Account> {
        match self {
            Self::Grant(grant) => grant.head().memo().own(accounts),
            Self::Apart(account) => Some(account),
        }
    }

    /// Whether nobody but the map knows it.
    fn is_forgotten(&self) -> bool {
        match self {
            Self::Grant(grant) => Arc::strong_count(grant) == 1,
            Self::Apart(account) => Arc::strong_count(account) == 1,
        }
    }

    /// Whether somebody remembers the account, or it owes something. `get_mut` proves that nobody else holds it, and that
    /// their last charge is visible here.
    fn is_needed(&mut self, accounts: u64, now: u64) -> bool {
        let alone = match self {
            Self::Grant(grant) => Arc::get_mut(grant).is_some(),
            Self::Apart(account) => Arc::get_mut(account).is_some(),
        };
        !alone || self.account(accounts).is_some_and(|account| account.owes(now))
    }
}

/// What has left a map. To be dropped when nothing is locked: a grant's principal is the service's, and may do anything as it
/// goes.
#[derive(Default)]
pub(super) struct Gone(Vec<Place>);

impl Accounts {
    /// Below this number of accounts nothing is swept.
    const FEW: usize = 64;

    pub(super) fn new(name: PolicyName, default: Quota) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            default: Policy::named(&name, default),
            name,
            map: Mutex::new(Map { sweep_at: Self::FEW, ..Map::default() }),
        }
    }

    /// Calls `f` with the account of the payer's subject under the payer's quota, until that account is not frozen. What has
    /// left the map meanwhile comes to `gone`.
    #[inline]
    pub(super) fn with<T>(
        &self,
        payer: Payer<'_>,
        now: u64,
        gone: &mut Gone,
        mut f: impl FnMut(&Account) -> Option<T>,
    ) -> T {
        // A grant has one quota for life, and so have all accounts that it remembers.
        if let Some(done) = payer.memo.charge(self.id, &mut f) {
            return done;
        }
        loop {
            // Somebody with another quota may freeze it as soon as it is opened; then it is opened again.
            let done = match self.open(payer, now, gone) {
                Some(account) => {
                    payer.memo.remember(self.id, &account);
                    f(&account)
                }
                None => payer.memo.own(self.id).and_then(&mut f),
            };
            if let Some(done) = done {
                return done;
            }
        }
    }

    /// Gives back so many nanoseconds of a charge by this quota, wherever the subject's account is by now. Opens none.
    pub(super) fn give_back(&self, payer: Payer<'_>, quota: Quota, ns: u64) {
        if payer.memo.charge(self.id, |account| account.give_back(quota, ns)).is_none() {
            let map = self.lock();
            let account = map.places.get(payer.subject).and_then(|place| place.account(self.id));
            // One that the map has is not frozen.
            _ = account.and_then(|account| account.give_back(quota, ns));
        }
    }

    /// Opens the subject's account, or finds it: apart, or in the payer's own memory.
    #[cold]
    fn open(&self, payer: Payer<'_>, now: u64, gone: &mut Gone) -> Option<Arc<Account>> {
        let quota = payer.quota.unwrap_or(self.default.quota());
        let mut map = self.lock();
        if map.places.len() >= map.sweep_at {
            map.sweep(self.id, now, gone);
            // Twice what is left, so that the cost of a sweep is spread over as many openings.
            map.sweep_at = (map.places.len() * 2).max(Self::FEW);
        }
        let place = map.places.get(payer.subject);
        match (place, payer.grant) {
            (Some(Place::Apart(account)), _) if account.policy().quota() == quota => return Some(Arc::clone(account)),
            // Another thread was faster with the same grant.
            (Some(Place::Grant(place)), Some(grant)) if std::ptr::addr_eq(Arc::as_ptr(place), Arc::as_ptr(grant)) => {
                return None;
            }
            _ => {}
        }
        let policy = match quota == self.default.quota() {
            true => self.default.clone(),
            false => Policy::named(&self.name, quota),
        };
        let is_forgotten = place.is_none_or(Place::is_forgotten);
        let tat = place.and_then(|place| place.account(self.id)).map_or(0, |account| account.close(&policy, now));
        let account = Account::owing(policy, tat);
        // A grant that nobody else holds is gone with its request.
        let grant = payer.grant.filter(|grant| is_forgotten && Arc::strong_count(grant) > 1);
        let kept = match grant {
            Some(grant) => payer.memo.keep(self.id, account).map(|()| Place::Grant(Arc::clone(grant))),
            None => Err(account),
        };
        let (place, apart) = match kept {
            Ok(place) => (place, None),
            Err(account) => {
                let account = Arc::new(account);
                (Place::Apart(Arc::clone(&account)), Some(account))
            }
        };
        gone.0.extend(map.places.insert(payer.subject.clone(), place));
        self.tell(map);
        apart
    }

    /// Drops what nobody remembers and nobody owes.
    pub(super) fn sweep(&self, now: u64) {
        let mut gone = Gone::default();
        let mut map = self.lock();
        map.sweep(self.id, now, &mut gone);
        self.tell(map);
    }

    /// How many there are, when nothing is locked any more.
    fn tell(&self, map: MutexGuard<'_, Map>) {
        let subjects = map.places.len();
        drop(map);
        observe::accounts(self.name.as_str(), subjects);
    }

    pub(super) fn len(&self) -> usize {
        self.lock().places.len()
    }

    fn lock(&self) -> MutexGuard<'_, Map> {
        // Nothing under the lock can panic half-way through a change.
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Map {
    fn sweep(&mut self, accounts: u64, now: u64, gone: &mut Gone) {
        self.places.retain(|_, place| {
            let is_needed = place.is_needed(accounts, now);
            if !is_needed {
                gone.0.push(place.clone());
            }
            is_needed
        });
        self.places.shrink_to(self.places.len() * 2);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says by panicking that it failed")]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::caller::CurrentGrant;
    use crate::grant::Grant;
    use crate::limit::{Charge, RateLimits};

    const QUOTA: Quota = Quota::per_minute(60).with_burst(5);

    fn limits() -> RateLimits {
        RateLimits::new(QUOTA).with_clock(|| Duration::ZERO)
    }

    fn kept(subject: &str) -> Arc<Grant<()>> {
        Arc::new(Grant::new(subject, ()))
    }

    fn charge(limits: &RateLimits, grant: &Arc<Grant<()>>, units: u32) -> u32 {
        limits.charge(&CurrentGrant::new(Arc::clone(grant)), Charge::Units(units)).remaining()
    }

    /// Which grant the account of a subject stands in, or else the account.
    fn place(limits: &RateLimits, subject: &str) -> Result<*const (), Arc<Account>> {
        match limits.accounts().lock().places[&Subject::from(subject)].clone() {
            Place::Grant(grant) => Ok(Arc::as_ptr(&grant).cast()),
            Place::Apart(account) => Err(account),
        }
    }

    #[test]
    fn an_account_stands_in_its_grant_until_another_one_comes() {
        let limits = limits();
        let [first, second, third] = ["s"; 3].map(kept);
        let is_in = |grant: &Arc<Grant<()>>| place(&limits, "s").is_ok_and(|own| own == Arc::as_ptr(grant).cast());
        assert_eq!(charge(&limits, &first, 1), 4);
        assert!(is_in(&first));

        // Who comes late with the same grant finds it there.
        let late = CurrentGrant::new(Arc::clone(&first));
        let head = late.erased().head();
        let payer = Payer { subject: head.subject(), memo: head.memo(), quota: None, grant: Some(late.erased()) };
        assert!(limits.accounts().open(payer, 0, &mut Gone::default()).is_none());
        assert!(is_in(&first));
        drop(late);

        assert_eq!(charge(&limits, &second, 1), 3);
        let apart = place(&limits, "s").err().unwrap();
        for (grant, left) in [(&third, 2), (&first, 1), (&second, 0)] {
            assert_eq!(charge(&limits, grant, 1), left);
            assert!(Arc::ptr_eq(&apart, &place(&limits, "s").err().unwrap()), "opened once");
        }
    }

    #[test]
    fn an_account_moves_on_when_its_grant_was_replaced() {
        let limits = limits();
        let (old, new) = (kept("s"), kept("s"));
        assert_eq!(charge(&limits, &old, 2), 3);
        drop(old);
        assert_eq!(charge(&limits, &new, 1), 2);
        assert_eq!(place(&limits, "s").ok(), Some(Arc::as_ptr(&new).cast()));
    }

    #[test]
    fn an_account_that_nobody_remembers_moves_into_a_grant() {
        for is_remembered in [false, true] {
            let limits = limits();
            let old = CurrentGrant::new(Grant::new("s", ()).with_quota(QUOTA.with_burst(9)));
            assert!(limits.charge(&old, Charge::Units(1)).is_admitted());
            let _old = is_remembered.then_some(old);
            let new = kept("s");
            assert_eq!(charge(&limits, &new, 1), 3);
            assert_eq!(place(&limits, "s").is_err(), is_remembered);
        }
    }

    #[test]
    fn a_grant_that_nobody_keeps_is_gone_with_its_request() {
        let limits = limits();
        let grant = kept("s");
        let gone = Arc::downgrade(&grant);
        assert!(limits.charge(&CurrentGrant::new(grant), Charge::Units(1)).is_admitted());
        assert!(gone.upgrade().is_none());
        assert_eq!(charge(&limits, &kept("s"), 1), 3);
    }

    #[test]
    fn the_usual_request_takes_no_lock() {
        let limits = limits();
        let [own, shared, other] = ["own", "shared", "shared"].map(kept);
        for grant in [&own, &other, &shared] {
            charge(&limits, grant, 1);
        }
        let _lock = limits.accounts().lock();
        assert_eq!((charge(&limits, &own, 1), charge(&limits, &shared, 1)), (3, 2));
    }

    #[test]
    fn a_frozen_account_tells_nothing() {
        let limits = limits();
        let old = CurrentGrant::new(Grant::new("s", ()).with_quota(QUOTA.with_burst(9)));
        assert!(limits.charge(&old, Charge::Units(3)).is_admitted());
        assert_eq!(charge(&limits, &kept("s"), 1), 1);
        assert_eq!(limits.peek(&old).remaining(), 5);
        assert_eq!(charge(&limits, &kept("s"), 1), 0);
        assert_eq!(limits.charge(&old, Charge::Units(10)).remaining(), 4);
    }

    #[test]
    fn sweeps_come_when_the_accounts_have_doubled() {
        let limits = limits();
        let alive: Vec<_> = (0..64).map(|i| kept(&format!("alive {i}"))).collect();
        for grant in &alive {
            charge(&limits, grant, 0);
        }
        // Nobody remembers these, and they owe nothing.
        for i in 65..=128 {
            charge(&limits, &kept(&format!("forgotten {i}")), 0);
            assert_eq!(limits.subjects(), i);
        }
        charge(&limits, &kept("one more"), 0);
        assert_eq!(limits.subjects(), alive.len() + 1);
    }

    #[test]
    fn what_falls_due_now_is_not_owed() {
        for (now, left) in [(0, 1), (999_999_999, 1), (1_000_000_000, 0)] {
            let limits = limits();
            assert!(limits.charge(&CurrentGrant::new(Grant::new("s", ())), Charge::Units(1)).is_admitted());
            limits.accounts().sweep(now);
            assert_eq!(limits.subjects(), left, "after {now} ns");
        }
    }
}
