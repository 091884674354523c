//! The settings of an introspection store.

use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tollgate::store::{ClientAuth, IntrospectionConfigError, IntrospectionStore};

use crate::kit::introspection::*;

#[test]
fn invalid_settings_return_errors() {
    use IntrospectionConfigError as Invalid;
    let build = |url: &str| IntrospectionStore::new(url, auth()).map(|_| ());
    for good in [
        "https://id.example/introspect",
        "HTTPS://id.example:8443/a?b=c",
        "http://127.0.0.1:8080/",
        "http://127.8.9.1/",
        "http://[::1]:8080/introspect",
    ] {
        assert_eq!(build(good), Ok(()), "{good}");
    }
    for (bad, why) in [
        ("", Invalid::Endpoint),
        ("/introspect", Invalid::Endpoint),
        ("id.example/introspect", Invalid::Endpoint),
        ("https:///", Invalid::Endpoint),
        ("ftp://id.example/", Invalid::Endpoint),
        ("mailto:a@id.example", Invalid::Endpoint),
        (" https://id.example/", Invalid::Endpoint),
        ("https://id.exa\nmple/", Invalid::Endpoint),
        ("https:\\\\id.example/", Invalid::Endpoint),
        ("http://id.example/", Invalid::Insecure),
        ("http://localhost/", Invalid::Insecure),
        ("http://127.0.0.1.example/", Invalid::Insecure),
        ("http://10.0.0.1/", Invalid::Insecure),
        ("https://user@id.example/", Invalid::UserInfo),
        ("https://:pass@id.example/", Invalid::UserInfo),
        ("https://id.example/#part", Invalid::Fragment),
        ("https://id.example/#", Invalid::Fragment),
    ] {
        assert_eq!(build(bad), Err(why), "{bad}");
    }
    let url = "https://id.example/";
    let with = || IntrospectionStore::builder(url, auth());
    assert!(IntrospectionStore::builder("http://id.example/", auth()).with_insecure_http().build().is_ok());
    let ftp = IntrospectionStore::builder("ftp://id.example/", auth()).with_insecure_http();
    assert_eq!(ftp.build().map(|_| ()), Err(Invalid::Endpoint));
    for (builder, why) in [
        (with().with_timeout(Duration::ZERO), Invalid::Timeout),
        (with().with_connect_timeout(Duration::ZERO), Invalid::Timeout),
        (with().with_max_answer(0), Invalid::MaxAnswer),
        (with().with_audience(""), Invalid::Audience),
        (with().with_root_certificate_pem(b""), Invalid::RootCertificate),
        (with().with_root_certificate_pem(b"no PEM"), Invalid::RootCertificate),
        (
            with().with_root_certificate_pem(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
            Invalid::RootCertificate,
        ),
    ] {
        assert_eq!(builder.build().map(|_| ()), Err(why));
    }
    assert_eq!(ClientAuth::basic("", "s").map(|_| ()), Err(Invalid::ClientId));
    for bad in ["", "=", "a b", "a=b", "a\n", "é", "a\"b"] {
        assert_eq!(ClientAuth::bearer(bad).map(|_| ()), Err(Invalid::BearerToken), "{bad:?}");
    }
}

#[test]
fn debug_output_contains_no_credentials() {
    let url = "https://id.example/introspect?key=s3cret";
    let auth = ClientAuth::basic("gate", "s3cret").unwrap();
    let builder = IntrospectionStore::builder(url, auth.clone());
    let mut printed = format!("{auth:?} {:?} {builder:?}", ClientAuth::bearer("s3cret").unwrap());
    let store = builder.build().unwrap();
    printed.push_str(&format!("{store:?} {:?}", store.clone()));
    assert!(printed.contains("https://id.example/introspect") && !printed.contains("s3cret"), "{printed}");
    assert!(!printed.contains(&BASE64_STANDARD.encode("gate:s3cret")), "{printed}");
}
