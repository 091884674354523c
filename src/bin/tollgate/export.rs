//! The command that exports grants.

use std::num::NonZeroU32;

use clap::Args;
use serde::Serialize;
use serde_json::value::RawValue;
use tollgate::TokenLocation;
use tollgate::store::sql::{GrantRecord, SqlError, StoredToken};

use crate::args::{Filter, Tables};
use crate::output::{Line, Output};
use crate::run::{Failure, open};
use crate::show::time;

#[derive(Args, Debug)]
pub(crate) struct Export {
    #[command(flatten)]
    tables: Tables,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    output: Output,
    /// Export the digests of tokens too, for an import into another database; needs --output
    #[arg(long, requires = "output")]
    with_digests: bool,
}

/// The number of rows that a list without a limit, or an export, reads at a time.
pub(crate) const PAGE: NonZeroU32 = NonZeroU32::new(1_000).unwrap();

/// The fields of a grant. `import` reads the same fields.
pub(crate) const FIELDS: [&str; 16] = [
    "id",
    "subject",
    "label",
    "scopes",
    "quota",
    "not_before",
    "expires_at",
    "sender_constrained",
    "principal",
    "created_at",
    "revoked_at",
    "suspended_at",
    "last_used",
    "last_used_location",
    "token_prefix",
    "tokens",
];

#[derive(Serialize)]
struct GrantLine<'a> {
    id: &'a str,
    subject: &'a str,
    label: &'a str,
    scopes: Vec<&'a str>,
    quota: Option<String>,
    not_before: Option<String>,
    expires_at: Option<String>,
    sender_constrained: bool,
    principal: Option<Box<RawValue>>,
    created_at: String,
    revoked_at: Option<String>,
    suspended_at: Option<String>,
    last_used: Option<String>,
    last_used_location: Option<&'static str>,
    token_prefix: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tokens: Option<Vec<TokenLine>>,
}

#[derive(Serialize)]
struct TokenLine {
    digest: String,
    created_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rotated_until: Option<String>,
}

impl Line for GrantLine<'_> {
    const COLUMNS: &'static [&'static str] = &FIELDS;

    fn cells(&self) -> Result<Vec<String>, serde_json::Error> {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let mut cells = vec![
            self.id.to_owned(),
            self.subject.to_owned(),
            self.label.to_owned(),
            self.scopes.join(" "),
            text(&self.quota),
            text(&self.not_before),
            text(&self.expires_at),
            self.sender_constrained.to_string(),
            self.principal.as_ref().map(|json| json.get().to_owned()).unwrap_or_default(),
            self.created_at.clone(),
            text(&self.revoked_at),
            text(&self.suspended_at),
            text(&self.last_used),
            self.last_used_location.unwrap_or_default().to_owned(),
            self.token_prefix.unwrap_or_default().to_owned(),
        ];
        if let Some(tokens) = &self.tokens {
            cells.push(serde_json::to_string(tokens)?);
        }
        Ok(cells)
    }
}

fn line<'a>(grant: &'a GrantRecord, tokens: Option<&[StoredToken]>) -> Result<GrantLine<'a>, Failure> {
    // Each grant is one line. Within texts, JSON has no line breaks.
    let principal = grant.principal.as_deref().map(|json| RawValue::from_string(json.replace(['\n', '\r'], " ")));
    Ok(GrantLine {
        id: grant.id.as_str(),
        subject: grant.subject.as_str(),
        label: &grant.label,
        scopes: grant.scopes.iter().collect(),
        quota: grant.quota.map(|quota| quota.to_string()),
        not_before: grant.not_before.map(time),
        expires_at: grant.expires_at.map(time),
        sender_constrained: grant.sender_constrained,
        principal: principal.transpose().map_err(|_| {
            let (id, subject, source) = (grant.id.clone(), grant.subject.clone(), SqlError::Corrupt("principal"));
            Failure::Database(SqlError::InvalidRow { id, subject, source: source.into() })
        })?,
        created_at: time(grant.created_at),
        revoked_at: grant.revoked_at.map(time),
        suspended_at: grant.suspended_at.map(time),
        last_used: grant.last_used.map(time),
        last_used_location: grant.last_used_location.map(TokenLocation::as_str),
        token_prefix: grant.token_prefix.as_deref(),
        tokens: tokens.map(|tokens| tokens.iter().map(token).collect()),
    })
}

fn token(token: &StoredToken) -> TokenLine {
    TokenLine {
        digest: token.digest.to_hex(),
        created_at: token.created_at.map(time),
        rotated_until: token.rotated_until.map(time),
    }
}

pub(crate) async fn run(Export { tables, filter, output, with_digests }: Export) -> Result<(), Failure> {
    let database = open(&tables).await?;
    let columns = if with_digests { GrantLine::COLUMNS } else { &GrantLine::COLUMNS[..FIELDS.len() - 1] };
    let mut writer = output.begin(columns)?;
    let mut query = filter.query().with_limit(PAGE);
    loop {
        let next = if with_digests {
            let page = database.export(&query).await?;
            for stored in &page.grants {
                writer.write(&line(&stored.grant, Some(&stored.tokens))?)?;
            }
            page.next
        } else {
            let page = database.page(&query).await?;
            for grant in &page.grants {
                writer.write(&line(grant, None)?)?;
            }
            page.next
        };
        let Some(cursor) = next else { return writer.finish() };
        query = query.after(cursor);
    }
}
