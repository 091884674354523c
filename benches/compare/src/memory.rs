//! Resident memory for each token: the growth of a new process, by `/proc/self/statm`, while it builds one stack and
//! sends each token once.

use std::env;
use std::fs;
use std::process::Command;

use crate::floor::bearer;
use crate::stacks::{Limit, Stack};

/// The option that makes a process measure itself.
pub const OPTION: &str = "memory-of";

/// Measures a stack in a new process. Returns `None` without `/proc`.
pub fn of(stack: &Stack, tokens: usize) -> Option<f64> {
    resident()?;
    let mut child = Command::new(env::current_exe().ok()?);
    let output = child.arg(format!("--{OPTION}")).arg(stack.name).arg("--tokens").arg(tokens.to_string()).output();
    String::from_utf8(output.ok()?.stdout).ok()?.trim().parse().ok()
}

/// Measures a stack within this process. Returns `None` without `/proc`.
pub fn here(stack: &Stack, tokens: usize) -> Option<f64> {
    // Memory that axum and the runtime need once is allocated before.
    let small = (stack.build)(1, Limit::Unlimited);
    small.answer(0);
    let before = resident()?;
    let row = (stack.build)(tokens, Limit::Unlimited);
    for some in (0..tokens).collect::<Vec<_>>().chunks(1_000) {
        row.send(&some.iter().copied().map(bearer).collect::<Vec<_>>());
    }
    Some((resident()? - before) / tokens as f64)
}

/// Returns the resident bytes of this process.
fn resident() -> Option<f64> {
    let pages = fs::read_to_string("/proc/self/statm").ok()?;
    Some(pages.split(' ').nth(1)?.parse::<f64>().ok()? * 4_096.0)
}
