//! Resident memory a token: the growth of a fresh process, by `/proc/self/statm`, while it builds one stack and sends
//! each token once.

use std::env;
use std::fs;
use std::process::Command;

use crate::floor::bearer;
use crate::stacks::{Budget, Stack};

/// The option by which a process is told to measure itself.
pub const OPTION: &str = "memory-of";

/// Starts a process for a stack. `None` where there is no `/proc`.
pub fn of(stack: &Stack, tokens: usize) -> Option<f64> {
    resident()?;
    let mut child = Command::new(env::current_exe().ok()?);
    let output = child.arg(format!("--{OPTION}")).arg(stack.name).arg("--tokens").arg(tokens.to_string()).output();
    String::from_utf8(output.ok()?.stdout).ok()?.trim().parse().ok()
}

/// The same within that process.
pub fn here(stack: &Stack, tokens: usize) -> Option<f64> {
    // What axum and the runtime need once is there before.
    let small = (stack.build)(1, Budget::Plenty);
    small.answer(0);
    let before = resident()?;
    let row = (stack.build)(tokens, Budget::Plenty);
    for some in (0..tokens).collect::<Vec<_>>().chunks(1_000) {
        row.send(&some.iter().copied().map(bearer).collect::<Vec<_>>());
    }
    Some((resident()? - before) / tokens as f64)
}

/// The bytes of this process that are in memory.
fn resident() -> Option<f64> {
    let pages = fs::read_to_string("/proc/self/statm").ok()?;
    Some(pages.split(' ').nth(1)?.parse::<f64>().ok()? * 4_096.0)
}
