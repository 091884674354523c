//! The client's address by `X-Forwarded-For` and `Forwarded`, behind proxies in 10.0.0.0/8.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Returns the client of a request from this proxy. `lines` are those of `X-Forwarded-For`.
pub fn x_forwarded_for(proxy: IpAddr, lines: &[String]) -> IpAddr {
    client(proxy, lines.join(",").split(',').map(|element| address(element.trim_ascii())).collect())
}

/// Returns the client of a request from this proxy. `lines` are those of `Forwarded`.
pub fn forwarded(proxy: IpAddr, lines: &[String]) -> IpAddr {
    client(proxy, lines.iter().flat_map(|line| elements(line)).collect())
}

/// Walks from the right as long as all addresses are those of proxies.
fn client(proxy: IpAddr, mut named: Vec<Option<IpAddr>>) -> IpAddr {
    named.push(Some(proxy));
    let mut client = proxy;
    while let Some(Some(address)) = named.pop() {
        client = address;
        let is_proxy = matches!(address, IpAddr::V4(v4) if v4.octets()[0] == 10);
        if !is_proxy {
            break;
        }
    }
    prefix(client)
}

/// Reads a line of `Forwarded` character by character. `None` stands for an element without an address.
fn elements(line: &str) -> Vec<Option<IpAddr>> {
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
                elements.push(node(&pairs));
            }
            pairs.clear();
        }
    }
    // The added comma was read inside of a quoted string.
    if in_quotes || !pair.is_empty() || line.contains('\\') { vec![None] } else { elements }
}

fn node(pairs: &[String]) -> Option<IpAddr> {
    let of_for = |pair: &&str| pair.get(..4).is_some_and(|name| name.eq_ignore_ascii_case("for="));
    let nodes: Vec<&str> = pairs.iter().map(|pair| pair.trim_ascii()).filter(of_for).map(|pair| &pair[4..]).collect();
    match nodes[..] {
        [node] if node.starts_with('"') => address(node.strip_prefix('"')?.strip_suffix('"')?),
        [node] => address(node),
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
