//! The URLs of protected resource metadata: checks them, and derives the URL of the metadata.

use std::net::{Ipv4Addr, Ipv6Addr};

use http::Uri;

use crate::loopback::is_loopback;

/// The well-known path of protected resource metadata (RFC 9728, section 3).
const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";

/// The URL of the metadata of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MetadataUrl {
    text: Box<str>,
    /// The length of the scheme and the authority.
    origin_len: usize,
}

impl MetadataUrl {
    /// Returns the URL of the metadata: the well-known path is inserted after the host (RFC 9728, section 3.1).
    ///
    /// Returns `None` if the resource is not a valid identifier in normal form.
    pub(super) fn of(resource: &str) -> Option<Self> {
        let (origin, rest) = split(resource)?;
        let (path, query) = match rest.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (rest, None),
        };
        let is_normal = is_normal_authority(origin) && is_normal_path(path) && query.is_none_or(is_normal_query);
        // The slash after the host goes if the path has nothing else.
        let rest = if path == "/" { &rest[1..] } else { rest };
        let text = format!("{origin}{WELL_KNOWN}{rest}").into();
        is_normal.then_some(Self { text, origin_len: origin.len() })
    }

    pub(super) fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the path, without the query.
    pub(super) fn path(&self) -> &str {
        let target = self.target();
        target.split_once('?').map_or(target, |(path, _)| path)
    }

    /// Returns the path with the query.
    pub(super) fn target(&self) -> &str {
        &self.text[self.origin_len..]
    }
}

/// Returns whether the text can be the identifier of an authorization server: no query and no fragment (RFC 8414, section 2).
///
/// Clients compare it with the identifier that the server uses, so that its form is the choice of the server.
pub(super) fn is_issuer(text: &str) -> bool {
    !text.contains(['?', '#']) && split(text).is_some()
}

/// Returns whether the text is the URL of a page for people.
pub(super) fn is_page(text: &str) -> bool {
    let without_fragment = text.split('#').next().unwrap_or_default();
    let uri: Option<Uri> = without_fragment.parse().ok();
    let is_web = |uri: &Uri| matches!(uri.scheme_str(), Some("https" | "http")) && uri.host().is_some();
    text.bytes().all(is_uri_byte) && uri.as_ref().is_some_and(is_web)
}

/// Splits a URL after its authority. Returns `None` unless it is `https`, or `http` on `localhost` or a loopback address.
fn split(text: &str) -> Option<(&str, &str)> {
    let uri: Uri = text.parse().ok()?;
    let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
    let is_safe = match scheme {
        "https" => true,
        // The gate sends no token to these URLs, and programs on this machine often write `localhost`.
        "http" => authority.host() == "localhost" || is_loopback(authority.host()),
        _ => false,
    };
    let has_host = !matches!(authority.host(), "" | "[]") && !authority.as_str().contains('@');
    let origin_len = scheme.len() + "://".len() + authority.as_str().len();
    (is_safe && has_host && text.bytes().all(is_uri_byte)).then(|| text.split_at_checked(origin_len)).flatten()
}

/// Returns whether RFC 3986 allows the byte in a URI. `http::Uri` allows more.
fn is_uri_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:/?#[]@!$&'()*+,;=%".contains(&byte)
}

/// Returns whether an origin is as URL parsers write it: in lower case, without a default port, an address in its usual form.
fn is_normal_authority(origin: &str) -> bool {
    let Some((scheme, authority)) = origin.split_once("://") else { return false };
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let default_port = if scheme == "https" { 443 } else { 80 };
    let is_normal_port = |text: &str| {
        let port = text.parse::<u16>();
        port.is_ok_and(|port| port != default_port && port.to_string() == text)
    };
    let is_name = host.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte));
    // Parsers read a name whose last label is a number as an IPv4 address, which has other spellings.
    let last = host.rsplit('.').find(|label| !label.is_empty()).unwrap_or_default();
    let is_number = last.starts_with("0x") || last.bytes().all(|byte| byte.is_ascii_digit());
    let is_name = is_name && (!is_number || host.parse::<Ipv4Addr>().is_ok());
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let is_address = address.is_some_and(|text| {
        let address = text.parse::<Ipv6Addr>();
        // `Display` writes a mapped address as `::ffff:1.2.3.4`, and URL parsers write it as `::ffff:102:304`.
        address.is_ok_and(|address| address.to_ipv4_mapped().is_none() && address.to_string() == text)
    });
    matches!(scheme, "https" | "http") && (is_name || is_address) && port.is_none_or(is_normal_port)
}

/// Returns whether a path is as URL parsers write it: without dot segments, and with complete escapes.
fn is_normal_path(path: &str) -> bool {
    let is_dots = |segment: &str| {
        let segment = segment.replace("%2e", ".").replace("%2E", ".");
        matches!(segment.as_str(), "." | "..")
    };
    (path.is_empty() || path.starts_with('/'))
        && !path.split('/').any(is_dots)
        && !path.contains(['#', '[', ']'])
        && has_complete_escapes(path)
}

/// Returns whether a query is as URL parsers write it. They escape the apostrophe.
fn is_normal_query(query: &str) -> bool {
    !query.contains(['#', '[', ']', '\'']) && has_complete_escapes(query)
}

fn has_complete_escapes(text: &str) -> bool {
    text.split('%').skip(1).all(|rest| rest.bytes().take(2).filter(u8::is_ascii_hexdigit).count() == 2)
}
