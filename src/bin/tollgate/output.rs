//! The output of exports: CSV or JSON lines, on standard output or in a new file.

use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use clap::builder::{PathBufValueParser, TypedValueParser as _};
use clap::{Args, ValueEnum};
use serde::Serialize;
use tempfile::NamedTempFile;

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

/// Writes lines. The file has its name after [`finish`](Self::finish), so that an incomplete export is not taken for a whole one.
pub(crate) struct Writer {
    to: To,
    file: Option<(NamedTempFile, PathBuf)>,
}

enum To {
    Csv(Box<csv::Writer<Box<dyn Write>>>),
    Jsonl(Box<dyn Write>),
}

impl Output {
    /// Creates the file. Writes the header of CSV with these columns.
    pub(crate) fn begin(self, columns: &[&str]) -> Result<Writer, Failure> {
        let file = self.output.map(|path| Ok((temporary(&path)?, path))).transpose().map_err(not_created)?;
        let out: Box<dyn Write> = match &file {
            None => Box::new(io::stdout().lock()),
            Some((file, _)) => Box::new(file.reopen().map_err(not_created)?),
        };
        let out: Box<dyn Write> = Box::new(BufWriter::new(out));
        let mut writer = Writer {
            to: match self.format {
                Format::Csv => To::Csv(Box::new(csv::Writer::from_writer(out))),
                Format::Jsonl => To::Jsonl(out),
            },
            file,
        };
        if let To::Csv(csv) = &mut writer.to {
            csv.write_record(columns).map_err(csv_failed)?;
        }
        Ok(writer)
    }
}

/// Creates a file beside this path, which only its owner can read. Dropping it removes it.
fn temporary(path: &Path) -> io::Result<NamedTempFile> {
    if path.symlink_metadata().is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    tempfile::Builder::new().prefix(".tollgate-export-").tempfile_in(folder)
}

fn not_created(error: io::Error) -> Failure {
    Failure::Failed(format!("the output file could not be created: {error}"))
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
        let Some((file, path)) = self.file else { return Ok(()) };
        file.as_file().sync_all().map_err(failed)?;
        // Another process may have created the file meanwhile.
        file.persist_noclobber(path).map(drop).map_err(|error| not_created(error.error))
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
