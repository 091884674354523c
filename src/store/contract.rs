//! Checks that a store keeps the contract of [`TokenStore`], for every store to run on itself (feature `test-util`).
//!
//! ```
//! use tollgate::store::contract::Contract;
//! use tollgate::{Grant, MemoryStore, TokenDigest};
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let store = MemoryStore::from_iter([(TokenDigest::of("alice-token-1"), Grant::new("alice", ())), (TokenDigest::of("gone-token-1"), Grant::new("bob", ()))]);
//! store.revoke("gone-token-1");
//!
//! Contract::new(store).knows("alice-token-1", "alice").has_revoked("gone-token-1").check().await;
//! # }
//! ```

use std::fmt::{self, Debug};

use super::TokenStore;
use crate::pending::answer::Answer;
use crate::token::BearerToken;

/// What a store was filled with, and so has to answer.
#[must_use = "nothing is checked before `check` or `check_outage`"]
pub struct Contract<T> {
    store: T,
    known: Vec<(String, String)>,
    revoked: Vec<String>,
}

impl<T: TokenStore + Debug> Contract<T> {
    /// Begins with a store that was filled.
    pub fn new(store: T) -> Self {
        Self { store, known: Vec::new(), revoked: Vec::new() }
    }

    /// The store has a grant with this subject for this token.
    pub fn knows(mut self, token: impl Into<String>, subject: impl Into<String>) -> Self {
        self.known.push((token.into(), subject.into()));
        self
    }

    /// The store had a grant for this token, and it was taken away.
    pub fn has_revoked(mut self, token: impl Into<String>) -> Self {
        self.revoked.push(token.into());
        self
    }

    /// Checks that the store:
    ///
    /// 1. finds every known token, every time, with the right subject;
    /// 2. finds nothing for revoked tokens, for the empty token, for bytes that are no UTF-8, and for tokens that
    ///    differ from a known one in a character, its case, its length, or white space around it;
    /// 3. answers look-ups that overlap, each with its own answer, in whatever order they are polled;
    /// 4. survives look-ups that are never polled, and such as are dropped half-way;
    /// 5. shows no token in its `Debug` output.
    ///
    /// # Panics
    ///
    /// If it does not, with the rule that is broken; and if no token was named that it knows. Tokens are not printed.
    pub async fn check(self) {
        assert!(!self.known.is_empty(), "contract: name a token that the store knows");
        self.finds_what_it_knows().await;
        self.finds_nothing_else().await;
        self.keeps_overlapping_lookups_apart().await;
        self.survives_dropped_lookups().await;
        self.prints_no_token();
    }

    /// Checks a store whose backend is down: every look-up must say so, and none may say "unknown".
    ///
    /// # Panics
    ///
    /// If a look-up does not return an error, or the error shows the token; and if no token was named.
    pub async fn check_outage(self) {
        assert!(!(self.known.is_empty() && self.revoked.is_empty()), "contract: name a token to ask for");
        let tokens = self.known.iter().map(|(token, _)| token).chain(&self.revoked);
        for token in tokens {
            match self.store.lookup(&BearerToken::new(token)).await {
                Ok(_) => panic!("contract: a store that cannot find out returns an error, so that nobody reads a 401"),
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

    async fn finds_what_it_knows(&self) {
        for (token, subject) in &self.known {
            for _ in 0..3 {
                let found = self.subject_of(token).await;
                assert_eq!(found.as_deref(), Some(&**subject), "contract: a known token has its grant, every time");
            }
        }
    }

    async fn finds_nothing_else(&self) {
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

    async fn keeps_overlapping_lookups_apart(&self) {
        let mut waiting = Vec::new();
        for _ in 0..8 {
            for (token, subject) in &self.known {
                waiting.push((self.store.lookup(&BearerToken::new(token)), Some(subject)));
                waiting.push((self.store.lookup(&BearerToken::new(&format!("{token}.unknown"))), None));
            }
        }
        // Polled in the other order than asked.
        while let Some((answer, subject)) = waiting.pop() {
            let found = match answer.await {
                Ok(found) => found.map(|grant| grant.subject().to_string()),
                Err(error) => panic!("contract: the store failed: {}", error.into()),
            };
            assert_eq!(found.as_ref(), subject, "contract: overlapping look-ups keep their answers");
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
            assert_eq!(found.as_deref(), Some(&**subject), "contract: dropped look-ups harm no other");
        }
    }

    fn prints_no_token(&self) {
        let shown = format!("{:?} {:#?}", self.store, self.store);
        let tokens = self.known.iter().map(|(token, _)| token).chain(&self.revoked);
        for token in tokens {
            assert!(!shown.contains(token.as_str()), "contract: the store's Debug output shows a token");
        }
    }
}

impl<T: Debug> Debug for Contract<T> {
    /// Leaves out the tokens.
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
