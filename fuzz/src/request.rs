//! A request as text, so that its mutations are requests too.

use http::{HeaderName, HeaderValue, Method, Request, Uri, Version};

use crate::oracle::{bytes, latin_1};

/// Where a token was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenLocation {
    Header,
    ApiKey,
    Query,
    WebSocket,
    Other,
    Form,
    Json,
    Text,
}

/// A request to send. Text has one character per byte.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sent {
    pub method: String,
    pub target: String,
    pub is_http_2: bool,
    /// Names are in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Sent {
    /// Reads `METHOD target`, lines of `name:value`, an empty line, and the body. Lines end in LF, which no value can
    /// contain.
    pub fn parse(data: &[u8]) -> Option<Self> {
        let mut lines = data.split(|&byte| byte == b'\n');
        let mut body_at = 0;
        let mut next = || {
            let line = lines.next()?;
            body_at += line.len() + 1;
            Some(latin_1(line))
        };
        let (method, target) = next()?.split_once(' ').map(|(method, target)| (method.into(), target.into()))?;
        let mut headers = Vec::new();
        while let Some(line) = next().filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':')?;
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        Some(Self { method, target, is_http_2: false, headers, body: data.get(body_at..).unwrap_or_default().to_vec() })
    }

    /// Returns the request as text.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut text = format!("{} {}\n", self.method, self.target);
        for (name, value) in &self.headers {
            text += &format!("{name}:{value}\n");
        }
        let mut bytes = bytes(&(text + "\n"));
        bytes.extend(&self.body);
        bytes
    }

    /// Returns the lines of a field.
    pub fn lines(&self, name: &str) -> Vec<String> {
        self.headers.iter().filter(|(own, _)| own == name).map(|(_, value)| value.clone()).collect()
    }

    /// Returns the request as the layers receive it, if the types of `http` can express it.
    pub fn to_http<B>(&self, body: B) -> Option<Request<B>> {
        let mut request = Request::new(body);
        *request.method_mut() = Method::from_bytes(&bytes(&self.method)).ok()?;
        *request.uri_mut() = Uri::try_from(bytes(&self.target)).ok()?;
        if self.is_http_2 {
            *request.version_mut() = Version::HTTP_2;
        }
        for (name, value) in &self.headers {
            let name = HeaderName::from_bytes(&bytes(name)).ok()?;
            request.headers_mut().append(name, HeaderValue::from_bytes(&bytes(value)).ok()?);
        }
        Some(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_round_trips() {
        let text = b"POST /a?b\nx-api-key: abc\nX-Y:\xe9\n\nbody\n\nmore";
        let sent = Sent::parse(text).unwrap();
        assert_eq!(sent.lines("x-y"), ["\u{e9}"]);
        assert_eq!(sent.body, b"body\n\nmore");
        assert_eq!(Sent::parse(&sent.to_bytes()), Some(sent));
        assert_eq!(Sent::parse(b"GET /"), Sent::parse(b"GET /\n\n"));
        assert!(Sent::parse(b"GET").is_none() && Sent::parse(b"GET /\nx\n\n").is_none());
    }
}
