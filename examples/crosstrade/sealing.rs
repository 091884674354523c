//! The key that seals tokens, so that the account page can show them again.

use std::error::Error;
use std::fs;
use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use tollgate::store::sql::{Sealer, SealingKey};

/// The environment variable with the keys, `ID:KEY` separated by commas. The first one seals.
pub(crate) const KEYS: &str = "CROSSTRADE_SEALING_KEYS";

/// Returns the keys in [`KEYS`]. Without them, a SQLite database has a key in a file beside it, which is created if it is missing.
pub(crate) fn sealer(url: &str) -> Result<Sealer, Box<dyn Error>> {
    if let Ok(keys) = std::env::var(KEYS) {
        return Ok(keys.parse()?);
    }
    let file = beside(url).ok_or_else(|| format!("PostgreSQL needs {KEYS}, the same for all replicas"))?;
    read_or_create(&file).map_err(|error| format!("{}: {error}", file.display()).into())
}

/// Returns the file with the key of a SQLite database.
fn beside(url: &str) -> Option<PathBuf> {
    let path = url.strip_prefix("sqlite:")?;
    let path = path.strip_prefix("//").unwrap_or(path);
    let path = path.split('?').next().unwrap_or(path);
    Some(Path::new(path).with_extension("key"))
}

fn read_or_create(file: &Path) -> Result<Sealer, Box<dyn Error>> {
    match fs::read_to_string(file) {
        Ok(key) => return Ok(key.parse()?),
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        Err(error) => return Err(error.into()),
    }
    // Another replica may create the file at the same time: the first link wins, and no reader sees half a key.
    // Not named by the process: in containers all have the same id.
    let draft = file.with_extension(format!("key.{:016x}", getrandom::u64()?));
    write_private(&draft, &SealingKey::generate("first")?.expose())?;
    let linked = fs::hard_link(&draft, file);
    fs::remove_file(&draft)?;
    match linked {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error.into()),
        _ => Ok(fs::read_to_string(file)?.parse()?),
    }
}

/// Writes a new file that only this user can read.
fn write_private(file: &Path, text: &str) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(file)?;
    file.write_all(text.as_bytes())?;
    // Before it has its name: a file without its content would be no key.
    file.sync_all()
}
