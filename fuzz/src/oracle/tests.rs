//! Tests the oracle alone with the conformance vectors.

use serde_json::{Value, json};

use super::*;
use crate::request::TokenLocation;
use crate::{TARGETS, vectors};

fn locations(vector: &Value) -> Locations {
    let enabled = vectors::locations(vector);
    let is_enabled = |name| enabled.contains(&name);
    let config = &vector["config"];
    let number = |key: &str, default| config[key].as_u64().map_or(default, |number| number as usize);
    Locations {
        api_key: is_enabled("api_key"),
        api_key_unless_bearer: false,
        query: is_enabled("query"),
        websocket: config["ws_prefix"].as_str().filter(|_| is_enabled("ws")).map(str::to_owned),
        other: None,
        form: is_enabled("form"),
        json: is_enabled("json"),
        text: is_enabled("text"),
        json_in_text: false,
        max_body: number("max_body", 65_536),
        preflight: true,
        token: Form { max_len: number("max_token", 8192), lenient: false },
    }
}

/// Returns the vectors' word for the result of a token in the store or in the rate limit.
fn verdict(vector: &Value, token: &str) -> &'static str {
    match vector["store"][token].as_str() {
        None => "accept",
        Some("insufficient_scope") => "insufficient_scope",
        Some("step_up") => "step_up",
        Some("rate_limited") => "rate_limited",
        Some("unavailable") => "unavailable",
        Some(_) => "invalid_token",
    }
}

fn word(location: TokenLocation) -> &'static str {
    match location {
        TokenLocation::Header => "header",
        TokenLocation::ApiKey => "api_key",
        TokenLocation::Query => "query",
        TokenLocation::WebSocket => "ws",
        TokenLocation::Other => "other",
        TokenLocation::Form => "form",
        TokenLocation::Json => "json",
        TokenLocation::Text => "text",
    }
}

/// Checks all vectors of requests, except those rejected below the layers.
#[test]
fn requests() {
    let (mut count, mut failed) = (0, Vec::new());
    for vector in vectors::all().iter().filter(|vector| vector["kind"] == "request") {
        let expect = &vector["expect"];
        if expect["verdict"] == "transport_reject" {
            assert_eq!(vector["stage"], "wire");
            continue;
        }
        count += 1;
        let (is, token, source) = match extract(&vectors::request(vector), &locations(vector)) {
            Verdict::Pass => ("pass", None, None),
            Verdict::Missing => ("missing", None, None),
            Verdict::BadToken => ("invalid_token", None, None),
            Verdict::BadRequest => ("invalid_request", None, None),
            Verdict::TooLarge => ("too_large", None, None),
            Verdict::Token(token, location) => (verdict(vector, &token), Some(token), Some(word(location))),
        };
        let as_wanted = |key: &str, is: Value| expect.get(key).is_none_or(|wanted| *wanted == is);
        if expect["verdict"] != is || !as_wanted("token", json!(token)) || !as_wanted("source", json!(source)) {
            failed.push(format!("{}: {is} {source:?} {token:?}, not {expect}", vector["id"]));
        }
    }
    assert!(failed.is_empty() && count > 100, "{count} requests, and of these:\n{}", failed.join("\n"));
}

#[test]
fn self_limits() {
    let vectors = vectors::all();
    let vectors: Vec<_> = vectors.iter().filter(|vector| vector["kind"] == "self-limit").collect();
    assert!(vectors.len() > 10);
    for vector in vectors {
        let (input, expect) = (&vector["input"], &vector["expect"]);
        let has = |key| input.get(key).is_some_and(|value| !value.is_null());
        let rate_limit = vectors::octets(input, "rate_limit", "rate_limit_hex");
        let rate_limit = (has("rate_limit") || has("rate_limit_hex")).then_some(&rate_limit[..]);
        let limit = self_limit(rate_limit, input["id"].as_str().map(str::as_bytes));
        let number = |number: Option<u32>| number.map_or(Value::Null, Value::from);
        let numbers = limit.ok().flatten();
        assert_eq!(number(numbers.map(|limit| limit.0)), expect["count"], "{}", vector["id"]);
        assert_eq!(number(numbers.map(|limit| limit.1)), expect["window_s"], "{}", vector["id"]);
        assert_eq!(number(limit.is_err().then_some(400)), expect["status"], "{}", vector["id"]);
    }
}

#[test]
fn rate_limits() {
    let mut count = 0;
    for vector in vectors::all() {
        let (input, expect) = (&vector["input"], &vector["expect"]);
        if vector["kind"] != "gcra" && vector["kind"] != "gcra-count" {
            continue;
        }
        let number = |key: &str| i128::from(input[key].as_u64().expect("a number"));
        let mut cell = Cell { interval: number("emission_interval_ns"), burst: number("burst"), tat: 0 };
        let times = input["at_ns"].as_array().expect("times").iter().map(|at| at.as_u64().expect("a time"));
        let mut latest = 0;
        // No bucket refills when a clock steps back.
        let decisions: Vec<Decision> = times
            .map(|at| {
                latest = latest.max(at);
                cell.charge(latest.into())
            })
            .collect();
        if let Some(allowed) = expect["allowed"].as_u64() {
            assert_eq!(decisions.iter().filter(|decision| decision.allowed).count() as u64, allowed);
        }
        for (decision, wanted) in decisions.iter().zip(expect["decisions"].as_array().into_iter().flatten()) {
            let is = json!({
                "at_ns": wanted["at_ns"],
                "allowed": decision.allowed,
                "remaining": decision.remaining as u64,
                "t_s": seconds_up(decision.more_in) as u64,
                "full_in_ns": decision.full_in as u64,
                "wait_ns": decision.wait.map(|wait| wait as u64),
                "retry_after_s": decision.wait.map(|wait| seconds_up(wait).max(1) as u64),
            });
            for (key, value) in wanted.as_object().expect("an object") {
                assert_eq!(is[key], *value, "{key} in {}", vector["id"]);
                count += 1;
            }
        }
    }
    assert!(count > 50, "only {count} values");
}

/// Checks that every seed passes its target, so that fuzzing starts from passing inputs.
#[test]
fn seeds() {
    for (target, check) in TARGETS {
        let seeds = vectors::seeds(target);
        assert!(!seeds.is_empty(), "{target}");
        seeds.iter().for_each(|seed| check(seed));
    }
}

#[test]
fn a_window_counts_accepted_alerts() {
    let mut window = Window::default();
    window.accept(100);
    window.accept(100);
    assert!(!window.fits(2, 10, 109));
    assert!(window.fits(2, 10, 110));
    assert!(window.fits(3, 10, 100));
}
