//! The metrics of the service, in the text format of Prometheus, on a separate listener: `--metrics ADDRESS:PORT`.
//!
//! The listener has no authentication, and the metrics show how many callers are rejected and why. Listen on an address that
//! only the scraper can reach.

use std::error::Error;
use std::time::Duration;

use axum::Router;
use axum::http::header;
use axum::routing::get;
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle, PrometheusRecorder};

/// The bounds of all histograms, in seconds, as OBSERVE.md suggests.
const BUCKETS: [f64; 12] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5];
/// The interval at which histograms are aggregated, so that memory stays bounded without scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

pub(crate) fn recorder() -> Result<PrometheusRecorder, BuildError> {
    let builder = PrometheusBuilder::new();
    Ok(builder.set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS)?.build_recorder())
}

/// Installs the recorder of the process, and starts its upkeep.
pub(crate) fn install() -> Result<PrometheusHandle, Box<dyn Error>> {
    let recorder = recorder()?;
    let handle = recorder.handle();
    metrics::set_global_recorder(recorder).map_err(|error| error.to_string())?;
    tollgate::observe::describe_metrics();
    tollgate::observe::keep_counters();
    let kept = handle.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(UPKEEP).await;
            kept.run_upkeep();
        }
    });
    Ok(handle)
}

pub(crate) fn app(handle: PrometheusHandle) -> Router {
    let render = move || {
        let text = handle.render();
        async move { ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text) }
    };
    Router::new().route("/metrics", get(render))
}
