//! Compares the overhead of the gate with that of other crates: the same route, tokens and headers, in one run.
//!
//! `just compare`, or with options: `--tokens 100,10000 --threads 1,2 --rounds 9`. `--raw FILE` also writes all figures to a file, as
//! lines of JSON.

#![allow(clippy::result_large_err, reason = "a rejection is a response")]

mod allocations;
#[path = "../../floor.rs"]
mod floor;
mod measure;
mod memory;
mod report;
mod row;
mod stacks;

use std::error::Error;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

use lexopt::prelude::*;
use stacks::STACKS;

struct Options {
    tokens: Vec<usize>,
    threads: Vec<usize>,
    rounds: usize,
    /// The file for the lines of JSON.
    raw: Option<PathBuf>,
    /// The row whose memory this process measures. It does nothing else.
    memory_of: Option<String>,
}

impl Options {
    fn from_env() -> Result<Self, lexopt::Error> {
        let tokens = vec![100, 10_000, 100_000, 1_000_000];
        let mut options = Self { tokens, threads: vec![1, 2], rounds: 9, raw: None, memory_of: None };
        let mut arguments = lexopt::Parser::from_env();
        while let Some(argument) = arguments.next()? {
            match argument {
                Long("tokens") => options.tokens = numbers(arguments.value()?)?,
                Long("threads") => options.threads = numbers(arguments.value()?)?,
                Long("rounds") => options.rounds = arguments.value()?.parse()?,
                Long("raw") => options.raw = Some(arguments.value()?.into()),
                Long(memory::OPTION) => options.memory_of = Some(arguments.value()?.string()?),
                other => return Err(other.unexpected()),
            }
        }
        let numbers = [&options.tokens[..], &options.threads[..], &[options.rounds]].concat();
        match numbers.contains(&0) {
            true => Err("no number may be 0".into()),
            false => Ok(options),
        }
    }
}

fn numbers(list: OsString) -> Result<Vec<usize>, lexopt::Error> {
    list.string()?
        .split(',')
        .map(|number| number.parse().map_err(|_| format!("not a number: {number}").into()))
        .collect()
}

fn main() -> Result<(), Box<dyn Error>> {
    let Options { tokens, threads, rounds, raw, memory_of } = Options::from_env()?;
    let most = tokens.iter().copied().max().unwrap_or(1);
    if let Some(name) = memory_of {
        let stack = STACKS.iter().find(|stack| stack.name == name).ok_or("no such row")?;
        println!("{}", memory::here(stack, most).ok_or("no /proc")?);
        return Ok(());
    }

    STACKS.iter().for_each(stacks::verify);

    let mut all = Vec::new();
    for &tokens in &tokens {
        let figures = measure::measure(tokens, &threads, rounds);
        figures.chunks(STACKS.len()).for_each(report::print_table);
        all.extend(figures);
    }
    let mut lines = report::lines(&all);

    // With fewer tokens the pages that every process needs would dominate.
    let most = most.max(100_000);
    println!("\nResident bytes for each token, with {most} tokens, one process for each row (/proc/self/statm):\n");
    for stack in STACKS.iter().filter(|stack| stack.has_tokens()) {
        match memory::of(stack, most) {
            Some(bytes) => {
                println!("{}: {bytes:.0}", stack.name);
                writeln!(lines, r#"{{"row":"{}","tokens":{most},"bytes_a_token":{bytes:.0}}}"#, stack.name)?;
            }
            None => println!("{}: not measured", stack.name),
        }
    }

    report::print_ratios(&all, &tokens, &threads);
    if let Some(file) = raw {
        fs::write(file, lines)?;
    }
    Ok(())
}
