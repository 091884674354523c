//! [`Decision::into_result`]: a rejected charge as a [`Rejection`].

use super::Rejection;
use crate::quota::decision::Decision;

impl Decision {
    /// Returns the decision if it is an admission, and otherwise a rejection. For handlers that charge by themselves.
    ///
    /// The rejection is 429, 400 if the charge can never be admitted, or 503 if the limiter is unavailable.
    ///
    /// ```
    /// use http::Response;
    /// use tollgate::limit::{Charge, RateLimits};
    /// use tollgate::{AuthLayer, Authenticated, Grant, MemoryStore, Quota, TokenDigest};
    ///
    /// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
    /// let (gate, limits) = (AuthLayer::new(tokens), RateLimits::new(Quota::per_minute(1)));
    /// let caller = Authenticated::new(Grant::new("alice", ())).current();
    ///
    /// assert!(limits.charge(&caller, Charge::Units(1)).into_result().is_ok());
    /// let rejection = limits.charge(&caller, Charge::Units(1)).into_result().unwrap_err();
    /// // Logs contain the id of the grant.
    /// let response: Response<bytes::Bytes> = gate.reject(rejection.of_grant(caller.id()));
    /// assert_eq!(response.status(), 429);
    /// assert_eq!(response.headers()["ratelimit"], r#""default";r=0;t=60"#);
    /// ```
    ///
    /// # Errors
    ///
    /// Returns a rejection if the charge was not admitted. Then nothing was charged.
    #[inline]
    pub fn into_result(self) -> Result<Self, Rejection> {
        match self.is_admitted() {
            true => Ok(self),
            false => Err(Rejection::over_limit(self)),
        }
    }
}
