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

use crate::quota::Quota;
use crate::quota::cell::{owe, wait_for};
use crate::sync::{AtomicU32, InMemoryState, Mutex};

/// How many cells a peer has.
pub(super) const ROWS: usize = 4;
/// How many peers can be let in at the same time.
const TURNS: usize = 64;

/// A peer, as random bits for each row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) [u32; ROWS]);

#[derive(Default)]
struct Cell {
    debt: InMemoryState,
    under_way: AtomicU32,
}

pub(super) struct Sketch {
    quota: Quota,
    cells: Box<[Cell]>,
    turns: Box<[Mutex<()>]>,
}

impl Sketch {
    /// The width is that of a row, and is made a power of two.
    pub(super) fn new(quota: Quota, width: usize) -> Self {
        let cells = (0..width.next_power_of_two() * ROWS).map(|_| Cell::default()).collect();
        Self { quota, cells, turns: (0..TURNS).map(|_| Mutex::new(())).collect() }
    }

    pub(super) fn quota(&self) -> Quota {
        self.quota
    }

    pub(super) fn width(&self) -> usize {
        self.cells.len() / ROWS
    }

    pub(super) fn memory_bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.cells) + size_of_val(&*self.turns)
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
        let turn = &self.turns[peer.0[0] as usize % TURNS];
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    const INTERVAL: u64 = 10;

    fn quota() -> Quota {
        Quota::one_per(std::time::Duration::from_nanos(INTERVAL)).with_burst(3)
    }

    /// What one peer owes, known exactly.
    #[derive(Default)]
    struct Exact {
        paid_off_at: u64,
        under_way: u64,
    }

    impl Exact {
        fn wait(&self, now: u64) -> u64 {
            let owed = self.paid_off_at.saturating_sub(now) + (self.under_way + 1) * INTERVAL;
            owed.saturating_sub(3 * INTERVAL)
        }

        fn fail(&mut self, now: u64) {
            self.under_way -= 1;
            self.paid_off_at = self.paid_off_at.max(now) + INTERVAL;
        }
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Pass(u64),
        Begin(u32),
        Fail(u32),
        Succeed(u32),
    }

    fn steps(peers: u32) -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            2 => (0..2 * INTERVAL).prop_map(Step::Pass),
            6 => (0..peers).prop_map(Step::Begin),
            3 => (0..peers).prop_map(Step::Fail),
            2 => (0..peers).prop_map(Step::Succeed),
        ];
        prop::collection::vec(step, 0..200)
    }

    /// Goes through the steps, and compares each wait with the exact one.
    fn compare(
        sketch: &Sketch,
        peers: &[Peer],
        steps: Vec<Step>,
        agree: impl Fn(u64, u64) -> bool,
    ) -> Result<(), TestCaseError> {
        let (mut now, mut exact) = (0, HashMap::<u32, Exact>::new());
        for step in steps {
            match step {
                Step::Pass(time) => now += time,
                Step::Begin(name) => {
                    let known = exact.entry(name).or_default();
                    let wait = sketch.begin(peers[name as usize], now).map_or_else(NonZeroU64::get, |()| 0);
                    prop_assert!(agree(wait, known.wait(now)), "{wait} and exactly {}", known.wait(now));
                    known.under_way += u64::from(wait == 0);
                }
                Step::Fail(name) | Step::Succeed(name) => {
                    let Some(known) = exact.get_mut(&name).filter(|known| known.under_way > 0) else { continue };
                    match step {
                        Step::Fail(_) => {
                            sketch.fail(peers[name as usize], now);
                            known.fail(now);
                        }
                        _ => {
                            sketch.succeed(peers[name as usize]);
                            known.under_way -= 1;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn no_peer_is_ever_undercounted(
            peers in prop::collection::vec(any::<[u32; ROWS]>().prop_map(Peer), 12),
            width in 1..8_usize,
            steps in steps(12),
        ) {
            compare(&Sketch::new(quota(), width), &peers, steps, |wait, exact| wait >= exact)?;
        }

        #[test]
        fn who_shares_not_all_cells_is_counted_exactly(steps in steps(4)) {
            // All share their cells in three rows, and none in the last.
            let peers = [0, 1, 2, 3].map(|name| Peer([0, 0, 0, name]));
            compare(&Sketch::new(quota(), 4), &peers[..1], only_the_first(&steps), |wait, exact| wait == exact)?;
            compare(&Sketch::new(quota(), 4), &peers, steps, |wait, exact| wait == exact)?;
        }
    }

    fn only_the_first(steps: &[Step]) -> Vec<Step> {
        let is_of_others = |step: &&Step| !matches!(step, Step::Begin(1..) | Step::Fail(1..) | Step::Succeed(1..));
        steps.iter().filter(is_of_others).copied().collect()
    }

    #[test]
    fn a_peer_that_shares_all_cells_is_taken_for_the_other() {
        let sketch = Sketch::new(quota(), 16);
        let (one, other) = (Peer([1, 2, 3, 4]), Peer([17, 18, 19, 20]));
        for _ in 0..3 {
            sketch.begin(one, 0).unwrap();
            sketch.fail(one, 0);
        }
        assert_eq!(sketch.begin(other, 0).map_err(NonZeroU64::get), Err(INTERVAL));
        assert_eq!(sketch.begin(Peer([1, 2, 3, 5]), 0), Ok(()));
    }

    #[test]
    fn a_full_cell_takes_part_all_the_same() {
        let sketch = Sketch::new(quota(), 2);
        // They share a cell in the first row.
        let (other, one) = (Peer([0, 1, 1, 1]), Peer([0; ROWS]));
        for (peer, now) in [(other, 0), (one, 5)] {
            for _ in 0..3 {
                sketch.begin(peer, now).unwrap();
                sketch.fail(peer, now);
            }
        }
        // The shared cell was full, and without the failures of the one it would have room sooner than theirs.
        assert_eq!(sketch.begin(one, INTERVAL).map_err(NonZeroU64::get), Err(5));
        assert_eq!(sketch.begin(one, INTERVAL + 5), Ok(()));
    }

    #[test]
    fn a_flood_is_forgotten_as_soon_as_the_failures_of_one() {
        let sketch = Sketch::new(quota(), 1);
        // A thousand peers that fail at once, each let in before the others were counted.
        let peers: Vec<_> = (0..1_000).map(|_| Peer([0; ROWS])).collect();
        for &peer in &peers {
            sketch.cells_of(peer).for_each(|cell| _ = cell.under_way.fetch_add(1, Ordering::SeqCst));
        }
        peers.iter().for_each(|&peer| sketch.fail(peer, 0));
        assert_eq!(sketch.begin(peers[0], 0).map_err(NonZeroU64::get), Err(INTERVAL));
        for _ in 0..3 {
            sketch.begin(peers[0], 3 * INTERVAL).unwrap();
        }
    }

    #[test]
    fn threads_of_one_peer_do_not_see_the_same_room() {
        let quota = Quota::per_hour(100);
        for _ in 0..50 {
            let sketch = Sketch::new(quota, 16);
            let let_in: usize = std::thread::scope(|scope| {
                let try_often = || {
                    (0..100)
                        .filter(|_| {
                            sketch.begin(Peer([1, 2, 3, 4]), 0).map(|()| sketch.fail(Peer([1, 2, 3, 4]), 0)).is_ok()
                        })
                        .count()
                };
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(try_often)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            assert_eq!(let_in, 100);
        }
    }
}
