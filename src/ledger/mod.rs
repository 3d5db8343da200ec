//! The ledger: the one place that knows what was decided.
//!
//! Postgres or SQLite, chosen at start. Methods are the size of a use case, and no transaction
//! crosses this boundary. A decision is won by exactly one caller because the request's row is
//! unique and only changes while it is pending. Must not know HTTP or Redis.
//!
//! Each file has a noun's statements, beside the values that are bound to them; `engine` runs them.
//! A new column is named in a migration of each engine, in the noun's columns and row, and in the
//! values that are written.
//!
//! A time that has an index is compared twice, as in `due_at >= '-infinity' AND due_at <= $1`. The
//! other bound excludes no row. Without statistics Postgres takes one bound for a third of the table,
//! which it would rather read whole, and two bounds for a two-hundredth. `SQLite` compares text, which
//! begins with a digit.
//!
//! Postgres believes of a table what it was when it was last analysed: empty, or a trial with one
//! session and one task, as which it would read thousands of rows to find one. So whether there is a
//! row is asked as MAX of a column that only the right index has in order (`IS NULL`: there is none):
//! to read one row from its end is cheaper than anything else, whatever Postgres believes.

mod connect;
mod connections;
mod deliveries;
mod engine;
mod error;
mod export;
pub mod known_decisions;
mod login;
mod migrations;
mod outbox;
pub mod patience;
mod quotas;
mod receipts;
mod refused_attempts;
mod requests;
mod retention;
mod tasks;
mod writing;

pub use self::connect::Ledger;
pub use self::connections::Pooler;
pub use self::deliveries::{LEASE, LOST_AT_ONCE};
pub use self::engine::TIMEOUT;
pub use self::error::LedgerError;
pub use self::export::{Exported, ExportedAttempt, Span};
pub use self::login::LoginError;
pub use self::outbox::{OutboxKind, OutboxRow};
pub use self::refused_attempts::RefusedAttempt;
pub use self::requests::Backlog;
pub use self::tasks::COUNTED_TASKS;
pub use self::writing::{Recorded, Registered, Writing};
