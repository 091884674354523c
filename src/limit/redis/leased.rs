//! A charge with leases: first the leased units, then the results of concurrent charges, then Redis.

use super::charge::{ChargeRequest, Shared};
use super::connect::Connection;
use super::gcra;
use super::lease_table::LeaseTable;
use crate::caller::CurrentGrant;
use crate::limit::state::LimitState;
use crate::pending::breaker::Permit;
use crate::quota::Quota;
use crate::quota::decision::Decision;

/// The cost of each policy: its index, the caller's quota, and units.
pub(super) type Costs = Vec<(usize, Quota, u32)>;

impl Shared {
    /// Charges leased units. This is the whole of the usual charge.
    pub(super) fn charge_lease(
        &self,
        leases: &LeaseTable,
        grant: Option<&CurrentGrant>,
        costs: &[u32],
    ) -> Option<Decision> {
        let cost = |((at, state), cost): ((usize, &LimitState), &u32)| Some((at, state.quota_of(grant)?, *cost));
        let costs: Costs = self.limits.states().iter().enumerate().zip(costs).filter_map(cost).collect();
        self.charge_lease_costs(leases, grant, &costs)
    }

    fn charge_lease_costs(
        &self,
        leases: &LeaseTable,
        grant: Option<&CurrentGrant>,
        costs: &[(usize, Quota, u32)],
    ) -> Option<Decision> {
        let charged = leases.charge(grant.map(CurrentGrant::subject), self.limits.time.now_ns(), costs)?;
        let marked = charged.into_iter().zip(costs).map(|(decision, (at, ..))| self.marked(*at, decision, grant));
        Some(Decision::all_of(marked))
    }

    /// Charges the missing units in Redis, and requests a lease.
    pub(super) async fn ask_with_lease(
        &self,
        leases: &LeaseTable,
        request: &ChargeRequest,
        mut pass: Permit,
    ) -> Decision {
        let subject = request.grant.as_ref().map(CurrentGrant::subject);
        let now = || self.limits.time.now_ns();
        let access = leases.lock(subject, now, &request.parts, self.timeout / 2).await;
        // Concurrent charges may have received a lease or a rejection meanwhile.
        let costs: Costs = request.parts.iter().map(|part| (part.at, part.policy.quota(), part.cost)).collect();
        let known = || {
            let charged = self.charge_lease_costs(leases, request.grant.as_ref(), &costs);
            charged.or_else(|| Some(self.decision(request, self.cached_rejection(request)?)))
        };
        if let Some(decision) = known() {
            return decision;
        }
        let permit = match self.queue(request, &mut pass).await {
            Ok(permit) => permit,
            Err(decision) => return *decision,
        };
        if let Some(decision) = known() {
            return decision;
        }
        let sent_at = now();
        let (prepared, parts) = leases.prepare(subject, sent_at, access, &request.parts);
        let charge = async |connection: &mut Connection| gcra::charge(connection, &parts, prepared.requests()).await;
        let reply = self.with_redis(permit, pass, charge).await;
        let replied_at = now();
        let charged = leases.complete(subject, (sent_at, replied_at), &prepared, &parts, reply.as_ref());
        let Some(reply) = reply else { return self.decide_locally(request, self.timeout) };
        let cache = self.cache(request.grant.as_ref());
        cache.rejections.insert(request.tag, &request.parts, reply.states(), sent_at, replied_at);
        // A rejection reports the whole cost: the leased units may be used when the caller retries.
        let parts = request.parts.iter().zip(reply.states()).zip(charged);
        let decisions = parts.map(|((part, state), charged)| {
            self.marked(part.at, charged.unwrap_or_else(|| part.decision(state)), request.grant.as_ref())
        });
        let decision = Decision::all_of(decisions);
        if decision.is_admitted() {
            return decision;
        }
        // Another charge of this server may have leased the units meanwhile.
        self.charge_lease_costs(leases, request.grant.as_ref(), &costs).unwrap_or(decision)
    }
}
