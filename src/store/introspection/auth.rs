//! [`ClientAuth`]: the service's credentials at the introspection endpoint.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::HeaderValue;
use percent_encoding::percent_encode;
use zeroize::Zeroizing;

use super::FORM;
use super::error::IntrospectionConfigError;

/// The credentials of the service at the introspection endpoint, which requires them (RFC 7662, section 2.1).
///
/// `Debug` is redacted. The memory is overwritten when the last store with these credentials is dropped. The caller must overwrite
/// the text that they were created from.
///
/// ```
/// use tollgate::store::ClientAuth;
///
/// let auth = ClientAuth::basic("trading-api", "s3cret")?;
/// assert_eq!(format!("{auth:?}"), "ClientAuth(..)");
/// # Ok::<_, tollgate::store::IntrospectionConfigError>(())
/// ```
#[derive(Clone)]
pub struct ClientAuth(HeaderValue);

impl ClientAuth {
    /// Creates credentials for HTTP Basic from a client identifier and secret, each form-encoded (RFC 6749, section 2.3.1).
    ///
    /// # Errors
    ///
    /// If the identifier is empty.
    pub fn basic(client_id: &str, secret: impl AsRef<str>) -> Result<Self, IntrospectionConfigError> {
        if client_id.is_empty() {
            return Err(IntrospectionConfigError::ClientId);
        }
        let secret = secret.as_ref();
        // With the full capacity, because growth would leave copies in memory.
        let mut pair = Zeroizing::new(String::with_capacity(3 * (client_id.len() + secret.len()) + 1));
        pair.extend(percent_encode(client_id.as_bytes(), FORM));
        pair.push(':');
        pair.extend(percent_encode(secret.as_bytes(), FORM));
        let mut value = Zeroizing::new(String::with_capacity("Basic ".len() + pair.len().div_ceil(3) * 4));
        value.push_str("Basic ");
        BASE64_STANDARD.encode_string(pair.as_bytes(), &mut value);
        Self::of(value).ok_or(IntrospectionConfigError::ClientId)
    }

    /// Creates credentials from a Bearer token of the service.
    ///
    /// # Errors
    ///
    /// If the token does not have the syntax of Bearer tokens (`b64token`, RFC 6750, section 2.1).
    pub fn bearer(token: impl AsRef<str>) -> Result<Self, IntrospectionConfigError> {
        let token = token.as_ref();
        let body = token.trim_end_matches('=');
        let is_b64token = !body.is_empty()
            && body.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~' | b'+' | b'/'));
        if !is_b64token {
            return Err(IntrospectionConfigError::BearerToken);
        }
        let mut value = Zeroizing::new(String::with_capacity("Bearer ".len() + token.len()));
        value.push_str("Bearer ");
        value.push_str(token);
        Self::of(value).ok_or(IntrospectionConfigError::BearerToken)
    }

    fn of(value: Zeroizing<String>) -> Option<Self> {
        struct Owner(Zeroizing<String>);
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                self.0.as_bytes()
            }
        }
        // Shared, not copied, so that the memory is overwritten with its owner.
        let mut value = HeaderValue::from_maybe_shared(Bytes::from_owner(Owner(value))).ok()?;
        value.set_sensitive(true);
        Some(Self(value))
    }

    pub(super) fn into_value(self) -> HeaderValue {
        self.0
    }
}

impl fmt::Debug for ClientAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientAuth(..)")
    }
}
