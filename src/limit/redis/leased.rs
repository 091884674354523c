//! One charge where cells are bought ahead: what is here, then what others were told meanwhile, then Redis.

use super::charge::{Asked, Shared, quota_of};
use super::connect::Open;
use super::gcra;
use super::stocks::Stocks;
use crate::caller::CurrentGrant;
use crate::pending::breaker::Pass;
use crate::quota::Quota;
use crate::quota::decision::Decision;

/// What one policy costs: which one it is, the caller's quota, and cells.
pub(super) type Costs = Vec<(usize, Quota, u32)>;

impl Shared {
    /// Pays from what is here. The usual charge ends with this.
    pub(super) fn pay(&self, grant: Option<&CurrentGrant>, costs: &[u32]) -> Option<Decision> {
        let stocks = self.stocks.as_deref()?;
        let of_rule = |((at, rule), cost): ((usize, _), &u32)| Some((at, quota_of(rule, grant)?, *cost));
        let costs: Costs = self.limits.iter().enumerate().zip(costs).filter_map(of_rule).collect();
        self.pay_counted(stocks, grant, &costs)
    }

    fn pay_counted(
        &self,
        stocks: &Stocks,
        grant: Option<&CurrentGrant>,
        costs: &[(usize, Quota, u32)],
    ) -> Option<Decision> {
        let paid = stocks.pay(grant.map(CurrentGrant::subject), self.limits.time.now_ns(), costs)?;
        let marked = paid.into_iter().zip(costs).map(|(decision, (at, ..))| self.marked(*at, decision, grant));
        Some(Decision::all_of(marked))
    }

    /// Asks Redis for what is not here, and for some more.
    pub(super) async fn ask_ahead(&self, stocks: &Stocks, asked: &Asked, mut pass: Pass) -> Decision {
        let who = asked.grant.as_ref().map(CurrentGrant::subject);
        let now = || self.limits.time.now_ns();
        let entered = stocks.enter(who, now, &asked.parts, self.deadline / 2).await;
        // What others have bought or were told meanwhile.
        let costs: Costs = asked.parts.iter().map(|part| (part.at, part.policy.quota(), part.cost)).collect();
        let known = || {
            let paid = self.pay_counted(stocks, asked.grant.as_ref(), &costs);
            paid.or_else(|| Some(self.decision(asked, &self.denied.recall(&asked.tag, &asked.parts, now())?)))
        };
        if let Some(decision) = known() {
            return decision;
        }
        let turn = match self.queue(asked, &mut pass).await {
            Ok(turn) => turn,
            Err(decision) => return *decision,
        };
        if let Some(decision) = known() {
            return decision;
        }
        let asked_at = now();
        let (purchase, parts) = stocks.begin(who, asked_at, entered, &asked.parts);
        let buy = async |open: &mut Open| gcra::charge(open, &parts, purchase.orders()).await;
        let reply = self.with_redis(turn, pass, buy).await;
        let told_at = now();
        let paid = stocks.end(who, (asked_at, told_at), &purchase, &parts, reply.as_ref());
        let Some(reply) = reply else { return self.outage.decide(asked, self.deadline) };
        self.denied.remember(asked.tag, &asked.parts, &reply.states, asked_at, told_at);
        // What was refused is told of the whole charge: what is here may be gone when the caller comes again.
        let parts = asked.parts.iter().zip(&reply.states).zip(paid);
        let decisions = parts.map(|((part, state), paid)| {
            self.marked(part.at, paid.unwrap_or_else(|| part.decision(*state)), asked.grant.as_ref())
        });
        let decision = Decision::all_of(decisions);
        if decision.is_admitted() {
            return decision;
        }
        // Redis has nothing left for this charge, maybe since others have bought it meanwhile.
        self.pay_counted(stocks, asked.grant.as_ref(), &costs).unwrap_or(decision)
    }
}
