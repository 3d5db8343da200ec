//! A task's plan: a list of steps, each a JSON object.
//!
//! Agents send steps as payloads of server-sent events, either flat or wrapped in `data`. A step is
//! identified by its `stepId`, or by its `id` if it has no `stepId`. An update changes only the fields
//! that it carries. Steps keep the order in which they first appeared, and unknown fields are kept.

use serde_json::value::RawValue;

use super::json::{self, RawObject};

/// Most steps a plan may have.
pub const MAX_STEPS: usize = 1000;
/// Largest plan, in bytes of JSON.
pub const MAX_PLAN_BYTES: usize = 1024 * 1024;
/// The states of a step.
pub const STEP_STATUSES: [&str; 6] =
    ["pending", "in_progress", "waiting", "completed", "failed", "skipped"];

/// A valid step: it has an id, and its status and confidence are valid if present.
#[derive(Clone, Debug)]
pub struct PlanStep {
    id: String,
    fields: RawObject,
}

/// Why JSON is not a valid plan step.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidStep {
    /// The JSON is not an object.
    #[error("is not an object")]
    NotAnObject,
    /// The step has no valid id, so no update could name it.
    #[error("needs a stepId (or id) of 1 to 128 characters")]
    NoId,
    /// The status is not one of [`STEP_STATUSES`].
    #[error(
        "has a status that is not one of pending, in_progress, waiting, completed, failed, skipped"
    )]
    Status,
    /// The confidence is not a number from 0.0 to 1.0.
    #[error("has a confidence that is not a number from 0.0 to 1.0")]
    Confidence,
    /// The plan would have more than [`MAX_STEPS`] steps.
    #[error("would be one step more than the 1000 a plan may have")]
    TooMany,
    /// The plan would be larger than [`MAX_PLAN_BYTES`].
    #[error("would make the plan larger than 1 MiB")]
    TooLarge,
}

impl InvalidStep {
    /// The error message in Korean.
    #[must_use]
    pub const fn in_korean(&self) -> &'static str {
        match self {
            Self::NotAnObject => "단계는 JSON 객체여야 합니다",
            Self::NoId => "단계에 1자 이상 128자 이하의 stepId(또는 id)가 필요합니다",
            Self::Status => {
                "단계의 status는 pending, in_progress, waiting, completed, failed, skipped 중 하나여야 합니다"
            }
            Self::Confidence => "단계의 confidence는 0.0에서 1.0 사이의 숫자여야 합니다",
            Self::TooMany => "단계가 너무 많습니다 (최대 1000단계)",
            Self::TooLarge => "계획이 너무 큽니다 (최대 1MiB)",
        }
    }
}

impl PlanStep {
    /// The size of the step's names and values, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.fields.iter().map(|(name, value)| name.len() + value.get().len()).sum()
    }

    /// Checks one step, flat or wrapped in `data`.
    ///
    /// # Errors
    /// [`InvalidStep`] names the first problem: not an object, no id, bad status, or bad confidence.
    pub fn read(text: &RawValue) -> Result<Self, InvalidStep> {
        let outer: RawObject =
            serde_json::from_str(text.get()).map_err(|_cause| InvalidStep::NotAnObject)?;
        let is_named = ["stepId", "id"].iter().any(|name| json::present(&outer, name).is_some());
        let wrapped = json::present(&outer, "data")
            .filter(|_| !is_named)
            .and_then(|data| serde_json::from_str::<RawObject>(data.get()).ok());
        let mut fields = wrapped.unwrap_or(outer);
        // A null must not overwrite a value that an earlier step set.
        fields.retain(|name, value| {
            !(matches!(name.as_str(), "status" | "confidence" | "stepId" | "id")
                && value.get() == "null")
        });
        let id = step_id(&fields)?;
        if let Some(status) = json::present(&fields, "status") {
            let known = serde_json::from_str::<String>(status.get())
                .is_ok_and(|status| STEP_STATUSES.contains(&status.as_str()));
            if !known {
                return Err(InvalidStep::Status);
            }
        }
        if let Some(confidence) = json::present(&fields, "confidence") {
            let known = serde_json::from_str::<f64>(confidence.get())
                .is_ok_and(|confidence| (0.0..=1.0).contains(&confidence));
            if !known {
                return Err(InvalidStep::Confidence);
            }
        }
        Ok(Self { id, fields })
    }
}

fn step_id(fields: &RawObject) -> Result<String, InvalidStep> {
    let named = json::present(fields, "stepId").or_else(|| json::present(fields, "id"));
    named
        .and_then(json::text_or_digits)
        .filter(|id| (1..=128).contains(&id.chars().count()) && !id.chars().all(is_blank))
        .ok_or(InvalidStep::NoId)
}

/// White space, in Unicode's sense or JavaScript's: what the API document's pattern excludes.
fn is_blank(letter: char) -> bool {
    letter.is_whitespace() || letter == '\u{feff}'
}

/// Adds steps to a plan and updates the ones it has, by step id.
///
/// `plan` is a raw JSON array. Entries that are not valid steps (an agent may have written them to
/// Redis) stay where they are.
///
/// # Errors
/// [`InvalidStep::TooMany`] when the plan would have more than [`MAX_STEPS`] steps;
/// [`InvalidStep::TooLarge`] when it would be larger than [`MAX_PLAN_BYTES`].
pub fn merge(plan: &str, steps: Vec<PlanStep>) -> Result<String, InvalidStep> {
    if steps.len() > MAX_STEPS {
        return Err(InvalidStep::TooMany);
    }
    let mut entries: Vec<Box<RawValue>> = serde_json::from_str(plan).unwrap_or_default();
    let mut ids: Vec<Option<String>> =
        entries.iter().map(|entry| PlanStep::read(entry).ok().map(|step| step.id)).collect();
    for step in steps {
        let known = ids.iter().position(|id| id.as_deref() == Some(&step.id));
        if let Some(entry) = known.and_then(|index| entries.get_mut(index)) {
            let before = PlanStep::read(entry).map(|step| step.fields).unwrap_or_default();
            *entry = json::raw(&overlay(before, step.fields));
            continue;
        }
        if entries.len() >= MAX_STEPS {
            return Err(InvalidStep::TooMany);
        }
        let mut fields = step.fields;
        if json::present(&fields, "status").is_none() {
            fields.insert("status".to_owned(), json::raw("pending"));
        }
        entries.push(json::raw(&fields));
        ids.push(Some(step.id));
    }
    let plan = json::storable(json::raw(&entries).get());
    if plan.len() > MAX_PLAN_BYTES {
        return Err(InvalidStep::TooLarge);
    }
    Ok(plan)
}

fn overlay(mut before: RawObject, update: RawObject) -> RawObject {
    before.extend(update);
    before
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(text: &str) -> Result<PlanStep, InvalidStep> {
        PlanStep::read(&serde_json::from_str::<Box<RawValue>>(text).unwrap())
    }

    #[test]
    fn flat_and_wrapped_steps_meet_under_one_id() {
        let first = step(r#"{"type":"plan_step","stepId":"s1","description":"Look","status":"in_progress","confidence":0.85,"extra":1.10}"#).unwrap();
        let other = step(r#"{"id":"s2"}"#).unwrap();
        let update = step(r#"{"type":"plan_step_update","data":{"id":"s1","title":"Look!","status":"completed"}}"#).unwrap();
        assert_eq!(
            merge("[]", vec![first, other, update]).unwrap(),
            r#"[{"type":"plan_step","stepId":"s1","description":"Look","status":"completed","confidence":0.85,"extra":1.10,"id":"s1","title":"Look!"},{"id":"s2","status":"pending"}]"#
        );
    }

    #[test]
    fn bad_steps_are_named() {
        assert_eq!(step("[]").unwrap_err(), InvalidStep::NotAnObject);
        assert_eq!(step("{}").unwrap_err(), InvalidStep::NoId);
        assert_eq!(step(r#"{"stepId":""}"#).unwrap_err(), InvalidStep::NoId);
        assert_eq!(step(r#"{"stepId":"a","id":"b"}"#).unwrap().id, "a");
        assert_eq!(step(r#"{"id":"a","status":"done"}"#).unwrap_err(), InvalidStep::Status);
        assert_eq!(step(r#"{"id":"a","confidence":1.01}"#).unwrap_err(), InvalidStep::Confidence);
        assert_eq!(step(r#"{"id":"a","confidence":"1"}"#).unwrap_err(), InvalidStep::Confidence);
    }

    #[test]
    fn a_plan_does_not_grow_without_end() {
        let steps = (0..=MAX_STEPS).map(|n| step(&format!(r#"{{"id":{n}}}"#)).unwrap()).collect();
        assert_eq!(merge("[]", steps).unwrap_err(), InvalidStep::TooMany);
        let large = step(&format!(r#"{{"id":"a","x":"{}"}}"#, "x".repeat(MAX_PLAN_BYTES))).unwrap();
        assert_eq!(merge("[]", vec![large]).unwrap_err(), InvalidStep::TooLarge);
    }

    #[test]
    fn null_overwrites_nothing() {
        let known = step(r#"{"id":"a","status":"failed","confidence":0.5}"#).unwrap();
        let update = step(r#"{"id":"a","stepId":null,"status":null,"confidence":null}"#).unwrap();
        assert_eq!(
            merge("[]", vec![known, update]).unwrap(),
            r#"[{"id":"a","status":"failed","confidence":0.5}]"#
        );
    }

    #[test]
    fn entries_that_are_not_steps_stay() {
        let merged =
            merge(r#"["?",{"id":1,"status":"odd"}]"#, vec![step(r#"{"id":"a"}"#).unwrap()]);
        assert_eq!(
            merged.unwrap(),
            r#"["?",{"id":1,"status":"odd"},{"id":"a","status":"pending"}]"#
        );
    }
}
