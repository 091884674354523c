//! Challenges, scopes and costs of tools, and the checks against websites.

use super::*;

#[tokio::test]
async fn a_challenge_leads_to_the_metadata() {
    let server = AuthorizationServer { issuer: "https://id.example".into(), jwks: "https://id.example/jwks".into() };
    let url = start(Some(&server)).await;
    let response = send(Request::post(&url), "{}").await;
    let metadata = url.replace("/mcp", "/.well-known/oauth-protected-resource/mcp");
    assert_eq!(response.status(), 401);
    let challenge = format!(r#"Bearer realm="api", scope="read", resource_metadata="{metadata}""#);
    assert_eq!(field(&response, "www-authenticate"), challenge);

    let response = send(Request::get(&metadata), "").await;
    let document: Value = serde_json::from_str(response.body()).unwrap();
    assert_eq!(document["resource"], url);
    assert_eq!(document["authorization_servers"], json!(["https://id.example"]));
    assert_eq!(document["scopes_supported"], json!(["read", "trade"]));
}

#[tokio::test]
async fn a_tool_requires_its_scopes() {
    let url = start(None).await;
    let response = call(&url, BOB, "quote").await;
    assert_eq!((response.status().as_u16(), units(&response)), (200, "29"));
    assert!(response.body().contains("ACME costs 17.42"), "{response:?}");

    let response = call(&url, BOB, "place_order").await;
    assert_eq!(response.status(), 403);
    let metadata = url.replace("/mcp", "/.well-known/oauth-protected-resource/mcp");
    let challenge = format!(
        r#"Bearer realm="api", error="insufficient_scope", scope="read trade", resource_metadata="{metadata}""#
    );
    assert_eq!(field(&response, "www-authenticate"), challenge);
    // The rejection has cost no units.
    assert_eq!(units(&call(&url, BOB, "quote").await), "28");

    let response = call(&url, ALICE, "place_order").await;
    assert_eq!((response.status().as_u16(), units(&response)), (200, "20"));
    assert!(response.body().contains("bought 3 ACME for alice"), "{response:?}");
}

/// A caller that makes the scopes of one tool count for another one would call it without its scopes.
#[tokio::test]
async fn a_request_cannot_hide_its_tool() {
    let url = start(None).await;
    let escaped = message(1, "place_order").to_string().replace("place_order", r"pl\u0061ce_order");
    let twice = |first: &str, second: &str| {
        let names = format!(r#""name":"{first}","name":"{second}""#);
        message(1, "quote").to_string().replace(r#""name":"quote""#, &names)
    };
    let batch = json!([message(1, "quote"), message(2, "place_order")]).to_string();
    let bodies = [escaped, twice("quote", "place_order"), twice("place_order", "quote"), batch];
    for body in bodies {
        for name in ["quote", "place_order"] {
            let request = post(&url, BOB)
                .header("mcp-protocol-version", "2026-07-28")
                .header("mcp-method", "tools/call")
                .header("mcp-name", name);
            let response = send(request, body.clone()).await;
            assert!(!response.body().contains("bought"), "{body}: {response:?}");
            assert!(response.status().is_client_error(), "{body}: {response:?}");
        }
    }
    // The body counts, and not the header field.
    let request = post(&url, BOB).header("mcp-protocol-version", "2026-07-28").header("mcp-method", "tools/call");
    let response = send(request.header("mcp-name", "quote"), message(1, "place_order").to_string()).await;
    assert_eq!(response.status(), 403);
}

#[tokio::test]
async fn a_large_body_is_rejected() {
    let url = start(None).await;
    let body = format!("{}{}", message(1, "quote"), " ".repeat(64 * 1_024));
    assert_eq!(send(post(&url, ALICE), body).await.status(), 413);
}

#[tokio::test]
async fn requests_of_websites_and_to_other_hosts_are_rejected() {
    let url = start(None).await;
    let port = url.parse::<Uri>().unwrap().port_u16().unwrap();
    let request = |name: &str, value: &str| {
        let request = post(&url, ALICE)
            .header("mcp-protocol-version", "2026-07-28")
            .header("mcp-method", "tools/call")
            .header("mcp-name", "quote")
            .header(name, value);
        send(request, message(1, "quote").to_string())
    };
    for origin in ["https://attacker.example", "null", &format!("http://127.0.0.1:{port}")] {
        assert_eq!(request("origin", origin).await.status(), 403, "{origin}");
    }
    assert_eq!(request("host", &format!("attacker.example:{port}")).await.status(), 403);
    for host in ["localhost", "127.0.0.1", "[::1]"] {
        assert_eq!(request("host", &format!("{host}:{port}")).await.status(), 200, "{host}");
    }
}

#[tokio::test]
async fn tools_are_limited_by_their_cost() {
    let url = start(None).await;
    for units_left in ["20", "10", "0"] {
        let response = call(&url, ALICE, "place_order").await;
        assert_eq!((response.status().as_u16(), units(&response)), (200, units_left));
    }
    let response = call(&url, ALICE_2, "place_order").await;
    assert_eq!((response.status().as_u16(), field(&response, "retry-after")), (429, "10"));
    let error: Value = serde_json::from_str(response.body()).unwrap();
    assert_eq!(error["error"]["message"], "The rate limit is exhausted. Retry after 10 seconds.");
    assert_eq!(call(&url, BOB, "quote").await.status(), 200);
}

#[test]
fn arguments_are_checked() {
    let parse = |args: &str| Args::parse(args.split_whitespace().map(str::to_owned));
    let args = parse(
        "--listen [::1]:0 --resource https://mcp.example/mcp --issuer https://id.example --jwks https://id.example/jwks",
    );
    let server = AuthorizationServer { issuer: "https://id.example".into(), jwks: "https://id.example/jwks".into() };
    let resource = Some("https://mcp.example/mcp".to_owned());
    let expected = Args { listen: "[::1]:0".parse().unwrap(), resource, authorization_server: Some(server) };
    assert_eq!(args, Ok(expected));
    for wrong in ["--listen", "--listen 0.0.0.0:8000", "--issuer https://id.example", "--port 8000"] {
        assert!(parse(wrong).is_err(), "{wrong}");
    }
}
