//! `RateLimit`, `RateLimit-Policy` and their older dialects, as functions of a [`Decision`].

use std::cmp::Reverse;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use http::header::{HeaderMap, HeaderName, HeaderValue};

use super::list::members;
use crate::quota::Quota;
use crate::quota::decision::{Decision, secs_up};
use crate::quota::policy::Policy;

/// The dialect of the rate limit headers of a gate.
///
/// The header names of the drafts are the same while their syntax is not, so that one gate uses one dialect. All times are
/// whole seconds, rounded up. `Retry-After` on a 429 is the same in all dialects: the time until the same request is admitted.
///
/// # Reset
///
/// The older dialects have a single time, `reset`:
///
/// | response | `reset` is the time until |
/// |---|---|
/// | 429 | the same request is admitted, as in `Retry-After` |
/// | another one where nothing remains | one unit more is available |
/// | another one where something remains | the whole limit is available again |
///
/// So a client that has to wait, and obeys `reset`, is admitted then, and not a second earlier. A bucket is refilled all the
/// time: after this wait it has a unit, or as many as the request costs, and not the whole limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RateLimitHeaders {
    /// draft-ietf-httpapi-ratelimit-headers-10: `RateLimit: "default";r=19;t=1` and `RateLimit-Policy: "default";q=20;w=7`.
    ///
    /// `w` is the time in which an empty bucket is refilled. `t` is the number of seconds until one unit more is available; on
    /// a 429 until the same request is admitted, as in `Retry-After`. All policies are listed.
    #[default]
    Draft10,
    /// draft-07: `RateLimit: limit=20, remaining=19, reset=1` and `RateLimit-Policy: 20;w=7`.
    ///
    /// `reset` is a number of seconds, [see above](Self#reset).
    Draft07,
    /// draft-05 and -06: `RateLimit-Limit: 20`, `RateLimit-Remaining`, `RateLimit-Reset`, `RateLimit-Policy: 20;w=7`.
    ///
    /// `RateLimit-Reset` is a number of seconds, [see above](Self#reset).
    Draft06,
    /// draft-03: `RateLimit-Limit: 20, 20;w=7`, `RateLimit-Remaining`, `RateLimit-Reset`.
    ///
    /// `RateLimit-Reset` is a number of seconds, [see above](Self#reset).
    Draft03,
    /// `X-RateLimit-Limit`, `-Remaining` and `-Reset`, as GitHub has them.
    ///
    /// `X-RateLimit-Reset` is a time of day in seconds since 1970-01-01 UTC, by the server's clock,
    /// [see above](Self#reset). On a 429 it is at most one second later than `Retry-After`.
    XEpoch,
    /// `X-RateLimit-Limit`, `-Remaining` and `-Reset`.
    ///
    /// `X-RateLimit-Reset` is a number of seconds, [see above](Self#reset).
    XDelta,
    /// None. `Retry-After` is sent all the same.
    Off,
}

const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// Limit, remaining, reset.
const TRIPLE: [HeaderName; 3] = [
    HeaderName::from_static("ratelimit-limit"),
    HeaderName::from_static("ratelimit-remaining"),
    HeaderName::from_static("ratelimit-reset"),
];
const X_TRIPLE: [HeaderName; 3] = [
    HeaderName::from_static("x-ratelimit-limit"),
    HeaderName::from_static("x-ratelimit-remaining"),
    HeaderName::from_static("x-ratelimit-reset"),
];

/// What is to be written into one response, rendered as soon as the decision is known.
#[derive(Debug)]
pub(crate) struct Advert {
    fields: Fields,
    remaining: u32,
}

#[derive(Debug)]
enum Fields {
    /// Lists, to which other policies can be joined.
    Draft10 { policy: Policy, state: HeaderValue },
    /// The same of several policies.
    Draft10List(Vec<(Policy, HeaderValue)>),
    /// One policy only: the tightest.
    Single { dialect: RateLimitHeaders, quota: Quota, reset: u64 },
}

/// Renders a decision; `None` if there is nothing to tell. `now` is asked only for a dialect that tells the time.
pub(crate) fn advert(
    dialect: RateLimitHeaders,
    decision: &Decision,
    now: impl FnOnce() -> SystemTime,
) -> Option<Advert> {
    let policy = decision.policy()?;
    // Clients are told nothing of policies on trial.
    if decision.is_dry_run() {
        return None;
    }
    let fields = match dialect {
        RateLimitHeaders::Off => return None,
        RateLimitHeaders::Draft10 if decision.is_of_several() => {
            let told = decision.parts().filter(|part| !part.is_dry_run());
            let item = |part| Some((Decision::policy(part)?.clone(), draft_10_item(part)?));
            Fields::Draft10List(told.filter_map(item).collect())
        }
        RateLimitHeaders::Draft10 => Fields::Draft10 { policy: policy.clone(), state: draft_10_item(decision)? },
        RateLimitHeaders::XEpoch => {
            let now_ns = now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
            let reset = (now_ns + u128::from(decision.reset_in_ns())).div_ceil(1_000_000_000) as u64;
            Fields::Single { dialect, quota: policy.quota(), reset }
        }
        RateLimitHeaders::XDelta
        | RateLimitHeaders::Draft07
        | RateLimitHeaders::Draft06
        | RateLimitHeaders::Draft03 => {
            Fields::Single { dialect, quota: policy.quota(), reset: secs_up(decision.reset_in_ns()) }
        }
    };
    Some(Advert { fields, remaining: decision.remaining() })
}

impl Advert {
    /// Writes it into a response in which an inner layer may have told of its own policy.
    #[inline]
    pub(crate) fn write(self, headers: &mut HeaderMap) {
        match self.fields {
            Fields::Draft10 { policy, state } => {
                join(headers, || RATELIMIT_POLICY, &policy, policy.advert().clone());
                join(headers, || RATELIMIT, &policy, state);
            }
            Fields::Draft10List(items) => write_list(headers, &items),
            Fields::Single { dialect, quota, reset } => {
                // An inner policy that leaves less is the one to obey, or of two that leave as much the later one.
                let own = (self.remaining.into(), Reverse(reset));
                if told(headers, dialect).is_none_or(|(remaining, reset)| own < (remaining, Reverse(reset))) {
                    write_single(headers, dialect, quota, self.remaining, reset);
                }
            }
        }
    }
}

/// Writes the items of several policies, in front of what inner layers have told.
fn write_list(headers: &mut HeaderMap, items: &[(Policy, HeaderValue)]) {
    if headers.contains_key(RATELIMIT) || headers.contains_key(RATELIMIT_POLICY) {
        for (policy, state) in items.iter().rev() {
            join(headers, || RATELIMIT_POLICY, policy, policy.advert().clone());
            join(headers, || RATELIMIT, policy, state.clone());
        }
        return;
    }
    // Items joined by a comma are a value.
    let joined = |items: Vec<&[u8]>| HeaderValue::try_from(items.join(&b", "[..])).ok();
    let adverts = joined(items.iter().map(|(policy, _)| policy.advert().as_bytes()).collect());
    let states = joined(items.iter().map(|(_, state)| state.as_bytes()).collect());
    if let (Some(adverts), Some(states)) = (adverts, states) {
        headers.insert(RATELIMIT_POLICY, adverts);
        headers.insert(RATELIMIT, states);
    }
}

/// Adds an item to a list, in the same field line: many clients read only one.
#[inline]
fn join(headers: &mut HeaderMap, name: fn() -> HeaderName, policy: &Policy, item: HeaderValue) {
    // The usual answer has no such field yet, and is asked once. (A name costs less to make than to clone.)
    if headers.append(name(), item) {
        join_lines(headers, name(), policy);
    }
}

/// Makes one line of what an inner layer or the handler has told, and of the item that was added last.
#[cold]
fn join_lines(headers: &mut HeaderMap, name: HeaderName, policy: &Policy) {
    // What is no item of this draft comes from elsewhere, and would make the list unreadable.
    let mut items: Vec<&[u8]> = members(headers, &name).filter(|item| item.starts_with(b"\"")).collect();
    if let Some((own, told)) = items.split_last() {
        match told.iter().any(|item| policy.is_named_in(item)) {
            // Who charged the same budget later knows better how it stands.
            true => items = told.to_vec(),
            // The outermost policy first, as requests meet them.
            false => items = [&[*own][..], told].concat(),
        }
    }
    // Items joined by a comma are a value.
    if let Ok(list) = HeaderValue::try_from(items.join(&b", "[..])) {
        headers.insert(name, list);
    }
}

/// Returns what an inner layer has written: what remains, and its reset.
fn told(headers: &HeaderMap, dialect: RateLimitHeaders) -> Option<(u64, u64)> {
    let number = |name| headers.get(name)?.to_str().ok()?.parse().ok();
    let (remaining, reset) = match dialect {
        RateLimitHeaders::Draft07 => {
            let value = headers.get(RATELIMIT)?.to_str().ok()?;
            let member = |key| value.split(", ").find_map(|member| member.strip_prefix(key))?.parse().ok();
            (member("remaining="), member("reset="))
        }
        RateLimitHeaders::XEpoch | RateLimitHeaders::XDelta => (number(&X_TRIPLE[1]), number(&X_TRIPLE[2])),
        _ => (number(&TRIPLE[1]), number(&TRIPLE[2])),
    };
    Some((remaining?, reset.unwrap_or(0)))
}

fn write_single(headers: &mut HeaderMap, dialect: RateLimitHeaders, quota: Quota, remaining: u32, reset: u64) {
    let (limit, window) = (quota.burst(), secs_up(quota.span_ns()));
    let text = |text: String| HeaderValue::try_from(text).ok();
    let fields = match dialect {
        RateLimitHeaders::Draft07 => vec![
            (RATELIMIT, text(format!("limit={limit}, remaining={remaining}, reset={reset}"))),
            (RATELIMIT_POLICY, text(format!("{limit};w={window}"))),
        ],
        _ => {
            let [limit_name, remaining_name, reset_name] = match dialect {
                RateLimitHeaders::XEpoch | RateLimitHeaders::XDelta => X_TRIPLE,
                _ => TRIPLE,
            };
            let limit_value = match dialect {
                RateLimitHeaders::Draft03 => text(format!("{limit}, {limit};w={window}")),
                _ => Some(number(limit.into())),
            };
            let mut fields = vec![
                (limit_name, limit_value),
                (remaining_name, Some(number(remaining.into()))),
                (reset_name, Some(number(reset))),
            ];
            if dialect == RateLimitHeaders::Draft06 {
                fields.push((RATELIMIT_POLICY, text(format!("{limit};w={window}"))));
            }
            fields
        }
    };
    for (name, value) in fields {
        if let Some(value) = value {
            headers.insert(name, value);
        }
    }
}

/// A number as a field value, in one allocation; `HeaderValue::from` needs two.
pub(crate) fn number(number: u64) -> HeaderValue {
    HeaderValue::from_str(itoa::Buffer::new().format(number)).unwrap_or_else(|_| number.into())
}

/// The `RateLimit` item of one policy's decision.
fn draft_10_item(decision: &Decision) -> Option<HeaderValue> {
    let policy = decision.policy()?;
    match policy.item(decision) {
        Some(item) => Some(item.clone()),
        None => draft_10_state(policy.prefix(), decision),
    }
}

/// `"name";r=19;t=1`, in one allocation and without `fmt`: this is written into every answer.
fn draft_10_state(prefix: &[u8], decision: &Decision) -> Option<HeaderValue> {
    // A name of 64 characters, all escaped, with the words and numbers around it, is shorter than this.
    let mut buffer = [0; 192];
    let mut digits = itoa::Buffer::new();
    let mut at = 0;
    let mut put = |bytes: &[u8]| -> Option<()> {
        buffer.get_mut(at..at + bytes.len())?.copy_from_slice(bytes);
        at += bytes.len();
        Some(())
    };
    put(prefix)?;
    put(digits.format(decision.remaining()).as_bytes())?;
    put(b";t=")?;
    put(digits.format(decision.more_in_s()).as_bytes())?;
    match decision.partition_key() {
        None => HeaderValue::from_bytes(&buffer[..at]).ok(),
        Some(key) => {
            let mut item = buffer[..at].to_vec();
            // RFC 9651, section 4.1.8: a byte sequence is base64 with padding.
            item.extend_from_slice(format!(";pk=:{}:", BASE64_STANDARD.encode(key)).as_bytes());
            HeaderValue::try_from(item).ok()
        }
    }
}
