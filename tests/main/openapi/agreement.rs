//! A gate does what its document says, and sends nothing else: each documented response is caused and checked.

use std::collections::BTreeSet;
use std::convert::Infallible;

use axum::Router;
use axum::body::Body;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use proptest::prelude::*;
use tower::ServiceExt as _;

use super::document::Document;
use super::settings::*;
use crate::kit::body::{JSON, Script, Step, json_with};
use crate::kit::location::API_KEY;

const PATH: &str = "/orders";

/// How a client sends a token, by the name of the security scheme.
const SCHEMES: [&str; 3] = ["bearer", "api_key", "query_token"];

/// A request that a client can send.
#[derive(Clone)]
struct Call {
    method: Method,
    uri: String,
    fields: Vec<(String, String)>,
    steps: Vec<Step>,
}

impl Call {
    fn new(method: &Method) -> Self {
        Self { method: method.clone(), uri: PATH.to_owned(), fields: Vec::new(), steps: Vec::new() }
    }

    fn with(mut self, name: impl ToString, value: impl ToString) -> Self {
        self.fields.push((name.to_string(), value.to_string()));
        self
    }

    fn with_token(self, scheme: &str, token: &str) -> Self {
        match scheme {
            "" => self,
            "bearer" => self.with("authorization", format!("Bearer {token}")),
            "api_key" => self.with(API_KEY, token),
            "query_token" => Self { uri: format!("{PATH}?access_token={token}"), ..self },
            _ => unreachable!(),
        }
    }

    fn with_body(self, steps: impl IntoIterator<Item = Step>) -> Self {
        Self { steps: steps.into_iter().collect(), ..self.with("content-type", JSON) }
    }

    async fn send(self, service: &Router) -> Response<Body> {
        let mut request = Request::builder().method(self.method).uri(self.uri).extension(PEER);
        for (name, value) in self.fields {
            request = request.header(name, value);
        }
        let body = Script::new(self.steps).map_frame(|frame| frame.map_data(|data| Vec::from(data).into()));
        let answer = service.clone().oneshot(request.body(Body::new(body)).unwrap()).await;
        answer.unwrap_or_else(|never: Infallible| match never {})
    }
}

/// Returns series of requests, which together cause all rejections that there are.
fn series(method: &Method, scheme: &str) -> Vec<Vec<Call>> {
    let call = || Call::new(method);
    let authorized = |token| call().with_token(scheme, token);
    let trader = || authorized(TRADER);
    let data = |text: String| Step::Data(text.into_bytes());
    vec![
        vec![call()],
        vec![trader()],
        vec![authorized(READER)],
        vec![authorized(UNKNOWN)],
        vec![authorized(EXPIRED)],
        vec![authorized(LOST)],
        vec![call().with("authorization", "Bearer first_00").with("authorization", "Bearer second_0")],
        vec![call().with(API_KEY, "first_00").with(API_KEY, "second_0")],
        vec![trader().with(PLAIN, "1")],
        vec![call().with(PLAIN, "1")],
        vec![authorized(UNKNOWN); 4],
        vec![trader(); 7],
        vec![call(); 4],
        vec![trader().with(COST, 1_000)],
        vec![call().with(COST, 1_000)],
        vec![trader().with(DECIDE, "down")],
        vec![trader().with(DECIDE, "over")],
        vec![trader().with(DECIDE, "never")],
        vec![trader().with_body([data(" ".repeat(2_000))])],
        vec![trader().with_body([Step::Silence])],
        vec![trader().with_body([Step::Fail])],
        vec![call().with_body([data(json_with(TRADER))])],
    ]
}

/// Sends all series to services of these settings. Checks each response, and that each documented rejection is among them.
async fn check(settings: &Settings) {
    let (_, api) = settings.service();
    let document = Document::of(&api);
    for method in [Method::GET, Method::POST] {
        let security = document.security(&method, PATH);
        let named: BTreeSet<&str> = security.iter().map(|(name, _)| &**name).collect();
        check_security(settings, &document, &method, &named).await;

        let mut caused = BTreeSet::new();
        for scheme in SCHEMES.iter().filter(|scheme| named.contains(*scheme)) {
            for calls in series(&method, scheme) {
                let (service, _) = settings.service();
                for call in calls {
                    let response = call.send(&service).await;
                    if is_rejection(response.status()) {
                        caused.insert(response.status().as_u16());
                    }
                    document.check(&method, PATH, response).await;
                }
            }
        }
        assert_eq!(caused, document.rejections(&method, PATH).into_iter().collect(), "{method}");
    }
}

/// Checks that exactly the documented schemes, with exactly the documented scopes, authenticate.
async fn check_security(settings: &Settings, document: &Document, method: &Method, named: &BTreeSet<&str>) {
    let status = async |scheme: &str, token: &str| {
        let (service, _) = settings.service();
        Call::new(method).with_token(scheme, token).send(&service).await.status()
    };
    let needs_scopes = settings.has_scopes && method == Method::POST;
    for scheme in SCHEMES {
        let is_admitted = status(scheme, TRADER).await == StatusCode::OK;
        // A token at a location that is not read is ignored, and the client is anonymous.
        assert_eq!(is_admitted, named.contains(scheme) || named.contains(""), "{method} {scheme}");
        if named.contains(scheme) {
            assert_eq!(status(scheme, UNKNOWN).await, StatusCode::UNAUTHORIZED);
            let expected = if needs_scopes { StatusCode::FORBIDDEN } else { StatusCode::OK };
            assert_eq!(status(scheme, READER).await, expected);
        }
    }
    assert_eq!(status("", "").await == StatusCode::OK, named.contains(""), "{method} without a token");
    let scopes: &[&str] = if needs_scopes { &["trade"] } else { &[] };
    for (name, listed) in document.security(method, PATH) {
        assert_eq!(listed, if name.is_empty() { &[] } else { scopes });
    }
}

fn run(settings: &Settings) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(check(settings));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, ..ProptestConfig::default() })]

    #[test]
    fn gates_do_what_their_documents_say(settings in settings()) {
        run(&settings);
    }
}

/// All that there is, and nothing, whatever the random settings are.
#[test]
fn the_largest_and_the_smallest_gate_do_what_their_documents_say() {
    use tollgate::RateLimitHeaders;

    let largest = Settings {
        store: Store::Database,
        limits: Limits::Remote,
        headers: RateLimitHeaders::Draft11,
        is_bearer: true,
        is_api_key: true,
        is_query: true,
        is_body: true,
        is_anonymous: false,
        is_https: true,
        is_throttled: true,
        has_scopes: true,
        has_route_limit: true,
    };
    run(&largest);
    let document = Document::of(&largest.service().1);
    assert_eq!(document.rejections(&Method::POST, PATH), [400, 401, 403, 408, 413, 429, 503]);
    assert_eq!(document.rejections(&Method::GET, PATH), [400, 401, 403, 429, 503]);

    let smallest = Settings {
        store: Store::Memory,
        limits: Limits::None,
        headers: RateLimitHeaders::Off,
        is_api_key: false,
        is_query: false,
        is_body: false,
        is_https: false,
        is_throttled: false,
        has_scopes: false,
        has_route_limit: false,
        ..largest
    };
    run(&smallest);
    assert_eq!(Document::of(&smallest.service().1).rejections(&Method::POST, PATH), [400, 401]);
}
