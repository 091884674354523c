//! Limits that alerts of the reference service declare.

use super::latin_1;

/// An invalid limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalid;

/// Parses `N` or `N/S` and an id. Returns the numbers, `None` without a limit, or an error.
pub fn self_limit(rate_limit: Option<&[u8]>, id: Option<&[u8]>) -> Result<Option<(u32, u32)>, Invalid> {
    let Some(rate_limit) = rate_limit else { return Ok(None) };
    let trim = |bytes: &[u8]| latin_1(bytes).trim_matches([' ', '\t', '\r', '\n']).to_owned();
    let rate_limit = trim(rate_limit);
    let parts: Vec<&str> = rate_limit.split('/').collect();
    let (count, window) = match parts[..] {
        [count] => (number(count, 1_000), Some(60)),
        [count, window] => (number(count, 1_000), number(window, 86_400)),
        _ => return Err(Invalid),
    };
    let id_len = id.map_or(0, |id| trim(id).chars().count());
    match (count, window) {
        (Some(count), Some(window)) if (1..=128).contains(&id_len) => Ok(Some((count, window))),
        _ => Err(Invalid),
    }
}

/// Parses a number from 1 to `max` in ASCII digits, with any number of leading zeros.
fn number(text: &str, max: u32) -> Option<u32> {
    let is_digits = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
    let number: u32 = text.trim_start_matches('0').parse().ok()?;
    (is_digits && (1..=max).contains(&number)).then_some(number)
}

/// All accepted alerts of one id, without expiry.
#[derive(Debug, Default)]
pub struct Window(Vec<u64>);

impl Window {
    /// Returns whether one more fits: fewer than `count` in the last `window` seconds.
    pub fn fits(&self, count: u32, window: u32, now: u64) -> bool {
        let accepted = self.0.iter().filter(|at| **at + u64::from(window) > now).count();
        accepted < count as usize
    }

    pub fn accept(&mut self, now: u64) {
        self.0.push(now);
    }
}
