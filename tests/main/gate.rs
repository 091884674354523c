//! The gate as clients and inner services see it.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderValue, Request, Response, StatusCode, header};
use tollgate::extract::TokenCharset;
use tollgate::limit::RateLimits;
use tollgate::store::{CircuitBreaker, from_fn};
use tollgate::{
    AuthLayer, BoxStore, Charge, CurrentGrant, Decision, EmptyBody, Grant, Limit, MemoryStore, Policy, ProblemDetails,
    Protocol, Quota, RateLimitHeaders, Rejection, RejectionKind, Scopes, StoreError, TokenDigest, TokenLocation,
    Unauthenticated, Verdict,
};
use tower::{Layer, ServiceBuilder, ServiceExt};

use crate::kit::*;

fn limits(burst: u32) -> RateLimits {
    Hands::default().limits(Quota::per_minute(60).with_burst(burst))
}

/// Runs the body with an immediate and a pending store, plain and boxed.
macro_rules! for_each_store {
    (|$layer:ident| $body:expr) => {{
        let timeout = Duration::from_secs(5);
        let $layer = AuthLayer::new(memory());
        $body;
        let $layer = AuthLayer::with_timeout(slow(), timeout);
        $body;
        let $layer = AuthLayer::with_timeout(BoxStore::new(memory()), timeout);
        $body;
        let $layer = AuthLayer::with_timeout(BoxStore::new(slow()), timeout);
        $body;
    }};
}

#[tokio::test]
async fn valid_tokens_reach_the_inner_service_with_their_grant() {
    for_each_store!(|layer| {
        let gate = layer.with_rate_limit(limits(5)).layer(echo());
        let response = send(&gate, with_token(TOKEN)).await;
        assert_eq!(response.status(), 200);
        let current = response.extensions().get::<CurrentGrant>().expect("a grant");
        assert_eq!(current.id().as_str(), "alice");
        assert_eq!(current.location(), TokenLocation::AuthorizationHeader);
        assert_eq!(current.principal::<User>(), Some(&User("Alice")));
        assert_eq!(current.principal::<u8>(), None);
        assert!(current.authenticated::<u8>().is_none());
        let decisions: Vec<_> = current.decisions().map(Decision::remaining).collect();
        assert_eq!(decisions, [4]);
        assert!(response.headers()["authorization"].is_sensitive());
        assert_eq!(field(response.headers(), "ratelimit"), Some("\"default\";r=4;t=1"));
        assert_eq!(field(response.headers(), "ratelimit-policy"), Some("\"default\";q=5;w=5"));
    });
}

#[tokio::test]
async fn rejected_requests_never_reach_the_inner_service() {
    for_each_store!(|layer| {
        let reached = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&reached);
        let inner = tower::service_fn(move |_: Request<Body>| {
            counter.fetch_add(1, Ordering::SeqCst);
            async { Ok::<_, Infallible>(Response::new(Body::default())) }
        });
        let gate = layer.with_rate_limit(limits(1)).layer(inner);
        for (request, status, kind) in [
            (get(), 401, RejectionKind::Missing),
            (with_token("unknown"), 401, RejectionKind::UnknownToken),
            (with_token("not a token"), 401, RejectionKind::MalformedToken),
            (with_token("a, Bearer b"), 400, RejectionKind::InvalidRequest),
        ] {
            let response = send(&gate, request).await;
            assert_eq!(response.status(), status);
            let rejection = response.extensions().get::<Rejection>().expect("a rejection");
            assert_eq!(rejection.kind(), kind);
            assert_eq!(rejection.realm(), Some("api"));
            assert_eq!(response.headers()["cache-control"], "no-store");
        }
        assert_eq!(reached.load(Ordering::SeqCst), 0);
        assert_eq!(send(&gate, with_token(TOKEN)).await.status(), 200);
        let response = send(&gate, with_token(TOKEN)).await;
        assert_eq!(response.status(), 429);
        let rejection = response.extensions().get::<Rejection>().expect("a rejection");
        assert_eq!(rejection.grant().map(|id| id.as_str()), Some("alice"));
        assert_eq!(response.headers()["retry-after"], "1");
        assert!(!response.headers().contains_key("www-authenticate"));
        assert_eq!(reached.load(Ordering::SeqCst), 1);
    });
}

#[tokio::test]
async fn invalid_tokens_get_the_same_response_unless_expired() {
    let now = UNIX_EPOCH + Duration::from_secs(1_000);
    let hour = Duration::from_secs(3_600);
    let tokens = MemoryStore::from_iter([
        (TokenDigest::of("revoked"), Grant::new("revoked", ())),
        (TokenDigest::of("early"), Grant::new("early", ()).with_not_before(now + hour)),
        (TokenDigest::of("bound"), Grant::new("bound", ()).with_sender_constraint()),
        (TokenDigest::of("expired"), Grant::new("expired", ()).with_expiry(now)),
    ]);
    tokens.revoke(TokenDigest::of("revoked"));
    let gate = AuthLayer::new(tokens).with_wall_clock(move || now).layer(echo());

    let mut responses = Vec::new();
    for token in ["never-seen", "revoked", "early", "bound", "mal formed"] {
        let response = send(&gate, with_token(token)).await;
        let seen = (response.status(), format!("{:?}", response.headers()), text(response).await);
        responses.push(seen);
    }
    assert!(responses.windows(2).all(|pair| pair[0] == pair[1]), "{responses:#?}");

    let expired = send(&gate, with_token("expired")).await;
    assert_eq!(expired.extensions().get::<Rejection>().map(Rejection::kind), Some(RejectionKind::ExpiredToken));
    assert_eq!(json(expired).await["detail"], "The token has expired.");
}

#[tokio::test(start_paused = true)]
async fn failing_and_silent_stores_are_503_and_never_401() {
    let failing = from_fn(|_| async { Err::<Option<Grant<()>>, _>(io::Error::other("connection refused")) });
    let silent = from_fn(|_| std::future::pending::<Result<Option<Grant<()>>, Infallible>>());
    let timeout = Duration::from_millis(1_500);

    let gate = AuthLayer::with_timeout(failing, timeout).layer(echo());
    let response = send(&gate, with_token(TOKEN)).await;
    assert_eq!(response.status(), 503);
    assert!(!response.headers().contains_key("www-authenticate"));
    let rejection = response.extensions().get::<Rejection>().unwrap();
    let source = std::error::Error::source(rejection).unwrap().downcast_ref::<StoreError>().unwrap();
    assert_eq!(std::error::Error::source(source).unwrap().to_string(), "connection refused");

    let gate = AuthLayer::with_timeout(silent, timeout).layer(echo());
    let begin = tokio::time::Instant::now();
    let response = send(&gate, with_token(TOKEN)).await;
    assert_eq!(begin.elapsed(), timeout);
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["cache-control"], "no-store");
    assert_eq!(json(response).await["status"], 503);
}

#[tokio::test(start_paused = true)]
async fn a_lookup_that_completes_at_the_timeout_is_used() {
    let timeout = Duration::from_secs(1);
    let punctual = from_fn(move |_| async move {
        tokio::time::sleep(timeout).await;
        Ok::<_, Infallible>(Some(Grant::new("alice", ())))
    });
    let gate = AuthLayer::with_timeout(punctual, timeout).layer(echo());
    assert_eq!(send(&gate, with_token(TOKEN)).await.status(), 200);
}

#[tokio::test]
async fn a_lookup_that_is_always_busy_times_out() {
    const NEVER: Duration = Duration::from_secs(30);
    /// Yields only when tokio forces it to.
    async fn look_up() -> Result<Option<Grant<()>>, Infallible> {
        let free = tokio::sync::Semaphore::new(1);
        loop {
            _ = free.acquire().await;
        }
    }
    let timeout = Duration::from_millis(20);
    let busy = from_fn(|_| look_up());
    let breaker = CircuitBreaker::with_timeout(busy, timeout);
    for (store, timeout) in [(BoxStore::new(busy), timeout), (BoxStore::new(breaker), 2 * NEVER)] {
        let gate = AuthLayer::with_timeout(store, timeout).layer(echo());
        let response = tokio::time::timeout(NEVER, send(&gate, with_token(TOKEN))).await.expect("no timeout");
        assert_eq!(response.status(), 503);
    }
}

#[tokio::test]
async fn errors_of_the_inner_service_pass() {
    let gate = AuthLayer::new(memory())
        .layer(tower::service_fn(|_: Request<Body>| async { Err::<Response<Body>, _>(io::Error::other("inner")) }));
    assert_eq!(gate.oneshot(with_token(TOKEN)).await.unwrap_err().to_string(), "inner");
}

#[tokio::test]
async fn responses_of_the_inner_service_pass_unchanged() {
    let inner = tower::service_fn(|_: Request<Body>| async {
        let response = Response::builder()
            .status(401)
            .header("www-authenticate", "Basic realm=\"inner\"")
            .header("cache-control", "public, max-age=60")
            .body(Body::from("inner"))
            .unwrap();
        Ok::<_, Infallible>(response)
    });
    let gate = AuthLayer::new(memory()).layer(inner);
    let response = send(&gate, with_token(TOKEN)).await;
    assert_eq!(response.status(), 401);
    assert_eq!(response.headers()["www-authenticate"], "Basic realm=\"inner\"");
    assert_eq!(response.headers()["cache-control"], "public, max-age=60");
    assert_eq!(text(response).await, "inner");
}

#[tokio::test]
async fn only_cors_preflights_bypass_authentication() {
    let layer = AuthLayer::new(memory()).with_rate_limit(limits(1));
    let gate = layer.clone().layer(echo());
    let mut with_secret = preflight();
    with_secret.headers_mut().insert("authorization", HeaderValue::from_static("Bearer secret"));
    for request in [preflight(), preflight(), with_secret] {
        let response = send(&gate, request).await;
        assert_eq!(response.status(), 200);
        assert_eq!(Unauthenticated::from_extensions(response.extensions()), Some(Unauthenticated::Preflight));
        assert!(response.extensions().get::<CurrentGrant>().is_none());
        assert!(!response.headers().contains_key("authorization"), "credentials in a preflight are removed");
        assert!(!response.headers().contains_key("ratelimit"));
    }

    let mut no_origin = preflight();
    no_origin.headers_mut().remove("origin");
    let mut no_method = preflight();
    no_method.headers_mut().remove("access-control-request-method");
    let mut no_options = preflight();
    *no_options.method_mut() = http::Method::POST;
    for request in [no_origin, no_method, no_options] {
        assert_eq!(send(&gate, request).await.status(), 401);
    }
    let strict = layer.without_preflight_bypass().layer(echo());
    assert_eq!(send(&strict, preflight()).await.status(), 401);
}

#[tokio::test]
async fn anonymous_access_still_rejects_invalid_credentials() {
    for_each_store!(|layer| {
        let gate = layer.allow_anonymous().with_rate_limit(limits(1)).layer(echo());
        for _ in 0..3 {
            let response = send(&gate, get()).await;
            assert_eq!(response.status(), 200);
            assert_eq!(Unauthenticated::from_extensions(response.extensions()), Some(Unauthenticated::Anonymous));
            assert!(!response.headers().contains_key("ratelimit"), "anonymous callers are not limited by default");
        }
        assert_eq!(send(&gate, with_token("unknown")).await.status(), 401);
        assert_eq!(send(&gate, with_token("mal formed")).await.status(), 401);
        assert_eq!(send(&gate, with_token("a,b")).await.status(), 400);
        assert!(send(&gate, with_token(TOKEN)).await.extensions().get::<CurrentGrant>().is_some());
    });
}

#[tokio::test]
async fn anonymous_callers_can_have_a_policy() {
    let limit = Limit::from(Quota::per_minute(60).with_burst(5));
    let limits = Hands::default().limits(limit.with_anonymous(Quota::per_minute(60).with_burst(2)));
    let gate = AuthLayer::new(memory()).allow_anonymous().with_rate_limit(limits).layer(echo());
    let first = send(&gate, get()).await;
    assert_eq!(first.headers()["ratelimit"], "\"anonymous\";r=1;t=1");
    assert_eq!(send(&gate, get()).await.status(), 200);
    let third = send(&gate, get()).await;
    assert_eq!(third.status(), 429);
    assert_eq!(json(third).await["violated-policies"], serde_json::json!(["anonymous"]));
    // The bucket of an authenticated caller is not charged.
    assert_eq!(send(&gate, with_token(TOKEN)).await.headers()["ratelimit"], "\"default\";r=4;t=1");
}

#[tokio::test]
async fn the_authorization_header_can_be_removed() {
    let gate = AuthLayer::new(memory()).with_credentials_removed().layer(echo());
    let response = send(&gate, with_token(TOKEN)).await;
    assert_eq!(response.status(), 200);
    assert!(!response.headers().contains_key("authorization"));
    // Credentials of another scheme are not removed, but marked sensitive.
    let optional = AuthLayer::new(memory()).with_credentials_removed().allow_anonymous().layer(echo());
    let mut basic = get();
    basic.headers_mut().insert("authorization", HeaderValue::from_static("Basic Zm9v"));
    let response = send(&optional, basic).await;
    assert_eq!(
        (response.status(), &response.headers()["authorization"]),
        (StatusCode::OK, &"Basic Zm9v".parse().unwrap())
    );
    assert!(response.headers()["authorization"].is_sensitive());
}

#[tokio::test]
async fn the_token_syntax_is_a_setting() {
    let tokens = MemoryStore::from_iter([(TokenDigest::of("secret-token:E92FB7EB"), Grant::new("alice", ()))]);
    let strict = AuthLayer::new(tokens.clone()).layer(echo());
    assert_eq!(send(&strict, with_token("secret-token:E92FB7EB")).await.status(), 401);
    let lenient = AuthLayer::new(tokens.clone()).with_charset(TokenCharset::Lenient).layer(echo());
    assert_eq!(send(&lenient, with_token("secret-token:E92FB7EB")).await.status(), 200);
    let short = AuthLayer::new(tokens).with_charset(TokenCharset::Lenient).with_max_token_len(20).layer(echo());
    assert_eq!(send(&short, with_token("secret-token:E92FB7EB")).await.status(), 401);
}

#[tokio::test]
async fn missing_scopes_are_rejected_with_the_realm_of_the_gate() {
    let tokens = MemoryStore::from_iter([
        (TokenDigest::of("both"), Grant::new("both", ()).with_scopes(["read", "write"]).unwrap()),
        (TokenDigest::of("read"), Grant::new("read", ()).with_scopes(["read"]).unwrap()),
        (TokenDigest::of("none"), Grant::new("none", ())),
    ]);
    let gate = AuthLayer::new(tokens).with_realm("trading").unwrap().allow_anonymous();
    let all = gate.clone().layer(gate.require_scopes(["read", "write"]).unwrap().layer(echo()));
    let any = gate.clone().layer(gate.require_any_scope(["read", "write"]).unwrap().layer(echo()));
    for (token, of_all, of_any) in [("both", 200, 200), ("read", 403, 200), ("none", 403, 403)] {
        assert_eq!(send(&all, with_token(token)).await.status(), of_all, "{token}");
        assert_eq!(send(&any, with_token(token)).await.status(), of_any, "{token}");
    }
    let rejected = send(&all, with_token("read")).await;
    assert_eq!(
        rejected.headers()["www-authenticate"],
        r#"Bearer realm="trading", error="insufficient_scope", scope="read write""#
    );
    let rejection = rejected.extensions().get::<Rejection>().unwrap();
    assert_eq!(rejection.grant().map(|id| id.as_str()), Some("read"));
    assert_eq!(rejection.required_scopes(), Some(&Scopes::new(["read", "write"]).unwrap()));

    let anonymous = send(&all, get()).await;
    assert_eq!(anonymous.status(), 401);
    assert_eq!(anonymous.headers()["www-authenticate"], r#"Bearer realm="trading", scope="read write""#);
    assert_eq!(send(&all, preflight()).await.status(), 200);

    let forgotten = gate.require_scopes(["read"]).unwrap().layer(echo());
    let response = send(&forgotten, with_token("both")).await;
    assert_eq!(response.status(), 500);
    assert!(json(response).await["detail"].as_str().unwrap().contains("forgot to add `AuthLayer`"));
    assert!(gate.require_scopes([""; 0]).is_err());
    assert!(gate.require_scopes(["a b"]).is_err());
}

#[tokio::test]
async fn headers_list_the_policies_of_the_gate_and_the_route() {
    let hands = Hands::default();
    let clock = hands.clone();
    let orders = RateLimits::new(Limit::new("orders", Quota::per_second(1).with_burst(2)).unwrap())
        .with_clock(move || Duration::from_nanos(clock.ns()));
    let gate = AuthLayer::new(memory()).with_rate_limit(limits(5));
    let inner = gate.route_rate_limit(orders);
    let service = ServiceBuilder::new().layer(gate.clone()).layer(inner.clone()).service(echo());

    let response = send(&service, with_token(TOKEN)).await;
    assert_eq!(response.headers()["ratelimit"], "\"default\";r=4;t=1, \"orders\";r=1;t=1");
    assert_eq!(response.headers()["ratelimit-policy"], "\"default\";q=5;w=5, \"orders\";q=2;w=2");
    let current = response.extensions().get::<CurrentGrant>().unwrap();
    let policies: Vec<_> = current.decisions().map(|decision| decision.policy().unwrap().name().to_owned()).collect();
    assert_eq!(policies, ["default", "orders"]);

    send(&service, with_token(TOKEN)).await;
    let rejected = send(&service, with_token(TOKEN)).await;
    assert_eq!(rejected.status(), 429);
    assert_eq!(rejected.headers()["ratelimit"], "\"default\";r=2;t=1, \"orders\";r=0;t=1");
    assert_eq!(rejected.extensions().get::<Rejection>().unwrap().grant().unwrap().as_str(), "alice");
    assert_eq!(json(rejected).await["violated-policies"], serde_json::json!(["orders"]));

    assert_eq!(send(&service, preflight()).await.status(), 200);
    assert_eq!(send(&inner.layer(echo()), with_token(TOKEN)).await.status(), 500);
}

/// A gate and a handler behind it charge one bucket. The list has one item for each policy, with the remaining units in the end.
#[tokio::test]
async fn each_policy_is_listed_once_with_its_last_decision() {
    let (limits, names) = (limits(5), [r#""default""#, r#"def"ault\"#, "default, x", "orders"]);
    for name in names {
        let orders = Limit::new(name, Quota::per_second(1).with_burst(2)).unwrap();
        let orders = RateLimits::new(orders).with_clock(|| Duration::ZERO);
        let gate = AuthLayer::new(memory()).with_rate_limit(orders.clone());
        let (own, limits) = (gate.clone(), limits.clone());
        let handler = tower::service_fn(move |request: Request<Body>| {
            let mut response = Response::new(Body::default());
            let current = request.extensions().get::<CurrentGrant>().unwrap();
            own.advertise(&limits.charge(current, Charge::Units(0)), response.headers_mut());
            own.advertise(&orders.charge(current, Charge::Units(1)), response.headers_mut());
            std::future::ready(Ok::<_, Infallible>(response))
        });
        let response = send(&gate.layer(handler), with_token(TOKEN)).await;
        for (field, own, others) in
            [("ratelimit", "r=0;t=1", r#""default";r=5;t=0"#), ("ratelimit-policy", "q=2;w=2", r#""default";q=5;w=5"#)]
        {
            let escaped = name.replace('\\', "\\\\").replace('"', "\\\"");
            let expected = format!(r#""{escaped}";{own}, {others}"#);
            assert_eq!(response.headers().get_all(field).iter().collect::<Vec<_>>(), [expected.as_str()], "{name}");
        }
    }
}

/// The inner service may write an older dialect, or invalid items. The list of the gate must stay valid.
#[tokio::test]
async fn invalid_items_of_the_inner_service_are_removed_from_the_list() {
    let gate = AuthLayer::new(memory()).with_rate_limit(limits(5));
    let written = [("ratelimit", "limit=20, remaining=19, reset=1"), ("ratelimit-policy", "20;w=7, \"own\";q=1")];
    let handler = tower::service_fn(move |_: Request<Body>| {
        let mut response = Response::new(Body::default());
        for (name, value) in written {
            response.headers_mut().append(name, HeaderValue::from_static(value));
        }
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let response = send(&gate.layer(handler), with_token(TOKEN)).await;
    assert_eq!(response.headers()["ratelimit"], r#""default";r=4;t=1"#);
    assert_eq!(response.headers()["ratelimit-policy"], r#""default";q=5;w=5, "own";q=1"#);
}

#[tokio::test]
async fn single_policy_dialects_advertise_the_more_restrictive_policy() {
    for (dialect, remaining, expected) in [
        (RateLimitHeaders::Draft03, "ratelimit-remaining", "2"),
        (RateLimitHeaders::Draft06, "ratelimit-remaining", "2"),
        (RateLimitHeaders::Draft07, "ratelimit", "limit=3, remaining=2, reset=1"),
        (RateLimitHeaders::XDelta, "x-ratelimit-remaining", "2"),
        (RateLimitHeaders::XEpoch, "x-ratelimit-remaining", "2"),
    ] {
        for (outer, inner) in [(3, 9), (9, 3)] {
            let gate = AuthLayer::new(memory()).with_rate_limit_headers(dialect).with_rate_limit(limits(outer));
            let service = gate.clone().layer(gate.route_rate_limit(limits(inner)).layer(echo()));
            let response = send(&service, with_token(TOKEN)).await;
            assert_eq!(field(response.headers(), remaining), Some(expected), "{dialect:?} {outer} {inner}");
            assert_eq!(response.headers().get_all(remaining).iter().count(), 1);
        }
    }
    // With equal remaining units, the inner policy.
    let gate = AuthLayer::new(memory()).with_rate_limit_headers(RateLimitHeaders::Draft07).with_rate_limit(limits(3));
    let slower = Hands::default().limits(Quota::per_minute(1).with_burst(3));
    let response = send(&gate.clone().layer(gate.route_rate_limit(slower).layer(echo())), with_token(TOKEN)).await;
    assert_eq!(response.headers()["ratelimit"], "limit=3, remaining=2, reset=60");
}

#[tokio::test]
async fn off_sends_no_ratelimit_headers() {
    let gate = AuthLayer::new(memory()).with_rate_limit_headers(RateLimitHeaders::Off).with_rate_limit(limits(1));
    let service = gate.layer(echo());
    let limited = |name: &http::HeaderName| name.as_str().contains("ratelimit");
    let response = send(&service, with_token(TOKEN)).await;
    assert!(!response.headers().keys().any(limited));
    let response = send(&service, with_token(TOKEN)).await;
    assert_eq!(
        (response.status(), &response.headers()["retry-after"]),
        (StatusCode::TOO_MANY_REQUESTS, &"1".parse().unwrap())
    );
    assert!(!response.headers().keys().any(limited));
}

#[tokio::test]
async fn costs_are_charged_and_impossible_ones_are_told() {
    let limit = Limit::from(Quota::per_minute(60).with_burst(5)).with_cost(|head| match head.uri.path() {
        "/free" => 0,
        "/huge" => 6,
        _ => 2,
    });
    let limits = Hands::default().limits(limit);
    let service = AuthLayer::new(memory()).with_rate_limit(limits).layer(echo());
    let at = |path: &'static str| {
        let mut request = with_token(TOKEN);
        *request.uri_mut() = path.parse().unwrap();
        request
    };
    assert_eq!(send(&service, at("/")).await.headers()["ratelimit"], "\"default\";r=3;t=1");
    assert_eq!(send(&service, at("/free")).await.headers()["ratelimit"], "\"default\";r=3;t=1");
    let huge = send(&service, at("/huge")).await;
    assert_eq!(huge.status(), 400);
    assert!(!huge.headers().contains_key("retry-after"));
    assert!(!huge.headers().contains_key("www-authenticate"));
    assert_eq!(huge.headers()["cache-control"], "no-store");
    assert_eq!(huge.headers()["ratelimit"], "\"default\";r=3;t=1", "a cheaper request may still use the units");
    assert_eq!(huge.extensions().get::<Rejection>().unwrap().kind(), RejectionKind::CostAboveBurst);
    assert!(json(huge).await["detail"].as_str().unwrap().contains("more than the rate limit can ever allow"));
    assert_eq!(send(&service, at("/free")).await.headers()["ratelimit"], "\"default\";r=3;t=1");
}

#[tokio::test]
async fn grpc_requests_are_rejected_with_a_grpc_status() {
    let gate = AuthLayer::new(memory()).with_rate_limit(limits(1));
    let service = gate.clone().layer(gate.require_scopes(["trade"]).unwrap().layer(echo()));
    let grpc = |content_type: &'static str, token: Option<&str>| {
        let mut request = token.map_or_else(get, with_token);
        request.headers_mut().insert("content-type", HeaderValue::from_static(content_type));
        request
    };
    for (request, status) in [
        (grpc("application/grpc", None), "16"),
        (grpc("application/grpc+proto", Some("unknown")), "16"),
        (grpc("application/grpc;x=y", Some(TOKEN)), "7"),
        (grpc("Application/gRPC", Some(TOKEN)), "8"),
        // White space around a value is not part of it, but some servers do not strip it.
        (grpc(" \tapplication/grpc", None), "16"),
        (grpc("application/grpc\t", None), "16"),
        (grpc("application/grpc ; x=y", None), "16"),
    ] {
        let response = send(&service, request).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/grpc");
        assert_eq!(response.headers()["grpc-status"], status);
        assert_eq!(response.headers()["cache-control"], "no-store", "caches see a response to a GET");
        assert_eq!(response.extensions().get::<Rejection>().unwrap().protocol(), Protocol::Grpc);
        assert_eq!(text(response).await, "");
    }
    for other in ["application/grpcx", "application/grpc-webx", "application/connect", "application/json", "grpc", ""] {
        assert_eq!(send(&service, grpc(other, None)).await.status(), 401, "{other}");
    }
}

#[tokio::test]
async fn responders_can_be_chosen() {
    let no_body = AuthLayer::new(memory()).with_responder(EmptyBody).layer(echo());
    assert_eq!(text(send(&no_body, get()).await).await, "");

    let mapped = AuthLayer::new(memory()).with_responder(ProblemDetails.map_body(Body::new)).layer(echo());
    assert_eq!(json(send(&mapped, get()).await).await["status"], 401);

    let closure = AuthLayer::new(memory())
        .with_response_fn(|rejection| {
            let mut response = Response::new(Body::from(rejection.to_string()));
            *response.status_mut() = StatusCode::IM_A_TEAPOT;
            response
        })
        .with_rate_limit(limits(1))
        .layer(echo());
    let response = send(&closure, get()).await;
    assert_eq!(response.status(), 418);
    assert!(response.extensions().get::<Rejection>().is_some(), "every responder");
    assert_eq!(text(response).await, "This resource requires a token. The request has none.");

    let shared: Arc<dyn tollgate::respond::Respond<Body>> = Arc::new(ProblemDetails);
    let erased = AuthLayer::new(memory()).with_responder(shared).layer(echo());
    assert_eq!(send(&erased, get()).await.status(), 401);
}

/// The gate adds missing header fields, and keeps the values of the responder.
#[tokio::test]
async fn required_fields_are_added_to_responses_of_any_responder() {
    const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
    const BEARER: HeaderValue = HeaderValue::from_static("Bearer realm=\"trading\"");
    let respond = |status: u16, fields: &'static [(&str, &str)]| {
        let gate = AuthLayer::new(memory()).with_realm("trading").unwrap().with_response_fn(move |_| {
            let mut response = Response::new(Body::default());
            *response.status_mut() = StatusCode::from_u16(status).unwrap();
            for &(name, value) in fields {
                response.headers_mut().append(name, HeaderValue::from_static(value));
            }
            response
        });
        async move { send(&gate.layer(echo()), get()).await.headers().clone() }
    };
    let (cache, challenge) = ("cache-control", "www-authenticate");
    let headers = respond(401, &[]).await;
    assert_eq!((&headers[cache], &headers[challenge]), (&NO_STORE, &BEARER));
    let headers = respond(404, &[]).await;
    assert_eq!((&headers[cache], headers.get(challenge)), (&NO_STORE, None));
    // A responder may write 401 for a rejection that has no challenge of its own.
    let gate = AuthLayer::new(memory()).with_realm("trading").unwrap().require_https(|_| false);
    let gate = gate.with_response_fn(|_| {
        let mut response = Response::new(Body::default());
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        response
    });
    assert_eq!(send(&gate.layer(echo()), get()).await.headers()[challenge], BEARER);
    let headers = respond(401, &[("cache-control", "max-age=5"), ("www-authenticate", "Basic")]).await;
    assert_eq!(values(&headers, cache), ["max-age=5"]);
    assert_eq!(values(&headers, challenge), ["Basic"]);
}

/// An `Arc` of a responder calls the responder's own `reject`.
#[tokio::test]
async fn responders_can_override_reject() {
    struct Numbered;
    impl tollgate::respond::Respond<Body> for Numbered {
        fn respond(&self, rejection: &Rejection) -> Response<Body> {
            EmptyBody.respond(rejection)
        }
        fn reject(&self, rejection: Rejection) -> Response<Body> {
            let mut response = self.respond(&rejection);
            response.headers_mut().insert("x-request-id", HeaderValue::from_static("17"));
            response
        }
    }
    let once = AuthLayer::new(memory()).with_responder(Numbered).layer(echo());
    assert_eq!(send(&once, get()).await.headers()["x-request-id"], "17");
    let twice = AuthLayer::new(memory()).with_responder(Arc::new(Numbered)).layer(echo());
    assert_eq!(send(&twice, get()).await.headers()["x-request-id"], "17");
}

#[tokio::test]
async fn limiters_can_be_pending() {
    /// A limiter whose buckets are on another machine.
    struct Remote(RateLimits);

    impl tollgate::Limiter for Remote {
        type Future = std::pin::Pin<Box<dyn Future<Output = Decision> + Send>>;

        fn charge(&self, grant: &CurrentGrant, _: Charge<'_>) -> tollgate::Answer<Self::Future> {
            let (limits, grant) = (self.0.clone(), grant.clone());
            tollgate::Answer::Pending(Box::pin(async move {
                tokio::task::yield_now().await;
                limits.charge(&grant, ONE)
            }))
        }
    }

    for_each_store!(|layer| {
        let outer = layer.with_rate_limit(Remote(limits(2)));
        let inner = outer.route_rate_limit(Remote(limits(1)));
        let service = outer.layer(inner.layer(echo()));
        let first = send(&service, with_token(TOKEN)).await;
        assert_eq!(first.status(), 200);
        assert_eq!(first.extensions().get::<CurrentGrant>().unwrap().decisions().count(), 2);
        assert_eq!(send(&service, with_token(TOKEN)).await.status(), 429);
        assert_eq!(send(&service, with_token(TOKEN)).await.status(), 429);
    });
}

#[tokio::test]
async fn custom_limiters_decide_without_governor() {
    struct NoSeconds(Policy);

    impl tollgate::Limiter for NoSeconds {
        type Future = tollgate::Immediate<Decision>;

        fn charge(&self, grant: &CurrentGrant, _: Charge<'_>) -> tollgate::Answer<Self::Future> {
            let second = grant.id().as_str().ends_with("-2");
            let verdict = if second { Verdict::OverLimit } else { Verdict::Admitted };
            let (more, full) = (Duration::from_millis(1_001), Duration::from_secs(9));
            tollgate::Answer::Ready(Decision::new(self.0.clone(), verdict, 99, more, full))
        }
    }

    let policy = Policy::new("odd \"only\"", Quota::per_second(7)).unwrap();
    let service = AuthLayer::new(memory()).with_rate_limit(NoSeconds(policy)).layer(echo());
    let admitted = send(&service, with_token(TOKEN)).await;
    assert_eq!(
        admitted.headers()["ratelimit"],
        r#""odd \"only\"";r=7;t=2"#,
        "remaining is at most the quota of the policy"
    );
    let rejected = send(&service, with_token("tg_another_token_of_alice")).await;
    assert_eq!(rejected.headers()["retry-after"], "2");
    assert_eq!(json(rejected).await["violated-policies"], serde_json::json!(["odd \"only\""]));
}

#[tokio::test]
async fn handlers_reject_with_the_realm_of_the_gate() {
    let gate = AuthLayer::new(memory()).with_realm("trading").unwrap();
    let step_up = || Rejection::insufficient_user_authentication(["myACR", "other"], Some(Duration::from_secs(5)));
    let response: Response<Body> = gate.reject(step_up().unwrap());
    assert_eq!(response.status(), 401);
    assert_eq!(
        response.headers()["www-authenticate"],
        r#"Bearer realm="trading", error="insufficient_user_authentication", acr_values="myACR other", max_age="5""#
    );
    assert!(Rejection::insufficient_user_authentication(["a b"], None).is_err());

    let response: Response<Body> = gate.reject(step_up().unwrap().with_protocol(Protocol::Grpc));
    assert_eq!((response.status(), &response.headers()["grpc-status"]), (StatusCode::OK, &"16".parse().unwrap()));
    assert_eq!(response.extensions().get::<Rejection>().unwrap().realm(), Some("trading"));
}

#[tokio::test]
async fn settings_apply_in_any_order_and_not_to_earlier_clones() {
    let first = AuthLayer::new(memory()).with_realm("first").unwrap();
    let second = first.clone().with_rate_limit(limits(3)).with_realm("second").unwrap().with_responder(EmptyBody);
    let metadata = "https://api.example/.well-known/oauth-protected-resource";
    let third = second.clone().with_resource_metadata(metadata).unwrap();
    for (challenge, value) in [
        (send(&first.layer(echo()), get()).await, "Bearer realm=\"first\"".to_owned()),
        (send(&second.layer(echo()), get()).await, "Bearer realm=\"second\"".to_owned()),
        (send(&third.layer(echo()), get()).await, format!("Bearer realm=\"second\", resource_metadata=\"{metadata}\"")),
    ] {
        assert_eq!(challenge.headers()[header::WWW_AUTHENTICATE], value);
    }
}

#[tokio::test]
async fn epoch_headers_use_the_wall_clock() {
    let gate = AuthLayer::new(memory())
        .with_wall_clock(|| SystemTime::UNIX_EPOCH + Duration::from_millis(1_000_500))
        .with_rate_limit_headers(RateLimitHeaders::XEpoch)
        .with_rate_limit(limits(3));
    let response = send(&gate.layer(echo()), with_token(TOKEN)).await;
    // The bucket is full 1 s after 1000.5 s, rounded up.
    assert_eq!(response.headers()["x-ratelimit-reset"], "1002");
}

#[tokio::test]
async fn an_inner_gate_authenticates_again() {
    let outer = AuthLayer::new(memory());
    let inner = AuthLayer::new(memory()).allow_anonymous();
    let hidden = outer.clone().with_credentials_removed();
    for (around, anonymous) in [(outer, false), (hidden, true)] {
        let response = send(&around.layer(inner.layer(echo())), with_token(TOKEN)).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.extensions().get::<CurrentGrant>().is_none(), anonymous);
    }
}
