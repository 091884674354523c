//! Access to each route, by role.

use std::collections::BTreeSet;

use super::*;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum For {
    Everybody,
    Users,
    Support,
}

/// A route of the website, with a form that it accepts.
struct Route {
    method: &'static str,
    pattern: &'static str,
    /// The path, for the user `demo`.
    path: &'static str,
    fields: &'static [(&'static str, &'static str)],
    open_to: For,
}

const fn get(pattern: &'static str, path: &'static str, open_to: For) -> Route {
    Route { method: "GET", pattern, path, fields: &[], open_to }
}

const fn post(
    pattern: &'static str,
    path: &'static str,
    fields: &'static [(&'static str, &'static str)],
    open_to: For,
) -> Route {
    Route { method: "POST", pattern, path, fields, open_to }
}

/// All routes, except for those of files.
const ROUTES: &[Route] = &[
    get("/", "/", For::Everybody),
    get("/sign-in", "/sign-in", For::Everybody),
    post("/sign-in", "/sign-in", &[("name", "demo"), ("password", "wrong")], For::Everybody),
    post("/sign-out", "/sign-out", &[], For::Everybody),
    get("/account", "/account", For::Users),
    get("/account/reveal", "/account/reveal", For::Everybody),
    post("/account/reveal", "/account/reveal", &[("password", PASSWORD)], For::Users),
    get("/account/replace", "/account/replace", For::Everybody),
    post("/account/replace", "/account/replace", &[("password", PASSWORD)], For::Users),
    post("/account/sessions/end", "/account/sessions/end", &[("id", "0")], For::Users),
    get("/account/usage", "/account/usage", For::Users),
    get("/admin", "/admin", For::Support),
    get("/admin/users/{name}", "/admin/users/demo", For::Support),
    post("/admin/users/{name}/replace", "/admin/users/demo/replace", &[("grace", "0")], For::Support),
    post("/admin/users/{name}/revoke", "/admin/users/demo/revoke", &[], For::Support),
    post("/admin/users/{name}/plan", "/admin/users/demo/plan", &[("plan", "Starter")], For::Support),
    post("/admin/users/{name}/reset", "/admin/users/demo/reset", &[], For::Support),
];

/// A new route without a line in the table fails this test.
#[test]
fn the_table_has_all_routes() {
    let source = include_str!("../../website/mod.rs");
    let route = regex::Regex::new(r#"\.route\("([^"]+)",\s*(.*)\)"#).unwrap();
    let method = regex::Regex::new(r"\b(get|post|put|patch|delete|head|options|any|on)\(").unwrap();
    let mut found = BTreeSet::new();
    for line in source.lines() {
        for route in route.captures_iter(line) {
            for method in method.captures_iter(&route[2]) {
                found.insert(format!("{} {}", method[1].to_uppercase(), &route[1]));
            }
        }
    }
    let listed: BTreeSet<_> = ROUTES.iter().map(|route| format!("{} {}", route.method, route.pattern)).collect();
    assert_eq!(found, listed);
    assert_eq!(source.matches(".route(").count(), 14, "the expression above finds each");
}

/// Returns the state that routes could change: the grants, the audit trail and the sessions.
async fn state(site: &Site) -> String {
    let grants = site.database.list(None).await.unwrap();
    let grants: Vec<_> = grants.iter().map(|grant| (&grant.id, grant.revoked_at, grant.quota)).collect();
    let actions = site.home.count("tollgate_audit").await;
    let tokens = site.home.count("tollgate_tokens").await;
    format!("{grants:?} {actions} {tokens} {}", site.home.count("crosstrade_sessions").await)
}

async fn ask(visitor: &Visitor, route: &Route) -> Response<String> {
    match route.method {
        "GET" => visitor.get(route.path).await,
        _ => visitor.post(route.path, route.fields).await,
    }
}

#[tokio::test]
async fn visitors_without_a_session_get_nothing() {
    let site = Site::start().await;
    let before = state(&site).await;
    for route in ROUTES.iter().filter(|route| route.open_to != For::Everybody) {
        for cookie in [None, Some("AAAAAAAAAAAAAAAAAAAAAA"), Some("x"), Some("")] {
            let visitor = site.visitor();
            *visitor.cookie.lock().unwrap() = cookie.map(str::to_owned);
            let response = ask(&visitor, route).await;
            match (route.method, route.path) {
                ("GET", "/account/usage") | ("POST", _) => _ = assert_page(&response, StatusCode::UNAUTHORIZED),
                _ => {
                    let then = utf8_percent_encode(route.path, NON_ALPHANUMERIC);
                    assert_eq!(location(&response), format!("/sign-in?then={then}"));
                }
            }
            assert!(visitor.cookie().is_none(), "{}", route.path);
        }
    }
    assert_eq!(state(&site).await, before);
}

#[tokio::test]
async fn customers_are_rejected_by_the_routes_of_support() {
    let site = Site::start().await;
    let (demo, guest) = (site.signed_in("demo").await, site.signed_in("guest").await);
    let before = state(&site).await;
    for route in ROUTES.iter().filter(|route| route.open_to == For::Support) {
        for visitor in [&demo, &guest] {
            let response = ask(visitor, route).await;
            let page = assert_page(&response, StatusCode::FORBIDDEN);
            assert!(page.contains("This page is for support."));
        }
        // Neither does an invalid form or an unknown user tell them more.
        let path = route.path.replace("demo", "missing");
        let response = match route.method {
            "GET" => guest.get(&format!("{path}?after=x&q=%ff")).await,
            _ => guest.post(&path, &[("x", "y")]).await,
        };
        assert_page(&response, StatusCode::FORBIDDEN);
    }
    assert_eq!(state(&site).await, before);
}

#[tokio::test]
async fn support_may_use_all_routes() {
    let site = Site::start().await;
    for route in ROUTES {
        let support = site.signed_in("support").await;
        if route.path == "/account/usage" {
            assert_eq!(support.meter().await.status, StatusCode::OK);
            continue;
        }
        let response = match (route.method, route.open_to) {
            ("POST", For::Support) if !route.path.ends_with("reset") => support.submit(route.path, route.fields).await,
            _ => ask(&support, route).await,
        };
        let expected = match (route.method, route.path) {
            (_, "/" | "/sign-out" | "/account/sessions/end") => StatusCode::SEE_OTHER,
            // A wrong password.
            ("POST", "/sign-in") => StatusCode::FORBIDDEN,
            ("GET", "/account/reveal" | "/account/replace") => StatusCode::SEE_OTHER,
            // A member of support has no token.
            (_, "/account/reveal") => StatusCode::CONFLICT,
            // Users do not replace tokens themselves.
            (_, "/account/replace") => StatusCode::FORBIDDEN,
            ("POST", _) => StatusCode::SEE_OTHER,
            _ => StatusCode::OK,
        };
        assert_eq!(response.status(), expected, "{} {}: {}", route.method, route.path, response.body());
        // Support sees no token, also not the one that it has just issued.
        assert!(tokens_in(response.body()).is_empty());
        if route.path.ends_with("revoke") {
            support.submit("/admin/users/demo/replace", &[("grace", "0")]).await;
        }
    }
}

/// Every route, with every id of the other user.
#[tokio::test]
async fn users_see_nothing_of_other_users() {
    let site = Site::start().await;
    let demo = site.signed_in("demo").await;
    demo.post("/account/reveal", &[]).await;
    let grant = site.grant("demo").await;
    let sessions = site.home.texts("SELECT id FROM crosstrade_sessions").await;
    let guest = site.signed_in("guest").await;
    let secrets = [&site.trader, grant.as_str(), &sessions[0], "sim101", "sim102"];
    let check = |response: &Response<String>, path: &str| {
        for secret in secrets {
            assert!(!response.body().contains(secret), "{path}: {}", response.body());
        }
    };
    for route in ROUTES.iter().filter(|route| !matches!(route.path, "/sign-out" | "/sign-in" | "/account/usage")) {
        check(&ask(&guest, route).await, route.path);
        for id in [grant.as_str(), &sessions[0], "demo"] {
            for path in [format!("{}?id={id}&name={id}&user={id}", route.path), format!("{}/{id}", route.path)] {
                check(&guest.get(&path).await, &path);
            }
            let fields = [("id", id), ("name", "demo"), ("user", "demo"), ("password", PASSWORD)];
            check(&guest.post(route.path, &fields).await, route.path);
        }
    }
    assert!(demo.is_signed_in().await);
    let revealed = guest.post("/account/reveal", &[]).await;
    assert!(tokens_in(revealed.body()).iter().all(|token| *token == site.reader), "{}", revealed.body());
    assert!(!tokens_in(revealed.body()).is_empty());
    // The meter is the own one too.
    for _ in 0..5 {
        assert_eq!(site.api(&site.trader).await.status(), StatusCode::OK);
    }
    assert_eq!(guest.meter().await.state().await["remaining"], 20);
    assert_eq!(demo.meter().await.state().await["remaining"], 15);
}

#[tokio::test]
async fn sign_in_leads_to_pages_of_this_site_only() {
    let site = Site::start().await;
    for (then, expected) in [
        ("", "/account"),
        ("/account", "/account"),
        ("/admin", "/admin"),
        ("/admin/users/a%20b", "/admin/users/a%20b"),
        ("//evil.example", "/account"),
        ("https://evil.example", "/account"),
        ("/\\evil.example", "/account"),
        ("/admin.evil", "/account"),
        ("/admin/users/\r\nset-cookie: a=b", "/account"),
        ("/admin/users/\u{e9}", "/account"),
        ("javascript:alert(1)", "/account"),
    ] {
        let visitor = site.visitor();
        let page = visitor.get(&format!("/sign-in?then={}", utf8_percent_encode(then, NON_ALPHANUMERIC))).await;
        assert_page(&page, StatusCode::OK);
        let fields = [("name", "demo"), ("password", PASSWORD), ("then", then)];
        assert_eq!(location(&visitor.post("/sign-in", &fields).await), expected, "{then:?}");
    }
    let response = site.visitor().get("/sign-in?then=%22%3E%3Cscript%3E").await;
    assert!(!response.body().contains("><script>"), "{}", response.body());
}
