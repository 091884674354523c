//! Tokens in text bodies.

use tollgate::extract::TokenSyntax;
use tollgate::gate::BodyTokens;
use tollgate::{AuthLayer, extract};
use tower::{Layer as _, ServiceExt as _};

use crate::kit::body::*;
use crate::kit::*;

#[test]
fn text_edge_cases() {
    let verdict = |body: &[u8]| Found::from(extract::text(body, "key", TokenSyntax::default()));
    let abc = || Found::Token(b"abc".to_vec());
    for (body, expected) in [
        (&b"key=abc"[..], abc()),
        (b"\xef\xbb\xbfKEY = abc ;", abc()),
        (b"a=1;\r\n key\t=\n abc\r\n;qty=1", abc()),
        (b";;key=abc;;", abc()),
        (b"key=ab==;", Found::Token(b"ab==".to_vec())),
        (b"key=%61bc;", Found::Malformed),
        (b"key=\"abc\";", Found::Malformed),
        (b"key=a=b;", Found::Malformed),
        (b"key=;", Found::Malformed),
        (b"key= \r\n;", Found::Malformed),
        (b"key=a\nqty=1;", Found::Malformed),
        (b"key=\xc2\xa0abc;", Found::Malformed),
        (b"key;", Found::Ambiguous),
        (b"key=abc;comment=;Key=abc", Found::Ambiguous),
        (b"key=abc;key", Found::Ambiguous),
        (b"key=abc;x=\xff", Found::Ambiguous),
        (b"a=1;\xef\xbb\xbfkey=abc", Found::Nothing),
        (b"comment=key=abc", Found::Nothing),
        (b"", Found::Nothing),
    ] {
        assert_eq!(verdict(body), expected, "{}", String::from_utf8_lossy(body));
    }
}

#[tokio::test]
async fn text_that_looks_like_json_is_text_without_a_json_location() {
    let body_tokens = BodyTokens::with_timeout(TIMEOUT).with_text("key").unwrap().with_json_in_text();
    let service = AuthLayer::new(memory()).with_body_tokens(body_tokens).layer(reader::<Script>(&Runs::default()));
    let mut request = post(TEXT, Script::of("{;key=other;"));
    request.headers_mut().insert("authorization", format!("Bearer {TOKEN}").parse().unwrap());
    // A second credential, which must not be overlooked.
    assert_eq!(service.oneshot(request).await.unwrap().status(), 400);
}
