//! An API for scripts of another origin, and a page with such a script.
//!
//! `cargo run --example cors --features axum,mint` serves the page on 127.0.0.1:3000 and the API on 127.0.0.1:3001. The page has
//! one button for each response of the API, and shows what its script can read.
#![allow(clippy::print_stdout)]

use std::error::Error;
use std::time::Duration;

use axum::response::Html;
use axum::routing::{get, post};
use axum::{Json, Router};
use http::{HeaderValue, Method, header};
use tokio::net::TcpListener;
use tollgate::mint::TokenFormat;
use tollgate::respond::EXPOSED_HEADERS;
use tollgate::{AuthLayer, Authenticated, Grant, MemoryStore, Quota, RateLimits, TokenDigest};
use tower_http::cors::CorsLayer;

/// Returns the layer that lets scripts of one origin call the API and read its rejections. It belongs outside of the gate.
fn cors(origin: HeaderValue) -> CorsLayer {
    CorsLayer::new()
        .allow_origin([origin])
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([header::AUTHORIZATION, header::CONTENT_TYPE])
        .expose_headers(EXPOSED_HEADERS)
        // Browsers repeat the preflight after this time.
        .max_age(Duration::from_secs(600))
}

fn api(token: TokenDigest, limits: RateLimits, origin: HeaderValue) -> Result<Router, Box<dyn Error>> {
    let tokens = MemoryStore::from_iter([(token, Grant::new("alice", ()).with_scopes(["orders:read"])?)]);
    // The CORS layer answers preflights itself.
    let gate = AuthLayer::new(tokens).with_rate_limit(limits).without_preflight_bypass();
    let place = post(|| async { "placed" }).route_layer(gate.require_scopes(["orders:write"])?);
    let orders = |caller: Authenticated<()>| async move { Json(format!("orders of {}", caller.grant().subject())) };
    Ok(Router::new().route("/orders", get(orders).merge(place)).layer(gate).layer(cors(origin)))
}

/// The script of the page. A browser sends a preflight first, because of the `Authorization` header.
const SCRIPT: &str = "async function call(method, token) {
    const headers = token === null ? {} : { authorization: `Bearer ${token}` };
    const response = await fetch(API + '/orders', { method, headers });
    return { status: response.status, headers: Object.fromEntries(response.headers), body: await response.text() };
}";

fn page(api: &str, token: &str) -> String {
    let show = "catch(String).then(it => out.textContent = JSON.stringify(it, null, 2))";
    let button = |name: &str, call: &str| format!("<button onclick=\"{call}.{show}\">{name}</button>");
    format!(
        "<!doctype html><title>Another origin</title><script>const API = '{api}'; {SCRIPT}</script>{}{}{}<pre id=out>",
        button("orders, six times a minute", &format!("call('GET', '{token}')")),
        button("without a token", "call('GET', null)"),
        button("without the scope", &format!("call('POST', '{token}')")),
    )
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let (pages, apis) = (TcpListener::bind("127.0.0.1:3000").await?, TcpListener::bind("127.0.0.1:3001").await?);
    let (origin, address) = (format!("http://{}", pages.local_addr()?), format!("http://{}", apis.local_addr()?));
    let token = TokenFormat::new("tg")?.mint()?;
    let html = page(&address, token.expose());
    let site = Router::new().route("/", get(|| async move { Html(html) }));
    let limits = RateLimits::new(Quota::per_minute(6));
    let api = api(token.digest(), limits, origin.parse()?)?;
    println!("open {origin}: its script calls {address}");
    tokio::try_join!(axum::serve(pages, site).into_future(), axum::serve(apis, api).into_future())?;
    Ok(())
}

#[cfg(all(test, unix))]
#[path = "../tests/chromium.rs"]
#[allow(dead_code, clippy::unwrap_used, clippy::expect_used, reason = "other tests use the rest")]
mod chromium;

/// The tests read the responses with a script of another origin in Chromium.
#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used, clippy::expect_used)]
mod tests {
    use serde_json::{Map, Value, json};
    use tollgate::{BoxStore, Limit, store};

    use super::*;
    use crate::chromium::{Browser, Driver, until};

    const TOKEN: &str = "tg_secret";

    /// Serves on a free port. Returns the address and the origin.
    async fn bind() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let origin = format!("http://{}", listener.local_addr().unwrap());
        (listener, origin)
    }

    async fn serve(router: Router) -> String {
        let (listener, origin) = bind().await;
        tokio::spawn(axum::serve(listener, router).into_future());
        origin
    }

    /// Calls an API by a script. Returns everything that the script can read.
    async fn call(browser: &Browser, api: &str, init: Value) -> Map<String, Value> {
        const CALL: &str = "const [url, init] = args;
            try {
                const response = await fetch(url, init);
                const headers = Object.fromEntries(response.headers);
                return { status: response.status, headers, body: await response.text() };
            } catch (error) {
                return { failed: String(error) };
            }";
        let seen = browser.eval_async(CALL, vec![json!(format!("{api}/orders")), init]).await;
        seen.as_object().unwrap().clone()
    }

    fn with_token(method: &str, token: &str) -> Value {
        json!({ "method": method, "headers": { "authorization": format!("Bearer {token}") } })
    }

    /// Checks the status, the problem details, and header fields; `null` is a field that the script cannot read.
    fn assert_readable(seen: &Map<String, Value>, status: u16, fields: Value) {
        assert_eq!(seen.get("status"), Some(&json!(status)), "{seen:?}");
        if status != 200 {
            let problem: Value = serde_json::from_str(seen["body"].as_str().unwrap()).unwrap();
            assert_eq!(problem["status"], status, "{seen:?}");
            assert!(problem["detail"].is_string(), "{seen:?}");
        }
        for (name, value) in fields.as_object().unwrap() {
            assert_eq!(&seen["headers"][name], value, "{name}: {seen:?}");
        }
    }

    fn gate<T: store::TokenStore<Principal = ()>>(store: T) -> AuthLayer<T> {
        AuthLayer::with_timer(store, Duration::from_secs(60), tokio::time::sleep)
    }

    fn tokens() -> BoxStore<()> {
        BoxStore::new(MemoryStore::from_iter([(TokenDigest::of(TOKEN), Grant::new("alice", ()))]))
    }

    fn orders() -> Router {
        Router::new().route("/orders", get(|| async { "orders" }))
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn scripts_of_another_origin_read_all_rejections() {
        const TEST: &str = "scripts_of_another_origin_read_all_rejections";
        let Some(driver) = Driver::shared(TEST) else { return };
        // The clock stands still, so that buckets do not refill.
        let limits = RateLimits::new(Quota::per_minute(2)).with_clock(|| Duration::ZERO);
        let (pages, origin) = bind().await;
        let allowed: HeaderValue = origin.parse().unwrap();
        let api = serve(api(TokenDigest::of(TOKEN), limits, allowed.clone()).unwrap()).await;
        let html = page(&api, TOKEN);
        let site = Router::new().route("/", get(|| async move { Html(html) }));
        tokio::spawn(axum::serve(pages, site).into_future());
        let profile = std::env::temp_dir().join(format!("tollgate-cors-{}", std::process::id()));
        let browser = Browser::open(&driver, &origin, profile, json!({})).await;
        browser.goto("/").await;

        let seen = call(&browser, &api, with_token("GET", TOKEN)).await;
        let fields = json!({ "ratelimit": r#""default";r=1;t=30"#, "ratelimit-policy": r#""default";q=2;w=60"# });
        assert_readable(&seen, 200, fields);
        let seen = call(&browser, &api, with_token("POST", TOKEN)).await;
        let challenge = r#"Bearer realm="api", error="insufficient_scope", scope="orders:write""#;
        assert_readable(&seen, 403, json!({ "www-authenticate": challenge }));
        let seen = call(&browser, &api, with_token("GET", TOKEN)).await;
        assert_readable(&seen, 429, json!({ "retry-after": "30", "ratelimit": r#""default";r=0;t=30"# }));
        let seen = call(&browser, &api, json!({})).await;
        assert_readable(&seen, 401, json!({ "www-authenticate": r#"Bearer realm="api""# }));
        let seen = call(&browser, &api, with_token("GET", "unknown")).await;
        assert_readable(&seen, 401, json!({ "www-authenticate": r#"Bearer realm="api", error="invalid_token""# }));
        let grpc_web = json!({ "method": "POST", "headers": { "content-type": "application/grpc-web+proto" } });
        let seen = call(&browser, &api, grpc_web).await;
        assert_eq!((&seen["status"], &seen["headers"]["grpc-status"]), (&json!(200), &json!("16")), "{seen:?}");

        let costly = RateLimits::new(Limit::from(Quota::per_minute(1)).with_cost(|_| 2));
        let costly = serve(orders().layer(gate(tokens()).with_rate_limit(costly)).layer(cors(allowed.clone()))).await;
        assert_readable(&call(&browser, &costly, with_token("GET", TOKEN)).await, 400, json!({}));
        let down = gate(store::from_fn(|_| async { Err::<Option<Grant<()>>, _>("down") }));
        let down = serve(orders().layer(down).layer(cors(allowed.clone()))).await;
        assert_readable(&call(&browser, &down, with_token("GET", TOKEN)).await, 503, json!({ "retry-after": "1" }));

        // Set-ups that do not work: the layers in the wrong order, and header fields that are not exposed.
        let failed = json!("TypeError: Failed to fetch");
        let inside = serve(orders().layer(cors(allowed.clone())).layer(gate(tokens()))).await;
        assert_readable(&call(&browser, &inside, with_token("GET", TOKEN)).await, 200, json!({}));
        assert_eq!(call(&browser, &inside, json!({})).await.get("failed"), Some(&failed));
        let hidden = cors(allowed).expose_headers::<[http::HeaderName; 0]>([]);
        let hidden = serve(orders().layer(gate(tokens())).layer(hidden)).await;
        assert_readable(&call(&browser, &hidden, json!({})).await, 401, json!({ "www-authenticate": null }));

        // The page of the example, and the same page as another origin.
        let button =
            async |name: &str| browser.find(&format!("button:nth-of-type({name})")).await.click().await.unwrap();
        button("2").await;
        until("the page shows the rejection", async || browser.text("#out").await.contains("401")).await;
        browser.goto(&origin.replace("127.0.0.1", "localhost")).await;
        assert_eq!(call(&browser, &api, json!({})).await.get("failed"), Some(&failed));
    }

    #[test]
    fn guide_has_the_layer_of_this_example() {
        let layer = |text: &'static str| text.split("fn cors(").nth(1).unwrap().split("\n}\n").next().unwrap();
        assert_eq!(layer(include_str!("../src/guide/cors.md")), layer(include_str!("cors.rs")));
    }
}
