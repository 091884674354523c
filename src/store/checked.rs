use super::TokenStore;
use crate::pending::answer::Answer;
use crate::token::BearerToken;
use crate::token::mint::TokenFormat;

/// A store that is asked only for tokens that can be the service's by their form. Anything else is unknown at once, also
/// while the store is down.
///
/// That a token has the form of a [`TokenFormat`] can be seen by anybody who knows it, so that the time which this saves tells
/// nothing. Clients are told the same as of any unknown token.
///
/// ```
/// use tollgate::{AuthLayer, Grant, MemoryStore, mint::TokenFormat, store::CheckedStore};
///
/// let format = TokenFormat::new("acme")?;
/// let secret = format.mint()?;
/// let tokens = MemoryStore::new();
/// tokens.insert(&secret, Grant::new("alice", ()))?;
/// tokens.insert("a-token-of-the-system-before", Grant::new("bob", ()))?;
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
    /// Asks the store for tokens of this format only.
    #[must_use]
    pub fn new(store: T, format: TokenFormat) -> Self {
        Self { store, formats: vec![format], imported: false }
    }

    /// The same for tokens of one more format, such as that of an older version.
    #[must_use]
    pub fn with_format(mut self, format: TokenFormat) -> Self {
        self.formats.push(format);
        self
    }

    /// The same for tokens of other shapes that were imported: the store is asked for all that do not begin with a
    /// format's prefix and an underscore. Choose a prefix that no imported token has.
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
