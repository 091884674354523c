//! The plans, which are quotas of grants.

use tollgate::Quota;
use tollgate::store::sql::GrantRecord;

use crate::app::QUOTA;

/// A plan that support can give to a user.
pub(crate) struct Plan {
    pub(crate) name: &'static str,
    pub(crate) quota: Quota,
}

pub(crate) const PLANS: [Plan; 3] = [
    Plan { name: "Starter", quota: Quota::per_minute(60).with_burst(10) },
    Plan { name: "Standard", quota: QUOTA },
    Plan { name: "Professional", quota: Quota::per_minute(600).with_burst(60) },
];

/// Returns the plan with this name.
pub(crate) fn by_name(name: &str) -> Option<&'static Plan> {
    PLANS.iter().find(|plan| plan.name == name)
}

/// Returns the quota of a grant.
pub(crate) fn quota_of(grant: &GrantRecord) -> Quota {
    grant.quota.unwrap_or(QUOTA)
}

/// Returns the name of the plan of a grant. Another program may have set a quota that is no plan.
pub(crate) fn name_of(grant: &GrantRecord) -> &'static str {
    PLANS.iter().find(|plan| plan.quota == quota_of(grant)).map_or("Custom", |plan| plan.name)
}

/// Describes a quota to a user, such as `180 a minute, 20 at the same time`.
pub(crate) fn describe(quota: Quota) -> String {
    let text = quota.to_string();
    let (rate, _) = text.split_once(" burst ").unwrap_or((&text, ""));
    let rate = rate.replace("/min", " a minute").replace("/s", " a second").replace("/h", " an hour");
    format!("{rate}, {} at the same time", quota.burst())
}
