//! [`Verdict`]: the outcome of a charge.

/// The outcome of a charge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// The units were charged. For one of several policies: the charge fits, and is made if it fits all policies.
    Admitted,
    /// Nothing was charged. The same charge fits later.
    OverLimit,
    /// Nothing was charged. The cost is larger than the burst, so the charge never fits.
    CostAboveBurst,
    /// Nothing was charged. The limiter could not determine whether the charge fits.
    Unavailable,
}
