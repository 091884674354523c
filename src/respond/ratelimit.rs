//! [`RateLimitHeaders`]: the headers that advertise rate limits, rendered from a [`Decision`].

use std::cmp::Reverse;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};

use crate::list::members;
use crate::quota::Quota;
use crate::quota::clock::secs_up;
use crate::quota::decision::Decision;
use crate::quota::policy::Policy;
use crate::rejection::Rejection;

/// The format of the rate limit headers of a gate.
///
/// The drafts use the same header names with different syntaxes, so that a gate uses one format. All times are in whole seconds,
/// rounded up. `Retry-After` on a 429 is the same in all formats: the time until the same request is admitted.
///
/// # Reset
///
/// The older formats have one time, `reset`:
///
/// | response | `reset` is the time until |
/// |---|---|
/// | 429 | the same request is admitted, as in `Retry-After` |
/// | any other with `remaining` 0 | one more unit is available |
/// | any other | the whole limit is available |
///
/// A client that waits for `reset` is admitted then, and not a second earlier. The bucket is refilled continuously: after this
/// time it holds one unit, or the cost of the rejected request, and not the whole limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RateLimitHeaders {
    /// draft-ietf-httpapi-ratelimit-headers-11: `RateLimit: "default";r=19;t=1` and `RateLimit-Policy: "default";q=20;w=7`.
    ///
    /// All policies are listed.
    ///
    /// - `q` is the burst, and `w` the time in which an empty bucket is refilled.
    /// - `r` is the available quota: the number of units that can be used now.
    /// - `t` is the effective window: a client should use no more than `r` units within `t` seconds. It is the time until one
    ///   more unit is available. Until then exactly `r` units are admitted. It is not the time until the bucket is full.
    /// - On a 429, `r` is 0, and `t` is the time until the same request is admitted, as in `Retry-After`. Clients prefer
    ///   `Retry-After`.
    ///
    /// *Proxies* should not change the fields to a more permissive limit, nor remove them. *Caches*: clients ignore the fields of
    /// a cached response, which has a positive `Age`. *Trailers* never contain the fields. Clients ignore malformed fields.
    #[default]
    Draft11,
    /// draft-07: `RateLimit: limit=20, remaining=19, reset=1` and `RateLimit-Policy: 20;w=7`.
    ///
    /// `reset` is a number of seconds, see [Reset](Self#reset).
    Draft07,
    /// draft-05 and -06: `RateLimit-Limit: 20`, `RateLimit-Remaining`, `RateLimit-Reset`, `RateLimit-Policy: 20;w=7`.
    ///
    /// `RateLimit-Reset` is a number of seconds, see [Reset](Self#reset).
    Draft06,
    /// draft-03: `RateLimit-Limit: 20, 20;w=7`, `RateLimit-Remaining`, `RateLimit-Reset`.
    ///
    /// `RateLimit-Reset` is a number of seconds, see [Reset](Self#reset).
    Draft03,
    /// `X-RateLimit-Limit`, `-Remaining` and `-Reset`, as GitHub sends them.
    ///
    /// `X-RateLimit-Reset` is a Unix time in seconds, by the clock of the server, see [Reset](Self#reset). On a 429 it is at
    /// most one second later than `Retry-After`.
    XEpoch,
    /// `X-RateLimit-Limit`, `-Remaining` and `-Reset`.
    ///
    /// `X-RateLimit-Reset` is a number of seconds, see [Reset](Self#reset).
    XDelta,
    /// No rate limit headers. `Retry-After` is still sent.
    Off,
}

#[allow(non_upper_case_globals, reason = "named like the variants")]
impl RateLimitHeaders {
    /// draft-ietf-httpapi-ratelimit-headers-10: the same bytes as [`Draft11`](Self::Draft11).
    pub const Draft10: Self = Self::Draft11;
}

pub(super) const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");
pub(super) const RATELIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The names for limit, remaining and reset.
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

/// The rate limit headers of one response. A small type, because every request moves it several times.
#[derive(Debug)]
pub(crate) enum LimitHeaders {
    /// One policy, which is rendered when it is written. For formats with one policy, it is the strictest of several.
    ///
    /// `secs` is `t` in draft-11, and `reset` in the other formats.
    One { policy: Policy, format: RateLimitHeaders, remaining: u32, secs: u64 },
    /// List items of several policies, or with a partition key.
    Items(Vec<(Policy, HeaderValue)>),
}

/// Returns the headers of a decision, if it has any. `now` is called only by formats with a time of day.
#[inline(always)]
pub(crate) fn limit_headers(
    format: RateLimitHeaders,
    decision: &Decision,
    now: impl FnOnce() -> SystemTime,
) -> Option<LimitHeaders> {
    let policy = decision.policy()?;
    // Clients do not see dry runs.
    if decision.is_dry_run() {
        return None;
    }
    let secs = match format {
        RateLimitHeaders::Off => return None,
        RateLimitHeaders::Draft11 if decision.is_of_several() || decision.partition_key().is_some() => {
            return Some(limit_items(decision));
        }
        RateLimitHeaders::Draft11 => decision.more_in_s(),
        RateLimitHeaders::XEpoch => {
            let now_ns = now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos());
            (now_ns + u128::from(decision.reset_in_ns())).div_ceil(1_000_000_000) as u64
        }
        RateLimitHeaders::XDelta
        | RateLimitHeaders::Draft07
        | RateLimitHeaders::Draft06
        | RateLimitHeaders::Draft03 => secs_up(decision.reset_in_ns()),
    };
    Some(LimitHeaders::One { policy: policy.clone(), format, remaining: decision.remaining(), secs })
}

/// Renders the list items of a decision.
#[cold]
fn limit_items(decision: &Decision) -> LimitHeaders {
    let listed = decision.parts().filter(|part| !part.is_dry_run());
    LimitHeaders::Items(listed.filter_map(|part| Some((part.policy()?.clone(), limit_item(part)?))).collect())
}

impl LimitHeaders {
    /// Writes the headers into a response of the inner service. `now` is called only by formats with a time of day.
    #[inline]
    pub(crate) fn write_response<B>(&self, response: &mut Response<B>, now: impl FnOnce() -> SystemTime) {
        if response.status() == StatusCode::TOO_MANY_REQUESTS {
            self.write_rejection(response, now);
        }
        self.write(response.headers_mut());
    }

    /// Writes the headers of a rejection that the handler has written. It was decided later than the gate's charge.
    #[cold]
    fn write_rejection<B>(&self, response: &mut Response<B>, now: impl FnOnce() -> SystemTime) {
        let format = match self {
            Self::One { format, .. } => *format,
            Self::Items(_) => RateLimitHeaders::Draft11,
        };
        let decision = response.extensions().get::<Rejection>().and_then(Rejection::decision);
        let rejected = decision.and_then(|decision| limit_headers(format, decision, now));
        // The layer of a route, and `AuthLayer::reject`, have written them already. Items of draft-11 are joined by name.
        let is_written = read_single(response.headers(), format).is_some();
        if let Some(rejected) = rejected.filter(|_| !is_written) {
            rejected.write(response.headers_mut());
        }
    }

    /// Writes the headers into a response. An inner layer may have written headers of its own policy.
    #[inline]
    pub(crate) fn write(&self, headers: &mut HeaderMap) {
        match *self {
            Self::One { ref policy, format: RateLimitHeaders::Draft11, remaining, secs } => {
                if let Some(item) = item(policy, remaining, secs) {
                    join(headers, policy, policy.advert().clone(), item);
                }
            }
            Self::One { ref policy, format, remaining, secs } => {
                // The stricter policy wins: less remains, or as much remains and the reset is later.
                let own = (remaining.into(), Reverse(secs));
                if read_single(headers, format).is_none_or(|(remaining, reset)| own < (remaining, Reverse(reset))) {
                    write_single(headers, format, policy.quota(), remaining, secs);
                }
            }
            Self::Items(ref items) => write_list(headers, items),
        }
    }
}

/// Writes the items of several policies, before those of inner layers.
fn write_list(headers: &mut HeaderMap, items: &[(Policy, HeaderValue)]) {
    if headers.contains_key(RATELIMIT) || headers.contains_key(RATELIMIT_POLICY) {
        for (policy, state) in items.iter().rev() {
            join(headers, policy, policy.advert().clone(), state.clone());
        }
        return;
    }
    // Valid items, joined by a comma, are a valid value.
    let joined = |items: Vec<&[u8]>| HeaderValue::try_from(items.join(&b", "[..])).ok();
    let adverts = joined(items.iter().map(|(policy, _)| policy.advert().as_bytes()).collect());
    let states = joined(items.iter().map(|(_, state)| state.as_bytes()).collect());
    if let (Some(adverts), Some(states)) = (adverts, states) {
        headers.insert(RATELIMIT_POLICY, adverts);
        headers.insert(RATELIMIT, states);
    }
}

/// Adds the items of a policy to both lists. All items stay in one field line, because many clients read only one.
#[inline]
fn join(headers: &mut HeaderMap, policy: &Policy, advert: HeaderValue, state: HeaderValue) {
    // Usually the response does not have the fields: one lookup is enough.
    if headers.append(RATELIMIT_POLICY, advert) {
        join_lines(headers, RATELIMIT_POLICY, policy);
    }
    if headers.append(RATELIMIT, state) {
        join_lines(headers, RATELIMIT, policy);
    }
}

/// Joins the item that was added last with those of inner layers or the handler, into one line.
#[cold]
fn join_lines(headers: &mut HeaderMap, name: HeaderName, policy: &Policy) {
    // Drop anything that is not an item of this draft: it would make the list invalid.
    let mut items: Vec<&[u8]> = members(headers, &name).filter(|item| item.starts_with(b"\"")).collect();
    if let Some((own, listed)) = items.split_last() {
        match listed.iter().any(|item| policy.is_named_in(item)) {
            // The inner layer charged the same bucket later, so that its state is newer.
            true => items = listed.to_vec(),
            // The outermost policy first, in the order in which a request is checked.
            false => items = [&[*own][..], listed].concat(),
        }
    }
    // Valid items, joined by a comma, are a valid value.
    if let Ok(list) = HeaderValue::try_from(items.join(&b", "[..])) {
        headers.insert(name, list);
    }
}

/// Returns the remaining units and the reset that an inner layer has written.
fn read_single(headers: &HeaderMap, format: RateLimitHeaders) -> Option<(u64, u64)> {
    let number = |name| headers.get(name)?.to_str().ok()?.parse().ok();
    let (remaining, reset) = match format {
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

fn write_single(headers: &mut HeaderMap, format: RateLimitHeaders, quota: Quota, remaining: u32, reset: u64) {
    let (limit, window) = (quota.burst(), secs_up(quota.span_ns()));
    let text = |text: String| HeaderValue::try_from(text).ok();
    let fields = match format {
        RateLimitHeaders::Draft07 => vec![
            (RATELIMIT, text(format!("limit={limit}, remaining={remaining}, reset={reset}"))),
            (RATELIMIT_POLICY, text(format!("{limit};w={window}"))),
        ],
        _ => {
            let [limit_name, remaining_name, reset_name] = match format {
                RateLimitHeaders::XEpoch | RateLimitHeaders::XDelta => X_TRIPLE,
                _ => TRIPLE,
            };
            let limit_value = match format {
                RateLimitHeaders::Draft03 => text(format!("{limit}, {limit};w={window}")),
                _ => Some(number(limit.into())),
            };
            let mut fields = vec![
                (limit_name, limit_value),
                (remaining_name, Some(number(remaining.into()))),
                (reset_name, Some(number(reset))),
            ];
            if format == RateLimitHeaders::Draft06 {
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

/// Returns a number as a field value. A number below 100, as most waits are, needs no allocation, another one needs one.
/// `HeaderValue::from` needs two.
pub(crate) fn number(number: u64) -> HeaderValue {
    match usize::try_from(number) {
        Ok(number @ 0..10) => HeaderValue::from_static(&BELOW_100[2 * number + 1..2 * number + 2]),
        Ok(number @ 10..100) => HeaderValue::from_static(&BELOW_100[2 * number..2 * number + 2]),
        _ => HeaderValue::from_str(itoa::Buffer::new().format(number)).unwrap_or_else(|_| number.into()),
    }
}

/// The numbers below 100, with two digits each.
const BELOW_100: &str = "\
    0001020304050607080910111213141516171819\
    2021222324252627282930313233343536373839\
    4041424344454647484950515253545556575859\
    6061626364656667686970717273747576777879\
    8081828384858687888990919293949596979899";

/// Returns the `RateLimit` item of a policy.
#[inline]
fn item(policy: &Policy, remaining: u32, more_in_s: u64) -> Option<HeaderValue> {
    match policy.item(remaining, more_in_s) {
        Some(item) => Some(item.clone()),
        None => render(policy.prefix(), remaining, more_in_s, None),
    }
}

/// Renders `"name";r=19;t=1` with one allocation and without `fmt`, because many responses have it.
fn render(prefix: &[u8], remaining: u32, more_in_s: u64, partition_key: Option<&[u8]>) -> Option<HeaderValue> {
    // Enough for a name of 64 characters, all escaped, with keys and numbers.
    let mut buffer = [0; 192];
    let mut digits = itoa::Buffer::new();
    let mut at = 0;
    let mut put = |bytes: &[u8]| -> Option<()> {
        buffer.get_mut(at..at + bytes.len())?.copy_from_slice(bytes);
        at += bytes.len();
        Some(())
    };
    put(prefix)?;
    put(digits.format(remaining).as_bytes())?;
    put(b";t=")?;
    put(digits.format(more_in_s).as_bytes())?;
    match partition_key {
        None => HeaderValue::from_bytes(&buffer[..at]).ok(),
        Some(key) => {
            let mut item = buffer[..at].to_vec();
            // A byte sequence is base64 with padding (RFC 9651, section 4.1.8).
            item.extend_from_slice(format!(";pk=:{}:", BASE64_STANDARD.encode(key)).as_bytes());
            HeaderValue::try_from(item).ok()
        }
    }
}

/// Returns the `RateLimit` item of the decision of one policy.
fn limit_item(decision: &Decision) -> Option<HeaderValue> {
    let (policy, remaining, more_in_s) = (decision.policy()?, decision.remaining(), decision.more_in_s());
    match decision.partition_key() {
        None => item(policy, remaining, more_in_s),
        key => render(policy.prefix(), remaining, more_in_s, key),
    }
}
