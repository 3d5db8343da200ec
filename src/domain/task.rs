//! An agent task and its state machine.
//!
//! `REQUESTED → IN_PROGRESS ⇄ WAITING_APPROVAL → COMPLETED | FAILED`; the last two are final.
//! Only a request puts a task into `WAITING_APPROVAL`. The task leaves that state when the request is
//! closed, or when its agent reports that the task failed.

use chrono::{DateTime, Utc};

use super::ids::{RequestId, TaskId, TenantId, UserId};
use super::json;
use super::plan::{self, InvalidStep, PlanStep};

/// The state of a task.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum TaskStatus {
    /// Created, not started.
    Requested,
    /// Started.
    InProgress,
    /// Stopped until a person decides its request.
    WaitingApproval,
    /// Done. Final.
    Completed,
    /// Failed or rejected. Final.
    Failed,
}

impl TaskStatus {
    /// Every status, in the order of a task's life.
    pub const ALL: [Self; 5] =
        [Self::Requested, Self::InProgress, Self::WaitingApproval, Self::Completed, Self::Failed];

    /// The status on the wire and in SQL.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requested => "REQUESTED",
            Self::InProgress => "IN_PROGRESS",
            Self::WaitingApproval => "WAITING_APPROVAL",
            Self::Completed => "COMPLETED",
            Self::Failed => "FAILED",
        }
    }

    /// The status of this name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == text)
    }

    /// Whether no other status can follow.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(self, Self::Completed | Self::Failed)
    }
}

/// A row of `agent_task`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    /// The task's id.
    pub id: TaskId,
    /// The user for whom the agent works.
    pub user: UserId,
    /// The user's tenant.
    pub tenant: TenantId,
    /// The kind of work; the request's `actionType` if the service made the task for a request.
    pub task_type: String,
    /// The state of the task.
    pub status: TaskStatus,
    /// Percent, 0–100.
    pub progress: i32,
    /// What the agent is doing now, for people to read.
    pub description: Option<String>,
    /// Raw JSON.
    pub input_data: Option<String>,
    /// Raw JSON.
    pub result_data: Option<String>,
    /// A raw JSON array of plan steps.
    pub plan_steps: String,
    /// The request for which the task waited last.
    pub hitl_request_id: Option<RequestId>,
    /// Why the task failed, or who rejected its request and with which reason.
    pub error_message: Option<String>,
    /// When the task was started, UTC.
    pub started_at: Option<DateTime<Utc>>,
    /// When the task was completed, UTC.
    pub completed_at: Option<DateTime<Utc>>,
    /// When the task was created, UTC.
    pub created_at: DateTime<Utc>,
    /// When the task last changed, UTC. Each change of a task has a later time than the one before.
    pub updated_at: DateTime<Utc>,
}

/// What an agent reports about its task.
#[derive(Clone, Debug)]
pub enum TaskStep {
    /// The task has started. A repeated report changes nothing.
    Start,
    /// The task has made progress.
    Progress {
        /// Percent, 0–100.
        percent: i32,
        /// Replaces the description when given.
        description: Option<String>,
    },
    /// The task is done.
    Complete {
        /// Raw JSON.
        result: Option<String>,
    },
    /// The task has failed.
    Fail {
        /// Why.
        error: Option<String>,
    },
    /// Replaces the whole plan.
    ReplacePlan(Vec<PlanStep>),
    /// Adds or updates these steps of the plan.
    MergePlan(Vec<PlanStep>),
}

/// Why a step is refused. The task is unchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TaskRefusal {
    /// The state of the task does not allow this step.
    #[error("a task that is {} does not allow this step", .0.as_str())]
    State(TaskStatus),
    /// The plan would become invalid.
    #[error(transparent)]
    Plan(#[from] InvalidStep),
}

impl TaskStep {
    /// The bytes that this step would write.
    #[must_use]
    pub fn size(&self) -> u64 {
        let bytes = match self {
            Self::Start => 0,
            Self::Progress { description: text, .. }
            | Self::Complete { result: text }
            | Self::Fail { error: text } => text.as_ref().map_or(0, String::len),
            Self::ReplacePlan(steps) | Self::MergePlan(steps) => {
                steps.iter().map(PlanStep::size).sum()
            }
        };
        bytes as u64
    }
}

impl Task {
    /// The bytes that the agent sent when it created the task.
    #[must_use]
    pub fn size(&self) -> u64 {
        let texts = [&self.description, &self.input_data].into_iter().flatten();
        let bytes = self.task_type.len() + texts.map(String::len).sum::<usize>();
        bytes as u64
    }

    /// A new task in the state `REQUESTED`.
    #[must_use]
    pub fn requested(
        id: TaskId,
        user: UserId,
        tenant: TenantId,
        task_type: String,
        now: DateTime<Utc>,
    ) -> Self {
        Self {
            id,
            user,
            tenant,
            task_type,
            status: TaskStatus::Requested,
            progress: 0,
            description: None,
            input_data: None,
            result_data: None,
            plan_steps: "[]".to_owned(),
            hitl_request_id: None,
            error_message: None,
            started_at: None,
            completed_at: None,
            created_at: now,
            updated_at: now,
        }
    }

    /// The task after a step.
    ///
    /// # Errors
    /// [`TaskRefusal::State`] when the task's state does not allow this step; [`TaskRefusal::Plan`] when
    /// the plan would exceed its limits.
    pub fn after(&self, step: TaskStep, now: DateTime<Utc>) -> Result<Self, TaskRefusal> {
        use TaskStatus::{Completed, Failed, InProgress, Requested, WaitingApproval};
        let mut next = self.clone();
        match (step, self.status) {
            (_, Completed | Failed) => return Err(TaskRefusal::State(self.status)),
            (TaskStep::Start, Requested) => {
                next.status = InProgress;
                next.started_at = Some(now);
            }
            (TaskStep::Start, InProgress) => return Ok(next),
            (TaskStep::Progress { percent, description }, InProgress | WaitingApproval) => {
                next.progress = percent;
                next.description = description.or(next.description);
            }
            (TaskStep::Complete { result }, InProgress) => {
                next.status = Completed;
                next.progress = 100;
                next.result_data = result.as_deref().map(json::storable);
                next.completed_at = Some(now);
            }
            (TaskStep::Fail { error }, _) => {
                next.status = Failed;
                next.error_message = error.or(next.error_message);
            }
            (TaskStep::ReplacePlan(steps), _) => next.plan_steps = plan::merge("[]", steps)?,
            (TaskStep::MergePlan(steps), _) => {
                next.plan_steps = plan::merge(&self.plan_steps, steps)?;
            }
            (
                TaskStep::Start | TaskStep::Progress { .. } | TaskStep::Complete { .. },
                Requested | WaitingApproval,
            ) => return Err(TaskRefusal::State(self.status)),
        }
        // The ledger compares this time to notice a concurrent change, so it must not repeat.
        next.updated_at = now.max(self.updated_at + chrono::TimeDelta::microseconds(1));
        Ok(next)
    }
}

/// Which tasks to list.
#[derive(Clone, Debug)]
pub struct TaskFilter {
    /// Only tasks of this tenant.
    pub tenant: TenantId,
    /// Only tasks of this user; of all users when `None`.
    pub user: Option<UserId>,
    /// Only tasks in this state; in any state when `None`.
    pub status: Option<TaskStatus>,
    /// The number of the page, from 0.
    pub page: u32,
    /// Tasks per page.
    pub size: u32,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn task(status: TaskStatus) -> Task {
        let now = DateTime::from_timestamp_micros(1_700_000_000_000_000).unwrap();
        let id = TaskId::parse("task_1").unwrap();
        let user = UserId::parse("user123").unwrap();
        let tenant = TenantId::parse("tenant1").unwrap();
        Task { status, ..Task::requested(id, user, tenant, "mail".to_owned(), now) }
    }

    fn any_step() -> impl Strategy<Value = TaskStep> {
        let step = || {
            let raw = serde_json::value::RawValue::from_string(r#"{"id":"a"}"#.to_owned()).unwrap();
            PlanStep::read(&raw).unwrap()
        };
        prop_oneof![
            Just(TaskStep::Start),
            (0..=100).prop_map(|percent| TaskStep::Progress { percent, description: None }),
            Just(TaskStep::Complete { result: None }),
            Just(TaskStep::Fail { error: None }),
            Just(()).prop_map(move |()| TaskStep::ReplacePlan(vec![step()])),
            Just(()).prop_map(move |()| TaskStep::MergePlan(vec![step()])),
        ]
    }

    proptest! {
        #[test]
        fn no_sequence_of_steps_leaves_a_final_state_or_goes_back(
            steps in prop::collection::vec(any_step(), 1..40),
            seconds in prop::collection::vec(-5_i64..5, 40),
        ) {
            let mut now = task(TaskStatus::Requested);
            for (step, skew) in steps.into_iter().zip(seconds) {
                let at = now.updated_at + chrono::TimeDelta::seconds(skew);
                let Ok(next) = now.after(step, at) else { continue };
                prop_assert!(!now.status.is_final());
                if next != now {
                    prop_assert!(next.updated_at > now.updated_at);
                }
                prop_assert!(next.status != TaskStatus::Requested || now.status == TaskStatus::Requested);
                prop_assert_eq!(next.status == TaskStatus::Completed, next.completed_at.is_some());
                prop_assert!(next.status != TaskStatus::Completed || next.progress == 100);
                now = next;
            }
        }
    }

    #[test]
    fn only_a_decision_takes_a_task_out_of_waiting() {
        let waiting = task(TaskStatus::WaitingApproval);
        let now = waiting.updated_at;
        for step in [TaskStep::Start, TaskStep::Complete { result: None }] {
            assert_eq!(
                waiting.after(step, now).unwrap_err(),
                TaskRefusal::State(TaskStatus::WaitingApproval)
            );
        }
        assert!(waiting.after(TaskStep::Fail { error: None }, now).is_ok());
    }
}
