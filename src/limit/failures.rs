//! [`FailureThrottle`]: a limit on the failed authentications of each peer.

use std::fmt;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::Arc;

use thiserror::Error;

use super::attempt::{Attempt, AuthAttempt};
use super::sketch::{Peer, Sketch};
use super::{ClientIp, Clock, Time};
use crate::observe;
use crate::quota::Quota;
use crate::rejection::Rejection;
use crate::request_head::RequestHead;

/// A limit on the failed authentications of each peer, for [`AuthLayer::with_failure_throttle`].
///
/// Each peer has a quota of failures. The memory does not grow with the number of peers. A peer over its limit gets 429 instead
/// of 401, and the gate does not wait for a store. Tokens that are found immediately, in memory or in a cache, are still
/// admitted, without extra cost.
///
/// ```
/// use tollgate::limit::FailureThrottle;
/// use tollgate::{AuthLayer, Grant, MemoryStore, Quota, TokenDigest};
///
/// let tokens = MemoryStore::from_iter([(TokenDigest::of("a-token"), Grant::new("alice", ()))]);
/// let failures = FailureThrottle::by_socket_addr(Quota::per_minute(10).with_burst(30));
/// let gate = AuthLayer::new(tokens).with_failure_throttle(failures);
/// # let _ = gate;
/// ```
///
/// # Rules
///
/// 1. A failure is a 401 `invalid_token` or a 400 `invalid_request`. The token is malformed, unknown, not yet valid, expired or
///    bound to a key, or there are several tokens. A 503 that [concerns only the token](crate::StoreError::concerns_token) is
///    a failure too, such as junk that an authorization server rejects with HTTP 400. A request without credentials is no
///    attempt: it is neither counted nor rejected. Failures do not affect the bucket of a subject.
/// 2. In any time `t`, a peer gets at most `burst + rate x t` failures that are not answered with 429. A peer may get fewer if
///    other peers share all of its cells, and never more.
/// 3. A pending lookup reserves room for one failure. The reservation is returned exactly when a valid grant is found, or when
///    the store fails or exceeds its timeout. A lookup that is dropped because the client disconnected counts as a failure
///    during the first half of the gate's timeout. After that it does not count, because the store was slow. A peer thus never
///    has more pending lookups than failures left: the burst has to cover both.
/// 4. A peer over its limit is rejected before its lookup is polled, even if the token is valid but unknown to all caches. If
///    the store answers immediately, its answer is used: valid tokens are admitted, all others are rejected. A token that a
///    cache holds but has to look up again ([`TokenStore::is_cached`](crate::TokenStore::is_cached)) is always looked up, and
///    counted if it is invalid.
/// 5. A rejection has status 429 and `Retry-After`, and reveals nothing about the token.
/// 6. Clones share the counts. Use clones of one throttle for all gates of a service.
///
/// # Peers
///
/// The closure determines the peer; the throttle never guesses. [`by_socket_addr`](Self::by_socket_addr) and, with the feature
/// `axum`, `by_connect_info` use the address of the connection. Behind a proxy this is the address of the proxy, and one
/// client would stop all others: use [`by_client_ip`](Self::by_client_ip) there.
///
/// The client must not be able to choose the key. With the token as the key, each guess would be a new peer. With a claimed
/// account name as the key, an attacker could lock out the account.
///
/// # Memory
///
/// The table has 4 rows of [`width`](Self::with_width) cells of 16 bytes. It is allocated at creation: 1 MiB for the default width
/// of 16,384, see [`memory_bytes`](Self::memory_bytes). The hash has random keys of this process, so clients cannot search for
/// peers that share cells.
///
/// While `n` peers are at their limit, another peer is taken for one of them with a probability of about
/// `(1 - exp(-n / width))^4`. With the default width:
///
/// | peers at their limit | taken by mistake |
/// |---:|---:|
/// | 100 | 1 in 730,000,000 |
/// | 1,000 | 1 in 81,000 |
/// | 4,000 | 1 in 450 |
/// | 16,384 | 1 in 6 |
///
/// [`AuthLayer::with_failure_throttle`]: crate::AuthLayer::with_failure_throttle
#[derive(Clone)]
pub struct FailureThrottle {
    sketch: Arc<Sketch>,
    time: Arc<Time>,
    peer: Arc<PeerOf>,
    dry_run: bool,
}

/// Returns the peer of a request, or `None` for requests that are not throttled. The error is a hint for the operator.
type PeerOf = dyn Fn(&RequestHead<'_>) -> Result<Option<Peer>, &'static str> + Send + Sync;

/// The error of an invalid setting of a [`FailureThrottle`].
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum FailureThrottleError {
    /// The width of the table is out of range.
    #[error("invalid width of the failure throttle: must be from 16 to 2^24 cells")]
    Width,
}

const NO_ADDRESS: &str = "The request extensions contain no peer address. Insert the `SocketAddr` of the connection.";

impl FailureThrottle {
    /// The default number of cells in a row.
    pub const DEFAULT_WIDTH: usize = 16_384;
    const WIDTHS: std::ops::RangeInclusive<usize> = 16..=1 << 24;

    /// Creates a throttle with this quota of failures for each peer. `peer` returns the peer of a request, or `None` if the
    /// request is not throttled.
    ///
    /// `peer` gets the same request head as handlers: credentials are marked as sensitive, or removed.
    #[must_use]
    pub fn new<K: Hash>(quota: Quota, peer: impl Fn(&RequestHead<'_>) -> Option<K> + Send + Sync + 'static) -> Self {
        Self::required(quota, move |head| Ok(peer(head)))
    }

    /// Creates a throttle by the [`SocketAddr`](std::net::SocketAddr) in the request extensions, grouped by [`ip_prefix`](super::ip_prefix). For services on hyper, which
    /// get the address from `accept`.
    ///
    /// A request without an address that would have to be counted gets 500. The rejection names the missing extension.
    #[must_use]
    pub fn by_socket_addr(quota: Quota) -> Self {
        Self::by_client_ip(quota, ClientIp::peer())
    }

    /// Creates a throttle by the address of the client, also behind proxies.
    ///
    /// A request without an address of the connection that would have to be counted gets 500. The rejection names the missing
    /// extension.
    ///
    /// ```
    /// use tollgate::Quota;
    /// use tollgate::limit::{ClientIp, FailureThrottle};
    ///
    /// let address = ClientIp::x_forwarded_for(["10.0.0.0/8"])?;
    /// let failures = FailureThrottle::by_client_ip(Quota::per_minute(10).with_burst(30), address);
    /// # let _ = failures;
    /// # Ok::<_, tollgate::limit::ClientIpError>(())
    /// ```
    #[must_use]
    pub fn by_client_ip(quota: Quota, address: ClientIp) -> Self {
        Self::required(quota, move |head| address.of(head).map(Some).ok_or(NO_ADDRESS))
    }

    pub(crate) fn required<K: Hash>(
        quota: Quota,
        peer: impl Fn(&RequestHead<'_>) -> Result<Option<K>, &'static str> + Send + Sync + 'static,
    ) -> Self {
        let keys = RandomState::new();
        // One hash per row: 64 bits are too few for four wide rows.
        let bits = move |key: K| Peer(std::array::from_fn(|row| keys.hash_one((row, &key)) as u32));
        Self {
            sketch: Arc::new(Sketch::new(quota, Self::DEFAULT_WIDTH)),
            time: Arc::new(Time::counter()),
            peer: Arc::new(move |head| Ok(peer(head)?.map(&bits))),
            dry_run: false,
        }
    }

    /// Sets the number of cells in a row, from 16 to 2^24. The number is rounded up to a power of two. Default: 16,384.
    ///
    /// Call this method before the throttle is cloned.
    ///
    /// # Errors
    ///
    /// Returns an error if the number is out of range.
    ///
    /// # Panics
    ///
    /// Panics if a clone or a pending attempt exists. Each would keep the old table, so each peer would get twice its quota.
    #[track_caller]
    pub fn with_width(self, width: usize) -> Result<Self, FailureThrottleError> {
        match Self::WIDTHS.contains(&width) {
            true => Ok(self.with_empty_table(width)),
            false => Err(FailureThrottleError::Width),
        }
    }

    /// Sets the clock. Default: the monotonic clock of the system. All counts are 0 afterwards.
    ///
    /// Call this method before the throttle is cloned.
    ///
    /// # Panics
    ///
    /// Panics if a clone or a pending attempt exists. Each would keep the old table, so each peer would get twice its quota.
    #[must_use]
    #[track_caller]
    pub fn with_clock(self, clock: impl Clock) -> Self {
        let width = self.sketch.width();
        Self { time: Arc::new(Time::Given(Arc::new(clock))), ..self.with_empty_table(width) }
    }

    #[track_caller]
    fn with_empty_table(self, width: usize) -> Self {
        let is_unshared = Arc::strong_count(&self.sketch) == 1;
        assert!(
            is_unshared,
            "the width and the clock of a `FailureThrottle` must be set before the throttle is cloned"
        );
        Self { sketch: Arc::new(Sketch::new(self.sketch.quota(), width)), ..self }
    }

    /// Makes this throttle a dry run: it counts and reports, but rejects nothing.
    ///
    /// [`Rejection::would_be_throttled`] returns true for rejections of requests that the throttle would have rejected. Such
    /// requests cause lookups that the throttle would have prevented. If they are admitted, their extensions contain
    /// [`WouldBeThrottled`].
    #[must_use]
    pub fn with_dry_run(self) -> Self {
        Self { dry_run: true, ..self }
    }

    /// Returns the quota of failures for each peer.
    #[must_use]
    pub fn quota(&self) -> Quota {
        self.sketch.quota()
    }

    /// Returns the size of the table in bytes, which does not depend on the number of peers.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.sketch.memory_bytes()
    }

    /// Begins an attempt to authenticate in a handler of the service, such as a sign-in form. Give the throttle's clones to all
    /// places where the same peer could guess.
    ///
    /// ```
    /// use axum::extract::{Request, State};
    /// use axum::http::StatusCode;
    /// use tollgate::limit::FailureThrottle;
    /// use tollgate::{Rejection, RequestHead};
    ///
    /// type Answer = (StatusCode, &'static str);
    ///
    /// async fn sign_in(State(failures): State<FailureThrottle>, request: Request) -> Result<Answer, Rejection> {
    ///     let attempt = failures.begin_attempt(&RequestHead::of(&request))?;
    ///     match password_matches(request).await {
    ///         true => {
    ///             attempt.succeed();
    ///             Ok((StatusCode::OK, "welcome"))
    ///         }
    ///         false => {
    ///             attempt.fail();
    ///             Ok((StatusCode::FORBIDDEN, "wrong name or password"))
    ///         }
    ///     }
    /// }
    /// # async fn password_matches(_: Request) -> bool { true }
    /// # let _: axum::routing::MethodRouter<FailureThrottle> = axum::routing::post(sign_in);
    /// ```
    ///
    /// # Errors
    ///
    /// Returns a rejection if the peer is over its limit (429), or if the request has no address that the throttle needs (500).
    pub fn begin_attempt(&self, head: &RequestHead<'_>) -> Result<AuthAttempt, Rejection> {
        self.begin(head).map(AuthAttempt::of).map_err(|rejection| rejection.for_request(head))
    }

    /// Begins an attempt. Returns `None` if the request is not throttled, and an error if its peer is over the limit.
    pub(crate) fn begin(&self, head: &RequestHead<'_>) -> Result<Option<Attempt>, Rejection> {
        let (peer, rejection) = match (self.peer)(head) {
            Ok(None) => return Ok(None),
            Ok(Some(peer)) => match self.sketch.begin(peer, self.time.now_ns()) {
                Ok(()) => (Some(peer), None),
                Err(wait) => {
                    observe::throttled(self.dry_run);
                    (None, Some(Rejection::too_many_failures(wait)))
                }
            },
            Err(hint) => {
                // A dry run reports this too: an enforced throttle would reject all requests that it has to count.
                if self.dry_run {
                    observe::throttled(true);
                }
                (None, Some(Rejection::misconfigured(hint)))
            }
        };
        match rejection {
            Some(rejection) if !self.dry_run => Err(rejection),
            _ => {
                let (sketch, time) = (Arc::clone(&self.sketch), Arc::clone(&self.time));
                Ok(Some(Attempt::new(sketch, time, peer)))
            }
        }
    }
}

impl fmt::Debug for FailureThrottle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FailureThrottle")
            .field("quota", &self.quota())
            .field("width", &self.sketch.width())
            .field("dry_run", &self.dry_run)
            .finish_non_exhaustive()
    }
}

/// An extension of requests that a throttle would have rejected, inserted by a [dry run](FailureThrottle::with_dry_run).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WouldBeThrottled;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use http::Request;

    use super::*;

    #[test]
    fn memory_bytes_is_the_size_of_the_table() {
        let throttle = || FailureThrottle::new(Quota::per_minute(1), |_| Some(()));
        assert_eq!(throttle().memory_bytes() >> 20, 1, "1 MiB");
        for (requested, width) in [(16, 16), (17, 32), (1 << 20, 1 << 20)] {
            let throttle = throttle().with_width(requested).unwrap();
            assert_eq!(throttle.sketch.width(), width);
            assert!(throttle.memory_bytes() - width * 64 < 4096);
            assert_eq!(throttle.with_clock(|| Duration::ZERO).sketch.width(), width);
        }
    }

    #[test]
    fn width_out_of_range_returns_an_error() {
        for width in [0, 15, (1 << 24) + 1, usize::MAX] {
            let throttle = FailureThrottle::new(Quota::per_minute(1), |_| Some(()));
            assert_eq!(throttle.with_width(width).unwrap_err(), FailureThrottleError::Width);
        }
    }

    #[test]
    fn mistakes_are_as_rare_as_documented() {
        let quota = Quota::per_hour(1);
        let throttle = FailureThrottle::new(quota, |head| head.extensions.get::<u32>().copied());
        let throttle = throttle.with_width(1_024).unwrap().with_clock(|| Duration::ZERO);
        let mut request = Request::new(());
        let mut rejected = |peers: std::ops::Range<u32>| {
            let mut is_rejected = |peer: &u32| {
                request.extensions_mut().insert(*peer);
                // An admitted attempt is dropped, so it fails.
                throttle.begin(&RequestHead::of(&request)).is_err()
            };
            peers.filter(|peer| is_rejected(peer)).count()
        };
        // With as many peers as cells in a row, the last peer is rejected with a probability of 1/6, the earlier ones less.
        assert!(rejected(0..1_024) < 1_024 / 8);
        // All peers are at their limit now.
        assert_eq!(rejected(0..1_024), 1_024);
    }
}
