//! The header fields of all responses of the website.

use super::*;

/// Checks the fields that each response has.
#[track_caller]
fn assert_headers(response: &Response<String>, what: &str) {
    let field = |name: &str| {
        let mut fields = response.headers().get_all(name).iter();
        let field = fields.next().unwrap_or_else(|| panic!("{what}: no {name}")).to_str().unwrap();
        assert!(fields.next().is_none(), "{what}: two of {name}");
        field
    };
    let policy: Vec<_> = field("content-security-policy").split(';').map(str::trim).collect();
    assert_eq!(
        policy,
        [
            "default-src 'none'",
            "style-src 'self'",
            "script-src 'self'",
            "connect-src 'self'",
            "img-src 'self'",
            "form-action 'self'",
            "base-uri 'none'",
            "frame-ancestors 'none'"
        ],
        "{what}"
    );
    for (name, expected) in [
        ("x-frame-options", "DENY"),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "same-origin"),
        ("cross-origin-opener-policy", "same-origin"),
        ("cross-origin-resource-policy", "same-origin"),
    ] {
        assert_eq!(field(name), expected, "{what}");
    }
    let is_asset = response.status() == StatusCode::OK && what.starts_with("/assets/");
    let expected = if is_asset { "public, max-age=31536000, immutable" } else { "no-store" };
    assert_eq!(field("cache-control"), expected, "{what}");
}

#[tokio::test]
async fn every_response_has_the_headers() {
    let site = Site::start().await;
    let (visitor, demo, support) = (site.visitor(), site.signed_in("demo").await, site.signed_in("support").await);
    for path in ["/", "/sign-in", "/account", "/admin", "/account/usage", "/sign-in?then=%ff&then=", "/sign-out"] {
        assert_headers(&visitor.get(path).await, path);
    }
    for path in ["/account", "/admin", "/admin?q=%ff", "/admin/users/%ff", "/admin?q=a&q=b"] {
        assert_headers(&demo.get(path).await, path);
        assert_headers(&support.get(path).await, path);
    }
    for path in ["/admin/users/demo", "/admin/users/missing", "/admin/users/demo?after=x"] {
        assert_headers(&support.get(path).await, path);
    }
    for (path, fields) in [
        ("/sign-in", &[("name", "demo"), ("password", "wrong")][..]),
        ("/sign-in", &[]),
        ("/account", &[]),
        ("/account/reveal", &[("password", "wrong")]),
        ("/account/reveal", &[]),
        ("/account/replace", &[]),
        ("/account/sessions/end", &[]),
        ("/admin/users/demo/replace", &[("grace", "x")]),
        ("/admin/users/demo/replace", &[("grace", "7")]),
        ("/admin/users/missing/revoke", &[]),
        ("/sign-out", &[]),
    ] {
        for visitor in [&visitor, &demo.tab(), &support.tab()] {
            assert_headers(&visitor.post(path, fields).await, path);
        }
    }
    // Rejected before any handler: another site, a large body, another method.
    let request = visitor.request("POST", "/sign-in").header("sec-fetch-site", "cross-site");
    assert_headers(&visitor.send(request, String::new()).await, "another site");
    let response = visitor.post("/sign-in", &[("name", &"a".repeat(70_000)), ("password", "a")]).await;
    assert!(response.status().is_client_error());
    assert_headers(&response, "a large form");
    for method in ["PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"] {
        let request = visitor.request(method, "/account").header("sec-fetch-site", "same-origin");
        let response = visitor.send(request, String::new()).await;
        assert_eq!(response.status(), StatusCode::METHOD_NOT_ALLOWED, "{method}");
        assert_headers(&response, method);
    }
    // Failures of the database too.
    let guest = site.signed_in("guest").await;
    site.home.execute("DROP TABLE crosstrade_sessions").await;
    let response = guest.get("/account").await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_headers(&response, "a failure");
    let response = visitor.sign_in("demo", PASSWORD).await;
    assert!(response.status().is_server_error(), "{}", response.status());
    assert_headers(&response, "a failed sign-in");
}

#[tokio::test]
async fn pages_load_files_of_this_site_only_and_have_no_script_of_their_own() {
    let site = Site::start().await;
    let (demo, support) = (site.signed_in("demo").await, site.signed_in("support").await);
    let revealed = demo.post("/account/reveal", &[]).await;
    let links = regex::Regex::new(r#"(?:src|href|action|content)="([^"]*)""#).unwrap();
    let inline = regex::Regex::new(r"(?i)<style|<script(?: [^>]*)?>[^<]|\son[a-z]+=|\sstyle=|javascript:").unwrap();
    let mut assets = Vec::new();
    for page in [
        site.visitor().get("/sign-in").await,
        demo.get("/account").await,
        revealed,
        support.get("/admin").await,
        support.get("/admin/users/demo").await,
    ] {
        let page = assert_page(&page, StatusCode::OK);
        assert!(!inline.is_match(page), "{page}");
        for link in links.captures_iter(page) {
            let link = link[1].to_owned();
            if link.starts_with("/assets/") {
                assets.push(link);
            } else {
                let is_local = link.starts_with('/') || link.starts_with('#') || !link.contains("//");
                assert!(is_local, "{link}");
            }
        }
    }
    assets.sort();
    assets.dedup();
    assert_eq!(assets.len(), 3, "{assets:?}");
    for asset in assets {
        let response = site.visitor().get(&asset).await;
        assert_eq!(response.status(), StatusCode::OK);
        assert_headers(&response, &asset);
        assert!(!response.body().is_empty());
        assert!(response.headers().get("set-cookie").is_none());
    }
}
