//! One charge where cells are bought ahead: what is here, then what is remembered, then Redis.

use std::sync::Arc;

use super::charge::{Asked, Shared};
use super::gcra;
use super::stocks::{Purchase, Stocks};
use crate::breaker::Pass;
use crate::caller::CurrentGrant;
use crate::decision::Decision;
use crate::limit::Charge;
use crate::quota::Quota;

impl Shared {
    /// Pays from what is here. The usual charge ends with this.
    pub(super) fn pay(&self, grant: Option<&CurrentGrant>, charge: Charge<'_>) -> Option<Decision> {
        let stocks = self.stocks.as_ref()?;
        let limits = &self.limits;
        let quota = match grant {
            Some(grant) => grant.quota().unwrap_or(limits.accounts.default_quota()),
            None => limits.anonymous.as_ref()?.accounts.default_quota(),
        };
        let charges: [(Quota, u32); 1] = [(quota, limits.cost(charge))];
        let decision = stocks.pay(grant.map(CurrentGrant::subject), self.time.now_ns(), &charges)?.pop()?;
        match (&limits.partition_key, grant) {
            (Some(key), Some(grant)) => Some(decision.with_partition_key(key(grant.subject()))),
            _ => Some(decision),
        }
    }

    /// Asks Redis for what is not here, and for some more. `None` if these budgets have no leases.
    pub(super) async fn ask_ahead(
        self: &Arc<Self>,
        stocks: &Stocks,
        asked: &Asked,
        pass: &mut Pass,
    ) -> Option<Decision> {
        let who = asked.payer.subject();
        let now = || self.time.now_ns();
        // Stands outside of what may run out of time, which puts back what was taken.
        let mut purchase: Option<(Purchase, Vec<gcra::Part>)> = None;
        let attempt = self.link.attempt(self.deadline);
        let mut asked_at = now();
        let charge = async {
            let Some(entered) = stocks.enter(who, now, &asked.parts).await else { return Ok(Left::Exact) };
            // What came while others bought, or were refused.
            let charges: Vec<_> = asked.parts.iter().map(|part| (part.policy.quota(), part.cost)).collect();
            if let Some(paid) = stocks.pay(who, now(), &charges) {
                return Ok(Left::Decided(asked.named(together(paid))));
            }
            if let Some(states) = self.denied.recall(&asked.tag, &asked.parts, now()) {
                return Ok(Left::Decided(asked.decision(&states)));
            }
            asked_at = now();
            let (purchase, parts) = purchase.insert(stocks.begin(who, asked_at, entered, &asked.parts));
            let mut open = attempt.clone().open().await?;
            gcra::buy(&mut open, parts, purchase.orders()).await.map(Left::Bought)
        };
        let left = tokio::time::timeout(self.deadline, charge).await;
        let told_at = now();
        let end = |bought| match &purchase {
            Some((purchase, parts)) => stocks.end(who, (asked_at, told_at), purchase, parts, bought),
            None => Vec::new(),
        };
        match left {
            Ok(Ok(Left::Exact)) => None,
            Ok(Ok(Left::Decided(decision))) => Some(decision),
            Ok(Ok(Left::Bought(bought))) => {
                pass.end(true);
                let paid = end(Some(&bought));
                let states: Vec<_> = bought.iter().map(|bought| bought.state).collect();
                self.denied.remember(asked.tag, &asked.parts, &states, asked_at, told_at);
                let parts = asked.parts.iter().zip(states).zip(paid);
                let decisions = parts.map(|((part, state), paid)| paid.unwrap_or_else(|| part.decision(state)));
                Some(asked.named(together(decisions)))
            }
            Ok(Err(_)) | Err(_) => {
                pass.end(false);
                _ = end(None);
                self.link.forget(&attempt);
                Some(self.without_redis(asked, self.deadline))
            }
        }
    }
}

/// What is left to do.
enum Left {
    /// These budgets have no leases.
    Exact,
    Decided(Decision),
    Bought(Vec<gcra::Bought>),
}

fn together(decisions: impl IntoIterator<Item = Decision>) -> Decision {
    decisions.into_iter().next().unwrap_or_else(Decision::unlimited)
}
