//! Status codes and texts of rejections, defined here only.
//!
//! # Rules
//!
//! 1. Clients can read every text. A text reveals no more than the challenge. Unknown, revoked, not yet valid and bound tokens
//!    have the same text. No text contains the error of a store.
//! 2. Operators find the exact reason in [`Rejection::kind`], and the error in the error's source.
//! 3. A text is ASCII without quotes, backslashes and percent signs, so that JSON and gRPC need no escapes.

use std::borrow::Cow;
use std::fmt;

use http::StatusCode;

use crate::rejection::{Rejection, RejectionKind};

/// Problem details (RFC 9457), with additional members.
macro_rules! problem {
    ($type:literal, $status:literal, $title:literal, $text:expr, $more:literal) => {
        concat!(
            r#"{"type":""#,
            $type,
            r#"","title":""#,
            $title,
            r#"","status":"#,
            $status,
            r#","detail":""#,
            $text,
            r#"""#,
            $more,
            "}"
        )
    };
}

/// Declares the text and the body of each kind whose body is fixed. The default type is `about:blank`, with the status phrase as
/// title (RFC 9457, section 4.2.1).
macro_rules! fixed {
    ($($(RejectionKind::$kind:ident)|+ => $status:literal $title:literal $text:literal $(($type:literal $more:literal))?,)+) => {
        const fn fixed(kind: RejectionKind) -> Option<(&'static str, &'static str)> {
            match kind {
                $($(RejectionKind::$kind)|+ => Some(($text, fixed!(@body $status $title $text $(($type $more))?))),)+
                RejectionKind::InvalidRequest | RejectionKind::OverLimit | RejectionKind::Misconfigured => None,
            }
        }
    };
    (@body $status:literal $title:literal $text:literal) => {
        problem!("about:blank", $status, $title, $text, "")
    };
    (@body $status:literal $title:literal $text:literal ($type:literal $more:literal)) => {
        problem!($type, $status, $title, $text, $more)
    };
}

fixed! {
    RejectionKind::Missing => 401 "Unauthorized" "This resource requires a token. The request has none.",
    RejectionKind::MalformedToken
    | RejectionKind::UnknownToken
    | RejectionKind::NotYetValid
    | RejectionKind::SenderConstrained => 401 "Unauthorized" "The token is not valid.",
    RejectionKind::ExpiredToken => 401 "Unauthorized" "The token has expired.",
    RejectionKind::InsufficientUserAuthentication =>
        401 "Unauthorized" "The user must authenticate again, as the challenge specifies.",
    RejectionKind::CostAboveBurst =>
        400 "Bad Request" "The request costs more than the rate limit can ever allow. Waiting does not help.",
    // One text, because a body that was not read may have a token.
    RejectionKind::HttpsRequired => 403 "Forbidden"
        "Send this request over HTTPS. Replace a token that was sent without HTTPS, because others may have read it.",
    RejectionKind::InsufficientScope => 403 "Forbidden" "The token does not have the required scope.",
    RejectionKind::BodyTooLarge => 413 "Content Too Large" "The request body is too large.",
    RejectionKind::BodyUnreadable => 400 "Bad Request" "The request body could not be read to its end.",
    RejectionKind::BodyTimeout => 408 "Request Timeout" "The request body did not arrive in time.",
    RejectionKind::StoreUnavailable =>
        503 "Service Unavailable" "The service cannot check tokens at the moment. The token may be valid.",
    RejectionKind::LimiterUnavailable =>
        503 "Service Unavailable" "The service cannot check the rate limit at the moment.",
    // The problem type of draft-ietf-httpapi-ratelimit-headers-11 for a 429 after suspected abuse.
    RejectionKind::TooManyFailures => 429 "Too Many Requests" "Too many attempts to authenticate have failed."
        ("https://iana.org/assignments/http-problem-types#abnormal-usage-detected" r#","violated-policies":["failures"]"#),
}

/// Returns the problem details of a rejection, if all rejections of this kind or reason have the same.
pub(super) fn fixed_body(rejection: &Rejection) -> Option<&'static str> {
    match rejection.kind() {
        RejectionKind::InvalidRequest => Some(rejection.reason().problem()),
        kind => fixed(kind).map(|(_, body)| body),
    }
}

/// Returns the first sentence of a text.
fn sentence(rejection: &Rejection) -> &'static str {
    match (fixed(rejection.kind()), rejection.kind()) {
        (Some((text, _)), _) => text,
        (None, RejectionKind::Misconfigured) => rejection.hint(),
        (None, RejectionKind::InvalidRequest) => rejection.reason().detail(),
        (None, _) => "The rate limit is exhausted.",
    }
}

/// Returns the number of seconds in a text, if it has one. Frequent rejections have none, so that they need no allocation.
fn retry_after_secs(rejection: &Rejection) -> Option<u64> {
    rejection.retry_after_secs().filter(|_| rejection.kind() == RejectionKind::OverLimit)
}

/// Returns the parts of a text. A number is formatted into `digits`.
pub(super) fn pieces<'a>(rejection: &Rejection, digits: &'a mut itoa::Buffer) -> [&'a str; 4] {
    let sentence = sentence(rejection);
    match retry_after_secs(rejection) {
        None => [sentence, "", "", ""],
        Some(1) => [sentence, " Retry after ", "1", " second."],
        Some(seconds) => [sentence, " Retry after ", digits.format(seconds), " seconds."],
    }
}

impl Rejection {
    /// Returns the HTTP status of the response. Over gRPC the status is 200, and the code is in `grpc-status`.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        status(self.kind())
    }

    /// Returns a text for the client: the `detail` of [`ProblemDetails`](crate::ProblemDetails), and the `Display` of the
    /// rejection.
    ///
    /// The text reveals no more than the challenge. Unknown, revoked, not yet valid and bound tokens have the same text. The
    /// error of a store is never part of it. Operators find these in [`kind`](Self::kind) and in the
    /// [source](std::error::Error::source).
    ///
    /// ```
    /// use tollgate::limit::{Charge, RateLimits};
    /// use tollgate::{CurrentGrant, Grant, Quota};
    ///
    /// let limits = RateLimits::new(Quota::per_minute(20).with_burst(1));
    /// let alice = CurrentGrant::new(Grant::new("alice", ()));
    /// assert!(limits.charge(&alice, Charge::Units(1)).into_result().is_ok());
    /// let rejection = limits.charge(&alice, Charge::Units(1)).into_result().unwrap_err().of_grant(alice.id());
    /// assert_eq!(rejection.status(), 429);
    /// assert_eq!(rejection.detail(), "The rate limit is exhausted. Retry after 3 seconds.");
    /// ```
    #[must_use]
    pub fn detail(&self) -> Cow<'static, str> {
        match retry_after_secs(self) {
            None => Cow::Borrowed(sentence(self)),
            Some(_) => Cow::Owned(pieces(self, &mut itoa::Buffer::new()).concat()),
        }
    }
}

/// Writes [`Rejection::detail`].
impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        pieces(self, &mut itoa::Buffer::new()).into_iter().try_for_each(|piece| f.write_str(piece))
    }
}

/// Returns the status of a rejection over HTTP.
fn status(kind: RejectionKind) -> StatusCode {
    match kind {
        RejectionKind::Missing
        | RejectionKind::MalformedToken
        | RejectionKind::UnknownToken
        | RejectionKind::NotYetValid
        | RejectionKind::ExpiredToken
        | RejectionKind::SenderConstrained
        | RejectionKind::InsufficientUserAuthentication => StatusCode::UNAUTHORIZED,
        RejectionKind::InvalidRequest | RejectionKind::CostAboveBurst | RejectionKind::BodyUnreadable => {
            StatusCode::BAD_REQUEST
        }
        RejectionKind::BodyTimeout => StatusCode::REQUEST_TIMEOUT,
        RejectionKind::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        RejectionKind::HttpsRequired | RejectionKind::InsufficientScope => StatusCode::FORBIDDEN,
        RejectionKind::TooManyFailures | RejectionKind::OverLimit => StatusCode::TOO_MANY_REQUESTS,
        RejectionKind::StoreUnavailable | RejectionKind::LimiterUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        RejectionKind::Misconfigured => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::num::NonZeroU64;
    use std::time::Duration;

    use bytes::Bytes;
    use http::Response;

    use super::*;
    use crate::grant::Grant;
    use crate::grant::scopes::Scopes;
    use crate::quota::Quota;
    use crate::quota::decision::{Decision, Verdict};
    use crate::quota::policy::Policy;
    use crate::rejection::store_error::StoreError;
    use crate::respond::{ProblemDetails, Respond};

    const SECRET: &str = "postgres://user:password@db7/tokens";

    /// Returns all kinds. A new kind does not compile until it is added here.
    fn all() -> Vec<RejectionKind> {
        use RejectionKind::*;
        let next = |kind| match kind {
            Missing => Some(MalformedToken),
            MalformedToken => Some(UnknownToken),
            UnknownToken => Some(NotYetValid),
            NotYetValid => Some(ExpiredToken),
            ExpiredToken => Some(SenderConstrained),
            SenderConstrained => Some(InvalidRequest),
            InvalidRequest => Some(HttpsRequired),
            HttpsRequired => Some(InsufficientScope),
            InsufficientScope => Some(InsufficientUserAuthentication),
            InsufficientUserAuthentication => Some(TooManyFailures),
            TooManyFailures => Some(OverLimit),
            OverLimit => Some(CostAboveBurst),
            CostAboveBurst => Some(BodyTooLarge),
            BodyTooLarge => Some(BodyUnreadable),
            BodyUnreadable => Some(BodyTimeout),
            BodyTimeout => Some(StoreUnavailable),
            StoreUnavailable => Some(LimiterUnavailable),
            LimiterUnavailable => Some(Misconfigured),
            Misconfigured => None,
        };
        std::iter::successors(Some(Missing), |kind| next(*kind)).collect()
    }

    /// Returns a rejection of this kind, with all optional data.
    fn rejection(kind: RejectionKind) -> Rejection {
        let decision = |verdict| {
            let policy = Policy::new("odd \"policy\"", Quota::per_hour(1)).unwrap();
            Decision::new(policy, verdict, 0, Duration::from_millis(2_500), Duration::from_secs(9))
        };
        let rejection = match kind {
            RejectionKind::OverLimit => Rejection::over_limit(decision(Verdict::OverLimit)),
            RejectionKind::CostAboveBurst => Rejection::over_limit(decision(Verdict::CostAboveBurst)),
            RejectionKind::LimiterUnavailable => Rejection::over_limit(Decision::unavailable(Duration::from_secs(3))),
            RejectionKind::TooManyFailures => Rejection::too_many_failures(NonZeroU64::MIN),
            RejectionKind::StoreUnavailable => Rejection::unavailable(StoreError::new(std::io::Error::other(SECRET))),
            RejectionKind::InsufficientScope => Rejection::insufficient_scope(Scopes::new(["trade"]).unwrap()),
            RejectionKind::InsufficientUserAuthentication => {
                Rejection::insufficient_user_authentication(["myACR"], None).unwrap()
            }
            RejectionKind::Misconfigured => Rejection::misconfigured("No gate has seen this request."),
            other => Rejection::new(other),
        };
        assert_eq!(rejection.kind(), kind);
        rejection.of_grant(Grant::new("grant-17", ()).with_subject("alice").id())
    }

    #[test]
    fn detail_display_and_problem_details_have_the_same_text() {
        for kind in all() {
            let rejection = rejection(kind);
            let response: Response<Bytes> = ProblemDetails.respond(&rejection);
            let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
            assert_eq!(body["detail"], *rejection.detail(), "{kind:?}");
            assert_eq!(rejection.to_string(), rejection.detail(), "{kind:?}");
            assert_eq!(
                (body["status"].as_u64(), response.status()),
                (Some(rejection.status().as_u16().into()), rejection.status())
            );
            assert_eq!(
                body["title"].as_str(),
                rejection.status().canonical_reason().map(|reason| match reason {
                    // The crate `http` still has the name from before RFC 9110, section 15.5.14.
                    "Payload Too Large" => "Content Too Large",
                    other => other,
                })
            );
        }
    }

    #[test]
    fn no_text_reveals_what_the_challenge_hides() {
        let text = |kind| rejection(kind).detail().into_owned();
        let hidden = [RejectionKind::MalformedToken, RejectionKind::NotYetValid, RejectionKind::SenderConstrained];
        for kind in hidden {
            assert_eq!(text(kind), text(RejectionKind::UnknownToken), "{kind:?}");
        }
        for kind in all() {
            let text = text(kind);
            assert!(text.is_ascii() && !text.contains(['"', '\\', '%']) && text.ends_with('.'), "{kind:?}: {text}");
            for word in ["db7", "password", "grant-17", "alice", "revoked", "not yet", "bound", "proof", "odd"] {
                assert!(!text.contains(word), "{kind:?}: {text}");
            }
        }
        assert_eq!(text(RejectionKind::OverLimit), "The rate limit is exhausted. Retry after 3 seconds.");
    }

    #[test]
    fn kinds_and_statuses_match_observe_md() {
        let page = include_str!("../../OBSERVE.md");
        let section = page.split("| kind | level | HTTP |").nth(1).unwrap().split("\n\n").next().unwrap();
        let rows = section.lines().filter(|line| line.contains('`')).map(|row| row.split('|').collect::<Vec<_>>());
        let mut documented: BTreeSet<(String, u16)> = BTreeSet::new();
        for row in rows {
            let names =
                row[1].split('`').skip(1).step_by(2).map(|name| (name.to_owned(), row[3].trim().parse().unwrap()));
            documented.extend(names);
        }
        let own = all().into_iter().map(|kind| (kind.as_str().to_owned(), rejection(kind).status().as_u16()));
        assert_eq!(own.collect::<BTreeSet<_>>(), documented);
    }
}
