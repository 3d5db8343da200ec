//! The statements that both engines share, each written once.
//!
//! A request and its task change together. Postgres does both in one statement, so that there is
//! no transaction that a vanished client could leave open; SQLite runs the same two parts in one
//! transaction. The parts are macros because they are put together at compile time.
//!
//! Parameters of [`write_request`] and [`write_task`], as `bind_writing` binds them:
//! 1 `request_id` · 2 origin · 3 tenant · 4 session · 5 user · 6 action type · 7 fingerprint ·
//! 8 document · 9 the task the request names · 10 id for a new task · 11 `created_at` ·
//! 12 `expires_at` · 13 status · 14 `decided_by` · 15 `decided_at` · 16 reason · 17 source ·
//! 18 caller type · 19 agent id · 20 trace id · 21 gateway request id · 22 now · 23 `due_at` ·
//! 24 context · 25 message · 26 plan steps · 27 the caller · 28 content hash · 29 trace parent ·
//! 30 audit entry · 31 `if_match` · 32 what a rejected task says ·
//! 33 whose task it may be, if not anybody's · 34 the decider's role · 35 their token's id ·
//! 36 whether the ledger may know no newer request of Redis in the session ·
//! 37 since when it may know no other tenant's request of Redis there, if at all ·
//! 38 whether another tenant has the id of the task that the request names, in a database whose
//! upgrade is not finished.

// Postgres believes of a table what it was when it was last analysed: empty, or a trial with one
// session and one task, as which it would read thousands of rows to find one. So whether there is a
// row is asked as MAX of a column that only the right index has in order (`IS NULL`: there is none):
// to read one row from its end is cheaper than anything else, whatever Postgres believes.

/// Compares a time that has an index with a parameter. The second bound excludes no row. Without
/// statistics Postgres takes one bound for a third of the table, which it would rather read whole,
/// and two bounds for a two-hundredth. `SQLite` compares text, which begins with a digit.
macro_rules! until {
    ($time:literal, $bound:literal) => {
        concat!($time, " >= '-infinity' AND ", $time, " ", $bound)
    };
}

/// As [`until`], for what is later than the parameter.
macro_rules! since {
    ($time:literal, $bound:literal) => {
        concat!($time, " <= 'infinity' AND ", $time, " ", $bound)
    };
}

/// The columns of a request that are read back, and those that its task follows. Never `*`: that
/// fails in statements that are prepared while a later release adds a column.
macro_rules! request_row {
    () => {
        "request_id, origin, tenant_id, session_id, user_id, action_type, fingerprint, content_hash,
         document, task_id, owns_task, created_at, expires_at, status, decided_by, decided_at, reason,
         delivery, owed_since, listeners, sent_to, sent_at, outcome, settled_at, acted_at"
    };
}

/// The columns of a task.
macro_rules! task_row {
    () => {
        "task_id, user_id, tenant_id, task_type, status, progress, description, input_data,
         result_data, plan_steps, hitl_request_id, error_message, started_at, completed_at,
         created_at, updated_at"
    };
}

macro_rules! select_request {
    ($which:literal) => {
        concat!("SELECT ", request_row!(), " FROM hitl_request ", $which)
    };
}

macro_rules! select_task {
    ($which:literal) => {
        concat!("SELECT ", task_row!(), " FROM agent_task ", $which)
    };
}

/// The number of a session's next outcome, above all that were ever purged. Another replica may take
/// it at the same moment: then the statement fails, and is run again.
macro_rules! next_outcome {
    ($tenant:literal, $session:literal) => {
        concat!(
            "(SELECT COALESCE(MAX(taken.outcome), 0) + 1 FROM (
                SELECT MAX(n.outcome) AS outcome FROM hitl_request n
                 WHERE n.tenant_id = ",
            $tenant,
            " AND n.session_id = ",
            $session,
            " UNION ALL SELECT highest FROM purged_outcome) AS taken)"
        )
    };
}

/// Whether we made a task of tenant $3, and no agent keeps it. An older release wrote no tenant; until
/// the upgrade is finished, task ids are unique without it.
macro_rules! is_owned {
    ($task:literal) => {
        concat!(
            "((SELECT MAX(r.created_at) FROM hitl_request r WHERE r.task_id = ",
            $task,
            " AND r.owns_task
                  AND r.tenant_id IS NOT DISTINCT FROM $3) IS NOT NULL
              OR EXISTS (SELECT 1 FROM owned_task o WHERE o.task_id = ",
            $task,
            " AND o.tenant_id IN ($3, '')))"
        )
    };
}

/// Inserts the request's row. `kept` is the task that goes on; it is ours if no agent made it. A
/// registered request has no signal, but while its task has other pending requests its row is owed
/// until somebody has looked whether the task may go on.
macro_rules! write_request {
    ($only_if:literal, $on_conflict:literal) => {
        concat!(
            "INSERT INTO hitl_request (
                request_id, origin, tenant_id, session_id, user_id, action_type, fingerprint,
                content_hash, document, task_id, owns_task, created_at, expires_at, status, decided_by,
                decided_at, reason, caller_source, caller_type, agent_id, trace_id,
                gateway_request_id, delivery, owed_since, due_at, if_match, decider_role, token_id,
                outcome, settled_at, trace_parent
             )
             SELECT $1, $2, $3, $4, $5, $6, $7, $28, $8,
                COALESCE(
                    task.kept,
                    CASE WHEN NOT $38
                          AND NOT EXISTS (SELECT 1 FROM agent_task
                                           WHERE tenant_id = $3 AND task_id = $9) THEN $9 END,
                    $10
                ),
                task.kept IS NULL OR ",
            is_owned!("task.kept"),
            ", $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21,
                CASE WHEN $13 IN ('pending', 'cancelled') THEN 'sent'
                     WHEN $2 = 'http' AND (
                         SELECT MAX(o.request_id) FROM hitl_request o
                          WHERE o.task_id = task.kept AND o.tenant_id IS NOT DISTINCT FROM $3
                            AND o.request_id <> $1 AND o.status = 'pending'
                     ) IS NULL THEN 'sent'
                     ELSE 'owed' END, $22, $23, $31,
                $34, $35,
                CASE WHEN $13 <> 'pending' THEN ",
            next_outcome!("$3", "$4"),
            " END,
                CASE WHEN $13 <> 'pending' THEN $22 END, $29
             FROM task WHERE ",
            $only_if,
            " ON CONFLICT (tenant_id, request_id) ",
            $on_conflict,
            " RETURNING ",
            request_row!()
        )
    };
}

/// Whether a request of user $33 may go on with the task `t` of its tenant.
macro_rules! is_usable {
    () => {
        concat!(
            "(t.user_id = $33 OR $33 IS NULL)
               AND NOT (t.status IN ('COMPLETED', 'FAILED') AND ",
            is_owned!("t.task_id"),
            ")"
        )
    };
}

/// Finds the task that a request goes on with: the one it names, else one that already carries its
/// id; always of the same tenant, and of the request's user. A row that we made and that a rejection
/// ended is over for good. The tenant's second condition is written so that it fits no index: on tables
/// that were never analysed, Postgres would rather read all tasks of the tenant than those of this
/// request.
macro_rules! kept_task {
    () => {
        concat!(
            "task AS (
            SELECT COALESCE(
                (SELECT t.task_id FROM agent_task t
                  WHERE t.tenant_id = $3 AND t.task_id = $9 AND ",
            is_usable!(),
            "),
                (SELECT t.task_id FROM agent_task t
                  WHERE t.tenant_id IS NOT DISTINCT FROM $3 AND t.hitl_request_id = $1 AND ",
            is_usable!(),
            " ORDER BY t.created_at LIMIT 1)
            ) AS kept
        ) "
        )
    };
}

/// Makes the request's task follow it. Final states stay; a task with another pending request goes
/// on waiting; a rejected task fails only if no agent keeps it.
macro_rules! write_task {
    ($from:literal) => {
        concat!(
            "INSERT INTO agent_task (
                task_id, user_id, tenant_id, task_type, status, progress, description, input_data,
                plan_steps, hitl_request_id, error_message, started_at, created_at, updated_at
             )
             SELECT d.task_id, COALESCE(d.user_id, $27), d.tenant_id, SUBSTR(d.action_type, 1, 200),
                CASE
                    WHEN d.status = 'pending' THEN 'WAITING_APPROVAL'
                    WHEN (
                        SELECT MAX(o.request_id) FROM hitl_request o
                         WHERE o.task_id = d.task_id AND o.tenant_id IS NOT DISTINCT FROM d.tenant_id
                           AND o.request_id <> d.request_id AND o.status = 'pending' AND o.expires_at > $22
                    ) IS NOT NULL THEN 'WAITING_APPROVAL'
                    WHEN d.status IN ('rejected', 'cancelled') AND d.owns_task THEN 'FAILED'
                    ELSE 'IN_PROGRESS'
                END,
                0, $25, $24, $26, d.request_id,
                CASE WHEN d.status = 'rejected' THEN $32
                     WHEN d.status = 'cancelled' AND d.owns_task
                          THEN 'Withdrawn by its agent' END,
                $22, d.created_at, $22
             FROM ",
            $from,
            " ON CONFLICT (tenant_id, task_id) DO UPDATE SET
                status = CASE WHEN agent_task.status IN ('COMPLETED', 'FAILED')
                              THEN agent_task.status ELSE excluded.status END,
                plan_steps = CASE WHEN agent_task.plan_steps = '[]'
                                  THEN excluded.plan_steps ELSE agent_task.plan_steps END,
                hitl_request_id = CASE WHEN excluded.status = 'WAITING_APPROVAL' AND $13 <> 'pending'
                                       THEN agent_task.hitl_request_id
                                       ELSE excluded.hitl_request_id END,
                error_message = COALESCE(excluded.error_message, agent_task.error_message),
                started_at = COALESCE(agent_task.started_at, excluded.started_at),
                updated_at = CASE WHEN agent_task.updated_at > excluded.updated_at
                                  THEN agent_task.updated_at ELSE excluded.updated_at END"
        )
    };
}

/// Leaves the entry for the Auth server's audit log in the outbox, if there is one.
macro_rules! write_audit {
    ($from:literal) => {
        concat!(
            "INSERT INTO hitl_outbox (
                kind, target, tenant_id, request_id, payload, created_at, due_at
             )
             SELECT 'audit', 'auth', d.tenant_id, d.request_id, $30, $22, $22 FROM ",
            $from,
            " AND $30 IS NOT NULL"
        )
    };
}

/// What is due in the outbox and was never tried (0), or was (1).
macro_rules! due_in_outbox {
    ($tried:literal, $locking:literal) => {
        concat!(
            "SELECT outbox_id FROM hitl_outbox
              WHERE kind = $1 AND CASE WHEN attempts > 0 THEN 1 ELSE 0 END = ",
            $tried,
            " AND ",
            until!("due_at", "<= $2"),
            " ORDER BY due_at LIMIT $4 ",
            $locking
        )
    };
}

/// Takes the lease of what is due in the outbox: first what was never tried, so that nothing new
/// waits behind what its receiver refuses, then the earliest. $1 kind · $2 now ·
/// $3 the lease's end · $4 how many at most.
macro_rules! claim_outbox {
    ($locking:literal) => {
        concat!(
            "UPDATE hitl_outbox SET due_at = $3, attempts = attempts + 1
              WHERE outbox_id IN (
                  SELECT outbox_id FROM (",
            due_in_outbox!("0", $locking),
            ") AS untried
                  UNION ALL
                  SELECT outbox_id FROM (",
            due_in_outbox!("1", $locking),
            ") AS tried
                  LIMIT $4
              ) RETURNING outbox_id AS id, payload, attempts"
        )
    };
}

/// A decision or a withdrawal: a new row, or a pending one that is still the same request and not
/// expired.
macro_rules! decide_request {
    () => {
        write_request!(
            "(NOT $36 OR COALESCE(
                 (SELECT MAX(newer.created_at) FROM hitl_request newer
                   WHERE newer.session_id = $4 AND newer.origin <> 'http'
                     AND newer.request_id <> $1), $11) <= $11)
             AND ($37 IS NULL OR
                 (SELECT MAX(other.created_at) FROM hitl_request other
                   WHERE other.session_id = $4 AND other.origin <> 'http'
                     AND other.created_at <= 'infinity' AND other.created_at > $37
                     AND other.tenant_id <> $3 AND other.request_id <> $1) IS NULL)",
            "DO UPDATE SET
                status = excluded.status, decided_by = excluded.decided_by,
                decided_at = excluded.decided_at, reason = excluded.reason,
                caller_source = excluded.caller_source, caller_type = excluded.caller_type,
                agent_id = excluded.agent_id, trace_id = excluded.trace_id,
                gateway_request_id = excluded.gateway_request_id, if_match = excluded.if_match,
                decider_role = excluded.decider_role, token_id = excluded.token_id,
                delivery = excluded.delivery, owed_since = excluded.owed_since,
                due_at = excluded.due_at, attempts = 0, sent_at = NULL, listeners = NULL,
                sent_to = NULL, outcome = excluded.outcome, settled_at = excluded.settled_at,
                trace_parent = excluded.trace_parent
              WHERE hitl_request.status = 'pending'
                AND hitl_request.expires_at > excluded.settled_at
                AND hitl_request.origin = excluded.origin
                AND hitl_request.content_hash = excluded.content_hash"
        )
    };
}

/// Approved requests whose tasks we made and may have to close: their agents' patience was over
/// at $1. A batch of $2, the earliest first.
macro_rules! open_tasks {
    ($locking:literal) => {
        concat!(
            "SELECT tenant_id, request_id, task_id, settled_at, acted_at IS NOT NULL AS acted,
                    COALESCE(listeners, 0) > 0 OR heard_at IS NOT NULL OR acted_at IS NOT NULL
                        AS heard
               FROM hitl_request
              WHERE status = 'approved' AND owns_task AND NOT task_closed
                AND delivery <> 'owed' AND ",
            until!("COALESCE(sent_at, settled_at)", "<= $1"),
            " ORDER BY COALESCE(sent_at, settled_at) LIMIT $2 ",
            $locking
        )
    };
}

/// Closes such tasks at $3, as completed if the agent heard the approval. A task that has changed
/// since the approval is left alone: its agent keeps it, or it goes on under a later approval. The
/// last condition excludes no row, but Postgres takes it for one in two hundred: for a whole batch it
/// would rather read all tasks once than look each of them up, even if the batch is empty.
macro_rules! close_open_tasks {
    ($from:expr) => {
        concat!(
            "UPDATE agent_task
                SET status = CASE WHEN due.heard THEN 'COMPLETED' ELSE 'FAILED' END,
                    progress = CASE WHEN due.heard THEN 100 ELSE progress END,
                    result_data = CASE WHEN due.heard AND NOT due.acted
                                       THEN '{\"reportedByAgent\":false}' END,
                    error_message = CASE WHEN due.heard THEN error_message
                                         ELSE 'approved, but no agent was listening' END,
                    completed_at = CASE WHEN due.heard THEN $3 END,
                    updated_at = CASE WHEN updated_at > $3 THEN updated_at ELSE $3 END
               FROM ",
            $from,
            " AS due
              WHERE agent_task.tenant_id = due.tenant_id AND agent_task.task_id = due.task_id
                AND agent_task.status = 'IN_PROGRESS'
                AND agent_task.progress = 0 AND agent_task.updated_at <= due.settled_at
                AND due.heard IS NOT DISTINCT FROM due.heard"
        )
    };
}

/// Remembers that nothing is left to do for the tasks of these requests.
macro_rules! note_closed_tasks {
    ($from:expr) => {
        concat!(
            "UPDATE hitl_request SET task_closed = TRUE
              WHERE (tenant_id, request_id) IN (SELECT tenant_id, request_id FROM ",
            $from,
            " AS closed)"
        )
    };
}

/// A registration: a new row, unless the task it names is over.
macro_rules! register_request {
    () => {
        write_request!(
            "NOT EXISTS (SELECT 1 FROM agent_task
                          WHERE tenant_id = $3 AND task_id = task.kept
                            AND status IN ('COMPLETED', 'FAILED'))",
            "DO NOTHING"
        )
    };
}

/// Closes a pending request whose time is over. $1 its id · $2 now · $3 its tenant.
macro_rules! expire_request {
    () => {
        concat!(
            "UPDATE hitl_request AS d
                SET status = 'expired', settled_at = $2, delivery = 'sent', outcome = ",
            next_outcome!("d.tenant_id", "d.session_id"),
            " WHERE tenant_id = $3 AND request_id = $1 AND status = 'pending' AND expires_at <= $2
              RETURNING ",
            request_row!()
        )
    };
}

/// Fails the task of a request that has just expired, unless it waits for another one as well.
/// $1 the request's id · $2 now · $3 its tenant.
macro_rules! expire_task {
    ($from:literal) => {
        concat!(
            "UPDATE agent_task
                SET status = 'FAILED', updated_at = CASE WHEN updated_at > $2 THEN updated_at ELSE $2 END,
                    error_message = 'Nobody decided on ' || $1 || ' in time'
              WHERE tenant_id = $3 AND task_id = (SELECT task_id FROM ",
            $from,
            ") AND status NOT IN ('COMPLETED', 'FAILED')
                AND (
                    SELECT MAX(o.request_id) FROM hitl_request o
                     WHERE o.task_id = agent_task.task_id
                       AND o.tenant_id IS NOT DISTINCT FROM $3 AND o.request_id <> $1
                       AND o.status = 'pending' AND o.expires_at > $2
                ) IS NULL"
        )
    };
}

/// Which owed rows are due; the earliest first.
macro_rules! due_requests {
    ($locking:literal) => {
        concat!(
            "UPDATE hitl_request SET due_at = $2, attempts = attempts + 1
              WHERE (tenant_id, request_id) IN (
                  SELECT tenant_id, request_id FROM hitl_request
                   WHERE delivery = 'owed' AND ",
            until!("due_at", "<= $1"),
            " ORDER BY due_at LIMIT $3 ",
            $locking,
            ") RETURNING ",
            request_row!()
        )
    };
}

/// Closed requests whose end lies before $1, a batch of $2: neither pending, nor owed, nor signalled
/// since then.
macro_rules! old_requests {
    ($locking:literal) => {
        concat!(
            "SELECT tenant_id, request_id, task_id, owns_task, outcome FROM hitl_request
              WHERE ",
            until!("settled_at", "< $1"),
            " AND COALESCE(sent_at, settled_at) < $1
                AND status <> 'pending' AND delivery <> 'owed'
              ORDER BY settled_at, tenant_id, request_id LIMIT $2 ",
            $locking
        )
    };
}

/// Refused attempts from before $1, a batch of $2.
macro_rules! old_refused_attempts {
    ($locking:literal) => {
        concat!(
            "SELECT attempt_id FROM hitl_refused_attempt WHERE ",
            until!("attempted_at", "< $1"),
            " ORDER BY attempted_at, attempt_id LIMIT $2 ",
            $locking
        )
    };
}

/// Completed and failed tasks that nobody has touched since $1, a batch of $2; but for those whose
/// requests are still under way. NOT EXISTS would become a join with all of them, too.
macro_rules! old_tasks {
    ($locking:literal) => {
        concat!(
            "SELECT t.tenant_id, t.task_id FROM agent_task t
              WHERE t.status IN ('COMPLETED', 'FAILED') AND ",
            until!("t.updated_at", "< $1"),
            " AND (
                    SELECT MAX(r.request_id) FROM hitl_request r
                     WHERE r.task_id = t.task_id AND r.tenant_id IS NOT DISTINCT FROM t.tenant_id
                       AND (r.status = 'pending' OR r.delivery = 'owed')
                ) IS NULL
              ORDER BY t.updated_at, t.tenant_id, t.task_id LIMIT $2 ",
            $locking
        )
    };
}

/// How many there are.
macro_rules! count {
    ($of:expr) => {
        concat!("SELECT COUNT(*) FROM (", $of, ") AS old")
    };
}

/// Remembers the highest number among the outcomes that go.
macro_rules! remember_outcomes {
    ($from:expr) => {
        concat!(
            "UPDATE purged_outcome SET highest = (SELECT MAX(outcome) FROM ",
            $from,
            ") WHERE highest < (SELECT MAX(outcome) FROM ",
            $from,
            ")"
        )
    };
}

/// Remembers which tasks were ours, in one order for all, so that no two purges wait for each other.
/// Each task is looked up by itself: `IN` would become a join with all tasks.
macro_rules! remember_owned {
    ($from:expr) => {
        concat!(
            "INSERT INTO owned_task (tenant_id, task_id)
             SELECT DISTINCT tenant_id, task_id FROM ",
            $from,
            " AS gone
              WHERE owns_task AND (
                  SELECT t.task_id FROM agent_task t
                   WHERE t.tenant_id = gone.tenant_id AND t.task_id = gone.task_id
              ) IS NOT NULL
              ORDER BY tenant_id, task_id ON CONFLICT DO NOTHING"
        )
    };
}

/// What was decided from $1 on and before $2, the earliest first; with $3 what expired or was
/// withdrawn as well, by when that was.
macro_rules! outcomes_between {
    () => {
        "SELECT * FROM hitl_request
          WHERE COALESCE(decided_at, settled_at) >= $1 AND COALESCE(decided_at, settled_at) < $2
            AND ($3 OR decided_at IS NOT NULL)
          ORDER BY COALESCE(decided_at, settled_at), tenant_id, request_id"
    };
}

/// What was decided of requests of Redis; `$which` picks them by their ids.
macro_rules! decisions_of {
    ($which:literal) => {
        concat!(
            "SELECT request_id, session_id, status, decided_by, decided_at, reason FROM hitl_request
              WHERE request_id ",
            $which,
            " AND origin = 'redis' AND decided_at IS NOT NULL"
        )
    };
}
