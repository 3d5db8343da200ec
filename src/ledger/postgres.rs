//! The ledger on Postgres. Every change is one autocommit statement, so a client that vanishes
//! can leave no transaction behind; the settings below are the second line of defence.

use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::error::DatabaseError;
use sqlx::postgres::{PgConnectOptions, PgDatabaseError, PgPool, PgPoolOptions};
use sqlx::{Connection, PgConnection, Postgres};

use super::{RequestRow, TaskRow, Writing};
use crate::domain::decision::{Record, Settled};
use crate::domain::ids::{RequestId, SessionId, TaskId, TenantId};
use crate::domain::task::{Task, TaskFilter};

/// The ledger on Postgres.
#[derive(Clone, Debug)]
pub struct PgLedger {
    pool: PgPool,
}

/// The request and its task in one statement. Answers the request's row, if it was written, with
/// the state of its task.
macro_rules! in_one_statement {
    ($write_request:expr) => {
        concat!(
            "WITH ",
            kept_task!(),
            ", written AS (",
            $write_request,
            "), touched AS (",
            write_task!("written AS d WHERE true"),
            " RETURNING status)
             SELECT written.*, touched.status AS task_status FROM written, touched"
        )
    };
}

ledger_queries!(PgLedger, Postgres, claim: "FOR UPDATE SKIP LOCKED");

impl PgLedger {
    pub async fn connect(url: &str, max_connections: u32, acquire: Duration) -> sqlx::Result<Self> {
        let pool = PgPoolOptions::new()
            .max_connections(max_connections)
            .acquire_timeout(acquire)
            .connect_lazy_with(log_in(url).await?);
        Ok(Self { pool })
    }

    /// Logs in to the same database by other means. Nothing changes until [`Self::adopt`].
    pub async fn try_login(&self, url: &str) -> sqlx::Result<PgConnectOptions> {
        fn place(options: &PgConnectOptions) -> impl PartialEq {
            // Without a name it is the one of the user.
            let database = options.get_database().unwrap_or(options.get_username());
            (options.get_host(), options.get_port(), options.get_socket(), database)
        }
        let current = self.pool.connect_options();
        if place(&PgConnectOptions::from_str(url)?) != place(&current) {
            let reason = "it is another server or database, which needs a restart";
            return Err(sqlx::Error::Configuration(reason.into()));
        }
        log_in(url).await
    }

    /// Every connection from now on is made this way. Those that are open live on, at most half an
    /// hour (the pool's `max_lifetime`).
    pub fn adopt(&self, login: PgConnectOptions) {
        self.pool.set_connect_options(login);
    }

    /// A connection without statement time-outs, for migrations: they may take long, and take
    /// turns by an advisory lock.
    pub async fn migration_connection(url: &str) -> sqlx::Result<PgConnection> {
        PgConnection::connect_with(&PgConnectOptions::from_str(url)?).await
    }

    pub async fn close(&self) {
        self.pool.close().await;
    }

    pub async fn record_outcome(&self, writing: &Writing<'_>) -> sqlx::Result<Option<RequestRow>> {
        self.write(in_one_statement!(decide_request!()), writing).await
    }

    pub async fn register(&self, writing: &Writing<'_>) -> sqlx::Result<Option<RequestRow>> {
        self.write(in_one_statement!(register_request!()), writing).await
    }

    async fn write(
        &self,
        statement: &'static str,
        writing: &Writing<'_>,
    ) -> sqlx::Result<Option<RequestRow>> {
        let write = async || {
            bind_writing(sqlx::query_as(statement), writing).fetch_optional(&self.pool).await
        };
        loop {
            match write().await {
                // Nothing was written. Now that the other tenant's task can be seen, a new one is
                // made.
                Err(error) if is_anothers_task(&error) => crash_point!("task-taken"),
                // Nor then: the session's next outcome has the number after it.
                Err(error) if is_number_taken(&error) => {}
                written => return written,
            }
        }
    }

    pub async fn expire(
        &self,
        id: &RequestId,
        now: DateTime<Utc>,
    ) -> sqlx::Result<Option<RequestRow>> {
        let expire = concat!(
            "WITH expired AS (",
            expire_request!(),
            "), touched AS (",
            expire_task!("expired"),
            ") SELECT * FROM expired"
        );
        loop {
            let expired =
                sqlx::query_as(expire).bind(id.as_str()).bind(now).fetch_optional(&self.pool);
            match expired.await {
                Err(error) if is_number_taken(&error) => {}
                expired => return expired,
            }
        }
    }
}

/// How connections are made, after one has been.
async fn log_in(url: &str) -> sqlx::Result<PgConnectOptions> {
    let options = PgConnectOptions::from_str(url)?
        .application_name("aura-hitl")
        // Just under what the callers wait (`ledger::TIMEOUT`), so that Postgres gives up
        // first and a caller's time-out does not leave a statement behind.
        .options([
            ("statement_timeout", "1500"),
            ("lock_timeout", "1000"),
            ("idle_in_transaction_session_timeout", "5000"),
        ]);
    // The pool would retry until its time is up and then only say so; one plain connection says
    // what is wrong.
    PgConnection::connect_with(&options).await?.close().await?;
    Ok(options)
}

/// Whether another outcome of the session took its number at the same moment.
fn is_number_taken(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(DatabaseError::constraint) == Some("hitl_request_outcome")
}

/// Whether another tenant made a task of this name at the same moment; see `write_task`.
fn is_anothers_task(error: &sqlx::Error) -> bool {
    let error = error.as_database_error();
    error.and_then(|error| error.try_downcast_ref::<PgDatabaseError>()).is_some_and(|error| {
        error.table() == Some("agent_task") && error.column() == Some("tenant_id")
    })
}
