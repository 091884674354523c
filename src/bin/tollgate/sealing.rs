//! The commands for tokens that can be revealed again, and their keys.

use std::io::{self, BufRead as _, IsTerminal as _};
use std::path::PathBuf;
use std::time::SystemTime;

use clap::Args;
use serde_json::json;
use tollgate::store::sql::{Database, Sealer, SealingKey, SealingKeyError};
use zeroize::Zeroizing;

use crate::args::Options;
use crate::parse::name;
use crate::run::{Failure, check_output, find, open};
use crate::secret_file;
use crate::show;

/// The environment variable with the text of the keys.
const KEYS: &str = "TOLLGATE_SEALING_KEYS";

pub(crate) const REVEAL: &str = "\
Standard output has the token and nothing else. Standard error has the grant.
With `--json`, standard output has one document: the fields of the grant, and the token as `token`.

The audit trail gets the entry `reveal` with the name of the system's user.";

/// The option of commands that seal and open tokens.
#[derive(Args, Debug)]
pub(crate) struct Keys {
    /// File with the keys that seal tokens, one ID:KEY a line; the first seals, all open [env: TOLLGATE_SEALING_KEYS has the keys
    /// themselves]
    #[arg(long, value_name = "FILE")]
    sealing_keys: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub(crate) struct Reveal {
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    keys: Keys,
    /// Id of the grant
    #[arg(value_parser = name)]
    id: String,
    /// Do not ask; required without a terminal
    #[arg(long)]
    yes: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Reseal {
    #[command(flatten)]
    options: Options,
    #[command(flatten)]
    keys: Keys,
}

#[derive(Args, Debug)]
pub(crate) struct Generate {
    /// Id of the key: lower-case letters, digits, `-` and `_` [default: the date and random digits]
    #[arg(long)]
    id: Option<String>,
}

impl Keys {
    /// Returns the keys of the file or of the environment. `None` if neither is given.
    fn sealer(&self) -> Result<Option<Sealer>, Failure> {
        let text = match (&self.sealing_keys, std::env::var_os(KEYS)) {
            (Some(file), _) => secret_file::read(file, "the sealing keys")?,
            (None, Some(keys)) => Zeroizing::new(keys.into_encoded_bytes()),
            (None, None) => return Ok(None),
        };
        let text = std::str::from_utf8(&text).map_err(|_| SealingKeyError::Key)?;
        Ok(Some(text.parse()?))
    }

    fn required(&self) -> Result<Sealer, Failure> {
        let missing = || Failure::Usage(format!("no sealing keys: give `--sealing-keys FILE` or set {KEYS}"));
        self.sealer()?.ok_or_else(missing)
    }

    /// Returns the database with the keys, if they are given.
    pub(crate) fn apply(&self, database: Database) -> Result<Database, Failure> {
        Ok(match self.sealer()? {
            Some(sealer) => database.with_sealer(sealer),
            None => database,
        })
    }
}

impl From<SealingKeyError> for Failure {
    fn from(error: SealingKeyError) -> Self {
        match error {
            SealingKeyError::Randomness(error) => Self::Failed(error.to_string()),
            error => Self::Usage(error.to_string()),
        }
    }
}

/// Prints the token of a grant, after a confirmation.
pub(crate) async fn reveal(Reveal { options, keys, id, yes }: Reveal) -> Result<(), Failure> {
    let sealer = keys.required()?;
    if !yes && !io::stdin().is_terminal() {
        return Err(Failure::Usage("standard input is not a terminal: give `--yes` to reveal the token".to_owned()));
    }
    check_output()?;
    let database = open(&options.tables).await?.with_sealer(sealer);
    let grant = find(&database, &id).await?;
    if !yes {
        confirm(&format!("{}\nReveal the token of this grant? [y/N]", show::details(&grant)))?;
    }
    let secret = database.reveal(&grant.id).await?;
    let output = match options.json {
        true => show::json_issued(&secret, &grant),
        false => {
            // The question has shown the grant.
            if yes {
                show::eprint(&show::details(&grant));
            }
            Zeroizing::new(secret.expose().to_owned())
        }
    };
    Ok(show::print(&output)?)
}

/// Asks on the terminal. Returns an error unless the answer is yes.
fn confirm(question: &str) -> Result<(), Failure> {
    show::eprint(question);
    let mut answer = String::new();
    let read = io::stdin().lock().read_line(&mut answer);
    read.map_err(|error| Failure::Failed(format!("cannot read the answer: {error}")))?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::Failed("not confirmed; nothing was revealed".to_owned())),
    }
}

/// Seals all tokens with the first key.
pub(crate) async fn reseal(Reseal { options, keys }: Reseal) -> Result<(), Failure> {
    let sealer = keys.required()?;
    let resealed = open(&options.tables).await?.with_sealer(sealer).reseal().await?;
    Ok(show::print(&match options.json {
        true => json!({ "resealed": resealed }).to_string(),
        false => format!("resealed {resealed}"),
    })?)
}

/// Prints a new key.
pub(crate) fn generate(Generate { id }: Generate) -> Result<(), Failure> {
    let key = SealingKey::generate(&id.map_or_else(new_id, Ok)?)?;
    Ok(show::print(&Zeroizing::new(key.expose()))?)
}

/// Returns an id from the date and random digits. Two keys must not have the same id, even if they are made on the same day.
fn new_id() -> Result<String, Failure> {
    let time = humantime::format_rfc3339(SystemTime::now()).to_string();
    let random =
        getrandom::u32().map_err(|error| Failure::Failed(format!("the system provides no random bytes: {error}")))?;
    Ok(format!("{}-{random:08x}", &time[.."2026-01-31".len()]))
}
