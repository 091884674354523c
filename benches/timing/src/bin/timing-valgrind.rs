//! Checks with valgrind that no branch or index depends on a stored digest. The digest is marked as undefined, and
//! memcheck reports every decision on undefined data. `just timing-valgrind`.
//!
//! The positive control is a comparison that stops at the first difference. Memcheck must report it.

use std::env;
use std::error::Error;
use std::hint::black_box;
use std::process::{Command, ExitCode};

use crabgrind::RunMode;
use crabgrind::memcheck::{MemState, mark_mem};
use tollgate::TokenDigest;

type Compare = fn(&[u8; 32], &[u8; 32]) -> bool;

/// The comparisons, and whether memcheck must report them.
const ROWS: [(&str, Compare, bool); 2] = [("digest", digest, false), ("control", control, true)];

#[inline(never)]
fn digest(stored: &[u8; 32], sent: &[u8; 32]) -> bool {
    black_box(TokenDigest::from_bytes(*stored)) == black_box(TokenDigest::from_bytes(*sent))
}

#[inline(never)]
fn control(stored: &[u8; 32], sent: &[u8; 32]) -> bool {
    stored.iter().zip(sent).all(|(stored, sent)| black_box(stored) == black_box(sent))
}

/// Compares with a secret: equal, and different in each byte.
fn run(compare: Compare) {
    assert_eq!(crabgrind::run_mode(), RunMode::Valgrind);
    let sent = TokenDigest::of("a token").to_bytes();
    for differs_at in (0..32).map(Some).chain([None]) {
        let mut stored = sent;
        if let Some(at) = differs_at {
            stored[at] ^= 1;
        }
        mark(&mut stored, MemState::Undefined);
        let mut equal = compare(&stored, &sent);
        // The result is not secret.
        mark(&mut equal, MemState::Defined);
        assert_eq!(equal, differs_at.is_none());
    }
}

fn mark<T>(value: &mut T, state: MemState) {
    let at: *mut T = value;
    // The error says that valgrind is missing, even under valgrind.
    let _ = mark_mem(at.cast(), size_of::<T>(), state);
    // Prevents the compiler from using a copy that is not marked.
    black_box(value);
}

fn main() -> Result<ExitCode, Box<dyn Error>> {
    if let Some(name) = env::args().nth(1) {
        let (_, row, _) = ROWS.into_iter().find(|row| row.0 == name).ok_or("no such row")?;
        run(row);
        return Ok(ExitCode::SUCCESS);
    }
    const FOUND: i32 = 99;
    let mut holds = true;
    for (name, _, must_report) in ROWS {
        let mut valgrind = Command::new("valgrind");
        valgrind.args(["--quiet", &format!("--error-exitcode={FOUND}")]).arg(env::current_exe()?).arg(name);
        let output = valgrind.output()?;
        let found = match output.status.code() {
            Some(0) => false,
            Some(FOUND) => true,
            _ => return Err(String::from_utf8_lossy(&output.stderr).into()),
        };
        let kept = found == must_report;
        println!(
            "{name}: memcheck finds {} that depends on the secret: {}",
            if found { "a decision" } else { "none" },
            if kept { "as claimed" } else { "NOT AS CLAIMED" }
        );
        if !kept {
            println!("{}", String::from_utf8_lossy(&output.stderr));
        }
        holds &= kept;
    }
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
