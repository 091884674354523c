//! The limit that alerts declare for themselves, of the reference service.
//!
//! The input is `rate_limit`, `id` and alerts, separated by bytes 0xFF, which no alert contains. Without a second part
//! there is no `id`. An alert has four bytes: its id and limit, whether time steps back, and the seconds since the
//! previous alert.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::oracle::{self, Window};

#[allow(dead_code, reason = "the responses are not needed")]
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
    let limit = limit.map(|limit| limit.map(|limit| (limit.count, limit.window_s))).map_err(|_| oracle::Invalid);
    assert_eq!(limit, oracle::self_limit(rate_limit, id));
}

/// Checks that ids with one limit each are limited exactly while time advances. Time steps back only where alerts wait
/// for each other: from then on nothing may panic, and nothing is compared.
fn check_windows(stream: &[u8]) {
    let (limits, mut windows) = (SelfLimits::default(), BTreeMap::<_, Window>::new());
    let (mut now, mut is_in_order) = (1_000_u64, true);
    for alert in stream.chunks_exact(4) {
        let [id, mode, high, low] = [alert[0], alert[1], alert[2], alert[3]];
        let step = u64::from(u16::from_be_bytes([high, low]) % 400);
        // A failed alert does not count.
        let (is_back, succeeds) = (mode == 1, mode != 2);
        now = if is_back { now.saturating_sub(step) } else { now + step };
        is_in_order &= !is_back;
        let limit = SelfLimit { count: u32::from(id % 5) + 1, window_s: u32::from(id / 5 % 7) * 30 + 1 };
        let accept = || succeeds.then_some(()).ok_or(());
        let done = limits.admit((b"alice", &[id]), limit, Duration::from_secs(now), accept);
        if !is_in_order {
            continue;
        }
        let window = windows.entry(id).or_default();
        let fits = |at| window.fits(limit.count, limit.window_s, at);
        match done {
            Ok(()) => {
                assert!(fits(now) && succeeds, "accepted at {now}: {limit:?} {window:?}");
                window.accept(now);
            }
            Err(Denied::NotAccepted(())) => assert!(fits(now) && !succeeds, "at {now}: {limit:?} {window:?}"),
            Err(Denied::OverLimit(wait)) => {
                let then = now + wait.as_secs();
                assert!(
                    !fits(now) && !fits(then - 1),
                    "a wait shorter than {wait:?} would suffice: {limit:?} {window:?}"
                );
                assert!(fits(then), "not after {wait:?}: {limit:?} {window:?}");
            }
            Err(Denied::TooManyIds(_)) => panic!("there are at most 256 ids"),
        }
    }
}
