//! [`Grant`]: what a token stands for.

use std::borrow::Borrow;
use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::scopes::{ScopeError, Scopes};
use crate::quota::Quota;
use crate::quota::bucket::Memo;

macro_rules! name {
    ($(#[$doc:meta])* $Name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $Name(Arc<str>);

        impl $Name {
            /// The text of it.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $Name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $Name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $Name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<String> for $Name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }

        impl From<&String> for $Name {
            fn from(text: &String) -> Self {
                Self(text.as_str().into())
            }
        }

        impl From<&$Name> for $Name {
            fn from(name: &$Name) -> Self {
                name.clone()
            }
        }

        impl From<Arc<str>> for $Name {
            fn from(text: Arc<str>) -> Self {
                Self(text)
            }
        }

        impl FromStr for $Name {
            type Err = Infallible;

            fn from_str(text: &str) -> Result<Self, Infallible> {
                Ok(text.into())
            }
        }

        #[cfg(feature = "serde")]
        impl serde::Serialize for $Name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        #[cfg(feature = "serde")]
        impl<'de> serde::Deserialize<'de> for $Name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer).map(Self::from)
            }
        }

        impl fmt::Display for $Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $Name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

name! {
    /// Names one grant in logs and in administration. It is no secret: never make it of a token.
    GrantId
}
name! {
    /// Whom a budget belongs to. All grants that name one subject draw on the same budget.
    Subject
}

/// What a token stands for: who calls, what they may do, and how much.
///
/// A grant is its own subject unless it names another one, so that budgets are per token by default. Give all tokens
/// of one customer the same subject, the old and the new one of a rotation above all, and they share one budget.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use tollgate::{Grant, Quota};
///
/// struct User { name: &'static str }
///
/// let grant = Grant::new("key-17", User { name: "Alice" })
///     .with_subject("alice")
///     .with_scopes(["trade"])?
///     .with_quota(Quota::per_minute(600).with_burst(50))
///     .with_expiry(SystemTime::now() + Duration::from_secs(3_600));
/// assert_eq!(grant.subject().as_str(), "alice");
/// # Ok::<_, tollgate::ScopeError>(())
/// ```
#[repr(C)]
pub struct Grant<P> {
    head: GrantHead,
    /// Shared, because a rotation makes two grants of one, and a principal need not be `Clone` for that.
    principal: Arc<P>,
}

impl<P> Clone for Grant<P> {
    /// Another grant of the same principal, which is not cloned.
    fn clone(&self) -> Self {
        Self { head: self.head.clone(), principal: Arc::clone(&self.principal) }
    }
}

/// Everything about a grant that does not depend on the type of its principal.
///
/// In this order, because each request reads what comes first, and with many tokens the cache lines of a grant are what a
/// request waits for.
#[derive(Clone)]
#[repr(C)]
pub(crate) struct GrantHead {
    quota: Option<Quota>,
    /// Nanoseconds since 1970; 0 is "always was".
    not_before_ns: u64,
    /// Nanoseconds since 1970; `u64::MAX` is "never".
    expires_ns: u64,
    memo: Memo,
    sender_constrained: bool,
    /// Whether its token has a successor.
    outgoing: bool,
    subject: Subject,
    id: GrantId,
    scopes: Scopes,
}

impl<P> Grant<P> {
    /// A grant that is its own subject, may do what needs no scope, is valid at all times and has no quota of its own.
    pub fn new(id: impl Into<GrantId>, principal: P) -> Self {
        let id = id.into();
        let head = GrantHead {
            memo: Memo::default(),
            quota: None,
            not_before_ns: 0,
            expires_ns: u64::MAX,
            sender_constrained: false,
            outgoing: false,
            subject: Subject(id.0.clone()),
            id,
            scopes: Scopes::default(),
        };
        Self { head, principal: Arc::new(principal) }
    }

    /// The same under another subject, whose budget it will share.
    #[must_use]
    pub fn with_subject(mut self, subject: impl Into<Subject>) -> Self {
        self.head.subject = subject.into();
        // What was remembered is the budget of the former subject.
        self.head.memo = Memo::default();
        self
    }

    /// The same with these scopes.
    ///
    /// # Errors
    ///
    /// If one of them is empty or has a character that RFC 6749 does not allow.
    pub fn with_scopes<I>(mut self, scopes: I) -> Result<Self, ScopeError>
    where
        I: IntoIterator,
        I::Item: AsRef<str>,
    {
        self.head.scopes = Scopes::new(scopes)?;
        Ok(self)
    }

    /// The same with scopes that were checked before.
    #[cfg(any(feature = "sqlite", feature = "postgres"))]
    pub(crate) fn scoped(mut self, scopes: Scopes) -> Self {
        self.head.scopes = scopes;
        self
    }

    /// Sets the quota of this grant, such as a customer's plan. It replaces the quota of the gate's limiter, and that of at most
    /// one policy; see [Whose quota](crate::RateLimits#whose-quota).
    ///
    /// Give all tokens of one subject the same: where they differ, each turn of another opens an account anew, under the
    /// limiter's lock.
    #[must_use]
    pub fn with_quota(mut self, quota: Quota) -> Self {
        self.head.quota = Some(quota);
        // What was remembered is a budget by the former quota.
        self.head.memo = Memo::default();
        self
    }

    /// The same, valid from this moment on.
    #[must_use]
    pub fn with_not_before(mut self, not_before: SystemTime) -> Self {
        self.head.not_before_ns = unix_ns(not_before);
        self
    }

    /// The same, valid until just before this moment.
    #[must_use]
    pub fn with_expiry(mut self, expires_at: SystemTime) -> Self {
        self.head.expires_ns = unix_ns(expires_at);
        self
    }

    /// The same, bound to a key that its sender must prove (DPoP, mutual TLS). As a bare Bearer token it is refused
    /// (RFC 9449, section 7.2).
    #[must_use]
    pub fn with_sender_constraint(mut self) -> Self {
        self.head.sender_constrained = true;
        self
    }

    /// The name of the grant.
    #[must_use]
    pub fn id(&self) -> &GrantId {
        &self.head.id
    }

    /// Whose budget it draws on.
    #[must_use]
    pub fn subject(&self) -> &Subject {
        &self.head.subject
    }

    /// What it allows.
    #[must_use]
    pub fn scopes(&self) -> &Scopes {
        &self.head.scopes
    }

    /// Its own quota; `None` is the limiter's default.
    #[must_use]
    pub fn quota(&self) -> Option<Quota> {
        self.head.quota
    }

    /// From when on it is valid, if that was said.
    #[must_use]
    pub fn not_before(&self) -> Option<SystemTime> {
        (self.head.not_before_ns != 0).then(|| UNIX_EPOCH + Duration::from_nanos(self.head.not_before_ns))
    }

    /// When it expires, if ever.
    #[must_use]
    pub fn expires_at(&self) -> Option<SystemTime> {
        (self.head.expires_ns != u64::MAX).then(|| UNIX_EPOCH + Duration::from_nanos(self.head.expires_ns))
    }

    /// Whether its sender must prove a key.
    #[must_use]
    pub fn is_sender_constrained(&self) -> bool {
        self.head.sender_constrained
    }

    /// Whether its token was rotated and works for its grace only.
    #[must_use]
    pub fn is_outgoing(&self) -> bool {
        self.head.outgoing
    }

    /// The grant of a token that has a successor, until its grace ends, if ever. It ends no later than it would have.
    pub(crate) fn into_outgoing(mut self, grace_ends: Option<SystemTime>) -> Self {
        self.head.outgoing = true;
        self.head.expires_ns = self.head.expires_ns.min(grace_ends.map_or(u64::MAX, unix_ns));
        self
    }

    /// Whether it is valid at this moment, by its dates. A gate asks this at every request; what outlives a request, such
    /// as a WebSocket, has to ask again.
    ///
    /// ```
    /// use std::time::{Duration, SystemTime};
    /// use tollgate::Grant;
    ///
    /// let end = SystemTime::now() + Duration::from_secs(60);
    /// let grant = Grant::new("alice", ()).with_expiry(end);
    /// assert!(grant.is_valid_at(SystemTime::now()));
    /// assert!(!grant.is_valid_at(end));
    /// ```
    #[must_use]
    pub fn is_valid_at(&self, time: SystemTime) -> bool {
        !self.head.is_not_yet_valid(time) && !self.head.is_expired(time)
    }

    /// Who calls, in the service's own words.
    pub fn principal(&self) -> &P {
        &self.principal
    }

    pub(crate) fn head(&self) -> &GrantHead {
        &self.head
    }
}

impl GrantHead {
    pub(crate) fn id(&self) -> &GrantId {
        &self.id
    }

    pub(crate) fn subject(&self) -> &Subject {
        &self.subject
    }

    pub(crate) fn scopes(&self) -> &Scopes {
        &self.scopes
    }

    pub(crate) fn quota(&self) -> Option<Quota> {
        self.quota
    }

    pub(crate) fn memo(&self) -> &Memo {
        &self.memo
    }

    /// Whether there is any need to ask what time it is.
    pub(crate) fn is_bounded_in_time(&self) -> bool {
        self.not_before_ns != 0 || self.expires_ns != u64::MAX
    }

    pub(crate) fn is_expired(&self, now: SystemTime) -> bool {
        unix_ns(now) >= self.expires_ns && self.expires_ns != u64::MAX
    }

    pub(crate) fn is_not_yet_valid(&self, now: SystemTime) -> bool {
        unix_ns(now) < self.not_before_ns
    }

    pub(crate) fn is_sender_constrained(&self) -> bool {
        self.sender_constrained
    }
}

/// Nanoseconds since 1970; earlier is 0, after the year 2554 `u64::MAX`.
fn unix_ns(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

impl<P> fmt::Debug for Grant<P> {
    /// Leaves out the principal, which may hold what must not be printed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grant")
            .field("id", self.id())
            .field("subject", self.subject())
            .field("scopes", self.scopes())
            .field("quota", &self.quota())
            .field("not_before", &self.not_before())
            .field("expires_at", &self.expires_at())
            .finish_non_exhaustive()
    }
}
