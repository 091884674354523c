//! The conformance vectors as requests. They test the oracle and are the source of seeds.

use std::path::PathBuf;
use std::{collections::BTreeSet, env, fs};

use serde_json::Value;

use crate::oracle::{body_location, bytes, latin_1, list, query_of};
use crate::pipeline::Options;
use crate::request::Sent;

/// Returns all vectors with their macros expanded.
pub fn all() -> Vec<Value> {
    let own = || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors"));
    let folder = env::var_os("TOLLGATE_VECTORS").map_or_else(own, PathBuf::from);
    let files = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("a file").path());
    let files = files.filter(|file| file.extension().is_some_and(|extension| extension == "json"));
    let read = |file| serde_json::from_slice::<Vec<Value>>(&fs::read(file).expect("a file")).expect("a JSON array");
    files.flat_map(read).map(|vector| expanded(&vector)).collect()
}

fn expanded(vector: &Value) -> Value {
    let mut text = vector.to_string();
    for (name, repeated) in vector["macros"].as_object().into_iter().flatten() {
        let count = repeated["count"].as_u64().expect("a count") as usize;
        let quoted = Value::from(repeated["repeat"].as_str().expect("a text").repeat(count)).to_string();
        text = text.replace(&format!("@{name}@"), &quoted[1..quoted.len() - 1]);
    }
    serde_json::from_str(&text).expect("JSON as before")
}

/// Returns the request of a vector.
pub fn request(vector: &Value) -> Sent {
    let sent = &vector["request"];
    let headers = sent["headers"].as_array().into_iter().flatten();
    Sent {
        method: latin_1(&octets(sent, "method", "")),
        target: latin_1(&octets(sent, "target", "")),
        is_http_2: false,
        headers: headers
            .map(|header| {
                let name = latin_1(&octets(header, "name", "")).to_ascii_lowercase();
                (name, latin_1(&octets(header, "value", "hex")))
            })
            .collect(),
        body: octets(sent, "body", "body_hex"),
    }
}

/// Returns the locations that a vector enables.
pub fn locations(vector: &Value) -> Vec<&str> {
    let locations = vector["config"]["carriers"].as_array();
    locations.into_iter().flatten().map(|location| location.as_str().expect("a name")).collect()
}

/// Returns a byte string or hexadecimal digits. Hexadecimal takes precedence.
pub fn octets(object: &Value, key: &str, hex_key: &str) -> Vec<u8> {
    match object[hex_key].as_str() {
        Some(hex) => {
            let digit = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
            (0..hex.len()).step_by(2).map(digit).collect()
        }
        None => bytes(object[key].as_str().unwrap_or_default()),
    }
}

/// Returns the seeds of a target. The content of a location in a vector is the input of its parser, byte for byte.
pub fn seeds(target: &str) -> BTreeSet<Vec<u8>> {
    all().iter().filter_map(|vector| seed(target, vector)).chain(at_limits(target)).chain(long(target)).collect()
}

/// The default limit of bodies.
const MAX_BODY: usize = 65_536;

/// Returns inputs with bodies as long as the limit. A run has no longer inputs than its longest seed.
fn long(target: &str) -> Vec<Vec<u8>> {
    if target == "pipeline" {
        return ["form", "json", "text"].into_iter().flat_map(long_requests).collect();
    }
    long_bodies(target, MAX_BODY)
}

/// Returns requests with bodies at the limit, which are masked and sent in pieces, and one request with a byte more.
fn long_requests(location: &str) -> Vec<Vec<u8>> {
    let content_type = match location {
        "form" => "application/x-www-form-urlencoded",
        "json" => "application/json",
        _ => "text/plain",
    };
    let request = |options: [u8; 3], body: Vec<u8>| {
        let headers = vec![("content-type".to_owned(), content_type.to_owned())];
        let sent = Sent { method: "POST".to_owned(), target: "/".to_owned(), headers, body, ..Sent::default() };
        [&options[..], &sent.to_bytes()].concat()
    };
    let too_long = long_bodies(location, MAX_BODY + 1).pop();
    let bodies = long_bodies(location, MAX_BODY).into_iter().map(|body| request([0, 0x82, 0], body));
    bodies.chain(too_long.map(|body| request([0, 0, 0], body))).collect()
}

/// Returns bodies of one length with the token at the beginning, in the middle, or at the end.
fn long_bodies(location: &str, len: usize) -> Vec<Vec<u8>> {
    let parts: &[[&str; 3]] = match location {
        "form" => &[
            ["access_token=a&b=", "c", ""],
            ["b&", "c&", "access_token=a"],
            ["b&access%5Ftoken=%61&", "c=%2B+&", ""],
            ["access_token=", "a", ""],
        ],
        "json" => &[
            [r#"{"key":"a","b":""#, "c", r#""}"#],
            [r#"{"b":[1"#, ",1", r#"],"key":"a"}"#],
            [r#"{"b":1,"\u006bey":"\u0061","#, r#""c":{"key":[]},"#, r#""d":1}"#],
            [r#"{"b":""#, r"\ud83d\ude00\n", r#"","key":"a"}"#],
            [r#"{"key":""#, "a", r#""}"#],
        ],
        "text" => &[["key=a;b=", "c", ""], ["b;", "c=d;", "key=a"], ["b;KEY = a ;\r\n", "c ;", ""], ["key=", "a", ""]],
        _ => &[],
    };
    let body = |[before, repeated, after]: &[&str; 3]| {
        let rest = len - before.len() - after.len();
        let (count, spaces) = (rest / repeated.len(), rest % repeated.len());
        [before.as_bytes(), &repeated.as_bytes().repeat(count), after.as_bytes(), &b" ".repeat(spaces)].concat()
    };
    parts.iter().map(body).collect()
}

/// Returns inputs on both sides of a limit, which a fuzzer does not find.
fn at_limits(target: &str) -> Vec<Vec<u8>> {
    let nested = |depth: usize| format!(r#"{{"a":{}{}}}"#, "[".repeat(depth - 1), "]".repeat(depth - 1)).into_bytes();
    let token = |before: &str, len: usize| format!("{before}{}", "a".repeat(len)).into_bytes();
    let both = |before| vec![token(before, 8192), token(before, 8193)];
    match target {
        "json" => {
            let others = [r#"{"a":"\ude00"}"#, r#"{"a":"\ud83d"}"#, r#"{"KEY":"a"}"#, r#"{"a":{"key":"b"}}"#];
            others.map(|text| text.into()).into_iter().chain([64, 65, 129].map(nested)).collect()
        }
        "header" => both("Bearer "),
        "api_key" => both(""),
        "query" | "form" => both("access_token="),
        "text" => both("key="),
        "client_ip" => [
            "1.1.1.1, 198.51.100.1:80, 10.0.0.2",
            "[2001:db8::1]:80\n10.0.0.2",
            "for=1.1.1.1;x=\"",
            "for=\"[2001:db8::1]:80\";by=10.0.0.1, For=10.0.0.2",
            "for=198.51.100.1;Proto=\"HTTPS\", for=10.0.0.2;proto=http",
            "https, wss",
            "https\nhttp",
        ]
        .map(|text| text.as_bytes().to_vec())
        .into(),
        "mint" => crate::mint::seeds(),
        "jwt" => crate::jwt::seeds(),
        "self_limit" => [128, 129].map(|len| [&b"1\xff"[..], &token("", len)].concat()).to_vec(),
        "pipeline" => {
            let text =
                |len: usize| [b"\0\x08\0POST /\ncontent-type:text/plain\n\n".to_vec(), token("key=", len)].concat();
            // An API key that is ignored beside Bearer, twice; and a bucket that refills between requests.
            let ignored = b"\x8e\0\0GET /\nauthorization:Bearer a\nx-api-key:b\nx-api-key:c\n\n".to_vec();
            let refilled = b"\0\x05\x09GET /\nauthorization:Bearer canned\n\n".to_vec();
            // Requests composed of fragments.
            let composed = (0..40).map(|line| vec![0, 0, 0, 2 + line % 3, 0, line, line, 39 - line]);
            [text(252), text(253), ignored, refilled].into_iter().chain(composed).collect()
        }
        _ => Vec::new(),
    }
}

fn seed(target: &str, vector: &Value) -> Option<Vec<u8>> {
    let is_request = vector["kind"] == "request";
    if target == "self_limit" {
        return (vector["kind"] == "self-limit").then(|| self_limit_seed(&vector["input"]));
    }
    let sent = is_request.then(|| request(vector))?;
    let field = |name: &str| {
        let lines = sent.lines(name);
        (!lines.is_empty()).then(|| bytes(&lines.join("\n")))
    };
    let body_of = |wanted: &str| {
        let (kind, _) = body_location(&sent).ok()??;
        format!("{kind:?}").eq_ignore_ascii_case(wanted).then(|| sent.body.clone())
    };
    match target {
        "header" => field("authorization"),
        "api_key" => field("x-api-key"),
        "websocket" => field("sec-websocket-protocol").filter(|_| !list(&sent.lines("upgrade")).is_empty()),
        "query" => query_of(&sent.target).map(bytes),
        "form" | "json" | "text" => body_of(target),
        "client_ip" | "jwt" | "mint" => None,
        "pipeline" => {
            sent.to_http(())?;
            Some([&Options::with_locations(&locations(vector))[..], &sent.to_bytes()].concat())
        }
        other => panic!("there is no target {other}"),
    }
}

fn self_limit_seed(input: &Value) -> Vec<u8> {
    let mut seed = octets(input, "rate_limit", "rate_limit_hex");
    if let Some(id) = input["id"].as_str() {
        seed.push(0xff);
        seed.extend(bytes(id));
    }
    // Alerts of two ids, one that fails, and one for which time steps back.
    seed.push(0xff);
    seed.extend([4, 0, 0, 1].repeat(6).iter().chain(&[9, 0, 0, 200, 4, 2, 0, 1, 4, 0, 0, 1, 9, 1, 0, 30]));
    seed
}
