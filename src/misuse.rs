//! Compile-time misuse checks. Each example that must not compile has a corrected version that must compile.
//!
//! `just misuse` checks the error codes. Stable Rust checks only that compilation fails.

/// A token cannot be printed, because printed text ends up in logs.
///
/// ```
/// let token = tollgate::BearerToken::new("secret");
/// let _ = format!("{token:?}");
/// ```
///
/// ```compile_fail,E0277
/// let token = tollgate::BearerToken::new("secret");
/// let _ = format!("{token}");
/// ```
///
/// A digest cannot be printed either, because it identifies a grant in a store:
///
/// ```compile_fail,E0277
/// let digest = tollgate::TokenDigest::of("secret");
/// let _ = format!("{digest}");
/// ```
struct PrintedToken;

/// Tokens cannot be compared, because the time of `==` on bytes reveals how many bytes match. Digests are compared in
/// constant time.
///
/// ```
/// let (a, b) = (tollgate::BearerToken::new("a"), tollgate::BearerToken::new("b"));
/// let _ = a.digest() == b.digest();
/// ```
///
/// ```compile_fail,E0369
/// let (a, b) = (tollgate::BearerToken::new("a"), tollgate::BearerToken::new("b"));
/// let _ = a == b;
/// ```
struct ComparedTokens;

/// A token cannot be serialised, because that equals printing.
///
/// ```
/// let token = tollgate::BearerToken::new("secret");
/// let _ = serde_json::to_string(token.expose());
/// ```
///
/// ```compile_fail,E0277
/// let token = tollgate::BearerToken::new("secret");
/// let _ = serde_json::to_string(&token);
/// ```
struct SerialisedToken;

/// A new token can be printed only by `expose`, and cannot be cloned.
///
/// ```
/// let secret = tollgate::mint::TokenFormat::new("acme").unwrap().mint().unwrap();
/// println!("{}", secret.expose());
/// ```
///
/// ```compile_fail,E0277
/// let secret = tollgate::mint::TokenFormat::new("acme").unwrap().mint().unwrap();
/// println!("{}", secret);
/// ```
///
/// ```compile_fail,E0599
/// let secret = tollgate::mint::TokenFormat::new("acme").unwrap().mint().unwrap();
/// let copy = secret.clone();
/// ```
#[cfg(feature = "mint")]
struct PrintedSecret;

/// A token cannot outlive its request, because it is borrowed. Stores keep digests.
///
/// ```
/// fn keep(token: &tollgate::BearerToken<'_>) -> tollgate::TokenDigest {
///     *token.digest()
/// }
/// ```
///
/// ```compile_fail,E0507
/// fn keep(token: &tollgate::BearerToken<'_>) -> tollgate::BearerToken<'static> {
///     *token
/// }
/// ```
struct KeptToken;

/// A store that may wait needs a timeout. Otherwise, requests would wait for an unresponsive database without end.
///
/// ```
/// use std::time::Duration;
/// use tollgate::{AuthLayer, Grant, store};
/// let store = store::from_fn(|_digest| async { Ok::<Option<Grant<()>>, std::io::Error>(None) });
/// let _ = AuthLayer::with_timeout(store, Duration::from_secs(1));
/// ```
///
/// ```compile_fail,E0277
/// use tollgate::{AuthLayer, Grant, store};
/// let store = store::from_fn(|_digest| async { Ok::<Option<Grant<()>>, std::io::Error>(None) });
/// let _ = AuthLayer::new(store);
/// ```
///
/// Such a store cannot be declared an `ImmediateStore` either:
///
/// ```compile_fail,E0119
/// use tollgate::store::{ImmediateStore, Lookup, TokenStore};
/// use tollgate::{Answer, BearerToken};
///
/// struct Slow;
///
/// impl TokenStore for Slow {
///     type Principal = ();
///     type Error = std::io::Error;
///     type Future = std::future::Ready<Lookup<(), std::io::Error>>;
///
///     fn lookup(&self, _: &BearerToken<'_>) -> Answer<Self::Future> {
///         Answer::Pending(std::future::ready(Ok(None)))
///     }
/// }
///
/// impl ImmediateStore for Slow {}
/// ```
struct WaitingWithoutTimeout;

/// A cache outside of stores that are chosen by the request's head would return the grants of one tenant to another.
///
/// ```
/// use std::time::Duration;
/// use tollgate::store::{self, CachedStore};
/// use tollgate::{AuthLayer, MemoryStore};
/// let acme = CachedStore::new(MemoryStore::<()>::new(), Duration::from_secs(60)).unwrap();
/// let store = store::by_head(move |head| (head.host() == Some("acme.example.com")).then(|| acme.clone()));
/// let _ = AuthLayer::with_timeout(store, Duration::from_secs(2));
/// ```
///
/// ```compile_fail,E0277
/// use std::time::Duration;
/// use tollgate::store::{self, CachedStore};
/// use tollgate::{AuthLayer, MemoryStore};
/// let acme = MemoryStore::<()>::new();
/// let store = store::by_head(move |head| (head.host() == Some("acme.example.com")).then(|| acme.clone()));
/// let _ = CachedStore::builder(store, Duration::from_secs(60));
/// ```
#[cfg(all(feature = "cache", feature = "tokio"))]
struct CachedTenants;

/// A rate limit belongs to a subject that a store has authenticated. Keys that clients choose would give each request a new
/// limit, and would fill the memory.
///
/// ```
/// use tollgate::{Charge, CurrentGrant, Grant, Quota, RateLimits};
/// let limits = RateLimits::new(Quota::per_minute(1));
/// let _ = limits.charge(&CurrentGrant::new(Grant::new("alice", ())), Charge::Units(1));
/// ```
///
/// ```compile_fail,E0308
/// use tollgate::{Charge, Quota, RateLimits};
/// let limits = RateLimits::new(Quota::per_minute(1));
/// let _ = limits.charge("alice", Charge::Units(1));
/// ```
///
/// ```compile_fail,E0308
/// use tollgate::{BearerToken, Charge, Quota, RateLimits};
/// let limits = RateLimits::new(Quota::per_minute(1));
/// let _ = limits.charge(&BearerToken::new("secret"), Charge::Units(1));
/// ```
struct LimitOfAString;

/// An invalid constant quota does not compile. `try_per` returns an error for other numbers.
///
/// ```
/// const QUOTA: tollgate::Quota = tollgate::Quota::per_second(1);
/// let _ = QUOTA;
/// ```
///
/// ```compile_fail,E0080
/// const QUOTA: tollgate::Quota = tollgate::Quota::per_second(0);
/// let _ = QUOTA;
/// ```
///
/// ```compile_fail,E0080
/// const QUOTA: tollgate::Quota = tollgate::Quota::per_second(1).with_burst(0);
/// let _ = QUOTA;
/// ```
///
/// ```compile_fail,E0080
/// const QUOTA: tollgate::Quota = tollgate::Quota::at_most(5, std::time::Duration::from_secs(1), 6);
/// let _ = QUOTA;
/// ```
struct ZeroQuota;

/// A lookup owns its data, because the future of the lookup outlives the call.
///
/// ```
/// use tollgate::{Grant, TokenDigest, store};
///
/// #[derive(Clone)]
/// struct Pool;
///
/// impl Pool {
///     async fn find(&self, _: TokenDigest) -> Result<Option<Grant<()>>, std::io::Error> {
///         Ok(None)
///     }
/// }
///
/// let _ = store::from_fn_with(Pool, |pool, digest| async move { pool.find(digest).await });
/// ```
///
/// ```compile_fail,E0515
/// use tollgate::{Grant, TokenDigest, store};
///
/// #[derive(Clone)]
/// struct Pool;
///
/// impl Pool {
///     async fn find(&self, _: TokenDigest) -> Result<Option<Grant<()>>, std::io::Error> {
///         Ok(None)
///     }
/// }
///
/// let _ = store::from_fn_with(Pool, |pool, digest| pool.find(digest));
/// ```
struct BorrowingLookup;

/// A rejection is created by constructors only, which keep its kind and its other fields consistent.
///
/// ```
/// let _ = tollgate::Rejection::missing();
/// ```
///
/// ```compile_fail,E0451
/// use tollgate::{Rejection, RejectionKind};
/// let _ = Rejection { kind: RejectionKind::OverLimit, ..Rejection::missing() };
/// ```
struct RejectionByHand;

/// Future versions may add kinds of rejections, so a `match` needs a wildcard arm.
///
/// ```
/// fn is_authentication(kind: tollgate::RejectionKind) -> bool {
///     match kind {
///         tollgate::RejectionKind::Missing => true,
///         _ => false,
///     }
/// }
/// ```
///
/// ```compile_fail,E0004
/// fn name(code: tollgate::respond::ErrorCode) -> &'static str {
///     use tollgate::respond::ErrorCode::*;
///     match code {
///         InvalidRequest => "request",
///         InvalidToken => "token",
///         InsufficientScope => "scope",
///         InsufficientUserAuthentication => "user",
///     }
/// }
/// ```
struct MatchWithoutTheRest;

/// A gate without tokens has no settings about tokens, because they would have no effect.
///
/// ```
/// let gate = tollgate::AuthLayer::new(tollgate::MemoryStore::<()>::new()).with_max_token_len(64);
/// let public = tollgate::AuthLayer::anonymous().with_request_id(|_| None);
/// # let _ = (gate, public);
/// ```
///
/// ```compile_fail,E0599
/// let public = tollgate::AuthLayer::anonymous().with_max_token_len(64);
/// ```
///
/// ```compile_fail,E0599
/// let public = tollgate::AuthLayer::anonymous().require_https(tollgate::gate::is_https);
/// ```
struct TokenSettingsWithoutTokens;

/// The challenges of a gate with a protected resource have the URL of its metadata, and no other.
///
/// ```
/// use tollgate::gate::ProtectedResource;
/// let gate = tollgate::AuthLayer::new(tollgate::MemoryStore::<()>::new());
/// let elsewhere = gate.clone().with_resource_metadata("https://api.example/metadata")?;
/// let here = gate.with_protected_resource(ProtectedResource::new("https://api.example")?);
/// # let _ = (elsewhere, here);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
///
/// ```compile_fail,E0277
/// use tollgate::gate::ProtectedResource;
/// let gate = tollgate::AuthLayer::new(tollgate::MemoryStore::<()>::new());
/// let both = gate
///     .with_protected_resource(ProtectedResource::new("https://api.example")?)
///     .with_resource_metadata("https://api.example/metadata")?;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
///
/// Nor has a gate two resources:
///
/// ```compile_fail,E0599
/// use tollgate::gate::ProtectedResource;
/// let gate = tollgate::AuthLayer::new(tollgate::MemoryStore::<()>::new());
/// let both = gate
///     .with_protected_resource(ProtectedResource::new("https://api.example/a")?)
///     .with_protected_resource(ProtectedResource::new("https://api.example/b")?);
/// # Ok::<_, tollgate::gate::ProtectedResourceError>(())
/// ```
#[cfg(feature = "resource-metadata")]
struct TwoResources;
