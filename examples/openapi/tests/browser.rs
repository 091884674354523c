//! The page in Chromium, by WebDriver: it authorizes with a token and calls an operation.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdout};

use fantoccini::{ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::json;

use super::*;

const TEST: &str = "the_page_authorizes_and_calls_an_operation";
/// Starts the driver. The group of processes ends with the standard input: also if the tests are killed.
const START: &str = "chromedriver --port=0 & read -r _; kill -KILL 0";
/// The operation `balance` on the page.
const OPERATION: &str = "//*[@id='operations-default-balance']";
/// Fails a test that waits in vain. No test waits for this time to pass.
const WATCHDOG: Duration = Duration::from_secs(60);

/// A running driver. It and its browsers are killed when this is dropped.
struct Driver {
    process: Child,
    port: String,
    /// Kept, so that the driver can go on to write.
    _out: BufReader<ChildStdout>,
}

impl Driver {
    /// Returns `None`, with a message, if a program is missing.
    fn start() -> Option<Self> {
        for program in ["chromedriver", "chromium"] {
            let runs = std::process::Command::new(program).arg("--version").stdin(Stdio::null()).output();
            if !runs.is_ok_and(|output| output.status.success()) {
                skip(program, TEST, "TOLLGATE_REQUIRE_BROWSER");
                return None;
            }
        }
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", START]).process_group(0);
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut process = shell.spawn().unwrap();
        let mut out = BufReader::new(process.stdout.take().unwrap());
        let started = |line: String| {
            let port = line.split_once("started successfully on port ")?.1;
            Some(port.chars().take_while(char::is_ascii_digit).collect())
        };
        let port = out.by_ref().lines().map_while(Result::ok).find_map(started).expect("the driver starts");
        Some(Self { process, port, _out: out })
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        drop(self.process.stdin.take());
        _ = self.process.wait();
    }
}

#[tokio::test]
async fn the_page_authorizes_and_calls_an_operation() {
    let Some(driver) = Driver::start() else { return };
    let addr = start().await;
    // All other hosts are unknown: the page must not need the internet.
    let options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--window-size=1280,1400"];
    let hosts = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1";
    let args: Vec<&str> = options.into_iter().chain([hosts]).collect();
    let Value::Object(capabilities) = json!({ "goog:chromeOptions": { "args": args } }) else { unreachable!() };
    let mut builder = ClientBuilder::new(HttpConnector::new());
    let address = format!("http://127.0.0.1:{}", driver.port);
    let browser = builder.capabilities(capabilities).connect(&address).await.expect("a browser starts");

    let find = async |xpath: &str| {
        let found = browser.wait().at_most(WATCHDOG).for_element(Locator::XPath(xpath)).await;
        found.unwrap_or_else(|error| panic!("{xpath}: {error}"))
    };
    let click = async |xpath: &str| find(xpath).await.click().await.unwrap();
    browser.goto(&format!("http://{addr}/docs/")).await.unwrap();

    // A call without a token.
    click(&format!("{OPERATION}//button[contains(@class, 'opblock-control-arrow')]")).await;
    click(&format!("{OPERATION}//button[normalize-space(.)='Try it out']")).await;
    let status = async || {
        click(&format!("{OPERATION}//button[normalize-space(.)='Execute']")).await;
        // The table of the documented responses has such cells too, and its header as well.
        let table = "//table[contains(@class, 'live-responses-table')]//tr[contains(concat(@class, ' '), 'response ')]";
        let cell = find(&format!("{OPERATION}{table}/td[contains(@class, 'response-col_status')]")).await;
        let text = cell.text().await.unwrap();
        text.lines().next().unwrap_or_default().to_owned()
    };
    assert_eq!(status().await, "401");

    // The page offers both schemes. Authorize by the first.
    click("//button[contains(@class, 'authorize')]").await;
    let dialog = "//*[contains(@class, 'dialog-ux')]";
    find(&format!("{dialog}//code[text()='bearer']")).await;
    find(&format!("{dialog}//code[text()='api_key']")).await;
    find("//*[@id='auth-bearer-value']").await.send_keys(TRADER).await.unwrap();
    let form = "//form[.//*[@id='auth-bearer-value']]";
    click(&format!("{form}//button[normalize-space(.)='Authorize']")).await;
    // The form now shows that it is authorized, and has no field.
    click(&format!("{dialog}//button[normalize-space(.)='Close']")).await;

    click(&format!("{OPERATION}//button[normalize-space(.)='Clear']")).await;
    assert_eq!(status().await, "200");
    browser.close().await.unwrap();
}
