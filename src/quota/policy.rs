//! [`Policy`]: a quota with a name, and its pre-rendered header values.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, OnceLock, PoisonError};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::HeaderValue;
use thiserror::Error;

use super::clock::secs_up;
use super::quota::Quota;

/// A quota with a name, which `RateLimit` headers advertise. Cloning is cheap.
///
/// ```
/// use tollgate::{Policy, Quota};
///
/// let policy = Policy::new("orders", Quota::per_second(3))?;
/// assert_eq!(policy.name(), "orders");
/// assert!(Policy::new("", Quota::per_second(3)).is_err());
/// # Ok::<_, tollgate::PolicyNameError>(())
/// ```
#[derive(Clone)]
pub struct Policy(Repr);

/// The representation of a policy. Most policies are leaked.
///
/// Every decision contains its policy, and every response contains its header value. All threads would write to the same
/// reference count at every request. Leaked policies have no reference count.
#[derive(Clone)]
enum Repr {
    Leaked(&'static Inner),
    /// For processes with more than [`Leaked::MAX`] policies.
    Counted(Arc<Inner>),
}

struct Inner {
    quota: Quota,
    name: Box<str>,
    /// The draft-11 `RateLimit-Policy` item, such as `"name";q=20;w=7`.
    advert: HeaderValue,
    /// The beginning of every draft-11 `RateLimit` item of this policy, `"name";r=`.
    prefix: Box<[u8]>,
    /// The largest `t` of an item, the seconds until the bucket gains a unit. 0 without items.
    interval_s: u64,
    /// The `RateLimit` items such as `"name";r=19;t=1`, by remaining units and then by `t`. The last item is that of a full bucket.
    /// Empty if there would be too many.
    items: Box<[HeaderValue]>,
    body_after_1_s: OnceLock<&'static [u8]>,
}

/// The error of an invalid policy name.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PolicyNameError {
    /// The name is empty, longer than 64 characters, or not printable ASCII.
    #[error("invalid policy name: must be 1 to 64 characters of printable ASCII")]
    Form,
}

/// The leaked policies of the process.
static LEAKED: LazyLock<Leaked> = LazyLock::new(Leaked::default);

/// Leaked policies. Charges find their policy here, so reading takes no lock.
#[derive(Default)]
struct Leaked {
    policies: ArcSwap<HashMap<(Quota, &'static str), &'static Inner>>,
    /// Held while a policy is added.
    add: Mutex<()>,
}

impl Leaked {
    /// The maximum number of leaked policies in a process. Each takes about 200 bytes, and 60 bytes per item.
    const MAX: usize = 1_024;
    /// The maximum number of pre-rendered items in a process.
    const MAX_ITEMS: u64 = 65_536;

    fn get_or_add(&self, name: &str, quota: Quota) -> Policy {
        let policies = self.policies.load();
        match policies.get(&(quota, name)) {
            Some(&inner) => Policy(Repr::Leaked(inner)),
            None if policies.len() < Self::MAX => self.add(name, quota),
            None => Policy(Repr::Counted(Arc::new(Inner::counted(name, quota)))),
        }
    }

    #[cold]
    fn add(&self, name: &str, quota: Quota) -> Policy {
        let _add = self.lock();
        let policies = self.policies.load();
        // Another thread may have added the same policy meanwhile, or the last one.
        if policies.contains_key(&(quota, name)) || policies.len() >= Self::MAX {
            return self.get_or_add(name, quota);
        }
        let rendered = policies.values().map(|inner| inner.items.len() as u64).sum();
        let inner = &*Box::leak(Box::new(Inner::leaked(name, quota, Self::MAX_ITEMS.saturating_sub(rendered))));
        let mut more = HashMap::clone(&policies);
        more.insert((quota, &*inner.name), inner);
        self.policies.store(Arc::new(more));
        Policy(Repr::Leaked(inner))
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.add.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The maximum number of pre-rendered items of a policy: enough for up to 1,000 units a second or a minute.
    const MAX_ITEMS: u64 = 1_024;

    /// Renders a policy that will be leaked, with at most this number of items. Its header values are leaked too.
    fn leaked(name: &str, quota: Quota, max_items: u64) -> Self {
        let (advert, prefix) = render_policy(name, quota);
        let interval_s = if Self::has_items(quota, max_items) { secs_up(quota.interval_ns()) } else { 0 };
        let items = if interval_s > 0 { render_items(&prefix, quota.burst(), interval_s) } else { Box::default() };
        let advert = HeaderValue::from_static(String::leak(advert));
        Self { quota, name: name.into(), advert, prefix, interval_s, items, body_after_1_s: OnceLock::new() }
    }

    /// Returns whether the items of a quota are rendered in advance, if no more than this number is allowed.
    fn has_items(quota: Quota, max_items: u64) -> bool {
        let items = secs_up(quota.interval_ns()).saturating_mul(quota.burst().into()).saturating_add(1);
        items <= Self::MAX_ITEMS.min(max_items)
    }

    fn counted(name: &str, quota: Quota) -> Self {
        let (advert, prefix) = render_policy(name, quota);
        // A validated name is printable ASCII, so the conversion succeeds.
        let advert = HeaderValue::try_from(advert).unwrap_or(HeaderValue::from_static(""));
        Self {
            quota,
            name: name.into(),
            advert,
            prefix,
            interval_s: 0,
            items: Box::default(),
            body_after_1_s: OnceLock::new(),
        }
    }

    #[inline]
    fn item(&self, remaining: u32, more_in_s: u64) -> Option<&HeaderValue> {
        let Inner { items, quota, interval_s, .. } = self;
        match more_in_s.checked_sub(1) {
            // No overflow: with items, both numbers are below `MAX_ITEMS`.
            Some(more) if more < *interval_s && remaining < quota.burst() => {
                items.get((u64::from(remaining) * interval_s + more) as usize)
            }
            None if remaining == quota.burst() => items.last(),
            _ => None,
        }
    }
}

impl Policy {
    /// Creates a policy with a name and a quota.
    ///
    /// # Errors
    ///
    /// Returns an error if the name is empty, longer than 64 characters, or contains a character outside of printable ASCII
    /// (%x20-7E). A structured field string (RFC 9651, section 3.3.3) cannot contain other characters.
    pub fn new(name: &str, quota: Quota) -> Result<Self, PolicyNameError> {
        let name = PolicyName::new(name)?;
        Ok(Self::named(&name, quota))
    }

    /// Takes no lock, except to add a policy that the process does not have yet.
    pub(crate) fn named(name: &PolicyName, quota: Quota) -> Self {
        LEAKED.get_or_add(&name.0, quota)
    }

    fn inner(&self) -> &Inner {
        match &self.0 {
            Repr::Leaked(inner) => inner,
            Repr::Counted(inner) => inner,
        }
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner().name
    }

    /// Returns the quota.
    #[must_use]
    pub fn quota(&self) -> Quota {
        self.inner().quota
    }

    pub(crate) fn advert(&self) -> &HeaderValue {
        &self.inner().advert
    }

    pub(crate) fn prefix(&self) -> &[u8] {
        &self.inner().prefix
    }

    /// Returns the `RateLimit` item without a partition key, if the item is pre-rendered.
    #[inline]
    pub(crate) fn item(&self, remaining: u32, more_in_s: u64) -> Option<&HeaderValue> {
        self.inner().item(remaining, more_in_s)
    }

    /// Returns the name as a string of a structured field. It is also a JSON string: both escape quotes and backslashes of
    /// printable ASCII.
    pub(crate) fn quoted_name(&self) -> &[u8] {
        self.prefix().strip_suffix(b";r=").unwrap_or_default()
    }

    /// Returns the body of a rejection by this policy alone that asks to wait for a second, as most do. The first call renders
    /// and leaks it.
    pub(crate) fn body_after_1_s(&self, render: impl FnOnce() -> Vec<u8>) -> Bytes {
        match &self.0 {
            Repr::Leaked(inner) => Bytes::from_static(inner.body_after_1_s.get_or_init(|| Vec::leak(render()))),
            Repr::Counted(_) => render().into(),
        }
    }

    /// Returns whether an item of `RateLimit` or `RateLimit-Policy` has the name of this policy.
    pub(crate) fn is_named_in(&self, item: &[u8]) -> bool {
        let name = self.prefix().strip_suffix(b"r=").unwrap_or_default();
        item.starts_with(name)
    }
}

impl PartialEq for Policy {
    fn eq(&self, other: &Self) -> bool {
        self.quota() == other.quota() && self.name() == other.name()
    }
}

impl Eq for Policy {}

impl fmt::Debug for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Policy").field("name", &self.name()).field("quota", &self.quota()).finish()
    }
}

/// A validated policy name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PolicyName(Arc<str>);

impl PolicyName {
    pub(crate) fn new(name: &str) -> Result<Self, PolicyNameError> {
        match (1..=64).contains(&name.len()) && name.bytes().all(|b| (0x20..=0x7e).contains(&b)) {
            true => Ok(Self(name.into())),
            false => Err(PolicyNameError::Form),
        }
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    const DEFAULT: &str = "default";

    /// Returns the name of limiters that have no explicit name.
    pub(crate) fn default_name() -> Self {
        Self(Self::DEFAULT.into())
    }

    pub(crate) fn is_default(&self) -> bool {
        *self.0 == *Self::DEFAULT
    }

    /// Returns the name of the policy for anonymous callers.
    pub(crate) fn anonymous() -> Self {
        Self("anonymous".into())
    }
}

/// Renders the `RateLimit-Policy` item of a policy, and the beginning of its `RateLimit` items.
fn render_policy(name: &str, quota: Quota) -> (String, Box<[u8]>) {
    // RFC 9651, section 4.1.6. A validated name is printable ASCII, so nothing else needs an escape.
    let name = format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""));
    let item = format!("{name};q={};w={}", quota.burst(), secs_up(quota.span_ns()));
    (item, format!("{name};r=").into_bytes().into())
}

/// Renders and leaks all `RateLimit` items of a policy, in the order of [`Inner::items`].
///
/// Leaked header values have no reference count.
fn render_items(prefix: &[u8], burst: u32, interval_s: u64) -> Box<[HeaderValue]> {
    let prefix = String::from_utf8_lossy(prefix);
    let used = (0..burst).flat_map(|left| (1..=interval_s).map(move |more_in_s| (left, more_in_s)));
    let item = |(left, more_in_s)| HeaderValue::from_static(String::leak(format!("{prefix}{left};t={more_in_s}")));
    used.chain([(burst, 0)]).map(item).collect()
}

/// Takes the lock that a new policy needs, for tests of what takes no lock.
#[cfg(all(test, feature = "redis"))]
pub(crate) fn lock_new_policies() -> MutexGuard<'static, ()> {
    LEAKED.lock()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const QUOTA: Quota = Quota::per_minute(7);

    /// Returns the address of a leaked policy, or `None` if the policy is counted.
    fn address(policy: &Policy) -> Option<usize> {
        matches!(policy.0, Repr::Leaked(_)).then(|| std::ptr::from_ref(policy.inner()).addr())
    }

    #[test]
    fn known_policy_takes_no_lock() {
        let leaked = Leaked::default();
        let policy = || address(&leaked.get_or_add("known", QUOTA)).unwrap();
        let known = policy();
        let _lock = leaked.lock();
        assert_eq!(policy(), known);
    }

    #[test]
    fn concurrent_new_policies_are_leaked_once_up_to_the_maximum() {
        let leaked = Leaked::default();
        let names: Vec<_> = (0..Leaked::MAX + 20).map(|number| format!("policy {number}")).collect();
        let addresses = || names.iter().map(|name| address(&leaked.get_or_add(name, QUOTA))).collect::<Vec<_>>();
        let by_threads: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(addresses)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        // Then all policies are known or counted, and no lock is taken.
        let _lock = leaked.lock();
        let expected = addresses();
        assert_eq!(expected.iter().flatten().count(), Leaked::MAX);
        assert!(by_threads.iter().all(|addresses| *addresses == expected));
        let counted = leaked.get_or_add(names.last().unwrap(), QUOTA);
        assert_eq!((counted.name(), counted.quota()), (&**names.last().unwrap(), QUOTA));
    }

    #[test]
    fn rendered_items_have_their_own_numbers() {
        let slow = Quota::one_per(Duration::from_millis(2_500)).with_burst(3);
        for quota in [slow, Quota::per_minute(7), Quota::per_minute(180).with_burst(20), Quota::per_second(1)] {
            let (prefix, interval_s) = (render_policy("default", quota).1, secs_up(quota.interval_ns()));
            let (name, advert) = ("default".into(), HeaderValue::from_static(""));
            let items = render_items(&prefix, quota.burst(), interval_s);
            let body_after_1_s = OnceLock::new();
            let policy = Inner { quota, name, advert, prefix, interval_s, items, body_after_1_s };
            for (remaining, more_in_s) in
                (0..quota.burst() + 2).flat_map(|left| (0..interval_s + 2).map(move |t| (left, t)))
            {
                let is_used = remaining < quota.burst() && (1..=interval_s).contains(&more_in_s);
                let is_full = (remaining, more_in_s) == (quota.burst(), 0);
                let expected = format!("\"default\";r={remaining};t={more_in_s}");
                let item = policy.item(remaining, more_in_s).map(HeaderValue::as_bytes);
                assert_eq!(item, (is_used || is_full).then_some(expected.as_bytes()), "{quota:?}");
            }
        }
    }

    #[test]
    fn items_are_rendered_only_for_usual_quotas_and_while_there_is_room() {
        for (quota, expected) in [
            (Quota::per_second(1_000), true),
            (Quota::per_minute(1), true),
            (Quota::per_minute(180), true),
            (Quota::per_minute(1_000), true),
            (Quota::per_second(1_023), true),
            (Quota::per_second(1_024), false),
            (Quota::per_hour(1_000), false),
            (Quota::per_day(1), false),
        ] {
            assert_eq!(Inner::has_items(quota, u64::MAX), expected, "{quota:?}");
        }
        // 60 units, and the full bucket.
        assert!(Inner::has_items(Quota::per_minute(60), 61));
        assert!(!Inner::has_items(Quota::per_minute(60), 60));
    }
}
