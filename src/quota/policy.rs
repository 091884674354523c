//! [`Policy`]: a quota with a name, and its pre-rendered header values.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
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
    /// The `RateLimit` items such as `"name";r=19;t=1`, indexed by the remaining units. Rendered for small buckets that gain a
    /// unit within a second.
    items: Box<[HeaderValue]>,
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
        let inner = &*Box::leak(Box::new(Inner::leaked(name, quota)));
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
    /// The largest burst whose items are pre-rendered.
    const MAX_ITEMS: u32 = 64;

    /// Renders a policy that will be leaked. Its header values are leaked too.
    fn leaked(name: &str, quota: Quota) -> Self {
        let (advert, prefix) = render_policy(name, quota);
        let items = match quota.burst() <= Self::MAX_ITEMS && quota.interval() <= Duration::from_secs(1) {
            true => render_items(&prefix, quota.burst()),
            false => Box::default(),
        };
        Self { quota, name: name.into(), advert: HeaderValue::from_static(String::leak(advert)), prefix, items }
    }

    fn counted(name: &str, quota: Quota) -> Self {
        let (advert, prefix) = render_policy(name, quota);
        // A validated name is printable ASCII, so the conversion succeeds.
        let advert = HeaderValue::try_from(advert).unwrap_or(HeaderValue::from_static(""));
        Self { quota, name: name.into(), advert, prefix, items: Box::default() }
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
    pub(crate) fn item(&self, remaining: u32, more_in_s: u64) -> Option<&HeaderValue> {
        let Inner { items, quota, .. } = self.inner();
        items.get(remaining as usize).filter(|_| more_in_s == u64::from(remaining < quota.burst()))
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

/// Renders and leaks all `RateLimit` items of a policy that gains a unit within a second. The last item is for a full bucket.
///
/// Leaked header values have no reference count.
fn render_items(prefix: &[u8], burst: u32) -> Box<[HeaderValue]> {
    let prefix = String::from_utf8_lossy(prefix);
    let item = |left| format!("{prefix}{left};t={}", u32::from(left < burst));
    (0..=burst).map(|left| HeaderValue::from_static(String::leak(item(left)))).collect()
}

/// Takes the lock that a new policy needs, for tests of what takes no lock.
#[cfg(test)]
pub(crate) fn lock_new_policies() -> MutexGuard<'static, ()> {
    LEAKED.lock()
}

#[cfg(test)]
mod tests {
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
}
