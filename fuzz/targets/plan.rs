//! Plans: the first line of the input is a plan as it was found, each further line a step.
#![no_main]

use aura_hitl::domain::plan::{MAX_PLAN_BYTES, MAX_STEPS, PlanStep, merge};
use libfuzzer_sys::fuzz_target;
use serde_json::value::RawValue;

type Entries = Vec<Box<RawValue>>;

fuzz_target!(|text: &str| {
    let (plan, rest) = text.split_once('\n').unwrap_or((text, ""));
    let steps: Vec<PlanStep> = rest
        .lines()
        .filter_map(|line| serde_json::from_str::<Box<RawValue>>(line).ok())
        .filter_map(|step| PlanStep::read(&step).ok())
        .collect();
    let before: Entries = serde_json::from_str(plan).unwrap_or_default();
    let Ok(merged) = merge(plan, steps.clone()) else { return };
    let after: Entries = serde_json::from_str(&merged).expect("a plan is an array");
    assert!(after.len() >= before.len() && after.len() <= before.len() + steps.len());
    assert!(after.len() <= MAX_STEPS.max(before.len()) && merged.len() <= MAX_PLAN_BYTES);
    // Whoever was there stays there, and what was no step stays as it was.
    for (old, new) in before.iter().zip(&after) {
        if PlanStep::read(old).is_err() {
            assert_eq!(old.get(), new.get());
        } else {
            PlanStep::read(new).expect("an update spoiled a step");
        }
    }
    for new in after.iter().skip(before.len()) {
        PlanStep::read(new).expect("an added step cannot be read again");
    }
    // Once is as good as twice.
    assert_eq!(merge(&merged, steps.clone()).as_ref(), Ok(&merged));
    // And a plan that is replaced is the same as one that begins with these steps.
    if let Ok(fresh) = merge("[]", steps.clone()) {
        assert_eq!(merge(&fresh, steps).as_ref(), Ok(&fresh));
    }
});
