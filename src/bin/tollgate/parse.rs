//! The parsers of arguments. Their errors must not contain the parsed text, which may be a secret.

use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use serde_json::value::RawValue;
use tollgate::mint::{FormatError, TokenFormat};
use tollgate::store::sql::Cursor;
use tollgate::{Quota, QuotaError, Scopes};

use crate::failure::Failure;
use crate::run::before;
use crate::show;

/// The environment variable with the default prefix.
pub(crate) const PREFIX: &str = "TOLLGATE_PREFIX";
pub(crate) const DEFAULT_PREFIX: &str = "tg";

pub(crate) fn quota(text: &str) -> Result<Quota, QuotaError> {
    text.parse()
}

/// Returns the scopes of an option that can be repeated. Separators are valid characters of scopes, and a mistake here.
pub(crate) fn scopes(scopes: &[String]) -> Result<Scopes, Failure> {
    if scopes.iter().any(|scope| scope.contains([' ', ',', ';'])) {
        let text = "invalid scope: must have no spaces, commas and semicolons; repeat the option, such as `--scope`, for each scope";
        return Err(Failure::Usage(text.to_owned()));
    }
    Ok(Scopes::new(scopes)?)
}

/// Parses an id or a subject. Spaces at its ends are mistakes of copying.
pub(crate) fn name(text: &str) -> Result<String, &'static str> {
    match text.trim() == text {
        true => Ok(text.to_owned()),
        false => Err("must not begin or end with a space"),
    }
}

/// Parses JSON. Keeps its text, so that no digit of a number is lost.
pub(crate) fn principal(text: &str) -> Result<Box<RawValue>, &'static str> {
    // Raw JSON may have escapes and numbers that a service cannot read.
    let checked = serde_json::from_str::<Value>(text).and_then(|_| serde_json::from_str(text));
    checked.map_err(|_| "must be JSON")
}

/// The numbers of random bits that [`TokenFormat::with_random_bits`] accepts.
pub(crate) const RANDOM_BITS: RangeInclusive<u32> = 128..=512;

/// Parses the number of random bits of a token.
pub(crate) fn random_bits(text: &str) -> Result<u32, &'static str> {
    text.parse().ok().filter(|bits| RANDOM_BITS.contains(bits)).ok_or("must be a number from 128 to 512")
}

pub(crate) fn number(text: &str) -> Result<NonZeroU32, &'static str> {
    text.parse().map_err(|_| "must be a number from 1 to 4294967295")
}

pub(crate) fn cursor(text: &str) -> Result<Cursor, &'static str> {
    text.parse().map_err(|_| "must be the cursor of a page")
}

/// Parses a duration from now. The end must be before the year 10000, because RFC 3339 has four-digit years.
pub(crate) fn time(text: &str) -> Result<Duration, &'static str> {
    const TOO_LONG: &str = "must end before the year 10000";
    let time = match humantime::parse_duration(text) {
        Ok(time) => time,
        Err(humantime::DurationError::NumberOverflow) => return Err(TOO_LONG),
        Err(_) => return Err("must be a number with a unit, such as 90d, 12h, 30m or 0s"),
    };
    match SystemTime::now().checked_add(time) {
        Some(end) if end <= show::last_date() => Ok(time),
        _ => Err(TOO_LONG),
    }
}

/// Parses a time of a grant: a duration from now, a date, or a time of RFC 3339 such as `2030-01-31T12:00:00Z`.
pub(crate) fn moment(text: &str) -> Result<SystemTime, &'static str> {
    match is_date(text) {
        true => date(text),
        false => Ok(SystemTime::now() + time(text)?),
    }
}

/// Parses a time in the past: a duration before now, a date, or a time of RFC 3339.
pub(crate) fn past(text: &str) -> Result<SystemTime, &'static str> {
    match is_date(text) {
        true => date(text),
        false => Ok(before(age(text)?)),
    }
}

fn is_date(text: &str) -> bool {
    text.as_bytes().get(4) == Some(&b'-')
}

fn date(text: &str) -> Result<SystemTime, &'static str> {
    let midnight = if text.len() == 10 { "T00:00:00Z" } else { "" };
    let time = humantime::parse_rfc3339(&format!("{text}{midnight}"));
    let time = time.map_err(|_| "must be a date in UTC, such as 2030-01-31 or 2030-01-31T12:00:00Z")?;
    if time < SystemTime::UNIX_EPOCH { Err("must be after the year 1969") } else { Ok(time) }
}

/// Parses the expiry of a grant. The tables store milliseconds.
pub(crate) fn expiry(text: &str) -> Result<SystemTime, &'static str> {
    if is_date(text) {
        return date(text).and_then(|end| if end > SystemTime::now() { Ok(end) } else { Err("must be in the future") });
    }
    match time(text)? {
        time if time < Duration::from_millis(1) => Err("must be at least 1ms"),
        time => Ok(SystemTime::now() + time),
    }
}

/// Parses a duration before now.
pub(crate) fn age(text: &str) -> Result<Duration, &'static str> {
    let age = time(text)?;
    match SystemTime::now().checked_sub(age) {
        Some(begin) if begin >= SystemTime::UNIX_EPOCH => Ok(age),
        _ => Err("must begin after the year 1969"),
    }
}

pub(crate) fn format(prefix: &str) -> Result<TokenFormat, FormatError> {
    TokenFormat::new(prefix)
}

/// Returns the format for tokens without a known prefix.
pub(crate) fn default_format() -> Result<TokenFormat, FormatError> {
    format(&std::env::var(PREFIX).unwrap_or_else(|_| DEFAULT_PREFIX.to_owned()))
}
