//! Starts servers as processes, drives them with `wrk`, and collects the results.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::Result;
use crate::baseline::{TOKEN, Variant};

/// The kinds of requests.
#[derive(Clone, Copy)]
pub(crate) enum Kind {
    /// A `GET` with a valid token.
    Bearer,
    /// A text alert with a valid token in it.
    Webhook,
    /// A `GET` with an unknown token.
    Unknown,
}

impl Kind {
    /// Returns the script for `wrk` and the path.
    fn script(self) -> (String, &'static str) {
        let with = |token: &str| format!("wrk.headers['Authorization'] = 'Bearer {token}'\n");
        match self {
            Self::Bearer => (with(TOKEN), "/v1/api/accounts"),
            Self::Unknown => (with(&TOKEN.replace('0', "x")), "/v1/api/accounts"),
            Self::Webhook => (
                format!(
                    "wrk.method = 'POST'\nwrk.headers['Content-Type'] = 'text/plain; charset=utf-8'\n\
                     wrk.body = 'key={TOKEN};command=CANCELALLORDERS;account=sim101;'\n"
                ),
                "/v1/webhook",
            ),
        }
    }
}

/// The result of one run.
pub(crate) struct Sum {
    pub(crate) requests: u64,
    /// Responses with a status outside of 2xx and 3xx.
    pub(crate) rejected: u64,
    pub(crate) time: Duration,
    cpu: Duration,
}

impl Sum {
    pub(crate) fn cpu_per_request(&self) -> f64 {
        self.cpu.as_secs_f64() / self.requests as f64
    }
}

/// A server in its own process, which ends when this value is dropped.
pub(crate) struct Server {
    process: Child,
    address: String,
    variant: Variant,
}

impl Server {
    pub(crate) fn start(variant: Variant) -> Result<Self> {
        let mut process =
            Command::new(std::env::current_exe()?).args(["serve", variant.name()]).stdout(Stdio::piped()).spawn()?;
        let mut address = String::new();
        let output = process.stdout.take().ok_or("no output")?;
        BufReader::new(output).read_line(&mut address)?;
        Ok(Self { process, address: address.trim().to_owned(), variant })
    }

    /// Sends requests of one kind for this time.
    pub(crate) fn drive(&self, kind: Kind, time: Duration) -> Result<Sum> {
        let (script, path) = kind.script();
        let file = std::env::temp_dir().join(format!("tollgate-load-{}.lua", std::process::id()));
        fs::write(&file, script)?;
        let before = self.cpu()?;
        let output = Command::new("wrk")
            .args(["--threads", "1", "--connections", "16", "--duration", &format!("{}s", time.as_secs())])
            .arg("--script")
            .arg(&file)
            .arg(format!("http://{}{path}", self.address))
            .output()
            .map_err(|error| format!("`wrk` cannot be run: {error}"))?;
        let cpu = self.cpu()? - before;
        fs::remove_file(&file)?;
        let text = String::from_utf8(output.stdout)?;
        let sum = Sum { cpu, ..read(&text).ok_or_else(|| format!("the output of `wrk` cannot be parsed:\n{text}"))? };
        let as_expected = match (kind, self.variant) {
            (Kind::Unknown, _) => sum.rejected == sum.requests,
            (_, Variant::Limited) => true,
            _ => sum.rejected == 0,
        };
        match as_expected && !text.contains("Socket errors") {
            true => Ok(sum),
            false => Err(format!("unexpected responses:\n{text}").into()),
        }
    }

    /// Returns the processor time of the server so far, including the kernel. The server has one thread.
    fn cpu(&self) -> Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/schedstat", self.process.id()))?;
        let ns = stat.split_whitespace().next().ok_or("an empty schedstat")?;
        Ok(Duration::from_nanos(ns.parse()?))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        _ = self.process.kill();
        _ = self.process.wait();
    }
}

/// Parses the output of `wrk`: `1234 requests in 2.00s, 1.00MB read`, and `Non-2xx or 3xx responses: 7` if there are
/// any.
fn read(text: &str) -> Option<Sum> {
    let line = text.lines().find(|line| line.contains(" requests in "))?;
    let (requests, rest) = line.trim().split_once(" requests in ")?;
    let seconds = rest.split_once("s,")?.0;
    let rejected = text.lines().find_map(|line| line.trim().strip_prefix("Non-2xx or 3xx responses: "));
    Some(Sum {
        requests: requests.parse().ok()?,
        rejected: rejected.map_or(Some(0), |rejected| rejected.trim().parse().ok())?,
        time: Duration::from_secs_f64(seconds.parse().ok()?),
        cpu: Duration::ZERO,
    })
}
