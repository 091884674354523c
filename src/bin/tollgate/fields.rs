//! The fields of a grant to import, from a row of CSV or a JSON object. Errors name the field and never contain its value.

use std::collections::HashMap;
use std::fmt;
use std::io;
use std::time::SystemTime;

use serde::Deserialize;
use serde_json::value::RawValue;
use tollgate::store::sql::{GrantImport, NewGrant, StoredToken};
use tollgate::{Quota, TokenDigest, TokenLocation};
use zeroize::Zeroizing;

use crate::export::FIELDS;
use crate::parse;

/// The fields of a token, one of which each grant has: the token, its digest, or a list of digests with their times.
const TOKEN: &str = "token";
const DIGEST: &str = "digest";
const TOKENS: &str = "tokens";

/// An error of a line.
#[derive(Debug)]
pub(crate) struct Invalid {
    field: Option<&'static str>,
    text: String,
    is_last: bool,
}

impl Invalid {
    pub(crate) fn new(text: &str) -> Self {
        Self { field: None, text: text.to_owned(), is_last: false }
    }

    pub(crate) fn input(error: &io::Error) -> Self {
        Self { field: None, text: format!("cannot read the input: {error}"), is_last: true }
    }

    /// Returns true if the rest of the input cannot be read.
    pub(crate) fn is_last(&self) -> bool {
        self.is_last
    }

    fn field(field: &'static str, text: &str) -> Self {
        Self { field: Some(field), text: text.to_owned(), is_last: false }
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field {
            Some(field) => write!(f, "{field}: {}", self.text),
            None => f.write_str(&self.text),
        }
    }
}

/// Returns the known field with this name.
fn known(name: &[u8]) -> Option<&'static str> {
    FIELDS.into_iter().chain([TOKEN, DIGEST]).find(|field| field.as_bytes() == name)
}

/// Returns the columns of a CSV file. An unknown column may be the data of a file without a header, so it is not printed.
pub(crate) fn columns(header: &csv::ByteRecord) -> Result<Vec<&'static str>, Invalid> {
    let mut columns = Vec::new();
    for (number, name) in (1..).zip(header) {
        match known(name) {
            None => {
                let known: Vec<&str> = FIELDS.into_iter().chain([TOKEN, DIGEST]).collect();
                let known = known.join(", ");
                return Err(Invalid::new(&format!(
                    "unknown column {number}; the first line must be a header with some of {known}"
                )));
            }
            Some(field) if columns.contains(&field) => return Err(Invalid::field(field, "duplicate column")),
            Some(field) => columns.push(field),
        }
    }
    Ok(columns)
}

/// The fields of a line that have a value.
pub(crate) struct Fields(HashMap<&'static str, Field>);

enum Field {
    /// The text of a cell.
    Csv(Zeroizing<String>),
    /// A JSON value.
    Json(Zeroizing<String>),
}

impl Fields {
    pub(crate) fn of_csv(columns: &[&'static str], row: &csv::ByteRecord) -> Result<Self, Invalid> {
        let mut fields = HashMap::new();
        for (field, cell) in columns.iter().zip(row).filter(|(_, cell)| !cell.is_empty()) {
            let text = std::str::from_utf8(cell).map_err(|_| Invalid::field(field, "must be UTF-8"))?;
            fields.insert(*field, Field::Csv(Zeroizing::new(text.to_owned())));
        }
        Ok(Self(fields))
    }

    pub(crate) fn of_json(line: &[u8]) -> Result<Self, Invalid> {
        let object: HashMap<String, Box<RawValue>> =
            serde_json::from_slice(line).map_err(|_| Invalid::new("must be a JSON object"))?;
        let mut fields = HashMap::new();
        for (name, value) in object {
            let json = Zeroizing::new(String::from(Box::<str>::from(value)));
            let field = known(name.as_bytes()).ok_or_else(|| Invalid::new("unknown field"))?;
            if *json != "null" {
                fields.insert(field, Field::Json(json));
            }
        }
        Ok(Self(fields))
    }

    pub(crate) fn grant(mut self) -> Result<GrantImport, Invalid> {
        let subject = self.name("subject")?.ok_or_else(|| Invalid::field("subject", "missing"))?;
        let mut grant = NewGrant::new(subject.as_str());
        if let Some(id) = self.name("id")? {
            grant = grant.with_id(id.as_str());
        }
        if let Some(label) = self.text("label")? {
            grant = grant.with_label(label.as_str());
        }
        let scopes = self.scopes()?;
        grant = grant
            .with_scopes(scopes)
            .map_err(|_| Invalid::field("scopes", "must be printable ASCII without spaces, quotes and backslashes"))?;
        if let Some(quota) = self.text("quota")? {
            let quota = quota.parse::<Quota>().map_err(|error| Invalid::field("quota", &error.to_string()))?;
            grant = grant.with_quota(quota);
        }
        if let Some(at) = self.time("not_before")? {
            grant = grant.with_not_before(at);
        }
        if let Some(at) = self.time("expires_at")? {
            grant = grant.with_expiry(at);
        }
        if self.json::<bool>("sender_constrained", "must be true or false")? == Some(true) {
            grant = grant.with_sender_constraint();
        }
        // Raw JSON, so that no digit of a number is lost.
        if let Some(principal) = self.json::<Box<RawValue>>("principal", "must be JSON")? {
            grant = grant.with_principal(&principal).map_err(|_| Invalid::field("principal", "must be JSON"))?;
        }
        let mut import = GrantImport::new(grant);
        for token in self.tokens()? {
            import = import.with_token(token);
        }
        if let Some(at) = self.time("created_at")? {
            import = import.with_created_at(at);
        }
        if let Some(at) = self.time("revoked_at")? {
            import = import.with_revoked_at(at);
        }
        if let Some(at) = self.time("suspended_at")? {
            import = import.with_suspended_at(at);
        }
        let location = self.text("last_used_location")?.and_then(|name| TokenLocation::from_name(&name));
        if let Some(at) = self.time("last_used")? {
            import = import.with_last_used(at, location);
        }
        if let Some(prefix) = self.text("token_prefix")? {
            import = import.with_token_prefix(prefix.as_str());
        }
        import.check().map_err(|error| Invalid::new(&error.to_string()))?;
        Ok(import)
    }

    fn text(&mut self, field: &'static str) -> Result<Option<Zeroizing<String>>, Invalid> {
        match self.0.remove(field) {
            None => Ok(None),
            Some(Field::Csv(text)) => Ok(Some(text)),
            Some(Field::Json(json)) => match serde_json::from_str(&json) {
                Ok(text) => Ok(Some(Zeroizing::new(text))),
                Err(_) => Err(Invalid::field(field, "must be a text")),
            },
        }
    }

    /// Reads an id or a subject, by the rule of arguments: other commands could not name the grant otherwise.
    fn name(&mut self, field: &'static str) -> Result<Option<Zeroizing<String>>, Invalid> {
        let name = self.text(field)?;
        if let Some(text) = &name {
            parse::name(text).map_err(|rule| Invalid::field(field, rule))?;
        }
        Ok(name)
    }

    fn time(&mut self, field: &'static str) -> Result<Option<SystemTime>, Invalid> {
        self.text(field)?.map(|text| parse_time(field, &text)).transpose()
    }

    /// Reads JSON, also from the cell of a CSV file.
    fn json<T: for<'a> Deserialize<'a>>(&mut self, field: &'static str, rule: &str) -> Result<Option<T>, Invalid> {
        match self.0.remove(field) {
            None => Ok(None),
            Some(Field::Csv(json) | Field::Json(json)) => {
                serde_json::from_str(&json).map(Some).map_err(|_| Invalid::field(field, rule))
            }
        }
    }

    /// Reads scopes: a text with spaces, or a list of a JSON object.
    fn scopes(&mut self) -> Result<Vec<String>, Invalid> {
        const FIELD: &str = "scopes";
        if let Some(Field::Json(json)) = self.0.get(FIELD) {
            if json.starts_with('[') {
                return Ok(self.json(FIELD, "must be a list of texts")?.unwrap_or_default());
            }
        }
        let text = self.text(FIELD)?.unwrap_or_default();
        // Valid characters of scopes, and a mistake here. A list of a JSON object can have such scopes.
        if text.contains([',', ';']) {
            return Err(Invalid::field(FIELD, "must be separated by spaces"));
        }
        Ok(text.split(' ').filter(|scope| !scope.is_empty()).map(str::to_owned).collect())
    }

    /// Reads the field that contains a token or digests.
    fn tokens(&mut self) -> Result<Vec<StoredToken>, Invalid> {
        let (token, digest) = (self.text(TOKEN)?, self.text(DIGEST)?);
        let tokens = self.json::<Vec<TokenFields>>(TOKENS, "must be a list of digests with their times")?;
        match (token, digest, tokens) {
            (Some(token), None, None) => match !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic()) {
                true => Ok(vec![TokenDigest::of(token.as_bytes()).into()]),
                false => Err(Invalid::field(TOKEN, "must be printable ASCII without spaces")),
            },
            (None, Some(digest), None) => Ok(vec![parse_digest(DIGEST, &digest)?.into()]),
            (None, None, Some(tokens)) => tokens.into_iter().map(TokenFields::token).collect(),
            _ => Err(Invalid::new("must have one of the fields token, digest and tokens")),
        }
    }
}

/// An item of the field `tokens`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenFields {
    digest: String,
    created_at: Option<String>,
    rotated_until: Option<String>,
}

impl TokenFields {
    fn token(self) -> Result<StoredToken, Invalid> {
        let mut token = StoredToken::new(parse_digest(TOKENS, &self.digest)?);
        if let Some(at) = self.created_at {
            token = token.with_created_at(parse_time(TOKENS, &at)?);
        }
        if let Some(until) = self.rotated_until {
            token = token.with_rotation(parse_time(TOKENS, &until)?);
        }
        Ok(token)
    }
}

fn parse_digest(field: &'static str, text: &str) -> Result<TokenDigest, Invalid> {
    TokenDigest::from_hex(text).map_err(|_| Invalid::field(field, "must be 64 hexadecimal digits"))
}

fn parse_time(field: &'static str, text: &str) -> Result<SystemTime, Invalid> {
    let time = humantime::parse_rfc3339(text).ok().filter(|time| *time >= SystemTime::UNIX_EPOCH);
    time.ok_or_else(|| Invalid::field(field, "must be a time such as 2030-01-31T00:00:00Z"))
}
