//! The users that the program prints at the start, and their tokens.

use std::env::VarError;
use std::error::Error;
use std::time::{Duration, SystemTime};

use tollgate::mint::Secret;
use tollgate::store::sql::{Database, NewGrant, SqlError};

use crate::app::TRADE;
use crate::website::tokens::{self, grant_of, is_active};
use crate::website::users::{MAX_PASSWORD, User, Users, is_plausible};

/// The environment variable with the password of the users. Without it they get a new one at each start.
pub(crate) const PASSWORD: &str = "CROSSTRADE_PASSWORD";

/// The values that the program prints.
pub(crate) struct Demo {
    /// The token of `demo`, which may trade.
    pub(crate) trader: Secret,
    /// The token of `guest`, which may only read.
    pub(crate) reader: Secret,
    /// The password of `demo`, `guest` and `support`.
    pub(crate) password: String,
}

impl Demo {
    /// Creates the users and their tokens, or finds those of earlier runs. Other replicas may do so at the same time.
    pub(crate) async fn set_up(database: &Database, users: &Users) -> Result<Self, Box<dyn Error>> {
        let password = match std::env::var(PASSWORD) {
            Ok(password) => password,
            Err(VarError::NotPresent) => random_password()?,
            Err(VarError::NotUnicode(_)) => return Err(format!("{PASSWORD} is not valid Unicode").into()),
        };
        if !is_plausible("demo", &password) {
            return Err(format!("{PASSWORD} must have 1 to {MAX_PASSWORD} bytes").into());
        }
        for (name, is_support) in [("demo", false), ("guest", false), ("support", true)] {
            users.set(&User { name: name.to_owned(), is_support }, &password).await?;
        }
        let database = database.acting_as("crosstrade")?;
        let trader = NewGrant::new("demo").with_label("may trade").with_scopes([TRADE])?;
        let reader = NewGrant::new("guest").with_label("may only read");
        let trader = token(&database, "demo", &trader.with_max_active(1)).await?;
        let reader = token(&database, "guest", &reader.with_max_active(1)).await?;
        Ok(Self { trader, reader, password })
    }
}

/// Returns the only token of a user, which is issued if there is none.
async fn token(database: &Database, user: &str, grant: &NewGrant) -> Result<Secret, Box<dyn Error>> {
    let format = tokens::format()?;
    match database.issue(&format, grant).await {
        Ok(issued) => return Ok(issued.secret),
        Err(SqlError::TooManyGrants { .. }) => {}
        Err(error) => return Err(error.into()),
    }
    let now = SystemTime::now();
    let found = grant_of(database, user, now).await?.filter(|grant| is_active(grant, now));
    let found = found.ok_or("the demo token was revoked a moment ago")?;
    match database.reveal(&found.id).await {
        // The key is another one, or the token was imported.
        Err(SqlError::NotSealed | SqlError::UnknownSealingKey { .. } | SqlError::NotOpened) => {
            Ok(database.rotate(&found.id, &format, Duration::ZERO).await?.secret)
        }
        revealed => Ok(revealed?),
    }
}

/// Returns 80 random bits.
fn random_password() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 10];
    getrandom::fill(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
