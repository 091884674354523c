//! The limit that an alert sets itself: `rate_limit` alerts of one `id`, and those beyond are not carried out.
//!
//! It is for strategies that repaint or repeat: a safety limit, and so exact, where a budget may be approximate. This
//! file needs nothing but the standard library and gets the time as an argument.
//!
//! # Rules
//!
//! 1. `N` is N alerts in 60 seconds, `N/S` is N in S seconds; 1 to 1000 and 1 to 86,400, in ASCII digits. Anything else
//!    is [`Invalid`]: a safety limit must not be dropped silently. So is one without an `id`; an `id` alone limits
//!    nothing.
//! 2. In any S seconds no more than N alerts are accepted. (A leaky bucket of that size admits up to 2N - 1: the burst,
//!    and what is refilled meanwhile.) An alert leaves the window exactly S seconds after it came.
//! 3. Only alerts that were accepted count, or else a sender that repeats itself would never recover.
//! 4. Ids belong to their subject. A subject has [`MAX_IDS`] of them at the most.
//! 5. Alerts of one id may differ in their limits. What was accepted is remembered for the largest window that the id was
//!    asked with so far; a larger one finds what is left. What is over is forgotten when the next alert comes, once a minute.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// The most bytes of an id.
pub(crate) const MAX_ID_LEN: usize = 128;
/// The most alerts that a limit can allow in its window.
const MAX_COUNT: usize = 1_000;
/// How often what is over is forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// The most ids of one subject that are remembered.
pub(crate) const MAX_IDS: usize = 1_000;

/// No more than `count` alerts in `window_s` seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SelfLimit {
    pub(crate) count: u32,
    pub(crate) window_s: u32,
}

/// Why a self-limit cannot be understood: status 400.
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

/// The limit in the fields `rate_limit` and `id` of an alert, if it sets one.
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

/// A number from 1 to `max`, of ASCII digits and nothing else.
fn number(digits: &[u8], max: u32) -> Option<u32> {
    let number = digits.iter().try_fold(0_u32, |number, &digit| {
        let digit = digit.is_ascii_digit().then(|| u32::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    })?;
    // No digit at all is 0.
    (1..=max).contains(&number).then_some(number)
}

/// Without the white space that alerts may have around values.
fn trim(bytes: &[u8]) -> &[u8] {
    let is_space = |byte: &u8| b" \t\r\n".contains(byte);
    let begin = bytes.iter().take_while(|byte| is_space(byte)).count();
    let end = bytes.iter().rposition(|byte| !is_space(byte)).map_or(begin, |last| last + 1);
    &bytes[begin..end]
}

/// The alerts that were accepted, by subject and id.
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
    /// The largest window that the id was asked with.
    max_window: Duration,
}

/// Why an alert was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Denied<E> {
    /// The self-limit is reached, until this much time has passed.
    OverLimit(Duration),
    /// The subject has as many ids as it may, until this much time has passed.
    TooManyIds(Duration),
    /// `accept` has said no. Nothing was counted.
    NotAccepted(E),
}

impl SelfLimits {
    /// Runs `accept` unless the limit is reached, and counts the alert if that returns `Ok`.
    ///
    /// Other alerts wait meanwhile, so that none is judged by one that is not accepted in the end: `accept` must not
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

    /// How many ids are remembered.
    #[cfg(test)]
    pub(crate) fn ids(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).ids.values().map(Ids::len).sum()
    }
}

impl Subjects {
    /// Forgets what is over, if that is due.
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
    /// Whether one more fits, or how long to wait until it does.
    fn check(&mut self, limit: SelfLimit, now: Duration) -> Result<(), Duration> {
        if self.is_over(now) {
            *self = Self::default();
        }
        let (count, window) = (limit.count as usize, self.widen(limit));
        // If the count-th last has left the window, fewer than that are in it.
        let Some(nth_last) = self.accepted.len().checked_sub(count) else { return Ok(()) };
        match (self.accepted[nth_last] + window).checked_sub(now) {
            None | Some(Duration::ZERO) => Ok(()),
            Some(wait) => Err(wait),
        }
    }

    fn record(&mut self, limit: SelfLimit, now: Duration) {
        self.widen(limit);
        // Whoever waited for the lock may come with an earlier time. In order, so that the last is the latest.
        let latest = self.accepted.back().map_or(now, |&last| last.max(now));
        self.accepted.push_back(latest);
        // What nobody can ask for any more.
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

    /// How long until the id can be forgotten.
    fn wait(&self, now: Duration) -> Duration {
        self.accepted.back().map_or(Duration::ZERO, |&last| (last + self.max_window).saturating_sub(now))
    }

    fn is_over(&self, now: Duration) -> bool {
        self.wait(now).is_zero()
    }
}
