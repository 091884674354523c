//! How requests are measured, and criterion's estimates from this run.

use std::convert::Infallible;
use std::hint::black_box;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, Request};
use tower::{Service, ServiceExt};

use crate::floor::request;

/// Estimates written since a moment. Estimates of earlier runs are ignored.
pub(crate) struct Measured(SystemTime);

impl Measured {
    /// Starts before the first measurement.
    pub(crate) fn since_now() -> Self {
        Self(SystemTime::now())
    }

    /// Returns the median of a row, if this run has measured it.
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

/// Sends requests one after the other, with the headers in turn, and returns the elapsed time.
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
