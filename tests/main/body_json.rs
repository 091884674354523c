//! Tokens in JSON bodies, compared with a parser of the whole document.

use std::fmt;

use proptest::prelude::*;
use proptest::sample::Index;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use tollgate::extract::TokenSyntax;
use tollgate::{AuthLayer, extract};

use crate::kit::body::*;
use crate::kit::*;

/// A complete document with all members in order.
enum Tree {
    Object(Vec<(String, Tree)>),
    Array(Vec<Tree>),
    String(String),
    Null,
    Other,
}

impl Tree {
    fn depth(&self) -> usize {
        match self {
            Self::Object(members) => 1 + members.iter().map(|(_, value)| value.depth()).max().unwrap_or(0),
            Self::Array(items) => 1 + items.iter().map(Self::depth).max().unwrap_or(0),
            _ => 0,
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Builder;

        impl<'de> Visitor<'de> for Builder {
            type Value = Tree;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("JSON")
            }

            fn visit_unit<E>(self) -> Result<Tree, E> {
                Ok(Tree::Null)
            }

            fn visit_bool<E>(self, _: bool) -> Result<Tree, E> {
                Ok(Tree::Other)
            }

            fn visit_i64<E>(self, _: i64) -> Result<Tree, E> {
                Ok(Tree::Other)
            }

            fn visit_u64<E>(self, _: u64) -> Result<Tree, E> {
                Ok(Tree::Other)
            }

            fn visit_f64<E>(self, _: f64) -> Result<Tree, E> {
                Ok(Tree::Other)
            }

            fn visit_str<E>(self, text: &str) -> Result<Tree, E> {
                Ok(Tree::String(text.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Tree, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = seq.next_element()? {
                    items.push(item);
                }
                Ok(Tree::Array(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Tree::Object(members))
            }
        }

        deserializer.deserialize_any(Builder)
    }
}

/// Checks RFC 6750, section 2.1, character by character.
fn is_b64token(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    !body.is_empty() && body.chars().all(|char| char.is_ascii_alphanumeric() || "-._~+/".contains(char))
}

/// Applies the extraction rules to a parsed document. Returns `None` where the parser rejects large numbers.
fn oracle(body: &[u8]) -> Option<Found> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    let Ok(text) = std::str::from_utf8(body) else { return Some(Found::Ambiguous) };
    if text.bytes().all(|byte| b" \t\r\n".contains(&byte)) {
        return Some(Found::Nothing);
    }
    let tree: Tree = match serde_json::from_str(text) {
        Ok(tree) => tree,
        Err(error) if error.to_string().starts_with("number out of range") => return None,
        Err(_) => return Some(Found::Ambiguous),
    };
    if tree.depth() > 64 {
        return Some(Found::Ambiguous);
    }
    let Tree::Object(members) = tree else { return Some(Found::Nothing) };
    let mut found = members.iter().filter(|(name, _)| name == "key").map(|(_, value)| value);
    Some(match (found.next(), found.next()) {
        (None, _) => Found::Nothing,
        (Some(_), Some(_)) => Found::Ambiguous,
        (Some(Tree::Null), None) => Found::Nothing,
        (Some(Tree::String(text)), None) if is_b64token(text) => Found::Token(text.clone().into_bytes()),
        (Some(Tree::String(_)), None) => Found::Malformed,
        (Some(_), None) => Found::Ambiguous,
    })
}

/// Returns JSON strings with their quotes.
fn json_strings() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        8 => "[a-zA-Z0-9._~+/=-]{1,4}".boxed(),
        2 => prop::sample::select(vec![
            "\\n", "\\\"", "\\\\", "\\/", "\\u0041", "\\u00e9", "\\u0000", "\\ud83d\\ude00", "\\uDBFF\\uDFFF",
            "\\\\ud800", "\u{e9}", "\u{1f600}", "{", "]", ",", ":", "\\\\\\\\", "key", "\u{7f}",
        ]).prop_map(str::to_owned).boxed(),
        1 => prop::sample::select(vec![
            "\\ud800", "\\udc00", "\\ud83d\\n", "\\udc00\\ud800", "\\ud800\\ud800", "\\ud83dx", "\\u12", "\\x", "\n",
            "\\ud83d\\\\ude00", "\\", "\"", "\t", "\\ud83d\\u0041", "\\uD83D\\udE", "\\ug000",
        ]).prop_map(str::to_owned).boxed(),
    ];
    // Invalid pieces are rare, since one invalid piece makes the whole document invalid.
    let wrong = prop::collection::vec(piece, 0..4).prop_map(|pieces| format!("\"{}\"", pieces.concat()));
    let right = "[a-zA-Z0-9._~+/-]{0,6}={0,2}".prop_map(|text| format!("\"{text}\""));
    prop_oneof![12 => right, 1 => wrong]
}

/// Returns a spelling of the member name that is searched for.
fn spelled() -> impl Strategy<Value = String> {
    let spellings = ["\"key\"", "\"\\u006bey\"", "\"k\\u0065y\"", "\"ke\\u0079\"", "\"\\u006B\\u0065\\u0079\""];
    prop::sample::select(spellings.map(str::to_owned).to_vec())
}

/// Returns other member names. Some look similar.
fn names() -> impl Strategy<Value = String> {
    let alike =
        ["Key", "key ", "", "ke", "keys", "\\\\u006bey", "k\\u0435y", "k\\u0000ey", "$serde_json::private::RawValue"];
    prop_oneof![
        4 => prop::sample::select(alike.map(|name| format!("\"{name}\"")).to_vec()),
        8 => "\"[a-d]{1,3}\"",
        1 => spelled(),
    ]
}

fn values() -> impl Strategy<Value = String> {
    let words = ["null", "true", "false", "0", "-0", "-1.5e3", "1E-7", "18446744073709551616", "{}", "[]"];
    let finite = any::<f64>().prop_filter("JSON has no others", |number| number.is_finite());
    let leaf = prop_oneof![
        6 => json_strings(),
        2 => prop::sample::select(words.map(str::to_owned).to_vec()),
        1 => any::<i64>().prop_map(|number| number.to_string()),
        1 => finite.prop_map(|number| number.to_string()),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec((inner.clone(), spaces()), 0..4).prop_map(|items| {
                let items: Vec<String> =
                    items.into_iter().map(|(item, space)| format!("{space}{item}{space}")).collect();
                format!("[{}]", items.join(","))
            }),
            members(inner).prop_map(object),
        ]
    })
}

type Member = (String, &'static str, String);

fn members(values: impl Strategy<Value = String>) -> impl Strategy<Value = Vec<Member>> {
    prop::collection::vec((names(), spaces(), values), 0..4)
}

fn object(members: Vec<Member>) -> String {
    let members: Vec<String> =
        members.into_iter().map(|(name, space, value)| format!("{space}{name}{space}:{space}{value}")).collect();
    format!("{{{}}}", members.join(","))
}

/// Returns values nested about as deep as allowed.
fn deep_values() -> impl Strategy<Value = String> {
    (values(), prop_oneof![58..68_usize, 120..130_usize], any::<bool>()).prop_map(|(value, depth, object)| {
        let (open, close) = if object { ("{\"key\":", "}") } else { ("[", "]") };
        format!("{}{value}{}", open.repeat(depth), close.repeat(depth))
    })
}

/// Returns documents, most of them valid objects with exactly one matching member.
fn documents() -> impl Strategy<Value = String> {
    let value = prop_oneof![30 => values(), 1 => deep_values()].boxed();
    let counts = (any::<Index>(), spelled(), prop_oneof![3 => json_strings().boxed(), 1 => value.clone()]);
    let number = prop_oneof![8 => Just(1..=1_usize), 1 => Just(0..=2_usize)];
    let counts = (number, prop::collection::vec(counts, 2))
        .prop_flat_map(|(number, counts)| number.prop_map(move |number| counts[..number].to_vec()));
    let whole = (members(value.clone()), counts).prop_map(|(mut members, counts)| {
        for (at, name, value) in counts {
            members.insert(at.index(members.len() + 1), (name, " ", value));
        }
        object(members)
    });
    let document = prop_oneof![10 => whole, 1 => value];
    let rest = prop_oneof![20 => Just(""), 1 => prop::sample::select(vec!["{}", ",", "\u{a0}", "\u{feff}", "\0"])];
    (document, mark(), spaces(), spaces(), rest)
        .prop_map(|(document, mark, before, after, rest)| format!("{mark}{before}{document}{after}{rest}"))
}

const MEANINGFUL: &[u8] = b"\"\\{}[]:,u0e1-+.ntd8 \n\xff\xc3\x00";

fn mutated(document: String, mutations: &[(u8, Index, u8)]) -> Vec<u8> {
    let mut bytes = document.into_bytes();
    for (how, at, byte) in mutations {
        // Prefer bytes that have a meaning in JSON.
        let byte = MEANINGFUL.get(usize::from(*byte) / 4).unwrap_or(byte);
        let at = at.index(bytes.len().max(1));
        match how % 4 {
            0 => bytes.insert(at, *byte),
            1 if at < bytes.len() => bytes[at] = *byte,
            2 if at < bytes.len() => _ = bytes.remove(at),
            _ => bytes.truncate(at + 1),
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6_000))]

    #[test]
    fn json_extraction_matches_a_parser_of_the_whole_document(
        document in documents(),
        mutations in prop_oneof![
            3 => Just(vec![]),
            2 => prop::collection::vec((any::<u8>(), any::<Index>(), any::<u8>()), 1..3),
        ],
    ) {
        let body = mutated(document, &mutations);
        if let Some(expected) = oracle(&body) {
            let extracted = Found::from(extract::json(&body, "key", TokenSyntax::default()));
            prop_assert_eq!(extracted, expected, "{}", String::from_utf8_lossy(&body));
        }
    }
}

/// Checks that the generator covers all results.
#[test]
fn the_generator_reaches_every_result() {
    use proptest::strategy::ValueTree as _;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let (strategy, mut seen) = (documents(), [0_usize; 4]);
    for _ in 0..2_000 {
        let document = strategy.new_tree(&mut runner).unwrap().current();
        match oracle(document.as_bytes()) {
            Some(Found::Nothing) => seen[0] += 1,
            Some(Found::Token(_)) => seen[1] += 1,
            Some(Found::Malformed) => seen[2] += 1,
            Some(Found::Ambiguous) => seen[3] += 1,
            None => {}
        }
    }
    assert!(seen.iter().all(|&count| count > 100), "{seen:?}");
}

#[test]
fn json_edge_cases() {
    let verdict = |body: &[u8]| Found::from(extract::json(body, "key", TokenSyntax::default()));
    let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let member = |depth: usize| format!(r#"{{"a":{},"key":"abc"}}"#, nested(depth));
    let abc = Found::Token(b"abc".to_vec());
    assert_eq!(verdict(member(63).as_bytes()), abc);
    assert_eq!(verdict(member(64).as_bytes()), Found::Ambiguous);
    assert_eq!(verdict(nested(64).as_bytes()), Found::Nothing);
    assert_eq!(verdict(nested(65).as_bytes()), Found::Ambiguous);
    assert_eq!(verdict("[".repeat(1_000_000).as_bytes()), Found::Ambiguous, "no stack is used up");
    // Brackets in strings and closed brackets do not count as depth.
    assert_eq!(verdict(format!(r#"{{"a":"{}","key":"abc"}}"#, "[".repeat(999)).as_bytes()), abc);
    assert_eq!(verdict(format!(r#"{{"a":[{}1],"key":"abc"}}"#, "[],{},".repeat(999)).as_bytes()), abc);
    // Objects count as depth too. Escapes do not change the limit.
    let objects = |depth: usize| format!("{}1{}", r#"{"a":"#.repeat(depth), "}".repeat(depth));
    assert_eq!(verdict(objects(64).as_bytes()), Found::Nothing);
    assert_eq!(verdict(objects(65).as_bytes()), Found::Ambiguous);
    let escaped = |depth: usize| format!(r#"{{"a":"\u0061","b":{},"key":"abc"}}"#, nested(depth));
    assert_eq!(verdict(escaped(63).as_bytes()), abc);
    assert_eq!(verdict(escaped(64).as_bytes()), Found::Ambiguous);
    for (body, expected) in [
        (&br#"{"key":"abc","n":1e999999,"m":-123456789012345678901234567890.5E+99999}"#[..], abc.clone()),
        (b"\xef\xbb\xbf{\"key\":\"abc\"}", abc.clone()),
        (b"\xef\xbb\xbf\xef\xbb\xbf{\"key\":\"abc\"}", Found::Ambiguous),
        (b" \r\n\t", Found::Nothing),
        (b"\xef\xbb\xbf", Found::Nothing),
        (b"\x0b{\"key\":\"abc\"}", Found::Ambiguous),
        (b"\xc2\xa0", Found::Ambiguous),
        (br#"{"key":"abc"}{"key":"abc"}"#, Found::Ambiguous),
        (br#"{"key":"abc",}"#, Found::Ambiguous),
        (br#"{"key":null,"key":null}"#, Found::Ambiguous),
        (br#"{"key":null,"\u006bey":"abc"}"#, Found::Ambiguous),
        (br#"{"x":"\ud800","key":"abc"}"#, Found::Ambiguous),
        (br#"{"\udc00":1,"key":"abc"}"#, Found::Ambiguous),
        (br#"{"x":"\udc00","key":"abc"}"#, Found::Ambiguous),
        (br#"{"some name":"\\\ud800","key":"abc"}"#, Found::Ambiguous),
        (br#"{"x":["\ud83d\ude00"],"key":"abc"}"#, abc.clone()),
        (br#"{"x":"\\ud800","key":"abc"}"#, abc),
        (br#"{"key":" abc"}"#, Found::Malformed),
        (br#"{"key":""}"#, Found::Malformed),
        (br#"{"key":"caf\u00e9"}"#, Found::Malformed),
        (br#"{"key":["abc"]}"#, Found::Ambiguous),
        (br#"{"key":1}"#, Found::Ambiguous),
        (br#"{"key":NaN}"#, Found::Ambiguous),
        (br#"{"key":01}"#, Found::Ambiguous),
        (br#"{"a":{"key":"abc"}}"#, Found::Nothing),
        (br#"[{"key":"abc"}]"#, Found::Nothing),
        (br#""key""#, Found::Nothing),
        (b"{\"a\":\"\xff\",\"key\":\"abc\"}", Found::Ambiguous),
        (b"{\"a\":\"\xed\xa0\x80\",\"key\":\"abc\"}", Found::Ambiguous),
        (b"{\"a\":\"\x01\",\"key\":\"abc\"}", Found::Ambiguous),
        (br#"{"key":"abc"#, Found::Ambiguous),
        (br#"{"$serde_json::private::RawValue":"1","key":"abc"}"#, Found::Token(b"abc".to_vec())),
    ] {
        assert_eq!(verdict(body), expected, "{}", String::from_utf8_lossy(body));
    }
}

#[tokio::test]
async fn the_maximum_json_depth_can_be_set() {
    let nested = |depth: usize| {
        let arrays = (1..depth).map(|_| '[').chain((1..depth).map(|_| ']')).collect::<String>();
        format!(r#"{{"deep": {}, "key": "{TOKEN}"}}"#, if arrays.is_empty() { "0" } else { &arrays })
    };
    for (set, limit) in [(None, 64), (Some(1), 1), (Some(2), 2), (Some(200), 200)] {
        let body_tokens = match set {
            None => body_tokens(),
            Some(depth) => body_tokens().with_max_depth(depth),
        };
        let layer = AuthLayer::new(memory()).with_body_tokens(body_tokens);
        for (depth, status) in [(limit, 200), (limit + 1, 400)] {
            let (response, _) = respond(&layer, post(JSON, Script::of(nested(depth)))).await;
            assert_eq!(response.status(), status, "{depth} of {limit}");
        }
    }
}
