//! Changes of the quotas of [`RateLimits`] while it is in use.

use super::RateLimits;
use crate::limit::LimitError;
use crate::limit::all_or_nothing::ChargeLocks;
use crate::limit::state::LimitState;
use crate::quota::Quota;

impl RateLimits {
    /// Returns the current quota of the limit with this name, for grants without their own quota.
    #[must_use]
    pub fn quota(&self, limit: &str) -> Option<Quota> {
        self.named(limit).ok().map(LimitState::quota)
    }

    /// Changes the quotas of the limits with these names, for all clones of this limiter. A [`Quota`](crate::Quota) that was
    /// converted into a limit has the name `default`. [Quotas of grants](crate::Grant::with_quota) do not change.
    ///
    /// Charges that begin after this call use the new quotas. A concurrent charge of several limits uses all old quotas or all new
    /// ones. Used units are carried over: a subject that has used 15 of 20 units has used 15 afterwards. If the new burst is
    /// smaller, the subject waits until enough units are regained.
    ///
    /// ```
    /// use tollgate::{Charge, CurrentGrant, Grant, Quota, RateLimits};
    ///
    /// let limits = RateLimits::new(Quota::per_minute(180).with_burst(20));
    /// let alice = CurrentGrant::new(Grant::new("alice", ()));
    /// assert_eq!(limits.charge(&alice, Charge::Units(15)).remaining(), 5);
    ///
    /// limits.set_quotas([("default", "600/min burst 50".parse()?)])?;
    /// assert_eq!(limits.charge(&alice, Charge::Units(1)).remaining(), 34);
    /// # Ok::<_, Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`LimitError::Unknown`] if a name is not that of a limit. No quota changes then.
    pub fn set_quotas<'a>(&self, quotas: impl IntoIterator<Item = (&'a str, Quota)>) -> Result<(), LimitError> {
        self.change_quotas(quotas, |_| true, LimitState::set_quota)
    }

    /// Changes the quotas of [anonymous callers](crate::Limit::with_anonymous) under the limits with these names, as
    /// [`set_quotas`](Self::set_quotas) does.
    ///
    /// # Errors
    ///
    /// [`LimitError::Unknown`] if a name is not that of a limit, or if the limit has no quota for anonymous callers. No quota
    /// changes then.
    pub fn set_anonymous_quotas<'a>(
        &self,
        quotas: impl IntoIterator<Item = (&'a str, Quota)>,
    ) -> Result<(), LimitError> {
        let is_limited = |state: &LimitState| state.anonymous_quota().is_some();
        self.change_quotas(quotas, is_limited, LimitState::set_anonymous_quota)
    }

    fn change_quotas<'a>(
        &self,
        quotas: impl IntoIterator<Item = (&'a str, Quota)>,
        has_quota: impl Fn(&LimitState) -> bool,
        set: impl Fn(&LimitState, Quota),
    ) -> Result<(), LimitError> {
        let find = |(name, quota)| match self.named(name)? {
            state if has_quota(state) => Ok((state, quota)),
            _ => Err(LimitError::Unknown),
        };
        let changes: Vec<_> = quotas.into_iter().map(find).collect::<Result<_, _>>()?;
        let _locks = self.locks.get().map(ChargeLocks::lock_all);
        changes.into_iter().for_each(|(state, quota)| set(state, quota));
        Ok(())
    }

    fn named(&self, limit: &str) -> Result<&LimitState, LimitError> {
        let has_name = |state: &&LimitState| state.limit().name() == limit;
        self.states().iter().find(has_name).ok_or(LimitError::Unknown)
    }

    /// Copies the quotas of `all`, divided among several nodes.
    #[cfg(feature = "redis")]
    pub(in crate::limit) fn follow(&self, all: &Self, nodes: std::num::NonZeroU32) {
        for (state, of_all) in self.states().iter().zip(all.states()) {
            state.set_quota(of_all.quota().divided_by(nodes));
            if let Some(quota) = of_all.anonymous_quota() {
                state.set_anonymous_quota(quota.divided_by(nodes));
            }
        }
    }
}
