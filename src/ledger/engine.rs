//! Runs a statement with its values on Postgres or SQLite. Must not know tables.
//!
//! On Postgres every change is one statement that commits by itself, so that a process that dies
//! leaves no open transaction. Where Postgres needs one statement, SQLite may run several in one
//! transaction: see [`Statement::then`].

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};
use sqlx::error::DatabaseError;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::query::QueryAs;
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqlitePool, SqliteRow};
use sqlx::{
    Arguments as _, Connection as _, FromRow, Postgres, Row as _, SqlSafeStr, SqlStr, Sqlite,
    query_as_with,
};
use tokio::time::timeout;
use tracing::Instrument as _;

use super::connections::Connections;
use super::error::Result;
use crate::domain::ids::{GrantId, RequestId, SessionId, TaskId, TenantId, UserId};
use crate::observe::traces;

/// The longest time of a call to the ledger: up to 1.9 s for a new connection, and the rest for the
/// statements.
pub const TIMEOUT: Duration = Duration::from_millis(2900);

/// A value that is bound to a parameter. A missing value (`None`, SQL `NULL`) also has a type,
/// because Postgres is told the type of every parameter.
#[derive(Clone, Debug)]
pub enum Value {
    /// A boolean.
    Bool(bool),
    /// An integer for a column of 32 bits.
    Small(i32),
    /// An integer of 64 bits.
    Int(Option<i64>),
    /// Text.
    Text(Option<String>),
    /// A time, UTC.
    Time(Option<DateTime<Utc>>),
    /// Integers: an array on Postgres, a JSON array on SQLite.
    Ints(Vec<i64>),
    /// Several texts: an array on Postgres, a JSON array on SQLite.
    Texts(Vec<String>),
}

/// The values of a statement, in the order of its parameters.
macro_rules! values {
    ($($value:expr),* $(,)?) => {
        [$($crate::ledger::engine::Value::from($value)),*]
    };
}
pub(super) use values;

macro_rules! value_from {
    ($($from:ty => $value:ident: $into:expr;)*) => {
        $(impl From<$from> for Value {
            fn from($value: $from) -> Self {
                $into
            }
        })*
    };
}

value_from! {
    bool => value: Self::Bool(value);
    i32 => value: Self::Small(value);
    i64 => value: Self::Int(Some(value));
    Option<i64> => value: Self::Int(value);
    &str => value: Self::Text(Some(value.to_owned()));
    &String => value: Self::Text(Some(value.clone()));
    String => value: Self::Text(Some(value));
    Option<&str> => value: Self::Text(value.map(str::to_owned));
    Option<&String> => value: Self::Text(value.cloned());
    Option<String> => value: Self::Text(value);
    &RequestId => value: value.as_str().into();
    &SessionId => value: value.as_str().into();
    &TaskId => value: value.as_str().into();
    &TenantId => value: value.as_str().into();
    &UserId => value: value.as_str().into();
    Option<&TaskId> => value: value.map(TaskId::as_str).into();
    Option<&UserId> => value: value.map(UserId::as_str).into();
    &GrantId => value: value.as_str().into();
    Option<&GrantId> => value: value.map(GrantId::as_str).into();
    DateTime<Utc> => value: Self::Time(Some(value));
    Option<DateTime<Utc>> => value: Self::Time(value);
    &[i64] => value: Self::Ints(value.to_vec());
    &[RequestId] => value: Self::Texts(value.iter().map(|id| id.as_str().to_owned()).collect());
    &[UserId] => value: Self::Texts(value.iter().map(|id| id.as_str().to_owned()).collect());
}

/// A statement: its name, and its text for each engine.
#[derive(Clone, Copy, Debug)]
pub struct Statement {
    name: &'static str,
    postgres: &'static str,
    sqlite: &'static str,
    then: &'static [&'static str],
}

impl Statement {
    /// A statement with the same text for both engines. `name` is its name in traces.
    pub const fn new(name: &'static str, sql: &'static str) -> Self {
        Self { name, postgres: sql, sqlite: sql, then: &[] }
    }

    /// Sets another text for SQLite.
    pub const fn on_sqlite(self, sqlite: &'static str) -> Self {
        Self { sqlite, ..self }
    }

    /// Sets the statements that SQLite runs afterwards if the first one returned a row: with the
    /// same values and in the same transaction.
    pub const fn then(self, then: &'static [&'static str]) -> Self {
        Self { then, ..self }
    }

    /// The statement's name in traces.
    pub const fn name(self) -> &'static str {
        self.name
    }

    /// Turns an unknown outcome of a `SELECT` into [`NotExecuted`](super::error::LedgerError::NotExecuted).
    fn classify_error<T>(self, answer: Result<T>) -> Result<T> {
        let is_read = self.postgres.starts_with("SELECT");
        answer.map_err(|error| if is_read { error.of_a_read() } else { error })
    }
}

/// A type that a row of either engine can be read into.
pub trait Row:
    for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin + 'static
{
}

impl<T> Row for T where
    T: for<'r> FromRow<'r, PgRow> + for<'r> FromRow<'r, SqliteRow> + Send + Unpin + 'static
{
}

/// A database to whose statements [`Value`]s can be bound.
pub trait Binds: sqlx::Database {
    /// Converts the values to the arguments of a statement.
    fn bind(values: &[Value]) -> sqlx::Result<Self::Arguments>;
}

macro_rules! binds {
    ($database:ty, $arguments:ty, $array:expr) => {
        impl Binds for $database {
            fn bind(values: &[Value]) -> sqlx::Result<$arguments> {
                let mut arguments = <$arguments>::default();
                for value in values {
                    match value {
                        Value::Bool(value) => arguments.add(*value),
                        Value::Small(value) => arguments.add(*value),
                        Value::Int(value) => arguments.add(*value),
                        Value::Text(value) => arguments.add(value.clone()),
                        Value::Time(value) => arguments.add(*value),
                        Value::Ints(value) => arguments.add($array(value)),
                        Value::Texts(value) => arguments.add($array(value)),
                    }
                    .map_err(sqlx::Error::Encode)?;
                }
                Ok(arguments)
            }
        }
    };
}

fn as_json<T: Clone + Into<serde_json::Value>>(values: &[T]) -> String {
    values.iter().cloned().collect::<serde_json::Value>().to_string()
}

binds!(Postgres, PgArguments, <[_]>::to_vec);
binds!(Sqlite, SqliteArguments, as_json);

/// A query of this statement with its values bound.
pub fn query<DB: Binds, R>(
    sql: impl SqlSafeStr,
    values: &[Value],
) -> sqlx::Result<QueryAs<'static, DB, R, DB::Arguments>>
where
    DB::Arguments: sqlx::IntoArguments<DB>,
    R: for<'r> FromRow<'r, DB::Row>,
{
    Ok(query_as_with(sql, DB::bind(values)?))
}

/// The database and its connections.
#[derive(Clone, Debug)]
pub enum Database {
    /// Postgres, shared by all replicas.
    Postgres(Connections),
    /// A SQLite file, used by this process only.
    Sqlite(SqlitePool),
}

/// Runs statements; cheap to clone.
#[derive(Clone, Debug)]
pub struct Engine {
    /// The database that runs the statements.
    pub database: Database,
    /// Whether a write has failed because nothing can be written, and no check has succeeded since.
    /// A database with a full disk or a read-only file still answers reads, so only a failed write
    /// shows the state.
    write_failed: Arc<AtomicBool>,
}

impl Engine {
    /// An engine that runs statements on `database`.
    pub fn new(database: Database) -> Self {
        Self { database, write_failed: Arc::default() }
    }

    /// Whether a write has failed because nothing can be written, since [`Self::write_succeeded`].
    pub fn has_write_failed(&self) -> bool {
        self.write_failed.load(Ordering::Relaxed)
    }

    /// Notes that a write has succeeded.
    pub fn write_succeeded(&self) {
        self.write_failed.store(false, Ordering::Relaxed);
    }

    /// Runs `work` within [`TIMEOUT`], as the trace step `name`. Remembers an error that shows that
    /// nothing can be written.
    pub async fn call<T>(
        &self,
        name: &'static str,
        work: impl Future<Output = sqlx::Result<T>>,
    ) -> Result<T> {
        Ok(self.within_timeout(work).instrument(traces::step(name)).await?)
    }

    /// Like [`Self::call`], without a step in a trace. An answer that does not come in time is an
    /// I/O error, after which the outcome is unknown.
    pub async fn within_timeout<T>(
        &self,
        work: impl Future<Output = sqlx::Result<T>>,
    ) -> sqlx::Result<T> {
        let too_late = || io::Error::new(io::ErrorKind::TimedOut, "no answer in time");
        let answer = timeout(TIMEOUT, work).await.unwrap_or_else(|_elapsed| Err(too_late().into()));
        answer.inspect_err(|error| self.note_write_failure(error))
    }

    fn note_write_failure(&self, error: &sqlx::Error) {
        let code = error.as_database_error().and_then(DatabaseError::code).unwrap_or_default();
        let cannot_write = match self.database {
            // Read-only (25006), and out of disk, memory or other resources (53).
            Database::Postgres(_) => code == "25006" || code.starts_with("53"),
            // READONLY, IOERR, FULL, CANTOPEN.
            Database::Sqlite(_) => {
                code.parse::<u32>().is_ok_and(|code| [8, 10, 13, 14].contains(&(code & 0xff)))
            }
        };
        if cannot_write {
            self.write_failed.store(true, Ordering::Relaxed);
        }
    }

    /// Runs a statement that returns at most one row.
    pub async fn fetch_optional<R: Row>(
        &self,
        statement: Statement,
        values: &[Value],
    ) -> Result<Option<R>> {
        statement.classify_error(self.call(statement.name, self.optional(statement, values)).await)
    }

    /// Runs a statement that always returns a row.
    pub async fn fetch_one<R: Row>(&self, statement: Statement, values: &[Value]) -> Result<R> {
        let one = async { self.optional(statement, values).await?.ok_or(sqlx::Error::RowNotFound) };
        statement.classify_error(self.call(statement.name, one).await)
    }

    /// Runs a statement and returns all its rows.
    pub async fn fetch_all<R: Row>(
        &self,
        statement: Statement,
        values: &[Value],
    ) -> Result<Vec<R>> {
        statement.classify_error(self.call(statement.name, self.all(statement, values)).await)
    }

    /// Runs a statement and returns the number of rows that it wrote.
    pub async fn execute(&self, statement: Statement, values: &[Value]) -> Result<u64> {
        let work = async {
            match &self.database {
                Database::Postgres(connections) => {
                    let arguments = Postgres::bind(values)?;
                    let query = sqlx::query_with(statement.postgres, arguments);
                    Ok(query.execute(connections).await?.rows_affected())
                }
                Database::Sqlite(pool) => {
                    let query = sqlx::query_with(statement.sqlite, Sqlite::bind(values)?);
                    Ok(query.execute(pool).await?.rows_affected())
                }
            }
        };
        statement.classify_error(self.call(statement.name, work).await)
    }

    /// Runs a statement for many rows of values. On Postgres it runs once, and each parameter is an
    /// array with one column of the values. On SQLite it runs once for each row, in one
    /// transaction.
    pub async fn execute_many(&self, statement: Statement, rows: &[Vec<Value>]) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        let work = async {
            match &self.database {
                Database::Postgres(connections) => {
                    let rows = rows.iter().map(Vec::as_slice).collect::<Vec<_>>();
                    let query = sqlx::query_with(statement.postgres, columns(&rows)?);
                    query.execute(connections).await.map(drop)
                }
                Database::Sqlite(pool) => {
                    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
                    for row in rows {
                        let query = sqlx::query_with(statement.sqlite, Sqlite::bind(row)?);
                        query.execute(&mut *transaction).await?;
                    }
                    transaction.commit().await
                }
            }
        };
        self.call(statement.name, work).await
    }

    /// Like [`Self::execute_many`], for a statement that returns at most one row for each row of values.
    pub async fn fetch_many<R: Row>(
        &self,
        statement: Statement,
        rows: &[Vec<Value>],
    ) -> Result<Vec<R>> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let work = async {
            match &self.database {
                Database::Postgres(connections) => {
                    let rows = rows.iter().map(Vec::as_slice).collect::<Vec<_>>();
                    let query = query_as_with(statement.postgres, columns(&rows)?);
                    query.fetch_all(connections).await
                }
                Database::Sqlite(pool) => {
                    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
                    let mut answers = Vec::new();
                    for row in rows {
                        answers.extend(write_row(&mut transaction, statement, row).await?);
                    }
                    transaction.commit().await?;
                    Ok(answers)
                }
            }
        };
        self.call(statement.name, work).await
    }

    /// Like [`Self::fetch_optional`], for use inside [`Self::call`].
    pub async fn optional<R: Row>(
        &self,
        statement: Statement,
        values: &[Value],
    ) -> sqlx::Result<Option<R>> {
        match &self.database {
            Database::Postgres(connections) => {
                query(statement.postgres, values)?.fetch_optional(connections).await
            }
            Database::Sqlite(pool) if statement.then.is_empty() => {
                query(statement.sqlite, values)?.fetch_optional(pool).await
            }
            Database::Sqlite(pool) => {
                let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
                let row = write_row(&mut transaction, statement, values).await?;
                transaction.commit().await?;
                Ok(row)
            }
        }
    }

    /// Runs a statement for many rows of values, in one transaction, and returns for each of them
    /// the row that was written, if there is one. For use inside [`Self::within_timeout`].
    ///
    /// On Postgres the statement runs once. Its parameters are arrays, each with one column of the
    /// values, and at last the time that it waits for locks. Its rows have a column `place`, which
    /// says whose they are: 1 is the first. An error is the error of all rows.
    ///
    /// On SQLite the statement runs once for each row, and a row that a constraint refuses has its
    /// own error.
    pub async fn write_rows<R: Row>(
        &self,
        statement: Statement,
        rows: &[&[Value]],
        lock_timeout: Duration,
    ) -> sqlx::Result<Vec<sqlx::Result<Option<R>>>> {
        match &self.database {
            Database::Postgres(connections) => {
                let mut arguments = columns(rows)?;
                let millis = format!("{}ms", lock_timeout.as_millis());
                arguments.add(millis).map_err(sqlx::Error::Encode)?;
                let query = sqlx::query_with(statement.postgres, arguments);
                let mut written = rows.iter().map(|_row| Ok(None)).collect::<Vec<_>>();
                for row in query.fetch_all(connections).await? {
                    let place = usize::try_from(row.try_get::<i64, _>("place")?).unwrap_or(0);
                    if let Some(slot) = place.checked_sub(1).and_then(|at| written.get_mut(at)) {
                        *slot = R::from_row(&row).map(Some);
                    }
                }
                Ok(written)
            }
            Database::Sqlite(pool) => {
                let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
                let mut written = Vec::with_capacity(rows.len());
                for values in rows {
                    let mut savepoint = transaction.begin().await?;
                    let row = match write_row(&mut savepoint, statement, values).await {
                        Ok(row) => {
                            savepoint.commit().await?;
                            Ok(row)
                        }
                        Err(error) if is_refused(&error) => {
                            savepoint.rollback().await?;
                            Err(error)
                        }
                        Err(error) => return Err(error),
                    };
                    written.push(row);
                }
                transaction.commit().await?;
                Ok(written)
            }
        }
    }

    /// Like [`Self::write_rows`], but all rows or none: `None` if a row was not written, for its
    /// conditions. The rows are in the order of their values. On Postgres `statement` must fail with a
    /// division by zero unless it has written every row. On SQLite each row has its own statement.
    pub async fn write_all<R: Row>(
        &self,
        statement: Statement,
        rows: &[(Statement, Vec<Value>)],
        lock_timeout: Duration,
    ) -> sqlx::Result<Option<Vec<R>>> {
        match &self.database {
            Database::Postgres(_) => {
                let rows = rows.iter().map(|(_, values)| values.as_slice()).collect::<Vec<_>>();
                match self.write_rows(statement, &rows, lock_timeout).await {
                    Ok(written) => written.into_iter().collect::<sqlx::Result<Option<Vec<R>>>>(),
                    Err(error) if is_division_by_zero(&error) => Ok(None),
                    Err(error) => Err(error),
                }
            }
            Database::Sqlite(pool) => {
                let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
                let mut written = Vec::with_capacity(rows.len());
                for (statement, values) in rows {
                    let Some(row) = write_row(&mut transaction, *statement, values).await? else {
                        transaction.rollback().await?;
                        return Ok(None);
                    };
                    written.push(row);
                }
                transaction.commit().await?;
                Ok(Some(written))
            }
        }
    }

    /// Like [`Self::fetch_all`], for use inside [`Self::call`].
    pub async fn all<R: Row>(
        &self,
        statement: Statement,
        values: &[Value],
    ) -> sqlx::Result<Vec<R>> {
        match &self.database {
            Database::Postgres(_) => self.all_of(statement.postgres.into_sql_str(), values).await,
            Database::Sqlite(_) if statement.then.is_empty() => {
                self.all_of(statement.sqlite.into_sql_str(), values).await
            }
            Database::Sqlite(pool) => {
                let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
                let rows = query(statement.sqlite, values)?.fetch_all(&mut *transaction).await?;
                if !rows.is_empty() {
                    run_then(&mut transaction, statement, values).await?;
                }
                transaction.commit().await?;
                Ok(rows)
            }
        }
    }

    /// Like [`Self::all`], for a statement whose text was built at run time.
    pub async fn all_of<R: Row>(&self, sql: SqlStr, values: &[Value]) -> sqlx::Result<Vec<R>> {
        match &self.database {
            Database::Postgres(connections) => query(sql, values)?.fetch_all(connections).await,
            Database::Sqlite(pool) => query(sql, values)?.fetch_all(pool).await,
        }
    }

    /// Like [`Self::all_of`], for a statement whose best plan depends on its values.
    pub async fn all_planned_for_values<R: Row>(
        &self,
        sql: SqlStr,
        values: &[Value],
    ) -> sqlx::Result<Vec<R>> {
        match &self.database {
            Database::Postgres(connections) => {
                let query = query::<_, R>(sql, values)?;
                let rows = connections.rows_planned_for_values(query).await?;
                rows.iter().map(R::from_row).collect()
            }
            Database::Sqlite(_) => self.all_of(sql, values).await,
        }
    }
}

/// Runs a statement of SQLite and those that follow it, on a connection in a transaction.
async fn write_row<R: Row>(
    connection: &mut SqliteConnection,
    statement: Statement,
    values: &[Value],
) -> sqlx::Result<Option<R>> {
    let row = query(statement.sqlite, values)?.fetch_optional(&mut *connection).await?;
    if row.is_some() {
        run_then(connection, statement, values).await?;
    }
    Ok(row)
}

/// Runs the statements that follow a statement of SQLite.
async fn run_then(
    connection: &mut SqliteConnection,
    statement: Statement,
    values: &[Value],
) -> sqlx::Result<()> {
    for sql in statement.then {
        let query = sqlx::query_with(*sql, Sqlite::bind(values)?);
        query.execute(&mut *connection).await?;
    }
    Ok(())
}

/// Whether Postgres divided by zero.
fn is_division_by_zero(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(DatabaseError::code);
    code.as_deref() == Some("22012")
}

/// Whether SQLite refused a row for a constraint, which leaves the transaction as it was.
fn is_refused(error: &sqlx::Error) -> bool {
    const CONSTRAINT: u32 = 19;
    let code = error.as_database_error().and_then(DatabaseError::code);
    code.and_then(|code| code.parse::<u32>().ok()).is_some_and(|code| code & 0xff == CONSTRAINT)
}

/// The columns of these rows, each as one array argument.
fn columns(rows: &[&[Value]]) -> sqlx::Result<PgArguments> {
    let mut arguments = PgArguments::default();
    for number in 0..rows.first().map_or(0, |row| row.len()) {
        let column = || rows.iter().filter_map(|row| row.get(number));
        let (mut bools, mut ints, mut texts, mut times) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for value in column() {
            match value {
                Value::Bool(value) => bools.push(*value),
                Value::Int(value) => ints.push(*value),
                Value::Text(value) => texts.push(value.as_deref()),
                Value::Time(value) => times.push(*value),
                _ => return Err(sqlx::Error::Encode("no arrays of these are bound".into())),
            }
        }
        match column().next() {
            Some(Value::Bool(_)) => arguments.add(bools),
            Some(Value::Int(_)) => arguments.add(ints),
            Some(Value::Time(_)) => arguments.add(times),
            _ => arguments.add(texts),
        }
        .map_err(sqlx::Error::Encode)?;
    }
    Ok(arguments)
}
