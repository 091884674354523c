//! The table, the lines for programs, and the ratios.

use crate::measure::Figures;

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

pub fn print_lines(figures: &[Figures]) {
    println!();
    for Figures { stack, tokens, threads, ns, overhead_ns, allocs, .. } in figures {
        println!(
            r#"{{"row":"{}","tokens":{tokens},"threads":{threads},"ns":{ns:.1},"overhead_ns":{overhead_ns:.1},{}}}"#,
            stack.name,
            format_args!(r#""allocs":{}"#, decimal(*allocs)),
        );
    }
}

/// Formats a number, without decimals if it is whole.
fn decimal(number: f64) -> String {
    let text = format!("{number:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// The compared rows: each first row is divided by the second.
const RATIOS: [(&str, &str); 12] = [
    ("tower_governor", "tollgate"),
    ("axum-governor", "tollgate"),
    ("axum-extra + governor", "tollgate"),
    ("hand-written", "tollgate"),
    ("tollgate", "floor"),
    ("tollgate, plain tower", "floor, plain tower"),
    ("tower_governor, plain tower", "tollgate, plain tower"),
    ("axum-governor, plain tower", "tollgate, plain tower"),
    ("hand-written, plain tower", "tollgate, plain tower"),
    ("tower_governor, by address", "tollgate, by address"),
    ("tower_governor, by address", "tollgate without headers, by address"),
    ("tower_governor with headers, by address", "tollgate, by address"),
];

pub fn print_ratios(figures: &[Figures]) {
    let mut runs: Vec<(usize, usize)> = figures.iter().map(|figures| (figures.threads, figures.tokens)).collect();
    runs.sort_unstable();
    runs.dedup();
    let overhead = |row: &str, (threads, tokens): (usize, usize)| {
        let found = figures.iter().find(|f| (f.stack.name, f.threads, f.tokens) == (row, threads, tokens));
        found.map_or(f64::NAN, |figures| figures.overhead_ns)
    };

    println!("\nOverheads as multiples of one another:\n");
    println!("| threads | tokens |{}", RATIOS.map(|(row, of)| format!(" {row} / {of} |")).concat());
    println!("|---:|---:|{}", "---:|".repeat(RATIOS.len()));
    for &run in &runs {
        let cells = RATIOS.map(|(row, of)| format!(" {:.2} |", overhead(row, run) / overhead(of, run)));
        println!("| {} | {} |{}", run.0, run.1, cells.concat());
    }

    println!("\nGrowth of the overhead from the smallest to the largest number of tokens:\n");
    for of_threads in runs.chunk_by(|a, b| a.0 == b.0) {
        let (Some(&least), Some(&most)) = (of_threads.first(), of_threads.last()) else { continue };
        for row in ["tollgate", "floor", "tollgate, plain tower", "floor, plain tower"] {
            let (small, large) = (overhead(row, least), overhead(row, most));
            let (times, more, threads) = (large / small, large - small, least.0);
            println!("{row}, {threads} thread(s), {} to {} tokens: {times:.2} times, {more:+.0} ns", least.1, most.1);
        }
    }
}
