//! Lets valgrind look for branches and indices that depend on a stored digest: it is marked as undefined, and memcheck
//! tells of every decision that is made on something undefined. `just timing-valgrind`.
//!
//! A comparison that stops at the first difference is the positive control, which memcheck must find.

use std::env;
use std::error::Error;
use std::hint::black_box;
use std::process::{Command, ExitCode};

use crabgrind::RunMode;
use crabgrind::memcheck::{MemState, mark_mem};
use tollgate::TokenDigest;

type Compare = fn(&[u8; 32], &[u8; 32]) -> bool;

/// What is compared how, and whether memcheck has to find something.
const ROWS: [(&str, Compare, bool); 2] = [("digest", digest, false), ("control", control, true)];

#[inline(never)]
fn digest(stored: &[u8; 32], presented: &[u8; 32]) -> bool {
    black_box(TokenDigest::from_bytes(*stored)) == black_box(TokenDigest::from_bytes(*presented))
}

#[inline(never)]
fn control(stored: &[u8; 32], presented: &[u8; 32]) -> bool {
    stored.iter().zip(presented).all(|(stored, presented)| black_box(stored) == black_box(presented))
}

/// Compares with a secret: equal, and different in each byte.
fn run(compare: Compare) {
    assert_eq!(crabgrind::run_mode(), RunMode::Valgrind);
    let presented = TokenDigest::of("a token").to_bytes();
    for differs_at in (0..32).map(Some).chain([None]) {
        let mut stored = presented;
        if let Some(at) = differs_at {
            stored[at] ^= 1;
        }
        mark(&mut stored, MemState::Undefined);
        let mut equal = compare(&stored, &presented);
        // What came out is no secret: it is the answer.
        mark(&mut equal, MemState::Defined);
        assert_eq!(equal, differs_at.is_none());
    }
}

fn mark<T>(value: &mut T, state: MemState) {
    let at: *mut T = value;
    // It says that valgrind is missing where valgrind is there.
    let _ = mark_mem(at.cast(), size_of::<T>(), state);
    // The compiler may not go on with a copy that valgrind was not told of.
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
    for (name, _, has_to_find) in ROWS {
        let mut valgrind = Command::new("valgrind");
        valgrind.args(["--quiet", &format!("--error-exitcode={FOUND}")]).arg(env::current_exe()?).arg(name);
        let output = valgrind.output()?;
        let found = match output.status.code() {
            Some(0) => false,
            Some(FOUND) => true,
            _ => return Err(String::from_utf8_lossy(&output.stderr).into()),
        };
        let kept = found == has_to_find;
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
