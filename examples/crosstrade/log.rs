//! The log: events of `tracing` on stderr, limited so that no client can fill it or block the service.
//!
//! | limit | beyond it |
//! |---|---|
//! | [`MAX_LINES`] lines of one token and one kind in [`WINDOW`] | one line with the number of dropped lines |
//! | equal lines in [`WINDOW`] | one line with the number of repetitions |
//! | [`MAX_EXCERPT`](crate::excerpt::MAX_EXCERPT) bytes of an alert | the number of further bytes |
//! | [`MAX_SOURCES`] tokens and kinds in [`WINDOW`] | further tokens share the limit of one |
//! | [`MAX_QUEUE`] lines that wait for stderr | lines are dropped: requests never wait for stderr |
//!
//! A kind is a place in the code that logs. An alert takes 300 bytes, and 3.5 KB if all of it has to be escaped. So one
//! token writes 22 KB a second of each kind at most.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::hash::{BuildHasher, Hash, Hasher, RandomState};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

pub(crate) const WINDOW: Duration = Duration::from_secs(10);
pub(crate) const MAX_LINES: usize = 64;
pub(crate) const MAX_SOURCES: usize = 1_024;
const MAX_QUEUE: usize = 1_024;
/// The target of events that are not limited: the summaries.
const SUMMARY: &str = "crosstrade::log";

/// Writes the last summaries and all lines that wait, unless stderr is blocked, when it is dropped.
pub(crate) struct LogGuard {
    limit: LogLimit,
    _writer: WorkerGuard,
}

/// Starts the log.
///
/// # Panics
///
/// If another log was started in this process.
pub(crate) fn start() -> LogGuard {
    let queue = NonBlockingBuilder::default().buffered_lines_limit(MAX_QUEUE).lossy(true);
    let (stderr, _writer) = queue.finish(std::io::stderr());
    let (limit, lost) = (LogLimit::default(), stderr.error_counter());
    subscriber(limit.clone(), stderr).init();
    let summarized = limit.clone();
    tokio::spawn(async move {
        let mut lost_before = 0;
        loop {
            tokio::time::sleep(WINDOW).await;
            summarized.summarize();
            let lost = lost.dropped_lines();
            if lost > lost_before {
                tracing::warn!(lines = lost - lost_before, "log lines lost: stderr is too slow");
            }
            lost_before = lost;
        }
    });
    LogGuard { limit, _writer }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        self.limit.summarize();
    }
}

/// Returns a subscriber that writes to another writer.
pub(crate) fn subscriber<W>(limit: LogLimit, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_ansi(false);
    // tower-sessions warns of each cookie that is malformed or whose session has ended, which any client can send.
    let levels = Targets::new().with_default(LevelFilter::INFO).with_target("tower_sessions", LevelFilter::ERROR);
    tracing_subscriber::registry().with(levels).with(lines).with(limit)
}

/// Limits the lines of each token and kind. Clones share one limit.
#[derive(Clone, Default)]
pub(crate) struct LogLimit(Arc<Shared>);

#[derive(Default)]
struct Shared {
    sources: Mutex<HashMap<Source, Lines>>,
    hash: RandomState,
}

/// A place in the code, and the grant of the token if the event has one.
#[derive(PartialEq, Eq, Hash)]
struct Source {
    kind: Identifier,
    grant: Option<String>,
}

/// The lines of one source in this window.
#[derive(Default)]
struct Lines {
    message: String,
    /// Hashes of those that were written.
    written: Vec<u64>,
    repeated: u64,
    dropped: u64,
}

impl LogLimit {
    /// Begins a new window, and logs how many lines of the last one were not written.
    pub(crate) fn summarize(&self) {
        let sources = std::mem::take(&mut *self.0.sources.lock().unwrap_or_else(PoisonError::into_inner));
        for (Source { grant, .. }, Lines { message, repeated, dropped, .. }) in sources {
            let grant = grant.as_deref();
            if repeated > 0 {
                tracing::info!(target: SUMMARY, grant, "message repeated {repeated} times: {message}");
            }
            if dropped > 0 {
                tracing::info!(target: SUMMARY, grant, "message dropped {dropped} times: {message}");
            }
        }
    }

    /// Returns whether an event may be written.
    fn admit(&self, source: Source, message: String, line: u64) -> bool {
        let mut sources = self.0.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let source = match sources.len() < MAX_SOURCES || sources.contains_key(&source) {
            true => source,
            false => Source { grant: None, ..source },
        };
        let lines = sources.entry(source).or_insert_with(|| Lines { message, ..Lines::default() });
        if lines.written.contains(&line) {
            lines.repeated += 1;
        } else if lines.written.len() == MAX_LINES {
            lines.dropped += 1;
        } else {
            lines.written.push(line);
            return true;
        }
        false
    }
}

impl<S: Subscriber> Layer<S> for LogLimit {
    fn event_enabled(&self, event: &Event<'_>, _: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        if metadata.target() == SUMMARY {
            return true;
        }
        let mut fields = Fields { hasher: self.0.hash.build_hasher(), grant: None, message: String::new() };
        event.record(&mut fields);
        let source = Source { kind: metadata.callsite(), grant: fields.grant };
        self.admit(source, fields.message, fields.hasher.finish())
    }
}

/// Reads the fields of an event.
struct Fields<H> {
    /// The hash of all fields except those that differ in equal lines.
    hasher: H,
    grant: Option<String>,
    message: String,
}

impl<H: Hasher> Visit for Fields<H> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "grant" {
            self.grant = Some(value.to_owned());
        }
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "retry_after_s" => return,
            "message" => _ = write!(self.message, "{value:?}"),
            _ => {}
        }
        field.name().hash(&mut self.hasher);
        // Writing into a hasher does not fail.
        _ = write!(HashWriter(&mut self.hasher), "{value:?}");
    }
}

struct HashWriter<'a, H>(&'a mut H);

impl<H: Hasher> fmt::Write for HashWriter<'_, H> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}
