//! The command that imports grants.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tollgate::store::sql::{GrantImport, ImportOptions, SqlError};
use zeroize::{Zeroize as _, Zeroizing};

use crate::args::Options;
use crate::csv_lines::LineCounter;
use crate::fields::{Fields, Invalid};
use crate::output::Format;
use crate::run::{Failure, open};
use crate::show;

#[derive(Args, Debug)]
pub(crate) struct Import {
    #[command(flatten)]
    options: Options,
    /// File to read; - for standard input
    #[arg(default_value = "-")]
    file: PathBuf,
    /// Format of the file
    #[arg(long)]
    format: Format,
    /// Skip grants whose id exists, and grants without an id whose token exists
    #[arg(long)]
    skip_existing: bool,
    /// Check the file and conflicts with existing grants; import nothing
    #[arg(long)]
    dry_run: bool,
}

/// The maximum number of lines whose errors are printed. A file in another format has an error in each line.
const MAX_PRINTED: u64 = 10;

/// The timeout of the whole import.
const TIMEOUT: Duration = Duration::from_secs(3_600);

pub(crate) async fn run(import: Import) -> Result<(), Failure> {
    let database = open(&import.options.tables).await?.with_admin_timeout(TIMEOUT);
    let mut options = ImportOptions::new();
    if import.skip_existing {
        options = options.with_skip_existing();
    }
    if import.dry_run {
        options = options.with_dry_run();
    }
    let input = input(&import.file).map_err(|error| Failure::Failed(format!("cannot read the input: {error}")))?;
    let mut lines = Lines::new(input, import.format)?;
    let counts = match database.import_all(&mut lines, options).await {
        Ok(counts) => counts,
        Err(SqlError::Import { record, source }) => {
            let is_conflict = !matches!(*source, SqlError::Input(_));
            if is_conflict {
                lines.report(lines.line_of(record), &source);
                // Report the other invalid lines too.
                lines.by_ref().for_each(drop);
            }
            let number = lines.invalid;
            if number > MAX_PRINTED {
                show::eprint(&format!("and {} more", number - MAX_PRINTED));
            }
            let lines = if number == 1 { "line is" } else { "lines are" };
            // The database reports the first conflict only.
            let at_least = if is_conflict { "at least " } else { "" };
            return Err(Failure::Failed(format!("{at_least}{number} {lines} invalid; nothing was imported")));
        }
        Err(error) => return Err(error.into()),
    };
    let text = match (import.options.json, import.dry_run) {
        (true, true) => {
            format!(r#"{{"dry_run":true,"imported":{},"skipped":{}}}"#, counts.imported, counts.skipped)
        }
        (true, false) => format!(r#"{{"imported":{},"skipped":{}}}"#, counts.imported, counts.skipped),
        (false, true) => format!("would import {}, skip {}", counts.imported, counts.skipped),
        (false, false) => format!("imported {}, skipped {}", counts.imported, counts.skipped),
    };
    Ok(show::print(&text)?)
}

/// Opens the file. Reads a pipe to its end first, because a slow pipe must not keep a transaction open.
fn input(file: &PathBuf) -> io::Result<Box<dyn BufRead + Send>> {
    let mut all = Zeroizing::new(Vec::new());
    if file.as_os_str() == "-" {
        io::stdin().lock().read_to_end(&mut all)?;
    } else {
        let mut file = File::open(file)?;
        if file.metadata()?.is_file() {
            return Ok(Box::new(BufReader::new(file)));
        }
        file.read_to_end(&mut all)?;
    }
    Ok(Box::new(Cursor::new(all)))
}

/// The grants of a file. Prints an error for each invalid line. After the first one, it reads the rest of the file for other
/// invalid lines, and ends with an error.
///
/// The texts of tokens are overwritten after they were hashed. The read buffers of the standard library and of `csv` keep copies
/// of a few lines until the process ends.
struct Lines {
    source: Source,
    /// The numbers of the lines of all grants that were read.
    numbers: Vec<u64>,
    invalid: u64,
    has_ended: bool,
}

enum Source {
    Csv { records: csv::ByteRecordsIntoIter<LineCounter<Box<dyn BufRead + Send>>>, columns: Vec<&'static str> },
    Jsonl { input: Box<dyn BufRead + Send>, line: Vec<u8>, number: u64 },
}

impl Lines {
    fn new(input: Box<dyn BufRead + Send>, format: Format) -> Result<Self, Failure> {
        let source = match format {
            Format::Jsonl => Source::Jsonl { input, line: Vec::new(), number: 0 },
            Format::Csv => {
                let mut reader = csv::Reader::from_reader(LineCounter::new(input));
                let header = reader.byte_headers().map_err(|error| Failure::Failed(csv_error(&error).to_string()))?;
                let columns = crate::fields::columns(header);
                let line = reader.get_mut().line_after(0);
                let columns = columns.map_err(|invalid| Failure::Failed(format!("line {line}: {invalid}")))?;
                Source::Csv { records: reader.into_byte_records(), columns }
            }
        };
        Ok(Self { source, numbers: Vec::new(), invalid: 0, has_ended: false })
    }

    fn line_of(&self, record: u64) -> u64 {
        let index = usize::try_from(record.saturating_sub(1)).unwrap_or(usize::MAX);
        self.numbers.get(index).copied().unwrap_or(record)
    }

    fn report(&mut self, line: u64, error: &dyn std::fmt::Display) {
        self.invalid += 1;
        if self.invalid <= MAX_PRINTED {
            show::eprint(&format!("error: line {line}: {error}"));
        }
    }
}

impl Source {
    /// Reads the next grant with the number of its line.
    fn read(&mut self) -> Option<(u64, Result<GrantImport, Invalid>)> {
        match self {
            Self::Csv { records, columns } => {
                let start = records.reader().position().byte();
                let record = records.next()?;
                let number = records.reader_mut().get_mut().line_after(start);
                Some((
                    number,
                    match record {
                        Ok(record) => Fields::of_csv(columns, &record).and_then(Fields::grant),
                        Err(error) => Err(csv_error(&error)),
                    },
                ))
            }
            Self::Jsonl { input, line, number } => loop {
                // Lines may contain tokens.
                line.zeroize();
                *number += 1;
                match input.read_until(b'\n', line) {
                    Ok(0) => return None,
                    Ok(_) if line.trim_ascii().is_empty() => {}
                    Ok(_) => return Some((*number, Fields::of_json(line).and_then(Fields::grant))),
                    Err(error) => return Some((*number, Err(Invalid::input(&error)))),
                }
            },
        }
    }
}

fn csv_error(error: &csv::Error) -> Invalid {
    match error.kind() {
        csv::ErrorKind::UnequalLengths { .. } => Invalid::new("must have as many fields as the first line"),
        csv::ErrorKind::Io(error) => Invalid::input(error),
        _ => Invalid::new("invalid CSV"),
    }
}

impl Iterator for Lines {
    type Item = Result<GrantImport, SqlError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.has_ended {
            match self.source.read() {
                None => self.has_ended = true,
                Some((number, Ok(grant))) if self.invalid == 0 => {
                    self.numbers.push(number);
                    return Some(Ok(grant));
                }
                Some((_, Ok(_))) => {}
                Some((number, Err(invalid))) => {
                    self.has_ended = invalid.is_last();
                    self.report(number, &invalid);
                }
            }
            if self.has_ended && self.invalid > 0 {
                return Some(Err(SqlError::Input("invalid lines".into())));
            }
        }
        None
    }
}
