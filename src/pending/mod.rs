//! Answers, timeouts and circuit breakers, which stores, limiters and gates share.

pub(crate) mod answer;
pub(crate) mod breaker;
pub(crate) mod timeout;
