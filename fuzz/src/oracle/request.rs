//! All locations of a request together.

use super::{
    BodyLocation, Form, Found, api_key, authorization, body, form, json, list, query, query_of, strip, text, websocket,
};
use crate::request::{Sent, TokenLocation};

/// The enabled locations of a gate and their settings.
#[derive(Clone, Debug)]
pub struct Locations {
    pub api_key: bool,
    /// Ignores the API key beside Bearer credentials.
    pub api_key_unless_bearer: bool,
    pub query: bool,
    /// The prefix of the sub-protocol.
    pub websocket: Option<String>,
    /// A custom location: the first line of this field.
    pub other: Option<String>,
    pub form: bool,
    pub json: bool,
    pub text: bool,
    /// Reads a text that begins with `{` as JSON.
    pub json_in_text: bool,
    pub max_body: usize,
    pub preflight: bool,
    pub token: Form,
}

/// The decision of a gate before the store lookup.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A CORS preflight.
    Pass,
    Missing,
    Token(String, TokenLocation),
    BadToken,
    BadRequest,
    TooLarge,
}

/// Extracts from all enabled locations.
pub fn extract(request: &Sent, locations: &Locations) -> Verdict {
    let has = |name| !request.lines(name).is_empty();
    if locations.preflight && request.method == "OPTIONS" && has("origin") && has("access-control-request-method") {
        return Verdict::Pass;
    }
    combine(&found(request, locations))
}

fn combine(found: &[(TokenLocation, Found)]) -> Verdict {
    let is_any = |wanted| found.iter().any(|(_, found)| *found == wanted);
    let present: Vec<_> = found.iter().filter(|(_, found)| *found != Found::Absent).collect();
    match &present[..] {
        _ if is_any(Found::TooLarge) => Verdict::TooLarge,
        _ if is_any(Found::BadRequest) => Verdict::BadRequest,
        [] => Verdict::Missing,
        [(location, Found::Token(token))] => Verdict::Token(token.clone(), *location),
        [_] => Verdict::BadToken,
        _ => Verdict::BadRequest,
    }
}

fn found(request: &Sent, locations: &Locations) -> Vec<(TokenLocation, Found)> {
    let token = locations.token;
    let in_header = authorization(&request.lines("authorization"), token);
    let has_bearer = in_header != Found::Absent;
    let mut found = vec![(TokenLocation::Header, in_header)];
    if locations.api_key && !(locations.api_key_unless_bearer && has_bearer) {
        found.push((TokenLocation::ApiKey, api_key(&request.lines("x-api-key"), token)));
    }
    if let (true, Some(pairs)) = (locations.query, query_of(&request.target)) {
        found.push((TokenLocation::Query, query(&request.method, pairs, "access_token", token)));
    }
    if let (Some(prefix), true) = (&locations.websocket, is_websocket_handshake(request)) {
        found.push((TokenLocation::WebSocket, websocket(&request.lines("sec-websocket-protocol"), prefix, token)));
    }
    if let Some(name) = &locations.other {
        let value = request.lines(name).into_iter().next();
        found.push((TokenLocation::Other, value.map_or(Found::Absent, |value| token.value(value))));
    }
    found.push(in_body(request, locations));
    found
}

fn is_websocket_handshake(request: &Sent) -> bool {
    match &*request.method {
        "GET" => list(&request.lines("upgrade")).iter().any(|item| item.eq_ignore_ascii_case("websocket")),
        "CONNECT" => request.is_http_2,
        _ => false,
    }
}

fn in_body(request: &Sent, locations: &Locations) -> (TokenLocation, Found) {
    let absent = (TokenLocation::Json, Found::Absent);
    let (kind, is_readable) = match body::body_location(request) {
        _ if !locations.form && !locations.json && !locations.text => return absent,
        Ok(None) => return absent,
        Err(wrong) => return (TokenLocation::Json, wrong),
        Ok(Some(fitting)) => fitting,
    };
    let json_in_text = locations.json_in_text && locations.json;
    let is_open = match kind {
        BodyLocation::Form => locations.form,
        BodyLocation::Json => locations.json,
        BodyLocation::Text => locations.text || json_in_text,
    };
    let body = &request.body;
    if !is_open {
        return absent;
    } else if !is_readable {
        return (TokenLocation::Json, Found::BadRequest);
    } else if body.len() > locations.max_body {
        return (TokenLocation::Json, Found::TooLarge);
    }
    let in_latin_1 = super::latin_1(body);
    let after_mark = in_latin_1.strip_prefix("\u{ef}\u{bb}\u{bf}").unwrap_or(&in_latin_1);
    let looks_like_json = after_mark.trim_start_matches([' ', '\t', '\r', '\n', '\u{c}']).starts_with('{');
    match kind {
        BodyLocation::Form => (TokenLocation::Form, form(&in_latin_1, "access_token", locations.token)),
        BodyLocation::Text if !(json_in_text && looks_like_json) => match locations.text {
            true => (TokenLocation::Text, text(body, "key", locations.token)),
            false => absent,
        },
        _ => (TokenLocation::Json, json(body, "key", locations.token)),
    }
}

/// The protocol that the client reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speaks {
    Http,
    Grpc,
    GrpcWeb,
    Connect,
    ConnectStream,
}

pub fn protocol(request: &Sent) -> Speaks {
    let value = request.lines("content-type").into_iter().next().unwrap_or_default().to_ascii_lowercase();
    let essence = strip(value.split(';').next().unwrap_or_default());
    let (format, codec) = essence.split_once('+').unwrap_or((essence, ""));
    let query = super::query_of(&request.target).unwrap_or_default();
    match (format, codec) {
        ("application/grpc", _) => Speaks::Grpc,
        ("application/grpc-web" | "application/grpc-web-text", _) => Speaks::GrpcWeb,
        ("application/connect", "json" | "proto") => Speaks::ConnectStream,
        _ if request.method == "POST" => match request.lines("connect-protocol-version").first() {
            Some(version) if version == "1" => Speaks::Connect,
            _ => Speaks::Http,
        },
        _ if request.method == "GET" || request.method == "HEAD" => match query.split('&').any(|it| it == "connect=v1")
        {
            true => Speaks::Connect,
            false => Speaks::Http,
        },
        _ => Speaks::Http,
    }
}
