//! Tests of the website without a browser.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::AtomicI64;
use std::time::SystemTime;

use axum::http::request::Builder;
use hyper::body::Incoming;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::TokioIo;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sqlx::{Connection as _, Executor as _, PgConnection};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tollgate::GrantId;
use tollgate::store::sql::{AuditEntry, AuditQuery, Database, NewGrant, Sealer, SealingKey};

use super::replicas::skipped;
use super::tls::{Folder, config, connect};
use super::*;
use crate::app::TRADE;
use crate::database;
use crate::ledger::Ledger;
use crate::tls::{HTTP2, Tls};
use crate::website::Website;
use crate::website::sessions::COOKIE;
use crate::website::tokens;
use crate::website::users::User as Account;

mod admin;
mod csrf;
mod demo;
mod headers;
mod load;
mod meter;
mod outages;
mod rejections;
mod reveal;
mod routes;
mod sessions;
mod throttle;
mod users;

/// Fails a test that waits in vain. No test waits for this time to pass.
const WATCHDOG: Duration = Duration::from_secs(60);
const PASSWORD: &str = "correct horse";
const MINUTE: Duration = Duration::from_secs(60);

/// The tables of one test, which are removed when this is dropped.
struct Home {
    url: String,
    cleanup: Cleanup,
}

enum Cleanup {
    Folder(PathBuf),
    Schema { server: String, schema: String },
}

fn random() -> String {
    let mut random = [0_u8; 8];
    getrandom::fill(&mut random).unwrap();
    random.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Executes statements as another program does.
async fn execute(url: &str, statements: &str) {
    sqlx::any::install_default_drivers();
    let mut connection = sqlx::AnyConnection::connect(url).await.unwrap();
    connection.execute(sqlx::AssertSqlSafe(statements.to_owned())).await.unwrap();
    connection.close().await.unwrap();
}

impl Home {
    fn sqlite() -> Self {
        let folder = std::env::temp_dir().join(format!("crosstrade-website-{}", random()));
        std::fs::create_dir(&folder).unwrap();
        let url = format!("sqlite://{}?mode=rwc", folder.join("tokens.db").display());
        Self { url, cleanup: Cleanup::Folder(folder) }
    }

    /// Creates a schema in PostgreSQL. Returns `None` without PostgreSQL.
    async fn postgres(test: &str) -> Option<Self> {
        if !cfg!(feature = "postgres") {
            return None;
        }
        let server = std::env::var("TOLLGATE_TEST_POSTGRES");
        let server = server.unwrap_or_else(|_| "postgres://postgres@127.0.0.1:5432/postgres".to_owned());
        let connected = timeout(Duration::from_secs(5), PgConnection::connect(&server)).await;
        let Ok(Ok(mut connection)) = connected else { return skipped("no PostgreSQL", test) };
        let schema = format!("crosstrade_{}", random());
        connection.execute(sqlx::AssertSqlSafe(format!("CREATE SCHEMA {schema}"))).await.unwrap();
        let and = if server.contains('?') { '&' } else { '?' };
        let url = format!("{server}{and}options[search_path]={schema}");
        Some(Self { url, cleanup: Cleanup::Schema { server, schema } })
    }

    /// Runs a test on each kind of database.
    async fn each<F: Future<Output = ()>>(test: &str, run: impl Fn(Self) -> F) {
        run(Self::sqlite()).await;
        if let Some(home) = Self::postgres(test).await {
            run(home).await;
        }
    }

    async fn execute(&self, statements: &str) {
        execute(&self.url, statements).await;
    }

    /// Returns the values of a column of text.
    async fn texts(&self, select: &str) -> Vec<String> {
        sqlx::any::install_default_drivers();
        let mut connection = sqlx::AnyConnection::connect(&self.url).await.unwrap();
        let select = sqlx::query_scalar(sqlx::AssertSqlSafe(select.to_owned()));
        select.fetch_all(&mut connection).await.unwrap()
    }

    async fn count(&self, table: &str) -> i64 {
        sqlx::any::install_default_drivers();
        let mut connection = sqlx::AnyConnection::connect(&self.url).await.unwrap();
        let select = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT COUNT(*) FROM {table}")));
        select.fetch_one(&mut connection).await.unwrap()
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        match &self.cleanup {
            Cleanup::Folder(folder) => _ = std::fs::remove_dir_all(folder),
            Cleanup::Schema { server, schema } => {
                let (server, schema) = (server.clone(), schema.clone());
                // On another thread: the test's runtime may be shutting down.
                let removal = std::thread::spawn(move || {
                    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                    runtime.block_on(async {
                        let Ok(mut connection) = PgConnection::connect(&server).await else { return };
                        let drop = sqlx::AssertSqlSafe(format!("DROP SCHEMA {schema} CASCADE"));
                        _ = connection.execute(drop).await;
                    });
                });
                _ = removal.join();
            }
        }
    }
}

/// The key of all tests.
fn sealer() -> Sealer {
    Sealer::new(SealingKey::new("first", [7; 32]).unwrap())
}

/// The parts of the service that some tests replace.
struct Setup {
    home: Home,
    /// Where the website and the tokens find the database, if not at home.
    url: Option<String>,
    self_service: bool,
    access: Access,
    limits: Limits,
    ledger: Option<Arc<dyn Ledger>>,
}

impl Setup {
    fn at(home: Home) -> Self {
        Self { home, url: None, self_service: false, access: Access::plaintext(), limits: limits(), ledger: None }
    }
}

/// The service with its website on a free port, and its clocks.
struct Site {
    addr: SocketAddr,
    app: axum::Router,
    home: Home,
    database: Database,
    website: Website,
    /// Added to the time of day.
    offset_ms: Arc<AtomicI64>,
    /// The steady clock. Buckets do not refill.
    seconds: Arc<AtomicU64>,
    close: watch::Sender<bool>,
    /// Ends with the last connection after the stop.
    served: JoinHandle<()>,
    /// The tokens of `demo`, which may trade, and of `guest`.
    trader: String,
    reader: String,
}

impl Site {
    async fn start() -> Self {
        Self::start_at(Home::sqlite()).await
    }

    async fn start_at(home: Home) -> Self {
        Self::start_with(Setup::at(home)).await
    }

    async fn start_with(setup: Setup) -> Self {
        let Setup { home, url, self_service, access, limits, ledger } = setup;
        let url = url.unwrap_or_else(|| home.url.clone());
        let (offset_ms, seconds) = (Arc::<AtomicI64>::default(), Arc::<AtomicU64>::default());
        let (offset, steady) = (Arc::clone(&offset_ms), Arc::clone(&seconds));
        let clocks = Clocks {
            wall: Arc::new(move || {
                let offset = offset.load(Ordering::SeqCst);
                let by = Duration::from_millis(offset.unsigned_abs());
                if offset < 0 { SystemTime::now() - by } else { SystemTime::now() + by }
            }),
            steady: Arc::new(move || Duration::from_secs(steady.load(Ordering::SeqCst))),
        };
        let wall = Arc::clone(&clocks.wall);
        let database = Database::connect(&url).await.unwrap().with_wall_clock(move || wall());
        let database = database::open_with(database, sealer()).await.unwrap();
        let website = Website::open(&url, database.clone(), Arc::clone(&clocks.wall), self_service).await.unwrap();
        for (name, is_support) in [("demo", false), ("guest", false), ("support", true)] {
            let user = Account { name: name.to_owned(), is_support };
            website.users.set(&user, PASSWORD).await.unwrap();
        }
        let format = tokens::format().unwrap();
        let trader = NewGrant::new("demo").with_scopes([TRADE]).unwrap().with_max_active(1);
        let trader = database.issue(&format, &trader).await.unwrap().secret.expose().to_owned();
        let reader = NewGrant::new("guest").with_max_active(1);
        let reader = database.issue(&format, &reader).await.unwrap().secret.expose().to_owned();
        let quota = RateLimits::new(QUOTA).with_clock(|| Duration::ZERO);
        let ledger = ledger.unwrap_or_else(|| Arc::new(Memory::new(quota, Arc::clone(&clocks.steady))));
        let (close, closing) = watch::channel(false);
        let settings = Settings {
            tokens: database::tokens(&database).unwrap(),
            ledger,
            errors: Errors::ProblemDetails,
            clocks,
            access,
            closing,
            website: Some(website.clone().into_routes()),
        };
        let app = app(settings).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let served = tokio::spawn(serve(listener, app.clone(), limits, stop(close.subscribe())));
        Self { addr, app, home, database, website, offset_ms, seconds, close, served, trader, reader }
    }

    fn visitor(&self) -> Visitor {
        Visitor { addr: self.addr, cookie: Mutex::default() }
    }

    /// Returns a signed-in visitor.
    async fn signed_in(&self, name: &str) -> Visitor {
        let visitor = self.visitor();
        let response = visitor.sign_in(name, PASSWORD).await;
        assert_eq!(response.status(), StatusCode::SEE_OTHER, "{}", response.body());
        visitor
    }

    fn advance(&self, time: Duration) {
        self.offset_ms.fetch_add(i64::try_from(time.as_millis()).unwrap(), Ordering::SeqCst);
    }

    /// Asks the API for the accounts.
    async fn api(&self, token: &str) -> Response<String> {
        let request = Request::get(format!("http://{}/v1/api/accounts", self.addr));
        send(request.header("authorization", format!("Bearer {token}")).body(String::new()).unwrap()).await
    }

    /// The id of the only active grant of a user.
    async fn grant(&self, user: &str) -> GrantId {
        let grants = self.database.list(Some(&user.into())).await.unwrap();
        grants.into_iter().find(|grant| grant.revoked_at.is_none()).expect("an active grant").id
    }

    /// The entries of the audit trail with this action, newest first.
    async fn audit(&self, action: &str) -> Vec<AuditEntry> {
        self.database.audit(&AuditQuery::new().with_action(action)).await.unwrap().entries
    }

    /// The actors of these entries, newest first.
    async fn actors(&self, action: &str) -> Vec<String> {
        let entries = self.audit(action).await;
        entries.into_iter().map(|entry| entry.actor.as_deref().unwrap_or_default().to_owned()).collect()
    }
}

/// A client that keeps the cookie of the session.
struct Visitor {
    addr: SocketAddr,
    cookie: Mutex<Option<String>>,
}

/// Writes the fields of a form.
fn form(fields: &[(&str, &str)]) -> String {
    let encode = |text| utf8_percent_encode(text, NON_ALPHANUMERIC);
    let fields = fields.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value)));
    fields.collect::<Vec<_>>().join("&")
}

impl Visitor {
    fn cookie(&self) -> Option<String> {
        self.cookie.lock().unwrap().clone()
    }

    fn set_cookie(&self, value: &str) {
        *self.cookie.lock().unwrap() = Some(value.to_owned());
    }

    /// Returns another client with the same cookie.
    fn tab(&self) -> Self {
        Self { addr: self.addr, cookie: Mutex::new(self.cookie()) }
    }

    fn request(&self, method: &str, path: &str) -> Builder {
        let request = Request::builder().method(method).uri(format!("http://{}{path}", self.addr));
        match self.cookie() {
            Some(cookie) => request.header("cookie", format!("{COOKIE}={cookie}")),
            None => request,
        }
    }

    async fn send(&self, request: Builder, body: String) -> Response<String> {
        let response = timeout(WATCHDOG, send(request.body(body).unwrap())).await.expect("the service answers");
        for cookie in response.headers().get_all("set-cookie") {
            let cookie = cookie.to_str().unwrap();
            let value = cookie.strip_prefix(&format!("{COOKIE}=")).expect("no other cookie").split(';').next().unwrap();
            *self.cookie.lock().unwrap() = (!cookie.contains("Max-Age=0")).then(|| value.to_owned());
        }
        response
    }

    async fn get(&self, path: &str) -> Response<String> {
        self.send(self.request("GET", path), String::new()).await
    }

    async fn post(&self, path: &str, fields: &[(&str, &str)]) -> Response<String> {
        self.post_body(path, form(fields)).await
    }

    /// Sends a form of a user's page for support, with the grant that the page shows.
    async fn submit(&self, path: &str, fields: &[(&str, &str)]) -> Response<String> {
        let page = self.get(path.rsplit_once('/').unwrap().0).await;
        let shown = regex::Regex::new(r#"name="grant" value="([^"]*)""#).unwrap();
        let grant = shown.captures(page.body()).expect("the page shows a grant")[1].to_owned();
        self.post(path, &[fields, &[("grant", &grant)]].concat()).await
    }

    async fn post_body(&self, path: &str, body: String) -> Response<String> {
        let request = self.request("POST", path).header("sec-fetch-site", "same-origin");
        self.send(request.header("content-type", "application/x-www-form-urlencoded"), body).await
    }

    async fn sign_in(&self, name: &str, password: &str) -> Response<String> {
        self.post("/sign-in", &[("name", name), ("password", password)]).await
    }

    /// Returns whether the account page is shown.
    async fn is_signed_in(&self) -> bool {
        let response = self.get("/account").await;
        match response.status() {
            StatusCode::OK => true,
            StatusCode::SEE_OTHER => false,
            other => panic!("{other}: {}", response.body()),
        }
    }

    /// Opens the meter.
    async fn meter(&self) -> Events {
        let client = Client::builder(TokioExecutor::new()).build_http();
        let request = self.request("GET", "/account/usage").body(String::new()).unwrap();
        let response = timeout(WATCHDOG, client.request(request)).await.expect("the service answers").unwrap();
        Events { status: response.status(), body: response.into_body(), text: String::new() }
    }
}

/// The events of a meter.
struct Events {
    status: StatusCode,
    body: Incoming,
    text: String,
}

impl Events {
    /// The next event: its name and its data. `None` after the last.
    async fn next(&mut self) -> Option<(String, String)> {
        timeout(WATCHDOG, async {
            loop {
                if let Some((event, rest)) = self.text.split_once("\n\n") {
                    let (event, rest) = (event.to_owned(), rest.to_owned());
                    self.text = rest;
                    let field = |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
                    // Comments keep the connection open.
                    let Some(data) = field("data: ") else { continue };
                    return Some((field("event: ").unwrap_or_else(|| "message".to_owned()), data));
                }
                let data = self.body.frame().await?.ok()?.into_data().unwrap();
                self.text.push_str(std::str::from_utf8(&data).unwrap());
            }
        })
        .await
        .expect("the service sends an event")
    }

    /// The next state of the bucket.
    async fn state(&mut self) -> Value {
        let (event, data) = self.next().await.expect("a state");
        assert_eq!(event, "message", "{data}");
        serde_json::from_str(&data).unwrap()
    }

    /// Waits for a state.
    async fn until(&mut self, is_expected: impl Fn(&Value) -> bool) -> Value {
        let wait = async {
            loop {
                let state = self.state().await;
                if is_expected(&state) {
                    return state;
                }
            }
        };
        timeout(WATCHDOG, wait).await.expect("a state that is expected")
    }
}

/// Checks that a response is a page with this status, and returns it.
#[track_caller]
fn assert_page(response: &Response<String>, status: StatusCode) -> &str {
    assert_eq!(response.status(), status, "{}", response.body());
    assert_eq!(response.headers()["content-type"], "text/html; charset=utf-8");
    assert!(response.body().starts_with("<!DOCTYPE html>"), "{}", response.body());
    response.body()
}

/// The tokens in a text.
fn tokens_in(text: &str) -> Vec<String> {
    let pattern = regex::Regex::new(&tokens::format().unwrap().pattern()).unwrap();
    pattern.find_iter(text).map(|found| found.as_str().to_owned()).collect()
}

#[track_caller]
fn location(response: &Response<String>) -> &str {
    assert_eq!(response.status(), StatusCode::SEE_OTHER, "{}", response.body());
    response.headers()["location"].to_str().unwrap()
}

/// A site behind TLS, and an HTTP/2 connection to it.
async fn over_http2(limits: Limits) -> (Site, SendRequest<String>, JoinHandle<hyper::Result<()>>) {
    let folder = Folder::new();
    let site = Site::start_with(Setup { access: Access::tls(), ..Setup::at(Home::sqlite()) }).await;
    let tls = Arc::new(Tls::open(folder.files()).await.unwrap());
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = tcp.local_addr().unwrap();
    let listener = Listener { tcp, app: site.app.clone(), tls: Some(tls) };
    tokio::spawn(crate::server::serve(vec![listener], limits, std::future::pending()));
    let io = TokioIo::new(connect(addr, config(folder.roots(), &[HTTP2])).await.unwrap());
    let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    (site, sender, tokio::spawn(connection))
}
