//! What support changes in Redis while the service runs: quotas, and the buckets of a subject.

use tollgate::limit::RateLimits;
use tollgate::{LimitError, Quota};

use crate::redis_kit::*;
use crate::redis_servers::{PrivateRedis, RedisHome};

#[tokio::test]
async fn change_in_redis_applies_to_all_clones_and_to_local_buckets() {
    let Some(redis) = PrivateRedis::start("change_in_redis_applies_to_all_clones_and_to_local_buckets") else { return };
    let limits = to(&redis.url(), RateLimits::new(FIVE));
    let clone = limits.clone().with_timeout(TIMEOUT);
    assert_eq!(charge(&limits, 3).await.remaining(), 2);
    clone.set_quotas([("default", FIVE.with_burst(9))]).unwrap();
    assert_eq!(charge(&limits, 1).await.remaining(), 5);
    assert_eq!(charge(&clone, 1).await.remaining(), 4);
    assert_eq!(limits.set_quotas([("other", FIVE)]), Err(LimitError::Unknown));

    drop(redis);
    let local = charge(&limits, 1).await;
    assert!(local.is_local(), "{local:?}");
    assert_eq!(local.remaining(), 8);
    clone.set_quotas([("default", FIVE.with_burst(7))]).unwrap();
    assert_eq!(charge(&limits, 0).await.remaining(), 6);
}

#[tokio::test]
async fn servers_with_different_quotas_count_the_same_units() {
    let Some(home) = RedisHome::new("servers_with_different_quotas_count_the_same_units") else { return };
    let [old, new] = [(); 2].map(|()| at(&home, RateLimits::new(FIVE)));
    assert_eq!(charge(&old, 2).await.remaining(), 3);
    new.set_quotas([("default", Quota::one_per(HOUR / 2).with_burst(10))]).unwrap();
    assert_eq!(charge(&new, 2).await.remaining(), 6);
    assert_eq!(charge(&old, 1).await.remaining(), 0);
    assert!(!charge(&old, 1).await.is_admitted());
    assert_eq!(charge(&new, 1).await.remaining(), 4);
}
