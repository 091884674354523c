//! [`GrantsBySubject`]: a hash table of grants, for limiters.

use std::sync::Arc;

use hashbrown::HashTable;

use super::erased::Erased;
use super::grant::{Grant, GrantHead};
use super::names::Subject;

/// Grants with principals of one type, by their subjects. An entry takes 9 bytes, because the subject is in the grant, and the
/// type of the principals belongs to the table.
///
/// All methods of a table take hashes of subjects by the same function.
pub(crate) trait GrantsBySubject: Send {
    /// Returns the grant with this subject, and the number of references to it.
    fn get(&self, hash: u64, subject: &Subject) -> Option<(&GrantHead, usize)>;

    /// Adds a grant whose subject the table does not contain. Returns the grant if its principal has another type.
    fn insert(&mut self, grant: Arc<dyn Erased>, hash: &dyn Fn(&Subject) -> u64) -> Result<(), Arc<dyn Erased>>;

    fn remove(&mut self, hash: u64, subject: &Subject) -> Option<Arc<dyn Erased>>;

    /// Calls `is_removed` for each grant, with whether there are no references outside of this table. Returns the removed grants.
    fn remove_if(
        &mut self,
        is_removed: &mut dyn FnMut(&GrantHead, bool) -> bool,
        hash: &dyn Fn(&Subject) -> u64,
    ) -> Vec<Arc<dyn Erased>>;

    fn len(&self) -> usize;
}

impl<P: Send + Sync + 'static> GrantsBySubject for HashTable<Arc<Grant<P>>> {
    fn get(&self, hash: u64, subject: &Subject) -> Option<(&GrantHead, usize)> {
        let grant = self.find(hash, |grant| grant.subject() == subject)?;
        Some((grant.head(), Arc::strong_count(grant)))
    }

    fn insert(&mut self, grant: Arc<dyn Erased>, hash: &dyn Fn(&Subject) -> u64) -> Result<(), Arc<dyn Erased>> {
        if !grant.principal().is::<P>() {
            return Err(grant);
        }
        // The type was checked before, so the conversion succeeds.
        if let Ok(grant) = grant.into_any().downcast::<Grant<P>>() {
            self.insert_unique(hash(grant.subject()), grant, |grant| hash(grant.subject()));
        }
        Ok(())
    }

    fn remove(&mut self, hash: u64, subject: &Subject) -> Option<Arc<dyn Erased>> {
        let (grant, _) = self.find_entry(hash, |grant| grant.subject() == subject).ok()?.remove();
        Some(grant)
    }

    fn remove_if(
        &mut self,
        is_removed: &mut dyn FnMut(&GrantHead, bool) -> bool,
        hash: &dyn Fn(&Subject) -> u64,
    ) -> Vec<Arc<dyn Erased>> {
        // `get_mut` proves that there are no other references, and makes their last charge visible to this thread.
        let is_removed = |grant: &mut Arc<Grant<P>>| {
            let is_unique = Arc::get_mut(grant).is_some();
            is_removed(grant.head(), is_unique)
        };
        let removed = self.extract_if(is_removed).map(|grant| grant as Arc<dyn Erased>).collect();
        let places = 2 * HashTable::len(self);
        self.shrink_to(places, |grant| hash(grant.subject()));
        removed
    }

    fn len(&self) -> usize {
        HashTable::len(self)
    }
}
