//! Logs: one JSON object a line on standard output, with the ids that tie a line to a call.
//!
//! Never in a log: a token, a secret, a request's `context`, a query string.

use std::str::FromStr as _;
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{Directive, LevelFilter};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _};

use super::traces;

/// Lines that wait to be written, at most: standard output may be a pipe that nobody reads.
const MAX_WAITING_LINES: usize = 16 * 1024;
/// Longest that the process waits at its end for the rest of the log to be written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// Lines of the log that were dropped because nobody read it.
pub fn dropped_lines() -> usize {
    DROPPED.get().map_or(0, ErrorCounter::dropped_lines)
}

/// Writes the rest of the log when dropped; see `FLUSH_TIMEOUT`.
#[derive(Debug)]
#[must_use = "the log ends when this is dropped"]
pub struct LogGuard(Option<WorkerGuard>);

impl Drop for LogGuard {
    fn drop(&mut self) {
        let Some(guard) = self.0.take() else { return };
        // The library writes to standard output itself when its writer does not end.
        let (done, waiting) = mpsc::channel();
        std::thread::spawn(move || {
            drop(guard);
            done.send(())
        });
        let _written_or_not = waiting.recv_timeout(FLUSH_TIMEOUT);
    }
}

/// Starts logging, and tracing if a collector is configured; `RUST_LOG` sets the level of the log,
/// `info` by default. A thread of its own writes the log, so that nothing waits for a reader.
///
/// # Errors
/// When `RUST_LOG` is not a filter, the collector's address is none, or this was started before.
pub fn start() -> anyhow::Result<LogGuard> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(filter) if !filter.trim().is_empty() => {
            let wrong = || format!("RUST_LOG is {filter:?}; it looks like info,sqlx=warn");
            // A word alone that is no level would be a module's name, and silence all others.
            let is_level = |word: &str| {
                word.is_empty() || word.contains('=') || LevelFilter::from_str(word).is_ok()
            };
            ensure!(filter.split(',').map(str::trim).all(is_level), wrong());
            EnvFilter::try_new(&filter).ok().with_context(wrong)?
        }
        _ => EnvFilter::new("info"),
    };
    let no_steps = Directive::from_str(&format!("{}=off", traces::STEP_TARGET))?;
    let (writer, guard) = NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(MAX_WAITING_LINES)
        .thread_name("log")
        .finish(std::io::stdout());
    let _first = DROPPED.set(writer.error_counter());
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .json()
        .flatten_event(true)
        .with_current_span(true)
        .with_span_list(false)
        .with_filter(filter.add_directive(no_steps));
    tracing_subscriber::registry().with(traces::layer()?).with(lines).try_init()?;
    std::panic::set_hook(Box::new(|panic| tracing::error!(%panic, "a bug: something panicked")));
    Ok(LogGuard(Some(guard)))
}
