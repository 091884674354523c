//! The text format of quotas, such as `180/min burst 20`, for `FromStr`, `Display`, serde and the command line.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::quota::{Quota, QuotaError};

/// The time unit in which a quota was written. `Display` uses it; `==` ignores it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Unit {
    None,
    Second,
    Minute,
    Hour,
    Day,
}

impl Unit {
    pub(super) const fn of(period: Duration) -> Self {
        match (period.as_secs(), period.subsec_nanos()) {
            (1, 0) => Self::Second,
            (60, 0) => Self::Minute,
            (3_600, 0) => Self::Hour,
            (86_400, 0) => Self::Day,
            _ => Self::None,
        }
    }
}

/// Time units in nanoseconds with their names, longest unit first. `Display` prints the first name.
const PERIODS: [(u64, &[&str]); 7] = [
    (86_400_000_000_000, &["day", "d"]),
    (3_600_000_000_000, &["h", "hour"]),
    (60_000_000_000, &["min", "m", "minute"]),
    (1_000_000_000, &["s", "sec", "second"]),
    (1_000_000, &["ms"]),
    (1_000, &["us"]),
    (1, &["ns"]),
];

/// Parses a number of units per period and an optional burst, such as `180/min burst 20`, `3/s` or `1/90s`.
///
/// # ABNF
///
/// ```text
/// quota  = number "/" period [ 1*SP "burst" 1*SP number ]
/// period = [ number ] unit
/// unit   = "day" / "d" / "h" / "hour" / "min" / "m" / "minute" / "s" / "sec" / "second" / "ms" / "us" / "ns"
/// number = 1*DIGIT
/// ```
///
/// The default burst is the first number. Spaces around the text and around `/` are ignored. Time units are lower-case.
///
/// ```
/// use std::time::Duration;
/// use tollgate::{Quota, QuotaError};
///
/// assert_eq!("180/min burst 20".parse(), Ok(Quota::per_minute(180).with_burst(20)));
/// assert_eq!("3/s".parse(), Ok(Quota::per_second(3)));
/// assert_eq!("1/90s".parse(), Ok(Quota::one_per(Duration::from_secs(90))));
/// assert_eq!("180".parse::<Quota>(), Err(QuotaError::Syntax));
/// ```
impl FromStr for Quota {
    type Err = QuotaError;

    fn from_str(text: &str) -> Result<Self, QuotaError> {
        let mut words = text.split_ascii_whitespace().rev().peekable();
        let last = words.next().ok_or(QuotaError::Syntax)?;
        if words.next() != Some("burst") {
            return rate(text);
        }
        let before: Vec<&str> = words.rev().collect();
        rate(&before.join(" "))?.try_with_burst(number(last)?)
    }
}

fn rate(text: &str) -> Result<Quota, QuotaError> {
    let (n, period) = text.split_once('/').ok_or(QuotaError::Syntax)?;
    let period = period.trim_ascii();
    let (count, unit) = period.split_at(period.bytes().take_while(u8::is_ascii_digit).count());
    let (unit_ns, _) = PERIODS.iter().find(|(_, names)| names.contains(&unit)).ok_or(QuotaError::Syntax)?;
    let count = if count.is_empty() { 1 } else { count.parse::<u64>().map_err(|_| QuotaError::TooLong)? };
    let period_ns = count.checked_mul(*unit_ns).ok_or(QuotaError::TooLong)?;
    Quota::try_per(number(n.trim_ascii())?, Duration::from_nanos(period_ns))
}

/// Parses digits. `u32::from_str` would also accept a sign.
fn number(text: &str) -> Result<u32, QuotaError> {
    match text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse().map_err(|_| QuotaError::Syntax),
        false => Err(QuotaError::Syntax),
    }
}

/// Prints the quota in the time unit in which it was written. Parsing the text returns the same quota.
///
/// ```
/// use tollgate::Quota;
///
/// assert_eq!(Quota::per_minute(180).with_burst(20).to_string(), "180/min burst 20");
/// assert_eq!(Quota::per_second(10).to_string(), "10/s");
/// ```
impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (interval, burst) = (self.interval_ns(), self.burst());
        // The interval is rounded up, so several numbers per period can match. The burst is the most likely number.
        let in_period = |(period, names): &(u64, &'static [&'static str])| {
            let numbers = [burst, u32::try_from(period.div_ceil(interval)).ok()?];
            numbers.into_iter().find(|&n| period.div_ceil(n.into()) == interval).map(|n| (n, 1, names[0]))
        };
        let whole_seconds = interval % 1_000_000_000 == 0;
        let written = match self.unit {
            Unit::None => None,
            Unit::Day => in_period(&PERIODS[0]),
            Unit::Hour => in_period(&PERIODS[1]),
            Unit::Minute => in_period(&PERIODS[2]),
            Unit::Second => in_period(&PERIODS[3]),
        };
        let written = written.or_else(|| PERIODS[..4].iter().rev().filter(|_| !whole_seconds).find_map(in_period));
        let (n, count, unit) = written.unwrap_or_else(|| {
            let whole = PERIODS.iter().find(|(period, _)| interval % period == 0);
            whole.map_or((1, interval, "ns"), |(period, names)| (1, interval / period, names[0]))
        });
        match count {
            1 => write!(f, "{n}/{unit}")?,
            _ => write!(f, "{n}/{count}{unit}")?,
        }
        match burst == n {
            true => Ok(()),
            false => write!(f, " burst {burst}"),
        }
    }
}

#[cfg(feature = "serde")]
mod with_serde {
    use std::fmt;

    use serde::de::{Error, Visitor};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Quota;

    /// Writes the text of [`Display`](fmt::Display).
    impl Serialize for Quota {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.collect_str(self)
        }
    }

    /// Reads the text of [`FromStr`](std::str::FromStr).
    impl<'de> Deserialize<'de> for Quota {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Text;

            impl Visitor<'_> for Text {
                type Value = Quota;

                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("a quota such as \"180/min burst 20\"")
                }

                fn visit_str<E: Error>(self, text: &str) -> Result<Quota, E> {
                    text.parse().map_err(E::custom)
                }
            }

            deserializer.deserialize_str(Text)
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn display_prints_the_unit_of_the_parsed_text() {
        for text in ["180/min burst 20", "3/s burst 20", "5000/h", "10000/day burst 1", "1/90s burst 2", "7/day"] {
            assert_eq!(text.parse::<Quota>().unwrap().to_string(), text);
        }
        for (text, printed) in [
            (" 60 / minute  burst  60 ", "60/min"),
            ("2/2s", "1/s burst 2"),
            ("48/2d", "1/h burst 48"),
            ("1/60s", "1/min"),
        ] {
            assert_eq!(text.parse::<Quota>().unwrap().to_string(), printed, "{text}");
        }
    }

    #[test]
    fn invalid_text_is_an_error() {
        for (text, error) in [
            ("", QuotaError::Syntax),
            ("burst 3", QuotaError::Syntax),
            ("180", QuotaError::Syntax),
            ("180/", QuotaError::Syntax),
            ("/min", QuotaError::Syntax),
            ("-1/min", QuotaError::Syntax),
            ("+1/min", QuotaError::Syntax),
            ("1/Min", QuotaError::Syntax),
            ("1/min 3", QuotaError::Syntax),
            ("1/min burst", QuotaError::Syntax),
            ("1/min burst x", QuotaError::Syntax),
            ("1/min/s", QuotaError::Syntax),
            ("1 0/min", QuotaError::Syntax),
            ("4294967296/s", QuotaError::Syntax),
            ("0/s", QuotaError::Zero),
            ("1/s burst 0", QuotaError::Zero),
            ("1/0s", QuotaError::NoTime),
            ("1/99999999999999999999s", QuotaError::TooLong),
            ("1/99999999999d", QuotaError::TooLong),
            ("1/day burst 4294967295", QuotaError::TooLong),
        ] {
            assert_eq!(text.parse::<Quota>(), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_quota_round_trips(n in 1_u32.., period_ns in 1_u64..1 << 50, burst in 1_u32..1 << 10) {
            if let Ok(quota) = Quota::try_per(n, Duration::from_nanos(period_ns)).and_then(|q| q.try_with_burst(burst)) {
                prop_assert_eq!(quota.to_string().parse::<Quota>(), Ok(quota));
            }
        }

        #[test]
        fn display_prints_rates_per_unit_in_that_unit(n in 1_u32..100_000, at in 0_usize..4) {
            let (unit_ns, names) = PERIODS[at];
            let quota = Quota::try_per(n, Duration::from_nanos(unit_ns)).unwrap();
            prop_assert_eq!(quota.to_string(), format!("{n}/{}", names[0]));
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn serde_uses_the_text_format() {
        let quota = Quota::per_minute(180).with_burst(20);
        assert_eq!(serde_json::to_string(&quota).unwrap(), r#""180/min burst 20""#);
        assert_eq!(serde_json::from_str::<Quota>(r#""180/min burst 20""#).unwrap(), quota);
        let error = serde_json::from_str::<Quota>(r#""180""#).unwrap_err().to_string();
        assert!(error.contains("such as 180/min"), "{error}");
        assert!(serde_json::from_str::<Quota>("180").is_err());
    }
}
