//! [`retry_after`]: the time that a server asks its client to wait.

use std::time::{Duration, SystemTime};

use http::{HeaderMap, HeaderName, header};
use sfv::{List, ListEntry, Parser};

const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
const RATELIMIT: HeaderName = HeaderName::from_static("ratelimit");

/// Returns the time that a server asks its client to wait before the next attempt, or `None` if it names no time.
///
/// The first of these fields that has a valid value counts:
///
/// | field | meaning |
/// |---|---|
/// | `grpc-retry-pushback-ms` | milliseconds. A negative number, or no number, is "do not retry" (gRFC A6) |
/// | `Retry-After` | seconds, or an HTTP date (RFC 9110, section 10.2.3) |
/// | `RateLimit` | the longest `t` of the items with `r=0` (draft-ietf-httpapi-ratelimit-headers-11) |
///
/// A date is compared with the `Date` of the response, so that the clock of the client does not matter. Without `Date` it is
/// compared with `now`. A `RateLimit` field of a cached response, which has a positive `Age`, is ignored.
///
/// For gRPC, take the fields from the metadata of the `Status`.
///
/// ```
/// use std::time::{Duration, SystemTime};
/// use http::HeaderMap;
/// use tollgate::client::retry_after;
///
/// let mut headers = HeaderMap::new();
/// assert_eq!(retry_after(&headers, SystemTime::now()), None);
/// headers.insert("ratelimit", r#""minute";r=0;t=12, "day";r=40;t=3600"#.parse()?);
/// assert_eq!(retry_after(&headers, SystemTime::now()), Some(Duration::from_secs(12)));
/// headers.insert("retry-after", "7".parse()?);
/// assert_eq!(retry_after(&headers, SystemTime::now()), Some(Duration::from_secs(7)));
/// # Ok::<_, http::header::InvalidHeaderValue>(())
/// ```
#[must_use]
pub fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    if let Some(pushback) = headers.get(PUSHBACK) {
        return pushback.to_str().ok().and_then(number).map(Duration::from_millis);
    }
    // A server sends one value. Of several, the longest time is safe.
    let times = headers.get_all(header::RETRY_AFTER).iter().filter_map(|value| value.to_str().ok());
    let longest = times.filter_map(|text| delay(text.trim(), headers, now)).max();
    longest.or_else(|| exhausted(headers))
}

/// Reads a number of digits only. A number that is too large is the largest one.
fn number(text: &str) -> Option<u64> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| text.parse().unwrap_or(u64::MAX))
}

/// Reads a value of `Retry-After`. A time in the past is a wait of zero.
fn delay(text: &str, headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    if let Some(seconds) = number(text) {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    let sent = headers.get(header::DATE).and_then(|value| httpdate::parse_http_date(value.to_str().ok()?).ok());
    // `Date` drops the fraction of the second, so that the wait is too long and never too short.
    Some(date.duration_since(sent.unwrap_or(now)).unwrap_or_default())
}

/// Returns the longest time of exhausted policies.
fn exhausted(headers: &HeaderMap) -> Option<Duration> {
    if headers.get(header::AGE).is_some_and(|age| age != "0") {
        return None;
    }
    let lines: Option<Vec<&str>> = headers.get_all(RATELIMIT).iter().map(|line| line.to_str().ok()).collect();
    let list: List = Parser::new(&lines?.join(", ")).parse().ok()?;
    let seconds = list.iter().filter_map(|entry| {
        let ListEntry::Item(item) = entry else { return None };
        let parameter = |name| Some(i64::from(item.params.get(name)?.as_integer()?));
        let (remaining, seconds) = (parameter("r")?, parameter("t")?);
        (remaining == 0).then_some(u64::try_from(seconds).ok())?
    });
    seconds.max().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn wait_is_that_of_the_first_valid_field() {
        // Sun, 06 Nov 1994 08:49:37 GMT.
        let now = UNIX_EPOCH + Duration::from_secs(784_111_777);
        let seconds = |number| Some(Duration::from_secs(number));
        for (fields, expected) in [
            (&[][..], None),
            (&[("retry-after", "0")], seconds(0)),
            (&[("retry-after", " 120 ")], seconds(120)),
            (&[("retry-after", "99999999999999999999")], seconds(u64::MAX)),
            (&[("retry-after", "1"), ("retry-after", "3"), ("retry-after", "2")], seconds(3)),
            // The three forms of an HTTP date.
            (&[("retry-after", "Sun, 06 Nov 1994 08:49:40 GMT")], seconds(3)),
            (&[("retry-after", "Sunday, 06-Nov-94 08:49:40 GMT")], seconds(3)),
            (&[("retry-after", "Sun Nov  6 08:49:40 1994")], seconds(3)),
            (&[("retry-after", "Sun, 06 Nov 1994 08:49:30 GMT")], seconds(0)),
            // The clock of the server counts.
            (
                &[("retry-after", "Sun, 06 Nov 1994 09:49:40 GMT"), ("date", "Sun, 06 Nov 1994 09:49:39 GMT")],
                seconds(1),
            ),
            (&[("retry-after", "Sun, 06 Nov 1994 08:49:40 GMT"), ("date", "yesterday")], seconds(3)),
            // Malformed values are ignored.
            (&[("retry-after", "-1")], None),
            (&[("retry-after", "+1")], None),
            (&[("retry-after", "1.5")], None),
            (&[("retry-after", "")], None),
            (&[("retry-after", "soon"), ("ratelimit", "\"p\";r=0;t=4")], seconds(4)),
            (&[("retry-after", "2"), ("ratelimit", "\"p\";r=0;t=4")], seconds(2)),
            (&[("ratelimit", "\"p\";r=0;t=4, \"q\";r=0;t=9;pk=:YQ==:, \"s\";r=1;t=99")], seconds(9)),
            (&[("ratelimit", "\"p\";r=0;t=4"), ("ratelimit", "\"q\";r=0;t=9")], seconds(9)),
            (&[("ratelimit", "\"p\";r=1;t=4")], None),
            (&[("ratelimit", "\"p\";r=0")], None),
            (&[("ratelimit", "\"p\";r=0;t=-4")], None),
            (&[("ratelimit", "\"p\";r=0;t=4.0")], None),
            (&[("ratelimit", "\"p\";r=0;t=4, ;")], None),
            (&[("ratelimit", "limit=20, remaining=0, reset=4")], None),
            (&[("ratelimit", "\"p\";r=0;t=4"), ("age", "1")], None),
            (&[("ratelimit", "\"p\";r=0;t=4"), ("age", "0")], seconds(4)),
            (&[("grpc-retry-pushback-ms", "250"), ("retry-after", "1")], Some(Duration::from_millis(250))),
            (&[("grpc-retry-pushback-ms", "-1"), ("retry-after", "1")], None),
            (&[("grpc-retry-pushback-ms", "soon"), ("retry-after", "1")], None),
            (&[("grpc-retry-pushback-ms", "0"), ("retry-after", "1")], seconds(0)),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.append(*name, value.parse().unwrap());
            }
            assert_eq!(retry_after(&headers, now), expected, "{fields:?}");
        }
    }
}
