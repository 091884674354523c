//! A cache compared with a history of its inner store.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use proptest::prelude::*;
use tollgate::store::Invalidation;
use tollgate::{BearerToken, Grant, TokenDigest, TokenStore as _};

use crate::kit::remote::*;
use crate::kit::*;

#[derive(Clone, Debug)]
enum Step {
    Advance(u64),
    Set(usize, bool),
    Down(bool),
    Invalidate(usize, u8),
    LookUp(usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..40_u64).prop_map(Step::Advance),
        (0..4_usize, any::<bool>()).prop_map(|(token, known)| Step::Set(token, known)),
        any::<bool>().prop_map(Step::Down),
        (0..4_usize, 0..4_u8).prop_map(|(token, how)| Step::Invalidate(token, how)),
        (0..4_usize).prop_map(Step::LookUp),
    ]
}

proptest! {
    /// Compares with a history of the store: no answer exceeds its maximum age or precedes its invalidation.
    #[test]
    fn no_answer_exceeds_its_maximum_age(steps in proptest::collection::vec(step(), 1..120)) {
        let (ttl, unknown_ttl, stale) = (60, 5, 30);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let (remote, hands) = (Remote::new(), Hands::default());
        let cache = remote.builder(&hands).with_stale_on_error(stale * SECOND).build().unwrap();
        let tokens: Vec<String> = (0..4).map(|token| format!("model-{token}")).collect();
        let (mut now, mut down) = (0_u64, false);
        // For each token: its states with their start, the oldest state that may be returned, and the oldest state that may be
        // returned while the store works.
        let mut history: HashMap<usize, Vec<(u64, bool)>> = (0..4).map(|token| (token, vec![(0, false)])).collect();
        let (mut oldest_state, mut oldest_current) = ([0_usize; 4], [0_usize; 4]);
        for step in steps {
            match step {
                Step::Advance(seconds) => {
                    hands.advance(Duration::from_secs(seconds));
                    now += seconds;
                }
                Step::Set(token, known) => {
                    match known {
                        true => _ = remote.tokens.replace(TokenDigest::of(&tokens[token]), Grant::new(format!("grant-{token}"), ())),
                        false => _ = remote.tokens.revoke(TokenDigest::of(&tokens[token])),
                    }
                    history.get_mut(&token).unwrap().push((now, known));
                }
                Step::Down(is_down) => {
                    remote.down.store(is_down, Ordering::SeqCst);
                    down = is_down;
                }
                Step::Invalidate(token, how) => {
                    let change = match how {
                        0 => Invalidation::Token(TokenDigest::of(&tokens[token])),
                        // The store does not know the grant of an unknown token. `Added` covers those.
                        1 => Invalidation::Grant(format!("grant-{token}").into()),
                        2 => Invalidation::Added,
                        _ => Invalidation::Everything,
                    };
                    cache.invalidate(&change);
                    match how {
                        0 => oldest_state[token] = history[&token].len() - 1,
                        3 => oldest_current.iter_mut().enumerate().for_each(|(token, oldest_state)| *oldest_state = history[&token].len() - 1),
                        _ => {}
                    }
                }
                Step::LookUp(token) => {
                    remote.asked();
                    let found = runtime.block_on(cache.lookup(&BearerToken::new(&tokens[token])).into_future());
                    let facts = &history[&token];
                    if !down && remote.asked() > 0 {
                        // After an answer of the store, nothing older may be returned.
                        oldest_state[token] = facts.len() - 1;
                    }
                    let oldest = if down { oldest_state[token] } else { oldest_state[token].max(oldest_current[token]) };
                    let was_true = |answer: bool, age: u64| {
                        facts.iter().enumerate().skip(oldest).any(|(at, (_, known))| {
                            let until = facts.get(at + 1).map_or(u64::MAX, |(next, _)| *next);
                            *known == answer && until.saturating_add(age) > now
                        })
                    };
                    match found {
                        Ok(Some(_)) => {
                            let oldest = ttl + if down { u64::from(stale) } else { 0 };
                            prop_assert!(was_true(true, oldest + 1));
                        }
                        Ok(None) => prop_assert!(was_true(false, unknown_ttl + 1)),
                        Err(_) => prop_assert!(down),
                    }
                }
            }
        }
    }
}
