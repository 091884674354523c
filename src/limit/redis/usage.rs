//! Usage and reset of a subject's buckets.

use std::sync::LazyLock;

use thiserror::Error;

use super::charge::APART;
use super::connect::Connection;
use super::limits::RedisLimits;
use super::outage::Fallback;
use super::script::{CLOCK, Script};
use crate::grant::Subject;
use crate::limit::limit::Scope;
use crate::quota::Quota;
use crate::quota::cell::carry_over;
use crate::quota::decision::Decision;

/// The error of a command that Redis did not answer.
///
/// Redis has failed, did not reply within the [timeout](RedisLimits::with_timeout), or is not asked because the circuit breaker is
/// open. Or too many commands were in flight for the whole [queue timeout](RedisLimits::with_queue_timeout).
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("Redis is unavailable, or too many commands are in flight")]
#[non_exhaustive]
pub struct RedisUnavailable;

impl RedisLimits {
    /// Returns the state of a subject's buckets over all servers, without a charge and without its token. `quota` is the
    /// [quota of the subject's grant](crate::Grant::with_quota), or `None` for the default quota.
    ///
    /// The decision has a [part](Decision::parts) for each limit. The call creates and changes no bucket. A wrong quota changes no
    /// bucket either. With [leases](Self::with_leases), units that a server has leased count as used. Routes may have other buckets,
    /// see [`RateLimits::usage`](crate::RateLimits::usage).
    ///
    /// ```no_run
    /// # async fn example(limits: tollgate::limit::redis::RedisLimits) -> Result<(), tollgate::limit::redis::RedisUnavailable> {
    /// let usage = limits.usage(&"alice".into(), None).await?;
    /// println!("{} units left, all in {:?}", usage.remaining(), usage.full_in());
    /// limits.reset(&"alice".into()).await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// [`RedisUnavailable`] if Redis does not reply. The outage policy does not apply.
    pub async fn usage(&self, subject: &Subject, quota: Option<Quota>) -> Result<Decision, RedisUnavailable> {
        static USAGE: LazyLock<Script> = LazyLock::new(|| script(CLOCK));
        let shared = self.shared();
        let (tag, states) = (shared.keys.tag(subject), shared.limits.states());
        let keys: Vec<_> =
            states.iter().map(|state| shared.key(state.limit(), Some(quota), tag, state.limit().name())).collect();
        let run = async |connection: &mut Connection| {
            let keys: Vec<_> = keys.iter().map(Vec::as_slice).collect();
            USAGE.run::<Vec<u64>>(connection, &keys, &[]).await
        };
        let numbers = shared.command(&keys[0], run).await.ok_or(RedisUnavailable)?;
        let usage = states.iter().zip(numbers.chunks_exact(3)).map(|(state, of)| {
            let policy = state.policy(quota);
            let full_in = full_in_ns(of, policy.quota());
            state.usage_of(policy, full_in)
        });
        Ok(Decision::all_of(usage))
    }

    /// Makes all buckets of a subject full, on all servers. Buckets that all subjects share do not change.
    ///
    /// Rejections that are cached by another server or by a route of this server, or are in progress, last for at most ten seconds. With
    /// [leases](Self::with_leases), units that a server has leased can be used until the lease ends. Charges before this call are not
    /// refunded later.
    ///
    /// # Errors
    ///
    /// [`RedisUnavailable`] if Redis does not reply. Buckets in Redis may or may not be full then. Local buckets of this server, which
    /// are used while Redis is unavailable, are full in any case.
    pub async fn reset(&self, subject: &Subject) -> Result<(), RedisUnavailable> {
        let shared = self.shared();
        if let Fallback::Local(limits) = &shared.fallback {
            limits.reset(subject);
        }
        let tag = shared.keys.tag(subject);
        let per_subject =
            shared.limits.states().iter().map(|state| state.limit()).filter(|limit| limit.scope == Scope::Subject);
        let names = per_subject.map(|limit| limit.name()).chain([APART]);
        let keys: Vec<_> = names.map(|name| shared.keys.of_subject(tag, name)).collect();
        let delete = async |connection: &mut Connection| connection.query::<()>(redis::cmd("DEL").arg(&keys)).await;
        let done = shared.command(&keys[0], delete).await;
        shared.caches.remove(&tag, subject);
        done.ok_or(RedisUnavailable)
    }
}

fn script(clock: &str) -> Script {
    Script::new(clock, false, include_str!("usage.lua"))
}

/// Returns the time until a bucket is full, from the three numbers of the script.
fn full_in_ns(of: &[u64], quota: Quota) -> u64 {
    carry_over(of[0].saturating_mul(1_000).saturating_add(of[1]), of[2], quota)
}

/// Returns the time until a bucket is full, at the given time in microseconds.
#[cfg(test)]
pub(super) async fn full_in_at(connection: &mut Connection, key: &[u8], quota: Quota, now_us: u64) -> u64 {
    static AT: LazyLock<Script> = LazyLock::new(|| script(super::script::GIVEN_CLOCK));
    let numbers: Vec<u64> = AT.run(connection, &[key], &[now_us]).await.unwrap();
    full_in_ns(&numbers, quota)
}
