//! The tables, and the lines for programs.

use std::fmt::Write as _;

use crate::measure::Figures;
use crate::stacks::{STACKS, Stack};

pub fn print_table(figures: &[Figures]) {
    let Some(Figures { tokens, threads, .. }) = figures.first() else { return };
    println!(
        "\n{tokens} tokens, {threads} thread(s): nanoseconds for each request, medians; overhead over the baseline\n"
    );
    println!("| row | ns | overhead | +- | allocations |");
    println!("|---|---:|---:|---:|---:|");
    for Figures { stack, ns, overhead_ns, spread_ns, allocs, .. } in figures {
        println!("| {} | {ns:.0} | {overhead_ns:.0} | {spread_ns:.0} | {} |", stack.name, decimal(*allocs));
    }
}

/// Returns a line of JSON for each row and each number of tokens and threads.
pub fn lines(figures: &[Figures]) -> String {
    let mut lines = String::new();
    for Figures { stack, tokens, threads, ns, overhead_ns, spread_ns, allocs } in figures {
        let numbers = format_args!(r#""ns":{ns:.1},"overhead_ns":{overhead_ns:.1},"spread_ns":{spread_ns:.1}"#);
        let allocs = decimal(*allocs);
        // Writing into a string does not fail.
        _ = writeln!(
            lines,
            r#"{{"row":"{}","tokens":{tokens},"threads":{threads},{numbers},"allocs":{allocs}}}"#,
            stack.name,
        );
    }
    lines
}

/// Formats a number, without decimals if it is whole.
fn decimal(number: f64) -> String {
    let text = format!("{number:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Prints a table for the rows of each baseline and each number of threads: the overheads as multiples of the first row's.
pub fn print_ratios(figures: &[Figures], tokens: &[usize], threads: &[usize]) {
    let find = |stack: &Stack, tokens, threads| {
        figures.iter().find(move |f| (f.stack.name, f.tokens, f.threads) == (stack.name, tokens, threads))
    };
    let overhead =
        |stack: &Stack, tokens, threads| find(stack, tokens, threads).map_or(f64::NAN, |figures| figures.overhead_ns);

    for group in STACKS.chunk_by(|a, b| a.base == b.base) {
        for &threads in threads {
            let first = &group[0];
            println!("\nOverheads over \"{}\" as multiples of the first row's, {threads} thread(s):\n", first.base);
            let counts = tokens.iter().map(|tokens| format!(" {tokens} |")).collect::<String>();
            println!("| tokens |{counts} growth | allocations |");
            println!("|---|{}---:|---:|", "---:|".repeat(tokens.len()));
            for stack in group.iter().filter(|stack| stack.name != stack.base) {
                let ratio = |&tokens| overhead(stack, tokens, threads) / overhead(first, tokens, threads);
                let ratios = tokens.iter().map(|tokens| format!(" {:.2} |", ratio(tokens))).collect::<String>();
                let at = |tokens: Option<&usize>| tokens.map_or(f64::NAN, |&tokens| overhead(stack, tokens, threads));
                let growth = at(tokens.iter().max()) / at(tokens.iter().min());
                let allocs =
                    tokens.first().and_then(|&tokens| find(stack, tokens, threads)).map_or(f64::NAN, |f| f.allocs);
                println!("| {} |{ratios} {growth:.2} | {} |", stack.name, decimal(allocs));
            }
        }
    }
    println!("\nGrowth: the overhead with the most tokens divided by the overhead with the fewest.");
}
