//! The log: one JSON object per line on standard output, with the ids of the call that wrote it.
//!
//! A log line never contains a token, a secret, a request's `context` or a query string.

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

/// Most lines that wait to be written. Standard output may be a pipe that nobody reads; further lines are
/// dropped and counted.
const MAX_WAITING_LINES: usize = 16 * 1024;
/// Longest time that the process waits at exit until the rest of the log is written.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// The number of log lines that were dropped because nobody read standard output.
pub fn dropped_lines() -> usize {
    DROPPED.get().map_or(0, ErrorCounter::dropped_lines)
}

/// When dropped, writes the rest of the log, for at most `FLUSH_TIMEOUT`.
#[derive(Debug)]
#[must_use = "the log ends when this is dropped"]
pub struct LogGuard(Option<WorkerGuard>);

impl Drop for LogGuard {
    fn drop(&mut self) {
        let Some(guard) = self.0.take() else { return };
        // If the writer does not end in time, the library's guard writes to standard output itself and
        // may block, so it is dropped in another thread.
        let (done, waiting) = mpsc::channel();
        std::thread::spawn(move || {
            drop(guard);
            done.send(())
        });
        let _written_or_not = waiting.recv_timeout(FLUSH_TIMEOUT);
    }
}

/// Starts the log, and traces if a collector is configured. `RUST_LOG` sets the level of the log; the
/// default is `info`. A separate thread writes the log, so that no call waits for its reader.
///
/// # Errors
/// When `RUST_LOG` is not a valid filter, the collector's address is not a URL, or logging was started
/// before.
pub fn start() -> anyhow::Result<LogGuard> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(filter) if !filter.trim().is_empty() => {
            let wrong = || format!("RUST_LOG is {filter:?}; it looks like info,sqlx=warn");
            // The library takes a single unknown word for a module's name, and would then log no other
            // module. So a single word must be a level.
            let is_level = |word: &str| {
                word.is_empty() || word.contains('=') || LevelFilter::from_str(word).is_ok()
            };
            ensure!(filter.split(',').map(str::trim).all(is_level), wrong());
            EnvFilter::try_new(&filter).ok().with_context(wrong)?
        }
        // Whoever calls a server says why its certificate is not taken.
        _ => EnvFilter::new("info,rustls_platform_verifier=off"),
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
