//! Counts the instructions and cache misses of an admitted request by function, for the gate, the floor and a hand-written gate,
//! and writes them to `profile.txt`. Run `just profile`; it needs valgrind and takes minutes.
//!
//! The inner work of SHA-256 is omitted. Valgrind does not know the processor's SHA instructions, so it would count a
//! software implementation that no server runs.

#![allow(clippy::result_large_err, reason = "a rejection is a response")]

#[path = "../../../floor.rs"]
mod floor;
#[path = "../row.rs"]
mod row;
#[path = "../stacks/mod.rs"]
#[allow(dead_code, reason = "the comparison uses all of it")]
mod stacks;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::hint::black_box;
use std::process::Command;

use http::HeaderValue;

use floor::{bearer, shuffled};
use row::Row;
use stacks::{Limit, STACKS, Stack};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/profile.txt");
/// Instructions are counted with few tokens, and cache misses with many.
const FEW: usize = 100;
const MANY: usize = 100_000;
/// The number of requests with few tokens, and with many.
const REQUESTS: usize = 20_000;
/// The caches of a typical server core, so that the figures do not depend on the machine.
const CACHES: [&str; 4] = ["--cache-sim=yes", "--I1=32768,8,64", "--D1=32768,8,64", "--LL=8388608,16,64"];
/// Functions below these figures are summed up.
const FEWEST_INSTRUCTIONS: f64 = 15.0;
const FEWEST_MISSES: f64 = 0.05;

const ROWS: [&str; 3] = ["tollgate", "floor", "hand-written"];

/// Without arguments, profiles all rows. Under valgrind, sends the requests of one row with this number of tokens.
fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    match &arguments[..] {
        [] => write(),
        [name, tokens] => {
            let stack = STACKS.iter().find(|stack| stack.name == name).ok_or("no such row")?;
            send(stack, tokens.parse()?);
            Ok(())
        }
        _ => Err("there are no options".into()),
    }
}

/// Sends the requests of a row, once each of its buckets exists.
fn send(stack: &Stack, tokens: usize) {
    let row = (stack.build)(tokens, Limit::Unlimited);
    row.send(&(0..tokens).map(bearer).collect::<Vec<_>>());
    let order: Vec<usize> = shuffled(tokens).collect();
    let headers: Vec<HeaderValue> = order.iter().cycle().take(REQUESTS).map(|&i| bearer(i)).collect();
    counted(&row, &headers);
}

/// Callgrind counts only within this function, by its name.
#[inline(never)]
fn counted(row: &Row, headers: &[HeaderValue]) {
    black_box(row.send(headers));
}

/// Profiles the rows and writes the tables.
fn write() -> Result<(), Box<dyn Error>> {
    let mut text = format!(
        "# Written by `just profile`: instructions (Ir) of one admitted request with {FEW} tokens, and cache misses with {MANY} tokens,\n\
         # above those of a bare route. Callgrind simulates caches of 32 KiB (D1) and 8 MiB (LL). SHA-256 itself is omitted.\n\n\
         {:<26} {:>6} {:>6} {:>6}\n",
        "", "Ir", "D1", "LL"
    );
    let mut tables = String::new();
    let bases = [profile("baseline, plain tower", FEW)?, profile("baseline, plain tower", MANY)?];
    for row in ROWS.map(|row| format!("{row}, plain tower")) {
        let few = above(&profile(&row, FEW)?, &bases[0]);
        let many = above(&profile(&row, MANY)?, &bases[1]);
        let (Cost { instructions, .. }, Cost { d1, ll, .. }) = (total(&few), total(&many));
        writeln!(text, "{row:<26} {instructions:>6.0} {d1:>6.2} {ll:>6.2}")?;
        table(&mut tables, &row, &few, &many)?;
    }
    let base = profile("baseline", FEW)?;
    for row in ROWS {
        let instructions = total(&above(&profile(row, FEW)?, &base)).instructions;
        writeln!(text, "{:<26} {instructions:>6.0}", format!("{row}, axum"))?;
    }
    text += &tables;
    print!("{text}");
    fs::write(FILE, text)?;
    Ok(())
}

#[derive(Clone, Copy, Default)]
struct Cost {
    instructions: f64,
    d1: f64,
    ll: f64,
}

type Profile = BTreeMap<String, Cost>;

fn table(text: &mut String, row: &str, few: &Profile, many: &Profile) -> Result<(), Box<dyn Error>> {
    writeln!(text, "\n{row}\n  {:>6} {:>6} {:>6}", "Ir", "D1", "LL")?;
    let mut lines: Vec<(&str, Cost)> = Vec::new();
    let mut rest = Cost::default();
    let names: BTreeSet<&String> = few.keys().chain(many.keys()).collect();
    for name in names {
        let instructions = few.get(name).copied().unwrap_or_default().instructions;
        let cost = Cost { instructions, ..many.get(name).copied().unwrap_or_default() };
        if instructions.abs() >= FEWEST_INSTRUCTIONS || cost.d1.abs() >= FEWEST_MISSES {
            lines.push((name, cost));
        } else {
            rest = Cost {
                instructions: rest.instructions + cost.instructions,
                d1: rest.d1 + cost.d1,
                ll: rest.ll + cost.ll,
            };
        }
    }
    lines.sort_by(|(_, a), (_, b)| b.instructions.total_cmp(&a.instructions));
    lines.push(("other functions", rest));
    // Not `-0`.
    let round = |number: f64, places: f64| (number * places).round() / places + 0.0;
    for (name, Cost { instructions, d1, ll }) in lines {
        let (instructions, d1, ll) = (round(instructions, 1.0), round(d1, 100.0), round(ll, 100.0));
        writeln!(text, "  {instructions:>6} {d1:>6.2} {ll:>6.2}  {name}")?;
    }
    Ok(())
}

fn total(profile: &Profile) -> Cost {
    profile.values().fold(Cost::default(), |sum, cost| Cost {
        instructions: sum.instructions + cost.instructions,
        d1: sum.d1 + cost.d1,
        ll: sum.ll + cost.ll,
    })
}

/// Returns the costs above those of the baseline, by function.
fn above(row: &Profile, base: &Profile) -> Profile {
    let mut above = row.clone();
    for (name, cost) in base {
        let own = above.entry(name.clone()).or_default();
        own.instructions -= cost.instructions;
        own.d1 -= cost.d1;
        own.ll -= cost.ll;
    }
    above
}

/// Runs a row under callgrind. Returns the costs of a request by function.
fn profile(row: &str, tokens: usize) -> Result<Profile, Box<dyn Error>> {
    let file = env::temp_dir().join(format!("tollgate-profile-{}", std::process::id()));
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--compress-strings=no", "--compress-pos=no"])
        .args(CACHES)
        .arg(format!("--callgrind-out-file={}", file.display()))
        .arg("--toggle-collect=*profile::counted*")
        .arg(env::current_exe()?)
        .args([row, &tokens.to_string()])
        .output()?;
    if !output.status.success() {
        return Err(format!("valgrind failed:\n{}", String::from_utf8_lossy(&output.stderr)).into());
    }
    let profile = parsed(&fs::read_to_string(&file)?)?;
    fs::remove_file(&file)?;
    match profile.is_empty() {
        true => Err("callgrind did not find the counted function".into()),
        false => Ok(profile),
    }
}

/// Reads a file of callgrind: the costs of each function without those of the functions that it calls.
fn parsed(text: &str) -> Result<Profile, Box<dyn Error>> {
    let mut profile = Profile::new();
    let mut events: Vec<&str> = Vec::new();
    let mut function = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if let Some(names) = line.strip_prefix("events: ") {
            events = names.split(' ').collect();
        } else if let Some(name) = line.strip_prefix("fn=") {
            function = short(name);
        } else if line.starts_with("calls=") {
            // The next line has the costs of the called function.
            lines.next();
        } else if line.starts_with(|first: char| first.is_ascii_digit()) {
            let costs = line.split(' ').skip(1).map(str::parse).collect::<Result<Vec<f64>, _>>()?;
            // Zeros at the end of a line are omitted.
            let sum = |prefixes: [&str; 2]| -> f64 {
                let is = |event: &str| prefixes.contains(&event);
                events.iter().zip(&costs).filter(|(event, _)| is(event)).map(|(_, cost)| cost).sum()
            };
            if function.starts_with("sha2::sha256::") {
                continue;
            }
            let own = profile.entry(function.clone()).or_default();
            own.instructions += sum(["Ir", ""]) / REQUESTS as f64;
            own.d1 += sum(["D1mr", "D1mw"]) / REQUESTS as f64;
            own.ll += sum(["DLmr", "DLmw"]) / REQUESTS as f64;
        }
    }
    Ok(profile)
}

/// Returns the name of a function without type arguments.
fn short(name: &str) -> String {
    let mut short = String::new();
    let mut depth = 0_usize;
    for char in name.replace("->", "to").chars() {
        match char {
            '<' if depth > 0 || short.ends_with(|last: char| last.is_alphanumeric() || last == ':') => depth += 1,
            '>' if depth > 0 => depth -= 1,
            _ if depth > 0 => {}
            _ => short.push(char),
        }
    }
    short.replace("::::", "::")
}
