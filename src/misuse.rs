//! Mistakes that types forbid: code that must not compile, each beside the same code without the mistake, which must.
//!
//! `just misuse` checks that each fails by the error that is named here; stable Rust checks that it fails.

/// A token cannot be printed: what is printed gets into logs.
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
/// Nor can its digest, which finds a grant in a store:
///
/// ```compile_fail,E0277
/// let digest = tollgate::TokenDigest::of("secret");
/// let _ = format!("{digest}");
/// ```
struct PrintedToken;

/// Tokens cannot be compared: `==` on bytes tells by its time how many of them are right. Digests can, in constant time.
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

/// A token cannot be serialised: that is printing by another name.
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

/// A minted token is shown where its owner sees it, by the one method that says so, and has no copies.
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

/// A token cannot be kept: it is borrowed from its request, and stores keep digests.
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

/// A store that may wait needs a deadline, or a dead database holds every request for ever.
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
/// Nor can such a store be declared one that never waits:
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
struct WaitingWithoutDeadline;

/// A budget belongs to a subject that a store vouched for. A key that the caller chooses is a fresh budget at each
/// request, and a table that strangers fill.
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
struct BudgetOfAString;

/// A constant quota that admits nothing does not compile; of numbers from elsewhere `try_per` tells.
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

/// A look-up owns what it needs, since the gate may keep it longer than the call, or drop it half-way.
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

/// A refusal is made by the constructors, which keep its kind and what it needs together.
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

/// Kinds of refusals may be added, so that a `match` has to say what it does with the others.
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
