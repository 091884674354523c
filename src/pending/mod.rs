//! What seams share that may have to wait: answers, timeouts, and the state of circuit breakers.

pub(crate) mod answer;
pub(crate) mod breaker;
pub(crate) mod timeout;
