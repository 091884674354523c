//! What is measured: a plain call of the script, the limiter, and layers around a service.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::num::NonZeroU32;
use std::time::Duration;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{Request, Response};
use redis::aio::MultiplexedConnection;
use tollgate::limit::redis::{Leases, RedisLimits, RedisServer};
use tollgate::limit::{Charge, Limiter as _, RateLimits};
use tollgate::{AuthLayer, CurrentGrant, Grant, MemoryStore, Quota, TokenDigest};
use tower::util::BoxCloneService;
use tower::{Layer as _, ServiceExt as _, service_fn};
use tower_rate_limiter::{KeyExtractor, RateLimitError, RateLimitLayer, RedisStore};

/// Never exhausted: one core cannot charge a subject this often.
const QUOTA: Quota = Quota::per_second(100_000);
const SUBJECTS: usize = 1_000;
const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy)]
pub(crate) enum Side {
    /// A plain call of the same script, which the others are compared with.
    Script,
    /// A charge without leases.
    Exact,
    Leased,
    /// A request through the gate: its token is authenticated, and its subject charged without leases.
    Gate,
    /// A request through the layer of `tower-rate-limiter`: the key is a header, and nothing is authenticated. It counts requests in
    /// fixed windows, by one call of a script of three commands.
    Peer,
}

impl Side {
    pub(crate) const ALL: [Self; 5] = [Self::Script, Self::Exact, Self::Leased, Self::Gate, Self::Peer];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Script => "script",
            Self::Exact => "exact",
            Self::Leased => "leased",
            Self::Gate => "gate",
            Self::Peer => "tower-rate-limiter",
        }
    }

    /// Returns the number of charges in a round. Leases get more, so that most charges come after the leases have grown.
    ///
    /// All charges of a round begin together and wait for Redis together. They spread out within some thousand charges, as the
    /// requests of a server do. Until then this process and Redis wait for each other.
    pub(crate) fn charges(self) -> u64 {
        if matches!(self, Self::Leased) { 200_000 } else { 40_000 }
    }
}

type Layered = BoxCloneService<Request<()>, Response<Bytes>, Infallible>;

pub(crate) struct Sides {
    script: Script,
    exact: RedisLimits,
    leased: RedisLimits,
    subjects: Vec<CurrentGrant>,
    gate: Layered,
    peer: Layered,
    tokens: Vec<String>,
}

impl Sides {
    /// Returns `None` without Redis.
    pub(crate) async fn new(url: &str) -> Option<Self> {
        let connection = connect(url).await?;
        let prefix = format!("tollgate-bench-{}:", std::process::id());
        let tokens: Vec<_> = (0..SUBJECTS).map(|at| format!("token-{at}")).collect();
        let subject = |at: usize| format!("user-{at}");
        let grant = |(at, token): (usize, &String)| (TokenDigest::of(token), Grant::new(subject(at), ()));
        let store = MemoryStore::from_iter(tokens.iter().enumerate().map(grant));
        let (exact, leased) = (limits(url, &prefix, None), limits(url, &prefix, Some(Leases::default())));
        let gate = AuthLayer::new(store).with_rate_limit(exact.clone()).layer(service_fn(hello));
        let window = Duration::from_secs(60);
        let peer = RateLimitLayer::builder(ByToken)
            .with_store(RedisStore::new(connection.clone()).with_namespace(&prefix))
            .limit(u64::MAX)
            .window(window)
            .build()
            .expect("a window");
        Some(Self {
            script: Script::load(connection, &prefix).await,
            exact,
            leased,
            subjects: (0..SUBJECTS).map(|at| CurrentGrant::new(Grant::new(subject(at), ()))).collect(),
            gate: BoxCloneService::new(gate),
            peer: BoxCloneService::new(peer.layer(service_fn(hello))),
            tokens: tokens.iter().map(|token| format!("Bearer {token}")).collect(),
        })
    }

    pub(crate) async fn charge(&self, side: Side, at: usize) {
        let at = at % SUBJECTS;
        match side {
            Side::Script => self.script.charge(at).await,
            Side::Exact => admitted(&self.exact, &self.subjects[at]).await,
            Side::Leased => admitted(&self.leased, &self.subjects[at]).await,
            Side::Gate => self.request(side, &self.gate, at).await,
            Side::Peer => self.request(side, &self.peer, at).await,
        }
    }

    async fn request(&self, side: Side, service: &Layered, at: usize) {
        let request = Request::builder().header(AUTHORIZATION, &self.tokens[at]).body(()).expect("a request");
        let Ok(response) = service.clone().oneshot(request).await;
        let status = response.status();
        assert!(status.is_success(), "{}: {status}, but Redis has to admit the measured requests", side.name());
    }
}

fn hello(_: Request<()>) -> Ready<Result<Response<Bytes>, Infallible>> {
    ready(Ok(Response::new(Bytes::new())))
}

async fn admitted(limits: &RedisLimits, subject: &CurrentGrant) {
    let decision = limits.charge(subject, Charge::Units(1)).await;
    assert!(decision.is_admitted() && !decision.is_local(), "Redis has to admit the measured charges");
}

fn limits(url: &str, prefix: &str, leases: Option<Leases>) -> RedisLimits {
    let server = RedisServer::single(url).expect("a URL");
    let limits = RedisLimits::new(RateLimits::new(QUOTA), server, [7; 32], NonZeroU32::MIN).expect("a secret");
    let limits = limits.with_prefix(prefix).expect("a prefix").with_timeout(TIMEOUT);
    match leases {
        None => limits,
        Some(leases) => limits.with_leases(leases).expect("no refunds"),
    }
}

/// The key of a request for `tower-rate-limiter`.
#[derive(Clone)]
struct ByToken;

impl KeyExtractor for ByToken {
    type Key = String;

    fn extract<T>(&self, request: &Request<T>) -> Result<String, RateLimitError> {
        let token = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        token.map(str::to_owned).ok_or_else(|| RateLimitError::Key(String::new(), String::new()))
    }
}

async fn connect(url: &str) -> Option<MultiplexedConnection> {
    // The limiter's own settings: a shorter queue would delay the measured calls.
    let config =
        redis::AsyncConnectionConfig::new().set_response_timeout(Some(TIMEOUT)).set_pipeline_buffer_size(1_024);
    redis::Client::open(url).ok()?.get_multiplexed_async_connection_with_config(&config).await.ok()
}

/// A hand-written client for the same script.
struct Script {
    hash: String,
    connection: MultiplexedConnection,
    keys: Vec<String>,
}

impl Script {
    async fn load(mut connection: MultiplexedConnection, prefix: &str) -> Self {
        let clock = "local t = redis.call('TIME') local now = t[1] * 1000000 + t[2]";
        let [bucket, gcra] =
            [include_str!("../../../src/limit/redis/bucket.lua"), include_str!("../../../src/limit/redis/gcra.lua")];
        let code = format!("{clock}\nlocal has_refunds = false\n{bucket}\n\n{gcra}");
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg(code);
        let hash = load.query_async(&mut connection).await.expect("a script");
        // Keys as long as those of the limiter.
        let keys = (0..SUBJECTS).map(|at| format!("{prefix}{{only-script-{at:010}}}:default")).collect();
        Self { hash, connection, keys }
    }

    async fn charge(&self, at: usize) {
        let interval_ns = QUOTA.interval().as_nanos() as u64;
        let span_ns = interval_ns * u64::from(QUOTA.burst());
        let mut call = redis::cmd("EVALSHA");
        call.arg(&self.hash).arg(1).arg(&self.keys[at]);
        let numbers = [1, interval_ns, span_ns / 1_000, span_ns % 1_000, interval_ns / 1_000, interval_ns % 1_000, 0];
        for number in numbers {
            call.arg(number);
        }
        let answer: (u64, u64, u64, u64) = call.query_async(&mut self.connection.clone()).await.expect("an answer");
        assert_eq!(answer.0, 1, "Redis has to admit the measured charges");
    }
}
