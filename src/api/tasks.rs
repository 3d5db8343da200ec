//! Agent tasks: the work of an agent for a user, and its progress.

use actix_web::web;
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};
use validator::{Validate, ValidationErrors};

use super::body::{AnyJson, Checked, MAX_TASK_BYTES, Query, Turn, in_turn, whole_number};
use super::envelope::{Answer, Envelope, created, ok, wire_time};
use super::error::ApiError;
use super::examples::{TASK, plan_step, success, task};
use super::schemas;
use super::task_id;
use super::text::Text;
use crate::api::identity::CallerOf;
use crate::domain::approver::{Caller, Role};
use crate::domain::ids::{TaskId, UserId};
use crate::domain::json;
use crate::domain::plan::{InvalidStep, PlanStep};
use crate::domain::task::{Task, TaskFilter, TaskStatus, TaskStep};
use crate::state::AppState;
use crate::tasks;

/// Tasks per page when the caller gives no size.
const DEFAULT_PAGE_SIZE: u32 = 20;
/// How many tasks a page may have.
const MAX_PAGE_SIZE: u32 = 100;
/// The last page: the largest 32-bit integer, as in Java.
const MAX_PAGE: u32 = i32::MAX.unsigned_abs();

/// A new task.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskBody {
    /// What kind of work.
    #[validate(required, length(min = 1, max = 200))]
    #[schema(
        required,
        nullable = false,
        min_length = 1,
        max_length = 200,
        example = "mail_summary"
    )]
    task_type: Option<String>,
    /// The token's `sub`.
    #[validate(required)]
    #[schema(required, nullable = false, example = "user123")]
    user_id: Option<String>,
    /// The token's `tenant_id`.
    #[validate(required)]
    #[schema(required, nullable = false, example = "tenant1")]
    tenant_id: Option<String>,
    /// For people.
    #[validate(length(max = 2000))]
    #[schema(max_length = 2000)]
    description: Option<String>,
    /// Any JSON.
    #[schema(schema_with = schemas::any)]
    input_data: Option<Box<RawValue>>,
}

/// The progress of a task.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProgressBody {
    /// Percent.
    #[validate(required, range(min = 0, max = 100))]
    #[serde(default, deserialize_with = "whole_number")]
    #[schema(required, nullable = false, minimum = 0, maximum = 100, example = 40)]
    progress: Option<i32>,
    /// Replaces the description.
    #[validate(length(max = 2000))]
    #[schema(max_length = 2000)]
    description: Option<String>,
}

/// Why a task failed, as a query.
#[derive(Debug, Deserialize, Validate, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct FailQuery {
    /// Why.
    #[validate(length(max = 4000))]
    #[param(max_length = 4000, example = "mailbox is full")]
    error_message: Option<String>,
}

/// Why a task failed, as a body.
#[derive(Debug, Deserialize, Validate, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct FailBody {
    /// Why.
    #[validate(length(max = 4000))]
    #[schema(max_length = 4000, example = "mailbox is full")]
    error_message: Option<String>,
}

/// Which tasks to list.
#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase")]
#[into_params(parameter_in = Query)]
pub struct ListQuery {
    /// Of this user; the caller's own when absent, everybody's for an admin.
    #[param(example = "user123")]
    user_id: Option<String>,
    /// The token's tenant.
    #[param(example = "tenant1")]
    tenant_id: Option<String>,
    /// In this state.
    status: Option<TaskStatus>,
    /// From 0.
    #[param(minimum = 0, maximum = 2_147_483_647)]
    page: Option<u32>,
    /// 20 when absent.
    #[param(minimum = 1, maximum = 100)]
    size: Option<u32>,
}

/// A task. Times are UTC, whole seconds, no zone suffix.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskView {
    #[schema(example = "task_5b1f0c2e7a9d4e3fb8c6d1a2e3f4a5b6")]
    task_id: String,
    #[schema(example = "user123")]
    user_id: String,
    #[schema(example = "tenant1")]
    tenant_id: String,
    #[schema(example = "mail_summary")]
    task_type: String,
    status: TaskStatus,
    /// Percent.
    #[schema(example = 40)]
    progress: i32,
    description: Option<String>,
    #[schema(schema_with = schemas::any)]
    input_data: Option<Box<RawValue>>,
    #[schema(schema_with = schemas::any)]
    result_data: Option<Box<RawValue>>,
    /// A JSON string that holds an array of plan steps.
    #[schema(example = "[]")]
    plan_steps: String,
    /// The last request for which the task waited.
    hitl_request_id: Option<String>,
    /// Why the task failed, or who rejected which request.
    error_message: Option<String>,
    started_at: Option<String>,
    completed_at: Option<String>,
    #[schema(example = "2026-01-16T12:00:00")]
    created_at: String,
    #[schema(example = "2026-01-16T12:00:00")]
    updated_at: String,
}

/// A page of tasks.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct TaskPage {
    /// Newest first.
    content: Vec<TaskView>,
    /// Tasks on all pages: exact up to 10,000, beyond that a lower bound.
    total_elements: u64,
    total_pages: u64,
    /// Which page this is, from 0.
    number: u32,
    /// Tasks per page.
    size: u32,
    first: bool,
    last: bool,
    /// On this page.
    number_of_elements: usize,
    empty: bool,
}

impl From<Task> for TaskView {
    fn from(task: Task) -> Self {
        // Another program may have written text that is not JSON into these columns.
        let json = |text: String| {
            RawValue::from_string(text).unwrap_or_else(|_| RawValue::NULL.to_owned())
        };
        Self {
            task_id: task.id.to_string(),
            user_id: task.user.to_string(),
            tenant_id: task.tenant.to_string(),
            task_type: task.task_type,
            status: task.status,
            progress: task.progress,
            description: task.description,
            input_data: task.input_data.map(json),
            result_data: task.result_data.map(json),
            plan_steps: task.plan_steps,
            hitl_request_id: task.hitl_request_id.map(|id| id.to_string()),
            error_message: task.error_message,
            started_at: task.started_at.map(wire_time),
            completed_at: task.completed_at.map(wire_time),
            created_at: wire_time(task.created_at),
            updated_at: wire_time(task.updated_at),
        }
    }
}

/// Create a task.
///
/// # Errors
/// `E2001` or `E2007` when the body names another user or tenant; `E4290` over a limit. After an error
/// there is no task, unless its message says `Outcome unknown`.
#[utoipa::path(
    post, path = "/main/agent/tasks",
    request_body(content = TaskBody, example = json!({
        "taskType": "mail_summary", "userId": "user123", "tenantId": "tenant1",
        "description": "Summarise the inbox", "inputData": { "folder": "inbox" },
    })),
    responses((
        status = 201, description = "The task, REQUESTED", body = Envelope<TaskView>,
        example = json!(success("Task created", task("REQUESTED", 0))),
    ))
)]
pub async fn create(
    CallerOf(caller): CallerOf,
    app: web::Data<AppState>,
    body: Checked<TaskBody, MAX_TASK_BYTES>,
) -> Result<Answer<TaskView>, ApiError> {
    let Checked(body, turn) = body;
    if body.user_id.as_deref() != Some(caller.user.as_str()) {
        return Err(ApiError::wrong_user());
    }
    if body.tenant_id.as_deref() != Some(caller.tenant.as_str()) {
        return Err(ApiError::wrong_tenant());
    }
    let id = task_id(TaskId::generate().as_str())?;
    let task_type = body.task_type.unwrap_or_default();
    let storable = move || Ok(body.input_data.map(|data| json::storable(data.get())));
    let (input_data, turn) = in_turn(turn, storable).await?;
    let task = Task {
        description: body.description,
        input_data,
        ..Task::requested(id, caller.user, caller.tenant, task_type, app.clock.now())
    };
    let (work, new) = (app.get_ref().clone(), task.clone());
    let creating = async move {
        let _turn = turn;
        tasks::create::create(&work, &new).await
    };
    app.run_to_end(creating).await??;
    Ok(created("Task created", task.into()))
}

/// Read a task.
///
/// # Errors
/// `E1004` when there is no such task.
#[utoipa::path(
    get, path = "/main/agent/tasks/{taskId}",
    responses((
        status = 200, description = "The task", body = Envelope<TaskView>,
        example = json!(success("Task retrieved", task("IN_PROGRESS", 40))),
    ))
)]
pub async fn read(
    CallerOf(caller): CallerOf,
    app: web::Data<AppState>,
    id: web::Path<String>,
) -> Result<Answer<TaskView>, ApiError> {
    let id = task_id(&id)?;
    let work = app.get_ref().clone();
    let reading = async move { tasks::read::read(&work, &caller, &id).await };
    Ok(ok("Task retrieved", app.run_to_end(reading).await??.into()))
}

/// List tasks, newest first.
///
/// # Errors
/// `E2001` when a user asks for another user's tasks; `E4000` when a parameter is not valid.
#[utoipa::path(
    get, path = "/main/agent/tasks", params(ListQuery),
    responses((
        status = 200, description = "A page of tasks", body = Envelope<TaskPage>,
        example = json!(success("Tasks retrieved", json!({
            "content": [task("IN_PROGRESS", 40)], "totalElements": 1, "totalPages": 1,
            "number": 0, "size": 20, "first": true, "last": true, "numberOfElements": 1,
            "empty": false,
        }))),
    ))
)]
pub async fn list(
    CallerOf(caller): CallerOf,
    app: web::Data<AppState>,
    Query(query): Query<ListQuery>,
) -> Result<Answer<TaskPage>, ApiError> {
    let filter = filter(query, caller)?;
    let (page, size) = (filter.page, filter.size);
    let work = app.get_ref().clone();
    let listing = async move { tasks::read::list(&work, &filter).await };
    let (tasks, total) = app.run_to_end(listing).await??;
    let total_pages = total.div_ceil(u64::from(size));
    Ok(ok(
        "Tasks retrieved",
        TaskPage {
            number_of_elements: tasks.len(),
            empty: tasks.is_empty(),
            content: tasks.into_iter().map(TaskView::from).collect(),
            total_elements: total,
            total_pages,
            number: page,
            size,
            first: page == 0,
            last: u64::from(page) + 1 >= total_pages,
        },
    ))
}

fn filter(query: ListQuery, caller: Caller) -> Result<TaskFilter, ApiError> {
    if query.tenant_id.is_some_and(|tenant| tenant != caller.tenant.as_str()) {
        return Err(ApiError::wrong_tenant());
    }
    let user = match (query.user_id, caller.role) {
        (None, Role::Admin) => None,
        (None, Role::User) => Some(caller.user),
        (Some(user), role) => {
            if role != Role::Admin && user != caller.user.as_str() {
                return Err(ApiError::admins_only());
            }
            Some(UserId::parse(user).map_err(|invalid| ApiError::bad_id(invalid.kind))?)
        }
    };
    let (page, size) = (query.page.unwrap_or(0), query.size.unwrap_or(DEFAULT_PAGE_SIZE));
    for (field, value, limits) in [("page", page, 0..=MAX_PAGE), ("size", size, 1..=MAX_PAGE_SIZE)]
    {
        if !limits.contains(&value) {
            let (min, max) = limits.into_inner();
            let text = Text::new(
                format!("must be from {min} to {max}"),
                format!("{min}에서 {max} 사이여야 합니다"),
            );
            return Err(ApiError::invalid_field(field, text));
        }
    }
    Ok(TaskFilter { tenant: caller.tenant, user, status: query.status, page, size })
}

/// Start a task.
///
/// # Errors
/// `E1004` without such a task; `E2001` when it is another user's; `E3002` when its state forbids it.
#[utoipa::path(
    post, path = "/main/agent/tasks/{taskId}/start",
    responses((
        status = 200, description = "The task, IN_PROGRESS", body = Envelope<TaskView>,
        example = json!(success("Task started", task("IN_PROGRESS", 0))),
    ))
)]
pub async fn start(
    CallerOf(caller): CallerOf,
    app: web::Data<AppState>,
    id: web::Path<String>,
) -> Result<Answer<TaskView>, ApiError> {
    change(&app, caller, &id, TaskStep::Start, None, "Task started").await
}

/// Start a task, under the name that the platform's own clients call.
///
/// # Errors
/// Those of [`start`].
#[utoipa::path(
    post, path = "/main/agent/tasks/{taskId}/execute",
    responses((
        status = 200, description = "The task's id", body = Envelope<String>,
        example = json!(success("Task execution started", TASK)),
    ))
)]
pub async fn execute(
    CallerOf(caller): CallerOf,
    app: web::Data<AppState>,
    id: web::Path<String>,
) -> Result<Answer<String>, ApiError> {
    change(&app, caller, &id, TaskStep::Start, None, "Task execution started").await?;
    Ok(ok("Task execution started", id.into_inner()))
}

/// Report progress.
///
/// # Errors
/// `E1004` without such a task; `E2001` when it is another user's; `E3002` when its state forbids it.
#[utoipa::path(
    patch, path = "/main/agent/tasks/{taskId}/progress",
    request_body(
        content = ProgressBody,
        example = json!({ "progress": 40, "description": "Summarise the inbox" }),
    ),
    responses((
        status = 200, description = "The task", body = Envelope<TaskView>,
        example = json!(success("Task progress updated", task("IN_PROGRESS", 40))),
    ))
)]
pub async fn progress(
    CallerOf(caller): CallerOf,
    app: web::Data<AppState>,
    id: web::Path<String>,
    body: Checked<ProgressBody, MAX_TASK_BYTES>,
) -> Result<Answer<TaskView>, ApiError> {
    let Checked(ProgressBody { progress, description }, turn) = body;
    let step = TaskStep::Progress { percent: progress.unwrap_or(0), description };
    change(&app, caller, &id, step, turn, "Task progress updated").await
}

/// Complete a task. The body, any JSON or none, is its result.
///
/// # Errors
/// `E1004` without such a task; `E2001` when it is another user's; `E3002` when its state forbids it.
#[utoipa::path(
    post, path = "/main/agent/tasks/{taskId}/complete",
    request_body(
        content = ref("#/components/schemas/AnyJson"), content_type = "application/json",
        example = json!({ "mails": 12 }),
    ),
    responses((
        status = 200, description = "The task, COMPLETED", body = Envelope<TaskView>,
        example = json!(success("Task completed", task("COMPLETED", 100))),
    ))
)]
pub async fn complete(
    CallerOf(caller): CallerOf,
    app: web::Data<AppState>,
    id: web::Path<String>,
    body: AnyJson<MAX_TASK_BYTES>,
) -> Result<Answer<TaskView>, ApiError> {
    let AnyJson(result, turn) = body;
    let step = TaskStep::Complete { result: result.map(|result| result.get().to_owned()) };
    change(&app, caller, &id, step, turn, "Task completed").await
}

/// Fail a task. The reason is in the query or in the body.
///
/// # Errors
/// `E1004` without such a task; `E2001` when it is another user's; `E3002` when its state forbids it.
#[utoipa::path(
    post, path = "/main/agent/tasks/{taskId}/fail",
    params(FailQuery),
    request_body(
        content = Option<FailBody>, content_type = "application/json",
        example = json!({ "errorMessage": "mailbox is full" }),
    ),
    responses((
        status = 200, description = "The task, FAILED", body = Envelope<TaskView>,
        example = json!(success("Task failed", task("FAILED", 40))),
    ))
)]
pub async fn fail(
    CallerOf(caller): CallerOf,
    app: web::Data<AppState>,
    id: web::Path<String>,
    Query(query): Query<FailQuery>,
    body: AnyJson<MAX_TASK_BYTES>,
) -> Result<Answer<TaskView>, ApiError> {
    let AnyJson(body, turn) = body;
    let body = body.filter(|body| body.get() != "null");
    let body: Option<FailBody> =
        body.map(|body| super::body::parse_object(body.get().as_bytes())).transpose()?;
    let invalid = |errors: ValidationErrors| ApiError::invalid(super::body::field_errors(&errors));
    query.validate().map_err(invalid)?;
    if let Some(body) = &body {
        body.validate().map_err(invalid)?;
    }
    let error = query.error_message.or(body.and_then(|body| body.error_message));
    if error.as_deref().is_some_and(|error| error.contains('\0')) {
        let text = Text::new("holds a NUL character", "NUL 문자를 포함할 수 없습니다");
        return Err(ApiError::invalid_field("errorMessage", text));
    }
    change(&app, caller, &id, TaskStep::Fail { error }, turn, "Task failed").await
}

/// Replace the plan.
///
/// # Errors
/// `E1004` without such a task; `E2001` when it is another user's; `E3002` after the task has ended;
/// `E4000` when a step is not valid.
#[utoipa::path(
    put, path = "/main/agent/tasks/{taskId}/plan-steps",
    request_body(content = schemas::Plan, example = json!([plan_step()])),
    responses((
        status = 200, description = "The task", body = Envelope<TaskView>,
        example = json!(success("Plan replaced", task("IN_PROGRESS", 40))),
    ))
)]
pub async fn replace_plan(
    CallerOf(caller): CallerOf,
    app: web::Data<AppState>,
    id: web::Path<String>,
    body: AnyJson<MAX_TASK_BYTES>,
) -> Result<Answer<TaskView>, ApiError> {
    let AnyJson(steps, turn) = body;
    let steps = steps.filter(|steps| steps.get().starts_with('['));
    let (steps, turn) = in_turn(turn, move || plan_steps(steps.as_deref())).await?;
    change(&app, caller, &id, TaskStep::ReplacePlan(steps), turn, "Plan replaced").await
}

/// Add steps to the plan, or update them: one step, or several.
///
/// # Errors
/// `E1004` without such a task; `E2001` when it is another user's; `E3002` after the task has ended;
/// `E4000` when a step is not valid.
#[utoipa::path(
    post, path = "/main/agent/tasks/{taskId}/plan-steps",
    request_body(
        content = schemas::PlanUpdate,
        example = json!({ "type": "plan_step_update", "data": plan_step() }),
    ),
    responses((
        status = 200, description = "The task", body = Envelope<TaskView>,
        example = json!(success("Plan updated", task("IN_PROGRESS", 40))),
    ))
)]
pub async fn merge_plan(
    CallerOf(caller): CallerOf,
    app: web::Data<AppState>,
    id: web::Path<String>,
    body: AnyJson<MAX_TASK_BYTES>,
) -> Result<Answer<TaskView>, ApiError> {
    let AnyJson(steps, turn) = body;
    let (steps, turn) = in_turn(turn, move || plan_steps(steps.as_deref())).await?;
    change(&app, caller, &id, TaskStep::MergePlan(steps), turn, "Plan updated").await
}

/// One step or an array of steps, each checked.
fn plan_steps(body: Option<&RawValue>) -> Result<Vec<PlanStep>, ApiError> {
    let wrong = |field: &str, problem: &InvalidStep| {
        let text = Text::new(problem.to_string(), problem.in_korean());
        ApiError::invalid_field(field, text)
    };
    let body = body.ok_or_else(|| wrong("planSteps", &InvalidStep::NotAnObject))?;
    match serde_json::from_str::<Vec<Box<RawValue>>>(body.get()) {
        Ok(steps) => steps
            .iter()
            .enumerate()
            .map(|(index, step)| {
                PlanStep::read(step)
                    .map_err(|problem| wrong(&format!("planSteps[{index}]"), &problem))
            })
            .collect(),
        Err(_not_an_array) => {
            let step = PlanStep::read(body).map_err(|p| wrong("planSteps", &p))?;
            Ok(vec![step])
        }
    }
}

async fn change(
    app: &AppState,
    caller: Caller,
    id: &str,
    step: TaskStep,
    turn: Turn,
    message: &'static str,
) -> Result<Answer<TaskView>, ApiError> {
    let id = task_id(id)?;
    let work = app.clone();
    let changing = async move {
        let _turn = turn;
        tasks::change::change(&work, &caller, &id, &step).await
    };
    Ok(ok(message, app.run_to_end(changing).await??.into()))
}
