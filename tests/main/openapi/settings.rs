//! Gates of many settings, each with its routes and its document.

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use axum::Router;
use http::{HeaderName, StatusCode};
use proptest::prelude::*;
use tollgate::limit::{AnonymousLimits, Charge, FailureThrottle};
use tollgate::openapi::GateDocs;
use tollgate::store::{GateStore, from_fn};
use tollgate::{
    Answer, AuthLayer, CurrentGrant, Decision, Grant, Immediate, Limit, Limiter, MemoryStore, Policy, Quota,
    RateLimitHeaders, RateLimits, RequestHead, TokenDigest, Verdict,
};
use utoipa::openapi::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::kit::body::{TIMEOUT, body_tokens};
use crate::kit::location::API_KEY;

pub const TRADER: &str = "tg_token_of_a_trader_00001";
pub const READER: &str = "tg_token_of_a_reader_00001";
pub const EXPIRED: &str = "tg_token_that_has_expired1";
pub const UNKNOWN: &str = "tg_token_that_is_unknown_1";
/// The database store has no answer for it.
pub const LOST: &str = "tg_token_that_is_not_found";
pub const PLAIN: HeaderName = HeaderName::from_static("x-plain");
pub const COST: HeaderName = HeaderName::from_static("x-cost");
/// Selects the decision of [`Remote`].
pub const DECIDE: HeaderName = HeaderName::from_static("x-decide");
pub const PEER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 1);

#[derive(Clone, Copy, Debug)]
pub enum Store {
    Memory,
    Database,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Limits {
    None,
    Memory,
    Costs,
    ByAddress,
    ByAddressAndCost,
    Remote,
}

/// The settings of a gate.
#[derive(Clone, Debug)]
pub struct Settings {
    pub store: Store,
    pub limits: Limits,
    pub headers: RateLimitHeaders,
    pub is_bearer: bool,
    pub is_api_key: bool,
    pub is_query: bool,
    pub is_body: bool,
    pub is_anonymous: bool,
    pub is_https: bool,
    pub is_throttled: bool,
    pub has_scopes: bool,
    pub has_route_limit: bool,
}

pub fn settings() -> impl Strategy<Value = Settings> {
    let dialects = prop::sample::select(vec![
        RateLimitHeaders::Draft11,
        RateLimitHeaders::Draft07,
        RateLimitHeaders::Draft06,
        RateLimitHeaders::Draft03,
        RateLimitHeaders::XEpoch,
        RateLimitHeaders::XDelta,
        RateLimitHeaders::Off,
    ]);
    let limits = prop::sample::select(vec![
        Limits::None,
        Limits::Memory,
        Limits::Costs,
        Limits::ByAddress,
        Limits::ByAddressAndCost,
        Limits::Remote,
    ]);
    let locations = (any::<[bool; 3]>()).prop_map(|[bearer, key, query]| [bearer || !key, key, query]);
    let store = prop::sample::select(vec![Store::Memory, Store::Database]);
    (store, limits, dialects, locations, any::<[bool; 6]>()).prop_map(|(store, limits, headers, locations, others)| {
        let [is_bearer, is_api_key, is_query] = locations;
        let [is_body, is_anonymous, is_https, is_throttled, has_scopes, has_route_limit] = others;
        Settings {
            store,
            limits,
            headers,
            is_bearer,
            is_api_key,
            is_query,
            is_body,
            is_anonymous,
            is_https,
            is_throttled,
            has_scopes,
            has_route_limit,
        }
    })
}

/// A limiter of a type that is not one of the crate.
pub struct Remote;

impl Limiter for Remote {
    type Future = Immediate<Decision>;

    fn charge(&self, _: &CurrentGrant, charge: Charge<'_>) -> Answer<Self::Future> {
        self.charge_anonymous(charge)
    }

    fn charge_anonymous(&self, charge: Charge<'_>) -> Answer<Self::Future> {
        let Charge::Request(head) = charge else { unreachable!() };
        let verdict = match head.headers.get(DECIDE).map(http::HeaderValue::as_bytes) {
            Some(b"down") => return Answer::Ready(Decision::unavailable(Duration::from_secs(2))),
            Some(b"over") => Verdict::OverLimit,
            Some(b"never") => Verdict::CostAboveBurst,
            _ => Verdict::Admitted,
        };
        let policy = Policy::new("remote", Quota::per_minute(60)).unwrap();
        Answer::Ready(Decision::new(policy, verdict, 7, Duration::from_secs(3), Duration::from_secs(9)))
    }
}

#[utoipa::path(get, path = "/orders", responses((status = 200, description = "Success", body = str)))]
async fn list() -> &'static str {
    "orders"
}

#[utoipa::path(post, path = "/orders", responses((status = 200, description = "Success", body = str)))]
async fn place() -> &'static str {
    "placed"
}

fn grants() -> MemoryStore<()> {
    MemoryStore::from_iter([
        (TokenDigest::of(TRADER), Grant::new("trader", ()).with_scopes(["trade"]).unwrap()),
        (TokenDigest::of(READER), Grant::new("reader", ())),
        (TokenDigest::of(EXPIRED), Grant::new("past", ()).with_expiry(SystemTime::UNIX_EPOCH)),
    ])
}

fn cost(head: &RequestHead<'_>) -> u32 {
    head.headers.get(COST).and_then(|cost| cost.to_str().ok()?.parse().ok()).unwrap_or(1)
}

fn stopped() -> Duration {
    Duration::ZERO
}

impl Settings {
    /// Returns the service of these settings, with its document. Its buckets are full.
    pub fn service(&self) -> (Router, OpenApi) {
        match self.store {
            Store::Memory => self.with_limits(AuthLayer::new(grants())),
            Store::Database => {
                let grants = grants();
                let lost = TokenDigest::of(LOST);
                let store = from_fn(move |digest| {
                    let found = if digest == lost { Err("lost") } else { Ok(grants.get(digest)) };
                    async move { found.map(|grant| grant.map(|grant| Grant::clone(&grant))) }
                });
                self.with_limits(AuthLayer::with_timeout(store, TIMEOUT))
            }
        }
    }

    fn with_limits<T: GateStore>(&self, gate: AuthLayer<T>) -> (Router, OpenApi) {
        let quota = Quota::per_minute(60).with_burst(3);
        let limits = || RateLimits::new(quota).with_clock(stopped);
        let costs = || Limit::from(quota).with_cost(cost);
        // Callers without a token are limited too, so that every operation can be rejected.
        let anonymous = |limit: Limit| limit.with_anonymous(quota);
        let by_address = |limit: Limit| {
            let limits = AnonymousLimits::new(limit, |_| Some(1)).unwrap().with_capacity(64).unwrap();
            limits.with_clock(stopped)
        };
        match self.limits {
            Limits::None => self.with_settings(gate),
            Limits::Memory => {
                self.with_settings(gate.with_rate_limit(RateLimits::new(anonymous(quota.into())).with_clock(stopped)))
            }
            Limits::Costs => {
                self.with_settings(gate.with_rate_limit(RateLimits::new(anonymous(costs())).with_clock(stopped)))
            }
            Limits::ByAddress => {
                self.with_settings(gate.with_rate_limit(by_address(quota.into()).with_authenticated(limits())))
            }
            Limits::ByAddressAndCost => {
                let costs = RateLimits::new(costs()).with_clock(stopped);
                self.with_settings(gate.with_rate_limit(by_address(quota.into()).with_authenticated(costs)))
            }
            Limits::Remote => self.with_settings(gate.with_rate_limit(Remote)),
        }
    }

    fn with_settings<T: GateStore, L: Limiter>(&self, gate: AuthLayer<T, L>) -> (Router, OpenApi) {
        let mut gate = gate.with_rate_limit_headers(self.headers);
        if !self.is_bearer {
            gate = gate.without_authorization_header();
        }
        if self.is_api_key {
            gate = gate.with_api_key_header(API_KEY).unwrap();
        }
        if self.is_query {
            gate = gate.with_discouraged_query_token("access_token").unwrap();
        }
        if self.is_anonymous {
            gate = gate.allow_anonymous();
        }
        if self.is_https {
            gate = gate.require_https(|head| !head.headers.contains_key(PLAIN));
        }
        if self.is_throttled {
            let failures = FailureThrottle::by_socket_addr(Quota::per_hour(1).with_burst(2)).with_width(16).unwrap();
            gate = gate.with_failure_throttle(failures);
        }
        let trade = gate.require_scopes(["trade"]).unwrap();
        let quota = Quota::per_minute(60).with_burst(5);
        let slow = gate.route_rate_limit(RateLimits::new(Limit::new("orders", quota).unwrap()).with_clock(stopped));
        let mut orders = OpenApiRouter::<()>::new().routes(routes!(place));
        if self.has_scopes {
            orders = orders.route_layer(trade.clone());
        }
        if self.has_route_limit {
            orders = orders.route_layer(slow.clone());
        }
        let describe = |mut docs: GateDocs, router: &mut OpenApiRouter| {
            if self.has_scopes {
                docs = docs.with_scopes(["place"], &trade);
            }
            if self.has_route_limit {
                docs = docs.with_route_rate_limit(["POST /orders"], &slow);
            }
            docs.apply(router.get_openapi_mut()).unwrap();
        };
        let mut router = OpenApiRouter::new().routes(routes!(list)).merge(orders);
        match self.is_body {
            false => {
                describe(gate.openapi(), &mut router);
                router.route_layer(gate)
            }
            true => {
                let gate = gate.with_body_tokens(body_tokens().with_limit(1_000));
                describe(gate.openapi(), &mut router);
                router.route_layer(gate)
            }
        }
        .split_for_parts()
    }
}

/// The statuses of rejections that a request of a client can cause.
pub fn is_rejection(status: StatusCode) -> bool {
    status.is_client_error() || status.is_server_error()
}
