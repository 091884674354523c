//! Where the tokens are: asked by the gates at every request, and by a socket again and again.

use std::pin::Pin;
use std::sync::Arc;

use tollgate::store::Lookup;
use tollgate::{BoxStore, Grant, MemoryStore, StoreError, TokenDigest};

use crate::app::User;

/// Who knows the tokens. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Tokens {
    store: BoxStore<User>,
    current: Arc<Current>,
}

type Current = dyn Fn(TokenDigest) -> Pin<Box<dyn Future<Output = Lookup<User, StoreError>> + Send>> + Send + Sync;

impl Tokens {
    /// A store for gates, and a way to ask for the grant of a token that a gate has let in, by its digest.
    pub(crate) fn new<F>(store: BoxStore<User>, current: impl Fn(TokenDigest) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Lookup<User, StoreError>> + Send + 'static,
    {
        Self { store, current: Arc::new(move |token| Box::pin(current(token))) }
    }

    pub(crate) fn store(&self) -> BoxStore<User> {
        self.store.clone()
    }

    /// The grant as it is now.
    pub(crate) async fn current(&self, token: TokenDigest) -> Result<Option<Arc<Grant<User>>>, StoreError> {
        (self.current)(token).await
    }
}

impl From<MemoryStore<User>> for Tokens {
    fn from(tokens: MemoryStore<User>) -> Self {
        Self::new(BoxStore::new(tokens.clone()), move |token| std::future::ready(Ok(tokens.get(token))))
    }
}
