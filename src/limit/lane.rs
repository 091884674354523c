//! One policy with the budgets that it has given out, and one charge to one of them.

use std::num::NonZeroU32;
use std::sync::Arc;

use super::accounts::{Accounts, Gone, Payer};
use super::given::GivenBack;
use super::rule::{Rule, Scope};
use crate::caller::CurrentGrant;
use crate::grant::Subject;
use crate::quota::Quota;
use crate::quota::bucket::{Account, Memo};
use crate::quota::cell::Outcome;
use crate::quota::decision::{Decision, Verdict};
use crate::quota::policy::{Policy, PolicyName};
use crate::sync::MutexGuard;

/// Clones share their budgets.
#[derive(Clone)]
pub(super) struct Lane {
    rule: Rule,
    budgets: Budgets,
}

#[derive(Clone)]
enum Budgets {
    BySubject { accounts: Arc<Accounts>, anonymous: Option<Arc<Common>> },
    OfAll(Arc<Common>),
}

/// One budget that many share.
struct Common {
    accounts: Accounts,
    subject: Subject,
    memo: Memo,
}

impl Common {
    fn new(name: PolicyName, quota: Quota) -> Arc<Self> {
        Arc::new(Self { accounts: Accounts::new(name, quota), subject: "".into(), memo: Memo::default() })
    }

    fn payer(&self) -> (&Accounts, Payer<'_>) {
        (&self.accounts, Payer { subject: &self.subject, memo: &self.memo, quota: None, grant: None })
    }
}

/// A charge that was made, by which it can be given back.
#[derive(Clone, Copy)]
pub(super) struct Made {
    cost: NonZeroU32,
    quota: Quota,
    /// When the budget would be full again if nobody charged it meanwhile, nor gave anything back.
    full_at: u64,
    /// What had been given back before.
    given: u64,
}

impl Made {
    /// The same where so much had been given back before the charge.
    pub(super) fn after(self, given: u64) -> Self {
        Self { given, ..self }
    }
}

impl Lane {
    /// Full budgets by this rule.
    pub(super) fn new(rule: Rule) -> Self {
        let budgets = match rule.scope {
            Scope::All => Budgets::OfAll(Common::new(rule.name.clone(), rule.quota)),
            Scope::Subject => Budgets::BySubject {
                accounts: Arc::new(Accounts::new(rule.name.clone(), rule.quota)),
                anonymous: rule.anonymous.map(|quota| Common::new(rule.anonymous_name(), quota)),
            },
        };
        Self { rule, budgets }
    }

    pub(super) fn rule(&self) -> &Rule {
        &self.rule
    }

    /// The same by a changed rule. Budgets stay where it asks for the same ones.
    pub(super) fn changed(self, change: impl FnOnce(&mut Rule)) -> Self {
        let Self { mut rule, budgets } = self;
        let (scope, anonymous) = (rule.scope, rule.anonymous);
        change(&mut rule);
        match (scope == rule.scope, anonymous == rule.anonymous, budgets) {
            (true, true, budgets) => Self { rule, budgets },
            (true, false, Budgets::BySubject { accounts, .. }) => {
                let anonymous = rule.anonymous.map(|quota| Common::new(rule.anonymous_name(), quota));
                Self { rule, budgets: Budgets::BySubject { accounts, anonymous } }
            }
            _ => Self::new(rule),
        }
    }

    /// Whose budget is charged; `None` is nobody's, and `grant` is that of no anonymous caller.
    #[inline]
    fn payer<'a>(&'a self, grant: Option<&'a CurrentGrant>) -> Option<(&'a Accounts, Payer<'a>)> {
        match (&self.budgets, grant) {
            (Budgets::BySubject { accounts, .. }, Some(grant)) => {
                let (quota, grant) = (self.rule.quota_of(grant), grant.erased());
                let head = grant.head();
                let payer = Payer { subject: head.subject(), memo: head.memo(), quota, grant: Some(grant) };
                Some((accounts, payer))
            }
            (Budgets::BySubject { anonymous, .. }, None) => anonymous.as_deref().map(Common::payer),
            (Budgets::OfAll(common), _) => Some(common.payer()),
        }
    }

    /// Charges; `None` if this caller is not limited here. The decision is yet to be [marked](Rule::mark).
    #[inline]
    pub(super) fn charge(
        &self,
        grant: Option<&CurrentGrant>,
        now: u64,
        cost: u32,
        gone: &mut Gone,
    ) -> Option<Decision> {
        let (accounts, payer) = self.payer(grant)?;
        Some(accounts.with(payer, now, gone, |account| decision(account, now, cost)))
    }

    /// What [`charge`](Self::charge) would say, without a charge: the state of the budget where it would fit.
    pub(super) fn look(&self, grant: Option<&CurrentGrant>, now: u64, cost: u32, gone: &mut Gone) -> Option<Decision> {
        let (accounts, payer) = self.payer(grant)?;
        let outlook = |account: &Account| {
            let decided = decision(&account.copy()?, now, cost)?;
            if decided.is_admitted() { decision(account, now, 0) } else { Some(decided) }
        };
        Some(accounts.with(payer, now, gone, outlook))
    }

    /// What gives a charge back, if it was made.
    pub(super) fn made(&self, decision: &Decision, now: u64, cost: u32) -> Option<Made> {
        let quota = decision.policy().filter(|_| decision.verdict() == Verdict::Admitted)?.quota();
        Some(Made { cost: NonZeroU32::new(cost)?, quota, full_at: now.saturating_add(decision.full_in_ns()), given: 0 })
    }

    /// What has been given back here so far.
    pub(super) fn given_back<'a>(&self, all: &'a GivenBack, grant: Option<&CurrentGrant>) -> MutexGuard<'a, u64> {
        let who = grant.filter(|_| self.rule.scope == Scope::Subject).map(CurrentGrant::subject);
        all.sum(self.rule.name.as_str(), who)
    }

    /// Takes back a charge, for whom that may be wanted; `all` is what has been given back.
    pub(super) fn refund(&self, all: &GivenBack, grant: Option<&CurrentGrant>, now: u64, made: Made) {
        let mut given = self.given_back(all, grant);
        // The sum of all times may pass the end of its type; differences are right all the same.
        let full_at = made.full_at.saturating_sub(given.wrapping_sub(made.given));
        *given = given.wrapping_add(self.give_back(grant, now, Made { full_at, ..made }));
    }

    /// Gives back what of a charge is not yet paid off, by the order in which charges were made, and says how much.
    ///
    /// So the budget never has more than it would have without the charge. It has owed something ever since, later charges
    /// `s` on top, and so owes until `full_at + s`. Without the charge it would owe until `full_at - charge + s`, or, if it had
    /// been full at some time since, until `s` after that at most. The later of the two, with now for that time, is what is
    /// left here. (`full_at` is earlier by what was given back meanwhile, see [`refund`](Self::refund).)
    pub(super) fn give_back(&self, grant: Option<&CurrentGrant>, now: u64, made: Made) -> u64 {
        let charge = u64::from(made.cost.get()) * made.quota.interval_ns();
        let unpaid = charge.min(made.full_at.saturating_sub(now));
        if let Some((accounts, payer)) = self.payer(grant).filter(|_| unpaid > 0) {
            accounts.give_back(payer, made.quota, unpaid);
        }
        unpaid
    }

    pub(super) fn sweep(&self, now: u64) {
        if let Budgets::BySubject { accounts, .. } = &self.budgets {
            accounts.sweep(now);
        }
    }

    pub(super) fn subjects(&self) -> usize {
        match &self.budgets {
            Budgets::BySubject { accounts, .. } => accounts.len(),
            Budgets::OfAll(_) => 0,
        }
    }

    #[cfg(test)]
    pub(super) fn accounts(&self) -> &Accounts {
        match &self.budgets {
            Budgets::BySubject { accounts, .. } => accounts,
            Budgets::OfAll(common) => &common.accounts,
        }
    }
}

/// Charges an account and puts the outcome into words; `None` if the account is frozen.
#[inline]
fn decision(account: &Account, now: u64, cost: u32) -> Option<Decision> {
    let outcome = match NonZeroU32::new(cost) {
        Some(cost) => account.charge(now, cost),
        None => Outcome::Admitted { tat: account.debt()?.max(now) },
    };
    let policy = account.policy().clone();
    let (verdict, tat) = match outcome {
        Outcome::Frozen => return None,
        Outcome::Refused { tat, wait } => {
            return Some(Decision::from_ns(policy, Verdict::OverLimit, 0, wait, tat.saturating_sub(now)));
        }
        Outcome::Admitted { tat } => (Verdict::Admitted, tat),
        Outcome::AboveBurst => (Verdict::CostAboveBurst, account.debt()?.max(now)),
    };
    Some(described(policy, verdict, tat.saturating_sub(now)))
}

/// The decision about a charge that has not to wait, where the budget is full after this time.
#[inline]
pub(super) fn described(policy: Policy, verdict: Verdict, full: u64) -> Decision {
    let quota = policy.quota();
    // Cells that are used, a started one included; the next comes back when the started one is over. After a change of plan
    // more can be owed than the bucket holds.
    let used = full.div_ceil(quota.interval_ns()).min(quota.burst().into());
    let remaining = quota.burst() - used as u32;
    let more_in = full.saturating_sub(used.saturating_sub(1) * quota.interval_ns());
    Decision::from_ns(policy, verdict, remaining, more_in, full)
}
