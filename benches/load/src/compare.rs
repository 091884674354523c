//! Measures all services in turns, and prints the ratios.

use std::time::Duration;

use crate::drive::{Server, Variant};
use crate::kinds::Kind;
use crate::{Result, app, plain, reference};

/// The time of one measurement.
const ROUND: Duration = Duration::from_secs(1);
const ROUNDS: usize = 13;
/// Other load makes requests dearer and never cheaper, so the cheapest quarter of the rounds has the least of it.
const QUARTER: usize = ROUNDS / 4;
/// The duration of the rate-limit measurement.
const LIMIT_RUN: Duration = Duration::from_secs(10);

const BEARER: Kind = Kind::Bearer { path: "/v1/api/accounts", tokens: reference::TOKENS };
const ONE_TOKEN: Kind = Kind::Bearer { path: "/v1/api/accounts", tokens: 1 };
const WEBHOOK: Kind = Kind::Webhook { tokens: reference::TOKENS };
const UNKNOWN: Kind = Kind::Unknown { path: "/v1/api/accounts", tokens: reference::TOKENS };
const PLAIN: Kind = Kind::Bearer { path: "/", tokens: plain::TOKENS };

pub(crate) fn run() -> Result<()> {
    let (baseline, second) = (Server::start(Variant::Baseline)?, Server::start(Variant::Baseline)?);
    let (gated, measured) = (Server::start(Variant::Gated)?, Server::start_with_metrics(Variant::Gated)?);
    let (plain, plain_second) = (Server::start(Variant::PlainBaseline)?, Server::start(Variant::PlainBaseline)?);
    let (plain_gated, plain_measured) =
        (Server::start(Variant::PlainGated)?, Server::start_with_metrics(Variant::PlainGated)?);
    // Each row with the row that it is compared with.
    let rows = [
        ("reference service, bearer: baseline", &baseline, BEARER, 0),
        ("second baseline (noise)", &second, BEARER, 0),
        ("gate", &gated, BEARER, 0),
        ("gate, the same token in all requests", &gated, ONE_TOKEN, 0),
        ("gate with metrics, relative to the gate", &measured, BEARER, 2),
        ("flood of unknown tokens, relative to the gate", &gated, UNKNOWN, 2),
        ("reference service, webhook: baseline", &baseline, WEBHOOK, 6),
        ("second baseline (noise)", &second, WEBHOOK, 6),
        ("gate", &gated, WEBHOOK, 6),
        ("plain hyper, bearer: baseline", &plain, PLAIN, 9),
        ("second baseline (noise)", &plain_second, PLAIN, 9),
        ("gate", &plain_gated, PLAIN, 9),
        ("gate with metrics, relative to the gate", &plain_measured, PLAIN, 11),
    ];
    for (_, server, kind, _) in &rows {
        // Warm up: the first request of a token creates its bucket.
        server.drive(*kind, ROUND)?;
    }
    let mut costs = rows.map(|_| Vec::with_capacity(ROUNDS));
    for round in 0..ROUNDS {
        // Rounds alternate between the rows, so that other load affects all of them. The direction alternates too, so that
        // no row always follows the same one.
        let order: Vec<usize> =
            if round % 2 == 0 { (0..rows.len()).collect() } else { (0..rows.len()).rev().collect() };
        for at in order {
            let (_, server, kind, _) = rows[at];
            costs[at].push(server.drive(kind, ROUND)?.cpu_per_request());
        }
    }
    println!(
        "| requests | processor time of the server | relative, median | half of the rounds | relative, quietest rounds |"
    );
    println!("|---|---:|---:|---|---:|");
    for ((name, _, _, base), ours) in rows.iter().zip(&costs) {
        let theirs = &costs[*base];
        let ratios = sorted(ours.iter().zip(theirs).map(|(ours, base)| ours / base));
        let (ours, theirs) = (sorted(ours.iter().copied()), sorted(theirs.iter().copied()));
        let (micros, low, high) = (median(&ours) * 1e6, ratios[QUARTER], ratios[ROUNDS - 1 - QUARTER]);
        let (relative, quiet) = (median(&ratios), ours[QUARTER] / theirs[QUARTER]);
        println!("| {name} | {micros:.2} µs | {relative:.3} | {low:.3} to {high:.3} | {quiet:.3} |");
    }
    rate_limit()
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

fn median(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}

/// Checks how many requests of one user the quota of the reference service admits in a period.
fn rate_limit() -> Result<()> {
    let quota = app::QUOTA;
    let server = Server::start(Variant::Limited)?;
    let sent = server.drive(Kind::Bearer { path: BEARER.path(), tokens: 1 }, LIMIT_RUN)?;
    let admitted = sent.requests - sent.rejected;
    // The bound from the burst and the time between the first and the last request. `wrk` reports the time of all
    // requests, rounded to 10 ms, so this is an upper bound. The last unit may be refilled at the very end, so one less is
    // correct too.
    let longest = sent.time + Duration::from_millis(5);
    let most = u64::from(quota.burst()) + longest.div_duration_f64(quota.interval()) as u64;
    let seconds = sent.time.as_secs_f64();
    println!(
        "{admitted} of {} requests in {seconds:.2} s were admitted; 180 per minute with burst 20 allow {most}.",
        sent.requests
    );
    match admitted == most || admitted + 1 == most {
        true => Ok(()),
        false => Err(format!("{admitted} requests were admitted, but the quota allows {most}").into()),
    }
}
