//! Files with secrets.

use std::path::Path;

use zeroize::Zeroizing;

use crate::run::Failure;
use crate::show;

/// Reads a file with a secret. `name` is that of the secret, such as `the sealing keys`. Warns if other users can read the file.
pub(crate) fn read(file: &Path, name: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
    // The text contains no path.
    let secret = std::fs::read(file).map_err(|error| Failure::Usage(format!("cannot read {name}: {error}")))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        if std::fs::metadata(file).is_ok_and(|file| file.permissions().mode() & 0o044 != 0) {
            show::eprint("warning: other users of this machine can read the file of the secret: run `chmod 600` on it");
        }
    }
    Ok(Zeroizing::new(secret))
}
