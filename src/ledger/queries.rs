//! The queries that read the same on both engines: one macro, expanded once for each.
//!
//! sqlx's types differ by engine down to the last bound, so a macro is the plainest way to write a
//! query once. Every statement here is a single one and commits by itself.

macro_rules! ledger_queries {
    ($ledger:ident, $database:ty, claim: $locking:literal) => {
        impl $ledger {
            /// The versions of all migrations that were applied.
            pub async fn applied_migrations(&self) -> sqlx::Result<Vec<i64>> {
                sqlx::query_scalar("SELECT version FROM _sqlx_migrations WHERE success")
                    .fetch_all(&self.pool)
                    .await
            }

            pub async fn backlog(
                &self,
            ) -> sqlx::Result<(i64, Option<DateTime<Utc>>, i64, Option<DateTime<Utc>>)> {
                sqlx::query_as(
                    "SELECT owed.number, owed.since, pending.number, pending.since
                       FROM (SELECT COUNT(*) AS number, MIN(owed_since) AS since
                               FROM (SELECT owed_since FROM hitl_request
                                      WHERE delivery = 'owed' AND due_at >= '-infinity'
                                      ORDER BY due_at LIMIT 10000) AS bounded) owed,
                            (SELECT COUNT(*) AS number, MIN(created_at) AS since
                               FROM (SELECT created_at FROM hitl_request
                                      WHERE status = 'pending' AND decided_at IS NULL
                                      ORDER BY expires_at LIMIT 10000) AS bounded) pending",
                )
                .fetch_one(&self.pool)
                .await
            }

            pub async fn find_request(
                &self,
                tenant: &TenantId,
                id: &RequestId,
            ) -> sqlx::Result<Option<RequestRow>> {
                sqlx::query_as(select_request!("WHERE tenant_id = $1 AND request_id = $2"))
                    .bind(tenant.as_str())
                    .bind(id.as_str())
                    .fetch_optional(&self.pool)
                    .await
            }

            pub async fn find_request_of_redis(
                &self,
                id: &RequestId,
            ) -> sqlx::Result<Option<RequestRow>> {
                sqlx::query_as(select_request!("WHERE request_id = $1 AND origin = 'redis'"))
                    .bind(id.as_str())
                    .fetch_optional(&self.pool)
                    .await
            }

            pub async fn trace_parent(
                &self,
                tenant: &TenantId,
                id: &RequestId,
            ) -> sqlx::Result<Option<String>> {
                sqlx::query_scalar(
                    "SELECT trace_parent FROM hitl_request
                      WHERE tenant_id = $1 AND request_id = $2",
                )
                .bind(tenant.as_str())
                .bind(id.as_str())
                .fetch_one(&self.pool)
                .await
            }

            pub async fn overdue(
                &self,
                now: DateTime<Utc>,
                limit: i64,
            ) -> sqlx::Result<Vec<(String, String)>> {
                sqlx::query_as(concat!(
                    "SELECT tenant_id, request_id FROM hitl_request
                      WHERE status = 'pending' AND decided_at IS NULL AND ",
                    until!("expires_at", "<= $1"),
                    " ORDER BY expires_at LIMIT $2"
                ))
                .bind(now)
                .bind(limit)
                .fetch_all(&self.pool)
                .await
            }

            pub async fn acknowledge(
                &self,
                caller: &Caller,
                id: &RequestId,
                now: DateTime<Utc>,
            ) -> sqlx::Result<Option<RequestRow>> {
                sqlx::query_as(concat!(
                    "UPDATE hitl_request SET acted_at = COALESCE(acted_at, $3)
                      WHERE request_id = $1 AND tenant_id = $2 AND status <> 'pending'
                        AND (user_id = $4 OR $5)
                      RETURNING ",
                    request_row!()
                ))
                .bind(id.as_str())
                .bind(caller.tenant.as_str())
                .bind(now)
                .bind(caller.user.as_str())
                .bind(caller.role == Role::Admin)
                .fetch_optional(&self.pool)
                .await
            }

            pub async fn outcomes(
                &self,
                tenant: &TenantId,
                session: &SessionId,
                after: i64,
                open_since: Option<DateTime<Utc>>,
                limit: i64,
            ) -> sqlx::Result<Vec<RequestRow>> {
                sqlx::query_as(select_request!(
                    "WHERE tenant_id = $1 AND session_id = $2 AND outcome > $3
                        AND (delivery <> 'superseded' OR origin = 'http')
                        AND ($4 IS NULL OR (acted_at IS NULL AND settled_at > $4))
                      ORDER BY outcome LIMIT $5"
                ))
                .bind(tenant.as_str())
                .bind(session.as_str())
                .bind(after)
                .bind(open_since)
                .bind(limit)
                .fetch_all(&self.pool)
                .await
            }

            pub async fn last_outcome(
                &self,
                tenant: &TenantId,
                session: &SessionId,
            ) -> sqlx::Result<i64> {
                sqlx::query_scalar(
                    "SELECT COALESCE(MAX(outcome), 0) FROM hitl_request
                      WHERE tenant_id = $1 AND session_id = $2",
                )
                .bind(tenant.as_str())
                .bind(session.as_str())
                .fetch_one(&self.pool)
                .await
            }

            pub async fn settled_since(
                &self,
                since: DateTime<Utc>,
            ) -> sqlx::Result<Vec<(String, String)>> {
                sqlx::query_as(concat!(
                    "SELECT session_id, tenant_id || '/' || request_id FROM hitl_request WHERE ",
                    since!("settled_at", "> $1"),
                    " ORDER BY settled_at DESC LIMIT 10000"
                ))
                .bind(since)
                .fetch_all(&self.pool)
                .await
            }

            pub async fn newest_of_redis(
                &self,
                session: &SessionId,
            ) -> sqlx::Result<Option<RequestRow>> {
                sqlx::query_as(select_request!(
                    "WHERE session_id = $1 AND origin <> 'http'
                      ORDER BY created_at DESC, owed_since DESC LIMIT 1"
                ))
                .bind(session.as_str())
                .fetch_optional(&self.pool)
                .await
            }

            pub async fn is_shared(
                &self,
                session: &SessionId,
                tenant: &TenantId,
                since: DateTime<Utc>,
            ) -> sqlx::Result<bool> {
                sqlx::query_scalar(
                    "SELECT (SELECT MAX(created_at) FROM hitl_request
                              WHERE session_id = $1 AND origin <> 'http'
                                AND created_at <= 'infinity' AND created_at > $3
                                AND tenant_id <> $2) IS NOT NULL",
                )
                .bind(session.as_str())
                .bind(tenant.as_str())
                .bind(since)
                .fetch_one(&self.pool)
                .await
            }

            pub async fn claim_owed(
                &self,
                now: DateTime<Utc>,
                until: DateTime<Utc>,
                limit: i64,
            ) -> sqlx::Result<Vec<RequestRow>> {
                sqlx::query_as(due_requests!($locking))
                    .bind(now)
                    .bind(until)
                    .bind(limit)
                    .fetch_all(&self.pool)
                    .await
            }

            pub async fn claim_outbox(
                &self,
                kind: OutboxKind,
                now: DateTime<Utc>,
                until: DateTime<Utc>,
                limit: i64,
            ) -> sqlx::Result<Vec<OutboxRow>> {
                sqlx::query_as(claim_outbox!($locking))
                    .bind(kind.as_str())
                    .bind(now)
                    .bind(until)
                    .bind(limit)
                    .fetch_all(&self.pool)
                    .await
            }

            pub async fn postpone_outbox(
                &self,
                id: i64,
                due_at: DateTime<Utc>,
            ) -> sqlx::Result<()> {
                sqlx::query("UPDATE hitl_outbox SET due_at = $2 WHERE outbox_id = $1")
                    .bind(id)
                    .bind(due_at)
                    .execute(&self.pool)
                    .await
                    .map(drop)
            }

            pub async fn oldest_in_outbox(
                &self,
                kind: OutboxKind,
            ) -> sqlx::Result<Option<DateTime<Utc>>> {
                sqlx::query_scalar(
                    "SELECT MIN(created_at) FROM hitl_outbox WHERE kind = $1",
                )
                .bind(kind.as_str())
                .fetch_one(&self.pool)
                .await
            }

            pub async fn count_pending_of_person(
                &self,
                tenant: &TenantId,
                user: &UserId,
                limit: i64,
            ) -> sqlx::Result<i64> {
                sqlx::query_scalar(
                    "SELECT COUNT(*) FROM (
                        SELECT 1 FROM hitl_request
                         WHERE tenant_id = $1 AND user_id = $2
                           AND status = 'pending' AND origin = 'http'
                         ORDER BY created_at LIMIT $3
                     ) AS pending",
                )
                .bind(tenant.as_str())
                .bind(user.as_str())
                .bind(limit)
                .fetch_one(&self.pool)
                .await
            }

            pub async fn count_pending_of_tenant(
                &self,
                tenant: &TenantId,
                limit: i64,
            ) -> sqlx::Result<i64> {
                sqlx::query_scalar(
                    "SELECT COUNT(*) FROM (
                        SELECT 1 FROM hitl_request
                         WHERE tenant_id = $1 AND status = 'pending' AND origin = 'http'
                         ORDER BY user_id, created_at LIMIT $2
                     ) AS pending",
                )
                .bind(tenant.as_str())
                .bind(limit)
                .fetch_one(&self.pool)
                .await
            }

            /// Clocks of replicas differ, so an hour that is over changes nothing.
            pub async fn add_usage(
                &self,
                tenant: &TenantId,
                hour: DateTime<Utc>,
                bytes: i64,
            ) -> sqlx::Result<i64> {
                sqlx::query_scalar(
                    "INSERT INTO hitl_tenant_usage (tenant_id, hour, bytes) VALUES ($1, $2, $3)
                     ON CONFLICT (tenant_id) DO UPDATE SET
                        bytes = CASE
                            WHEN hitl_tenant_usage.hour < excluded.hour THEN excluded.bytes
                            ELSE hitl_tenant_usage.bytes + excluded.bytes END,
                        hour = CASE
                            WHEN hitl_tenant_usage.hour < excluded.hour THEN excluded.hour
                            ELSE hitl_tenant_usage.hour END
                     RETURNING bytes",
                )
                .bind(tenant.as_str())
                .bind(hour)
                .bind(bytes)
                .fetch_one(&self.pool)
                .await
            }

            /// Completes the task that we made for an approved request whose agent has acted.
            pub async fn complete_acted_task(
                &self,
                tenant: &TenantId,
                id: &RequestId,
                now: DateTime<Utc>,
            ) -> sqlx::Result<()> {
                sqlx::query(
                    "UPDATE agent_task
                        SET status = 'COMPLETED', progress = 100, completed_at = $3,
                            updated_at = CASE WHEN updated_at > $3 THEN updated_at ELSE $3 END
                      WHERE status = 'IN_PROGRESS' AND tenant_id = $2 AND task_id = (
                          SELECT task_id FROM hitl_request
                           WHERE request_id = $1 AND tenant_id = $2 AND status = 'approved'
                             AND owns_task AND acted_at IS NOT NULL
                      )",
                )
                .bind(id.as_str())
                .bind(tenant.as_str())
                .bind(now)
                .execute(&self.pool)
                .await
                .map(drop)
            }

            pub async fn note_asked(
                &self,
                tenant: &TenantId,
                user: &UserId,
                id: &RequestId,
                now: DateTime<Utc>,
            ) -> sqlx::Result<()> {
                sqlx::query(
                    "UPDATE hitl_request SET heard_at = $3
                      WHERE request_id = $1 AND tenant_id = $2 AND origin = 'http'
                        AND user_id = $4
                        AND status = 'approved' AND heard_at IS NULL",
                )
                .bind(id.as_str())
                .bind(tenant.as_str())
                .bind(now)
                .bind(user.as_str())
                .execute(&self.pool)
                .await
                .map(drop)
            }

            pub async fn insert_refused_attempts(
                &self,
                attempts: &[RefusedAttempt],
            ) -> sqlx::Result<()> {
                let mut insert = sqlx::QueryBuilder::<$database>::new(
                    "INSERT INTO hitl_refused_attempt (
                        attempted_at, tenant_id, user_id, role, token_id, request_id, verdict,
                        error_code, reason, if_match, caller_source, caller_type, agent_id,
                        trace_id, gateway_request_id
                     ) ",
                );
                insert.push_values(attempts, |mut row, attempt| {
                    let Caller { user, tenant, role, token_id, via } = &attempt.caller;
                    row.push_bind(attempt.at)
                        .push_bind(tenant.as_str())
                        .push_bind(user.as_str())
                        .push_bind(role.as_str())
                        .push_bind(token_id.as_deref())
                        .push_bind(attempt.request.as_str())
                        .push_bind(attempt.verdict)
                        .push_bind(attempt.error_code)
                        .push_bind(&attempt.reason)
                        .push_bind(attempt.if_match.as_deref())
                        .push_bind(via.source.as_deref())
                        .push_bind(via.caller_type.as_deref())
                        .push_bind(via.agent_id.as_deref())
                        .push_bind(via.trace_id.as_deref())
                        .push_bind(via.gateway_request_id.as_deref());
                });
                insert.build().execute(&self.pool).await.map(drop)
            }

            pub async fn purge_refused_attempts(
                &self,
                before: DateTime<Utc>,
                limit: i64,
            ) -> sqlx::Result<u64> {
                sqlx::query(concat!(
                    "DELETE FROM hitl_refused_attempt WHERE attempt_id IN (",
                    old_refused_attempts!($locking),
                    ")"
                ))
                .bind(before)
                .bind(limit)
                .execute(&self.pool)
                .await
                .map(|done| done.rows_affected())
            }

            pub async fn owe_again(
                &self,
                seen: &Record,
                now: DateTime<Utc>,
                due_at: DateTime<Utc>,
            ) -> sqlx::Result<Option<RequestRow>> {
                sqlx::query_as(concat!(
                    "UPDATE hitl_request
                        SET delivery = 'owed', owed_since = $3, due_at = $4, attempts = 0,
                            sent_at = NULL, listeners = NULL, sent_to = NULL
                      WHERE tenant_id = $5 AND request_id = $1 AND owed_since = $2
                        AND (delivery <> 'owed' OR sent_to IS NOT NULL)
                      RETURNING ",
                    request_row!()
                ))
                .bind(seen.id.as_str())
                .bind(seen.owed_since)
                .bind(now)
                .bind(due_at)
                .bind(seen.tenant.as_str())
                .fetch_optional(&self.pool)
                .await
            }

            /// As [`Self::owe_lost`].
            pub async fn unheard(
                &self,
                since: DateTime<Utc>,
                patient: DateTime<Utc>,
                limit: i64,
            ) -> sqlx::Result<Vec<RequestRow>> {
                sqlx::query_as(concat!(
                    select_request!("WHERE delivery = 'sent' AND "),
                    since!("sent_at", "> $1"),
                    " AND listeners = 0 AND created_at > $2 AND origin <> 'http'
                        AND heard_at IS NULL AND decided_at IS NOT NULL
                      ORDER BY sent_at DESC LIMIT $3"
                ))
                .bind(since)
                .bind(patient)
                .bind(limit)
                .fetch_all(&self.pool)
                .await
            }

            /// `listeners` stays 0: it tells the relay that this signal was sent before.
            pub async fn claim_unheard(
                &self,
                seen: &Record,
                now: DateTime<Utc>,
                due_at: DateTime<Utc>,
            ) -> sqlx::Result<Option<RequestRow>> {
                sqlx::query_as(concat!(
                    "UPDATE hitl_request
                        SET delivery = 'owed', owed_since = $3, due_at = $4, attempts = 0
                      WHERE request_id = $1 AND owed_since = $2 AND origin = 'redis'
                        AND delivery = 'sent' AND listeners = 0 AND heard_at IS NULL
                      RETURNING ",
                    request_row!()
                ))
                .bind(seen.id.as_str())
                .bind(seen.owed_since)
                .bind(now)
                .bind(due_at)
                .fetch_optional(&self.pool)
                .await
            }

            pub async fn heard(
                &self,
                tenant: &TenantId,
                user: &UserId,
                id: &RequestId,
                now: DateTime<Utc>,
            ) -> sqlx::Result<bool> {
                sqlx::query(
                    "UPDATE hitl_request SET heard_at = COALESCE(heard_at, $2)
                      WHERE request_id = $1 AND tenant_id = $3 AND user_id = $4
                        AND origin = 'redis'",
                )
                .bind(id.as_str())
                .bind(now)
                .bind(tenant.as_str())
                .bind(user.as_str())
                .execute(&self.pool)
                .await
                .map(|done| done.rows_affected() > 0)
            }

            /// Not `origin = 'redis'`: that would fit the index of all ids of Redis.
            pub async fn owe_lost(
                &self,
                replication_ids: &str,
                since: DateTime<Utc>,
                now: DateTime<Utc>,
            ) -> sqlx::Result<u64> {
                sqlx::query(concat!(
                    "UPDATE hitl_request SET delivery = 'owed', due_at = $1
                      WHERE (tenant_id, request_id) IN (
                          SELECT tenant_id, request_id FROM hitl_request
                           WHERE origin <> 'http' AND delivery = 'sent' AND ",
                    since!("sent_at", "> $2"),
                    " AND $3 NOT LIKE '%' || sent_to || '%'
                           ORDER BY sent_at DESC LIMIT $4
                      ) AND delivery = 'sent'"
                ))
                .bind(now)
                .bind(since)
                .bind(replication_ids)
                .bind(i64::from(super::LOST_AT_ONCE))
                .execute(&self.pool)
                .await
                .map(|done| done.rows_affected())
            }

            pub async fn postpone(
                &self,
                record: &Record,
                due_at: DateTime<Utc>,
            ) -> sqlx::Result<()> {
                sqlx::query(
                    "UPDATE hitl_request SET due_at = $3
                      WHERE tenant_id = $4 AND request_id = $1 AND owed_since = $2
                        AND delivery = 'owed'",
                )
                .bind(record.id.as_str())
                .bind(record.owed_since)
                .bind(due_at)
                .bind(record.tenant.as_str())
                .execute(&self.pool)
                .await
                .map(drop)
            }

            pub async fn insert_task(&self, task: &Task) -> sqlx::Result<()> {
                sqlx::query(
                    "INSERT INTO agent_task (
                        task_id, user_id, tenant_id, task_type, status, progress, description,
                        input_data, plan_steps, created_at, updated_at
                     ) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
                )
                .bind(task.id.as_str())
                .bind(task.user.as_str())
                .bind(task.tenant.as_str())
                .bind(&task.task_type)
                .bind(task.status.as_str())
                .bind(task.progress)
                .bind(task.description.as_deref())
                .bind(task.input_data.as_deref())
                .bind(&task.plan_steps)
                .bind(task.created_at)
                .bind(task.updated_at)
                .execute(&self.pool)
                .await
                .map(drop)
            }

            pub async fn find_task(
                &self,
                tenant: &TenantId,
                id: &TaskId,
            ) -> sqlx::Result<Option<TaskRow>> {
                sqlx::query_as(select_task!("WHERE task_id = $1 AND tenant_id = $2"))
                    .bind(id.as_str())
                    .bind(tenant.as_str())
                    .fetch_optional(&self.pool)
                    .await
            }

            /// Writes `after` over `before`, unless somebody changed the task in between.
            pub async fn replace_task(&self, before: &Task, after: &Task) -> sqlx::Result<bool> {
                sqlx::query(
                    "UPDATE agent_task
                        SET status = $5, progress = $6, description = $7, result_data = $8,
                            plan_steps = $9, error_message = $10, started_at = $11,
                            completed_at = $12, updated_at = $13
                      WHERE tenant_id = $14 AND task_id = $1 AND updated_at = $2 AND status = $3
                        AND plan_steps = $4",
                )
                .bind(before.id.as_str())
                .bind(before.updated_at)
                .bind(before.status.as_str())
                .bind(&before.plan_steps)
                .bind(after.status.as_str())
                .bind(after.progress)
                .bind(after.description.as_deref())
                .bind(after.result_data.as_deref())
                .bind(&after.plan_steps)
                .bind(after.error_message.as_deref())
                .bind(after.started_at)
                .bind(after.completed_at)
                .bind(after.updated_at)
                .bind(before.tenant.as_str())
                .execute(&self.pool)
                .await
                .map(|done| done.rows_affected() == 1)
            }

            pub async fn release_task(
                &self,
                tenant: &TenantId,
                id: &TaskId,
                now: DateTime<Utc>,
            ) -> sqlx::Result<bool> {
                sqlx::query(
                    "UPDATE agent_task
                        SET status = 'IN_PROGRESS'
                      WHERE task_id = $1 AND tenant_id = $3 AND status = 'WAITING_APPROVAL'
                        AND (
                            SELECT MAX(o.request_id) FROM hitl_request o
                             WHERE o.task_id = $1 AND o.tenant_id IS NOT DISTINCT FROM $3
                               AND o.status = 'pending' AND o.expires_at > $2
                        ) IS NULL",
                )
                .bind(id.as_str())
                .bind(now)
                .bind(tenant.as_str())
                .execute(&self.pool)
                .await
                .map(|done| done.rows_affected() == 1)
            }

            /// One page of the tasks that match, newest first, and how many match in all: counted up
            /// to one above [`super::COUNTED_TASKS`].
            pub async fn list_tasks(
                &self,
                filter: &TaskFilter,
            ) -> sqlx::Result<(Vec<TaskRow>, i64)> {
                let mut count = sqlx::QueryBuilder::<$database>::new(
                    "SELECT COUNT(*) FROM (SELECT 1 FROM agent_task",
                );
                let mut page = sqlx::QueryBuilder::<$database>::new(select_task!(""));
                for query in [&mut count, &mut page] {
                    query.push(" WHERE tenant_id = ").push_bind(filter.tenant.as_str());
                    if let Some(user) = &filter.user {
                        query.push(" AND user_id = ").push_bind(user.as_str());
                    }
                    if let Some(status) = filter.status {
                        query.push(" AND status = ").push_bind(status.as_str());
                    }
                    query.push(" ORDER BY created_at DESC, task_id DESC LIMIT ");
                }
                page.push_bind(i64::from(filter.size))
                    .push(" OFFSET ")
                    .push_bind(i64::from(filter.page) * i64::from(filter.size));
                count.push_bind(super::COUNTED_TASKS + 1).push(") AS counted");
                let rows = page.build_query_as().fetch_all(&self.pool).await?;
                Ok((rows, count.build_query_scalar().fetch_one(&self.pool).await?))
            }
        }

        /// How many rows a statement finds to be old; none without an age.
        async fn count_old(
            executor: impl sqlx::Executor<'_, Database = $database>,
            statement: &'static str,
            before: Option<DateTime<Utc>>,
        ) -> sqlx::Result<i64> {
            sqlx::query_scalar(statement).bind(before).bind(i64::MAX).fetch_one(executor).await
        }

        /// What was decided in a span of time, row by row as it is read.
        fn outcomes_between<'c>(
            executor: impl sqlx::Executor<'c, Database = $database> + 'c,
            span: &Span,
        ) -> BoxStream<'c, sqlx::Result<Exported>> {
            sqlx::query_as(outcomes_between!())
                .bind(span.from)
                .bind(span.to)
                .bind(span.undecided)
                .fetch(executor)
        }

        /// The refused attempts of a span of time, row by row as they are read.
        fn refused_attempts_between<'c>(
            executor: impl sqlx::Executor<'c, Database = $database> + 'c,
            span: &Span,
        ) -> BoxStream<'c, sqlx::Result<ExportedAttempt>> {
            sqlx::query_as(
                "SELECT * FROM hitl_refused_attempt
                  WHERE attempted_at >= $1 AND attempted_at < $2
                  ORDER BY attempted_at, attempt_id",
            )
            .bind(span.from)
            .bind(span.to)
            .fetch(executor)
        }

        /// Binds the parameters of `write_request` and `write_task`, in their order.
        fn bind_writing<'q>(
            query: sqlx::query::QueryAs<
                'q,
                $database,
                RequestRow,
                <$database as sqlx::Database>::Arguments,
            >,
            writing: &Writing<'_>,
            is_task_taken: bool,
        ) -> sqlx::query::QueryAs<
            'q,
            $database,
            RequestRow,
            <$database as sqlx::Database>::Arguments,
        > {
            let own = |text: &str| text.to_owned();
            let request = &writing.candidate.request;
            let decision = writing.state.decision();
            let via = &writing.caller.via;
            query
                .bind(own(request.id.as_str()))
                .bind(super::origin_str(writing.candidate.origin))
                .bind(own(writing.tenant().as_str()))
                .bind(own(request.session.as_str()))
                .bind(writing.candidate.user.as_ref().map(|user| own(user.as_str())))
                .bind(own(&request.action_type))
                .bind(own(&request.fingerprint))
                .bind(own(&request.document))
                .bind(request.task.as_ref().map(|task| own(task.as_str())))
                .bind(TaskId::generate().to_string())
                .bind(writing.candidate.created_at)
                .bind(writing.candidate.expires_at)
                .bind(writing.state.as_str())
                .bind(decision.map(|decision| own(decision.by.as_str())))
                .bind(decision.map(|decision| decision.at))
                .bind(decision.and_then(|decision| decision.verdict.reason()).map(own))
                .bind(via.source.clone())
                .bind(via.caller_type.clone())
                .bind(via.agent_id.clone())
                .bind(via.trace_id.clone())
                .bind(via.gateway_request_id.clone())
                .bind(writing.now)
                .bind(writing.now + writing.held_for)
                .bind(own(&request.context))
                .bind(request.message.clone())
                .bind(own(&request.plan_steps))
                .bind(own(writing.caller.user.as_str()))
                .bind(own(&request.content_hash))
                .bind(writing.trace_parent.clone())
                .bind(writing.audit.body().map(own))
                .bind(writing.if_match.map(own))
                .bind(writing.refusal())
                .bind(writing.task_owner().map(|user| own(user.as_str())))
                .bind(decision.map(|_decision| writing.caller.role.as_str()))
                .bind(decision.and_then(|_decision| writing.caller.token_id.clone()))
                .bind(writing.only_newest)
                .bind(writing.alone_since)
                .bind(is_task_taken)
        }
    };
}
