//! The website: sign-in, "My account" with the token behind a Reveal button, and a page for support.
//!
//! | file | content |
//! |---|---|
//! | `mod.rs` | the routes, their layers, and the signed-in user |
//! | `sign_in.rs` | sign-in and sign-out |
//! | `account.rs`, `reveal.rs` | the account page, and its forms |
//! | `meter.rs` | the state of the rate limit, as server-sent events |
//! | `snippets.rs` | lines to copy, with the user's own values |
//! | `admin.rs` | the page for support |
//! | `users.rs`, `sessions.rs`, `rejections.rs`, `pool.rs` | the website's tables |
//! | `tokens.rs`, `plan.rs` | one token per user, and its quota |
//! | `layout.rs`, `error.rs`, `assets.rs` | the frame of all pages, errors, and files |
//!
//! # Security
//!
//! - A session is a random id in a cookie that scripts cannot read, and that no other site's form sends. The database has its
//!   digest. A session ends after 30 minutes without a page, and after 12 hours.
//! - The token is shown only after the password, which was given in the last five minutes, for 30 seconds. Each user has a limit
//!   on these attempts, from all addresses together. Browsers keep no page (`no-store`), and the audit trail has an entry for each time.
//! - Pages contain no script and no style of their own, load nothing from elsewhere, and cannot be framed.
//! - Forms of other sites are rejected by `Sec-Fetch-Site` and `Origin`.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::HttpBody as _;
use axum::extract::{FromRequestParts, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::{Next, from_fn_with_state, map_response};
use axum::response::{IntoResponse as _, Redirect, Response};
use axum::routing::{get, post};
use tollgate::limit::RateLimits;
use tollgate::store::sql::Database;
use tollgate::{Quota, RequestHead};
use tower::ServiceBuilder;
use tower_http::csrf::CsrfLayer;
use tower_http::set_header::SetResponseHeaderLayer;
use tower_sessions::Session;

use crate::access::IsHttps;
use crate::app::{AddRoutes, Service};
use crate::sockets::Sockets;
use error::PageError;
use pool::{Pool, unix_ms};
use rejections::Rejections;
use sessions::Sessions;
use users::{User, Users};

mod account;
mod admin;
mod assets;
mod error;
mod layout;
mod meter;
pub(crate) mod plan;
pub(crate) mod pool;
pub(crate) mod rejections;
mod reveal;
pub(crate) mod sessions;
mod sign_in;
mod snippets;
pub(crate) mod tokens;
pub(crate) mod users;

/// The time after which the password is asked again before a token is shown or replaced.
const PASSWORD_AGE: Duration = Duration::from_secs(5 * 60);

/// One reveal or password in 10 seconds with a burst of 30, per user.
pub(crate) const ATTEMPTS: Quota = Quota::per_minute(6).with_burst(30);

/// The website's parts beside the service.
#[derive(Clone)]
pub(crate) struct Website {
    pub(crate) database: Database,
    pub(crate) users: Users,
    pub(crate) sessions: Sessions,
    pub(crate) rejections: Rejections,
    /// Whether users may replace their token themselves.
    pub(crate) self_service: bool,
}

impl Website {
    /// Opens the website's tables in the database of the tokens, and starts to keep them.
    pub(crate) async fn open(
        url: &str,
        database: Database,
        wall: Arc<dyn Fn() -> SystemTime + Send + Sync>,
        self_service: bool,
    ) -> Result<Self, PageError> {
        let pool = Pool::open(url).await?;
        let rejections = Rejections::new(pool.clone(), Arc::clone(&wall));
        tokio::spawn(rejections.clone().run());
        tokio::spawn(pool::purge(pool.clone(), {
            let wall = Arc::clone(&wall);
            move || wall()
        }));
        let (users, sessions) = (Users::new(pool.clone()).await?, Sessions::new(pool, wall));
        Ok(Self { database, users, sessions, rejections, self_service })
    }

    /// Returns the website's routes, and counts the rejections by the API.
    pub(crate) fn into_routes(self) -> AddRoutes {
        Box::new(move |api, service| {
            api.layer(from_fn_with_state(self.rejections.clone(), rejections::count)).merge(routes(self, service))
        })
    }
}

/// The state of all handlers of the website.
pub(crate) struct Site {
    pub(crate) website: Website,
    pub(crate) service: Arc<Service>,
    /// The open meters of each user.
    pub(crate) meters: Sockets,
    /// The limit of each user on reveals, and on passwords that are given for them.
    pub(crate) attempts: RateLimits,
}

impl Site {
    fn now(&self) -> SystemTime {
        (self.service.clocks.wall)()
    }
}

/// Returns the routes of the website.
fn routes(website: Website, service: Arc<Service>) -> Router {
    let (sessions, is_https) = (website.sessions.layer(), service.access.is_https.clone());
    let clock = Arc::clone(&service.clocks.steady);
    let attempts = RateLimits::new(ATTEMPTS).with_clock(move || clock.now());
    let site = Site { website, service, meters: Sockets::default(), attempts };
    let header = |name: HeaderName, value| SetResponseHeaderLayer::overriding(name, HeaderValue::from_static(value));
    let pages = Router::new()
        .route("/", get(to_account))
        .route("/sign-in", get(sign_in::form).post(sign_in::sign_in))
        .route("/sign-out", post(sign_in::sign_out))
        .route("/account", get(account::show))
        // Their addresses stay in the address bar.
        .route("/account/reveal", get(to_account).post(reveal::reveal))
        .route("/account/replace", get(to_account).post(reveal::replace))
        .route("/account/sessions/end", post(account::end_session))
        .route("/account/usage", get(meter::events))
        .route("/admin", get(admin::search))
        .route("/admin/users/{name}", get(admin::show))
        .route("/admin/users/{name}/replace", post(admin::replace))
        .route("/admin/users/{name}/revoke", post(admin::revoke))
        .route("/admin/users/{name}/plan", post(admin::plan))
        .route("/admin/users/{name}/reset", post(admin::reset))
        // With the headers below. The service's own answer would have none of them.
        .method_not_allowed_fallback(async || PageError::Method)
        .with_state(Arc::new(site))
        .layer(
            ServiceBuilder::new()
                .layer(header(header::CACHE_CONTROL, "no-store"))
                .layer(CsrfLayer::new().with_rejection_response(|_| PageError::OtherSite.into_response()))
                .layer(map_response(explain))
                .layer(sessions),
        );
    pages.merge(assets::routes()).layer(
        ServiceBuilder::new()
            .layer(header(
                header::CONTENT_SECURITY_POLICY,
                "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; \
                     form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
            ))
            .layer(header(header::X_FRAME_OPTIONS, "DENY"))
            .layer(header(header::X_CONTENT_TYPE_OPTIONS, "nosniff"))
            // Without a referrer, browsers would send no `Origin` with forms.
            .layer(header(header::REFERRER_POLICY, "same-origin"))
            .layer(header(HeaderName::from_static("cross-origin-opener-policy"), "same-origin"))
            .layer(header(HeaderName::from_static("cross-origin-resource-policy"), "same-origin"))
            .layer(from_fn_with_state(is_https, require_https)),
    )
}

async fn to_account() -> Redirect {
    Redirect::to("/account")
}

/// Gives a page to the empty response of a session that could not be saved.
async fn explain(response: Response) -> Response {
    match response.status() == StatusCode::INTERNAL_SERVER_ERROR && response.body().is_end_stream() {
        true => PageError::NotSaved.into_response(),
        false => response,
    }
}

/// Rejects pages over plaintext where HTTPS is required: forms have passwords. `plaintext.rs` redirects to HTTPS before.
async fn require_https(
    State(is_https): State<Option<IsHttps>>,
    request: Request,
    next: Next,
) -> Result<Response, PageError> {
    match is_https {
        Some(is_https) if !is_https(&RequestHead::of(&request)) => Err(PageError::Plaintext),
        _ => Ok(next.run(request).await),
    }
}

/// The user of a request, which extends the session.
pub(crate) struct SignedIn {
    pub(crate) user: User,
    pub(crate) state: sessions::State,
    pub(crate) session: Session,
}

impl SignedIn {
    /// Returns the user of a request without extending the session.
    async fn of(parts: &mut Parts, site: &Arc<Site>) -> Result<Self, PageError> {
        let is_page = parts.method == Method::GET && parts.uri.path() != meter::PATH;
        let then = is_page.then(|| parts.uri.path().to_owned());
        let session = Session::from_request_parts(parts, site)
            .await
            .map_err(|_| PageError::Internal("the session layer is missing"))?;
        let website = &site.website;
        let Some(state) = website.sessions.state(&session).await? else {
            return Err(PageError::NotSignedIn { then });
        };
        // A user may have been deleted, or have another role.
        let user = website.users.find(&state.user).await?.ok_or(PageError::NotSignedIn { then })?;
        Ok(Self { user, state, session })
    }

    /// Returns whether the password was given a short time ago.
    pub(crate) fn gave_password(&self, now: SystemTime) -> bool {
        is_recent(self.state.password_ms, unix_ms(now))
    }
}

/// Returns whether a password that was given at one time is still valid at another.
pub(crate) fn is_recent(given_ms: i64, now_ms: i64) -> bool {
    // In both directions: the clock may go backwards, and those of replicas differ.
    u128::from(now_ms.abs_diff(given_ms)) < PASSWORD_AGE.as_millis()
}

impl FromRequestParts<Arc<Site>> for SignedIn {
    type Rejection = PageError;

    async fn from_request_parts(parts: &mut Parts, site: &Arc<Site>) -> Result<Self, PageError> {
        let mut signed_in = Self::of(parts, site).await?;
        site.website.sessions.touch(&signed_in.session, &mut signed_in.state).await?;
        Ok(signed_in)
    }
}

/// A visit that does not extend the session, because the user did not ask for it.
pub(crate) struct Unattended(pub(crate) SignedIn);

impl FromRequestParts<Arc<Site>> for Unattended {
    type Rejection = PageError;

    async fn from_request_parts(parts: &mut Parts, site: &Arc<Site>) -> Result<Self, PageError> {
        SignedIn::of(parts, site).await.map(Self)
    }
}

/// A user who works for support.
pub(crate) struct Support(pub(crate) SignedIn);

impl FromRequestParts<Arc<Site>> for Support {
    type Rejection = PageError;

    async fn from_request_parts(parts: &mut Parts, site: &Arc<Site>) -> Result<Self, PageError> {
        let signed_in = SignedIn::from_request_parts(parts, site).await?;
        match signed_in.user.is_support {
            true => Ok(Self(signed_in)),
            false => Err(PageError::NotSupport),
        }
    }
}
