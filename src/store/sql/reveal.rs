//! Tokens that can be revealed again: seal, reveal, reseal.

use serde_json::{Value, json};

use super::admin::{LOCK, check_active};
use super::audit::record;
use super::database::administer;
use super::record::{digest_of, read};
use super::sealer::Sealer;
use super::{Database, SqlError};
use crate::grant::GrantId;
use crate::token::TokenDigest;
use crate::token::mint::Secret;

/// The digest of the current token, and the sealed token.
const CURRENT: &str = "SELECT digest, sealed FROM {p}tokens WHERE grant_id = $1 AND rotated_until_ms IS NULL";
const SEAL: &str = "UPDATE {p}tokens SET sealed = $2 WHERE digest = $1";
/// The number of tokens that a transaction reseals.
const RESEAL: i64 = 1_000;

/// Reads an active grant, and its current token if there is one. Locks the row: no rotation and no revocation must run at the same
/// time.
macro_rules! current {
    ($database:expr, $transaction:ident, $id:expr) => {{
        let row = sqlx::query($database.sql(LOCK)).bind($id.as_str()).fetch_optional(&mut *$transaction).await?;
        let grant = read(&row.ok_or(SqlError::NotFound)?)?;
        check_active(&grant, $database.now())?;
        let current = sqlx::query_as($database.sql(CURRENT)).bind($id.as_str()).fetch_optional(&mut *$transaction);
        let current: Option<(Vec<u8>, Option<String>)> = current.await?;
        (grant, current)
    }};
}

/// Tokens that can be revealed again. By default, a token is shown once, when it is issued.
///
/// With a [`Sealer`], the database also stores new tokens, encrypted with a key that the database does not have. The
/// [guide](crate::guide::reveal) has the rules for the service.
impl Database {
    /// Sets the keys of tokens that can be revealed again. From then on, [`issue`](Self::issue) and [`rotate`](Self::rotate)
    /// seal the new token. Default: tokens are not stored.
    ///
    /// Imported tokens are not sealed, because an import has digests only. [`seal`](Self::seal) seals them later, or their next
    /// rotation does.
    ///
    /// ```no_run
    /// use tollgate::mint::TokenFormat;
    /// use tollgate::store::sql::{Database, NewGrant, Sealer};
    ///
    /// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
    /// let sealer: Sealer = std::env::var("TOLLGATE_SEALING_KEYS")?.parse()?;
    /// let database = Database::connect("sqlite://tokens.db").await?.with_sealer(sealer);
    /// let issued = database.issue(&TokenFormat::new("acme")?, &NewGrant::new("alice")).await?;
    ///
    /// let token = database.acting_as("customer:alice")?.reveal(&issued.grant.id).await?;
    /// assert_eq!(token.expose(), issued.secret.expose());
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_sealer(self, sealer: Sealer) -> Self {
        self.map(|inner| inner.sealer = Some(sealer))
    }

    /// Returns the current token of a grant. Writes the entry `reveal` to the [audit trail](Self::audit) in the same transaction.
    /// So set the [actor](Self::acting_as), and check before that the actor may see the token.
    ///
    /// A token that was rotated or revoked is never revealed: its sealed text was erased. The token of a suspended grant is
    /// revealed.
    ///
    /// # Errors
    ///
    /// - [`SqlError::NotFound`], [`SqlError::Revoked`] or [`SqlError::Expired`]: the grant has no token to reveal.
    /// - [`SqlError::NotSealed`]: the token was issued without a sealer, or was imported.
    /// - [`SqlError::NoSealer`] or [`SqlError::UnknownSealingKey`]: this handle lacks the key.
    /// - [`SqlError::NotOpened`]: the row or the key was changed.
    /// - If the database fails.
    pub async fn reveal(&self, id: &GrantId) -> Result<Secret, SqlError> {
        let sealer = self.sealer()?;
        administer!(self, Writes, transaction => {
            let (grant, current) = current!(self, transaction, id);
            let (digest, sealed) = current.ok_or(SqlError::NotSealed)?;
            let secret = sealer.open(&sealed.ok_or(SqlError::NotSealed)?, id, digest_of(&digest)?)?;
            record!(self, transaction, "reveal", [vec![id.as_str(), grant.subject.as_str()]]);
            Ok(secret)
        })
    }

    /// Seals the current token of a grant, such as an imported one. For services that have the token, because they stored it
    /// themselves so far. An already sealed token is sealed again. The grant does not change, so the audit trail gets no entry.
    ///
    /// # Errors
    ///
    /// [`SqlError::NotFound`] if the grant does not exist, or this is not its current token. [`SqlError::Revoked`] or
    /// [`SqlError::Expired`] if the grant has ended. [`SqlError::NoSealer`], or if the database fails.
    pub async fn seal(&self, id: &GrantId, token: &str) -> Result<(), SqlError> {
        let sealed = self.sealer()?.seal(id, token)?;
        administer!(self, Writes, transaction => {
            let (_, current) = current!(self, transaction, id);
            let (digest, _) = current.ok_or(SqlError::NotFound)?;
            if digest_of(&digest)? != TokenDigest::of(token) {
                return Err(SqlError::NotFound);
            }
            sqlx::query(self.sql(SEAL)).bind(digest).bind(sealed).execute(&mut *transaction).await?;
            Ok(())
        })
    }

    /// Seals the tokens of all other keys with the current key, so that the other keys can be removed. Returns the number of these
    /// tokens.
    /// [`Sealer`] has the steps to replace a key. Caches are not invalidated.
    ///
    /// Works in parts: each transaction reseals up to 1,000 tokens and has its own [timeout](Self::with_admin_timeout).
    ///
    /// # Errors
    ///
    /// [`SqlError::InvalidRow`] names the first grant whose token cannot be opened. All other tokens are resealed. After an error
    /// of the database, some tokens may be resealed. [`SqlError::NoSealer`] if there is no sealer.
    pub async fn reseal(&self) -> Result<u64, SqlError> {
        // A grant has at most one current token. Rows are locked in the order of ids, as by all changes of grants.
        const OTHERS: &str = "SELECT g.id, g.subject, t.digest, t.sealed FROM {p}grants g JOIN {p}tokens t ON t.grant_id = g.id \
             WHERE g.id > $1 AND t.rotated_until_ms IS NULL AND substr(t.sealed, 1, length($2)) <> $2 \
             ORDER BY g.id LIMIT $3 {for_update}";
        const RESEALED: &str = "UPDATE {p}tokens SET sealed = item.value ->> 1 \
             FROM {json_elements}(CAST($1 AS {json})) AS item WHERE digest = {digest}";
        let sealer = self.sealer()?;
        let lead = sealer.current().lead();
        let (mut after, mut resealed, mut first_error) = (String::new(), 0, None);
        loop {
            let last = administer!(self, Writes, transaction => {
                let others = sqlx::query_as(self.sql(OTHERS)).bind(&after).bind(&lead).bind(RESEAL);
                let others: Vec<(String, String, Vec<u8>, String)> = others.fetch_all(&mut *transaction).await?;
                let mut sealed = Vec::with_capacity(others.len());
                for (id, subject, digest, old) in &others {
                    match reseal(sealer, &id.as_str().into(), digest, old) {
                        Ok(row) => sealed.push(row),
                        Err(error) => _ = first_error.get_or_insert_with(|| SqlError::of_row(id.as_str(), subject.as_str(), error)),
                    }
                }
                let update = sqlx::query(self.sql(RESEALED)).bind(Value::from(sealed).to_string());
                let number = update.execute(&mut *transaction).await?.rows_affected();
                Ok(others.into_iter().next_back().map(|(id, ..)| (id, number)))
            })?;
            let Some((id, number)) = last else { return first_error.map_or(Ok(resealed), Err) };
            (after, resealed) = (id, resealed + number);
        }
    }

    fn sealer(&self) -> Result<&Sealer, SqlError> {
        self.0.sealer.as_ref().ok_or(SqlError::NoSealer)
    }
}

/// Returns the digest of a token and the token, sealed with the current key.
fn reseal(sealer: &Sealer, id: &GrantId, digest: &[u8], sealed: &str) -> Result<Value, SqlError> {
    let digest = digest_of(digest)?;
    let secret = sealer.open(sealed, id, digest)?;
    Ok(json!([digest.to_hex(), sealer.seal(id, secret.expose())?]))
}
