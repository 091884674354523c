//! Checks by dudect's method that timing depends on no stored digest. A comparison must not depend on the position of a
//! difference. A lookup must not depend on what an unknown token has in common with a known one. Two classes of inputs
//! are measured in random order and compared by Welch's t-test. `just timing`.
//!
//! Each measurement has a positive control, which leaks and must be detected. The program fails if tollgate is not
//! below 4.5 or a control is not above 10.
//!
//! dudect makes 101 tests for each row, one on all measurements and the others on those below a percentile, and reports
//! the largest |t|. The number beside it is the number of measurements in that test. Among few measurements a large |t|
//! can be chance. So a control must leak among many, while for tollgate any large |t| is a failure.

use std::env;
use std::error::Error;
use std::hint::black_box;
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};

use dudect_bencher::ctbench::{BenchFn, BenchMetadata, BenchName, BenchOpts, run_benches_console};
use dudect_bencher::rand::{Rng, RngExt};
use dudect_bencher::{BenchRng, Class, CtRunner};
use tollgate::{BearerToken, Grant, MemoryStore, TokenDigest, TokenStore};

/// The measurements of each row.
const MEASUREMENTS: usize = 2_000_000;
const LOOKS_THE_SAME: f64 = 4.5;
const LEAKS: f64 = 10.0;
/// The number of measurements among which a control must leak.
const MANY: f64 = MEASUREMENTS as f64 / 20.0;

const ROWS: [(&str, BenchFn, Claim); 4] = [
    ("digest", digest, Claim::LooksTheSame),
    ("digest_control", digest_control, Claim::Leaks),
    ("lookup", lookup, Claim::LooksTheSame),
    ("lookup_control", lookup_control, Claim::Leaks),
];

enum Claim {
    LooksTheSame,
    Leaks,
}

/// Comparisons in one measurement. A single one is shorter than reading a clock.
const COMPARISONS: usize = 50;

/// Compares digests that differ in their first words only, or in their last.
fn digest(runner: &mut CtRunner, rng: &mut BenchRng) {
    measure(runner, rng, two_digests, |(ours, theirs)| {
        let (ours, theirs) = (TokenDigest::from_bytes(*ours), TokenDigest::from_bytes(*theirs));
        (0..COMPARISONS).fold(false, |any, _| any | (black_box(ours) == black_box(theirs)))
    });
}

/// Compares the same digests byte by byte and stops at the first difference.
fn digest_control(runner: &mut CtRunner, rng: &mut BenchRng) {
    measure(runner, rng, two_digests, |(ours, theirs)| {
        (0..COMPARISONS).fold(false, |any, _| any | early_exit_equal(ours, theirs))
    });
}

type TwoDigests = ([u8; 32], [u8; 32]);

fn two_digests(class: Class, rng: &mut BenchRng) -> TwoDigests {
    let mut ours = [0; 32];
    rng.fill_bytes(&mut ours);
    let mut theirs = ours;
    theirs[match class {
        Class::Left => rng.random_range(0..8),
        Class::Right => rng.random_range(24..32),
    }] ^= rng.random_range(1..=255);
    (ours, theirs)
}

/// Looks up unknown tokens. Those of one class differ from known tokens in the last character only. Those of the other
/// class resemble as many unknown tokens, so that the classes differ in nothing else.
fn lookup(runner: &mut CtRunner, rng: &mut BenchRng) {
    let [valid, random] = [(); 2].map(|()| (0..20_000).map(|_| token(rng)).collect::<Vec<_>>());
    let store: MemoryStore<()> = valid.iter().map(|token| (TokenDigest::of(token), Grant::new("x", ()))).collect();
    measure(runner, rng, near(&valid, &random), |token| store.lookup(&BearerToken::new(token)).ready());
}

/// Compares such tokens directly with the known one and stops at the first difference.
fn lookup_control(runner: &mut CtRunner, rng: &mut BenchRng) {
    let (valid, random) = (token(rng), token(rng));
    measure(runner, rng, near(&[valid], &[random]), |token| early_exit_equal(&valid, token));
}

/// Creates all inputs first, so that both classes leave the same traces in the processor, and then measures.
fn measure<I: Copy, T>(
    runner: &mut CtRunner,
    rng: &mut BenchRng,
    make: impl Fn(Class, &mut BenchRng) -> I,
    operation: impl Fn(&I) -> T,
) {
    let mut input = || {
        let class = if rng.random() { Class::Left } else { Class::Right };
        (class, make(class, rng))
    };
    let inputs: Vec<(Class, I)> = (0..MEASUREMENTS).map(|_| input()).collect();
    for (class, input) in inputs {
        // A copy that is in the cache.
        let input = black_box(input);
        runner.run_one(class, || operation(black_box(&input)));
    }
}

/// As many characters as 256 random bits have in base64.
type Token = [u8; 43];

fn token(rng: &mut BenchRng) -> Token {
    std::array::from_fn(|_| character(rng))
}

fn character(rng: &mut BenchRng) -> u8 {
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[rng.random_range(0..64)]
}

/// Returns a token of the class with another last character.
fn near(left: &[Token], right: &[Token]) -> impl Fn(Class, &mut BenchRng) -> Token {
    move |class, rng| {
        let tokens = match class {
            Class::Left => left,
            Class::Right => right,
        };
        let mut token = tokens[rng.random_range(0..tokens.len())];
        let last = token[42];
        while token[42] == last {
            token[42] = character(rng);
        }
        token
    }
}

/// The leaking comparison of the controls.
#[inline(never)]
fn early_exit_equal(a: &[u8], b: &[u8]) -> bool {
    a.iter().zip(b).all(|(a, b)| black_box(a) == black_box(b))
}

/// The option that makes a process measure. Its parent reads the results that dudect prints.
const MEASURE: &str = "--measure";

fn main() -> Result<ExitCode, Box<dyn Error>> {
    if env::args().nth(1).as_deref() == Some(MEASURE) {
        let metadata = |(name, benchfn, _)| BenchMetadata { name: BenchName(name), seed: None, benchfn };
        run_benches_console(BenchOpts::default(), ROWS.map(metadata).into())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut child = Command::new(env::current_exe()?).arg(MEASURE).stdout(Stdio::piped()).spawn()?;
    let mut report = Vec::new();
    for line in BufReader::new(child.stdout.take().ok_or("no output")?).lines() {
        report.push(line?);
    }
    if !child.wait()?.success() {
        return Err("the measuring process failed".into());
    }

    let mut holds = true;
    println!("{MEASUREMENTS} measurements of each; max |t| of dudect's tests\n");
    for (name, _, claim) in &ROWS {
        // `bench digest ... : n == +1.234M, max t = -1.23456, ..`
        let of_row = |line: &String| {
            let line = line.strip_prefix("bench ")?.strip_prefix(name)?.strip_prefix(' ')?;
            let (n, rest) = line.split_once("n == ")?.1.split_once("M, max t = ")?;
            Some((n.parse::<f64>().ok()? * 1e6, rest.split_once(',')?.0.parse::<f64>().ok()?.abs()))
        };
        let (n, t) = report.iter().find_map(of_row).ok_or_else(|| format!("no result of {name}"))?;
        let (bound, kept) = match claim {
            Claim::LooksTheSame => (format!("below {LOOKS_THE_SAME}"), t < LOOKS_THE_SAME),
            Claim::Leaks => (format!("above {LEAKS} among {MANY} or more"), t > LEAKS && n >= MANY),
        };
        let result = if kept { "holds" } else { "DOES NOT HOLD" };
        println!("{name}: |t| = {t:.2} among {n:.0}, must be {bound}: {result}");
        holds &= kept;
    }
    Ok(if holds { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
