//! OBSERVE.md matches the code: metrics, labels and values.

use std::collections::BTreeSet;
use std::sync::Mutex;

use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};

use super::numbers::SeriesRecorder;
use super::*;

/// A recorder that collects the names, types and units of described metrics.
#[derive(Default)]
struct Described(Mutex<BTreeSet<(String, &'static str, &'static str)>>);

impl Described {
    fn add(&self, name: &KeyName, shape: &'static str, unit: Option<Unit>, about: &SharedString) {
        let unit = unit.expect("every metric has a unit").as_str();
        assert!(about.ends_with('.') && about.len() > 10, "{}: {about}", name.as_str());
        assert!(self.0.lock().unwrap().insert((name.as_str().to_owned(), shape, unit)), "{} twice", name.as_str());
    }
}

impl Recorder for Described {
    fn describe_counter(&self, key: KeyName, unit: Option<Unit>, about: SharedString) {
        self.add(&key, "counter", unit, &about);
    }
    fn describe_gauge(&self, key: KeyName, unit: Option<Unit>, about: SharedString) {
        self.add(&key, "gauge", unit, &about);
    }
    fn describe_histogram(&self, key: KeyName, unit: Option<Unit>, about: SharedString) {
        self.add(&key, "histogram", unit, &about);
    }
    fn register_counter(&self, _: &Key, _: &Metadata<'_>) -> Counter {
        panic!("a description must not count")
    }
    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        panic!("a description must not set a value")
    }
    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        panic!("a description must not record a value")
    }
}

fn described() -> BTreeSet<(String, &'static str, &'static str)> {
    let described = Described::default();
    metrics::with_local_recorder(&described, tollgate::observe::describe_metrics);
    described.0.into_inner().unwrap()
}

#[test]
fn observe_md_lists_each_metric_with_its_type_and_unit() {
    let rows = table("metric");
    let page: BTreeSet<_> =
        rows.iter().map(|row| (quoted(&row[0]).remove(0), row[1].as_str(), row[2].as_str())).collect();
    assert_eq!(page.len(), rows.len());
    let described = described();
    let described: BTreeSet<_> = described.iter().map(|(name, shape, unit)| (name.clone(), *shape, *unit)).collect();
    assert_eq!(described, page);
    // The naming conventions of Prometheus.
    for (name, shape, unit) in page {
        assert_eq!(name.ends_with("_total"), shape == "counter", "{name}");
        assert_eq!(name.ends_with("_seconds"), unit == "seconds", "{name}");
    }
}

/// Metric names are in one list only, so that every metric is described.
#[test]
fn all_metric_names_in_the_code_are_described() {
    let code = include_str!("../../../src/observe/meter.rs");
    let names: BTreeSet<String> =
        code.split('"').skip(1).step_by(2).filter(|text| text.starts_with("tollgate_")).map(str::to_owned).collect();
    assert_eq!(names, described().into_iter().map(|(name, ..)| name).collect());
}

/// OBSERVE.md mentions no unknown metric, not even in an alert.
#[test]
fn alerts_use_existing_metrics() {
    let described = described();
    let page = include_str!("../../../OBSERVE.md");
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    for word in page.split(|c| !is_word(c)).filter(|word| word.starts_with("tollgate_")) {
        let word = word.trim_end_matches("_bucket").trim_end_matches("_count");
        assert!(described.iter().any(|(name, ..)| name == word), "{word}");
    }
}

#[tokio::test]
async fn observe_md_lists_the_labels_and_their_values() {
    let recorder = SeriesRecorder::install();
    for case in cases() {
        case.answer.await;
    }
    let labels: BTreeMap<String, Vec<String>> =
        table("metric").into_iter().map(|row| (quoted(&row[0]).remove(0), quoted(&row[3]))).collect();
    let reported = recorder.read();
    assert!(reported.len() > cases().len());
    for series in reported.keys() {
        let (name, rest) = series.trim_end_matches('}').split_once('{').unwrap();
        let pairs: Vec<(&str, &str)> =
            rest.split(',').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap()).collect();
        assert_eq!(pairs.iter().map(|(label, _)| *label).collect::<Vec<_>>(), labels[name], "{series}");
        for (label, value) in pairs.iter().filter(|(label, _)| !["policy", "breaker"].contains(label)) {
            let page = include_str!("../../../OBSERVE.md");
            assert!(page.contains(&format!("`{value}`")), "OBSERVE.md does not list the {label} `{value}`");
        }
    }
}
