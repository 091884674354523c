//! Forms that other sites send.

use super::*;

#[tokio::test]
async fn forms_of_other_sites_do_nothing() {
    let site = Site::start().await;
    let support = site.signed_in("support").await;
    let own = format!("http://{}", site.addr);
    let other_port = format!("http://127.0.0.1:{}", site.addr.port().wrapping_add(1));
    for (fields, is_admitted) in [
        (&[("sec-fetch-site", "same-origin")][..], true),
        (&[("sec-fetch-site", "none")], true),
        (&[("sec-fetch-site", "same-site")], false),
        (&[("sec-fetch-site", "cross-site")], false),
        (&[("sec-fetch-site", "cross-site"), ("origin", &own)], false),
        (&[("sec-fetch-site", "Same-Origin")], false),
        (&[("sec-fetch-site", "anything")], false),
        (&[("origin", &own)], true),
        (&[("origin", "null")], false),
        (&[("origin", "https://evil.example")], false),
        (&[("origin", &other_port)], false),
        (&[("origin", "http://127.0.0.1")], false),
        (&[("origin", &format!("{own}.evil.example"))], false),
        (&[("sec-fetch-site", "same-origin"), ("origin", "null")], true),
        // No browser.
        (&[], true),
    ] {
        let send = async |visitor: &Visitor, path: &str, body: String| {
            let mut request = visitor.request("POST", path).header("content-type", "application/x-www-form-urlencoded");
            for (name, value) in fields {
                request = request.header(*name, *value);
            }
            visitor.send(request, body).await
        };
        let response = send(
            &support,
            "/admin/users/demo/plan",
            form(&[("grant", site.grant("demo").await.as_str()), ("plan", "Starter")]),
        )
        .await;
        let quota = site.database.list(Some(&"demo".into())).await.unwrap()[0].quota;
        if is_admitted {
            assert_eq!(location(&response), "/admin/users/demo?done=plan", "{fields:?}");
            assert!(quota.is_some(), "{fields:?}");
        } else {
            let page = assert_page(&response, StatusCode::FORBIDDEN);
            assert!(page.contains("another site"), "{page}");
            assert!(quota.is_none(), "{fields:?}");
        }
        site.database.set_quota(&site.grant("demo").await, None).await.unwrap();
        // Other sites cannot sign visitors in, or out.
        let visitor = site.visitor();
        send(&visitor, "/sign-in", form(&[("name", "guest"), ("password", PASSWORD)])).await;
        assert_eq!(visitor.cookie().is_some(), is_admitted, "{fields:?}");
        let demo = site.signed_in("demo").await;
        send(&demo, "/sign-out", String::new()).await;
        assert_eq!(demo.cookie().is_none(), is_admitted, "{fields:?}");
    }
}

/// HTTP/2 has `:authority` instead of `Host`.
#[tokio::test]
async fn origins_are_compared_with_the_authority_of_http2() {
    let (_site, mut sender, _connection) = over_http2(limits()).await;
    for (origin, expected) in [
        (Some("https://broker.example"), StatusCode::SEE_OTHER),
        (None, StatusCode::SEE_OTHER),
        (Some("https://evil.example"), StatusCode::FORBIDDEN),
        (Some("null"), StatusCode::FORBIDDEN),
    ] {
        let mut request = Request::post("https://broker.example/sign-in");
        request = request.header("content-type", "application/x-www-form-urlencoded");
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        let body = form(&[("name", "demo"), ("password", PASSWORD)]);
        let response = timeout(WATCHDOG, sender.send_request(request.body(body).unwrap())).await.unwrap().unwrap();
        assert_eq!(response.status(), expected, "{origin:?}");
        let cookie = response.headers().get("set-cookie").map(|cookie| cookie.to_str().unwrap().to_owned());
        assert_eq!(cookie.is_some(), expected == StatusCode::SEE_OTHER);
        let Some(cookie) = cookie else { continue };
        // The lines to copy have the address that the browser used.
        let cookie = cookie.split(';').next().unwrap();
        let request = Request::get("https://broker.example/account").header("cookie", cookie).body(String::new());
        let response = sender.send_request(request.unwrap()).await.unwrap();
        let page = response.into_body().collect().await.unwrap().to_bytes();
        let page = std::str::from_utf8(&page).unwrap();
        assert!(
            page.contains("https://broker.example/v1/api/accounts") && page.contains("wss://broker.example/ws/stream")
        );
    }
}

/// Pages over plaintext are rejected where HTTPS is required.
#[tokio::test]
async fn plaintext_is_rejected_where_https_is_required() {
    let site = Site::start_with(Setup { access: Access::tls(), ..Setup::at(Home::sqlite()) }).await;
    let visitor = site.visitor();
    let response = visitor.sign_in("demo", PASSWORD).await;
    let page = assert_page(&response, StatusCode::FORBIDDEN);
    assert!(page.contains("Use HTTPS."), "{page}");
    assert_eq!(visitor.cookie(), None);
    for path in ["/", "/account", "/sign-in", "/admin"] {
        assert_page(&visitor.get(path).await, StatusCode::FORBIDDEN);
    }
}
