//! Shows and replaces the user's own token. Both need the password, which is asked again after five minutes.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Form, FromRequest as _, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Redirect, Response};
use serde::Deserialize;
use tollgate::limit::Charge;
use tollgate::store::sql::{Database, GrantRecord};
use tollgate::{CurrentGrant, Grant, RequestHead};

use super::account::{self, Card};
use super::error::PageError;
use super::snippets::Origin;
use super::{SignedIn, Site, sign_in, tokens};

/// The grace period after users replace their own token.
const GRACE: Duration = Duration::from_secs(3_600);

#[derive(Deserialize)]
struct Confirmation {
    /// Missing if the page did not ask for it.
    password: Option<String>,
}

/// An action of a user on the token.
#[derive(Clone, Copy)]
pub(crate) enum Action {
    Reveal,
    Replace,
}

pub(crate) async fn reveal(state: State<Arc<Site>>, visit: SignedIn, request: Request) -> Result<Response, PageError> {
    act(state, visit, request, Action::Reveal).await
}

pub(crate) async fn replace(state: State<Arc<Site>>, visit: SignedIn, request: Request) -> Result<Response, PageError> {
    if !state.website.self_service {
        return Err(PageError::NotSelfService);
    }
    act(state, visit, request, Action::Replace).await
}

async fn act(
    State(site): State<Arc<Site>>,
    mut visit: SignedIn,
    request: Request,
    action: Action,
) -> Result<Response, PageError> {
    // Per user: a thief of a session may have many addresses.
    let user = CurrentGrant::new(Grant::new(visit.user.name.as_str(), ()));
    site.attempts.charge(&user, Charge::Units(1)).into_result()?;
    let (parts, body) = request.into_parts();
    let (origin, head) = (Origin::of(&site, &parts), RequestHead::from(&parts));
    let form = Form::from_request(Request::from_parts(parts.clone(), body), &()).await;
    let Form(Confirmation { password }) = form.map_err(|_| PageError::BadRequest("The form is incomplete."))?;
    if let Some(password) = password {
        if !sign_in::check_password(&site, &visit.user, &head, password).await? {
            let card = Card::AskPassword { action, is_wrong: true };
            let page = account::page(&site, &visit, &origin, card, None).await?;
            return Ok((StatusCode::FORBIDDEN, page).into_response());
        }
        site.website.sessions.password_given(&visit.session, &mut visit.state).await?;
    } else if !visit.gave_password(site.now()) {
        let card = Card::AskPassword { action, is_wrong: false };
        return Ok(account::page(&site, &visit, &origin, card, None).await?.into_response());
    }
    let (database, grant) = grant_of(&site, &visit).await?;
    match action {
        Action::Reveal => {
            let token = database.reveal(&grant.id).await?;
            Ok(account::page(&site, &visit, &origin, Card::Revealed(token), None).await?.into_response())
        }
        Action::Replace => {
            tokens::replace(&database, &grant, GRACE, site.now()).await?;
            // A reload must not replace the token again. The user reveals the new one.
            Ok(Redirect::to("/account?done=replaced").into_response())
        }
    }
}

/// Returns the database with the user as the actor, and the grant of the user.
async fn grant_of(site: &Site, visit: &SignedIn) -> Result<(Database, GrantRecord), PageError> {
    let database: Database = site.website.database.acting_as(&visit.user.name)?;
    let now = site.now();
    let grant = tokens::grant_of(&database, &visit.user.name, now).await?;
    let grant = grant.filter(|grant| tokens::is_active(grant, now)).ok_or(PageError::NoToken)?;
    Ok((database, grant))
}
