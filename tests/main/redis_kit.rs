//! Helpers of the Redis tests.

use std::num::NonZeroU32;
use std::time::Duration;

use tollgate::limit::redis::{RedisLimits, RedisServer};
use tollgate::limit::{Charge, Limiter as _, RateLimits};
use tollgate::{CurrentGrant, Decision, Grant, Quota};

use crate::kit::*;
use crate::redis_servers::RedisHome;

pub const SECRET: [u8; 32] = [7; 32];
pub const HOUR: Duration = Duration::from_secs(3_600);
/// A quota that refills nothing during a test.
pub const FIVE: Quota = Quota::one_per(HOUR).with_burst(5);
/// A timeout that only a hanging test exceeds.
pub const NEVER: Duration = Duration::from_secs(30);
pub const TIMEOUT: Duration = Duration::from_secs(10);

/// One server, so that local buckets are not divided.
pub const ONE_NODE: NonZeroU32 = NonZeroU32::MIN;

pub fn alice() -> CurrentGrant {
    CurrentGrant::new(Grant::new("alice", ()))
}

/// Returns one of several servers, with its own connections and cache.
pub fn at(home: &RedisHome, limits: RateLimits) -> RedisLimits {
    let server = RedisServer::single(home.url()).unwrap();
    RedisLimits::new(limits, server, SECRET, ONE_NODE)
        .unwrap()
        .with_prefix(home.prefix())
        .unwrap()
        .with_timeout(TIMEOUT)
}

/// Returns a limiter for the server at this URL.
pub fn to(url: &str, limits: RateLimits) -> RedisLimits {
    RedisLimits::new(limits, RedisServer::single(url).unwrap(), SECRET, ONE_NODE).unwrap().with_timeout(TIMEOUT)
}

/// Charges these units of `alice`.
pub async fn charge(limits: &RedisLimits, units: u32) -> Decision {
    tokio::time::timeout(NEVER, limits.charge(&alice(), Charge::Units(units))).await.expect("the charge hangs")
}

/// Charges until Redis decides again, and advances the clock by an hour before each retry.
pub async fn recovered(limits: &RedisLimits, hands: &Hands) -> Decision {
    let recover = async {
        loop {
            let decision = charge(limits, 0).await;
            if !decision.is_local() {
                return decision;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            hands.advance(HOUR);
        }
    };
    tokio::time::timeout(NEVER, recover).await.expect("Redis is never asked again")
}
