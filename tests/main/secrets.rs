//! No printed text contains a token.

use std::fmt::{Debug, Write as _};
use std::io;
use std::time::Duration;

use http::{Request, Response};
use tollgate::extract::{Extracted, TokenCharset, TokenLocationError, TokenSyntax, authorization};
use tollgate::gate::{BodyTokens, ReplayBody};
use tollgate::limit::{Charge, FailureThrottle, MonotonicClock, RateLimits};
use tollgate::mint::TokenFormat;
use tollgate::respond::{Challenge, Respond};
use tollgate::store::contract::Contract;
use tollgate::store::{CheckedStore, Pepper, PepperedStore, RotateError, from_fn};
use tollgate::{
    Answer, AuthLayer, Authenticated, BearerToken, BoxStore, CurrentGrant, EmptyBody, Grant, MemoryStore, Policy,
    ProblemDetails, Quota, Rejection, RequestHead, Scopes, StoreError, TokenDigest, TokenStore, Unauthenticated,
};
use tower::{Layer, Service};

use crate::kit::*;

const PEPPER: &str = "pepper-that-is-never-stored-anywhere";

/// All printed text, searched for the token in every encoding that could occur.
#[derive(Default)]
struct Printed(String);

impl Printed {
    fn debug(&mut self, value: &impl Debug) {
        write!(self.0, "{value:?}\n{value:#?}\n").unwrap();
    }

    fn error(&mut self, error: &dyn std::error::Error) {
        let mut next = Some(error);
        while let Some(error) = next {
            write!(self.0, "{error}\n{error:?}\n{error:#?}\n").unwrap();
            next = error.source();
        }
    }

    async fn answer(&mut self, response: Response<Body>) {
        self.debug(&response.headers());
        if let Some(rejection) = response.extensions().get::<Rejection>() {
            self.debug(rejection);
            self.error(rejection);
        }
        self.0.push_str(&text(response).await);
    }

    fn assert_clean(&self) {
        let hex = TokenDigest::of(TOKEN).to_bytes().iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let base64url = TokenDigest::of(TOKEN).to_base64url();
        let bytes = format!("{:?}", TOKEN.as_bytes());
        let digest_bytes = format!("{:?}", TokenDigest::of(TOKEN).to_bytes());
        let pepper_bytes = format!("{:?}", PEPPER.as_bytes()).replace(']', "");
        for pepper in [PEPPER, &PEPPER[..31], &pepper_bytes[1..]] {
            assert!(!self.0.contains(pepper), "the pepper was printed:\n{}", self.0);
        }
        let [bytes, digest_bytes] = [&bytes, &digest_bytes].map(|bytes| bytes.trim_matches(['[', ']']));
        for secret in [TOKEN, &TOKEN[3..], &hex, &base64url, bytes, digest_bytes] {
            assert!(!self.0.contains(secret), "the token was printed:\n{}", self.0);
        }
        assert!(self.0.len() > 4_000, "too little was printed");
    }
}

/// Checks minted tokens separately, because a test cannot choose them.
#[test]
fn no_minted_token_is_printed() {
    let secret = TokenFormat::new("tg").unwrap().mint().unwrap();
    let printed = format!("{secret:?} {secret:#?} {:?}", secret.digest());
    assert_eq!(printed, "Secret(..) Secret(..) TokenDigest(..)");
}

#[tokio::test(start_paused = true)]
async fn no_public_type_prints_a_token() {
    let mut printed = Printed::default();

    // Model types.
    let token = BearerToken::new(TOKEN);
    printed.debug(&token);
    printed.debug(token.digest());
    let grant = Grant::new("alice", TOKEN).with_scopes(["trade"]).unwrap().with_quota(Quota::per_minute(1));
    printed.debug(&grant);
    printed.debug(&Authenticated::new(grant.clone()));
    let current = CurrentGrant::new(grant.clone());
    printed.debug(&current);
    printed.debug(&Unauthenticated::Anonymous);
    printed.debug(&Answer::<std::future::Ready<&str>>::Ready(TOKEN));
    printed.debug(&Answer::Pending(std::future::ready(TOKEN)));

    // Extraction: a malformed token is a secret too.
    for value in
        [format!("Bearer {TOKEN}"), format!("Bearer {TOKEN} {TOKEN}"), format!("Bearer {TOKEN}, Bearer {TOKEN}")]
    {
        let mut request = get();
        request.headers_mut().insert("authorization", value.parse().unwrap());
        let extracted = authorization(request.headers(), TokenSyntax::default());
        assert!(!matches!(extracted, Extracted::Nothing));
        printed.debug(&extracted);
    }

    let store = MemoryStore::from_iter([(TokenDigest::of(TOKEN), grant.clone())]);
    printed.debug(&store);
    printed.debug(&BoxStore::new(store.clone()));
    printed.debug(&store.lookup(&token));
    printed.debug(&store.get(TokenDigest::of(TOKEN)).unwrap());
    printed.debug(&store.grants());
    printed.debug(&Contract::new(store.clone()).knows(TOKEN, "alice").has_revoked(TOKEN));
    let format = TokenFormat::new("tg").unwrap();
    printed.debug(&CheckedStore::new(store.clone(), format.clone()).with_imported_tokens());
    printed.error(&format.check(TOKEN).unwrap_err());
    printed.error(&TokenFormat::new(&TOKEN.repeat(2)).unwrap_err());
    let peppered = PepperedStore::new(store.clone(), Pepper::new(PEPPER).unwrap());
    printed.debug(&peppered.with_older(Pepper::new(PEPPER).unwrap()));
    printed.debug(&PepperedStore::new(BoxStore::new(store.clone()), Pepper::new(PEPPER).unwrap()).lookup(&token));
    printed.error(&Pepper::new(&PEPPER[..31]).unwrap_err());
    let occupied = store.insert(TokenDigest::of(TOKEN), grant.clone()).unwrap_err();
    printed.error(&io::Error::other(RotateError::Rotated));
    printed.debug(&occupied);
    printed.debug(&occupied.to_string());
    let limits = RateLimits::new(Quota::per_minute(60).with_burst(3));
    printed.debug(&limits);
    printed.debug(&RateLimits::new(Quota::per_minute(60)).with_clock(MonotonicClock::new()));
    printed.debug(&limits.charge(&current, ONE));
    printed.debug(&Policy::new("p", Quota::per_minute(60)).unwrap());
    printed.debug(&FailureThrottle::new(Quota::per_minute(60), |_| Some(TOKEN)));
    // As token locations and cost functions see it: no field is marked, and the target holds a token too.
    let mut unmarked = with_token(TOKEN);
    unmarked.headers_mut().insert("x-api-key", TOKEN.parse().unwrap());
    *unmarked.uri_mut() = format!("/path?access_token={TOKEN}").parse().unwrap();
    printed.debug(&RequestHead::of(&unmarked));
    printed.debug(&Charge::Request(&RequestHead::of(&unmarked)));

    // The gate, its services and futures, and all of its responses.
    let failing = from_fn(|_| async { Err::<Option<Grant<()>>, _>(io::Error::other("connection reset")) });
    printed.debug(&failing.lookup(&token));
    let layer = AuthLayer::new(store).with_rate_limit(limits);
    printed.debug(&layer);
    printed.debug(&layer.route_rate_limit(RateLimits::new(Quota::per_minute(1))));
    printed.debug(&layer.require_scopes(["trade"]).unwrap());
    let mut service = layer.layer(layer.require_scopes(["admin"]).unwrap().layer(seen()));
    printed.debug(&service);
    printed.debug(&service.call(with_token(TOKEN)));
    for value in [
        format!("Bearer {TOKEN}"),
        format!("Bearer {TOKEN}"),
        format!("Bearer {TOKEN}"),
        format!("Bearer x{TOKEN}"),
        format!("Bearer {TOKEN} {TOKEN}"),
        format!("Bearer {TOKEN},{TOKEN}"),
        format!("Basic {TOKEN}"),
    ] {
        for content_type in ["text/plain", "application/grpc"] {
            let request = Request::get("/").header("authorization", &value).header("content-type", content_type);
            let response = send(&service, request.body(Body::default()).unwrap()).await;
            printed.answer(response).await;
        }
    }
    let passing = layer.clone().allow_anonymous().layer(seen());
    for value in [format!("Bearer {TOKEN}"), format!("Basic {TOKEN}"), format!("Token {TOKEN}")] {
        let request = Request::get("/").header("authorization", &value).body(Body::default()).unwrap();
        printed.answer(send(&passing, request).await).await;
    }
    let mut request = preflight();
    request.headers_mut().insert("authorization", format!("Bearer {TOKEN}").parse().unwrap());
    request.headers_mut().append("authorization", format!("Bearer {TOKEN}").parse().unwrap());
    printed.answer(send(&passing, request).await).await;

    let waiting = AuthLayer::with_timeout(failing, Duration::from_secs(1)).with_charset(TokenCharset::Lenient);
    printed.debug(&waiting);
    let mut waiting = waiting.layer(seen());
    printed.debug(&waiting.call(with_token(TOKEN)));
    printed.answer(send(&waiting, with_token(TOKEN)).await).await;
    let silent = from_fn(|_| std::future::pending::<Result<Option<Grant<()>>, io::Error>>());
    let silent = AuthLayer::with_timeout(silent, Duration::from_secs(1)).layer(seen());
    printed.answer(send(&silent, with_token(TOKEN)).await).await;

    // Bodies, before and after reading.
    let body_tokens = BodyTokens::with_timeout(Duration::from_secs(1)).with_json("key").unwrap();
    printed.debug(&body_tokens);
    let bodies =
        AuthLayer::new(MemoryStore::from_iter([(TokenDigest::of(TOKEN), grant)])).with_body_tokens(body_tokens);
    printed.debug(&bodies);
    let mut bodies = bodies.layer(tower::service_fn(|request: Request<ReplayBody<Body>>| async move {
        let printed = format!("{request:?}\n{request:#?}");
        Ok::<_, std::convert::Infallible>(Response::new(Body::from(printed)))
    }));
    printed.debug(&bodies);
    for key in [TOKEN.to_owned(), format!("{TOKEN} "), format!("x{TOKEN}")] {
        let request = || {
            let request = Request::post("/").header("content-type", "application/json");
            request.body(Body::from(format!(r#"{{"key": "{key}"}}"#))).unwrap()
        };
        printed.debug(&bodies.call(request()));
        printed.answer(send(&bodies, request()).await).await;
    }
    let names = invalid_locations();
    names.iter().for_each(|error| printed.error(error));

    // Rejections created by the service.
    let rejection = Rejection::insufficient_scope(Scopes::new(["trade"]).unwrap());
    printed.answer(ProblemDetails.reject(rejection.clone())).await;
    printed.answer(EmptyBody.reject(rejection)).await;
    printed.debug(&StoreError::new("down"));
    printed.debug(&Challenge::bearer("api").unwrap());

    printed.assert_clean();
}

fn invalid_locations() -> [TokenLocationError; 3] {
    let gate = || AuthLayer::new(memory());
    let twice = gate().with_discouraged_query_token("a").unwrap().with_discouraged_query_token("b");
    let used = gate().with_api_key_header(http::header::AUTHORIZATION);
    [gate().with_websocket_token("a b"), twice, used].map(|opened| opened.map(drop).unwrap_err())
}

/// A handler that prints the whole request, as logging middleware does.
fn seen()
-> impl Service<Request<Body>, Response = Response<Body>, Error = std::convert::Infallible, Future: Send + 'static> + Clone
{
    tower::service_fn(|request: Request<Body>| async move {
        Ok(Response::new(Body::from(format!("{request:?}\n{request:#?}"))))
    })
}
