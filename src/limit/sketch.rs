//! [`Sketch`]: the failures of all peers in a table of fixed size, a count-min sketch of GCRA cells.
//!
//! # Rules
//!
//! 1. A peer has one cell in each row, and shares these cells with other peers. Its attempts are counted in all of its cells,
//!    so no cell counts fewer. A peer is over its limit only if all of its cells are.
//! 2. A pending attempt counts like a failure, but in a counter of its own. A success decrements the counter, which is always
//!    exact. Refunding a failure would not be exact: its units may have been regained, or belong to another peer.
//! 3. A failure is charged before the counter is decremented. Readers read the counter before the failures. So each failure
//!    is visible in at least one of them, and for a moment in both.
//! 4. Attempts of one peer begin one after the other, under a lock, so two attempts never use the same free unit. Other peers
//!    may change the shared cells meanwhile, but only by their own attempts.
//! 5. A cell holds at most a full burst of failures. The cell is therefore empty again as soon after a flood as after the
//!    failures of one peer.

use std::num::NonZeroU64;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use crate::quota::Quota;
use crate::quota::cell::{force_charge, wait_for};
use crate::sync::atomic::AtomicU32;
use crate::sync::{InMemoryState, Mutex};

/// The number of rows, and thus of cells per peer.
pub(super) const ROWS: usize = 4;
/// The number of locks, which peers share by hash.
const LOCKS: usize = 64;

/// The hash of a peer: uniform bits for each row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) [u32; ROWS]);

#[derive(Default)]
struct Cell {
    failures: InMemoryState,
    /// The number of pending attempts.
    pending: AtomicU32,
}

/// The failures of all peers.
pub(super) struct Sketch {
    quota: Quota,
    cells: Box<[Cell]>,
    locks: Box<[Mutex<()>]>,
}

impl Sketch {
    /// Creates an empty table. `width` is the number of cells per row, rounded up to a power of two.
    pub(super) fn new(quota: Quota, width: usize) -> Self {
        let cells = (0..width.next_power_of_two() * ROWS).map(|_| Cell::default()).collect();
        Self { quota, cells, locks: (0..LOCKS).map(|_| Mutex::new(())).collect() }
    }

    pub(super) fn quota(&self) -> Quota {
        self.quota
    }

    pub(super) fn width(&self) -> usize {
        self.cells.len() / ROWS
    }

    pub(super) fn memory_bytes(&self) -> usize {
        size_of::<Self>() + size_of_val(&*self.cells) + size_of_val(&*self.locks)
    }

    fn cells_of(&self, Peer(bits): Peer) -> impl Iterator<Item = &Cell> {
        let width = self.width();
        let rows = self.cells.chunks_exact(width).zip(bits);
        rows.filter_map(move |(row, bits)| row.get(bits as usize & (width - 1)))
    }

    /// Begins an attempt, which is pending until [`fail`](Self::fail) or [`succeed`](Self::succeed).
    ///
    /// Returns an error if the peer is over its limit: the nanoseconds until the next attempt, if all pending attempts fail
    /// now.
    pub(super) fn begin(&self, peer: Peer, now: u64) -> Result<(), NonZeroU64> {
        let lock = &self.locks[peer.0[0] as usize % LOCKS];
        let _guard = lock.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = self.cells_of(peer).map(|cell| {
            let pending = cell.pending.load(Ordering::Acquire);
            wait_for(&cell.failures, self.quota, now, pending.saturating_add(1))
        });
        match NonZeroU64::new(wait.min().unwrap_or(0)) {
            Some(wait) => Err(wait),
            None => {
                self.cells_of(peer).for_each(|cell| _ = cell.pending.fetch_add(1, Ordering::AcqRel));
                Ok(())
            }
        }
    }

    /// Ends a pending attempt as a failure.
    pub(super) fn fail(&self, peer: Peer, now: u64) {
        for cell in self.cells_of(peer) {
            force_charge(&cell.failures, self.quota, now);
            cell.pending.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Ends a pending attempt as a success.
    pub(super) fn succeed(&self, peer: Peer) {
        self.cells_of(peer).for_each(|cell| _ = cell.pending.fetch_sub(1, Ordering::AcqRel));
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

    /// An exact model of the failures of one peer.
    #[derive(Default)]
    struct Exact {
        empty_at: u64,
        pending: u64,
    }

    impl Exact {
        fn wait(&self, now: u64) -> u64 {
            let used = self.empty_at.saturating_sub(now) + (self.pending + 1) * INTERVAL;
            used.saturating_sub(3 * INTERVAL)
        }

        fn fail(&mut self, now: u64) {
            self.pending -= 1;
            self.empty_at = self.empty_at.max(now) + INTERVAL;
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

    /// Executes the steps, and compares each wait with that of the exact model.
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
                    prop_assert!(agree(wait, known.wait(now)), "{wait}, exact {}", known.wait(now));
                    known.pending += u64::from(wait == 0);
                }
                Step::Fail(name) | Step::Succeed(name) => {
                    let Some(known) = exact.get_mut(&name).filter(|known| known.pending > 0) else { continue };
                    match step {
                        Step::Fail(_) => {
                            sketch.fail(peers[name as usize], now);
                            known.fail(now);
                        }
                        _ => {
                            sketch.succeed(peers[name as usize]);
                            known.pending -= 1;
                        }
                    }
                }
            }
        }
        Ok(())
    }

    proptest! {
        #[test]
        fn peers_that_share_cells_are_never_undercounted(
            peers in prop::collection::vec(any::<[u32; ROWS]>().prop_map(Peer), 12),
            width in 1..8_usize,
            steps in steps(12),
        ) {
            compare(&Sketch::new(quota(), width), &peers, steps, |wait, exact| wait >= exact)?;
        }

        #[test]
        fn peers_with_a_cell_of_their_own_are_counted_exactly(steps in steps(4)) {
            // The peers share their cells in three rows, and have different cells in the last row.
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
    fn peer_that_shares_all_cells_with_a_throttled_peer_is_throttled() {
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
    fn failures_in_a_cell_at_its_maximum_still_count() {
        let sketch = Sketch::new(quota(), 2);
        // The peers share a cell in the first row.
        let (other, one) = (Peer([0, 1, 1, 1]), Peer([0; ROWS]));
        for (peer, now) in [(other, 0), (one, 5)] {
            for _ in 0..3 {
                sketch.begin(peer, now).unwrap();
                sketch.fail(peer, now);
            }
        }
        // The shared cell was at its maximum. Without the later failures, it would admit an attempt earlier.
        assert_eq!(sketch.begin(one, INTERVAL).map_err(NonZeroU64::get), Err(5));
        assert_eq!(sketch.begin(one, INTERVAL + 5), Ok(()));
    }

    #[test]
    fn cell_after_a_flood_of_failures_recovers_as_after_a_burst() {
        let sketch = Sketch::new(quota(), 1);
        // A thousand peers fail at the same time. All attempts began before any failure was counted.
        let peers: Vec<_> = (0..1_000).map(|_| Peer([0; ROWS])).collect();
        for &peer in &peers {
            sketch.cells_of(peer).for_each(|cell| _ = cell.pending.fetch_add(1, Ordering::SeqCst));
        }
        peers.iter().for_each(|&peer| sketch.fail(peer, 0));
        assert_eq!(sketch.begin(peers[0], 0).map_err(NonZeroU64::get), Err(INTERVAL));
        for _ in 0..3 {
            sketch.begin(peers[0], 3 * INTERVAL).unwrap();
        }
    }

    #[test]
    fn concurrent_attempts_of_one_peer_never_exceed_the_quota() {
        let quota = Quota::per_hour(100);
        for _ in 0..50 {
            let sketch = Sketch::new(quota, 16);
            let begun: usize = std::thread::scope(|scope| {
                let begin_and_fail = || {
                    (0..100)
                        .filter(|_| {
                            sketch.begin(Peer([1, 2, 3, 4]), 0).map(|()| sketch.fail(Peer([1, 2, 3, 4]), 0)).is_ok()
                        })
                        .count()
                };
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(begin_and_fail)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            assert_eq!(begun, 100);
        }
    }
}
