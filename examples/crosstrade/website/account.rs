//! The account page: the token, the plan with its meter, recent rejections, snippets and sessions.

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::{Form, Query, State};
use axum::http::request::Parts;
use axum::response::{Html, Redirect};
use maud::{Markup, html};
use serde::Deserialize;
use tollgate::mint::Secret;
use tollgate::store::sql::{GrantRecord, GrantState};
use tollgate::{Decision, Subject, TokenLocation};

use crate::app::TRADE;

use super::error::PageError;
use super::layout::{self, time_ago};
use super::rejections::Recent;
use super::reveal::Action;
use super::sessions::{Listed, digest};
use super::snippets::{Origin, snippets};
use super::{SignedIn, Site, plan, tokens};

/// How long a token is shown, in seconds.
pub(crate) const SHOWN_S: u32 = 30;

/// The content of the card of the token.
pub(crate) enum Card {
    Masked,
    AskPassword { action: Action, is_wrong: bool },
    Revealed(Secret),
}

#[derive(Deserialize)]
pub(crate) struct Shown {
    #[serde(default)]
    done: String,
}

pub(crate) async fn show(
    State(site): State<Arc<Site>>,
    visit: SignedIn,
    Query(Shown { done }): Query<Shown>,
    parts: Parts,
) -> Result<Html<String>, PageError> {
    let notice = (done == "replaced").then_some("Your token is replaced. The old one works for one more hour.");
    page(&site, &visit, &Origin::of(&site, &parts), Card::Masked, notice).await
}

/// Renders the page.
pub(crate) async fn page(
    site: &Site,
    visit: &SignedIn,
    origin: &Origin,
    card: Card,
    notice: Option<&str>,
) -> Result<Html<String>, PageError> {
    let (website, user, now) = (&site.website, &visit.user, site.now());
    let grant = tokens::grant_of(&website.database, &user.name, now).await?;
    let rejections = match &grant {
        Some(grant) => website.rejections.of(&grant.id).await?,
        None => Vec::new(),
    };
    let sessions = website.sessions.of_user(&user.name).await?;
    let current = visit.session.id().as_ref().map(digest);
    let usage = match &grant {
        Some(grant) => site.service.ledger.usage(&Subject::from(user.name.as_str()), grant.quota).await,
        None => None,
    };
    let account = site.service.broker.accounts(&user.name).into_iter().next();
    let token = match &card {
        Card::Revealed(secret) => Some(secret.expose()),
        _ => None,
    };
    let content = html! {
        h1 { "My account" }
        (layout::notice(notice))
        div.columns {
            div.main-column {
                (token_card(site, visit, grant.as_ref(), &card, now))
                section.card.later aria-labelledby="snippets" {
                    h2 #snippets { "Use it" }
                    (snippets(origin, token, account.as_deref().unwrap_or("ACCOUNT")))
                }
            }
            div.side-column {
                @if let Some(grant) = &grant { (limit_card(grant, usage.as_ref())) }
                (rejections_card(&rejections, now))
                (sessions_card(&sessions, current.as_deref(), now))
            }
        }
    };
    // The browser goes back to the page without the token, also without JavaScript.
    let head = html! {
        @if token.is_some() {
            noscript { meta http-equiv="refresh" content={ (SHOWN_S) "; url=/account" }; }
        }
    };
    Ok(layout::page_with_head("My account", Some(user), head, content))
}

fn token_card(site: &Site, visit: &SignedIn, grant: Option<&GrantRecord>, card: &Card, now: SystemTime) -> Markup {
    let active = grant.filter(|grant| tokens::is_active(grant, now));
    html! {
        section.card aria-labelledby="token" {
            h2 #token { "API token" }
            @match active {
                None => p { "You have no active token. Ask support for a new one." },
                Some(grant) => {
                    @if grant.state(now) == GrantState::Suspended {
                        p.notice.error role="status" { "Your token is suspended. Requests are rejected until support resumes it." }
                    }
                    (secret(visit, grant, card))
                    (facts(grant, now))
                    @if site.website.self_service {
                        form method="post" action="/account/replace" {
                            button.quiet type="submit" { "Replace my token" }
                        }
                    } @else {
                        p.hint { "Only support can replace your token. Tell them if another person may know it." }
                    }
                }
            }
        }
    }
}

/// The token, masked or not, and the form that reveals it.
fn secret(visit: &SignedIn, grant: &GrantRecord, card: &Card) -> Markup {
    let prefix = grant.token_prefix.as_deref();
    let masked = format!("{}••••••••••••••••••••", prefix.map(|prefix| format!("{prefix}_")).unwrap_or_default());
    html! {
        @match card {
            Card::Revealed(secret) => {
                div.secret-row {
                    code.token #secret.secret data-mask=(masked) { (secret.expose()) }
                    button.copy type="button" data-copy="secret" hidden { "Copy" span.visually-hidden { " token" } }
                }
                p.hint #countdown role="status" data-seconds=(SHOWN_S) {
                    "Shown for " (SHOWN_S) " seconds. Everyone who has this token can use your account."
                }
            },
            Card::Masked => {
                div.secret-row {
                    code.token { span aria-hidden="true" { (masked) } span.visually-hidden { "Your token is hidden." } }
                    form method="post" action="/account/reveal" { button type="submit" { "Reveal" } }
                }
            },
            Card::AskPassword { action, is_wrong } => {
                code.token aria-hidden="true" { (masked) }
                @if *is_wrong { p.notice.error role="alert" { "The password is wrong." } }
                @let (path, text) = match action {
                    Action::Reveal => ("/account/reveal", "Reveal"),
                    Action::Replace => ("/account/replace", "Replace my token"),
                };
                form.stack method="post" action=(path) {
                    (layout::password(&visit.user))
                    div.row { button type="submit" { (text) } a.button.quiet href="/account" { "Cancel" } }
                }
            },
        }
    }
}

fn facts(grant: &GrantRecord, now: SystemTime) -> Markup {
    html! {
        dl.facts {
            div { dt { "Issued" } dd { (time_ago(grant.created_at, now)) } }
            div {
                dt { "Last used" }
                dd {
                    @match grant.last_used {
                        Some(time) => {
                            (time_ago(time, now))
                            @if let Some(location) = grant.last_used_location { ", " (location_text(location)) }
                        },
                        None => "not yet",
                    }
                }
            }
            @if let Some(end) = grant.expires_at { div { dt { "Expires" } dd { (layout::time_at(end)) } } }
            div { dt { "Permissions" } dd { (if grant.scopes.contains(TRADE) { "Read and trade" } else { "Read" }) } }
        }
    }
}

/// Says where in a request a token was.
fn location_text(location: TokenLocation) -> &'static str {
    match location {
        TokenLocation::AuthorizationHeader => "in the Authorization header",
        TokenLocation::WebSocketProtocol => "by a WebSocket",
        TokenLocation::JsonBody | TokenLocation::TextBody | TokenLocation::FormBody => "by a webhook",
        TokenLocation::ApiKeyHeader => "in a header field",
        TokenLocation::Query => "in an address",
        _ => "in another place",
    }
}

fn limit_card(grant: &GrantRecord, usage: Option<&Decision>) -> Markup {
    let quota = plan::quota_of(grant);
    let remaining = usage.map(Decision::remaining);
    html! {
        section.card aria-labelledby="limit" {
            div.card-head { h2 #limit { "Rate limit" } span.badge { (plan::name_of(grant)) } }
            p.figure { span #remaining { @match remaining { Some(units) => (units), None => "–" } }
                span.of { " of " span #burst { (quota.burst()) } " requests left" } }
            meter #meter min="0" max=(quota.burst()) low=(quota.burst() / 4) optimum=(quota.burst())
                value=(remaining.unwrap_or_default()) aria-labelledby="limit" {}
            p.hint { (plan::describe(quota)) ". REST, webhook and WebSocket share this limit." }
            p.hint #live data-events=(super::meter::PATH) { "Reload the page for the current state." }
        }
    }
}

fn rejections_card(rejections: &[Recent], now: SystemTime) -> Markup {
    html! {
        section.card.later aria-labelledby="rejections" {
            h2 #rejections { "Rejected requests" }
            @if rejections.is_empty() {
                p.hint { "None in the last 24 hours." }
            } @else {
                table {
                    caption.visually-hidden { "Rejected requests of the last 24 hours by reason" }
                    thead { tr { th scope="col" { "Reason" } th.number scope="col" { "Count" } th scope="col" { "Last" } } }
                    tbody {
                        @for recent in rejections {
                            tr { td { (reason(&recent.kind)) } td.number { (recent.count) } td { (time_ago(recent.last, now)) } }
                        }
                    }
                }
                p.hint { "In the last 24 hours." }
            }
        }
    }
}

/// Explains a reason to the user.
fn reason(kind: &str) -> &str {
    match kind {
        "over_limit" => "Rate limit exhausted",
        "cost_above_burst" => "Request larger than the limit",
        "insufficient_scope" => "Token may not trade",
        "expired_token" => "Token expired",
        "not_yet_valid" => "Token not valid yet",
        "https_required" => "Sent without HTTPS",
        "limiter_unavailable" | "store_unavailable" => "Service unavailable",
        other => other,
    }
}

fn sessions_card(sessions: &[Listed], current: Option<&str>, now: SystemTime) -> Markup {
    html! {
        section.card.later aria-labelledby="sessions" {
            h2 #sessions { "Sessions" }
            ul.sessions {
                @for listed in sessions {
                    @let is_current = Some(listed.id.as_str()) == current;
                    li {
                        div {
                            strong { (listed.state.browser) }
                            @if is_current { " " span.badge { "this one" } }
                            p.hint { (listed.state.address) ", active " (time_ago(super::pool::from_unix_ms(listed.state.seen_ms), now)) }
                        }
                        @if !is_current {
                            form method="post" action="/account/sessions/end" {
                                input type="hidden" name="id" value=(listed.id);
                                button.quiet type="submit" { "End" span.visually-hidden { " the session of " (listed.state.browser) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[derive(Deserialize)]
pub(crate) struct Ended {
    id: String,
}

pub(crate) async fn end_session(
    State(site): State<Arc<Site>>,
    visit: SignedIn,
    Form(Ended { id }): Form<Ended>,
) -> Result<Redirect, PageError> {
    site.website.sessions.end(&visit.user.name, &id).await?;
    Ok(Redirect::to("/account"))
}
