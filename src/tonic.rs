//! Integration with tonic (feature `tonic`): rejections as a `Status`.

use std::sync::Arc;

use http::{Response, header};
use tonic::{Code, Status};

use crate::observe;
use crate::rejection::{Protocol, Rejection};
use crate::respond::{EmptyBody, Respond};

impl From<Rejection> for Status {
    /// Returns the status of a rejection that a handler returns, and reports it to [metrics and events](crate::observe).
    ///
    /// Code, message, details and metadata are those of the gate's own rejections over gRPC. The rejection is the source of the
    /// status. The gate around the handler does not change the response. The response has the rate limit headers of the gate's charge.
    ///
    /// ```
    /// use tollgate::{Authenticated, Scopes};
    /// use tonic::{Code, Request, Response, Status};
    ///
    /// struct Orders {
    ///     may_write: Scopes,
    /// }
    ///
    /// impl Orders {
    ///     async fn place(&self, request: Request<()>) -> Result<Response<()>, Status> {
    ///         let caller = Authenticated::<String>::from_extensions(request.extensions())?;
    ///         caller.require_scopes(&self.may_write)?;
    ///         Ok(Response::new(()))
    ///     }
    /// }
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # use tollgate::{CurrentGrant, Grant};
    /// let orders = Orders { may_write: Scopes::new(["orders:write"])? };
    /// let mut request = Request::new(());
    /// request.extensions_mut().insert(CurrentGrant::new(Grant::new("alice", "Alice".to_owned())));
    /// let status = orders.place(request).await.unwrap_err();
    /// assert_eq!(status.code(), Code::PermissionDenied);
    /// assert_eq!(status.message(), "The token does not have the required scope. Required: orders:write");
    /// # Ok(())
    /// # }
    /// ```
    fn from(rejection: Rejection) -> Self {
        let rejection = rejection.with_protocol(Protocol::Grpc);
        observe::rejected(&rejection);
        Self::from(&rejection)
    }
}

impl From<&Rejection> for Status {
    /// Returns the status of a rejection without a report, for a rejection that a gate has reported.
    fn from(rejection: &Rejection) -> Self {
        let response: Response<()> = EmptyBody.respond(&rejection.clone().with_protocol(Protocol::Grpc));
        let mut headers = response.into_parts().0.headers;
        // tonic writes the content type of each response.
        headers.remove(header::CONTENT_TYPE);
        let status = Self::from_header_map(&headers);
        let mut status = status.unwrap_or_else(|| Self::new(Code::Internal, rejection.detail()));
        status.set_source(Arc::new(rejection.clone()));
        status
    }
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;
    use std::num::NonZeroU64;
    use std::time::Duration;

    use super::*;
    use crate::grant::scopes::Scopes;
    use crate::quota::Quota;
    use crate::quota::decision::{Decision, Verdict};
    use crate::quota::policy::Policy;
    use crate::rejection::RejectionKind;
    use crate::rejection::store_error::StoreError;

    /// Returns rejections of all kinds, and those with times and scopes.
    fn rejections() -> Vec<Rejection> {
        let wait = Duration::from_millis(1_234);
        let decided = |verdict| {
            let policy = Policy::new("p", Quota::per_minute(1)).unwrap();
            Rejection::over_limit(Decision::new(policy, verdict, 0, wait, wait))
        };
        let scopes = Scopes::new(["orders:write", "50%"]).unwrap();
        let mut all = RejectionKind::ALL.map(Rejection::new).to_vec();
        all.extend([
            Rejection::insufficient_scope(scopes),
            Rejection::insufficient_user_authentication(["myACR"], Some(wait)).unwrap(),
            Rejection::too_many_failures(NonZeroU64::new(7_000_000_001).unwrap()),
            Rejection::unavailable(StoreError::new("down").with_retry_after(Duration::MAX)),
            decided(Verdict::OverLimit),
            decided(Verdict::CostAboveBurst),
            decided(Verdict::Unavailable),
        ]);
        all
    }

    #[test]
    fn status_equals_the_response_of_a_gate() {
        for rejection in rejections() {
            let status = Status::from(&rejection);
            assert!(status.source().is_some_and(|source| source.is::<Rejection>()));
            let gate: Response<()> = EmptyBody.reject(rejection.clone().with_protocol(Protocol::Grpc));
            let handler: Response<()> = status.into_http();
            assert_eq!(handler.status(), gate.status());
            // tonic escapes more characters of the message than necessary.
            let read = [handler, gate].map(|response| {
                let mut headers = response.into_parts().0.headers;
                let status = Status::from_header_map(&headers).unwrap();
                headers.remove("grpc-message");
                (status.code(), status.message().to_owned(), headers)
            });
            assert_eq!(read[0], read[1], "{rejection:?}");
        }
    }
}
