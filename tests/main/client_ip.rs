//! Client addresses: the peer, and what trusted proxies say.

use std::net::{IpAddr, SocketAddr};

use http::{HeaderName, HeaderValue, Request};
use proptest::prelude::*;
use tollgate::RequestHead;
use tollgate::limit::{ClientIp, ClientIpError};

const PROXY: &str = "10.0.0.1";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Returns the client of a request with these header lines.
fn client(source: &ClientIp, peer: &str, lines: &[(&'static str, &[u8])]) -> IpAddr {
    let mut request = Request::new(());
    for (name, value) in lines {
        request.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_bytes(value).unwrap());
    }
    request.extensions_mut().insert(SocketAddr::new(ip(peer), 40_000));
    source.of(&RequestHead::of(&request)).unwrap()
}

fn x_forwarded_for() -> ClientIp {
    ClientIp::x_forwarded_for(["10.0.0.0/8", "fd00::/8"]).unwrap()
}

fn forwarded() -> ClientIp {
    ClientIp::forwarded(["10.0.0.0/8", "fd00::/8"]).unwrap()
}

#[test]
fn only_the_peer_counts_without_a_trusted_proxy() {
    let forged: &[(&str, &[u8])] =
        &[("x-forwarded-for", b"1.1.1.1"), ("forwarded", b"for=1.1.1.1"), ("x-real-ip", b"1.1.1.1")];
    let single = ClientIp::header(HeaderName::from_static("x-real-ip"), ["10.0.0.0/8"]).unwrap();
    for source in [ClientIp::peer(), x_forwarded_for(), forwarded(), single] {
        assert_eq!(client(&source, "203.0.113.7", forged), ip("203.0.113.7"), "{source:?}");
    }
    assert_eq!(client(&ClientIp::peer(), PROXY, forged), ip(PROXY));
}

#[test]
fn the_rightmost_untrusted_address_is_the_client() {
    for (value, expected) in [
        ("198.51.100.1", "198.51.100.1"),
        ("1.1.1.1, 198.51.100.1", "198.51.100.1"),
        ("1.1.1.1,198.51.100.1 , 10.0.0.2", "198.51.100.1"),
        ("1.1.1.1, 198.51.100.1:4711, 10.0.0.2:80", "198.51.100.1"),
        ("[2001:db8:1:2::3]:80, 10.0.0.2", "2001:db8:1:2::"),
        ("[2001:db8:1:2::3]", "2001:db8:1:2::"),
        ("::ffff:198.51.100.1, ::ffff:10.0.0.2", "198.51.100.1"),
        ("2001:db8:1:2::3, fd00::1", "2001:db8:1:2::"),
        // All addresses are trusted.
        ("10.0.0.3, 10.0.0.2", "10.0.0.3"),
        // Missing or malformed: the last address that a trusted proxy has named.
        ("", PROXY),
        ("unknown", PROXY),
        ("1.1.1.1, unknown, 10.0.0.2", "10.0.0.2"),
        ("1.1.1.1, , 10.0.0.2", "10.0.0.2"),
        ("1.1.1.1, 198.51.100.256", PROXY),
        ("1.1.1.1, 198.51.100.1:99999", PROXY),
        ("1.1.1.1, 010.0.0.2", PROXY),
    ] {
        let found = client(&x_forwarded_for(), PROXY, &[("x-forwarded-for", value.as_bytes())]);
        assert_eq!(found, ip(expected), "{value}");
    }
    let lines: &[(&str, &[u8])] = &[("x-forwarded-for", b"1.1.1.1"), ("x-forwarded-for", b"198.51.100.1, 10.0.0.2")];
    assert_eq!(client(&x_forwarded_for(), PROXY, lines), ip("198.51.100.1"));
    assert_eq!(client(&x_forwarded_for(), PROXY, &[]), ip(PROXY));
}

#[test]
fn forwarded_elements_are_read_by_rfc_7239() {
    for (value, expected) in [
        ("for=198.51.100.1", "198.51.100.1"),
        ("For=1.1.1.1, FOR=198.51.100.1;proto=https;by=10.0.0.1", "198.51.100.1"),
        (r#"for=1.1.1.1, proto=https; for="[2001:db8:1:2::3]:4711", for=10.0.0.2"#, "2001:db8:1:2::"),
        (r#"for="198.51.100.1:80";host="a,b;c", for="10.0.0.2""#, "198.51.100.1"),
        // Malformed.
        ("for=1.1.1.1, for=unknown", PROXY),
        ("for=1.1.1.1, for=_hidden, for=10.0.0.2", "10.0.0.2"),
        ("for=1.1.1.1, proto=https", PROXY),
        ("for=1.1.1.1, for=198.51.100.1;for=198.51.100.2", PROXY),
        ("198.51.100.1", PROXY),
        ("for= 198.51.100.1", PROXY),
        // A client opens a quoted string that swallows the element of the proxy.
        (r#"for=1.1.1.1;x=", for=198.51.100.1"#, PROXY),
        (r#"for=1.1.1.1;x="\", for="[2001:db8::1]""#, PROXY),
        (r#"for="1.1.1.1, for=198.51.100.1"#, PROXY),
        (r#"for=1.1.1.1;x=", for=198.51.100.1;host="a\"b""#, PROXY),
    ] {
        let found = client(&forwarded(), PROXY, &[("forwarded", value.as_bytes())]);
        assert_eq!(found, ip(expected), "{value}");
    }
    // A malformed line further left does not matter.
    let lines: &[(&str, &[u8])] = &[("forwarded", b"for=1.1.1.1;x=\""), ("forwarded", b"for=198.51.100.1")];
    assert_eq!(client(&forwarded(), PROXY, lines), ip("198.51.100.1"));
}

#[test]
fn a_single_field_has_exactly_one_address() {
    let source = ClientIp::header(HeaderName::from_static("x-real-ip"), ["10.0.0.1"]).unwrap();
    let one = |value: &'static [u8]| client(&source, PROXY, &[("x-real-ip", value)]);
    assert_eq!(one(b" 198.51.100.1 "), ip("198.51.100.1"));
    assert_eq!(one(b"198.51.100.1, 198.51.100.2"), ip(PROXY));
    assert_eq!(one(b"\xff"), ip(PROXY));
    let two: &[(&str, &[u8])] = &[("x-real-ip", b"198.51.100.1"), ("x-real-ip", b"198.51.100.2")];
    assert_eq!(client(&source, PROXY, two), ip(PROXY));
    assert_eq!(client(&source, "10.0.0.2", &[("x-real-ip", b"198.51.100.1")]), ip("10.0.0.2"), "another peer");
}

#[test]
fn ipv6_addresses_are_reduced_to_the_prefix() {
    for (bits, expected) in [(1, "::"), (48, "2001:db8:1::"), (56, "2001:db8:1:200::"), (128, "2001:db8:1:2ff:3::4")] {
        let source = ClientIp::peer().with_ipv6_prefix(bits).unwrap();
        assert_eq!(client(&source, "2001:db8:1:2ff:3::4", &[]), ip(expected));
        assert_eq!(client(&source, "203.0.113.7", &[]), ip("203.0.113.7"));
    }
}

#[test]
fn invalid_settings_are_errors() {
    let mapped = ClientIp::header(HeaderName::from_static("x-real-ip"), ["::ffff:10.0.0.1"]).unwrap();
    assert_eq!(client(&mapped, PROXY, &[("x-real-ip", b"198.51.100.1")]), ip("198.51.100.1"));
    for network in ["", "10.0.0.0/33", "10.0.0", "example.org", "10.0.0.0/8 ", "::ffff:10.0.0.0/104"] {
        assert_eq!(ClientIp::forwarded([network]).unwrap_err(), ClientIpError::Network, "{network}");
    }
    assert_eq!(ClientIp::x_forwarded_for([]).unwrap_err(), ClientIpError::NoNetwork);
    for bits in [0, 129] {
        assert_eq!(ClientIp::peer().with_ipv6_prefix(bits).unwrap_err(), ClientIpError::Ipv6Prefix);
    }
}

#[test]
fn a_request_without_a_peer_has_no_client() {
    let request = Request::get("/").header("x-forwarded-for", "198.51.100.1").body(()).unwrap();
    assert_eq!(x_forwarded_for().of(&RequestHead::of(&request)), None);
}

/// Text that a client may write, with many separators and quotes.
fn written_by_a_client() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        Just(b"for=1.1.1.1".to_vec()),
        Just(b"1.1.1.1".to_vec()),
        Just(b"10.0.0.9".to_vec()),
        Just(b"for=10.0.0.9".to_vec()),
        "[\",;=\\\\ \\[\\]:]".prop_map(String::into_bytes),
        prop::collection::vec(prop_oneof![Just(b'\t'), 0x20..=0x7e_u8, 0x80..=0xff_u8], 0..6),
    ];
    prop::collection::vec(part, 0..12).prop_map(|parts| parts.concat())
}

proptest! {
    /// The proxy appends an element to whatever the client has written.
    #[test]
    fn no_client_can_choose_its_address(
        written in written_by_a_client(),
        is_v6 in any::<bool>(),
        number in any::<u32>(),
        same_line in any::<bool>(),
        escape in prop_oneof![Just(""), Just("\\\"")],
    ) {
        // Outside of the trusted networks.
        let real = match is_v6 {
            true => IpAddr::from([0x2001, 0xdb8, (number >> 16) as u16, number as u16, 0, 0, 0, 0]),
            false => IpAddr::from([198, 51, (number >> 8) as u8, number as u8]),
        };
        let appended = |element: String| match same_line {
            true => vec![[&written, &b", "[..], element.as_bytes()].concat()],
            false => vec![written.clone(), element.into_bytes()],
        };
        let found = |source: &ClientIp, name: &'static str, lines: Vec<Vec<u8>>| {
            client(source, PROXY, &lines.iter().map(|line| (name, &line[..])).collect::<Vec<_>>())
        };
        let element = real.to_string();
        prop_assert_eq!(found(&x_forwarded_for(), "x-forwarded-for", appended(element)), real);

        let element = if is_v6 { format!("for=\"[{real}]\";proto=https") } else { format!("for={real};host=\"a{escape}b\"") };
        let client = found(&forwarded(), "forwarded", appended(element));
        prop_assert!(client == real || client == ip(PROXY), "{client}");
        let is_plain = is_v6 || escape.is_empty();
        prop_assert!(client == real || same_line || !is_plain, "another line cannot make this one malformed");
    }
}
