//! The limit that an alert sets itself: `rate_limit` alerts of one `id`. Further alerts are not carried out.
//!
//! It is a safety limit for strategies that repaint or repeat, so it is exact, where a rate limit may be approximate. This
//! file uses the standard library only and gets the time as an argument.
//!
//! # Rules
//!
//! 1. `N` is N alerts in 60 seconds, `N/S` is N in S seconds; 1 to 1000 and 1 to 86,400, in ASCII digits. Anything else
//!    is [`Invalid`]: a safety limit must not be dropped silently. A limit without an `id` is invalid too; an `id` alone
//!    sets no limit.
//! 2. In any S seconds at most N alerts are accepted. (A leaky bucket of that size admits up to 2N - 1: the burst, and the
//!    refill.) An alert leaves the window exactly S seconds after it came.
//! 3. Only accepted alerts count. Otherwise a client that repeats itself would never recover.
//! 4. Ids belong to their subject, which has at most [`MAX_IDS`] of them.
//! 5. Alerts of one id may differ in their limits. Accepted alerts are kept for the largest window of the id so far; a larger
//!    window counts those that are left. Expired ids are removed at an alert, at most once a minute.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The maximum length of an id in bytes.
pub(crate) const MAX_ID_LEN: usize = 128;
/// The maximum number of alerts that a limit can allow in its window.
const MAX_COUNT: usize = 1_000;
/// The minimum interval at which expired ids are removed.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// The maximum number of ids of one subject.
pub(crate) const MAX_IDS: usize = 1_000;

/// At most `count` alerts in `window_s` seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SelfLimit {
    pub(crate) count: u32,
    pub(crate) window_s: u32,
}

/// Why a self-limit is invalid: status 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Invalid {
    RateLimit,
    IdMissing,
    IdTooLong,
}

impl Invalid {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::RateLimit => "`rate_limit` is N or N/S, with N from 1 to 1000 and S from 1 to 86400 seconds.",
            Self::IdMissing => "`rate_limit` needs an `id` whose alerts it counts.",
            Self::IdTooLong => "`id` has at most 128 bytes.",
        }
    }
}

/// Parses the limit in the fields `rate_limit` and `id` of an alert, if it sets one.
pub(crate) fn parse(rate_limit: Option<&[u8]>, id: Option<&[u8]>) -> Result<Option<SelfLimit>, Invalid> {
    let Some(rate_limit) = rate_limit else { return Ok(None) };
    let rate_limit = trim(rate_limit);
    let (count, window_s) = match rate_limit.iter().position(|&byte| byte == b'/') {
        Some(slash) => (&rate_limit[..slash], number(&rate_limit[slash + 1..], 86_400)),
        None => (rate_limit, Some(60)),
    };
    let (Some(count), Some(window_s)) = (number(count, MAX_COUNT as u32), window_s) else {
        return Err(Invalid::RateLimit);
    };
    match trim(id.unwrap_or_default()).len() {
        0 => Err(Invalid::IdMissing),
        1..=MAX_ID_LEN => Ok(Some(SelfLimit { count, window_s })),
        _ => Err(Invalid::IdTooLong),
    }
}

/// Parses a number from 1 to `max`, of ASCII digits only.
fn number(digits: &[u8], max: u32) -> Option<u32> {
    let number = digits.iter().try_fold(0_u32, |number, &digit| {
        let digit = digit.is_ascii_digit().then(|| u32::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })?;
    // The empty text is 0.
    (1..=max).contains(&number).then_some(number)
}

/// Removes the white space that alerts may have around values.
fn trim(bytes: &[u8]) -> &[u8] {
    let is_space = |byte: &u8| b" \t\r\n".contains(byte);
    let begin = bytes.iter().take_while(|byte| is_space(byte)).count();
    let end = bytes.iter().rposition(|byte| !is_space(byte)).map_or(begin, |last| last + 1);
    &bytes[begin..end]
}

/// The accepted alerts, by subject and id.
#[derive(Debug, Default)]
pub(crate) struct SelfLimits(Mutex<Subjects>);

#[derive(Debug, Default)]
struct Subjects {
    ids: HashMap<Box<[u8]>, Ids>,
    sweep_at: Duration,
}

type Ids = HashMap<Box<[u8]>, Log>;

/// When the last alerts of one id were accepted, oldest first.
#[derive(Debug, Default)]
struct Log {
    accepted: VecDeque<Duration>,
    /// The largest window of the id so far.
    max_window: Duration,
}

/// Why an alert was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denied<E> {
    /// The self-limit is reached for this duration.
    OverLimit(Duration),
    /// The subject has the maximum number of ids for this duration.
    TooManyIds(Duration),
    /// `accept` has returned this error. Nothing was counted.
    NotAccepted(E),
}

impl SelfLimits {
    /// Runs `accept` unless the limit is reached, and counts the alert if that returns `Ok`.
    ///
    /// Other alerts wait meanwhile, so that an alert that is not accepted in the end rejects no other. `accept` must not
    /// block. `now` is the time since any fixed moment.
    pub(crate) fn admit<T, E>(
        &self,
        (subject, id): (&[u8], &[u8]),
        limit: SelfLimit,
        now: Duration,
        accept: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, Denied<E>> {
        let mut subjects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        subjects.sweep(now);
        let ids = subjects.ids.entry(subject.into()).or_default();
        if !ids.contains_key(id) && ids.len() >= MAX_IDS {
            ids.retain(|_, log| !log.is_over(now));
            if ids.len() >= MAX_IDS {
                return Err(Denied::TooManyIds(ids.values().map(|log| log.wait(now)).min().unwrap_or_default()));
            }
        }
        if let Some(log) = ids.get_mut(id) {
            log.check(limit, now).map_err(Denied::OverLimit)?;
        }
        let done = accept().map_err(Denied::NotAccepted)?;
        ids.entry(id.into()).or_default().record(limit, now);
        Ok(done)
    }

    /// Returns the number of ids.
    #[cfg(test)]
    pub(crate) fn ids(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).ids.values().map(Ids::len).sum()
    }
}

impl Subjects {
    /// Removes expired ids, if that is due.
    fn sweep(&mut self, now: Duration) {
        if now < self.sweep_at {
            return;
        }
        self.sweep_at = now + SWEEP_EVERY;
        self.ids.retain(|_, ids| {
            ids.retain(|_, log| !log.is_over(now));
            !ids.is_empty()
        });
    }
}

impl Log {
    /// Checks that one more alert fits. The error is how long to wait until it does.
    fn check(&mut self, limit: SelfLimit, now: Duration) -> Result<(), Duration> {
        if self.is_over(now) {
            *self = Self::default();
        }
        let (count, window) = (limit.count as usize, self.widen(limit));
        // If the count-th last alert has left the window, fewer than `count` are in it.
        let Some(nth_last) = self.accepted.len().checked_sub(count) else { return Ok(()) };
        match (self.accepted[nth_last] + window).checked_sub(now) {
            None | Some(Duration::ZERO) => Ok(()),
            Some(wait) => Err(wait),
        }
    }

    fn record(&mut self, limit: SelfLimit, now: Duration) {
        self.widen(limit);
        // A caller that waited for the lock may have an earlier time. Keep the order, so that the last is the latest.
        let latest = self.accepted.back().map_or(now, |&last| last.max(now));
        self.accepted.push_back(latest);
        // Remove alerts that no window can contain any more.
        let is_gone = |&first: &Duration| first + self.max_window <= now;
        while self.accepted.len() > MAX_COUNT || self.accepted.front().is_some_and(is_gone) {
            self.accepted.pop_front();
        }
    }

    fn widen(&mut self, limit: SelfLimit) -> Duration {
        let window = Duration::from_secs(limit.window_s.into());
        self.max_window = self.max_window.max(window);
        window
    }

    /// Returns how long until the id can be removed.
    fn wait(&self, now: Duration) -> Duration {
        self.accepted.back().map_or(Duration::ZERO, |&last| (last + self.max_window).saturating_sub(now))
    }

    fn is_over(&self, now: Duration) -> bool {
        self.wait(now).is_zero()
    }
}
