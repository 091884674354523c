//! What peers owe for failures, in a table that does not grow: a count-min sketch of GCRA cells.
//!
//! # Rules
//!
//! 1. A peer has one cell in each row, and shares them with others. Whatever it does is counted in all of them, so that
//!    none of them counts less than the peer did. It is over its limit only if all of them are.
//! 2. An attempt that is under way counts like a failure, but beside the debt: one that ends well is counted out, which
//!    is exact, whatever happened meanwhile. Taking an interval out of a debt again would not be: time may have paid for
//!    it, or for what others owe in the same cell.
//! 3. A failure is charged before its attempt is counted out, and who looks reads the count before the debt, so that a
//!    failure is seen in one of them, or for a moment in both.
//! 4. The attempts of a peer are let in one after the other, under a lock, so that no two of them see the same room.
//!    Other peers may change its cells meanwhile; they only add what is theirs, and take that out again.
//! 5. A cell owes a full burst at the most, as any peer does. So a flood is forgotten as soon as the failures of one peer.

use std::num::NonZeroU64;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use super::decide::{owe, wait_for};
use crate::quota::Quota;
use crate::sync::{AtomicU32, InMemoryState, Mutex};

/// How many cells a peer has.
pub(super) const ROWS: usize = 4;
/// How many peers can be let in at the same time.
const TURNS: usize = 64;

/// A peer, as random bits for each row.
#[derive(Clone, Copy)]
pub(super) struct Peer(pub(super) [u32; ROWS]);

#[derive(Default)]
struct Cell {
    debt: InMemoryState,
    under_way: AtomicU32,
}

pub(super) struct Sketch {
    quota: Quota,
    cells: Box<[Cell]>,
    turns: [Mutex<()>; TURNS],
}

impl Sketch {
    /// The width is that of a row, and is made a power of two.
    pub(super) fn new(quota: Quota, width: usize) -> Self {
        let cells = (0..width.next_power_of_two() * ROWS).map(|_| Cell::default()).collect();
        Self { quota, cells, turns: std::array::from_fn(|_| Mutex::new(())) }
    }

    pub(super) fn quota(&self) -> Quota {
        self.quota
    }

    pub(super) fn width(&self) -> usize {
        self.cells.len() / ROWS
    }

    pub(super) fn memory_bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.cells)
    }

    fn cells_of(&self, Peer(bits): Peer) -> impl Iterator<Item = &Cell> {
        let width = self.width();
        let rows = self.cells.chunks_exact(width).zip(bits);
        rows.filter_map(move |(row, bits)| row.get(bits as usize & (width - 1)))
    }

    /// Lets an attempt in, which is under way from here on, until [`fail`](Self::fail) or [`succeed`](Self::succeed).
    ///
    /// Or else says in how many nanoseconds there is room, if all that is under way fails now.
    pub(super) fn begin(&self, peer: Peer, now: u64) -> Result<(), NonZeroU64> {
        let turn = self.turns.get(peer.0[0] as usize % TURNS);
        let _turn = turn.map(|turn| turn.lock().unwrap_or_else(PoisonError::into_inner));
        let wait = self.cells_of(peer).map(|cell| {
            let under_way = cell.under_way.load(Ordering::Acquire);
            wait_for(&cell.debt, self.quota, now, under_way.saturating_add(1))
        });
        match NonZeroU64::new(wait.min().unwrap_or(0)) {
            Some(wait) => Err(wait),
            None => {
                self.cells_of(peer).for_each(|cell| _ = cell.under_way.fetch_add(1, Ordering::AcqRel));
                Ok(())
            }
        }
    }

    /// An attempt that was let in has failed.
    pub(super) fn fail(&self, peer: Peer, now: u64) {
        for cell in self.cells_of(peer) {
            owe(&cell.debt, self.quota, now);
            cell.under_way.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// An attempt that was let in has not failed.
    pub(super) fn succeed(&self, peer: Peer) {
        self.cells_of(peer).for_each(|cell| _ = cell.under_way.fetch_sub(1, Ordering::AcqRel));
    }
}
