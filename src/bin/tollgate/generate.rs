//! Files for shells and for `man`, generated from the definition of the command line.

use std::path::PathBuf;

use clap::{Args, CommandFactory as _, ValueHint};
use clap_complete::Shell;

use crate::args::Cli;
use crate::run::Failure;
use crate::show;

#[derive(Args, Debug)]
pub(crate) struct Completions {
    /// Shell of the script
    shell: Shell,
}

#[derive(Args, Debug)]
pub(crate) struct Man {
    /// Write the pages of all commands to this folder instead, which must exist
    #[arg(long, value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    out: Option<PathBuf>,
}

/// Prints a completion script.
pub(crate) fn completions(Completions { shell }: &Completions) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(*shell, &mut Cli::command(), "tollgate", &mut script);
    Ok(show::print(&String::from_utf8_lossy(&script))?)
}

/// Prints the manual page of the program, or writes the pages of all commands.
pub(crate) fn man(Man { out }: &Man) -> Result<(), Failure> {
    match out {
        Some(folder) => clap_mangen::generate_to(Cli::command(), folder)
            .map_err(|error| Failure::Failed(format!("cannot write the manual pages: {error}"))),
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command()).render(&mut page)?;
            Ok(show::print(&String::from_utf8_lossy(&page))?)
        }
    }
}
