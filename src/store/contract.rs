//! Checks that a store fulfils the contract of [`TokenStore`], for the tests of any store (feature `test-util`).
//!
//! ```
//! use tollgate::store::contract::Contract;
//! use tollgate::{Grant, MemoryStore, TokenDigest};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let store = MemoryStore::from_iter([(TokenDigest::of("alice-token-1"), Grant::new("alice", ())), (TokenDigest::of("gone-token-1"), Grant::new("bob", ()))]);
//! store.revoke(TokenDigest::of("gone-token-1"));
//!
//! Contract::new(store).knows("alice-token-1", "alice").has_revoked("gone-token-1").check().await;
//! # }
//! ```

use std::fmt::{self, Debug};

use super::TokenStore;
use crate::pending::answer::Answer;
use crate::token::BearerToken;

/// A store under test, with the answers that are expected of it.
#[must_use = "call `check` or `check_outage` to run the checks"]
pub struct Contract<T> {
    store: T,
    known: Vec<(String, String)>,
    revoked: Vec<String>,
}

impl<T: TokenStore + Debug> Contract<T> {
    /// Creates a contract for a store that already has its grants.
    pub fn new(store: T) -> Self {
        Self { store, known: Vec::new(), revoked: Vec::new() }
    }

    /// Adds a token whose grant the store has, with the subject of the grant.
    pub fn knows(mut self, token: impl Into<String>, subject: impl Into<String>) -> Self {
        self.known.push((token.into(), subject.into()));
        self
    }

    /// Adds a token whose grant was revoked.
    pub fn has_revoked(mut self, token: impl Into<String>) -> Self {
        self.revoked.push(token.into());
        self
    }

    /// Checks that the store:
    ///
    /// 1. finds every known token, every time, with the right subject;
    /// 2. finds nothing for revoked tokens, for the empty token, for bytes that are not UTF-8, and for tokens that differ from a
    ///    known one in a character, its case, its length, or surrounding white space;
    /// 3. returns the right answer to each of several concurrent lookups, in any order of polling;
    /// 4. keeps working after lookups that are never polled or are dropped before they complete;
    /// 5. shows no token in its `Debug` output.
    ///
    /// # Panics
    ///
    /// If the store breaks a rule; the message names the rule. If no known token was added. The messages contain no token.
    pub async fn check(self) {
        assert!(!self.known.is_empty(), "contract: add a token that the store knows");
        self.finds_known_tokens().await;
        self.finds_no_other_token().await;
        self.separates_concurrent_lookups().await;
        self.survives_dropped_lookups().await;
        self.shows_no_token();
    }

    /// Checks a store whose backend is down: every lookup must return an error, never "unknown".
    ///
    /// # Panics
    ///
    /// If a lookup does not return an error. If an error shows the token. If no token was added.
    pub async fn check_outage(self) {
        assert!(!(self.known.is_empty() && self.revoked.is_empty()), "contract: add a token to look up");
        let tokens = self.known.iter().map(|(token, _)| token).chain(&self.revoked);
        for token in tokens {
            match self.store.lookup(&BearerToken::new(token)).await {
                Ok(_) => panic!("contract: a store that cannot answer returns an error, so that clients get no 401"),
                Err(error) => {
                    let error = error.into();
                    let shown = format!("{error} {error:?}");
                    assert!(!shown.contains(token.as_str()), "contract: an error shows the token");
                }
            }
        }
    }

    async fn subject_of(&self, token: impl AsRef<[u8]>) -> Option<String> {
        match self.store.lookup(&BearerToken::new(&token)).await {
            Ok(found) => found.map(|grant| grant.subject().to_string()),
            Err(error) => panic!("contract: the store failed: {}", error.into()),
        }
    }

    async fn finds_known_tokens(&self) {
        for (token, subject) in &self.known {
            for _ in 0..3 {
                let found = self.subject_of(token).await;
                assert_eq!(found.as_deref(), Some(&**subject), "contract: a known token has its grant, every time");
            }
        }
    }

    async fn finds_no_other_token(&self) {
        for token in &self.revoked {
            assert_eq!(self.subject_of(token).await, None, "contract: a revoked token has no grant");
        }
        for token in [&b""[..], b"\0", b"\xff\xfe", b"an-unknown-token", &[b'a'; 8_192]] {
            assert_eq!(self.subject_of(token).await, None, "contract: an unknown token has no grant");
        }
        for (token, _) in &self.known {
            for near in near_misses(token) {
                if self.known.iter().any(|(known, _)| *known == near) {
                    continue;
                }
                assert_eq!(self.subject_of(&near).await, None, "contract: a token like a known one has no grant");
            }
        }
    }

    async fn separates_concurrent_lookups(&self) {
        let mut waiting = Vec::new();
        for _ in 0..8 {
            for (token, subject) in &self.known {
                waiting.push((self.store.lookup(&BearerToken::new(token)), Some(subject)));
                waiting.push((self.store.lookup(&BearerToken::new(&format!("{token}.unknown"))), None));
            }
        }
        // Polled in reverse order.
        while let Some((answer, subject)) = waiting.pop() {
            let found = match answer.await {
                Ok(found) => found.map(|grant| grant.subject().to_string()),
                Err(error) => panic!("contract: the store failed: {}", error.into()),
            };
            assert_eq!(found.as_ref(), subject, "contract: concurrent lookups get their own answers");
        }
    }

    async fn survives_dropped_lookups(&self) {
        for (token, subject) in &self.known {
            for polled in [false, true] {
                for _ in 0..100 {
                    let Answer::Pending(future) = self.store.lookup(&BearerToken::new(token)) else { continue };
                    let mut future = Box::pin(future);
                    if polled {
                        std::future::poll_fn(|cx| {
                            let _ = future.as_mut().poll(cx);
                            std::task::Poll::Ready(())
                        })
                        .await;
                    }
                }
            }
            let found = self.subject_of(token).await;
            assert_eq!(found.as_deref(), Some(&**subject), "contract: dropped lookups do not affect others");
        }
    }

    fn shows_no_token(&self) {
        let shown = format!("{:?} {:#?}", self.store, self.store);
        let tokens = self.known.iter().map(|(token, _)| token).chain(&self.revoked);
        for token in tokens {
            assert!(!shown.contains(token.as_str()), "contract: the store's Debug output shows a token");
        }
    }
}

impl<T: Debug> Debug for Contract<T> {
    /// Omits the tokens.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contract").field("store", &self.store).finish_non_exhaustive()
    }
}

fn near_misses(token: &str) -> Vec<String> {
    let mut near = vec![
        format!("{token}="),
        format!("{token}\0"),
        format!(" {token}"),
        format!("{token} "),
        format!("{token}{token}"),
        token.to_uppercase(),
        token.to_lowercase(),
        token.chars().skip(1).collect(),
        token.chars().take(token.chars().count().saturating_sub(1)).collect(),
        token.chars().rev().collect(),
    ];
    for at in 0..token.len() {
        let mut bytes = token.as_bytes().to_vec();
        bytes[at] = if bytes[at] == b'x' { b'y' } else { b'x' };
        near.extend(String::from_utf8(bytes));
    }
    near
}
