//! What subjects owe: one [`Account`] a subject, owned by the limiter's [`Accounts`] and remembered by grants.
//!
//! # Rules
//!
//! 1. A subject has at most one open account in an `Accounts`. Accounts are opened, replaced and dropped only under
//!    its lock.
//! 2. An account has one policy for life. When a request comes with another quota, the old account is frozen, for
//!    ever, and its debt is carried into a new one. Who still charges the frozen one is told to look again.
//! 3. An account is dropped only when nobody but the map holds it (so that nobody can charge it meanwhile) and it owes
//!    nothing (so that no information is lost).

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, PoisonError};

use super::decide::{FROZEN, Outcome, decide, read, swap};
use crate::decision::{Policy, PolicyName};
use crate::grant::Subject;
use crate::quota::Quota;
use crate::sync::{InMemoryState, Mutex, MutexGuard};

/// What one subject owes under one policy.
pub(crate) struct Account {
    cell: InMemoryState,
    policy: Policy,
}

impl Account {
    fn owing(policy: Policy, tat: u64) -> Self {
        let cell = InMemoryState::default();
        swap(&cell, tat);
        Self { cell, policy }
    }

    pub(super) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Charges the account, unless it is frozen.
    #[inline]
    pub(super) fn charge(&self, now: u64, cost: NonZeroU32) -> Outcome {
        decide(&self.cell, self.policy.quota(), now, cost)
    }

    /// The theoretical arrival time, unless the account is frozen.
    pub(super) fn debt(&self) -> Option<u64> {
        let tat = read(&self.cell);
        (tat < FROZEN).then_some(tat)
    }

    /// Freezes this account and opens another that owes as many cells, rounded up.
    fn reopen(&self, policy: Policy, now: u64) -> Self {
        let owed_ns = u128::from(swap(&self.cell, FROZEN).saturating_sub(now));
        let (old, new) = (self.policy.quota().interval_ns(), policy.quota().interval_ns());
        let carried_ns = (owed_ns * u128::from(new)).div_ceil(u128::from(old));
        // More than a hundred years of debt are cut to what a cell can hold.
        let tat = u64::try_from(u128::from(now) + carried_ns).unwrap_or(u64::MAX).min(FROZEN - 1);
        Self::owing(policy, tat)
    }
}

/// The accounts that one grant was charged to: a short list, only ever added to, read without a lock.
///
/// The usual request finds its account here, in the cache line of its grant, and asks no map.
#[derive(Default)]
#[repr(C)]
pub(crate) struct Memo {
    here: OnceLock<(u64, Arc<Account>)>,
    next: OnceLock<Box<Memo>>,
}

impl Memo {
    /// How many limiters a grant remembers. More of them work as well, through the map.
    const MOST: usize = 8;

    #[inline]
    fn find(&self, accounts: u64) -> Option<&Account> {
        let mut memo = Some(self);
        while let Some(Self { here, next }) = memo {
            match here.get()? {
                (id, account) if *id == accounts => return Some(account),
                _ => memo = next.get().map(|next| &**next),
            }
        }
        None
    }

    fn remember(&self, accounts: u64, account: &Arc<Account>) {
        let mut memo = self;
        for _ in 0..Self::MOST {
            let (id, _) = memo.here.get_or_init(|| (accounts, Arc::clone(account)));
            if *id == accounts {
                return;
            }
            memo = memo.next.get_or_init(Box::default);
        }
    }
}

impl Clone for Memo {
    /// Empty: the copy of a grant finds its account by itself.
    fn clone(&self) -> Self {
        Self::default()
    }
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
    accounts: HashMap<Subject, Arc<Account>>,
    /// The number of accounts at which the next sweep is due.
    sweep_at: usize,
}

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

    pub(super) fn default_quota(&self) -> Quota {
        self.default.quota()
    }

    pub(super) fn name(&self) -> &PolicyName {
        &self.name
    }

    /// Calls `f` with the subject's account under this quota, until that account is not frozen.
    #[inline]
    pub(super) fn with<T>(
        &self,
        subject: &Subject,
        memo: &Memo,
        quota: Option<Quota>,
        now: u64,
        mut f: impl FnMut(&Account) -> Option<T>,
    ) -> T {
        let quota = quota.unwrap_or(self.default.quota());
        let remembered = memo.find(self.id).filter(|account| account.policy.quota() == quota);
        if let Some(done) = remembered.and_then(&mut f) {
            return done;
        }
        loop {
            // Somebody with another quota may freeze it as soon as it is opened; then it is opened again.
            let account = self.open(subject, quota, now);
            memo.remember(self.id, &account);
            if let Some(done) = f(&account) {
                return done;
            }
        }
    }

    #[cold]
    fn open(&self, subject: &Subject, quota: Quota, now: u64) -> Arc<Account> {
        let mut map = self.lock();
        if map.accounts.len() >= map.sweep_at {
            map.sweep(now);
            // Twice what is left, so that the cost of a sweep is spread over as many openings.
            map.sweep_at = (map.accounts.len() * 2).max(Self::FEW);
        }
        if let Some(account) = map.accounts.get(subject).filter(|account| account.policy.quota() == quota) {
            return Arc::clone(account);
        }
        let policy = match quota == self.default.quota() {
            true => self.default.clone(),
            false => Policy::named(&self.name, quota),
        };
        let account = Arc::new(match map.accounts.get(subject) {
            Some(old) => old.reopen(policy, now),
            None => Account::owing(policy, 0),
        });
        map.accounts.insert(subject.clone(), Arc::clone(&account));
        account
    }

    /// Drops what nobody remembers and nobody owes.
    pub(super) fn sweep(&self, now: u64) {
        self.lock().sweep(now);
    }

    pub(super) fn len(&self) -> usize {
        self.lock().accounts.len()
    }

    fn lock(&self) -> MutexGuard<'_, Map> {
        // Nothing under the lock can panic half-way through a change.
        self.map.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Map {
    fn sweep(&mut self, now: u64) {
        // `get_mut` proves that nobody else holds the account, and that their last charge is visible here.
        self.accounts.retain(|_, account| match Arc::get_mut(account) {
            None => true,
            Some(account) => read(&account.cell) > now,
        });
        self.accounts.shrink_to(self.accounts.len() * 2);
    }
}
