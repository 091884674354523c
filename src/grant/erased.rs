//! [`Erased`]: a type-erased grant, for layers and limiters.

use std::any::Any;
use std::sync::Arc;

use hashbrown::HashTable;

use super::by_subject::GrantsBySubject;
use super::grant::{Grant, GrantHead};
use super::names::GrantId;

/// A grant without the type of its principal. Trait upcasting (Rust 1.86) would replace `into_any`.
pub(crate) trait Erased: Send + Sync {
    fn head(&self) -> &GrantHead;
    fn id(&self) -> &GrantId;
    fn principal(&self) -> &dyn Any;
    fn is_copy_of(&self, other: &GrantHead) -> bool;
    /// Returns an empty table for grants with principals of this type.
    fn new_table(&self) -> Box<dyn GrantsBySubject>;
    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync>;
}

impl<P: Send + Sync + 'static> Erased for Grant<P> {
    fn head(&self) -> &GrantHead {
        Grant::head(self)
    }

    fn id(&self) -> &GrantId {
        Grant::id(self)
    }

    fn principal(&self) -> &dyn Any {
        Grant::<P>::principal(self)
    }

    fn is_copy_of(&self, other: &GrantHead) -> bool {
        Grant::is_copy_of(self, other)
    }

    fn new_table(&self) -> Box<dyn GrantsBySubject> {
        Box::new(HashTable::<Arc<Self>>::new())
    }

    fn into_any(self: Arc<Self>) -> Arc<dyn Any + Send + Sync> {
        self
    }
}
