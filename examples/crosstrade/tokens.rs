//! The tokens: looked up by the gates at each request, and by open sockets when they change.

use tollgate::store::Lookup;
use tollgate::{BoxStore, MemoryStore, StoreError, TokenDigest};

use crate::app::User;
use crate::live::LiveGrants;

/// The tokens of the service. Clones share them.
#[derive(Clone)]
pub(crate) struct Tokens {
    store: BoxStore<User>,
    live: LiveGrants,
}

impl Tokens {
    /// Takes a store for gates, and a function that looks up the grant of an admitted token by its digest.
    pub(crate) fn new<F>(store: BoxStore<User>, find: impl Fn(TokenDigest) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Lookup<User, StoreError>> + Send + 'static,
    {
        Self { store, live: LiveGrants::new(find) }
    }

    pub(crate) fn store(&self) -> BoxStore<User> {
        self.store.clone()
    }

    /// Returns the grants of open sockets, which must be refreshed after changes.
    pub(crate) fn live(&self) -> &LiveGrants {
        &self.live
    }
}

impl From<MemoryStore<User>> for Tokens {
    fn from(tokens: MemoryStore<User>) -> Self {
        Self::new(BoxStore::new(tokens.clone()), move |token| std::future::ready(Ok(tokens.get(token))))
    }
}
