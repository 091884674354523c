//! The client's address and scheme by `X-Forwarded-For`, `X-Forwarded-Proto` and `Forwarded`, behind proxies in 10.0.0.0/8.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Returns the client of a request from this proxy. `lines` are those of `X-Forwarded-For`.
pub fn x_forwarded_for(proxy: IpAddr, lines: &[String]) -> IpAddr {
    client(proxy, lines.join(",").split(',').map(|element| address(element.trim_ascii())).collect())
}

/// Returns the client of a request from this proxy. `lines` are those of `Forwarded`.
pub fn forwarded(proxy: IpAddr, lines: &[String]) -> IpAddr {
    client(proxy, lines.iter().flat_map(|line| elements(line)).map(|element| element.address).collect())
}

/// Returns whether the client used HTTPS. `lines` are those of `X-Forwarded-Proto`.
pub fn x_forwarded_proto(lines: &[String]) -> bool {
    let text = lines.join(",");
    let values: Vec<&str> = text.split(',').map(str::trim_ascii).filter(|value| !value.is_empty()).collect();
    !values.is_empty() && values.into_iter().all(is_secure)
}

/// Returns whether the client used HTTPS. `lines` are those of `Forwarded` in a request from a proxy.
pub fn forwarded_proto(lines: &[String]) -> bool {
    let mut named: Vec<Element> = lines.iter().flat_map(|line| elements(line)).collect();
    let mut is_https = false;
    while let Some(element) = named.pop() {
        let Some(address) = element.address else { return false };
        is_https = element.scheme.as_deref().is_some_and(is_secure);
        if !is_proxy(address) {
            break;
        }
    }
    is_https
}

fn is_secure(scheme: &str) -> bool {
    let scheme = scheme.to_ascii_lowercase();
    scheme == "https" || scheme == "wss"
}

fn is_proxy(address: IpAddr) -> bool {
    matches!(address, IpAddr::V4(v4) if v4.octets()[0] == 10)
}

/// Walks from the right as long as all addresses are those of proxies.
fn client(proxy: IpAddr, mut named: Vec<Option<IpAddr>>) -> IpAddr {
    named.push(Some(proxy));
    let mut client = proxy;
    while let Some(Some(address)) = named.pop() {
        client = address;
        if !is_proxy(address) {
            break;
        }
    }
    prefix(client)
}

/// An element of `Forwarded`.
#[derive(Default)]
struct Element {
    address: Option<IpAddr>,
    scheme: Option<String>,
}

/// Reads a line of `Forwarded` character by character.
fn elements(line: &str) -> Vec<Element> {
    let (mut elements, mut pairs, mut pair) = (Vec::new(), Vec::new(), String::new());
    let (mut in_quotes, mut after_backslash) = (false, false);
    for c in line.chars().chain([',']) {
        let is_quoted = in_quotes;
        if after_backslash {
            after_backslash = false;
        } else if in_quotes && c == '\\' {
            after_backslash = true;
        } else if c == '"' {
            in_quotes = !in_quotes;
        }
        match c {
            ';' | ',' if !is_quoted => pairs.push(std::mem::take(&mut pair)),
            _ => pair.push(c),
        }
        if c == ',' && !is_quoted {
            if pairs.iter().any(|pair| !pair.trim_ascii().is_empty() || pairs.len() > 1) {
                elements.push(Element {
                    address: value(&pairs, "for=").and_then(address),
                    scheme: value(&pairs, "proto=").map(str::to_owned),
                });
            }
            pairs.clear();
        }
    }
    // The added comma was read inside of a quoted string.
    if in_quotes || !pair.is_empty() || line.contains('\\') { vec![Element::default()] } else { elements }
}

/// Returns the value of the parameter with this name, which ends in `=`, if it occurs once.
fn value<'a>(pairs: &'a [String], name: &str) -> Option<&'a str> {
    let is_named = |pair: &&str| pair.get(..name.len()).is_some_and(|own| own.eq_ignore_ascii_case(name));
    let values: Vec<&str> =
        pairs.iter().map(|pair| pair.trim_ascii()).filter(is_named).map(|pair| &pair[name.len()..]).collect();
    match values[..] {
        [value] if value.starts_with('"') => value.strip_prefix('"')?.strip_suffix('"'),
        [value] => Some(value),
        _ => None,
    }
}

fn address(text: &str) -> Option<IpAddr> {
    let bare: Option<IpAddr> = text.parse().ok();
    let with_port: Option<SocketAddr> = text.parse().ok();
    let in_brackets: Option<Ipv6Addr> = match (text.chars().next(), text.chars().last()) {
        (Some('['), Some(']')) if text.len() > 2 => text[1..text.len() - 1].parse().ok(),
        _ => None,
    };
    Some(bare.or(with_port.map(|address| address.ip())).or(in_brackets.map(IpAddr::V6))?.to_canonical())
}

fn prefix(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 => v4,
    }
}
