//! The bucket of one subject under one policy, and what a grant remembers of its buckets.

use std::num::NonZeroU32;
use std::sync::{Arc, OnceLock};

use super::cell::{FROZEN, Outcome, decide, give_back, read, swap};
use super::policy::Policy;
use super::quota::Quota;
use crate::sync::InMemoryState;

/// What one subject owes under one policy.
pub(crate) struct Account {
    cell: InMemoryState,
    policy: Policy,
}

impl Account {
    pub(crate) fn owing(policy: Policy, tat: u64) -> Self {
        let cell = InMemoryState::default();
        swap(&cell, tat);
        Self { cell, policy }
    }

    pub(crate) fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Charges the account, unless it is frozen.
    #[inline]
    pub(crate) fn charge(&self, now: u64, cost: NonZeroU32) -> Outcome {
        decide(&self.cell, self.policy.quota(), now, cost)
    }

    /// Whether the account owes something at this time. A frozen account owes for ever.
    pub(crate) fn owes(&self, now: u64) -> bool {
        read(&self.cell) > now
    }

    /// The theoretical arrival time, unless the account is frozen.
    pub(crate) fn debt(&self) -> Option<u64> {
        let tat = read(&self.cell);
        (tat < FROZEN).then_some(tat)
    }

    /// An account that owes as much now, for a decision that changes nothing; `None` if this one is frozen.
    pub(crate) fn copy(&self) -> Option<Self> {
        Some(Self::owing(self.policy.clone(), self.debt()?))
    }

    /// Owes so many nanoseconds less, by this quota. By another nothing changes: what they were worth meanwhile is not known
    /// any more. `None` if the account is frozen.
    pub(crate) fn give_back(&self, quota: Quota, ns: u64) -> Option<()> {
        match self.policy.quota() == quota {
            true => give_back(&self.cell, ns).then_some(()),
            false => self.debt().map(drop),
        }
    }

    /// Freezes this account. Returns the theoretical arrival time with which another policy owes as many cells, rounded up.
    pub(crate) fn close(&self, policy: &Policy, now: u64) -> u64 {
        let owed_ns = u128::from(swap(&self.cell, FROZEN).saturating_sub(now));
        let (old, new) = (self.policy.quota().interval_ns(), policy.quota().interval_ns());
        let carried_ns = (owed_ns * u128::from(new)).div_ceil(u128::from(old));
        // More than a hundred years of debt are cut to what a cell can hold.
        u64::try_from(u128::from(now) + carried_ns).unwrap_or(u64::MAX).min(FROZEN - 1)
    }
}

/// The accounts that one grant was charged to: only ever added to, and read without a lock.
///
/// The usual request finds its account here, and asks no map.
#[derive(Default)]
#[repr(C)]
pub(crate) struct Memo {
    /// One that no other grant is charged to, with the id of its limiter.
    own: OnceLock<(u64, Account)>,
    shared: Shared,
}

/// Accounts that other grants may be charged to as well: a short list.
#[derive(Default)]
struct Shared {
    here: OnceLock<(u64, Arc<Account>)>,
    next: OnceLock<Box<Shared>>,
}

impl Memo {
    /// How many shared accounts a grant remembers. More of them work as well, through the map.
    const MOST: usize = 8;

    #[inline]
    pub(crate) fn own(&self, accounts: u64) -> Option<&Account> {
        self.own.get().filter(|(id, _)| *id == accounts).map(|(_, account)| account)
    }

    /// Keeps an account here, if there is none yet.
    pub(crate) fn keep(&self, accounts: u64, account: Account) -> Result<(), Account> {
        self.own.set((accounts, account)).map_err(|(_, account)| account)
    }

    /// Calls `f` with each account at this limiter, until one is not frozen.
    #[inline]
    pub(crate) fn charge<T>(&self, accounts: u64, mut f: impl FnMut(&Account) -> Option<T>) -> Option<T> {
        if let Some(done) = self.own(accounts).and_then(&mut f) {
            return Some(done);
        }
        let mut shared = Some(&self.shared);
        while let Some(Shared { here, next }) = shared {
            let (id, account) = here.get()?;
            if *id == accounts {
                if let Some(done) = f(account) {
                    return Some(done);
                }
            }
            shared = next.get().map(|next| &**next);
        }
        None
    }

    pub(crate) fn remember(&self, accounts: u64, account: &Arc<Account>) {
        let mut shared = &self.shared;
        for _ in 0..Self::MOST {
            let (_, remembered) = shared.here.get_or_init(|| (accounts, Arc::clone(account)));
            if Arc::ptr_eq(remembered, account) {
                return;
            }
            shared = shared.next.get_or_init(Box::default);
        }
    }
}

impl Clone for Memo {
    /// Empty: the copy of a grant finds its account by itself.
    fn clone(&self) -> Self {
        Self::default()
    }
}
