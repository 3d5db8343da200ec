//! The ledger: the database of requests and decisions, and the only authority on what was decided.
//!
//! The database is Postgres or SQLite, chosen at start. Each method is one use case, and no
//! transaction spans two methods. Exactly one caller decides a request: the request has one row,
//! and the row's `status` changes only while it is `pending`. The ledger must not know HTTP or
//! Redis.
//!
//! Each file holds the statements of one noun, next to the values that are bound to them. `engine`
//! runs the statements. A new column needs a migration for each engine, a name in the noun's column
//! list, a field in the noun's row type, and a value in the statements that write the row.
//!
//! Query plans, bounds: an indexed time is compared with two bounds, as in
//! `due_at >= '-infinity' AND due_at <= $1`. The bound with `infinity` excludes no row. Without
//! statistics Postgres estimates that one bound selects a third of the table, and reads the whole
//! table. With two bounds it estimates one row in two hundred, and uses the index. SQLite
//! compares the times as text: they begin with a digit, which sorts after `-` and before `i`.
//!
//! Query plans, existence: Postgres estimates with the statistics of the last ANALYZE. If the table
//! was empty or tiny then, Postgres may choose a wrong index and read thousands of rows to find
//! one. So the question whether a row exists is written as `(SELECT MAX(column) …) IS NOT NULL`,
//! where only the right index sorts by `column`. Reading one entry from the end of that index is
//! the cheapest plan with any statistics.

mod batches;
mod bindings;
mod comments;
mod connect;
mod connections;
mod deliveries;
mod engine;
mod error;
mod export;
mod given;
mod grants;
mod inbox;
mod intake;
mod known_bindings;
pub mod known_decisions;
mod lists;
mod login;
mod migrations;
mod outbox;
pub mod patience;
mod quotas;
mod receipts;
mod refused_attempts;
mod request_row;
mod requests;
mod retention;
mod search;
mod slack;
mod tasks;
mod totals;
mod votes;
mod writing;

pub use self::bindings::Rebound;
pub use self::comments::NewComment;
pub use self::connect::Ledger;
pub use self::connections::Pooler;
pub use self::deliveries::{LEASE, LOST_AT_ONCE};
pub use self::engine::TIMEOUT;
pub use self::error::LedgerError;
pub use self::export::{Exported, ExportedAttempt, Span};
pub use self::inbox::{BoundWaiting, Changed, Group as WaitingGroup, Waiting};
pub use self::intake::{AskedAgain, GoneRequest, SeenRequest, SeenRow};
pub use self::lists::{MAX_WALK, Page};
pub use self::login::LoginError;
pub use self::outbox::{AUDIT, FailedRow, NOTICE, NewOutboxRow, OutboxRow};
pub use self::refused_attempts::RefusedAttempt;
pub use self::requests::{Backlog, Overdue};
pub use self::search::{SearchText, Unprepared};
pub use self::slack::{PostedMessage, SlackMessage};
pub use self::tasks::COUNTED_TASKS;
pub use self::writing::{Change, Recorded, Registered, Writing};
