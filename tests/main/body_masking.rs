//! Removal of tokens from bodies: exactly the token is masked, in every format and spelling.

use bytes::Bytes;
use http_body_util::BodyExt as _;
use proptest::prelude::*;
use tollgate::TokenDigest;
use tollgate::{AuthLayer, CurrentGrant, Grant, MemoryStore, TokenLocation};

use crate::kit::body::*;
use crate::kit::*;

/// A token with all characters that `b64token` allows.
const ODD: &str = "tg/a+b-C.9_~==";

/// A body with a token, in one of many spellings.
#[derive(Clone, Debug)]
struct Document {
    content_type: &'static str,
    location: TokenLocation,
    before: String,
    secret: String,
    after: String,
}

fn join(parts: Vec<&'static str>, separator: &str) -> (String, String) {
    let joined = parts.join(separator);
    if parts.is_empty() {
        (String::new(), String::new())
    } else {
        (format!("{joined}{separator}"), format!("{separator}{joined}"))
    }
}

fn others(of: &[&'static str]) -> impl Strategy<Value = Vec<&'static str>> + use<> {
    prop::collection::vec(prop::sample::select(of.to_vec()), 0..4)
}

fn json_documents() -> impl Strategy<Value = Document> {
    let members = || {
        others(&[
            r#""a":1"#,
            r#" "nested" : {"key":"inner","more":["key"]} "#,
            r#""Key":"x""#,
            r#""text":"\"key\":\"evil\" \\""#,
            r#""deep":[[[[{}]]]]"#,
            r#""n":-1.5e999999"#,
            "\"\u{e9}\":\"\u{1f600}\\ud83d\\ude00\"",
        ])
    };
    let names = prop::sample::select(vec!["key", "\\u006bey", "k\\u0065\\u0079", "\\u006B\\u0065y"]);
    let spelling = prop::collection::vec(0..4_u8, 1..15);
    let spaces = [spaces(), spaces(), spaces(), spaces(), spaces()];
    (mark(), spaces, members(), names, spelling, members()).prop_map(|(mark, spaces, before, name, spelling, after)| {
        let [a, b, c, d, e] = spaces;
        let secret: String = ODD
            .chars()
            .zip(spelling.into_iter().cycle())
            .map(|(char, way)| match (way, char) {
                (1, _) => format!("\\u{:04x}", u32::from(char)),
                (2, _) => format!("\\u{:04X}", u32::from(char)),
                (3, '/') => "\\/".to_owned(),
                _ => char.to_string(),
            })
            .collect();
        Document {
            content_type: JSON,
            location: TokenLocation::JsonBody,
            before: format!("{mark}{a}{{{}{b}\"{name}\"{c}:{d}\"", join(before, ",").0),
            secret,
            after: format!("\"{e}{}}}{a}", join(after, ",").1),
        }
    })
}

fn text_documents() -> impl Strategy<Value = Document> {
    let fields =
        || others(&["a=b", "command = PLACE", "comment=key=evil", "", "\r\n", "keys=x", "\u{e9}=\u{fc}", "plain"]);
    let names = prop::sample::select(vec!["key", "KEY", " kEy\t", "\r\nkey "]);
    let last = prop::sample::select(vec!["", ";", ";\r\n"]);
    (mark(), fields(), names, spaces(), spaces(), fields(), last).prop_map(
        |(mark, before, name, left, right, after, last)| Document {
            content_type: TEXT,
            location: TokenLocation::TextBody,
            before: format!("{mark}{}{name}={left}", join(before, ";").0),
            secret: ODD.to_owned(),
            after: format!("{right}{}{last}", join(after, ";").1),
        },
    )
}

fn form_documents() -> impl Strategy<Value = Document> {
    let fields =
        || others(&["a=b", "", "=", "Access_token=x", "c=access_token=evil", "\u{e9}=%zz", "a;access_token=1", "+"]);
    let names = prop::sample::select(vec!["access_token", "access%5Ftoken", "%61ccess_token"]);
    (fields(), names, prop::collection::vec(0..3_u8, 1..15), fields()).prop_map(|(before, name, spelling, after)| {
        let secret: String = ODD
            .bytes()
            .zip(spelling.into_iter().cycle())
            .map(|(byte, way)| match (way, byte) {
                (1, _) | (_, b'+') => format!("%{byte:02x}"),
                (2, _) => format!("%{byte:02X}"),
                _ => char::from(byte).to_string(),
            })
            .collect();
        Document {
            content_type: FORM,
            location: TokenLocation::FormBody,
            before: format!("{}{name}=", join(before, "&").0),
            secret,
            after: join(after, "&").1,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(768))]

    #[test]
    fn with_credentials_removed_masks_exactly_the_token(
        document in prop_oneof![json_documents(), text_documents(), form_documents()],
        cuts in cuts(),
        waits in prop::collection::vec(any::<bool>(), 0..10),
        trailers in any::<Option<u8>>(),
    ) {
        let Document { content_type, location, before, secret, after } = document;
        let sent = format!("{before}{secret}{after}");
        let masked = format!("{before}{}{after}", "*".repeat(secret.len()));
        let tokens = || MemoryStore::from_iter([(TokenDigest::of(ODD), Grant::new("odd", ()))]);
        for (layer, expected) in [
            (AuthLayer::new(tokens()), &sent),
            (AuthLayer::new(tokens()).with_credentials_removed(), &masked),
        ] {
            let steps = pieces(sent.as_bytes(), &cuts, &waits, trailers);
            let request = post(content_type, Script::new(steps));
            let (response, runs) = block_on(respond(&layer.with_body_tokens(body_tokens()), request));
            prop_assert_eq!((response.status().as_u16(), runs), (200, 1));
            prop_assert_eq!(response.extensions().get::<CurrentGrant>().unwrap().location(), location);
            prop_assert_eq!(response.extensions().get::<Trailers>().unwrap(), &Trailers(trailers.map(sums)));
            let read = block_on(response.into_body().collect()).unwrap().to_bytes();
            prop_assert_eq!(&read, expected.as_bytes());
        }
    }
}

#[tokio::test]
async fn shared_bytes_are_copied_before_masking() {
    let sent = Bytes::from(json_with(TOKEN));
    let layer = AuthLayer::new(memory()).with_credentials_removed().with_body_tokens(body_tokens());
    let (location, read) = accepted(&layer, post(JSON, Body::from(sent.clone()))).await;
    assert_eq!(location, TokenLocation::JsonBody);
    assert_eq!(read, json_with(&"*".repeat(TOKEN.len())));
    assert_eq!(sent, json_with(TOKEN));
}
