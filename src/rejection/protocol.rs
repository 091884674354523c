//! [`Protocol`]: the format in which a client expects a rejection.

use http::{HeaderValue, Method, Version, header};

use crate::request_head::RequestHead;

/// The protocol of a request, which determines the format of a rejection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Protocol {
    /// HTTP: a status code, header fields and problem details.
    #[default]
    Http,
    /// gRPC: status 200 and `grpc-status` in the header section ("Trailers-Only").
    Grpc,
    /// gRPC-Web: like gRPC, with the content type of gRPC-Web.
    GrpcWeb,
    /// A unary Connect call: a status code and a JSON error.
    Connect,
    /// A streaming Connect call: status 200 and a JSON error in the last message of the stream.
    ConnectStream,
}

impl Protocol {
    /// Returns the protocol of a request.
    ///
    /// | request | protocol |
    /// |---|---|
    /// | `Content-Type: application/grpc`, also with `+proto` or another suffix | [`Grpc`](Self::Grpc) |
    /// | `Content-Type: application/grpc-web` or `application/grpc-web-text`, also with a suffix | [`GrpcWeb`](Self::GrpcWeb) |
    /// | `Content-Type: application/connect+proto` or `application/connect+json` | [`ConnectStream`](Self::ConnectStream) |
    /// | `POST` with `Connect-Protocol-Version: 1`, `GET` with `connect=v1` in the query | [`Connect`](Self::Connect) |
    /// | all others | [`Http`](Self::Http) |
    ///
    /// Parameters of the content type are ignored. Connect's version header is optional in a unary call, but its clients send
    /// it. A JSON request without it is plain HTTP.
    ///
    /// ```
    /// use http::Request;
    /// use tollgate::{RequestHead, Protocol};
    ///
    /// let mut request = Request::new(());
    /// assert_eq!(Protocol::of(&RequestHead::of(&request)), Protocol::Http);
    /// request.headers_mut().insert("content-type", "application/grpc+proto".parse()?);
    /// assert_eq!(Protocol::of(&RequestHead::of(&request)), Protocol::Grpc);
    /// # Ok::<_, http::header::InvalidHeaderValue>(())
    /// ```
    #[must_use]
    pub fn of(head: &RequestHead<'_>) -> Self {
        Format::of_request(head).parts().0
    }
}

/// The format of a rejection: a protocol, and the content type of the response. Content types are static, so that a rejection
/// never repeats data of the request.
#[derive(Clone, Copy, Debug)]
enum Format {
    ProblemDetails,
    Grpc,
    GrpcWeb,
    GrpcWebProto,
    GrpcWebJson,
    GrpcWebText,
    GrpcWebTextProto,
    Connect,
    ConnectProto,
    ConnectJson,
}

impl Format {
    /// Formats of protocols that frame their messages. Requests and responses have the same content type.
    const FRAMED: [Self; 8] = [
        Self::Grpc,
        Self::GrpcWeb,
        Self::GrpcWebProto,
        Self::GrpcWebJson,
        Self::GrpcWebText,
        Self::GrpcWebTextProto,
        Self::ConnectProto,
        Self::ConnectJson,
    ];

    fn parts(self) -> (Protocol, &'static str) {
        match self {
            Self::ProblemDetails => (Protocol::Http, "application/problem+json"),
            Self::Grpc => (Protocol::Grpc, "application/grpc"),
            Self::GrpcWeb => (Protocol::GrpcWeb, "application/grpc-web"),
            Self::GrpcWebProto => (Protocol::GrpcWeb, "application/grpc-web+proto"),
            Self::GrpcWebJson => (Protocol::GrpcWeb, "application/grpc-web+json"),
            Self::GrpcWebText => (Protocol::GrpcWeb, "application/grpc-web-text"),
            Self::GrpcWebTextProto => (Protocol::GrpcWeb, "application/grpc-web-text+proto"),
            Self::Connect => (Protocol::Connect, "application/json"),
            Self::ConnectProto => (Protocol::ConnectStream, "application/connect+proto"),
            Self::ConnectJson => (Protocol::ConnectStream, "application/connect+json"),
        }
    }

    /// Returns the default format of a protocol.
    fn of(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Http => Self::ProblemDetails,
            Protocol::Grpc => Self::Grpc,
            Protocol::GrpcWeb => Self::GrpcWebProto,
            Protocol::Connect => Self::Connect,
            Protocol::ConnectStream => Self::ConnectProto,
        }
    }

    fn of_request(head: &RequestHead<'_>) -> Self {
        match Self::framed(head) {
            Some(format) => format,
            None if is_unary_connect(head) => Self::Connect,
            None => Self::ProblemDetails,
        }
    }

    /// Returns the format by the content type. An unknown suffix is dropped if the type without it is known.
    fn framed(head: &RequestHead<'_>) -> Option<Self> {
        let value = head.headers.get(header::CONTENT_TYPE)?.as_bytes();
        let until = |value: &'_ [u8], end: u8| value.iter().position(|&byte| byte == end).unwrap_or(value.len());
        let essence = value[..until(value, b';')].trim_ascii();
        let named = |name: &[u8]| {
            Self::FRAMED.into_iter().find(|format| format.parts().1.as_bytes().eq_ignore_ascii_case(name))
        };
        named(essence).or_else(|| named(&essence[..until(essence, b'+')]))
    }
}

/// The properties of a request that its rejection depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reply {
    format: Format,
    /// `true` if the method is `HEAD`: the response must not have content (RFC 9110, section 9.3.2).
    pub(crate) is_head: bool,
    /// `true` if the connection must be closed after the response, because the rest of the request is not read (RFC 9112,
    /// section 9.3).
    pub(crate) closes: bool,
}

impl Default for Reply {
    fn default() -> Self {
        Self { format: Format::ProblemDetails, is_head: false, closes: false }
    }
}

impl Reply {
    pub(crate) fn to(head: &RequestHead<'_>) -> Self {
        let is_head = head.method == Method::HEAD;
        Self { format: Format::of_request(head), is_head, closes: has_unread_body(head) }
    }

    pub(crate) fn with_protocol(self, protocol: Protocol) -> Self {
        Self { format: Format::of(protocol), ..self }
    }

    pub(crate) fn protocol(&self) -> Protocol {
        self.format.parts().0
    }

    pub(crate) fn content_type(&self) -> &'static str {
        self.format.parts().1
    }
}

fn is_unary_connect(head: &RequestHead<'_>) -> bool {
    match *head.method {
        Method::POST => head.headers.get("connect-protocol-version").is_some_and(|version| version == "1"),
        Method::GET | Method::HEAD => {
            head.uri.query().is_some_and(|query| query.split('&').any(|it| it == "connect=v1"))
        }
        _ => false,
    }
}

/// An extension of a request whose body a gate has read to its end.
#[derive(Clone, Copy)]
#[cfg_attr(not(feature = "body"), allow(dead_code))]
pub(crate) struct BodyRead;

/// Returns whether an HTTP/1 request has a body (RFC 9112, section 6.3) that was not read. In later versions of HTTP a request
/// ends without its connection.
fn has_unread_body(head: &RequestHead<'_>) -> bool {
    let ends_with_connection = matches!(head.version, Version::HTTP_09 | Version::HTTP_10 | Version::HTTP_11);
    let is_some = |length: &HeaderValue| length != "0";
    let announced = || {
        head.headers.contains_key(header::TRANSFER_ENCODING)
            || head.headers.get(header::CONTENT_LENGTH).is_some_and(is_some)
    };
    ends_with_connection && announced() && head.extensions.get::<BodyRead>().is_none()
}
