//! [`Decisions`]: the decisions about one request.

use super::decision::Decision;

/// The decisions of all limiters about one request, outermost first.
///
/// The first decision needs no allocation. The type is small, because every admitted request moves it several times.
#[derive(Clone, Debug, Default)]
pub(crate) struct Decisions {
    first: Option<Decision>,
    #[expect(clippy::box_collection, reason = "8 bytes instead of 24 where it is empty")]
    more: Option<Box<Vec<Decision>>>,
}

impl Decisions {
    #[inline]
    pub(crate) fn push(&mut self, decision: Decision) {
        match self.first {
            None => self.first = Some(decision),
            Some(_) => self.more.get_or_insert_default().push(decision),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Decision> {
        self.first.iter().chain(self.more.iter().flat_map(|more| more.iter()))
    }

    pub(crate) async fn refund(&self) {
        for decision in self.iter() {
            decision.refund().await;
        }
    }
}
