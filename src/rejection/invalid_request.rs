//! [`InvalidRequest`]: the reason why a request is rejected with 400 `invalid_request`.

use std::fmt;

/// Declares the reasons, each with the text that clients and logs get.
macro_rules! reasons {
    ($($(#[$doc:meta])* $reason:ident => $text:literal,)+) => {
        /// Explains why a request is answered with 400 `invalid_request`.
        ///
        /// [`detail`](Self::detail) is the text that [`ProblemDetails`](crate::ProblemDetails) sends as `detail`.
        ///
        /// ```
        /// use tollgate::extract::{InvalidRequest, Extracted, TokenSyntax, json};
        ///
        /// let broken = br#"{"key": "S3cret", "qty": }"#;
        /// let Extracted::Ambiguous(reason) = json(broken, "key", TokenSyntax::default()) else { panic!() };
        /// assert_eq!(reason, InvalidRequest::InvalidJson);
        /// assert_eq!(reason.detail(), "The request body is not valid JSON.");
        /// ```
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub enum InvalidRequest {
            $($(#[$doc])* $reason,)+
        }

        impl InvalidRequest {
            /// Returns one sentence for the client. It is static, so that nothing of the request is in it.
            #[must_use]
            pub const fn detail(self) -> &'static str {
                match self {
                    $(Self::$reason => $text,)+
                }
            }

            /// Returns the problem document (RFC 9457) with [`detail`](Self::detail), whose text needs no escapes.
            pub(crate) const fn problem(self) -> &'static str {
                match self {
                    $(Self::$reason => concat!(
                        r#"{"type":"about:blank","title":"Bad Request","status":400,"detail":""#, $text, r#""}"#
                    ),)+
                }
            }
        }

        #[cfg(test)]
        pub(crate) const ALL: &[InvalidRequest] = &[$(InvalidRequest::$reason,)+];
    };
}

reasons! {
    /// The request has more than one credential: in several places, or several times in one.
    SeveralCredentials => "Send exactly one credential.",
    /// The body has the field of the token more than once.
    RepeatedField => "The request body has the field of the token more than once.",
    /// The field of the token in a text body has no `=`.
    FieldWithoutValue => "The field of the token in the request body has no value.",
    /// The value of the token in a JSON body is not a string.
    NotAString => "The token in the request body is not a JSON string.",
    /// The body is not JSON (RFC 8259), although its type says so.
    InvalidJson => "The request body is not valid JSON.",
    /// The JSON in the body is nested more deeply than the gate allows.
    DeepJson => "The JSON in the request body is nested too deeply.",
    /// The body is not UTF-8.
    InvalidUtf8 => "The request body is not valid UTF-8.",
    /// `Content-Type` has a charset other than UTF-8 and US-ASCII.
    OtherCharset => "The charset of the request body is not UTF-8.",
    /// The request has more than one `Content-Type` header.
    SeveralContentTypes => "Send exactly one Content-Type header.",
    /// The token among the sub-protocols of a WebSocket handshake is not base64url without padding.
    EncodedToken => "The token in Sec-WebSocket-Protocol is not base64url without padding.",
    /// A WebSocket handshake offers the sub-protocol with the token and no other, so that no protocol could be selected.
    OnlyTokenProtocol => "Sec-WebSocket-Protocol offers the token alone. Offer the protocol of the service beside it.",
}

impl fmt::Display for InvalidRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.detail())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_need_no_escapes_and_differ() {
        for reason in ALL {
            let text = reason.detail();
            assert!(
                text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'"' && byte != b'\\' && byte != b'%'),
                "{text}"
            );
            assert!(reason.problem().ends_with(&format!("\"detail\":\"{text}\"}}")));
            assert_eq!(ALL.iter().filter(|other| other.detail() == text).count(), 1, "{text}");
        }
    }
}
