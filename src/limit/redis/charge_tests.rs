//! Tests of charges that need the inner state of the crate.

use std::num::NonZeroU32;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::charge::APART;
use super::limits::RedisLimits;
use super::server::RedisServer;
use super::tests::{key, redis, url};
use crate::caller::CurrentGrant;
use crate::grant::Grant;
use crate::limit::{Charge, Limit, Limiter as _, RateLimits};
use crate::quota::Quota;
use crate::quota::policy::lock_new_policies;

/// Charges with the policies of grants, decided by Redis, and by local buckets in an outage.
#[test]
fn a_charge_with_a_known_policy_takes_no_process_wide_lock() {
    let test = "a_charge_with_a_known_policy_takes_no_process_wide_lock";
    let Some((runtime, _)) = redis(test) else { return };
    for (server, is_local) in [(&*url(), false), ("redis://127.0.0.1:1", true)] {
        let quota = Quota::per_hour(5);
        let limits = RateLimits::new(quota);
        let limits =
            RedisLimits::new(limits, RedisServer::single(server).unwrap(), key().repeat(2), NonZeroU32::MIN).unwrap();
        // Each charge by the other grant of the subject replaces its local bucket.
        let grants = [6, 7].map(|burst| CurrentGrant::new(Grant::new("alice", ()).with_quota(quota.with_burst(burst))));
        let charge = || {
            let both = grants.iter().map(|grant| limits.charge(grant, Charge::Units(1)));
            both.map(|answer| runtime.block_on(async { answer.await }).is_local()).collect::<Vec<_>>()
        };
        assert_eq!(charge(), [is_local; 2]);
        let _lock = lock_new_policies();
        assert_eq!(charge(), [is_local; 2]);
        assert_eq!(runtime.block_on(limits.reset(&"alice".into())).is_ok(), !is_local);
    }
}

#[test]
fn no_limit_has_the_name_of_the_bucket_that_is_apart() {
    assert!(Limit::new(APART, Quota::per_hour(5)).is_err());
}

/// The queue timeout, and then the timeout for a connection.
#[tokio::test(start_paused = true)]
async fn the_waits_of_a_charge_are_bounded() {
    const TIMEOUT: Duration = Duration::from_secs(1);
    // This server accepts connections and never replies.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = RedisServer::single(&format!("redis://{}", silent.local_addr().unwrap())).unwrap();
    let server = server.with_connection_timeout(10 * TIMEOUT);
    let limits = RateLimits::new(Quota::per_hour(5));
    let limits = RedisLimits::new(limits, server, key().repeat(2), NonZeroU32::MIN).unwrap();
    let limits = limits.with_timeout(TIMEOUT).with_max_in_flight(NonZeroU32::MIN);
    let grant = CurrentGrant::new(Grant::new("alice", ()));
    for (held_ms, total_ms, is_local) in [(0, 1_000, true), (1_900, 2_900, true), (2_100, 2_000, false)] {
        let permit = limits.shared().in_flight.acquire().await.unwrap();
        let release = async {
            sleep(Duration::from_millis(held_ms)).await;
            drop(permit);
        };
        let begin = Instant::now();
        let charge = async {
            let decision = limits.charge(&grant, Charge::Units(1)).await;
            (begin.elapsed().as_millis(), decision.is_local())
        };
        let (charged, ()) = tokio::join!(charge, release);
        assert_eq!(charged, (total_ms, is_local), "{held_ms}");
    }
}
