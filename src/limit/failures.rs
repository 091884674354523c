use std::fmt;
use std::hash::{BuildHasher as _, Hash, RandomState};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use super::sketch::{Peer, Sketch};
use super::{Clock, Time};
use crate::head::Head;
use crate::observe;
use crate::quota::Quota;
use crate::rejection::Rejection;

/// How many authentications of one peer may fail: for [`AuthLayer::with_failure_throttle`].
///
/// A quota of failures a peer, in memory that does not grow with their number. Who is over it gets 429 where others get
/// 401, and no store is asked on his behalf. Whose token is known at once, in memory or in a cache, gets in as ever, and
/// costs nothing more than without a throttle.
///
/// ```
/// use tollgate::limit::FailureThrottle;
/// use tollgate::{AuthLayer, Grant, MemoryStore, Quota};
///
/// let tokens = MemoryStore::from_iter([("a-token", Grant::new("alice", ()))]);
/// let failures = FailureThrottle::by_socket_addr(Quota::per_minute(10).with_burst(30));
/// let gate = AuthLayer::new(tokens).with_failure_throttle(failures);
/// # let _ = gate;
/// ```
///
/// # Rules
///
/// 1. A failure is what gets a 401 `invalid_token` or a 400 `invalid_request`: a token that is malformed, unknown, not yet
///    valid, expired or bound to a key, or more than one. So is a 503 that [concerns only the
///    token](crate::StoreError::concerns_token), such as junk that an authorization server rejects with HTTP 400. To present
///    nothing is no attempt: it is neither counted nor refused. No failure touches the budget of a subject.
/// 2. Over any time `t` a peer gets no more than `burst + rate x t` failures answered otherwise than by 429. Where others
///    share all of its cells it may get fewer, never more.
/// 3. Before a store is waited for, room for one failure is kept. It is given back, exactly, when a grant is found and
///    valid, or the store fails or misses its deadline. A look-up that is dropped, because its client went away, counts as
///    a failure if less than half of the gate's deadline has passed; later the store is too slow, and the client did nothing
///    wrong. So a peer never has more look-ups under way than it has failures left: the burst is for those as well.
/// 4. A peer over its limit is refused before its look-up is polled, and so is a valid token of which nothing is
///    remembered. What the store answers at once is looked at first: valid tokens pass, all else is refused. A token that a
///    cache still holds, but has to ask for ([`TokenStore::is_cached`](crate::TokenStore::is_cached)), is looked up in any
///    case, and counted if it turns out to be invalid.
/// 5. A refusal has status 429 and `Retry-After`, and tells nothing of the token.
/// 6. Clones share what they count, so that one throttle stands for all doors of a service.
///
/// # Who a peer is
///
/// Whoever the closure says; the throttle never guesses. [`by_socket_addr`](Self::by_socket_addr) and, with the feature
/// `axum`, `by_connect_info` take the address of the connection. Behind a proxy that is the proxy's, and one stranger would
/// stop all others: read what *your* proxy says, from the end that it has written itself. For one trusted proxy that appends
/// to `X-Forwarded-For`:
///
/// ```
/// use std::net::{IpAddr, Ipv4Addr};
/// use tollgate::limit::{FailureThrottle, peer_of};
/// use tollgate::{Head, Quota};
///
/// fn behind_one_proxy(head: &Head<'_>) -> Option<IpAddr> {
///     let last = head.headers.get_all("x-forwarded-for").iter().next_back()?.to_str().ok()?;
///     let address = last.rsplit(',').next()?.trim().parse().ok()?;
///     Some(peer_of(address))
/// }
///
/// // What did not come through the proxy is one peer; `None` would let it try as often as it likes.
/// let failures = FailureThrottle::new(Quota::per_minute(10).with_burst(30), |head| {
///     behind_one_proxy(head).or(Some(IpAddr::V4(Ipv4Addr::UNSPECIFIED)))
/// });
/// # let _ = failures;
/// ```
///
/// The key must be nothing that the peer chooses: not the token (each guess would be a new peer), and not a name of who it
/// wants to be (a stranger would lock the holder out).
///
/// # Memory
///
/// A table of 4 rows of [`width`](Self::with_width) cells of 16 bytes, 1 MiB for the default of 16,384, allocated when it
/// is made; [`memory_bytes`](Self::memory_bytes) tells. The hash has random keys of this process, so that nobody can look
/// for peers that share cells.
///
/// While `n` peers are at their limit, another one is taken for one of them with a probability of about
/// `(1 - exp(-n / width))^4`; with the default width
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

/// `None` is not throttled; an error says what was forgotten.
type PeerOf = dyn Fn(&Head<'_>) -> Result<Option<Peer>, &'static str> + Send + Sync;

impl FailureThrottle {
    /// The width of a row unless something else is said.
    pub const DEFAULT_WIDTH: usize = 16_384;
    const WIDTHS: std::ops::RangeInclusive<usize> = 16..=1 << 24;

    /// So many failures for each peer, and who that is. `None` is not throttled.
    ///
    /// The head is what handlers see of it: credentials are marked sensitive, or removed.
    #[must_use]
    pub fn new<K: Hash>(quota: Quota, peer: impl Fn(&Head<'_>) -> Option<K> + Send + Sync + 'static) -> Self {
        Self::required(quota, move |head| Ok(peer(head)))
    }

    /// By the [`SocketAddr`] in the extensions of a request, grouped by [`peer_of`]: for services on hyper, which know it
    /// from `accept`.
    ///
    /// A request without one that would have to be counted is refused with 500, which says what was forgotten.
    #[must_use]
    pub fn by_socket_addr(quota: Quota) -> Self {
        Self::required(quota, |head| match head.extensions.get::<SocketAddr>() {
            Some(address) => Ok(Some(peer_of(address.ip()))),
            None => Err("No address of the peer is in the request's extensions. \
                         Perhaps you forgot to insert the `SocketAddr` of the connection."),
        })
    }

    pub(crate) fn required<K: Hash>(
        quota: Quota,
        peer: impl Fn(&Head<'_>) -> Result<Option<K>, &'static str> + Send + Sync + 'static,
    ) -> Self {
        let keys = RandomState::new();
        // A hash a row, since 64 bits are too few for four wide rows.
        let bits = move |key: K| Peer(std::array::from_fn(|row| keys.hash_one((row, &key)) as u32));
        Self {
            sketch: Arc::new(Sketch::new(quota, Self::DEFAULT_WIDTH)),
            time: Arc::new(Time::counter()),
            peer: Arc::new(move |head| Ok(peer(head)?.map(&bits))),
            dry_run: false,
        }
    }

    /// The same with another number of cells in a row: from 16 to 2^24, rounded up to a power of two. Nothing is owed in it, and
    /// clones made before are left behind.
    #[must_use]
    pub fn with_width(self, width: usize) -> Self {
        let width = width.clamp(*Self::WIDTHS.start(), *Self::WIDTHS.end());
        Self { sketch: Arc::new(Sketch::new(self.sketch.quota(), width)), ..self }
    }

    /// The same with another clock. Nothing is owed by it, and clones made before are left behind.
    #[must_use]
    pub fn with_clock(self, clock: impl Clock) -> Self {
        let sketch = Arc::new(Sketch::new(self.sketch.quota(), self.sketch.width()));
        Self { sketch, time: Arc::new(Time::Given(Arc::new(clock))), ..self }
    }

    /// The same, but it refuses nobody: to find out what it would do.
    ///
    /// It decides as it would, and lets pass what it would refuse. Of those the refusals say so by
    /// [`Rejection::would_be_throttled`], and requests that get in, after a look-up that would not have been made, have a
    /// [`WouldBeThrottled`] in their extensions.
    #[must_use]
    pub fn with_dry_run(self) -> Self {
        Self { dry_run: true, ..self }
    }

    /// How many failures a peer may have.
    #[must_use]
    pub fn quota(&self) -> Quota {
        self.sketch.quota()
    }

    /// The bytes that the table takes, whatever the number of peers.
    #[must_use]
    pub fn memory_bytes(&self) -> usize {
        self.sketch.memory_bytes()
    }

    /// Lets an attempt in, or refuses it. `None`: its peer is not throttled.
    pub(crate) fn begin(&self, head: &Head<'_>) -> Result<Option<Attempt>, Rejection> {
        let (peer, refused) = match (self.peer)(head) {
            Ok(None) => return Ok(None),
            Ok(Some(peer)) => match self.sketch.begin(peer, self.time.now_ns()) {
                Ok(()) => (Some(peer), None),
                Err(wait) => {
                    observe::throttled(self.dry_run);
                    (None, Some(Rejection::too_many_failures(wait)))
                }
            },
            Err(hint) => {
                // On trial this is told as well: in earnest it would refuse everybody who has to be counted.
                if self.dry_run {
                    observe::throttled(true);
                }
                (None, Some(Rejection::misconfigured(hint)))
            }
        };
        match refused {
            Some(rejection) if !self.dry_run => Err(rejection),
            _ => {
                let (sketch, time) = (Arc::clone(&self.sketch), Arc::clone(&self.time));
                Ok(Some(Attempt { sketch, time, peer, excused_from_ns: u64::MAX }))
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

/// In the extensions of a request that was let in although its peer had too many failures, by a
/// [dry run](FailureThrottle::with_dry_run).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WouldBeThrottled;

/// An attempt to authenticate. If it is dropped before it has ended, the client has gone away.
pub(crate) struct Attempt {
    sketch: Arc<Sketch>,
    time: Arc<Time>,
    /// `None`: a dry run has let it in, and it is counted no more than if it had been refused.
    peer: Option<Peer>,
    /// From this time on it is no failure to go away.
    excused_from_ns: u64,
}

impl Attempt {
    /// Allows the client to go away when half of this time has passed from now on.
    pub(crate) fn with_deadline(mut self, deadline: Duration) -> Self {
        let half = u64::try_from(deadline.as_nanos() / 2).unwrap_or(u64::MAX);
        self.excused_from_ns = self.time.now_ns().saturating_add(half);
        self
    }

    /// It is no failure.
    pub(crate) fn succeed(mut self) {
        if let Some(peer) = self.peer.take() {
            self.sketch.succeed(peer);
        }
    }

    /// It is a failure.
    pub(crate) fn fail(mut self) {
        if let Some(peer) = self.peer.take() {
            self.sketch.fail(peer, self.time.now_ns());
        }
    }

    /// Whether only a dry run has let it in.
    pub(crate) fn would_be_throttled(&self) -> bool {
        self.peer.is_none()
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        let Some(peer) = self.peer.take() else { return };
        match self.time.now_ns() {
            now if now < self.excused_from_ns => self.sketch.fail(peer, now),
            _ => self.sketch.succeed(peer),
        }
    }
}

/// The peer that an address belongs to: IPv4 addresses are peers of their own, also in their IPv6 form (`::ffff:192.0.2.1`),
/// IPv6 addresses stand for their /64, which is what one customer has at the least.
///
/// ```
/// use tollgate::limit::peer_of;
///
/// let peer = |address: &str| address.parse().map(peer_of);
/// assert_eq!(peer("2001:db8:1:2:3:4:5:6")?, peer("2001:db8:1:2::")?);
/// assert_ne!(peer("2001:db8:1:3::1")?, peer("2001:db8:1:2::1")?);
/// assert_eq!(peer("::ffff:192.0.2.1")?, peer("192.0.2.1")?);
/// # Ok::<_, std::net::AddrParseError>(())
/// ```
#[must_use]
pub fn peer_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (!0 << 64))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn addresses_are_grouped_by_who_has_them() {
        let peer = |address: &str| peer_of(address.parse().unwrap()).to_string();
        for (address, expected) in [
            ("192.0.2.1", "192.0.2.1"),
            ("::ffff:192.0.2.1", "192.0.2.1"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::"),
            ("2001:db8:1:3::", "2001:db8:1:3::"),
            ("::1", "::"),
            // IPv4-compatible, which is not IPv4-mapped.
            ("::192.0.2.1", "::"),
        ] {
            assert_eq!(peer(address), expected);
        }
    }

    #[test]
    fn the_table_has_the_size_that_it_tells() {
        let throttle = FailureThrottle::new(Quota::per_minute(1), |_| Some(()));
        assert_eq!(throttle.memory_bytes() >> 20, 1, "1 MiB");
        for (asked, width) in [(0, 16), (17, 32), (1 << 20, 1 << 20)] {
            let throttle = throttle.clone().with_width(asked);
            assert_eq!(throttle.sketch.width(), width);
            assert!(throttle.memory_bytes() - width * 64 < 4096);
            assert_eq!(throttle.with_clock(|| Duration::ZERO).sketch.width(), width);
        }
    }

    #[test]
    fn mistakes_are_as_rare_as_the_table_says() {
        let quota = Quota::per_hour(1);
        let throttle = FailureThrottle::new(quota, |head| head.extensions.get::<u32>().copied());
        let throttle = throttle.with_width(1_024).with_clock(|| Duration::ZERO);
        let mut request = Request::new(());
        let mut refused = |peers: std::ops::Range<u32>| {
            let mut is_refused = |peer: &u32| {
                request.extensions_mut().insert(*peer);
                // One that is let in fails, as it is dropped.
                throttle.begin(&Head::of(&request)).is_err()
            };
            peers.filter(|peer| is_refused(peer)).count()
        };
        // As many peers as a row is wide: about 1 in 6 for the last of them, so that fewer were refused before.
        assert!(refused(0..1_024) < 1_024 / 8);
        // They are not let in again.
        assert_eq!(refused(0..1_024), 1_024);
    }
}
