//! Checks of responses.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use http::{HeaderMap, header};
use http_auth::parser::ChallengeParser;
use sfv::{BareItem, ListEntry, Parser};
use tollgate::{Rejection, RejectionKind};

use super::gate::{Collected, Gate};
use super::model::Expected;
use super::options::{INTERVAL_NS, OTHER, Options};
use crate::oracle::{Decision, Speaks, latin_1, protocol, query_of, seconds_up};
use crate::request::{Sent, TokenLocation};

/// Checks the response, as independent parsers read it.
pub fn check(answer: &Collected, expected: &Expected, request: &Sent, options: &Options) {
    let kind = answer.extensions().get().map(Rejection::kind);
    let headers = answer.headers();
    let challenges = challenges(headers);
    match expected {
        Expected::Rejected { kind: should_be, decision } => {
            assert_eq!(kind, Some(*should_be));
            // A store that does not say when it is back gets the default of 1 second.
            let unavailable = (*should_be == RejectionKind::StoreUnavailable).then(|| "1".to_owned());
            assert_eq!(value(headers, "retry-after"), decision.and_then(retry_after).or(unavailable));
            check_limits(headers, decision.as_ref(), options);
            assert_eq!(value(headers, "cache-control").as_deref(), Some("no-store"));
            let has_query = options.locations.query;
            assert_eq!(value(headers, "referrer-policy").as_deref(), has_query.then_some("no-referrer"));
            let speaks = protocol(request);
            let (status, error) = match (speaks, status(*should_be)) {
                (Speaks::Http, expected) => expected,
                (Speaks::Connect, (_, error)) => (connect_code(*should_be).1, error),
                _ => (200, None),
            };
            assert_eq!(answer.status().as_u16(), status);
            check_challenge(&challenges, status, error);
            let mut content = &answer.body()[..];
            if request.method == "HEAD" {
                let length = value(headers, "content-length").expect("the length that GET would have");
                assert!(content.is_empty() && length.parse::<usize>().is_ok(), "{length}");
                return;
            }
            if let Speaks::Grpc | Speaks::GrpcWeb = speaks {
                assert_eq!(value(headers, "grpc-status").as_deref(), Some(grpc_status(*should_be)));
                assert!(content.is_empty());
                return;
            }
            if speaks == Speaks::ConnectStream {
                let prefix;
                (prefix, content) = content.split_first_chunk::<5>().expect("an envelope");
                assert_eq!((prefix[0], usize::from(prefix[3]) << 8 | usize::from(prefix[4])), (2, content.len()));
            }
            let json: serde_json::Value = serde_json::from_slice(content).expect("JSON");
            match speaks {
                Speaks::Connect => assert_eq!(json["code"], connect_code(*should_be).0),
                Speaks::ConnectStream => assert_eq!(json["error"]["code"], connect_code(*should_be).0),
                _ => assert_eq!(json["status"], status),
            }
        }
        Expected::Admitted { location, decision, .. } => {
            check_limits(headers, Some(decision), options);
            let is_protected = *location == TokenLocation::Header;
            assert_eq!(value(headers, "cache-control").as_deref(), (!is_protected).then_some("private"));
            let is_query = *location == TokenLocation::Query;
            assert_eq!(value(headers, "referrer-policy").as_deref(), is_query.then_some("no-referrer"));
        }
        Expected::Preflight | Expected::Anonymous => check_limits(headers, None, options),
    }
    if !matches!(expected, Expected::Rejected { .. }) {
        assert_eq!((kind, answer.status().as_u16(), &answer.body()[..]), (None, 200, &b"inner"[..]));
        assert!(challenges.is_empty());
    }
}

/// Returns the status by RFC 6750, section 3.1, and the decision table, and the error of the challenge, if it has one.
fn status(kind: RejectionKind) -> (u16, Option<&'static str>) {
    match kind {
        RejectionKind::Missing => (401, None),
        RejectionKind::InvalidRequest => (400, Some("invalid_request")),
        RejectionKind::BodyTooLarge => (413, None),
        RejectionKind::OverLimit => (429, None),
        RejectionKind::StoreUnavailable => (503, None),
        _ => (401, Some("invalid_token")),
    }
}

fn grpc_status(kind: RejectionKind) -> &'static str {
    match kind {
        RejectionKind::OverLimit | RejectionKind::BodyTooLarge => "8",
        RejectionKind::StoreUnavailable => "14",
        _ => "16",
    }
}

/// The code of Connect, and its status.
fn connect_code(kind: RejectionKind) -> (&'static str, u16) {
    match grpc_status(kind) {
        "8" => ("resource_exhausted", 429),
        "14" => ("unavailable", 503),
        _ => ("unauthenticated", 401),
    }
}

fn check_challenge(challenges: &[(String, BTreeMap<String, String>)], status: u16, error: Option<&str>) {
    if status != 401 && status != 400 {
        return assert!(challenges.is_empty());
    }
    let [(scheme, parameters)] = challenges else { panic!("one challenge: {challenges:?}") };
    assert_eq!(scheme, "Bearer");
    assert_eq!(parameters.get("realm").map(String::as_str), Some("api"));
    assert_eq!(parameters.get("error").map(String::as_str), error);
}

/// Returns schemes and parameters, as an independent parser reads them.
fn challenges(headers: &HeaderMap) -> Vec<(String, BTreeMap<String, String>)> {
    let lines = headers.get_all(header::WWW_AUTHENTICATE).iter().map(|line| line.to_str().expect("ASCII"));
    let challenges = lines.flat_map(|line| ChallengeParser::new(line).map(|parsed| parsed.expect("a challenge")));
    let pairs = challenges.map(|challenge| {
        let names = challenge.params.len();
        let parameters: BTreeMap<_, _> =
            challenge.params.iter().map(|(name, value)| ((*name).to_owned(), value.to_unescaped())).collect();
        assert!(parameters.len() == names && names > 0, "at least one parameter, none twice");
        (challenge.scheme.to_owned(), parameters)
    });
    pairs.collect()
}

fn retry_after(decision: Decision) -> Option<String> {
    decision.wait.map(|wait| seconds_up(wait).max(1).to_string())
}

/// Checks the fields of draft-ietf-httpapi-ratelimit-headers-10.
fn check_limits(headers: &HeaderMap, decision: Option<&Decision>, options: &Options) {
    let Some(decision) = decision else {
        return assert!(!headers.contains_key("ratelimit") && !headers.contains_key("ratelimit-policy"));
    };
    let burst = i128::from(options.burst);
    let policy = item(headers, "ratelimit-policy");
    assert_eq!((policy.get("q"), policy.get("w")), (Some(&burst), Some(&seconds_up(burst * INTERVAL_NS))));
    let state = item(headers, "ratelimit");
    assert_eq!(state.get("r"), Some(&decision.remaining));
    assert_eq!(state.get("t"), Some(&seconds_up(decision.more_in)));
    assert_eq!(state.contains_key("pk"), options.partition_key);
}

/// Returns the numbers of the only item of a list, as an independent parser reads it.
fn item(headers: &HeaderMap, name: &str) -> BTreeMap<String, i128> {
    let value = value(headers, name).unwrap_or_default();
    let list: sfv::List = Parser::new(&value).parse().unwrap_or_else(|error| panic!("{name}: {value}: {error}"));
    let [ListEntry::Item(item)] = &list[..] else { panic!("{name}: {value} is one item") };
    assert!(matches!(&item.bare_item, BareItem::String(policy) if policy.as_str() == "default"));
    let number = |value: &BareItem| match value {
        BareItem::Integer(number) => i128::from(i64::from(*number)),
        BareItem::ByteSequence(_) => 0,
        other => panic!("{name}: {other:?}"),
    };
    item.params.iter().map(|(key, value)| (key.as_str().to_owned(), number(value))).collect()
}

/// Returns the value of a field that occurs at most once.
fn value(headers: &HeaderMap, name: &str) -> Option<String> {
    assert!(headers.get_all(name).iter().count() <= 1, "{name} occurs twice");
    headers.get(name).map(|value| latin_1(value.as_bytes()))
}

/// The words of a request's credentials, which no response may contain.
pub struct Secrets(Vec<String>);

/// Shorter words may occur by chance.
const MIN_SECRET: usize = 8;

impl Secrets {
    /// Collects all words where credentials may be. Words that a gate always sends are left out, because libFuzzer
    /// watches comparisons and finds them.
    pub fn of(request: &Sent) -> Self {
        let fields = ["authorization", "x-api-key", OTHER, "sec-websocket-protocol"];
        let mut places: Vec<String> = fields.iter().flat_map(|name| request.lines(name)).collect();
        places.extend(query_of(&request.target).map(str::to_owned));
        places.push(latin_1(&request.body));
        let words =
            places.iter().flat_map(|place| place.split(|c: char| !c.is_ascii_graphic() || ",\"\\;=&".contains(c)));
        let words = words.filter(|word| word.len() >= MIN_SECRET && !common_text().contains(&without_numbers(word)));
        Self(words.map(str::to_owned).collect())
    }

    pub fn check(&self, answer: &Collected) {
        let printed = printed(answer);
        for word in &self.0 {
            assert!(memchr::memmem::find(printed.as_bytes(), word.as_bytes()).is_none(), "{word} in {printed}");
        }
    }
}

fn printed(answer: &Collected) -> String {
    let rejection = answer.extensions().get::<Rejection>();
    let source = rejection.and_then(|rejection| std::error::Error::source(rejection)).map(ToString::to_string);
    format!("{} {:?} {:?} {rejection:?} {source:?}", answer.status(), answer.headers(), answer.body())
        + &rejection.map_or(String::new(), |rejection| format!("{rejection} {rejection:#?}"))
}

/// Replaces digits, which differ between responses.
fn without_numbers(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect()
}

/// Returns everything that a gate sends for requests without secrets.
fn common_text() -> &'static str {
    static TEXT: OnceLock<String> = OnceLock::new();
    TEXT.get_or_init(|| {
        let mut text = String::new();
        for limit in [0, 0x40] {
            let gate = Gate::new(&Options::of([0, 8, limit]));
            let mut send = |request: &Sent| {
                for content_type in ["", "application/grpc", "text/plain", "application/grpc+json"] {
                    let mut request = request.clone();
                    request.headers.push(("content-type".to_owned(), content_type.to_owned()));
                    text += &without_numbers(&printed(&gate.send(&request, 0).0));
                }
            };
            for token in ["", "a", "a", "bb", "bb", "nope", "old", "soon", "dpop", "any", "?", ","] {
                send(&Sent::of(&format!("Bearer {token}")));
                send(&Sent { headers: vec![("x-api-key".to_owned(), token.to_owned())], ..Sent::of("") });
            }
            send(&Sent::of(""));
            send(&Sent { target: "/?access_token=a".to_owned(), ..Sent::of("") });
            send(&Sent { method: "POST".to_owned(), body: vec![b' '; 300], ..Sent::of("") });
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::Response;

    use super::*;

    fn request() -> Sent {
        Sent { body: b"key=another-secret;".to_vec(), ..Sent::of("Bearer a-secret-token, no-store") }
    }

    #[test]
    fn secrets_are_the_words_of_credentials_without_common_text() {
        assert_eq!(Secrets::of(&request()).0, ["a-secret-token", "another-secret"]);
    }

    #[test]
    #[should_panic(expected = "a-secret-token in 200 OK")]
    fn a_credential_in_a_header_is_detected() {
        let answer = Response::builder().header("x-echo", "Bearer a-secret-token").body(Bytes::new());
        Secrets::of(&request()).check(&answer.unwrap());
    }

    #[test]
    #[should_panic(expected = "another-secret in 200 OK")]
    fn a_credential_in_a_body_is_detected() {
        Secrets::of(&request()).check(&Response::new(Bytes::from_static(b"you sent another-secret")));
    }
}
