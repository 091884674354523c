//! Which bodies are searched for a token: methods, content types, encodings and other credentials.

use std::convert::Infallible;
use std::sync::atomic::Ordering;

use http::{HeaderValue, Method, Request, Response};
use tollgate::gate::{BodyTokens, ReplayBody};
use tollgate::{AuthLayer, RejectionKind, TokenLocation};
use tower::{Layer as _, ServiceExt as _};

use crate::kit::body::*;
use crate::kit::*;

#[tokio::test]
async fn a_body_is_searched_only_with_its_method_and_content_type() {
    let sniffing = AuthLayer::new(memory()).with_body_tokens(body_tokens().with_json_in_text());
    let json = || json_with(TOKEN);
    let (in_text, in_form) = (format!("key={TOKEN};"), format!("access_token={TOKEN}"));
    for method in [Method::POST, Method::PUT, Method::PATCH] {
        for (content_type, body, location) in [
            (JSON, json(), TokenLocation::JsonBody),
            ("Application/JSON;charset=UTF-8", json(), TokenLocation::JsonBody),
            ("application/json ; charset=\"utf-8\" ; v=1", json(), TokenLocation::JsonBody),
            ("application/vnd.api+json", json(), TokenLocation::JsonBody),
            ("application/ld+JSON; profile=x", json(), TokenLocation::JsonBody),
            (TEXT, in_text.clone(), TokenLocation::TextBody),
            ("text/plain; charset=us-ascii", in_text.clone(), TokenLocation::TextBody),
            (TEXT, json(), TokenLocation::JsonBody),
            (TEXT, format!("\u{feff} {}", json()), TokenLocation::JsonBody),
            (FORM, in_form.clone(), TokenLocation::FormBody),
            ("application/x-www-form-urlencoded;charset=utf-8", in_form.clone(), TokenLocation::FormBody),
        ] {
            let mut request = post(content_type, Script::of(&body));
            *request.method_mut() = method.clone();
            let (found, read) = accepted(&sniffing, request).await;
            assert_eq!(found, location, "{method} {content_type}");
            assert_eq!(read, body);
        }
    }
    for method in [Method::GET, Method::HEAD, Method::DELETE, Method::OPTIONS] {
        let mut request = post(JSON, Script::of(json()));
        *request.method_mut() = method.clone();
        assert_eq!(rejection_kind(&gate(), request).await, RejectionKind::Missing, "{method}");
    }
    // Bodies of gRPC are framed, whatever the frames contain.
    let other =
        ["application/jsonp", "json", "+json", "+json/x", "text/plainer", "multipart/form-data; boundary=x", ""];
    let framed = [
        "application/grpc+json",
        "Application/GRPC+json; x=y",
        "application/grpc-web+json",
        "Application/gRPC-Web+json",
        "application/grpc-web-text+json",
        "application/connect+json",
    ];
    for content_type in [&other[..], &framed].concat() {
        let kind = rejection_kind(&gate(), post(content_type, Script::of(json()))).await;
        assert_eq!(kind, RejectionKind::Missing, "{content_type}");
    }
    assert_eq!(
        rejection_kind(&gate(), post(TEXT, Script::of(json()))).await,
        RejectionKind::Missing,
        "text is not searched for JSON by default"
    );
    let mut untyped = post(JSON, Script::of(json()));
    untyped.headers_mut().remove("content-type");
    assert_eq!(rejection_kind(&gate(), untyped).await, RejectionKind::Missing);
}

#[tokio::test]
async fn bodies_without_an_enabled_location_are_not_read() {
    let json_only = AuthLayer::new(memory())
        .with_body_tokens(BodyTokens::with_timeout(TIMEOUT).with_json("key").unwrap().with_limit(8));
    // Longer than the limit, endless and full of tokens.
    let endless = || Script::new([Step::Data(format!("access_token={TOKEN}&key={TOKEN};").into()), Step::Silence]);
    let ignoring = tower::service_fn(|request: Request<ReplayBody<Script>>| async move {
        drop(request);
        Ok::<_, Infallible>(Response::new(Body::default()))
    });
    for (content_type, encoding) in [(FORM, None), (TEXT, None), ("application/grpc+json", None), (JSON, Some("gzip"))]
    {
        let body = endless();
        let taken = body.taken();
        let mut request = authorized(post(content_type, body));
        if let Some(encoding) = encoding {
            request.headers_mut().insert("content-encoding", HeaderValue::from_static(encoding));
        }
        let response = json_only.layer(ignoring).oneshot(request).await.unwrap();
        assert_eq!((response.status().as_u16(), taken.load(Ordering::SeqCst)), (200, 0), "{content_type}");
    }
    // Forwarded piece by piece, beyond the limit.
    let steps = pieces(&[b'x'; 100], &[], &[], Some(7));
    let (response, _) = respond(&json_only, authorized(post(TEXT, Script::new(steps)))).await;
    assert_eq!(response.extensions().get::<Trailers>(), Some(&Trailers(Some(sums(7)))));
    assert_eq!(text(response).await, "x".repeat(100));
}

#[tokio::test]
async fn encoded_bodies_are_not_searched() {
    for (lines, open) in [
        (&["identity"][..], true),
        (&["Identity , "], true),
        (&[""], true),
        (&["gzip"], false),
        (&["identity, br"], false),
        (&["identity", "zstd"], false),
        (&["x-unknown"], false),
    ] {
        let request = || {
            let mut request = post(JSON, Script::of(json_with(TOKEN)));
            for line in lines {
                request.headers_mut().append("content-encoding", HeaderValue::from_static(line));
            }
            request
        };
        if open {
            assert_eq!(accepted(&gate(), request()).await.0, TokenLocation::JsonBody, "{lines:?}");
        } else {
            assert_eq!(rejection_kind(&gate(), request()).await, RejectionKind::Missing, "{lines:?}");
            // The body is not searched, so it does not conflict with another credential.
            assert_eq!(
                accepted(&gate(), authorized(request())).await.0,
                TokenLocation::AuthorizationHeader,
                "{lines:?}"
            );
        }
    }
}

#[tokio::test]
async fn two_content_types_pass_when_no_body_location_is_enabled() {
    let closed = AuthLayer::new(memory()).with_body_tokens(BodyTokens::with_timeout(TIMEOUT));
    let mut twice = post(JSON, Body::default());
    twice.headers_mut().append("content-type", HeaderValue::from_static(TEXT));
    assert_eq!(rejection_kind(&closed, twice.clone()).await, RejectionKind::Missing);
    assert_eq!(accepted(&closed, authorized(twice)).await.0, TokenLocation::AuthorizationHeader);
}

#[tokio::test]
async fn contradictory_content_types_are_rejected_before_reading() {
    let mut twice = post(JSON, Script::of(json_with(TOKEN)));
    twice.headers_mut().append("content-type", HeaderValue::from_static(TEXT));
    let mut framed = post("application/grpc", Script::of(json_with(TOKEN)));
    framed.headers_mut().append("content-type", HeaderValue::from_static(JSON));
    let mut equal = post(JSON, Script::of(json_with(TOKEN)));
    equal.headers_mut().append("content-type", HeaderValue::from_static(JSON));
    let of_type = |content_type: &str| post(content_type, Script::of(json_with(TOKEN)));
    for request in [
        twice,
        framed,
        equal,
        of_type("application/json; charset=iso-8859-1"),
        of_type("application/json;v=1;CHARSET=\"UTF-16\""),
        of_type("text/plain; charset=windows-1252"),
        of_type("application/x-www-form-urlencoded; charset=latin1"),
        of_type("application/json; charset=utf-8; charset=utf-16"),
        of_type("application/json; charset="),
    ] {
        let content_type = format!("{:?}", request.headers());
        let taken = request.body().taken();
        let kind = rejection_kind(&gate(), authorized(request)).await;
        assert_eq!(kind, RejectionKind::InvalidRequest, "{content_type}");
        assert_eq!(taken.load(Ordering::SeqCst), 0);
    }
    // The charset does not matter where no location is enabled.
    let request = authorized(of_type("text/html; charset=iso-8859-1"));
    assert_eq!(accepted(&gate(), request).await.0, TokenLocation::AuthorizationHeader);
}

#[tokio::test]
async fn a_second_credential_in_the_body_is_rejected() {
    let layers = [gate(), AuthLayer::new(memory()).allow_anonymous().with_body_tokens(body_tokens())];
    for layer in layers {
        for (content_type, body) in [
            (JSON, json_with(TOKEN)),
            (JSON, json_with("mal formed")),
            (TEXT, format!("key={TOKEN}")),
            (TEXT, "key=".to_owned()),
            (FORM, format!("access_token={TOKEN}")),
            (FORM, "access_token".to_owned()),
            (JSON, format!(r#"{{"key":"{TOKEN}","key":"{TOKEN}"}}"#)),
            (TEXT, format!("key={TOKEN};KEY={TOKEN}")),
            (TEXT, "key".to_owned()),
            (FORM, format!("access_token={TOKEN}&access_token={TOKEN}")),
            (JSON, "{".to_owned()),
        ] {
            let request = authorized(post(content_type, Script::of(&body)));
            assert_eq!(rejection_kind(&layer, request).await, RejectionKind::InvalidRequest, "{body}");
        }
        let mut malformed = post(JSON, Script::of(json_with(TOKEN)));
        malformed.headers_mut().insert("authorization", HeaderValue::from_static("Bearer"));
        assert_eq!(rejection_kind(&layer, malformed).await, RejectionKind::InvalidRequest);
    }
    for (content_type, body) in [(JSON, r#"{"key":null}"#), (JSON, ""), (TEXT, "a=b"), (FORM, "key=x"), (JSON, "[]")] {
        let (location, read) = accepted(&gate(), authorized(post(content_type, Script::of(body)))).await;
        assert_eq!((location, &read[..]), (TokenLocation::AuthorizationHeader, body.as_bytes()));
    }
}
