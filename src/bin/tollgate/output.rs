//! The output of exports: CSV or JSON lines, on standard output or in a new file.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use clap::builder::{PathBufValueParser, TypedValueParser as _};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::run::Failure;

/// The formats of imports and exports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table with a header line
    Csv,
    /// A JSON object in each line
    Jsonl,
}

/// Options of exports.
#[derive(Args, Debug)]
pub(crate) struct Output {
    /// Format of the export
    #[arg(long, default_value = "jsonl")]
    format: Format,
    /// Write to this new file, which only its owner can read, instead of standard output
    #[arg(long, value_name = "FILE", value_parser = PathBufValueParser::new().try_map(file))]
    output: Option<PathBuf>,
}

/// Rejects the usual name of standard output, which would create a file named `-`.
fn file(path: PathBuf) -> Result<PathBuf, &'static str> {
    match path.as_os_str() == "-" {
        true => Err("must be the name of a new file"),
        false => Ok(path),
    }
}

/// A line of an export. JSON lines are its serialized form.
pub(crate) trait Line: Serialize {
    /// The header of a CSV file.
    const COLUMNS: &'static [&'static str];

    /// Returns the row of a CSV file.
    fn cells(&self) -> Result<Vec<String>, serde_json::Error>;
}

/// Writes lines. Removes the file when it is dropped before [`finish`](Self::finish).
pub(crate) struct Writer {
    to: To,
    incomplete: Option<PathBuf>,
}

enum To {
    Csv(Box<csv::Writer<Box<dyn Write>>>),
    Jsonl(Box<dyn Write>),
}

impl Output {
    /// Creates the file. Writes the header of CSV with these columns.
    pub(crate) fn begin(self, columns: &[&str]) -> Result<Writer, Failure> {
        let out: Box<dyn Write> = match &self.output {
            None => Box::new(io::stdout().lock()),
            Some(path) => Box::new(create(path).map_err(|error| {
                // The text contains no path.
                Failure::Failed(format!("the output file could not be created: {error}"))
            })?),
        };
        let out: Box<dyn Write> = Box::new(BufWriter::new(out));
        let mut writer = Writer {
            to: match self.format {
                Format::Csv => To::Csv(Box::new(csv::Writer::from_writer(out))),
                Format::Jsonl => To::Jsonl(out),
            },
            incomplete: self.output,
        };
        if let To::Csv(csv) = &mut writer.to {
            csv.write_record(columns).map_err(csv_failed)?;
        }
        Ok(writer)
    }
}

fn create(path: &PathBuf) -> io::Result<File> {
    let mut options = OpenOptions::new();
    // An existing file may be readable by others.
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

impl Writer {
    pub(crate) fn write<T: Line>(&mut self, line: &T) -> Result<(), Failure> {
        match &mut self.to {
            To::Csv(csv) => csv.write_record(line.cells().map_err(failed)?).map_err(csv_failed),
            To::Jsonl(out) => {
                serde_json::to_writer(&mut *out, line).map_err(failed)?;
                out.write_all(b"\n").map_err(failed)
            }
        }
    }

    pub(crate) fn finish(mut self) -> Result<(), Failure> {
        match &mut self.to {
            To::Csv(csv) => csv.flush(),
            To::Jsonl(out) => out.flush(),
        }
        .map_err(failed)?;
        self.incomplete = None;
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Some(path) = &self.incomplete {
            _ = std::fs::remove_file(path);
        }
    }
}

fn csv_failed(error: csv::Error) -> Failure {
    match error.into_kind() {
        // `io::Error::from(csv::Error)` loses the kind.
        csv::ErrorKind::Io(error) => failed(error),
        kind => failed(io::Error::other(format!("{kind:?}"))),
    }
}

fn failed(error: impl Into<io::Error>) -> Failure {
    match error.into() {
        error if error.kind() == io::ErrorKind::BrokenPipe => Failure::NoReader,
        error => Failure::Failed(format!("cannot write the export: {error}")),
    }
}
