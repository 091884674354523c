//! [`Erased`]: a type-erased grant, for layers and limiters.

use std::any::Any;
use std::sync::Arc;

use super::grant::{Grant, GrantHead};

/// A grant without the type of its principal. Trait upcasting (Rust 1.86) would replace `into_any`.
pub(crate) trait Erased: Send + Sync {
    fn head(&self) -> &GrantHead;
    fn principal(&self) -> &dyn Any;
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

impl<P: Send + Sync + 'static> Erased for Grant<P> {
    fn head(&self) -> &GrantHead {
        Grant::head(self)
    }

    fn principal(&self) -> &dyn Any {
        Grant::<P>::principal(self)
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
