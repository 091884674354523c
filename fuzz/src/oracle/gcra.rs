//! Rate limits by GCRA, in whole numbers.

/// A bucket: the virtual scheduling algorithm of ITU-T I.371. Times are nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    pub interval: i128,
    pub burst: i128,
    /// The theoretical arrival time.
    pub tat: i128,
}

/// The result of charging one unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    pub allowed: bool,
    pub remaining: i128,
    /// The wait until the charge is allowed, if it was not.
    pub wait: Option<i128>,
    /// The time until one more unit is available, and until all are.
    pub more_in: i128,
    pub full_in: i128,
}

impl Cell {
    pub fn charge(&mut self, now: i128) -> Decision {
        let tolerance = (self.burst - 1) * self.interval;
        let earliest = self.tat - tolerance;
        let allowed = now >= earliest;
        if allowed {
            self.tat = self.tat.max(now) + self.interval;
        }
        let remaining = match allowed {
            true => ((now + self.interval + tolerance - self.tat) / self.interval).clamp(0, self.burst),
            false => 0,
        };
        Decision {
            allowed,
            remaining,
            wait: (!allowed).then_some(earliest - now),
            more_in: self.tat - (self.burst - 1 - remaining) * self.interval - now,
            full_in: (self.tat - now).max(0),
        }
    }
}

/// Returns whole seconds, rounded up.
pub fn seconds_up(ns: i128) -> i128 {
    (ns + 999_999_999).div_euclid(1_000_000_000)
}
