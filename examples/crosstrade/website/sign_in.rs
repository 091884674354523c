//! Sign-in and sign-out.

use std::sync::Arc;

use axum::extract::{Form, FromRequest as _, Query, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{Html, IntoResponse as _, Redirect, Response};
use maud::html;
use serde::Deserialize;
use tollgate::RequestHead;
use tower_sessions::Session;

use super::error::PageError;
use super::users::{self, User};
use super::{Site, layout};

/// The page after sign-in, unless another one was asked for.
const FIRST_PAGE: &str = "/account";

#[derive(Deserialize)]
pub(crate) struct Then {
    #[serde(default)]
    then: String,
}

#[derive(Deserialize)]
pub(crate) struct Credentials {
    name: String,
    password: String,
    #[serde(default)]
    then: String,
}

pub(crate) async fn form(Query(Then { then }): Query<Then>) -> Html<String> {
    page(&then, None)
}

fn page(then: &str, error: Option<&str>) -> Html<String> {
    let content = html! {
        section.card.narrow aria-labelledby="title" {
            h1 #title { "Sign in" }
            @if let Some(error) = error { p.notice.error role="alert" { (error) } }
            form.stack method="post" action="/sign-in" {
                input type="hidden" name="then" value=(then);
                label for="name" { "Name" }
                input #name type="text" name="name" autocomplete="username" autocapitalize="none" spellcheck="false" required
                    autofocus;
                label for="password" { "Password" }
                input #password type="password" name="password" autocomplete="current-password" required;
                button type="submit" { "Sign in" }
            }
        }
    };
    layout::page("Sign in", None, content)
}

pub(crate) async fn sign_in(
    State(site): State<Arc<Site>>,
    session: Session,
    request: Request,
) -> Result<Response, PageError> {
    let attempt = site.service.failures.begin_attempt(&RequestHead::of(&request))?;
    let (browser, address) = (browser(request.headers()), address(&site, &request));
    let Ok(Form(Credentials { name, password, then })) = Form::from_request(request, &()).await else {
        return Err(PageError::BadRequest("The form is incomplete."));
    };
    let user = match users::is_plausible(&name, &password) {
        true => site.website.users.authenticate(&name, password).await?,
        false => None,
    };
    let Some(user) = user else {
        attempt.fail();
        // No name and no password: users type passwords into the field for names.
        tracing::info!(address, "sign-in failed");
        let page = page(&then, Some("The name or the password is wrong."));
        return Ok((StatusCode::FORBIDDEN, page).into_response());
    };
    attempt.succeed();
    site.website.sessions.sign_in(&session, (user.name, browser, address)).await?;
    Ok(Redirect::to(local(&then)).into_response())
}

/// Checks the password of the signed-in user, with the throttle of sign-ins.
pub(crate) async fn check_password(
    site: &Site,
    user: &User,
    head: &RequestHead<'_>,
    password: String,
) -> Result<bool, PageError> {
    let attempt = site.service.failures.begin_attempt(head)?;
    let is_correct = users::is_plausible(&user.name, &password)
        && site.website.users.authenticate(&user.name, password).await?.is_some();
    match is_correct {
        true => attempt.succeed(),
        false => attempt.fail(),
    }
    Ok(is_correct)
}

pub(crate) async fn sign_out(session: Session) -> Result<Redirect, PageError> {
    session.flush().await?;
    Ok(Redirect::to("/sign-in"))
}

/// Returns a page of this site: a link must not lead a user elsewhere after the sign-in.
fn local(then: &str) -> &str {
    match then {
        "/admin" => then,
        // Without characters that a header field cannot have.
        user if user.starts_with("/admin/users/") && user.bytes().all(|byte| byte.is_ascii_graphic()) => then,
        _ => FIRST_PAGE,
    }
}

/// Returns the name of the browser in `User-Agent`, for the list of sessions.
fn browser(headers: &HeaderMap) -> String {
    let agent = headers.get(header::USER_AGENT).and_then(|agent| agent.to_str().ok()).unwrap_or_default();
    let find =
        |names: &[(&str, &'static str)]| names.iter().find(|(part, _)| agent.contains(part)).map(|found| found.1);
    // The names of later browsers are in the agents of earlier ones, so the order matters.
    let browser =
        find(&[("Edg", "Edge"), ("Firefox", "Firefox"), ("Chrom", "Chrome"), ("Safari", "Safari"), ("curl", "curl")]);
    let system = find(&[
        ("Windows", "Windows"),
        ("Android", "Android"),
        ("iPhone", "iPhone"),
        ("iPad", "iPad"),
        ("Mac OS", "macOS"),
        ("Linux", "Linux"),
    ]);
    match (browser, system) {
        (Some(browser), Some(system)) => format!("{browser} on {system}"),
        (Some(name), None) | (None, Some(name)) => name.to_owned(),
        (None, None) => "Unknown browser".to_owned(),
    }
}

fn address(site: &Site, request: &Request) -> String {
    let address = site.service.access.client_ip.of(&RequestHead::of(request));
    address.map_or_else(|| "unknown address".to_owned(), |address| address.to_string())
}
