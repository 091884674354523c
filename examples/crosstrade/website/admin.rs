//! The page for support: find a user, replace and revoke the token, change the plan, reset the bucket, read the audit trail.
//!
//! Support never sees a token. After a replacement the user reveals the new one.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::{Form, Path, Query, State};
use axum::response::{Html, Redirect};
use maud::{Markup, html};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::Value;
use tollgate::store::sql::{AuditPage, AuditQuery, Database, GrantRecord};
use tollgate::{Decision, Subject};

use super::error::PageError;
use super::layout::{self, time_ago, time_at};
use super::pool::from_unix_ms;
use super::users::User;
use super::{Site, Support, plan, tokens};

/// The number of entries of the audit trail on a page.
const ENTRIES: NonZeroU32 = NonZeroU32::new(20).unwrap();
/// The grace periods that support can choose, in seconds.
const GRACES: [(u64, &str); 4] = [(0, "none"), (3_600, "1 hour"), (86_400, "1 day"), (604_800, "1 week")];

#[derive(Deserialize)]
pub(crate) struct Search {
    #[serde(default)]
    q: String,
}

pub(crate) async fn search(
    State(site): State<Arc<Site>>,
    Support(visit): Support,
    Query(Search { q }): Query<Search>,
) -> Result<Html<String>, PageError> {
    let users = site.website.users.search(q.trim()).await?;
    let content = html! {
        h1 { "Support" }
        section.card aria-labelledby="users" {
            h2 #users { "Users" }
            form.row role="search" method="get" action="/admin" {
                label.visually-hidden for="q" { "Name" }
                input #q type="search" name="q" value=(q) placeholder="Part of a name";
                button type="submit" { "Find" }
            }
            @if users.is_empty() { p.hint { "No user has this text in the name." } }
            ul.users {
                @for user in &users {
                    li { a href=(path(&user.name)) { (user.name) } @if user.is_support { " " span.badge { "support" } } }
                }
            }
        }
    };
    Ok(layout::page("Support", Some(&visit.user), content))
}

#[derive(Deserialize)]
pub(crate) struct Shown {
    after: Option<String>,
    #[serde(default)]
    done: String,
}

pub(crate) async fn show(
    State(site): State<Arc<Site>>,
    Support(visit): Support,
    Path(name): Path<String>,
    Query(Shown { after, done }): Query<Shown>,
) -> Result<Html<String>, PageError> {
    let user = site.website.users.find(&name).await?.ok_or(PageError::NoUser)?;
    let (database, now, subject) = (&site.website.database, site.now(), Subject::from(name.as_str()));
    let grant = tokens::grant_of(database, &name, now).await?;
    let mut query = AuditQuery::new().with_subject(name.as_str()).with_limit(ENTRIES);
    if let Some(after) = after {
        query = query.after(after.parse().map_err(|_| PageError::BadRequest("This is no page of the audit trail."))?);
    }
    let audit = database.audit(&query).await?;
    let usage = match &grant {
        Some(grant) => site.service.ledger.usage(&subject, grant.quota).await,
        None => None,
    };
    let content = html! {
        p { a href="/admin" { "All users" } }
        h1 { (name) }
        (layout::notice(notice(&done)))
        div.columns {
            div.main-column {
                @match &grant {
                    Some(grant) => (token_card(&user, grant, now)),
                    None => section.card { h2 { "API token" } p { "This user has never had a token." } },
                }
                (audit_card(&user, &audit))
            }
            div.side-column { @if let Some(grant) = &grant { (limit_card(&user, grant, usage.as_ref())) } }
        }
    };
    Ok(layout::page(&name, Some(&visit.user), content))
}

fn token_card(user: &User, grant: &GrantRecord, now: SystemTime) -> Markup {
    let is_active = tokens::is_active(grant, now);
    html! {
        section.card aria-labelledby="token" {
            div.card-head { h2 #token { "API token" } span.badge { (grant.state(now).as_str()) } }
            dl.facts {
                div { dt { "Grant" } dd { code { (grant.id) } } }
                div { dt { "Issued" } dd { (time_ago(grant.created_at, now)) } }
                div { dt { "Last used" } dd { @match grant.last_used { Some(time) => (time_ago(time, now)), None => "not yet" } } }
            }
            form.row method="post" action={ (path(&user.name)) "/replace" } {
                (shown(grant))
                @if is_active {
                    label for="grace" { "The old token works for" }
                    select #grace name="grace" {
                        @for (seconds, text) in GRACES { option value=(seconds) selected[seconds == 3_600] { (text) } }
                    }
                    button type="submit" { "Replace token" }
                } @else {
                    input type="hidden" name="grace" value="0";
                    button type="submit" { "Issue a new token" }
                }
            }
            @if is_active {
                details {
                    summary { "Revoke the token" }
                    form.row method="post" action={ (path(&user.name)) "/revoke" } {
                        (shown(grant))
                        button.danger type="submit" { "Revoke now" }
                        span.hint { "Requests fail immediately. This cannot be undone." }
                    }
                }
            }
        }
    }
}

/// The field of a form with the grant that the page shows.
fn shown(grant: &GrantRecord) -> Markup {
    html! { input type="hidden" name="grant" value=(grant.id); }
}

fn limit_card(user: &User, grant: &GrantRecord, usage: Option<&Decision>) -> Markup {
    let quota = plan::quota_of(grant);
    html! {
        section.card aria-labelledby="limit" {
            div.card-head { h2 #limit { "Rate limit" } span.badge { (plan::name_of(grant)) } }
            p.figure {
                span { @match usage { Some(usage) => (usage.remaining()), None => "–" } }
                span.of { " of " (quota.burst()) " requests left" }
            }
            form.row method="post" action={ (path(&user.name)) "/plan" } {
                (shown(grant))
                label for="plan" { "Plan" }
                select #plan name="plan" {
                    @for plan in &plan::PLANS {
                        option value=(plan.name) selected[plan.quota == quota] { (plan.name) " (" (plan.quota) ")" }
                    }
                }
                button type="submit" { "Change plan" }
            }
            form method="post" action={ (path(&user.name)) "/reset" } {
                button.quiet type="submit" { "Fill the bucket" }
            }
        }
    }
}

fn audit_card(user: &User, audit: &AuditPage) -> Markup {
    html! {
        section.card.later aria-labelledby="audit" {
            h2 #audit { "Audit trail" }
            @if audit.entries.is_empty() { p.hint { "No entries." } } @else {
                div.scroll tabindex="0" role="group" aria-label="Entries" {
                    table {
                        thead { tr { th scope="col" { "Time (UTC)" } th scope="col" { "Actor" } th scope="col" { "Action" }
                            th scope="col" { "Changes" } } }
                        tbody {
                            @for entry in &audit.entries {
                                tr {
                                    td { (time_at(entry.at)) }
                                    td { (entry.actor.as_deref().unwrap_or("–")) }
                                    td { (entry.action) }
                                    td { (changes(entry.changes.as_deref().unwrap_or("{}"))) }
                                }
                            }
                        }
                    }
                }
            }
            @if let Some(next) = &audit.next {
                p { a href={ (path(&user.name)) "?after=" (utf8_percent_encode(&next.to_string(), NON_ALPHANUMERIC)) } { "Older entries" } }
            }
        }
    }
}

/// Renders the changed fields of an entry, such as `quota: 3/s → 20/s`.
fn changes(json: &str) -> Markup {
    let changes: serde_json::Map<String, Value> = serde_json::from_str(json).unwrap_or_default();
    let text = |value: &Value| match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let time = |value: &Value| value.as_i64().map_or_else(|| html! { "none" }, |ms| time_at(from_unix_ms(ms)));
    html! {
        ul.changes {
            @for (name, change) in &changes {
                li {
                    @match name.strip_suffix("_ms") {
                        Some(name) => { (name.replace('_', " ")) ": " (time(&change["to"])) },
                        None => { (name.replace('_', " ")) ": " (text(&change["from"])) " → " (text(&change["to"])) },
                    }
                }
            }
        }
    }
}

/// Returns the path of a user's page.
fn path(name: &str) -> String {
    format!("/admin/users/{}", utf8_percent_encode(name, NON_ALPHANUMERIC))
}

/// Returns the user's page with a notice. A reload repeats nothing.
fn done(name: &str, done: &str) -> Redirect {
    Redirect::to(&format!("{}?done={done}", path(name)))
}

fn notice(done: &str) -> Option<&'static str> {
    match done {
        "replaced" => Some("The token is replaced. The user can reveal the new one."),
        "revoked" => Some("The token is revoked."),
        "plan" => Some("The plan is changed."),
        "reset" => Some("The bucket is full."),
        _ => None,
    }
}

/// The field of [`shown`].
#[derive(Deserialize)]
pub(crate) struct OfGrant {
    grant: String,
}

/// Returns the database with this member of support as the actor, and the user's grant. Rejects a form of an earlier grant: another
/// member of support may have revoked it and issued a new one.
async fn grant_of(site: &Site, support: &User, name: &str, shown: &str) -> Result<(Database, GrantRecord), PageError> {
    let database = site.website.database.acting_as(&support.name)?;
    site.website.users.find(name).await?.ok_or(PageError::NoUser)?;
    let grant = tokens::grant_of(&database, name, site.now()).await?.ok_or(PageError::NoToken)?;
    if grant.id.as_str() != shown {
        return Err(PageError::Changed);
    }
    Ok((database, grant))
}

#[derive(Deserialize)]
pub(crate) struct Replacement {
    grant: String,
    grace: u64,
}

pub(crate) async fn replace(
    State(site): State<Arc<Site>>,
    Support(visit): Support,
    Path(name): Path<String>,
    Form(Replacement { grant, grace }): Form<Replacement>,
) -> Result<Redirect, PageError> {
    if !GRACES.iter().any(|(seconds, _)| *seconds == grace) {
        return Err(PageError::BadRequest("This grace period is not offered."));
    }
    let (database, grant) = grant_of(&site, &visit.user, &name, &grant).await?;
    // The new token is dropped: only the user sees it.
    tokens::replace(&database, &grant, Duration::from_secs(grace), site.now()).await?;
    Ok(done(&name, "replaced"))
}

pub(crate) async fn revoke(
    State(site): State<Arc<Site>>,
    Support(visit): Support,
    Path(name): Path<String>,
    Form(OfGrant { grant }): Form<OfGrant>,
) -> Result<Redirect, PageError> {
    let (database, grant) = grant_of(&site, &visit.user, &name, &grant).await?;
    database.revoke(&grant.id).await?;
    Ok(done(&name, "revoked"))
}

#[derive(Deserialize)]
pub(crate) struct Planned {
    grant: String,
    plan: String,
}

pub(crate) async fn plan(
    State(site): State<Arc<Site>>,
    Support(visit): Support,
    Path(name): Path<String>,
    Form(Planned { grant, plan }): Form<Planned>,
) -> Result<Redirect, PageError> {
    let plan = plan::by_name(&plan).ok_or(PageError::BadRequest("There is no such plan."))?;
    let (database, grant) = grant_of(&site, &visit.user, &name, &grant).await?;
    database.set_quota(&grant.id, Some(plan.quota)).await?;
    Ok(done(&name, "plan"))
}

pub(crate) async fn reset(
    State(site): State<Arc<Site>>,
    Support(visit): Support,
    Path(name): Path<String>,
) -> Result<Redirect, PageError> {
    site.website.users.find(&name).await?.ok_or(PageError::NoUser)?;
    tokens::grant_of(&site.website.database, &name, site.now()).await?.ok_or(PageError::NoToken)?;
    let is_reset = site.service.ledger.reset(&Subject::from(name.as_str())).await;
    // The audit trail has changes of grants, and a bucket is none.
    tracing::info!(actor = visit.user.name, subject = name, is_reset, "bucket reset");
    is_reset.then(|| done(&name, "reset")).ok_or(PageError::LimitsUnavailable)
}
