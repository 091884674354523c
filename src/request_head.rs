//! [`RequestHead`]: a borrowed request without its body.

use std::fmt;

use http::request::Parts;
use http::{Extensions, HeaderMap, Method, Request, Uri, Version, header};

/// A borrowed request head, the input of cost functions, custom token locations and [`store::by_head`](crate::store::by_head).
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct RequestHead<'a> {
    /// The method.
    pub method: &'a Method,
    /// The request target.
    pub uri: &'a Uri,
    /// The HTTP version.
    pub version: Version,
    /// The header fields, including secrets. Tokens are extracted before header values are marked sensitive.
    pub headers: &'a HeaderMap,
    /// The extensions, such as axum's `MatchedPath`.
    pub extensions: &'a Extensions,
}

impl<'a> RequestHead<'a> {
    /// Borrows the head of a request.
    #[inline]
    pub fn of<B>(request: &'a Request<B>) -> Self {
        Self {
            method: request.method(),
            uri: request.uri(),
            version: request.version(),
            headers: request.headers(),
            extensions: request.extensions(),
        }
    }

    /// Returns the host without the port, as the client sent it: that of the request target (HTTP/2), or else of the `Host` field.
    ///
    /// Returns `None` if there is no host, or more than one `Host` field. A host is case-insensitive.
    #[must_use]
    pub fn host(&self) -> Option<&'a str> {
        if let Some(host) = self.uri.host() {
            return Some(host);
        }
        let mut fields = self.headers.get_all(header::HOST).iter();
        let (Some(field), None) = (fields.next(), fields.next()) else { return None };
        let field = field.to_str().ok()?;
        // The colons inside of an IPv6 address are before its bracket.
        match field.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => Some(host),
            _ => Some(field),
        }
    }
}

impl<'a> From<&'a Parts> for RequestHead<'a> {
    fn from(parts: &'a Parts) -> Self {
        Self {
            method: &parts.method,
            uri: &parts.uri,
            version: parts.version,
            headers: &parts.headers,
            extensions: &parts.extensions,
        }
    }
}

impl fmt::Debug for RequestHead<'_> {
    /// Writes the method, the path and the names of header fields. Omits values and the query, which may contain a token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.headers.keys().map(http::HeaderName::as_str).collect();
        f.debug_struct("RequestHead")
            .field("method", self.method)
            .field("path", &self.uri.path())
            .field("version", &self.version)
            .field("headers", &names)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_is_that_of_the_target_or_else_of_the_only_field() {
        let host = |target: &str, fields: &[&str]| {
            let fields =
                fields.iter().fold(Request::get(target), |request, field| request.header(header::HOST, *field));
            RequestHead::of(&fields.body(()).unwrap()).host().map(str::to_owned)
        };
        for (field, expected) in [
            ("acme.test", "acme.test"),
            ("Acme.test:8443", "Acme.test"),
            ("acme.test:", "acme.test"),
            ("127.0.0.1:80", "127.0.0.1"),
            ("[::1]", "[::1]"),
            ("[::1]:80", "[::1]"),
        ] {
            assert_eq!(host("/path", &[field]).as_deref(), Some(expected), "{field}");
            assert_eq!(host("http://target.test:80/", &[field]).as_deref(), Some("target.test"));
        }
        assert_eq!(host("http://[::1]:80/", &[]).as_deref(), Some("[::1]"));
        assert_eq!(host("/", &[]), None);
        assert_eq!(host("/", &["acme.test", "acme.test"]), None);
        assert_eq!(host("/", &["caf\u{e9}.test"]), None);
    }
}
