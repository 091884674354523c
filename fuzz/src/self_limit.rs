//! The limit that alerts set themselves, of the reference service.
//!
//! The input is `rate_limit`, `id` and alerts, each behind a byte 0xFF, which no alert has in it. Without an `id`, none
//! is there. An alert is four bytes: which id and limit, whether time steps back, seconds since the one before.

use std::collections::BTreeMap;

use crate::oracle::{self, Window};

#[allow(dead_code, reason = "the words for answers are not needed")]
#[path = "../../examples/crosstrade/self_limit.rs"]
mod alerts;

use alerts::{Denied, SelfLimit, SelfLimits};

pub fn check(data: &[u8]) {
    let mut parts = data.splitn(3, |&byte| byte == 0xff);
    let (rate_limit, id, stream) = (parts.next(), parts.next(), parts.next());
    check_parse(rate_limit, id);
    check_parse(None, id);
    check_windows(stream.unwrap_or_default());
}

fn check_parse(rate_limit: Option<&[u8]>, id: Option<&[u8]>) {
    let limit = alerts::parse(rate_limit, id);
    let limit = limit.map(|limit| limit.map(|limit| (limit.count, limit.window_s))).map_err(drop);
    assert_eq!(limit, oracle::self_limit(rate_limit, id));
}

/// Ids with one limit each are limited exactly.
fn check_windows(stream: &[u8]) {
    let (limits, mut windows) = (SelfLimits::default(), BTreeMap::<_, Window>::new());
    let mut now = 1_000_u64;
    for alert in stream.chunks_exact(4) {
        let [id, back, high, low] = [alert[0], alert[1], alert[2], alert[3]];
        let step = u64::from(u16::from_be_bytes([high, low]) % 400);
        now = if back == 1 { now.saturating_sub(step) } else { now + step };
        let limit = SelfLimit { count: u32::from(id % 5) + 1, window_s: u32::from(id / 5 % 7) * 30 + 1 };
        let window = windows.entry(id).or_default();
        let fits = window.fits(limit.count, limit.window_s, now);
        // One of them cannot be carried out, and does not count.
        let is_carried_out = back != 2;
        let accept = || is_carried_out.then_some(()).ok_or(());
        let done = limits.admit((b"alice", &[id]), limit, std::time::Duration::from_secs(now), accept);
        match done {
            Ok(()) => {
                assert!(fits && is_carried_out, "accepted at {now}: {limit:?} {window:?}");
                window.accept(now);
            }
            Err(Denied::NotAccepted(())) => assert!(fits && !is_carried_out, "asked at {now}: {limit:?} {window:?}"),
            Err(Denied::OverLimit(wait)) => {
                assert!(!fits, "denied at {now}: {limit:?} {window:?}");
                let then = now + wait.as_secs();
                assert!(window.fits(limit.count, limit.window_s, then), "not after the wait: {window:?}");
                assert!(!window.fits(limit.count, limit.window_s, then - 1), "a shorter wait would do: {window:?}");
            }
            Err(Denied::TooManyIds(_)) => panic!("there are 256 ids at the most"),
        }
    }
}
