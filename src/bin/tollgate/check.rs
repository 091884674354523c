//! `tollgate check`: what a gate answers to a token, and why.

use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io::{self, IsTerminal as _, Read as _};
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use clap::Args;
use http::{HeaderValue, Request, Response, header};
use serde_json::{Value, json};
use tollgate::extract::TokenSyntax;
use tollgate::finding::with_sources;
use tollgate::mint::TokenFormat;
use tollgate::store::sql::{Database, SqlError, TokenRecord};
use tollgate::{AuthLayer, GrantId, Rejection, RejectionKind, Scopes, Subject, TokenDigest};
use tower_layer::Layer as _;
use tower_service::Service;
use zeroize::Zeroizing;

use crate::args::Options;
use crate::failure::NOT_CHECKED;
use crate::parse::{RANDOM_BITS, scopes};
use crate::run::{Failure, open};
use crate::show::{self, GREEN, RED, paint, plain, time};

const AFTER_HELP: &str = "\
Reads the token from standard input, or without echo from a terminal. Runs a gate with default settings in front of the \
database. Changes nothing: a check is no use of the token.

The settings of a service are not known here. Its gate answers otherwise if it has a pepper or other stores, or if a rate limit \
is exhausted.

Exit codes: 0 if the token is accepted, 1 if it is rejected, 2 for an invalid command line or no token, 3 if the token could not \
be checked.";

#[derive(Args, Debug)]
#[command(after_help = AFTER_HELP)]
pub(crate) struct Check {
    #[command(flatten)]
    options: Options,
    /// Scope that the request needs; can be repeated
    #[arg(long = "scope", value_name = "SCOPE")]
    scopes: Vec<String>,
}

pub(crate) async fn run(check: Check) -> Result<(), Failure> {
    let (options, scopes) = (check.options, scopes(&check.scopes)?);
    let token = read_token()?;
    let database = open(&options.tables).await.map_err(not_checked)?;
    let digest = TokenDigest::of(&*token);
    let response = ask(&database, header_value(&token), &scopes).await?;
    let rejection = response.extensions().get::<Rejection>();
    let record = match rejection.map(Rejection::kind) {
        // The row may be unreadable. The rejection has the error.
        Some(RejectionKind::StoreUnavailable) => None,
        _ => database.describe_token(digest).await.map_err(|error| not_checked(error.into()))?,
    };
    let (reason, explanation) = match rejection {
        Some(rejection) => explain(rejection, record.as_ref(), &token, &scopes),
        None => ("", String::new()),
    };
    let answer = Answer { rejection, response: &response, record: record.as_ref(), reason, explanation };
    show::print(&if options.json { answer.json() } else { answer.text() })
        .map_err(|error| not_checked(error.into()))?;
    match rejection.map(Rejection::kind) {
        None => Ok(()),
        Some(RejectionKind::StoreUnavailable) => Err(Failure::Printed(NOT_CHECKED)),
        Some(_) => Err(Failure::Printed(1)),
    }
}

/// Returns the id and the subject of a grant whose row cannot be read.
fn invalid_row(rejection: &Rejection) -> Option<(&GrantId, &Subject)> {
    let mut source = std::error::Error::source(rejection);
    while let Some(error) = source {
        if let Some(SqlError::InvalidRow { id, subject, .. }) = error.downcast_ref() {
            return Some((id, subject));
        }
        source = error.source();
    }
    None
}

/// Replaces the exit code of a failure: a rejection has the same one.
fn not_checked(failure: Failure) -> Failure {
    match failure.code() {
        1 => Failure::NotChecked(failure.to_string()),
        _ => failure,
    }
}

/// More bytes than any token has, so that a longer input is malformed.
const MAX_INPUT: usize = 2 * TokenSyntax::DEFAULT_MAX_LEN;

/// Reads a token and removes the end of its line.
fn read_token() -> Result<Zeroizing<Vec<u8>>, Failure> {
    let failed = |error: io::Error| Failure::Usage(format!("cannot read a token from standard input: {error}"));
    let mut token = match io::stdin().is_terminal() {
        true => {
            show::eprint("Token (not shown):");
            Zeroizing::new(rpassword::read_password().map_err(failed)?.into_bytes())
        }
        false => read_input().map_err(failed)?,
    };
    if token.last() == Some(&b'\n') {
        token.pop();
    }
    if token.last() == Some(&b'\r') {
        token.pop();
    }
    let begins_with =
        |name: &str| token.get(..name.len()).is_some_and(|start| start.eq_ignore_ascii_case(name.as_bytes()));
    if token.is_empty() {
        return Err(Failure::Usage("no token on standard input".to_owned()));
    }
    if begins_with("Bearer ") || begins_with("Authorization:") {
        return Err(Failure::Usage(
            "standard input must have the token only, without `Authorization:` and `Bearer`".to_owned(),
        ));
    }
    Ok(token)
}

fn read_input() -> io::Result<Zeroizing<Vec<u8>>> {
    // Allocated in full, because a reallocation would leave a copy behind.
    let mut token = Zeroizing::new(Vec::with_capacity(MAX_INPUT + 1));
    unbuffered_stdin()?.take(MAX_INPUT as u64).read_to_end(&mut token)?;
    Ok(token)
}

/// Returns standard input without the buffer of the standard library, which would keep a copy of the token.
fn unbuffered_stdin() -> io::Result<std::fs::File> {
    #[cfg(unix)]
    return Ok(std::os::fd::AsFd::as_fd(&io::stdin()).try_clone_to_owned()?.into());
    #[cfg(windows)]
    return Ok(std::os::windows::io::AsHandle::as_handle(&io::stdin()).try_clone_to_owned()?.into());
}

/// Returns the value of `Authorization`. Its memory is overwritten when it is dropped.
fn header_value(token: &[u8]) -> HeaderValue {
    let mut value = Zeroizing::new(Vec::with_capacity("Bearer ".len() + token.len()));
    value.extend_from_slice(b"Bearer ");
    value.extend_from_slice(token);
    let value = HeaderValue::from_maybe_shared(Bytes::from_owner(value));
    // No request can contain this token, such as a control character. All malformed tokens get the same answer.
    value.unwrap_or(const { HeaderValue::from_static("Bearer \"") })
}

/// The lookup of the database has a shorter timeout.
const TIMEOUT: Duration = Duration::from_secs(4);

/// Sends a request with this token through a gate, to a route that requires these scopes.
async fn ask(database: &Database, token: HeaderValue, scopes: &Scopes) -> Result<Response<Bytes>, Failure> {
    let gate = AuthLayer::with_timer(database.store::<()>(), TIMEOUT, tokio::time::sleep);
    let mut request = Request::new(());
    request.headers_mut().insert(header::AUTHORIZATION, token);
    let response = match scopes.is_empty() {
        true => gate.layer(Route).call(request).await,
        false => gate.layer(gate.require_scopes(scopes.iter())?.layer(Route)).call(request).await,
    };
    Ok(response.unwrap_or_else(|never| match never {}))
}

/// The service behind the gate. Its response is empty.
#[derive(Clone)]
struct Route;

impl Service<Request<()>> for Route {
    type Response = Response<Bytes>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        ready(Ok(Response::new(Bytes::new())))
    }
}

/// Returns a name and a text for the reason of a rejection. They say more than the gate's answer to a client.
fn explain(
    rejection: &Rejection,
    record: Option<&TokenRecord>,
    token: &[u8],
    required: &Scopes,
) -> (&'static str, String) {
    let kind = rejection.kind().as_str();
    match (rejection.kind(), record) {
        (RejectionKind::UnknownToken, Some(TokenRecord { grant, .. })) if grant.revoked_at.is_some() => {
            ("revoked", format!("the grant was revoked at {}", or_unknown(grant.revoked_at)))
        }
        (RejectionKind::UnknownToken, Some(TokenRecord { grant, .. })) if grant.suspended_at.is_some() => {
            ("suspended", format!("the grant was suspended at {}", or_unknown(grant.suspended_at)))
        }
        (RejectionKind::UnknownToken, _) => (kind, unknown(token).to_owned()),
        (RejectionKind::ExpiredToken, Some(TokenRecord { grace_ends_at: Some(end), grant, .. }))
            if grant.expires_at.is_none_or(|expiry| *end < expiry) =>
        {
            ("grace_period_ended", "the token was rotated, and its grace period has ended".to_owned())
        }
        (RejectionKind::ExpiredToken, Some(TokenRecord { grant, .. })) => {
            (kind, format!("the grant expired at {}", or_unknown(grant.expires_at)))
        }
        (RejectionKind::NotYetValid, Some(TokenRecord { grant, .. })) => {
            (kind, format!("the grant is not valid before {}", or_unknown(grant.not_before)))
        }
        (RejectionKind::InsufficientScope, Some(TokenRecord { grant, .. })) => {
            let missing = required.iter().filter(|scope| !grant.scopes.iter().any(|granted| granted == *scope));
            let missing: Vec<_> = missing.collect();
            let scopes = if missing.len() == 1 { "scope" } else { "scopes" };
            (kind, format!("the grant lacks the {scopes} {}", missing.join(" ")))
        }
        (RejectionKind::MalformedToken, _) if token.contains(&b'\n') => (kind, "it contains a line break".to_owned()),
        (RejectionKind::MalformedToken | RejectionKind::InvalidRequest, _) => match TokenSyntax::default().check(token)
        {
            Err(error) => (kind, error.to_string()),
            Ok(()) => (kind, rejection.detail().into_owned()),
        },
        (RejectionKind::SenderConstrained, _) => (kind, "the token is bound to a key of the client".to_owned()),
        (RejectionKind::StoreUnavailable, _) => {
            (kind, std::error::Error::source(rejection).map_or_else(|| rejection.to_string(), with_sources))
        }
        _ => (kind, rejection.detail().into_owned()),
    }
}

fn or_unknown(at: Option<SystemTime>) -> String {
    at.map_or_else(|| "an unknown time".to_owned(), time)
}

/// Says whether an unknown token looks like one that this program minted.
fn unknown(token: &[u8]) -> &'static str {
    let prefix = std::str::from_utf8(token).ok().and_then(|token| token.rsplit_once('_')).map(|(prefix, _)| prefix);
    // The number of random bits is a setting of the service.
    let is_correct = |bits| {
        let format = prefix.and_then(|prefix| TokenFormat::new(prefix).ok()?.with_random_bits(bits).ok());
        format.is_some_and(|format| format.check(token).is_ok())
    };
    match RANDOM_BITS.into_iter().any(is_correct) {
        true => {
            "the database has no such token; its checksum is correct, so it may be rotated, purged, or of another database"
        }
        false => {
            "the database has no such token; it has no correct checksum, so it may be mistyped, incomplete or imported"
        }
    }
}

/// The outcome of a check.
struct Answer<'a> {
    rejection: Option<&'a Rejection>,
    response: &'a Response<Bytes>,
    record: Option<&'a TokenRecord>,
    reason: &'static str,
    explanation: String,
}

impl Answer<'_> {
    /// Returns the `error` of the challenge, such as `invalid_token`.
    fn error_code(&self) -> Option<&str> {
        let challenge = self.response.headers().get(header::WWW_AUTHENTICATE)?.to_str().ok()?;
        challenge.split_once("error=\"")?.1.split('"').next()
    }

    /// Returns the problem details that a client receives.
    fn problem(&self) -> Value {
        serde_json::from_slice(self.response.body()).unwrap_or_default()
    }

    /// Returns the grant, or its id and subject if its row cannot be read.
    fn grant(&self) -> Option<Value> {
        let invalid = || self.rejection.and_then(invalid_row);
        match self.record {
            Some(record) => Some(show::value(&record.grant)),
            None => invalid().map(|(id, subject)| json!({ "id": id.as_str(), "subject": subject.as_str() })),
        }
    }

    fn json(&self) -> String {
        let answer = self.rejection.map(|rejection| {
            let problem = self.problem();
            json!({
                "status": rejection.status().as_u16(),
                "error": self.error_code(),
                "type": problem["type"],
                "detail": problem["detail"],
            })
        });
        json!({
            "accepted": self.rejection.is_none(),
            "reason": self.rejection.map(|_| self.reason),
            "explanation": self.rejection.map(|_| &self.explanation),
            "answer": answer,
            "grant": self.grant(),
            "token_created_at": self.record.map(|record| time(record.created_at)),
            "grace_ends_at": self.record.and_then(|record| record.grace_ends_at).map(time),
        })
        .to_string()
    }

    fn text(&self) -> String {
        let mut lines = Vec::new();
        match self.rejection {
            None => lines.push(paint(GREEN, "accepted")),
            Some(rejection) => {
                let outcome = match rejection.kind() {
                    RejectionKind::StoreUnavailable => "not checked:",
                    _ => "rejected:",
                };
                lines.push(format!("{} {}", paint(RED, outcome), plain(&self.explanation)));
                let code = self.error_code().map(|code| format!(" {code}")).unwrap_or_default();
                lines.push(format!("answer     {}{code}: {}", rejection.status().as_u16(), rejection.detail()));
            }
        }
        if let Some((id, subject)) = self.rejection.and_then(invalid_row) {
            lines.push(format!("id         {}\nsubject    {}", plain(id.as_str()), plain(subject.as_str())));
        }
        if let Some(record) = self.record {
            if let Some(end) = record.grace_ends_at.filter(|_| self.rejection.is_none()) {
                lines.push(format!("rotated    the grace period of this token ends at {}", time(end)));
            }
            lines.push(show::details(&record.grant));
        }
        lines.join("\n")
    }
}
