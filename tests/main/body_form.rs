//! Tokens in form bodies.

use tollgate::extract;
use tollgate::extract::TokenSyntax;

use crate::kit::body::*;

#[test]
fn form_edge_cases() {
    let verdict = |body: &[u8], name: &str| Found::from(extract::form(body, name, TokenSyntax::default()));
    let abc = || Found::Token(b"abc".to_vec());
    for (body, name, expected) in [
        (&b"access_token=abc"[..], "access_token", abc()),
        (b"&&access_token=abc&", "access_token", abc()),
        (b"a=\xff%zz&access_token=%61bc", "access_token", abc()),
        (b"access_token=a%2Bb", "access_token", Found::Token(b"a+b".to_vec())),
        // A plus is a space in a form, in names too.
        (b"access_token=a+b", "access_token", Found::Malformed),
        (b"access+token=abc", "access token", abc()),
        (b"access%2Btoken=abc", "access token", Found::Nothing),
        (b"access_token=%2561bc", "access_token", Found::Malformed),
        (b"access_token=ab%6", "access_token", Found::Malformed),
        (b"access_token=abc\r\n", "access_token", Found::Malformed),
        (b"access_token", "access_token", Found::Malformed),
        (b"access_token=&x", "access_token", Found::Malformed),
        (b"access_token=abc&access_token=abc", "access_token", Found::Ambiguous),
        (b"access_token&access%5ftoken=abc", "access_token", Found::Ambiguous),
        (b"a=1;access_token=abc", "access_token", Found::Nothing),
        (b"Access_Token=abc", "access_token", Found::Nothing),
        (b"", "access_token", Found::Nothing),
    ] {
        assert_eq!(verdict(body, name), expected, "{}", String::from_utf8_lossy(body));
    }
}
