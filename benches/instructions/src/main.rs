//! Counts the instructions of the road with callgrind and compares them with `figures.txt`: more than 5 % above one
//! of them is a failure. `just instructions`; `just instructions --write` after a change that is worth its price.
//!
//! What SHA-256 does inside is left out: valgrind does not know the processor's instructions for it, so that most of
//! what it counts would be a function that no server runs.

mod road;

use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::process::{Command, ExitCode};

use road::CASES;

const FIGURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/figures.txt");
const HEAD: &str =
    "# Instructions a request, and the compiler that they belong to. Written by `just instructions --write`.\n";
/// The option by which valgrind's process is told what to run.
const RUN: &str = "--run";
const MOST_GROWTH: f64 = 0.05;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => check(),
        ["--write"] => write(),
        [RUN, case, requests] => {
            let (_, case) = CASES.into_iter().find(|(name, _)| *name == case).ok_or("no such case")?;
            road::run(case, requests.parse()?);
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
    println!("| road | instructions | before | |\n|---|---:|---:|---:|");
    for (name, _) in CASES {
        let of_case = |line: &str| line.strip_prefix(name)?.strip_prefix(": ")?.parse::<f64>().ok();
        let before = lines.next().and_then(of_case).ok_or("figures.txt names other cases")?;
        let now = count(name)?;
        let growth = now / before - 1.0;
        println!("| {name} | {now:.0} | {before:.0} | {:+.1} % |", growth * 100.0);
        grown |= growth > MOST_GROWTH;
    }
    if grown {
        println!("\nThe road has grown by more than {} %.", MOST_GROWTH * 100.0);
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

/// `rustc 1.95.0`, without its commit.
fn compiler() -> Result<String, Box<dyn Error>> {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = String::from_utf8(Command::new(rustc).arg("--version").output()?.stdout)?;
    Ok(version.split(' ').take(2).collect::<Vec<_>>().join(" "))
}

/// The instructions of one request, as a mean. The difference of two runs, so that nothing of the preparation counts.
fn count(case: &str) -> Result<f64, Box<dyn Error>> {
    const REQUESTS: usize = 1_000;
    Ok((collected(case, 2 * REQUESTS)? - collected(case, REQUESTS)?) / REQUESTS as f64)
}

fn collected(case: &str, requests: usize) -> Result<f64, Box<dyn Error>> {
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        // Each turns the counting on or off, whichever it was: so it is on in the one, and off in the other within it.
        .args(["--toggle-collect=*road::counted*", "--toggle-collect=*sha256*compress256*"])
        .args([env::current_exe()?.as_os_str(), RUN.as_ref(), case.as_ref(), requests.to_string().as_ref()])
        .output()?;
    let told = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("valgrind failed:\n{told}").into());
    }
    let collected = told.lines().find_map(|line| line.split_once("Collected : ")).ok_or("nothing collected")?.1;
    match collected.trim().parse()? {
        0.0 => Err("callgrind does not know the counted function by its name".into()),
        collected => Ok(collected),
    }
}
