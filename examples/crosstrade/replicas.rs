//! The ledger of several services that share a database: in Redis.
//!
//! Budgets are tollgate's. The limits that alerts set themselves are `self_limit.lua`, by the rules of `self_limit.rs`: they
//! are there to stop a strategy that repeats itself, whichever replica its alerts come to.

use std::error::Error;
use std::num::NonZeroU32;
use std::time::Duration;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine as _};
use hmac::{Hmac, Mac as _};
use redis::aio::{ConnectionManager, ConnectionManagerConfig};
use redis::{Client, FromRedisValue, Script, ScriptInvocation};
use sha2::Sha256;
use tollgate::limit::redis::{BreakerState, Leases, RedisLimits, RedisServer};
use tollgate::limit::{Charge, Limiter};
use tollgate::{Answer, CurrentGrant, Decision, RateLimits};

use crate::ledger::{Later, Ledger, Paid};
use crate::self_limit::{Denied, MAX_IDS, SelfLimit};

/// Redis answers in less than a millisecond, or is not there.
const DEADLINE: Duration = Duration::from_millis(250);
const PREFIX: &str = "crosstrade:";

/// Of an id of which nothing is left there is nothing to remember.
const TAKE_BACK: &str = "redis.call('LREM', KEYS[1], -1, ARGV[1])
    if redis.call('LLEN', KEYS[1]) == 0 then redis.call('ZREM', KEYS[2], ARGV[2]) end";

/// Where the ledger is, and who shares it.
#[derive(Debug, PartialEq)]
pub(crate) struct Replicas {
    /// The URL of Redis.
    pub(crate) redis: String,
    /// How many services there are.
    pub(crate) count: NonZeroU32,
    /// Whether each buys ahead.
    pub(crate) leases: bool,
}

/// What all replicas spend.
pub(crate) struct Shared {
    limits: RedisLimits,
    redis: ConnectionManager,
    hmac: Hmac<Sha256>,
    admit: Script,
    take_back: Script,
}

impl Shared {
    /// Nothing is connected yet. The secret, the same for all replicas, keeps users and their ids out of Redis.
    pub(crate) fn new(replicas: &Replicas, secret: &[u8], budgets: RateLimits) -> Result<Self, Box<dyn Error>> {
        let server = RedisServer::single(&replicas.redis)?;
        let limits =
            RedisLimits::new(budgets, server, secret, replicas.count)?.with_prefix(PREFIX)?.with_deadline(DEADLINE);
        let limits = if replicas.leases { limits.with_leases(Leases::default()) } else { limits };
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(DEADLINE))
            .set_response_timeout(Some(DEADLINE))
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

    /// The keys of an id's log and of its subject's ids, and what the id is called there.
    fn names(&self, who: &CurrentGrant, id: &[u8]) -> [String; 3] {
        let name = |kind: &str, of: &[u8]| {
            let mac = self.hmac.clone().chain_update(kind).chain_update(of).finalize().into_bytes();
            BASE64_URL_SAFE_NO_PAD.encode(&mac[..16])
        };
        let (subject, id) = (name("subject ", who.subject().as_str().as_bytes()), name("id ", id));
        [format!("{PREFIX}{{{subject}}}:alerts:{id}"), format!("{PREFIX}{{{subject}}}:ids"), id]
    }

    async fn run<T: FromRedisValue>(&self, script: &ScriptInvocation<'_>) -> Option<T> {
        let mut redis = self.redis.clone();
        let answer = tokio::time::timeout(DEADLINE, script.invoke_async(&mut redis)).await;
        answer.ok()?.ok()
    }

    async fn pay(&self, who: &CurrentGrant) -> Paid {
        let decision = self.limits.charge(who, Charge::Units(1)).await;
        decision.into_result().map_err(Denied::NotAccepted)
    }

    /// Whether Redis is away: then its breaker says so at once, but for one who asks, from time to time.
    async fn is_away(&self, who: &CurrentGrant) -> bool {
        self.limits.state() != BreakerState::Closed && self.limits.charge(who, Charge::Units(0)).await.is_local()
    }

    /// First the alert's own limit. If it cannot be paid, it is taken back there: for a moment it may have stood in the way
    /// of another. Where Redis answers too late, or the sender has gone, it stays counted: the limit errs on the safe side.
    async fn pay_limited(&self, who: &CurrentGrant, id: &[u8], limit: SelfLimit) -> Paid {
        // It is a safety limit: where nobody knows, the alert is not carried out.
        let unknown = || Decision::unavailable(DEADLINE).into_result().map_err(Denied::NotAccepted);
        if self.is_away(who).await {
            return unknown();
        }
        let [log, ids, id] = self.names(who, id);
        let window_us = u64::from(limit.window_s) * 1_000_000;
        let mut admit = self.admit.key(&log);
        admit.key(&ids).arg(limit.count).arg(window_us).arg(MAX_IDS).arg(&id);
        let at = match self.run(&admit).await {
            Some((0, at_us)) => at_us,
            Some((1, wait_us)) => return Err(Denied::OverLimit(Duration::from_micros(wait_us))),
            Some((_, wait_us)) => return Err(Denied::TooManyIds(Duration::from_micros(wait_us))),
            None => return unknown(),
        };
        let paid = self.pay(who).await;
        if paid.is_err() {
            _ = self.run::<()>(self.take_back.key(log).key(ids).arg(at).arg(id)).await;
        }
        paid
    }
}

impl Ledger for Shared {
    fn charge(&self, who: &CurrentGrant, charge: Charge<'_>) -> Answer<Later<'static, Decision>> {
        match self.limits.charge(who, charge) {
            Answer::Ready(decision) => Answer::Ready(decision),
            Answer::Pending(decision) => Answer::Pending(Box::pin(decision)),
        }
    }

    fn pay_alert<'a>(&'a self, who: &'a CurrentGrant, own: Option<(&'a [u8], SelfLimit)>) -> Later<'a, Paid> {
        Box::pin(async move {
            match own {
                None => self.pay(who).await,
                Some((id, limit)) => self.pay_limited(who, id, limit).await,
            }
        })
    }
}
