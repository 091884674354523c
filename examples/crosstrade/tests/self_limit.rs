//! Tests of the self-limit without a server: its grammar, and its window against a simple oracle.

use std::time::Duration;

use crate::self_limit::{Denied, Invalid, MAX_IDS, SelfLimit, SelfLimits, parse};

const fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn the_grammar() {
    let parse = |rate_limit: &str, id: Option<&str>| parse(Some(rate_limit.as_bytes()), id.map(str::as_bytes));
    for (text, count, window_s) in [
        ("1", 1, 60),
        ("1000", 1_000, 60),
        ("1/120", 1, 120),
        ("3/900", 3, 900),
        ("1000/86400", 1_000, 86_400),
        (" 3/900\r\n", 3, 900),
        ("007", 7, 60),
    ] {
        assert_eq!(parse(text, Some("mystrategy")), Ok(Some(SelfLimit { count, window_s })), "{text}");
    }
    for text in [
        "",
        " ",
        "/",
        "0",
        "1001",
        "1001/86400",
        "1/86401",
        "1/0",
        "0/60",
        "-1",
        "+1",
        "1/",
        "/60",
        "1/-5",
        "1/+5",
        "1 /60",
        "1/ 60",
        "1/60/60",
        "1.0",
        "1e2",
        "0x1",
        "one",
        "1s",
        "4294967297",
        "18446744073709551617",
        "1/4294967356",
        "\u{661}",
        "\u{ff11}",
        "1\u{a0}",
    ] {
        assert_eq!(parse(text, Some("mystrategy")), Err(Invalid::RateLimit), "{text:?}");
    }
    assert_eq!(parse("1", None), Err(Invalid::IdMissing));
    assert_eq!(parse("1", Some(" ")), Err(Invalid::IdMissing));
    assert!(parse("1", Some(&"a".repeat(128))).is_ok());
    assert_eq!(parse("1", Some(&"a".repeat(129))), Err(Invalid::IdTooLong));
    assert_eq!(crate::self_limit::parse(Some(b"\xff"), Some(b"a")), Err(Invalid::RateLimit));
    assert_eq!(crate::self_limit::parse(None, Some(b"mystrategy")), Ok(None));
    assert_eq!(crate::self_limit::parse(None, None), Ok(None));
}

/// Every schedule of a pseudo-random walk is judged as by counting all that was accepted in the window before.
#[test]
fn the_window_is_exact() {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for _ in 0..200 {
        let limit = SelfLimit { count: 1 + random(5) as u32, window_s: 1 + random(20) as u32 };
        let window = secs(limit.window_s.into());
        let limits = SelfLimits::default();
        let (mut now, mut accepted) = (Duration::ZERO, Vec::<Duration>::new());
        for _ in 0..200 {
            now += Duration::from_millis(500 * random(8));
            let willing = random(4) > 0;
            let inside: Vec<_> = accepted.iter().filter(|&&at| at + window > now).collect();
            let result = limits.admit((b"alice", b"a"), limit, now, || willing.then_some(()).ok_or(()));
            let expected = match inside.len() < limit.count as usize {
                true if willing => Ok(()),
                true => Err(Denied::NotAccepted(())),
                // Until so many have left that one more fits.
                false => Err(Denied::OverLimit(*inside[inside.len() - limit.count as usize] + window - now)),
            };
            assert_eq!(result, expected, "{limit:?} at {now:?}, accepted {accepted:?}");
            if result.is_ok() {
                accepted.push(now);
            }
        }
    }
}

#[test]
fn alerts_of_one_id_may_differ_in_their_limits() {
    let limits = SelfLimits::default();
    let admit = |now, count, window_s| {
        limits.admit((b"alice", b"a"), SelfLimit { count, window_s }, secs(now), || Ok::<_, ()>(()))
    };
    assert_eq!(admit(0, 3, 900), Ok(()));
    assert_eq!(admit(100, 1, 60), Ok(()), "the small limit does not make the large one forget");
    assert_eq!(admit(200, 3, 900), Ok(()));
    assert_eq!(admit(300, 3, 900), Err(Denied::OverLimit(secs(600))));
    assert_eq!(admit(300, 1, 60), Ok(()));
    // A time that steps back neither frees a place nor panics: an alert at 350 counts as one at 360.
    assert_eq!(admit(250, 1, 60), Err(Denied::OverLimit(secs(110))));
    assert_eq!(admit(360, 5, 60), Ok(()));
    assert_eq!(admit(350, 5, 60), Ok(()));
    assert_eq!(admit(419, 1, 60), Err(Denied::OverLimit(secs(1))));
}

#[test]
fn a_larger_count_includes_alerts_of_smaller_limits() {
    let limits = SelfLimits::default();
    let admit = |now, count, window_s| {
        limits.admit((b"alice", b"a"), SelfLimit { count, window_s }, secs(now), || Ok::<_, ()>(()))
    };
    assert_eq!(admit(0, 1, 3_600), Ok(()));
    for now in 1..10 {
        assert_eq!(admit(now, 1, 1), Ok(()), "one a second, at {now}");
    }
    // Ten in the hour.
    assert_eq!(admit(10, 10, 3_600), Err(Denied::OverLimit(secs(3_590))));
    assert_eq!(admit(10, 11, 3_600), Ok(()));
    assert_eq!(admit(10, 11, 3_600), Err(Denied::OverLimit(secs(3_590))));
}

#[test]
fn the_ids_of_a_subject_are_bounded() {
    let limits = SelfLimits::default();
    let limit = SelfLimit { count: 1, window_s: 60 };
    let admit = |subject: &str, id: usize, now| {
        limits.admit((subject.as_bytes(), id.to_string().as_bytes()), limit, secs(now), || Ok::<_, ()>(()))
    };
    for id in 0..MAX_IDS {
        assert_eq!(admit("alice", id, if id < 10 { 0 } else { 30 }), Ok(()));
    }
    assert_eq!(admit("alice", MAX_IDS, 50), Err(Denied::TooManyIds(secs(10))));
    assert_eq!(admit("alice", 0, 50), Err(Denied::OverLimit(secs(10))), "an id that is known is not forgotten");
    assert_eq!(admit("bob", 0, 50), Ok(()));
    // Ten of them have expired.
    for id in 0..10 {
        assert_eq!(admit("alice", MAX_IDS + id, 60), Ok(()));
    }
    assert_eq!(admit("alice", MAX_IDS + 10, 60), Err(Denied::TooManyIds(secs(30))));
}

#[test]
fn expired_ids_are_removed() {
    let limits = SelfLimits::default();
    let admit = |subject: &str, id: usize, window_s, now| {
        let limit = SelfLimit { count: 1, window_s };
        limits.admit((subject.as_bytes(), id.to_string().as_bytes()), limit, secs(now), || Ok::<_, ()>(()))
    };
    for id in 0..100 {
        assert_eq!(admit("alice", id, if id < 10 { 300 } else { 30 }, 0), Ok(()));
    }
    assert_eq!(admit("bob", 0, 30, 59), Ok(()));
    assert_eq!(limits.ids(), 101);
    assert_eq!(admit("carol", 0, 30, 60), Ok(()));
    assert_eq!(limits.ids(), 10 + 1 + 1);
    assert_eq!(admit("alice", 0, 300, 299), Err(Denied::OverLimit(secs(1))), "it is not over");
    assert_eq!(limits.ids(), 10);
    assert_eq!(admit("bob", 0, 30, 360), Ok(()));
    assert_eq!(limits.ids(), 1);
}
