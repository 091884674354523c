//! Starts servers as processes, drives them with `wrk`, and reads their processor time.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::net::TcpListener;

use crate::kinds::Kind;
use crate::{Result, plain, reference};

/// The services, each in its own process.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Variant {
    /// The reference service with an unlimited quota.
    Gated,
    /// The same service without gates.
    Baseline,
    /// The reference service with its own quota.
    Limited,
    /// The plain service with a gate.
    PlainGated,
    /// The plain service without a gate.
    PlainBaseline,
}

impl Variant {
    const ALL: [(&str, Self); 5] = [
        ("gated", Self::Gated),
        ("baseline", Self::Baseline),
        ("limited", Self::Limited),
        ("plain-gated", Self::PlainGated),
        ("plain-baseline", Self::PlainBaseline),
    ];

    fn name(self) -> Result<&'static str> {
        let found = Self::ALL.into_iter().find(|(_, variant)| *variant == self);
        Ok(found.ok_or("a variant without a name")?.0)
    }

    /// Serves on a free port and prints its address. Never returns, except with an error.
    pub(crate) fn serve(name: &str) -> Result<()> {
        let found = Self::ALL.into_iter().find(|(own, _)| *own == name);
        let (_, variant) = found.ok_or_else(|| format!("unknown variant `{name}`"))?;
        // One thread, so that the load of a server does not depend on the number of its processors.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            #[cfg(feature = "metrics")]
            crate::metrics::install()?;
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            println!("{}", listener.local_addr()?);
            std::io::stdout().flush()?;
            match variant {
                Self::Gated => reference::gated(listener).await,
                Self::Baseline => reference::baseline(listener).await,
                Self::Limited => reference::limited(listener).await,
                Self::PlainGated => plain::gated(listener).await,
                Self::PlainBaseline => plain::baseline(listener).await,
            }
        })
    }
}

/// The result of one run.
pub(crate) struct Sum {
    pub(crate) requests: u64,
    /// Responses with a status outside of 2xx and 3xx.
    pub(crate) rejected: u64,
    pub(crate) time: Duration,
    /// The processor time of the server.
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
        Self::start_program(variant, "tollgate-load")
    }

    /// Starts a server that reports to a recorder.
    pub(crate) fn start_with_metrics(variant: Variant) -> Result<Self> {
        Self::start_program(variant, "tollgate-load-metrics")
    }

    fn start_program(variant: Variant, program: &str) -> Result<Self> {
        let program = std::env::current_exe()?.with_file_name(program);
        let mut process = Command::new(&program)
            .args(["serve", variant.name()?])
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("`{}` cannot be run, see `just load`: {error}", program.display()))?;
        let mut address = String::new();
        let output = process.stdout.take().ok_or("no output")?;
        BufReader::new(output).read_line(&mut address)?;
        Ok(Self { process, address: address.trim().to_owned(), variant })
    }

    /// Sends requests of one kind for this time.
    pub(crate) fn drive(&self, kind: Kind, time: Duration) -> Result<Sum> {
        let file = std::env::temp_dir().join(format!("tollgate-load-{}.lua", std::process::id()));
        fs::write(&file, kind.script())?;
        let before = self.cpu()?;
        let output = Command::new("wrk")
            .args(["--threads", "1", "--connections", "16", "--duration", &format!("{}s", time.as_secs())])
            .arg("--script")
            .arg(&file)
            .arg(format!("http://{}{}", self.address, kind.path()))
            .output()
            .map_err(|error| format!("`wrk` cannot be run: {error}"))?;
        let cpu = self.cpu()? - before;
        fs::remove_file(&file)?;
        let text = String::from_utf8(output.stdout)?;
        let sum = Sum { cpu, ..read(&text).ok_or_else(|| format!("the output of `wrk` cannot be parsed:\n{text}"))? };
        let as_expected = match self.variant {
            Variant::Limited => true,
            _ => sum.rejected == if kind.is_known() { 0 } else { sum.requests },
        };
        match as_expected && !text.contains("Socket errors") {
            true => Ok(sum),
            false => Err(format!("unexpected responses:\n{text}").into()),
        }
    }

    /// Returns the processor time of all threads of the server so far, in user mode and in the kernel.
    fn cpu(&self) -> Result<Duration> {
        let mut total = Duration::ZERO;
        // In nanoseconds. The times in `/proc/<pid>/stat` have steps of 10 ms.
        for thread in fs::read_dir(format!("/proc/{}/task", self.process.id()))? {
            let stat = fs::read_to_string(thread?.path().join("schedstat"))?;
            let ns = stat.split_whitespace().next().ok_or("an empty schedstat")?;
            total += Duration::from_nanos(ns.parse()?);
        }
        Ok(total)
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
