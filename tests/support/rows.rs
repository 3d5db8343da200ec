//! Rows of the ledger that no use case wrote: by thousands, or as another release or somebody's own
//! SQL writes them. Each column that must have a value has one here, so that a new column is named
//! in this place and not in every test; a test sets those that it cares about, in SQL.

/// A row of a table: its columns, each with an SQL expression.
pub struct SqlRow {
    table: &'static str,
    columns: Vec<(&'static str, String)>,
}

/// A task of Alice's, which nobody has begun.
pub fn task_row() -> SqlRow {
    SqlRow { table: "agent_task", columns: Vec::new() }
        .with("task_id", "'task_1'")
        .with("user_id", "'user123'")
        .with("tenant_id", "'tenant1'")
        .with("task_type", "'send_email'")
        .with("status", "'REQUESTED'")
        .with("progress", "0")
        .with("plan_steps", "'[]'")
        .at(&["created_at", "updated_at"], "CURRENT_TIMESTAMP")
}

/// A request that was registered over HTTP, approved by Alice, and whose agent was told so.
pub fn request_row() -> SqlRow {
    SqlRow { table: "hitl_request", columns: Vec::new() }
        .with("request_id", "'req_1'")
        .with("origin", "'http'")
        .with("tenant_id", "'tenant1'")
        .with("session_id", "'session_1'")
        .with("action_type", "'send_email'")
        .with("fingerprint", "'f'")
        .with("content_hash", "'h'")
        .with("document", "'{}'")
        .with("task_id", "'task_1'")
        .with("owns_task", "FALSE")
        .with("status", "'approved'")
        .with("decided_by", "'user123'")
        .with("delivery", "'sent'")
        .with("outcome", "1")
        .at(&REQUEST_TIMES, "CURRENT_TIMESTAMP")
}

/// When a request was made, may be decided no more, was decided, and its signal went out.
const REQUEST_TIMES: [&str; 7] =
    ["created_at", "expires_at", "decided_at", "owed_since", "due_at", "sent_at", "settled_at"];

/// Adds a task of Mallory's, who is of another tenant, under this id.
pub async fn insert_task_of_mallory(connection: &mut sqlx::PgConnection, id: &str) {
    let task = task_row()
        .with("task_id", "$1")
        .with("user_id", "'mallory'")
        .with("tenant_id", "'tenant2'")
        .insert();
    sqlx::query(sqlx::AssertSqlSafe(task)).bind(id).execute(connection).await.unwrap();
}

impl SqlRow {
    /// The same with another expression in a column.
    pub fn with(mut self, column: &'static str, sql: impl Into<String>) -> Self {
        self.columns.retain(|(there, _)| *there != column);
        self.columns.push((column, sql.into()));
        self
    }

    /// The same with one time in several columns.
    pub fn at(self, columns: &[&'static str], sql: &str) -> Self {
        columns.iter().fold(self, |row, &column| row.with(column, sql))
    }

    /// The statement that writes it once; an expression may be a parameter.
    pub fn insert(&self) -> String {
        format!("{} VALUES ({})", self.head(), self.values())
    }

    /// The statement that writes one for each `n`.
    pub fn insert_each(&self, first: u32, last: u32) -> String {
        format!(
            "{} SELECT {} FROM (
                WITH RECURSIVE numbers(n) AS (
                    SELECT {first} UNION ALL SELECT n + 1 FROM numbers WHERE n < {last}
                ) SELECT n FROM numbers
             ) AS numbers",
            self.head(),
            self.values()
        )
    }

    fn head(&self) -> String {
        let names = self.columns.iter().map(|(column, _)| *column).collect::<Vec<_>>();
        format!("INSERT INTO {} ({})", self.table, names.join(", "))
    }

    fn values(&self) -> String {
        self.columns.iter().map(|(_, sql)| &**sql).collect::<Vec<_>>().join(", ")
    }
}
