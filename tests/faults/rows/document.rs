//! Generated calls: from the API document, and by fuzzing.

use std::path::Path;
use std::process::Command;

use crate::report::{Report, Scale};
use crate::world::{TENANT, World, token};

/// Runs schemathesis: no 5xx, every answer as documented, nothing taken that the document forbids.
pub async fn as_documented(scale: Scale, report: &mut Report) {
    let mut world = World::start(1).await;
    let base = format!("{}/api", world.replicas[0].base());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/schemathesis");
    let mut command = Command::new(script);
    let caller = token("user123", TENANT);
    command.args([base.as_str(), &caller, "--max-examples", scale.of("600", "10")]);
    if scale.is_quick {
        command.args(["--phases", "examples,coverage,fuzzing"]);
    }
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    report.count(generated(&said), "calls");
    report.demand(generated(&said) >= scale.of(10_000, 500), || "too few calls".to_owned());
    report.demand(output.status.success(), || {
        let failures = said.split("= SUMMARY =").last().unwrap_or_default();
        format!("{failures} {}", String::from_utf8_lossy(&output.stderr))
    });
    if !output.status.success() {
        eprintln!("{said}");
    }
    world.check_alive(report);
}

/// Every fuzz target for a while, with sanitizers' place taken by assertions.
pub async fn fuzz(scale: Scale, report: &mut Report) {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/fuzz");
    let seconds = scale.of("60", "5");
    let mut command = Command::new(script);
    command.arg(seconds);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    // `token        18042 runs in 5 s, 0 new crashes`
    let runs =
        said.lines().filter_map(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok());
    let runs = runs.collect::<Vec<_>>();
    report.count(runs.len(), "targets");
    report.count(runs.iter().sum::<usize>(), "runs");
    report.demand(runs.len() == 5 && runs.iter().all(|runs| *runs > 0), || {
        format!("a target did not run: {said}")
    });
    report.demand(output.status.success(), || {
        format!("{said} {}", String::from_utf8_lossy(&output.stderr))
    });
}

/// How many calls the report's last part counts: `10423 generated, 10423 passed`.
fn generated(said: &str) -> usize {
    let counts = said.lines().filter_map(|line| line.trim().split_once(" generated,"));
    counts.filter_map(|(count, _)| count.parse().ok()).next_back().unwrap_or(0)
}
