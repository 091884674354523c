//! [`Policy`]: a quota with a name, and its pre-rendered header values.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

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
    /// For processes with more than [`Policy::MAX_LEAKED`] policies.
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

    /// The maximum number of leaked policies in a process. Each takes about 200 bytes, and 60 bytes per item.
    const MAX_LEAKED: usize = 1_024;
    /// The largest burst whose items are pre-rendered.
    const MAX_ITEMS: u32 = 64;

    pub(crate) fn named(name: &PolicyName, quota: Quota) -> Self {
        static LEAKED: Mutex<Vec<&'static Inner>> = Mutex::new(Vec::new());

        let mut leaked = LEAKED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(inner) = leaked.iter().find(|inner| inner.quota == quota && *inner.name == *name.0) {
            return Self(Repr::Leaked(inner));
        }
        let (advert, prefix) = render_policy(&name.0, quota);
        let name = (*name.0).into();
        let body_after_1_s = OnceLock::new();
        if leaked.len() < Self::MAX_LEAKED {
            let advert = HeaderValue::from_static(String::leak(advert));
            let items = match quota.burst() <= Self::MAX_ITEMS && quota.interval() <= Duration::from_secs(1) {
                true => render_items(&prefix, quota.burst()),
                false => Box::default(),
            };
            let inner = Box::leak(Box::new(Inner { quota, name, advert, prefix, items, body_after_1_s }));
            leaked.push(inner);
            Self(Repr::Leaked(inner))
        } else {
            // A validated name is printable ASCII, so the conversion succeeds.
            let advert = HeaderValue::try_from(advert).unwrap_or(HeaderValue::from_static(""));
            Self(Repr::Counted(Arc::new(Inner { quota, name, advert, prefix, items: Box::default(), body_after_1_s })))
        }
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

/// Renders and leaks all `RateLimit` items of a policy that gains a unit within a second. The last item is for a full bucket.
///
/// Leaked header values have no reference count.
fn render_items(prefix: &[u8], burst: u32) -> Box<[HeaderValue]> {
    let prefix = String::from_utf8_lossy(prefix);
    let item = |left| format!("{prefix}{left};t={}", u32::from(left < burst));
    (0..=burst).map(|left| HeaderValue::from_static(String::leak(item(left)))).collect()
}
