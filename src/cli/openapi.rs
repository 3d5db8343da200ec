//! `aura-hitl openapi`: prints the API document.

use std::io::{ErrorKind, Write as _};

use crate::api::routes::document;

/// Prints the document.
pub fn run() -> anyhow::Result<()> {
    print_whole(&document().to_pretty_json()?)
}

/// Prints a text. A closed pipe, as of `openapi | head`, is not an error.
fn print_whole(text: &str) -> anyhow::Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        printed => Ok(printed?),
    }
}
