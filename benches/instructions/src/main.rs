//! Counts the instructions of a request with callgrind and compares them with `figures.txt`. Fails if a figure has
//! grown by more than 5 %. Run `just instructions`, or `just instructions --write` to accept new figures.
//!
//! The inner work of SHA-256 is excluded. Valgrind does not know the processor's SHA instructions, so it would count a
//! software implementation that no server runs.

mod request;

use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::process::{Command, ExitCode};

use request::CASES;

const FIGURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/figures.txt");
const HEAD: &str =
    "# Instructions for each request, and the compiler of these figures. Written by `just instructions --write`.\n";
/// The option that makes the process under valgrind run a case.
const RUN: &str = "--run";
const MOST_GROWTH: f64 = 0.05;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => check(),
        ["--write"] => write(),
        [RUN, case, requests] => {
            let (_, case) = CASES.into_iter().find(|(name, _)| *name == case).ok_or("no such case")?;
            request::run(case, requests.parse()?);
            Ok(ExitCode::SUCCESS)
        }
        _ => Err("the only option is --write".into()),
    }
}

fn check() -> Result<ExitCode, Box<dyn Error>> {
    let figures = fs::read_to_string(FIGURES)?;
    let mut lines = figures.lines().filter(|line| !line.starts_with('#'));
    let (theirs, ours) = (lines.next().ok_or("no compiler in figures.txt")?, compiler()?);
    if theirs != ours {
        return skip(&format!("the figures belong to {theirs}, this is {ours}"));
    }
    if Command::new("valgrind").arg("--version").output().is_err() {
        return skip("valgrind is not installed");
    }
    let mut grown = false;
    println!("| request | instructions | before | |\n|---|---:|---:|---:|");
    for (name, _) in CASES {
        let of_case = |line: &str| line.strip_prefix(name)?.strip_prefix(": ")?.parse::<f64>().ok();
        let before = lines.next().and_then(of_case).ok_or("figures.txt names other cases")?;
        let now = count(name)?;
        let growth = now / before - 1.0;
        println!("| {name} | {now:.0} | {before:.0} | {:+.1} % |", growth * 100.0);
        grown |= growth > MOST_GROWTH;
    }
    if grown {
        println!("\nThe instructions have grown by more than {} %.", MOST_GROWTH * 100.0);
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn write() -> Result<ExitCode, Box<dyn Error>> {
    let mut figures = format!("{HEAD}{}\n", compiler()?);
    for (name, _) in CASES {
        writeln!(figures, "{name}: {:.0}", count(name)?)?;
    }
    print!("{figures}");
    fs::write(FIGURES, figures)?;
    Ok(ExitCode::SUCCESS)
}

fn skip(why: &str) -> Result<ExitCode, Box<dyn Error>> {
    if env::var_os("TOLLGATE_REQUIRE_VALGRIND").is_some() {
        return Err(why.into());
    }
    println!("skipped: {why}");
    Ok(ExitCode::SUCCESS)
}

/// Returns `rustc 1.95.0`, without the commit.
fn compiler() -> Result<String, Box<dyn Error>> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = String::from_utf8(Command::new(rustc).arg("--version").output()?.stdout)?;
    Ok(version.split(' ').take(2).collect::<Vec<_>>().join(" "))
}

/// Returns the mean instructions of one request. The difference of two runs excludes the preparation.
fn count(case: &str) -> Result<f64, Box<dyn Error>> {
    const REQUESTS: usize = 1_000;
    Ok((collected(case, 2 * REQUESTS)? - collected(case, REQUESTS)?) / REQUESTS as f64)
}

fn collected(case: &str, requests: usize) -> Result<f64, Box<dyn Error>> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        // Each option toggles the counting: on in the first function, and off again in the second within it.
        .args(["--toggle-collect=*request::counted*", "--toggle-collect=*sha256*compress256*"])
        .args([env::current_exe()?.as_os_str(), RUN.as_ref(), case.as_ref(), requests.to_string().as_ref()])
        .output()?;
    let report = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("valgrind failed:\n{report}").into());
    }
    let collected = report.lines().find_map(|line| line.split_once("Collected : ")).ok_or("nothing collected")?.1;
    match collected.trim().parse()? {
        0.0 => Err("callgrind did not find the counted function".into()),
        collected => Ok(collected),
    }
}
