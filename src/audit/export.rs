//! The export for auditors: JSON Lines on standard output, one row at a time, so that memory does not
//! grow with their number. What each line says is [`crate::ledger::Exported`]'s for decisions, and
//! [`crate::ledger::ExportedAttempt`]'s for attempts that were refused.

use std::io::{self, BufWriter, ErrorKind, Write};

use anyhow::{Context as _, ensure};
use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use serde::Serialize;

use crate::ledger::{Ledger, Span};

/// A span as operators write it, `from` inclusive and `to` exclusive: dates, which are their
/// midnight in UTC, or RFC 3339 instants.
///
/// # Errors
/// One sentence: what cannot be read, or that the span is empty.
pub fn span(
    from: &str,
    to: Option<&str>,
    undecided: bool,
    now: DateTime<Utc>,
) -> anyhow::Result<Span> {
    let from = instant("--from", from)?;
    let to = to.map_or(Ok(now), |to| instant("--to", to))?;
    ensure!(from < to, "--from is {from:?}, which is not before --to, {to:?}");
    Ok(Span { from, to, undecided })
}

fn instant(name: &str, text: &str) -> anyhow::Result<DateTime<Utc>> {
    let midnight = |date: NaiveDate| date.and_time(NaiveTime::MIN).and_utc();
    let date = text.parse().map(midnight);
    let instant = || DateTime::parse_from_rfc3339(text).map(|time| time.to_utc());
    date.or_else(|_no_date| instant()).ok().with_context(|| {
        format!("{name} is {text:?}; write a date like 2026-01-31 or an instant like 2026-01-31T09:00:00Z")
    })
}

/// Writes what was decided in a span of time. Whoever reads may stop reading: that ends it, too.
///
/// # Errors
/// One sentence, when the ledger cannot be read or the lines cannot be written.
pub async fn decisions(ledger: &Ledger, span: &Span, output: impl Write) -> anyhow::Result<()> {
    let mut lines = Lines::on(output);
    let exported = ledger.export(span, |row| lines.write(row)).await;
    lines.end(exported)
}

/// Writes which attempts to decide were refused in a span of time, likewise.
///
/// # Errors
/// Those of [`decisions`].
pub async fn refused_attempts(
    ledger: &Ledger,
    span: &Span,
    output: impl Write,
) -> anyhow::Result<()> {
    let mut lines = Lines::on(output);
    let exported = ledger.export_refused_attempts(span, |row| lines.write(row)).await;
    lines.end(exported)
}

/// JSON Lines on their way out.
struct Lines<W: Write>(BufWriter<W>);

impl<W: Write> Lines<W> {
    fn on(output: W) -> Self {
        Self(BufWriter::with_capacity(64 * 1024, output))
    }

    fn write(&mut self, row: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.0, row).map_err(io::Error::from)?;
        self.0.write_all(b"\n")
    }

    fn end(mut self, exported: sqlx::Result<io::Result<()>>) -> anyhow::Result<()> {
        let written = match exported.context("cannot read the ledger")? {
            Ok(()) => self.0.flush(),
            broken => broken,
        };
        match written {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
            written => written.context("cannot write the lines"),
        }
    }
}
