//! How requests are measured, and what criterion has written of it in this run.

use std::convert::Infallible;
use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, Request};
use tower::{Service, ServiceExt};

use crate::floor::request;

/// Estimates that were written since a moment: those of earlier runs, of other code, stay where they are.
pub(crate) struct Measured(SystemTime);

impl Measured {
    /// To be made before anything is measured.
    pub(crate) fn since_now() -> Self {
        Self(SystemTime::now())
    }

    /// The median of a row, if this run has measured it.
    pub(crate) fn median_ns(&self, row: &str) -> Option<f64> {
        let file = criterion_dir().join(row).join("new/estimates.json");
        let written = std::fs::metadata(&file).and_then(|file| file.modified()).ok()?;
        if written < self.0 {
            return None;
        }
        let estimates: serde_json::Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
        estimates["median"]["point_estimate"].as_f64()
    }
}

fn criterion_dir() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    target.join("criterion")
}

/// The time that so many requests take, one after the other, with the headers in turn.
pub(crate) async fn send<S>(service: &S, headers: &[HeaderValue], at: &mut usize, count: u64) -> Duration
where
    S: Service<Request<Body>, Response = Response, Error = Infallible> + Clone,
{
    let begin = Instant::now();
    for _ in 0..count {
        let request = request(&headers[*at]);
        *at = if *at + 1 == headers.len() { 0 } else { *at + 1 };
        let response = service.clone().oneshot(request).await;
        black_box(response.unwrap_or_else(|never| match never {}));
    }
    begin.elapsed()
}
