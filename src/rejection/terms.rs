//! [`Challenges`]: the pre-rendered challenges of a gate.

use std::sync::OnceLock;

use http::{HeaderMap, HeaderValue};

use super::challenge::{Challenge, ErrorCode};
use super::kind::RejectionKind;

/// The challenges of a gate.
#[derive(Clone, Debug)]
pub(crate) struct Challenges {
    bearer: Challenge,
    others: Vec<Challenge>,
    /// Rendered once, so that floods of unauthenticated requests stay cheap.
    rendered: Rendered,
    is_default: bool,
}

#[derive(Clone, Debug)]
struct Rendered {
    missing: HeaderValue,
    invalid_token: HeaderValue,
    invalid_request: HeaderValue,
    others: Vec<HeaderValue>,
    /// The heads of problem details, by kind.
    heads: Box<[OnceLock<HeaderMap>; RejectionKind::COUNT]>,
}

impl Challenges {
    pub(crate) fn new(bearer: Challenge) -> Self {
        let rendered = Rendered::of(&bearer, &[]);
        Self { bearer, others: Vec::new(), rendered, is_default: false }
    }

    pub(crate) fn with_bearer(self, bearer: Challenge) -> Self {
        Self { rendered: Rendered::of(&bearer, &self.others), bearer, is_default: false, ..self }
    }

    pub(crate) fn with_other(mut self, other: Challenge) -> Self {
        self.others.push(other.without_error());
        Self { rendered: Rendered::of(&self.bearer, &self.others), is_default: false, ..self }
    }

    /// Returns whether these are the challenges of a gate without such settings.
    pub(crate) fn is_default(&self) -> bool {
        self.is_default
    }

    /// Returns the Bearer challenge of this gate, without an error.
    pub(crate) fn bearer(&self) -> &Challenge {
        &self.bearer
    }

    /// Returns the Bearer challenge with this error, as a header field value.
    pub(crate) fn challenge(&self, error: Option<ErrorCode>) -> HeaderValue {
        match error {
            None => self.rendered.missing.clone(),
            Some(ErrorCode::InvalidToken) => self.rendered.invalid_token.clone(),
            Some(ErrorCode::InvalidRequest) => self.rendered.invalid_request.clone(),
            Some(error) => self.bearer.clone().with_error(error).to_header_value(),
        }
    }

    /// Returns the head of problem details about a kind, which the first call renders.
    pub(crate) fn head(&self, kind: RejectionKind, render: impl FnOnce() -> HeaderMap) -> HeaderMap {
        self.rendered.heads[kind as usize].get_or_init(render).clone()
    }

    /// Returns the challenges of other schemes. They have no error, because the request did not use them (RFC 9449, section
    /// 7.2).
    pub(crate) fn others(&self) -> &[HeaderValue] {
        &self.rendered.others
    }
}

impl Rendered {
    fn of(bearer: &Challenge, others: &[Challenge]) -> Self {
        Self {
            missing: bearer.to_header_value(),
            invalid_token: bearer.clone().with_error(ErrorCode::InvalidToken).to_header_value(),
            invalid_request: bearer.clone().with_error(ErrorCode::InvalidRequest).to_header_value(),
            others: others.iter().map(Challenge::to_header_value).collect(),
            heads: Box::default(),
        }
    }
}

impl Default for Challenges {
    fn default() -> Self {
        Self { is_default: true, ..Self::new(Challenge::default_bearer()) }
    }
}

#[cfg(test)]
mod tests {
    use http::header::WWW_AUTHENTICATE;

    use super::*;

    #[test]
    fn changed_challenges_render_heads_again() {
        let head = |challenges: &Challenges| {
            let render = || HeaderMap::from_iter([(WWW_AUTHENTICATE, challenges.challenge(None))]);
            challenges.head(RejectionKind::Missing, render)
        };
        let challenges = Challenges::default();
        assert_eq!(head(&challenges)[WWW_AUTHENTICATE], "Bearer realm=\"api\"");
        let challenges = challenges.with_bearer(Challenge::bearer("other").unwrap());
        assert_eq!(head(&challenges)[WWW_AUTHENTICATE], "Bearer realm=\"other\"");
        assert_eq!(head(&challenges)[WWW_AUTHENTICATE], "Bearer realm=\"other\"");
    }
}
