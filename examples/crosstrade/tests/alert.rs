//! The two forms of an alert, without a server.

use axum::http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};

use crate::alert::{Alert, Command};
use crate::problem::ProblemDetails;
use crate::self_limit::SelfLimit;

fn parse(content_type: &'static str, body: &str) -> Result<Alert, ProblemDetails> {
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static(content_type))]);
    Alert::parse(&headers, body.as_bytes())
}

#[test]
fn text_and_json_give_the_same_alert() {
    for (content_type, body) in [
        ("text/plain", "\u{feff}key=***;command=CANCELALLORDERS;id= a ;rate_limit= 3/900 "),
        ("text/plain; charset=utf-8", "KEY=***; Command=cancelAllOrders;\r\nID=a;\r\nRate_Limit=3/900;\r\n"),
        ("application/json", r#"{"key":"***","command":"CANCELALLORDERS","id":"a","rate_limit":"3/900"}"#),
        ("text/plain", "\u{feff}\n {\"command\":\"CANCELALLORDERS\",\"id\":\"a\",\"rate_limit\":\"3/900\"}"),
        (
            "Application/Vnd.Alert+JSON",
            "\u{feff}{\"command\":\"CancelAllOrders\",\"id\":\" a\",\"rate_limit\":\"3/900\"}",
        ),
    ] {
        let alert = parse(content_type, body).unwrap();
        assert!(matches!(alert.command, Command::CancelAllOrders { account: None }), "{body}");
        assert_eq!(alert.limit, Some(("a".to_owned(), SelfLimit { count: 3, window_s: 900 })), "{body}");
    }
}

#[test]
fn an_invalid_limit_is_an_error() {
    for rate_limit in ["true", "[1]", "{}", "3.0", "1e0", "-1", "\"\"", "\"1\",\"rate_limit\":\"1000\""] {
        let body = format!(r#"{{"command":"CANCELALLORDERS","id":"a","rate_limit":{rate_limit}}}"#);
        assert!(parse("application/json", &body).is_err(), "{rate_limit}");
    }
    // A JSON number counts as its digits; null counts as absent.
    let limit = |rate_limit: &str| {
        let body = format!(r#"{{"command":"CANCELALLORDERS","id":7,"rate_limit":{rate_limit}}}"#);
        parse("application/json", &body).unwrap().limit
    };
    assert_eq!(limit("3"), Some(("7".to_owned(), SelfLimit { count: 3, window_s: 60 })));
    assert_eq!(limit("null"), None);
}

#[test]
fn a_missing_order_field_is_named() {
    let body = "command=PLACE;account=sim101;instrument=es 12-26;action=buy;qty=2;comment=a=b;";
    let Command::Place { account, ticket } = parse("text/plain", body).unwrap().command else { panic!() };
    assert_eq!((account.as_str(), ticket.instrument.as_str(), ticket.qty), ("sim101", "ES 12-26", 2));
    for left_out in ["account=sim101;", "instrument=es 12-26;", "action=buy;", "qty=2;", "command=PLACE;"] {
        let detail = parse("text/plain", &body.replace(left_out, "")).unwrap_err().detail;
        let name = left_out.split('=').next().unwrap();
        assert_eq!(detail, format!("The alert has no `{name}`."));
    }
}
