//! What criterion has written in this run.

use std::path::PathBuf;
use std::time::SystemTime;

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
