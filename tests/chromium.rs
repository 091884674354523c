//! Chromium and its driver, for tests in several binaries. The tests of a binary share one driver, and each browser has a
//! profile of its own.
//!
//! Without the programs a test says `skipped`, and fails if `TOLLGATE_REQUIRE_BROWSER` is set.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use fantoccini::elements::{Element, ElementRef};
use fantoccini::{Client, ClientBuilder, Locator};
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};

/// Fails a test that waits in vain. No test waits for this time to pass.
pub(super) const WATCHDOG: Duration = Duration::from_secs(240);

/// Waits for a condition.
pub(super) async fn until(what: &str, mut is_met: impl AsyncFnMut() -> bool) {
    let wait = async {
        let mut pause = Duration::from_millis(20);
        while !is_met().await {
            tokio::time::sleep(pause).await;
            // Long waits leave the processor to others.
            pause = (pause * 2).min(Duration::from_millis(500));
        }
    };
    tokio::time::timeout(WATCHDOG, wait).await.unwrap_or_else(|_| panic!("waited in vain: {what}"));
}

/// Says that a test is skipped, past the capture of the test harness.
pub(super) fn skip(what: &str, test: &str) {
    let required = std::env::var_os("TOLLGATE_REQUIRE_BROWSER");
    assert!(required.is_none(), "{test}: {what}, and TOLLGATE_REQUIRE_BROWSER is set");
    _ = writeln!(std::io::stderr(), "skipped: {what}: {test}");
}

/// Starts the driver. The group of processes ends with the standard input: also if the tests are killed.
const START: &str = "chromedriver --port=0 & read -r _; kill -KILL 0";
/// Containers often have a small `/dev/shm`. `--disable-background-networking` and the two options after it keep requests of the
/// browser itself out of the log.
const OPTIONS: [&str; 10] = [
    "--headless",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,900",
];

/// A running driver. It and all of its browsers are killed when this is dropped.
pub(super) struct Driver {
    process: Child,
    port: String,
    /// Kept, so that the driver can go on to write.
    _out: BufReader<ChildStdout>,
}

impl Driver {
    /// Returns the driver of the running tests. Returns `None` if the programs are missing.
    pub(super) fn shared(test: &str) -> Option<Arc<Self>> {
        static SHARED: Mutex<Weak<Driver>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(driver) = shared.upgrade() {
            return Some(driver);
        }
        for program in ["chromedriver", "chromium"] {
            let runs = Command::new(program).arg("--version").stdin(Stdio::null()).output();
            if !runs.is_ok_and(|output| output.status.success()) {
                skip(&format!("no {program}"), test);
                return None;
            }
        }
        let driver = Arc::new(Self::start());
        *shared = Arc::downgrade(&driver);
        Some(driver)
    }

    fn start() -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", START]).process_group(0);
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = shell.spawn().unwrap();
        let mut out = BufReader::new(process.stdout.take().unwrap());
        let port = regex::Regex::new(r"started successfully on port (\d+)").unwrap();
        // It answers from then on.
        let started = |line: String| Some(port.captures(&line)?[1].to_owned());
        let port = out.by_ref().lines().map_while(Result::ok).find_map(started).expect("the driver starts");
        Self { process, port, _out: out }
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        _ = self.process.wait();
    }
}

/// A browser with one session of the driver. It is closed when this is dropped.
pub(super) struct Browser {
    pub(super) client: Client,
    session: String,
    origin: String,
    profile: PathBuf,
    driver: Arc<Driver>,
}

impl Browser {
    /// Opens a browser with these preferences and a new profile. Relative addresses are of `origin`.
    pub(super) async fn open(driver: &Arc<Driver>, origin: &str, profile: PathBuf, preferences: Value) -> Self {
        Self::open_with(driver, origin, profile, preferences, &[]).await
    }

    /// Opens a browser like [`open`](Self::open), with further options of the command line.
    pub(super) async fn open_with(
        driver: &Arc<Driver>,
        origin: &str,
        profile: PathBuf,
        preferences: Value,
        options: &[&str],
    ) -> Self {
        let profile_option = format!("--user-data-dir={}", profile.display());
        let options: Vec<&str> = OPTIONS.iter().chain(options).copied().chain([&*profile_option]).collect();
        let capabilities = json!({
            "acceptInsecureCerts": true,
            "goog:chromeOptions": { "args": options, "prefs": preferences },
            "goog:loggingPrefs": { "browser": "ALL", "performance": "ALL" },
        });
        let Value::Object(capabilities) = capabilities else { unreachable!() };
        let address = format!("http://127.0.0.1:{}", driver.port);
        let mut builder = ClientBuilder::new(HttpConnector::new());
        let client = builder.capabilities(capabilities).connect(&address).await.expect("a browser starts");
        let session = client.session_id().await.unwrap().unwrap();
        Self { client, session, origin: origin.to_owned(), profile, driver: Arc::clone(driver) }
    }

    /// Sends a command that WebDriver does not have, and returns its value.
    async fn command(&self, path: &str, body: Value) -> Value {
        let address = format!("http://127.0.0.1:{}/session/{}/{path}", self.driver.port, self.session);
        let request = Request::post(address).header("content-type", "application/json").body(body.to_string()).unwrap();
        let http = HttpClient::builder(TokioExecutor::new()).build_http::<String>();
        let (head, body) = http.request(request).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        assert_eq!(head.status, StatusCode::OK, "{path}: {body:?}");
        serde_json::from_slice::<Value>(&body).unwrap()["value"].take()
    }

    /// Sends a command of the Chrome DevTools Protocol.
    pub(super) async fn devtools(&self, command: &str, parameters: Value) -> Value {
        self.command("goog/cdp/execute", json!({ "cmd": command, "params": parameters })).await
    }

    /// Returns the entries of a log since the last call.
    pub(super) async fn log(&self, kind: &str) -> Vec<Value> {
        let Value::Array(entries) = self.command("se/log", json!({ "type": kind })).await else { unreachable!() };
        entries
    }

    /// Opens a page by its path, or by its address.
    pub(super) async fn goto(&self, page: &str) {
        let address = if page.starts_with('/') { format!("{}{page}", self.origin) } else { page.to_owned() };
        self.client.goto(&address).await.unwrap();
    }

    /// Returns the address of the page, without the origin of the service.
    pub(super) async fn path(&self) -> String {
        let address = self.client.current_url().await.unwrap();
        address.as_str().strip_prefix(&*self.origin).unwrap_or(address.as_str()).to_owned()
    }

    pub(super) async fn find(&self, css: &str) -> Element {
        let found = self.client.find(Locator::Css(css)).await;
        found.unwrap_or_else(|error| panic!("{css}: {error}"))
    }

    pub(super) async fn has(&self, css: &str) -> bool {
        self.client.find(Locator::Css(css)).await.is_ok()
    }

    /// Returns the visible text of an element.
    pub(super) async fn text(&self, css: &str) -> String {
        self.find(css).await.text().await.unwrap()
    }

    pub(super) async fn fill(&self, css: &str, text: &str) {
        let field = self.find(css).await;
        field.clear().await.unwrap();
        field.send_keys(text).await.unwrap();
    }

    /// Clicks on an element that leads to a page, and waits for the page.
    pub(super) async fn press(&self, css: &str) {
        let element = self.find(css).await;
        self.leaving(async || element.click().await.unwrap()).await;
    }

    /// Clicks on the button with this text, and waits for the page that follows.
    pub(super) async fn press_button(&self, text: &str) {
        let path = format!("//button[normalize-space(.)='{text}']");
        let button = self.client.find(Locator::XPath(&path)).await;
        let button = button.unwrap_or_else(|error| panic!("{text}: {error}"));
        self.leaving(async || button.click().await.unwrap()).await;
    }

    /// Does something that leads to another page, and waits for it.
    pub(super) async fn leaving(&self, leave: impl AsyncFnOnce()) {
        let before = self.document().await;
        leave().await;
        until("another page", async || self.document().await.is_some_and(|now| Some(now) != before)).await;
    }

    async fn document(&self) -> Option<ElementRef> {
        Some(self.client.find(Locator::Css("html")).await.ok()?.element_id())
    }

    /// Runs the body of a function in the page.
    pub(super) async fn eval(&self, script: &str) -> Value {
        self.client.execute(script, Vec::new()).await.unwrap_or_else(|error| panic!("{script}: {error}"))
    }

    /// Runs the body of an asynchronous function in the page, and returns its result.
    pub(super) async fn eval_async(&self, script: &str, args: Vec<Value>) -> Value {
        let script = format!(
            "const [done] = [...arguments].slice(-1);
            (async (...args) => {{ {script} }})(...arguments).then(done, (error) => done({{ error: String(error) }}));"
        );
        let value = self.client.execute_async(&script, args).await.unwrap();
        assert!(value.get("error").is_none(), "{value}");
        value
    }

    /// Returns all of the document, with the text of elements that are not visible.
    pub(super) async fn source(&self) -> String {
        self.client.source().await.unwrap()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // A test that fails has no time left for asynchronous work.
        if let Ok(mut driver) = TcpStream::connect(("127.0.0.1", self.driver.port.parse().unwrap_or_default())) {
            let request = format!("DELETE /session/{} HTTP/1.1\r\nhost: localhost\r\n\r\n", self.session);
            _ = driver.set_read_timeout(Some(Duration::from_secs(10)));
            _ = driver.write_all(request.as_bytes()).and_then(|()| driver.read(&mut [0; 64]));
        }
        _ = std::fs::remove_dir_all(&self.profile);
    }
}
