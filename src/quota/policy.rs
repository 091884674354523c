//! [`Policy`]: a quota with a name, and the header field items of it, rendered once.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::HeaderValue;
use thiserror::Error;

use super::decision::{Decision, secs_up};
use super::quota::Quota;

/// A quota with the name under which it is advertised in `RateLimit` headers. Cheap to clone.
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

/// Every decision carries its policy, and every answer the policy's header value. A counted reference to them would be
/// the one thing that all threads of a server write to at every request, so that the usual policies are kept for ever.
#[derive(Clone)]
enum Repr {
    Kept(&'static Inner),
    /// For processes with more plans than [`Policy::MOST_KEPT`].
    Counted(Arc<Inner>),
}

struct Inner {
    quota: Quota,
    name: Box<str>,
    /// `"name";q=20;w=7`, the draft-10 `RateLimit-Policy` item, rendered once.
    advert: HeaderValue,
    /// `"name";r=`, with which every draft-10 `RateLimit` item of this policy begins.
    prefix: Box<[u8]>,
    /// The whole item by what remains, `"name";r=19;t=1`, for a small bucket that gains a cell within a second.
    items: Box<[HeaderValue]>,
}

/// A name by which clients could not tell a policy.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PolicyNameError {
    /// It is empty, longer than 64 characters, or not printable ASCII.
    #[error("a policy name is 1 to 64 characters of printable ASCII")]
    Form,
    /// Another policy of the same limiter has it; `anonymous` is that of anonymous callers.
    #[error("two policies of one limiter have the same name")]
    Taken,
}

impl Policy {
    /// Names a quota.
    ///
    /// # Errors
    ///
    /// If the name is empty, longer than 64 characters, or has a character outside of printable ASCII (%x20-7E), which
    /// a structured field string (RFC 9651, section 3.3.3) cannot hold.
    pub fn new(name: &str, quota: Quota) -> Result<Self, PolicyNameError> {
        let name = PolicyName::new(name)?;
        Ok(Self::named(&name, quota))
    }

    /// How many different policies a process keeps for ever, some 200 bytes each, and 60 an item.
    const MOST_KEPT: usize = 1_024;
    /// The largest burst whose items are rendered beforehand.
    const MOST_ITEMS: u32 = 64;

    pub(crate) fn named(name: &PolicyName, quota: Quota) -> Self {
        static KEPT: Mutex<Vec<&'static Inner>> = Mutex::new(Vec::new());

        let mut kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(inner) = kept.iter().find(|inner| inner.quota == quota && *inner.name == *name.0) {
            return Self(Repr::Kept(inner));
        }
        let (advert, prefix) = render_policy(&name.0, quota);
        let name = (*name.0).into();
        if kept.len() < Self::MOST_KEPT {
            let advert = HeaderValue::from_static(String::leak(advert));
            let items = match quota.burst() <= Self::MOST_ITEMS && quota.interval() <= Duration::from_secs(1) {
                true => render_items(&prefix, quota.burst()),
                false => Box::default(),
            };
            let inner = Box::leak(Box::new(Inner { quota, name, advert, prefix, items }));
            kept.push(inner);
            Self(Repr::Kept(inner))
        } else {
            // The name was checked: printable ASCII.
            let advert = HeaderValue::try_from(advert).unwrap_or(HeaderValue::from_static(""));
            Self(Repr::Counted(Arc::new(Inner { quota, name, advert, prefix, items: Box::default() })))
        }
    }

    fn inner(&self) -> &Inner {
        match &self.0 {
            Repr::Kept(inner) => inner,
            Repr::Counted(inner) => inner,
        }
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.inner().name
    }

    /// The quota.
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

    /// The `RateLimit` item of a decision, if it was rendered beforehand.
    pub(crate) fn item(&self, decision: &Decision) -> Option<&HeaderValue> {
        let (left, burst) = (decision.remaining(), self.quota().burst());
        let as_usual = decision.partition_key().is_none() && decision.more_in_s() == u64::from(left < burst);
        self.inner().items.get(left as usize).filter(|_| as_usual)
    }

    /// Whether an item of `RateLimit` or `RateLimit-Policy` has this policy's name.
    pub(crate) fn is_told_by(&self, item: &[u8]) -> bool {
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

/// A name that was checked, for the quotas that grants bring.
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

    /// The name of a limiter that got none.
    pub(crate) fn default_name() -> Self {
        Self(Self::DEFAULT.into())
    }

    pub(crate) fn is_default(&self) -> bool {
        *self.0 == *Self::DEFAULT
    }

    /// The name under which anonymous callers are limited.
    pub(crate) fn anonymous() -> Self {
        Self("anonymous".into())
    }
}

/// The `RateLimit-Policy` item of a policy, and what its `RateLimit` items begin with.
fn render_policy(name: &str, quota: Quota) -> (String, Box<[u8]>) {
    // RFC 9651, section 4.1.6. The name was checked: printable ASCII.
    let name = format!("\"{}\"", name.replace('\\', "\\\\").replace('"', "\\\""));
    let item = format!("{name};q={};w={}", quota.burst(), secs_up(quota.span_ns()));
    (item, format!("{name};r=").into_bytes().into())
}

/// All `RateLimit` items of a policy that gains a cell within a second, for ever: values that nobody counts references to.
/// The last is for a full bucket.
fn render_items(prefix: &[u8], burst: u32) -> Box<[HeaderValue]> {
    let prefix = String::from_utf8_lossy(prefix);
    let item = |left| format!("{prefix}{left};t={}", u32::from(left < burst));
    (0..=burst).map(|left| HeaderValue::from_static(String::leak(item(left)))).collect()
}
