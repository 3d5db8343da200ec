//! The export for auditors: JSON Lines on standard output. Rows are written one at a time, so that
//! memory use does not grow with their number. A line is a [`crate::ledger::Exported`] for a
//! decision and a [`crate::ledger::ExportedAttempt`] for a refused attempt.

use std::io::{self, BufWriter, ErrorKind, Write};

use anyhow::{Context as _, ensure};
use chrono::{DateTime, NaiveDate, NaiveTime, Utc};
use serde::Serialize;

use crate::ledger::{Ledger, Span};

/// Reads a span that an operator wrote; `from` is inclusive, `to` is exclusive and `now` by
/// default. Each is an RFC 3339 instant or a date, which means its midnight in UTC.
///
/// # Errors
/// One sentence, when `from` or `to` cannot be parsed or the span is empty.
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

/// Writes the decisions of a span. If the reader closes the pipe, the export ends without an error.
///
/// # Errors
/// One sentence, when the ledger cannot be read or the lines cannot be written.
pub async fn decisions(ledger: &Ledger, span: &Span, output: impl Write) -> anyhow::Result<()> {
    let mut lines = Lines::on(output);
    let exported = ledger.export(span, |row| lines.write(row)).await;
    lines.end(exported)
}

/// Writes the attempts to decide that were refused in a span. A closed pipe ends the export, as in
/// [`decisions`].
///
/// # Errors
/// One sentence, when the ledger cannot be read or the lines cannot be written.
pub async fn refused_attempts(
    ledger: &Ledger,
    span: &Span,
    output: impl Write,
) -> anyhow::Result<()> {
    let mut lines = Lines::on(output);
    let exported = ledger.export_refused_attempts(span, |row| lines.write(row)).await;
    lines.end(exported)
}

/// A buffered writer of JSON Lines.
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
