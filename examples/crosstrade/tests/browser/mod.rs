//! Tests of the website in Chromium, by WebDriver. Without Chromium and its driver they say `skipped`, and fail if
//! `TOLLGATE_REQUIRE_BROWSER` is set.
//!
//! A test is a story with several steps, because a browser takes seconds to start. Nothing here asserts a duration: a test
//! moves the clock of the service, or waits for a condition.
//!
//! `axe.min.js` is axe-core 4.14.1, which checks the accessibility of pages: <https://github.com/dequelabs/axe-core>. Its
//! licence is the MPL-2.0. Only tests use it, and the published package does not contain it.

use std::time::SystemTime;

use hyper_util::rt::TokioIo;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::timeout;
use tollgate::store::sql::{AuditQuery, Database, NewGrant};

use super::tls::{Folder, config, connect};
use super::*;
use crate::app::TRADE;
use crate::database;
use crate::tls::{HTTP1, Tls};
use crate::website::users::User as Person;
use crate::website::{Website, tokens};
use chromium::{Browser, Driver, WATCHDOG, until};

mod account;
mod attacks;
#[path = "../../../../tests/chromium.rs"]
mod chromium;
mod pages;
mod sessions;
mod steps;
mod support;

/// The password of all users.
const PASSWORD: &str = "a password of the tests";
/// The time after which the password is asked again, and the time after which a session without a page ends.
const FIVE_MINUTES: u64 = 300;
const HALF_AN_HOUR: u64 = 1_800;

/// The number of stories at the same time: a browser needs more than one core.
static TURNS: Semaphore = Semaphore::const_new(3);

/// The settings of a story.
struct Options {
    is_tls: bool,
    self_service: bool,
}

const TLS: Options = Options { is_tls: true, self_service: false };
const SELF_SERVICE: Options = Options { self_service: true, ..TLS };
const PLAINTEXT: Options = Options { is_tls: false, ..TLS };

/// The service with its website, three users and a database of its own. `demo` has a token that may trade, `guest` one that may
/// only read, and `support` has none.
struct Story {
    origin: String,
    addr: SocketAddr,
    tls: Option<Arc<Tls>>,
    database: Database,
    website: Website,
    /// The tokens of `demo` and `guest`.
    demo: String,
    guest: String,
    /// The seconds by which the wall clock of the service is ahead of the beginning.
    ahead: Arc<AtomicU64>,
    browsers: AtomicU64,
    driver: Arc<Driver>,
    _close: watch::Sender<bool>,
    // The folder is removed after the database is closed.
    folder: Folder,
    _turn: SemaphorePermit<'static>,
}

impl Story {
    /// Starts the service. Returns `None` if the test is skipped.
    async fn start(test: &str, options: Options) -> Option<Self> {
        let turn = TURNS.acquire().await.unwrap();
        let driver = Driver::shared(test)?;
        let folder = Folder::new();
        let url = format!("sqlite://{}?mode=rwc", folder.files().cert.with_file_name("tokens.db").display());
        let ahead = Arc::new(AtomicU64::new(0));
        let (begin, moved) = (SystemTime::now(), Arc::clone(&ahead));
        // The time stands still between two steps: a slow machine must not end a session or a grace period.
        let wall = move || begin + Duration::from_secs(moved.load(Ordering::SeqCst));
        let clocks = Clocks { wall: Arc::new(wall), ..Clocks::system() };
        let database = database::open(&url).await.unwrap();
        let wall = Arc::clone(&clocks.wall);
        let database = database.with_wall_clock(move || wall());
        let website = Website::open(&url, database.clone(), Arc::clone(&clocks.wall), options.self_service);
        let website = website.await.unwrap();
        for (name, is_support) in [("demo", false), ("guest", false), ("support", true)] {
            website.users.set(&Person { name: name.to_owned(), is_support }, PASSWORD).await.unwrap();
        }
        let issue = async |grant: NewGrant| {
            let issued = database.issue(&tokens::format().unwrap(), &grant.with_max_active(1)).await;
            issued.unwrap().secret.expose().to_owned()
        };
        let demo = issue(NewGrant::new("demo").with_scopes([TRADE]).unwrap()).await;
        let guest = issue(NewGrant::new("guest")).await;

        let tls = if options.is_tls { Some(Arc::new(Tls::open(folder.files()).await.unwrap())) } else { None };
        let (close, closing) = watch::channel(false);
        let settings = Settings {
            tokens: database::tokens(&database).unwrap(),
            ledger: Arc::new(Memory::new(RateLimits::new(QUOTA), Arc::clone(&clocks.steady))),
            errors: Errors::ProblemDetails,
            clocks,
            access: if options.is_tls { Access::tls() } else { Access::plaintext() },
            closing,
            website: Some(website.clone().into_routes()),
        };
        let addr = serve_app(app(settings).unwrap(), tls.clone(), close.subscribe()).await;
        let scheme = if options.is_tls { "https" } else { "http" };
        let origin = format!("{scheme}://localhost:{}", addr.port());
        let browsers = AtomicU64::new(0);
        Some(Self {
            origin,
            addr,
            tls,
            database,
            website,
            demo,
            guest,
            ahead,
            browsers,
            driver,
            _close: close,
            folder,
            _turn: turn,
        })
    }

    async fn browser(&self) -> Browser {
        self.browser_with(Value::Object(Default::default())).await
    }

    /// Opens a browser with an empty profile.
    async fn browser_with(&self, preferences: Value) -> Browser {
        let number = self.browsers.fetch_add(1, Ordering::SeqCst);
        let profile = self.folder.files().cert.with_file_name(format!("browser-{number}"));
        Browser::open(&self.driver, &self.origin, profile, preferences).await
    }

    /// Opens a browser, and signs in.
    async fn signed_in(&self, name: &str) -> Browser {
        let browser = self.browser().await;
        browser.sign_in(name).await;
        browser
    }

    /// Sets the wall clock of the service ahead.
    fn set_ahead(&self, seconds: u64) {
        self.ahead.store(seconds, Ordering::SeqCst);
    }

    /// Sends a request as a client of the API does.
    async fn send(&self, request: Request<String>) -> Response<String> {
        if self.tls.is_none() {
            return send(request).await;
        }
        let stream = connect(self.addr, config(self.folder.roots(), &[HTTP1])).await.unwrap();
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let (head, body) = sender.send_request(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Response::from_parts(head, String::from_utf8(body.into()).unwrap())
    }

    /// Asks for the accounts with this token.
    async fn status_of(&self, token: &str) -> StatusCode {
        let request = Request::get(format!("{}/v1/api/accounts", self.origin)).header("host", "localhost");
        let request = request.header("authorization", format!("Bearer {token}")).body(String::new()).unwrap();
        self.send(request).await.status()
    }

    /// Returns the actors and actions of the audit trail about a user, the last one first.
    async fn audit(&self, user: &str) -> Vec<(String, String)> {
        let page = self.database.audit(&AuditQuery::new().with_subject(user)).await.unwrap();
        let entry = |entry: tollgate::store::sql::AuditEntry| (entry.actor.unwrap_or_default(), entry.action);
        page.entries.into_iter().map(entry).collect()
    }
}

/// Serves on a free port. Returns the address.
async fn serve_app(app: axum::Router, tls: Option<Arc<Tls>>, stopped: watch::Receiver<bool>) -> SocketAddr {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = tcp.local_addr().unwrap();
    let limits = Limits::for_descriptors(20_000);
    tokio::spawn(crate::server::serve(vec![Listener { tcp, app, tls }], limits, stop(stopped)));
    addr
}
