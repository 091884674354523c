//! [`ProtectedResource`]: the metadata of a service for OAuth clients.

use std::fmt;
use std::time::Duration;

use serde_json::{Map, Value};
use thiserror::Error;

use super::url::{MetadataUrl, is_issuer, is_page};
use crate::grant::scopes::Scopes;

/// The metadata of a protected resource (RFC 9728): how a client gets a token for this service.
///
/// [`AuthLayer::with_protected_resource`](crate::AuthLayer::with_protected_resource) lets a gate serve it:
///
/// ```
/// use tollgate::gate::ProtectedResource;
/// use tollgate::{AuthLayer, Grant, MemoryStore, Scopes, TokenDigest};
///
/// let resource = ProtectedResource::new("https://api.example/orders")?
///     .with_authorization_server("https://id.example")?
///     .with_scopes(&Scopes::new(["orders:read", "orders:write"])?);
/// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
/// let gate = AuthLayer::new(tokens).with_protected_resource(resource);
/// let metadata = gate.resource_metadata();
/// assert_eq!(metadata.url(), "https://api.example/.well-known/oauth-protected-resource/orders");
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
///
/// # Members
///
/// | member | from |
/// |---|---|
/// | `resource` | [`new`](Self::new) |
/// | `bearer_methods_supported` | the token locations of the gate, see [`ResourceMetadata`](super::ResourceMetadata) |
/// | `authorization_servers` | [`with_authorization_server`](Self::with_authorization_server) |
/// | `scopes_supported` | [`with_scopes`](Self::with_scopes) |
/// | `resource_name` | [`with_name`](Self::with_name), [`with_name_in`](Self::with_name_in) |
/// | `resource_documentation` | [`with_documentation`](Self::with_documentation) |
/// | `resource_policy_uri` | [`with_policy`](Self::with_policy) |
/// | `resource_tos_uri` | [`with_terms_of_service`](Self::with_terms_of_service) |
/// | `resource_signing_alg_values_supported` | [`with_signing_algorithms`](Self::with_signing_algorithms) |
/// | all others | [`with_member`](Self::with_member) |
///
/// A gate rejects tokens that are bound to a key. Therefore, `dpop_bound_access_tokens_required` and its like have no setters.
#[derive(Clone, PartialEq)]
pub struct ProtectedResource {
    url: MetadataUrl,
    members: Map<String, Value>,
    max_age: Duration,
}

/// The error of an invalid [`ProtectedResource`].
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProtectedResourceError {
    /// The resource is not a URL that can identify a resource; see [`ProtectedResource::new`].
    #[error(
        "invalid resource: must be an https URL in normal form without user and fragment; http on localhost and loopback addresses only"
    )]
    Resource,
    /// The identifier of an authorization server is not an `https` URL, or has a query or a fragment (RFC 8414, section 2).
    #[error(
        "invalid authorization server: must be an https URL without user, query and fragment; http on localhost and loopback addresses only"
    )]
    AuthorizationServer,
    /// The URL of a page is not an absolute `https` or `http` URL.
    #[error("invalid URL of a page: must be an absolute https or http URL")]
    Page,
    /// The language is not a language tag (RFC 5646, section 2.1).
    #[error("invalid language tag: must be 1 to 8 letters or digits, repeated after hyphens")]
    Language,
    /// The algorithm is empty or `none` (RFC 9728, section 2).
    #[error("invalid signing algorithm: must not be empty or none")]
    Algorithm,
    /// The name of the member is empty, was set before, or has its own setter.
    #[error("invalid metadata member: the name must be new, and have no setter of its own")]
    Member,
}

impl ProtectedResource {
    /// Creates the metadata of a resource. `resource` is its identifier: the URL that clients use.
    ///
    /// Clients use the metadata only if `resource` is the URL of their request, character by character (RFC 9728, section
    /// 3.3). Many clients also accept a prefix of its path. Leave out a slash at the end of the path, from which clients derive
    /// different URLs of the metadata. Never derive the identifier from the `Host` of a request, which the
    /// client chooses.
    ///
    /// ```
    /// use tollgate::gate::{ProtectedResource, ProtectedResourceError};
    ///
    /// assert!(ProtectedResource::new("https://api.example/v1").is_ok());
    /// assert!(ProtectedResource::new("http://localhost:3000").is_ok());
    /// assert_eq!(ProtectedResource::new("http://api.example"), Err(ProtectedResourceError::Resource));
    /// ```
    ///
    /// # Errors
    ///
    /// [`Resource`](ProtectedResourceError::Resource) in these cases (RFC 9728, section 1.2):
    ///
    /// - The scheme is not `https`. `http` is allowed if the host is `localhost` or a loopback address: the gate sends no token
    ///   there.
    /// - There is a user or a fragment. A query is allowed, but should be avoided.
    /// - There is a character that RFC 3986 does not allow.
    /// - URL parsers change the text, so that it is never equal to the URL of a request. They change upper case in the host, a
    ///   default port, dot segments and incomplete escapes. IPv4 addresses in the form of IPv6 (`::ffff:192.0.2.1`) have two texts.
    pub fn new(resource: &str) -> Result<Self, ProtectedResourceError> {
        let url = MetadataUrl::of(resource).ok_or(ProtectedResourceError::Resource)?;
        let members = Map::from_iter([("resource".to_owned(), resource.into())]);
        Ok(Self { url, members, max_age: Duration::from_secs(3_600) })
    }

    /// Adds an authorization server whose tokens the service accepts. `issuer` is its identifier (RFC 8414).
    ///
    /// # Errors
    ///
    /// [`AuthorizationServer`](ProtectedResourceError::AuthorizationServer) if the identifier is not an `https` URL, or has a
    /// user, a query or a fragment. `http` is allowed if the host is `localhost` or a loopback address.
    pub fn with_authorization_server(self, issuer: &str) -> Result<Self, ProtectedResourceError> {
        check(is_issuer(issuer), ProtectedResourceError::AuthorizationServer)?;
        let mut issuers = match self.members.get("authorization_servers") {
            Some(Value::Array(issuers)) => issuers.clone(),
            _ => Vec::new(),
        };
        issuers.push(issuer.into());
        Ok(self.with("authorization_servers", issuers.into()))
    }

    /// Sets the scopes that clients can ask for. An empty list removes the member.
    ///
    /// The list need not be complete: a service can leave out scopes that it does not advertise (RFC 9728, section 2).
    /// [`AuthLayer::with_challenge_scope`](crate::AuthLayer::with_challenge_scope) names the scope to begin with.
    #[must_use]
    pub fn with_scopes(mut self, scopes: &Scopes) -> Self {
        if scopes.is_empty() {
            self.members.remove("scopes_supported");
            return self;
        }
        let scopes: Vec<&str> = scopes.iter().collect();
        self.with("scopes_supported", scopes.into())
    }

    /// Sets the name of the resource, for people.
    #[must_use]
    pub fn with_name(self, name: &str) -> Self {
        self.with("resource_name", name.into())
    }

    /// Sets the name of the resource in a language, such as `de` or `fr-CA` (RFC 9728, section 2.1).
    ///
    /// # Errors
    ///
    /// [`Language`](ProtectedResourceError::Language) if the language is not a language tag.
    pub fn with_name_in(self, language: &str, name: &str) -> Result<Self, ProtectedResourceError> {
        check(is_language(language), ProtectedResourceError::Language)?;
        Ok(self.with(&format!("resource_name#{language}"), name.into()))
    }

    /// Sets the URL of a page for developers: how to use the resource.
    ///
    /// # Errors
    ///
    /// [`Page`](ProtectedResourceError::Page) if the URL is not an absolute `https` or `http` URL.
    pub fn with_documentation(self, url: &str) -> Result<Self, ProtectedResourceError> {
        self.with_page("resource_documentation", url)
    }

    /// Sets the URL of a page about the use of data that the resource provides.
    ///
    /// # Errors
    ///
    /// [`Page`](ProtectedResourceError::Page) if the URL is not an absolute `https` or `http` URL.
    pub fn with_policy(self, url: &str) -> Result<Self, ProtectedResourceError> {
        self.with_page("resource_policy_uri", url)
    }

    /// Sets the URL of a page with the terms of service.
    ///
    /// # Errors
    ///
    /// [`Page`](ProtectedResourceError::Page) if the URL is not an absolute `https` or `http` URL.
    pub fn with_terms_of_service(self, url: &str) -> Result<Self, ProtectedResourceError> {
        self.with_page("resource_tos_uri", url)
    }

    /// Sets the algorithms with which the service signs its responses, such as `ES256`. An empty list removes the member.
    ///
    /// They are not the algorithms of access tokens, such as those of `JwtStore`. RFC 9728 has no member for these, because clients
    /// do not verify access tokens.
    ///
    /// # Errors
    ///
    /// [`Algorithm`](ProtectedResourceError::Algorithm) if an algorithm is empty or `none`.
    pub fn with_signing_algorithms<I>(mut self, algorithms: I) -> Result<Self, ProtectedResourceError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        const NAME: &str = "resource_signing_alg_values_supported";
        let algorithms: Vec<Value> = algorithms.into_iter().map(|algorithm| algorithm.as_ref().into()).collect();
        let is_invalid = |algorithm: &Value| matches!(algorithm.as_str(), None | Some("" | "none"));
        check(!algorithms.iter().any(is_invalid), ProtectedResourceError::Algorithm)?;
        if algorithms.is_empty() {
            self.members.remove(NAME);
            return Ok(self);
        }
        Ok(self.with(NAME, algorithms.into()))
    }

    /// Adds another member, such as `jwks_uri`, or a text in another language, such as `resource_tos_uri#de`.
    ///
    /// ```
    /// use tollgate::gate::ProtectedResource;
    ///
    /// let resource = ProtectedResource::new("https://api.example")?
    ///     .with_member("authorization_details_types_supported", vec!["payment"])?
    ///     .with_member("resource_documentation#de", "https://api.example/de/hilfe")?;
    /// # let _ = resource;
    /// # Ok::<_, tollgate::gate::ProtectedResourceError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// - [`Member`](ProtectedResourceError::Member) if the name is empty, was set before, or has its own setter.
    /// - [`Language`](ProtectedResourceError::Language) if a `#` in the name is not followed by a language tag.
    pub fn with_member(self, name: &str, value: impl Into<Value>) -> Result<Self, ProtectedResourceError> {
        let (base, language) = match name.split_once('#') {
            Some((base, language)) => (base, Some(language)),
            None => (name, None),
        };
        check(language.is_none_or(is_language), ProtectedResourceError::Language)?;
        let is_free = match language {
            Some(_) => !base.is_empty(),
            None => !base.is_empty() && !OWN_SETTERS.contains(&base),
        };
        check(is_free && !self.members.contains_key(name), ProtectedResourceError::Member)?;
        Ok(self.with(name, value.into()))
    }

    /// Sets the time for which clients and caches may store the metadata, in whole seconds. Default: 1 hour.
    #[must_use]
    pub fn with_max_age(self, max_age: Duration) -> Self {
        Self { max_age, ..self }
    }

    fn with_page(self, name: &str, url: &str) -> Result<Self, ProtectedResourceError> {
        check(is_page(url), ProtectedResourceError::Page)?;
        Ok(self.with(name, url.into()))
    }

    fn with(mut self, name: &str, value: Value) -> Self {
        self.members.insert(name.to_owned(), value);
        self
    }

    pub(super) fn url(&self) -> &MetadataUrl {
        &self.url
    }

    pub(super) fn max_age(&self) -> Duration {
        self.max_age
    }

    /// Returns the document for a gate with these bearer methods.
    pub(super) fn document(&self, bearer_methods: &[&str]) -> String {
        let mut members = self.members.clone();
        members.insert(BEARER_METHODS.to_owned(), bearer_methods.into());
        Value::Object(members).to_string()
    }
}

const BEARER_METHODS: &str = "bearer_methods_supported";

const OWN_SETTERS: [&str; 9] = [
    "resource",
    BEARER_METHODS,
    "authorization_servers",
    "scopes_supported",
    "resource_name",
    "resource_documentation",
    "resource_policy_uri",
    "resource_tos_uri",
    "resource_signing_alg_values_supported",
];

fn check(is_valid: bool, error: ProtectedResourceError) -> Result<(), ProtectedResourceError> {
    if is_valid { Ok(()) } else { Err(error) }
}

/// Returns whether the text has the form of a language tag (RFC 4647, section 2.2: `obs-language-tag`).
fn is_language(text: &str) -> bool {
    text.split('-').all(|part| matches!(part.len(), 1..=8) && part.bytes().all(|byte| byte.is_ascii_alphanumeric()))
}

impl fmt::Debug for ProtectedResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProtectedResource")
            .field("url", &self.url.as_str())
            .field("members", &self.members)
            .field("max_age", &self.max_age)
            .finish()
    }
}
