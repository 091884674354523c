//! [`CheckedStore`]: rejects tokens in a foreign format without a lookup.

use super::TokenStore;
use crate::pending::answer::Answer;
use crate::token::BearerToken;
use crate::token::mint::TokenFormat;

/// A store that looks up only tokens in the service's format. Any other token is unknown immediately, even while the inner store
/// is down.
///
/// The shorter response time reveals nothing secret: anyone who knows a [`TokenFormat`] can check the format of a token. Clients
/// get the same response as for any unknown token.
///
/// ```
/// use tollgate::{AuthLayer, Grant, MemoryStore, TokenDigest, mint::TokenFormat, store::CheckedStore};
///
/// let format = TokenFormat::new("acme")?;
/// let secret = format.mint()?;
/// let tokens = MemoryStore::new();
/// tokens.insert(&secret, Grant::new("alice", ()))?;
/// tokens.insert(TokenDigest::of("token-of-an-older-system"), Grant::new("bob", ()))?;
///
/// let gate = AuthLayer::new(CheckedStore::new(tokens, format).with_imported_tokens());
/// # let _ = gate;
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct CheckedStore<T> {
    store: T,
    formats: Vec<TokenFormat>,
    imported: bool,
}

impl<T> CheckedStore<T> {
    /// Creates a store that looks up only tokens in this format.
    #[must_use]
    pub fn new(store: T, format: TokenFormat) -> Self {
        Self { store, formats: vec![format], imported: false }
    }

    /// Adds another format, such as an older one.
    #[must_use]
    pub fn with_format(mut self, format: TokenFormat) -> Self {
        self.formats.push(format);
        self
    }

    /// Also looks up imported tokens in any other format. Tokens that begin with the prefix of a format and an underscore are
    /// still checked. Choose a prefix that no imported token has.
    #[must_use]
    pub fn with_imported_tokens(mut self) -> Self {
        self.imported = true;
        self
    }

    fn admits(&self, token: &[u8]) -> bool {
        self.formats.iter().any(|format| format.check(token).is_ok())
            || (self.imported && !self.formats.iter().any(|format| format.claims(token)))
    }
}

impl<T: TokenStore> TokenStore for CheckedStore<T> {
    type Principal = T::Principal;
    type Error = T::Error;
    type Future = T::Future;

    fn lookup(&self, token: &BearerToken<'_>) -> Answer<Self::Future> {
        if self.admits(token.expose()) { self.store.lookup(token) } else { Answer::Ready(Ok(None)) }
    }

    fn is_cached(&self, token: &BearerToken<'_>) -> bool {
        self.store.is_cached(token)
    }
}
