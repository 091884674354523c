//! The ledger of several services that share a database, in Redis.
//!
//! The rate limits are tollgate's. `self_limit.lua` counts the limits that alerts set themselves, by the rules of
//! `self_limit.rs`. They stop a strategy that repeats itself, even if its alerts reach different replicas.

use std::error::Error;
use std::num::NonZeroU32;
use std::time::Duration;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use hmac::{Hmac, KeyInit as _, Mac as _};
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, FromRedisValue, Script, ScriptInvocation};
use sha2::Sha256;
use tollgate::limit::redis::{BreakerState, Leases, RedisLimits, RedisServer};
use tollgate::limit::{Charge, Limiter};
use tollgate::{Answer, CurrentGrant, Decision, Quota, RateLimits, Subject};

use crate::ledger::{Charged, Later, Ledger};
use crate::self_limit::{Denied, MAX_IDS, SelfLimit};

/// The timeout of Redis, which usually replies in less than a millisecond.
const TIMEOUT: Duration = Duration::from_millis(250);
const PREFIX: &str = "crosstrade:";

/// Removes an alert from the log of its id, and the id if its log is empty.
const TAKE_BACK: &str = "redis.call('LREM', KEYS[1], -1, ARGV[1])
    if redis.call('LLEN', KEYS[1]) == 0 then redis.call('ZREM', KEYS[2], ARGV[2]) end";

/// The Redis of the ledger, and the services that share it.
#[derive(Debug, PartialEq)]
pub(crate) struct Replicas {
    /// The URL of Redis.
    pub(crate) redis: String,
    /// The number of services.
    pub(crate) count: NonZeroU32,
    /// Whether services use leases.
    pub(crate) leases: bool,
}

/// The ledger that all replicas share.
pub(crate) struct Shared {
    limits: RedisLimits,
    redis: ConnectionManager,
    hmac: Hmac<Sha256>,
    admit: Script,
    take_back: Script,
}

impl Shared {
    /// Creates the ledger without connecting. The secret, the same for all replicas, hides users and ids from readers of Redis.
    pub(crate) fn new(replicas: &Replicas, secret: &[u8], limits: RateLimits) -> Result<Self, Box<dyn Error>> {
        let server = RedisServer::single(&replicas.redis)?;
        let limits =
            RedisLimits::new(limits, server, secret, replicas.count)?.with_prefix(PREFIX)?.with_timeout(TIMEOUT);
        let limits = if replicas.leases { limits.with_leases(Leases::default())? } else { limits };
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(TIMEOUT))
            .set_response_timeout(Some(TIMEOUT))
            .set_number_of_retries(1);
        let client = Client::open(&*replicas.redis)?;
        Ok(Self {
            limits,
            redis: client.get_connection_manager_lazy(config)?,
            hmac: Hmac::new_from_slice(secret)?,
            admit: Script::new(include_str!("self_limit.lua")),
            take_back: Script::new(TAKE_BACK),
        })
    }

    /// Returns the keys of an id's log and of its subject's ids, and the name of the id in Redis.
    fn names(&self, caller: &CurrentGrant, id: &[u8]) -> [String; 3] {
        let name = |kind: &str, of: &[u8]| {
            let mac = self.hmac.clone().chain_update(kind).chain_update(of).finalize().into_bytes();
            BASE64_URL_SAFE_NO_PAD.encode(&mac[..16])
        };
        let (subject, id) = (name("subject ", caller.subject().as_str().as_bytes()), name("id ", id));
        [format!("{PREFIX}{{{subject}}}:alerts:{id}"), format!("{PREFIX}{{{subject}}}:ids"), id]
    }

    async fn run<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Option<T> {
        let mut redis = self.redis.clone();
        let reply = tokio::time::timeout(TIMEOUT, script.invoke_async(&mut redis)).await;
        reply.ok()?.ok()
    }

    async fn charge_one(&self, caller: &CurrentGrant) -> Charged {
        let decision = self.limits.charge(caller, Charge::Units(1)).await;
        decision.into_result().map_err(Denied::NotAccepted)
    }

    /// Returns whether Redis is down. While its circuit breaker is open this is immediate, except for probes.
    async fn is_down(&self, caller: &CurrentGrant) -> bool {
        self.limits.state() != BreakerState::Closed && self.limits.charge(caller, Charge::Units(0)).await.is_local()
    }

    /// Counts the alert towards its own limit, then charges it, and takes the count back if the charge is rejected. In between,
    /// the count may reject another alert. If Redis replies too late or the client has gone, the count stays, which is safe.
    async fn charge_limited(&self, caller: &CurrentGrant, id: &[u8], limit: SelfLimit) -> Charged {
        // A safety limit: without Redis the alert is not carried out.
        let unknown = || Decision::unavailable(TIMEOUT).into_result().map_err(Denied::NotAccepted);
        if self.is_down(caller).await {
            return unknown();
        }
        let [log, ids, id] = self.names(caller, id);
        let window_us = u64::from(limit.window_s) * 1_000_000;
        let mut admit = self.admit.key(&log);
        admit.key(&ids).arg(limit.count).arg(window_us).arg(MAX_IDS).arg(&id);
        let at = match self.run(&admit).await {
            Some((0, at_us)) => at_us,
            Some((1, wait_us)) => return Err(Denied::OverLimit(Duration::from_micros(wait_us))),
            Some((_, wait_us)) => return Err(Denied::TooManyIds(Duration::from_micros(wait_us))),
            None => return unknown(),
        };
        let charged = self.charge_one(caller).await;
        if charged.is_err() {
            _ = self.run::<()>(self.take_back.key(log).key(ids).arg(at).arg(id)).await;
        }
        charged
    }
}

impl Ledger for Shared {
    fn charge(&self, caller: &CurrentGrant, charge: Charge<'_>) -> Answer<Later<'static, Decision>> {
        match self.limits.charge(caller, charge) {
            Answer::Ready(decision) => Answer::Ready(decision),
            Answer::Pending(decision) => Answer::Pending(Box::pin(decision)),
        }
    }

    fn charge_alert<'a>(&'a self, caller: &'a CurrentGrant, own: Option<(&'a [u8], SelfLimit)>) -> Later<'a, Charged> {
        Box::pin(async move {
            match own {
                None => self.charge_one(caller).await,
                Some((id, limit)) => self.charge_limited(caller, id, limit).await,
            }
        })
    }

    fn usage<'a>(&'a self, subject: &'a Subject, quota: Option<Quota>) -> Later<'a, Option<Decision>> {
        Box::pin(async move { self.limits.usage(subject, quota).await.ok() })
    }

    fn reset<'a>(&'a self, subject: &'a Subject) -> Later<'a, bool> {
        Box::pin(async move { self.limits.reset(subject).await.is_ok() })
    }
}
