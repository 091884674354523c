//! Sessions that only the subject can use that has started them.
//!
//! rmcp finds a session by its id alone. The id is no secret and no credential: a caller that has read the id of another one in a log
//! could use its session. So clients get the id with an authentication code over the id and the subject.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;
use tollgate::{Authenticated, Subject};

use crate::User;

const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");

/// The key of this process. Sessions do not outlive the process either.
pub(crate) struct Key(Hmac<Sha256>);

impl Key {
    pub(crate) fn random() -> Result<Self, Box<dyn std::error::Error>> {
        let mut key = [0; 32];
        getrandom::fill(&mut key)?;
        Ok(Self(Hmac::new_from_slice(&key)?))
    }

    /// A header value has no zero byte, so the subject and the id cannot be divided differently.
    fn code(&self, subject: &Subject, id: &[u8]) -> Hmac<Sha256> {
        self.0.clone().chain_update(subject.as_str()).chain_update([0]).chain_update(id)
    }

    /// Returns the id for the client: the id of the service and the code.
    fn seal(&self, subject: &Subject, id: &HeaderValue) -> Option<HeaderValue> {
        let code = URL_SAFE_NO_PAD.encode(self.code(subject, id.as_bytes()).finalize().into_bytes());
        format!("{}.{code}", id.to_str().ok()?).parse().ok()
    }

    /// Returns the id of the service, if the subject has started this session.
    fn open(&self, subject: &Subject, sealed: &HeaderValue) -> Option<HeaderValue> {
        let (id, code) = sealed.to_str().ok()?.rsplit_once('.')?;
        let code = URL_SAFE_NO_PAD.decode(code).ok()?;
        self.code(subject, id.as_bytes()).verify_slice(&code).ok()?;
        id.parse().ok()
    }
}

/// Responds with 404 to a session of another subject, as to a session that has ended.
pub(crate) async fn bind(
    State(key): State<Arc<Key>>,
    caller: Authenticated<User>,
    mut request: Request,
    next: Next,
) -> Response {
    let subject = caller.grant().subject();
    if let Some(sealed) = request.headers_mut().remove(SESSION_ID) {
        let Some(id) = key.open(subject, &sealed) else { return StatusCode::NOT_FOUND.into_response() };
        request.headers_mut().insert(SESSION_ID, id);
    }
    let mut response = next.run(request).await;
    if let Some(id) = response.headers_mut().remove(SESSION_ID)
        && let Some(sealed) = key.seal(subject, &id)
    {
        response.headers_mut().insert(SESSION_ID, sealed);
    }
    response
}
