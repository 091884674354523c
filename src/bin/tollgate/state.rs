//! The commands that suspend, resume and revoke grants.

use tollgate::store::sql::SqlError;
use tollgate::{GrantId, Subject};

use crate::args::Selected;
use crate::run::{Failure, find, open};
use crate::show::{self, plain};

/// The state of a grant after a command.
#[derive(Clone, Copy, Debug)]
pub(crate) enum State {
    Suspended,
    Resumed,
    Revoked,
}

impl State {
    fn as_str(self) -> &'static str {
        match self {
            Self::Suspended => "suspended",
            Self::Resumed => "resumed",
            Self::Revoked => "revoked",
        }
    }

    /// Returns the error for a grant that is not changed.
    fn unchanged(self) -> &'static str {
        match self {
            Self::Suspended => "the grant is already suspended",
            Self::Resumed => "the grant is not suspended",
            Self::Revoked => "the grant is already revoked",
        }
    }

    /// Returns the error for a subject without grants that are changed.
    fn none(self) -> &'static str {
        match self {
            Self::Suspended => "the subject has no grants to suspend",
            Self::Resumed => "the subject has no grants to resume",
            Self::Revoked => "the subject has no grants to revoke",
        }
    }
}

/// Changes the state of a grant, or of all grants of a subject. Returns an error if nothing was changed.
pub(crate) async fn set(state: State, Selected { options, id, subject }: Selected) -> Result<(), Failure> {
    let database = open(&options.tables).await?;
    let Some(id) = id else {
        let subject = Subject::from(subject.unwrap_or_default());
        let grants = match state {
            State::Suspended => database.suspend_subject(&subject).await,
            State::Resumed => database.resume_subject(&subject).await,
            State::Revoked => database.revoke_subject(&subject).await,
        }
        .map_err(failed)?;
        return match grants.len() {
            0 => Err(Failure::Failed(state.none().to_owned())),
            _ if options.json => Ok(show::print(&show::json_list(&grants))?),
            number => Ok(show::print(&format!("{} {number} of {}", state.as_str(), plain(subject.as_str())))?),
        };
    };
    let id = GrantId::from(id);
    let is_changed: Result<bool, SqlError> = match state {
        State::Suspended => database.suspend(&id).await,
        State::Resumed => database.resume(&id).await,
        State::Revoked => database.revoke(&id).await,
    };
    let is_changed = is_changed.map_err(failed)?;
    let grant = find(&database, id.as_str()).await?;
    match is_changed {
        true if options.json => Ok(show::print(&show::json(&grant))?),
        true => Ok(show::print(&format!("{} {}", state.as_str(), plain(id.as_str())))?),
        false if grant.revoked_at.is_some() => Err(Failure::Failed(State::Revoked.unchanged().to_owned())),
        false => Err(Failure::Failed(state.unchanged().to_owned())),
    }
}

/// Says that the change was made although the row of a grant cannot be read.
fn failed(error: SqlError) -> Failure {
    match error {
        SqlError::InvalidRow { .. } => Failure::Failed(format!("{}; the change was made", Failure::Database(error))),
        error => error.into(),
    }
}
