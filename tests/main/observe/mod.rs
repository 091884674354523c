//! Metrics and events: each rejection, admission, charge and lookup is reported once, and no report contains a secret.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use base64::prelude::{BASE64_STANDARD, BASE64_STANDARD_NO_PAD, BASE64_URL_SAFE_NO_PAD, Engine as _};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use tollgate::gate::BodyTokens;
use tollgate::limit::FailureThrottle;
use tollgate::store::from_fn;
use tollgate::{
    AuthLayer, Charge, CurrentGrant, Decision, Grant, Immediate, Limiter, MemoryStore, Quota, RateLimits, Rejection,
    TokenDigest,
};
use tower::{Layer, Service};

use crate::kit::*;

#[cfg(feature = "tracing")]
mod events;
#[cfg(feature = "metrics")]
mod numbers;
#[cfg(feature = "metrics")]
mod page;
#[cfg(feature = "metrics")]
mod recorders;
#[cfg(feature = "tracing")]
#[path = "../../subscribers.rs"]
mod subscribers;

type Answer = Pin<Box<dyn Future<Output = Response<Body>>>>;

/// A rejected request, and the expected report.
pub struct Case {
    pub kind: &'static str,
    pub grpc: bool,
    pub grant: Option<&'static str>,
    pub policy: Option<&'static str>,
    pub retry_after_s: Option<u64>,
    pub error: Option<&'static str>,
    pub answer: Answer,
}

impl Case {
    fn new(kind: &'static str, answer: impl Future<Output = Response<Body>> + 'static) -> Self {
        let answer = Box::pin(answer);
        Self { kind, grpc: false, grant: None, policy: None, retry_after_s: None, error: None, answer }
    }

    fn of(self, grant: &'static str) -> Self {
        Self { grant: Some(grant), ..self }
    }
}

fn gate(grant: Grant<()>) -> AuthLayer<MemoryStore<()>> {
    AuthLayer::new(MemoryStore::from_iter([(TokenDigest::of(TOKEN), grant)]))
}

fn alice() -> Grant<()> {
    Grant::new("alice", ())
}

/// Sends a request with these `Authorization` lines to a gate that knows this grant.
async fn to(grant: Grant<()>, lines: &'static [&'static str]) -> Response<Body> {
    let mut request = get();
    for line in lines {
        request.headers_mut().append("authorization", line.replace("TOKEN", TOKEN).parse().unwrap());
    }
    send(&gate(grant).layer(echo()), request).await
}

/// Sends a webhook whose body has these frames and no end.
async fn webhook(frames: Vec<Result<&'static str, &'static str>>) -> Response<Body> {
    use futures_util::StreamExt as _;

    let body_tokens = BodyTokens::with_timeout(Duration::from_millis(20)).with_json("key").unwrap().with_limit(64);
    let service = gate(alice())
        .with_body_tokens(body_tokens)
        .layer(tower::service_fn(|_| async { Ok::<_, Infallible>(Response::new(Body::default())) }));
    let frames =
        frames.into_iter().map(|frame| frame.map(|text| Frame::data(Bytes::from(text.replace("TOKEN", TOKEN)))));
    let body = StreamBody::new(futures_util::stream::iter(frames).chain(futures_util::stream::pending()));
    answer_to(service, Request::post("/").header("content-type", "application/json").body(body).unwrap()).await
}

async fn answer_to<S, B>(mut service: S, request: Request<B>) -> Response<Body>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
{
    service.call(request).await.unwrap_or_else(|never| match never {})
}

async fn over(limits: RateLimits, requests: usize) -> Response<Body> {
    let service = gate(alice()).with_rate_limit(limits).layer(echo());
    for _ in 1..requests {
        send(&service, with_token(TOKEN)).await;
    }
    send(&service, with_token(TOKEN)).await
}

/// Fails once at another gate, without a report.
async fn failed_once(failures: &FailureThrottle) {
    #[cfg(feature = "tracing")]
    let _no_subscriber = subscribers::set_subscriber(tracing::subscriber::NoSubscriber::new());
    #[cfg(feature = "metrics")]
    let no_recorder = metrics::NoopRecorder;
    #[cfg(feature = "metrics")]
    let _not_recorded = metrics::set_default_local_recorder(&no_recorder);
    let gate = AuthLayer::new(MemoryStore::<()>::new()).with_failure_throttle(failures.clone());
    assert_eq!(send(&gate.layer(echo()), with_token(TOKEN)).await.status(), 401);
}

/// A limiter whose server does not answer.
struct Unavailable;

impl Limiter for Unavailable {
    type Future = Immediate<Decision>;

    fn charge(&self, _: &CurrentGrant, _: Charge<'_>) -> tollgate::Answer<Self::Future> {
        tollgate::Answer::Ready(Decision::unavailable(Duration::from_secs(2)))
    }
}

/// Returns one case for each kind. All credentials are [`TOKEN`].
pub fn cases() -> Vec<Case> {
    let (past, future) = (SystemTime::UNIX_EPOCH, SystemTime::now() + Duration::from_secs(3_600));
    let limit = |name| tollgate::Limit::new(name, Quota::per_minute(1)).unwrap();
    let limits = |limit: tollgate::Limit| RateLimits::new(limit).with_clock(|| Duration::ZERO);
    let failing = || from_fn(|_| async { Err::<Option<Grant<()>>, _>(std::io::Error::other("connection reset")) });
    let waiting = AuthLayer::with_timeout(failing(), Duration::from_secs(1));
    vec![
        Case::new("missing", to(alice(), &[])),
        Case {
            grpc: true,
            ..Case::new("missing", async {
                let request = Request::get("/").header("content-type", "application/grpc").body(Body::default());
                send(&gate(alice()).layer(echo()), request.unwrap()).await
            })
        },
        Case::new("malformed_token", to(alice(), &["Bearer TOKEN TOKEN"])),
        Case::new("unknown_token", async {
            send(&AuthLayer::new(MemoryStore::<()>::new()).layer(echo()), with_token(TOKEN)).await
        }),
        Case::new("not_yet_valid", to(alice().with_not_before(future), &["Bearer TOKEN"])).of("alice"),
        Case::new("expired_token", to(alice().with_expiry(past), &["Bearer TOKEN"])).of("alice"),
        Case::new("sender_constrained", to(alice().with_sender_constraint(), &["Bearer TOKEN"])).of("alice"),
        Case::new("invalid_request", to(alice(), &["Bearer TOKEN", "Bearer TOKEN"])),
        Case::new("https_required", async {
            send(&gate(alice()).require_https(tollgate::gate::is_https).layer(echo()), with_token(TOKEN)).await
        })
        .of("alice"),
        Case::new("insufficient_scope", async {
            let gate = gate(alice());
            send(&gate.layer(gate.require_scopes(["trade"]).unwrap().layer(echo())), with_token(TOKEN)).await
        })
        .of("alice"),
        Case::new("insufficient_user_authentication", async {
            let step_up = Rejection::insufficient_user_authentication(["myACR"], None).unwrap();
            gate(alice()).reject(step_up.of_grant(alice().id()))
        })
        .of("alice"),
        Case {
            retry_after_s: Some(3_600),
            ..Case::new("too_many_failures", async {
                let failures =
                    FailureThrottle::new(Quota::per_hour(1), |_| Some("a peer")).with_clock(|| Duration::ZERO);
                // The first failure is not throttled. It is not reported, because the tests expect one report for each case.
                failed_once(&failures).await;
                let gate = AuthLayer::new(MemoryStore::<()>::new()).with_failure_throttle(failures);
                send(&gate.layer(echo()), with_token(TOKEN)).await
            })
        },
        Case {
            policy: Some("orders, all"),
            retry_after_s: Some(60),
            ..Case::new("over_limit", over(limits(limit("orders")).and(limit("all")).unwrap(), 2)).of("alice")
        },
        Case {
            policy: Some("orders"),
            retry_after_s: Some(60),
            ..Case::new("over_limit", over(limits(limit("orders")), 2)).of("alice")
        },
        Case {
            policy: Some("orders"),
            ..Case::new("cost_above_burst", over(limits(limit("orders").with_cost(|_| 2)), 1)).of("alice")
        },
        Case::new(
            "body_too_large",
            webhook(vec![Ok(r#"{"key": "TOKEN", "and": "more than sixty-four bytes of it"}"#)]),
        ),
        Case::new("body_unreadable", webhook(vec![Ok(r#"{"key": "TOKEN"}"#), Err("it broke off")])),
        Case::new("body_timeout", webhook(vec![Ok(r#"{"key": "TOKEN"}"#)])),
        Case {
            retry_after_s: Some(1),
            error: Some("connection reset"),
            ..Case::new("store_unavailable", async move { send(&waiting.layer(echo()), with_token(TOKEN)).await })
        },
        Case {
            retry_after_s: Some(2),
            ..Case::new("limiter_unavailable", async {
                send(&gate(alice()).with_rate_limit(Unavailable).layer(echo()), with_token(TOKEN)).await
            })
            .of("alice")
        },
        Case::new("misconfigured", async {
            let limits = RateLimits::new(Quota::per_minute(1));
            send(&gate(alice()).route_rate_limit(limits).layer(echo()), with_token(TOKEN)).await
        }),
    ]
}

/// Returns the rows of the table in OBSERVE.md whose first column has this header.
fn table(first: &str) -> Vec<Vec<String>> {
    const PAGE: &str = include_str!("../../../OBSERVE.md");

    let rows = PAGE.lines().skip_while(|line| !line.starts_with(&format!("| {first} |"))).skip(2);
    let rows: Vec<Vec<String>> = rows
        .take_while(|line| line.starts_with('|'))
        .map(|line| line.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect())
        .collect();
    assert!(!rows.is_empty(), "OBSERVE.md has no table of `{first}`");
    rows
}

/// Returns the texts between backticks.
fn quoted(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Returns the level and status of each kind of rejection, from OBSERVE.md.
fn kinds() -> BTreeMap<String, (String, u16)> {
    let row = |row: Vec<String>| {
        let (level, status) = (row[1].clone(), row[2].parse().unwrap());
        quoted(&row[0]).into_iter().map(move |kind| (kind, (level.clone(), status)))
    };
    table("kind").into_iter().flat_map(row).collect()
}

/// Panics if the text contains the token, a part of it, or its digest, in any encoding.
fn assert_clean(text: &str) {
    let digest = TokenDigest::of(TOKEN).to_bytes();
    let hex = digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let list = |bytes: &[u8]| format!("{bytes:?}").trim_matches(['[', ']']).to_owned();
    let secrets = [
        TOKEN[3..].to_owned(),
        hex.to_uppercase(),
        hex,
        BASE64_STANDARD_NO_PAD.encode(digest),
        BASE64_URL_SAFE_NO_PAD.encode(digest),
        BASE64_STANDARD.encode(TOKEN).trim_end_matches('=').to_owned(),
        list(&digest),
        list(TOKEN.as_bytes()),
    ];
    for secret in secrets {
        assert!(!text.contains(&secret), "the report contains {secret}:\n{text}");
    }
}

#[test]
fn each_documented_kind_has_a_case() {
    let cases: std::collections::BTreeSet<String> = cases().iter().map(|case| case.kind.to_owned()).collect();
    assert_eq!(kinds().into_keys().collect::<std::collections::BTreeSet<_>>(), cases);
}

#[tokio::test]
async fn observe_md_lists_the_status_of_each_kind() {
    for case in cases() {
        let status = case.answer.await.status().as_u16();
        assert_eq!(status, if case.grpc { 200 } else { kinds()[case.kind].1 }, "{}", case.kind);
    }
}
