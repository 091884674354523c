//! [`RejectionKind`]: the reasons for rejections.

/// The reason for a rejection, with its HTTP status and the `error` of its challenge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RejectionKind {
    /// 401: the request has no credential.
    Missing,
    /// 401 `invalid_token`: the credential is not a well-formed token.
    MalformedToken,
    /// 401 `invalid_token`: the token has no grant, or its grant was revoked.
    UnknownToken,
    /// 401 `invalid_token`: the grant is not valid yet. Clients cannot distinguish it from an unknown token.
    NotYetValid,
    /// 401 `invalid_token`: the grant has expired.
    ExpiredToken,
    /// 401 `invalid_token`: the token is bound to a key of the client, and gates check no proofs. Clients cannot distinguish it from an
    /// unknown token.
    SenderConstrained,
    /// 400 `invalid_request`: the request has more than one credential, or an ambiguous one.
    InvalidRequest,
    /// 403: the request came without HTTPS, to a gate that [requires it](crate::AuthLayer::require_https).
    HttpsRequired,
    /// 403 `insufficient_scope`: the grant does not have a required scope.
    InsufficientScope,
    /// 401 `insufficient_user_authentication`: the user must authenticate again, or with a stronger method (RFC 9470).
    InsufficientUserAuthentication,
    /// 429: too many authentication attempts of the peer have failed. The response does not tell whether the token is known.
    TooManyFailures,
    /// 429: the rate limit is exhausted.
    OverLimit,
    /// 400: the request costs more than the burst of the rate limit, so that it can never be admitted.
    CostAboveBurst,
    /// 413: the body is longer than the maximum for bodies with a token.
    BodyTooLarge,
    /// 400: the body could not be read to its end.
    BodyUnreadable,
    /// 408: the body did not arrive within the timeout.
    BodyTimeout,
    /// 503: the store failed or timed out.
    StoreUnavailable,
    /// 503: the limiter failed or timed out.
    LimiterUnavailable,
    /// 500: layers are missing or in the wrong order.
    Misconfigured,
}

impl RejectionKind {
    /// The number of kinds.
    pub(crate) const COUNT: usize = Self::Misconfigured as usize + 1;

    /// All kinds, for tests.
    #[cfg(test)]
    #[allow(dead_code, reason = "only tests of optional features use it")]
    pub(crate) const ALL: [Self; Self::COUNT] = [
        Self::Missing,
        Self::MalformedToken,
        Self::UnknownToken,
        Self::NotYetValid,
        Self::ExpiredToken,
        Self::SenderConstrained,
        Self::InvalidRequest,
        Self::HttpsRequired,
        Self::InsufficientScope,
        Self::InsufficientUserAuthentication,
        Self::TooManyFailures,
        Self::OverLimit,
        Self::CostAboveBurst,
        Self::BodyTooLarge,
        Self::BodyUnreadable,
        Self::BodyTimeout,
        Self::StoreUnavailable,
        Self::LimiterUnavailable,
        Self::Misconfigured,
    ];

    /// Returns the name of this kind in metrics and events (see `OBSERVE.md`), for example `over_limit`.
    ///
    /// The name is for operators: clients cannot distinguish all kinds.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::MalformedToken => "malformed_token",
            Self::UnknownToken => "unknown_token",
            Self::NotYetValid => "not_yet_valid",
            Self::ExpiredToken => "expired_token",
            Self::SenderConstrained => "sender_constrained",
            Self::InvalidRequest => "invalid_request",
            Self::HttpsRequired => "https_required",
            Self::InsufficientScope => "insufficient_scope",
            Self::InsufficientUserAuthentication => "insufficient_user_authentication",
            Self::TooManyFailures => "too_many_failures",
            Self::OverLimit => "over_limit",
            Self::CostAboveBurst => "cost_above_burst",
            Self::BodyTooLarge => "body_too_large",
            Self::BodyUnreadable => "body_unreadable",
            Self::BodyTimeout => "body_timeout",
            Self::StoreUnavailable => "store_unavailable",
            Self::LimiterUnavailable => "limiter_unavailable",
            Self::Misconfigured => "misconfigured",
        }
    }
}
