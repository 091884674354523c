//! Caches.

mod concurrency;
mod invalidation;
mod lookups;
mod model;
mod settings;
mod staleness;
