//! Writes the seeds of all targets into `seeds/`, one numbered file each.

use std::path::Path;
use std::{fs, io};

use tollgate_fuzz::{TARGETS, vectors};

fn main() -> io::Result<()> {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/seeds"));
    for (target, _) in TARGETS {
        let folder = folder.join(target);
        // Remove seeds of former vectors.
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        let seeds = vectors::seeds(target);
        println!("{target}: {} seeds", seeds.len());
        for (number, seed) in seeds.iter().enumerate() {
            fs::write(folder.join(format!("{number:03}")), seed)?;
        }
    }
    Ok(())
}
