//! What was measured, as one table with ratios: Markdown for people, JSON for programs.

use std::fmt::Write as _;

use indexmap::IndexMap;
use serde_json::{Value, json};

use crate::load::{Run, median};

/// Everything that was measured, in the order in which it was first measured.
#[derive(Default)]
pub struct Report {
    cells: IndexMap<(&'static str, usize), Vec<Run>>,
    facts: Vec<(String, f64, &'static str)>,
    targets: Vec<Target>,
}

/// What was wished for, and what came of it.
struct Target {
    name: String,
    value: f64,
    bar: f64,
    at_least: bool,
    unit: &'static str,
}

impl Target {
    fn is_met(&self) -> bool {
        if self.at_least { self.value >= self.bar } else { self.value <= self.bar }
    }
}

/// One cell: the median of its runs, figure by figure.
pub struct Cell {
    pub per_second: f64,
    pub millis: [f64; 3],
    pub cpu: Vec<f64>,
}

impl Report {
    /// Adds one run of a cell.
    pub fn add(&mut self, name: &'static str, connections: usize, run: Run) {
        eprintln!(
            "{name} × {connections}: {:.0}/s, p50 {:.3} ms, p99 {:.3} ms",
            run.per_second, run.millis[0], run.millis[1]
        );
        self.cells.entry((name, connections)).or_default().push(run);
    }

    /// How many calls were refused that should not have been.
    pub fn refused(&self) -> u64 {
        self.cells.values().flatten().map(|run| run.refused).sum()
    }

    pub fn cell(&self, name: &'static str, connections: usize) -> Cell {
        let runs = &self.cells[&(name, connections)];
        let cpu = 0..runs[0].cpu.len();
        Cell {
            per_second: median(runs.iter().map(|run| run.per_second)),
            millis: [0, 1, 2].map(|which| median(runs.iter().map(|run| run.millis[which]))),
            cpu: cpu.map(|which| median(runs.iter().map(|run| run.cpu[which]))).collect(),
        }
    }

    /// Calls a second if each did all of these, one after the other, on the same cores.
    pub fn composite(&self, names: &[&'static str], connections: usize) -> f64 {
        let costs = names.iter().map(|name| 1.0 / self.cell(name, connections).per_second);
        1.0 / costs.sum::<f64>()
    }

    pub fn fact(&mut self, name: impl Into<String>, value: f64, unit: &'static str) {
        let name = name.into();
        eprintln!("{name}: {value:.3} {unit}");
        self.facts.push((name, value, unit));
    }

    /// A fact that ought to be no more than this.
    pub fn at_most(&mut self, name: impl Into<String>, value: f64, bar: f64, unit: &'static str) {
        self.targets.push(Target { name: name.into(), value, bar, at_least: false, unit });
    }

    /// A fact that ought to be no less than this.
    pub fn at_least(&mut self, name: impl Into<String>, value: f64, bar: f64, unit: &'static str) {
        self.targets.push(Target { name: name.into(), value, bar, at_least: true, unit });
    }

    pub fn json(&self, machine: &Value) -> Value {
        let cells = self.cells.keys().map(|&(name, connections)| {
            let cell = self.cell(name, connections);
            json!({
                "name": name, "connections": connections, "perSecond": cell.per_second,
                "p50Millis": cell.millis[0], "p99Millis": cell.millis[1],
                "p999Millis": cell.millis[2], "cpuMicros": cell.cpu,
                "runs": self.cells[&(name, connections)].iter().map(|run| run.per_second).collect::<Vec<_>>(),
            })
        });
        let facts = self
            .facts
            .iter()
            .map(|(name, value, unit)| json!({ "name": name, "value": value, "unit": unit }));
        let targets = self.targets.iter().map(|target| {
            json!({
                "name": target.name, "value": target.value, "unit": target.unit,
                "bar": target.bar, "atLeast": target.at_least, "met": target.is_met(),
            })
        });
        json!({
            "machine": machine, "cells": cells.collect::<Vec<_>>(),
            "facts": facts.collect::<Vec<_>>(), "targets": targets.collect::<Vec<_>>(),
        })
    }

    /// The table, in Markdown.
    pub fn table(&self) -> String {
        let mut text = String::from(
            "| what | at once | per second | p50 ms | p99 ms | p99.9 ms | µs of a core per call: client, service, Postgres, Redis |\n|---|---:|---:|---:|---:|---:|---|\n",
        );
        for &(name, connections) in self.cells.keys() {
            let cell = self.cell(name, connections);
            let [p50, p99, p999] = cell.millis;
            let cpu = cell.cpu.iter().map(|micros| format!("{micros:.0}")).collect::<Vec<_>>();
            writeln!(
                text,
                "| {name} | {connections} | {:.0} | {p50:.2} | {p99:.2} | {p999:.2} | {} |",
                cell.per_second,
                cpu.join(" + "),
            )
            .unwrap();
        }
        if !self.facts.is_empty() {
            text += "\n| what else | |\n|---|---:|\n";
        }
        for (name, value, unit) in &self.facts {
            writeln!(text, "| {name} | {} |", short(*value, unit)).unwrap();
        }
        if !self.targets.is_empty() {
            text += "\n| target | wanted | measured | |\n|---|---:|---:|---|\n";
        }
        for target in &self.targets {
            let Target { name, value, bar, at_least, unit } = target;
            writeln!(
                text,
                "| {name} | {} {} | {} | {} |",
                if *at_least { "≥" } else { "≤" },
                short(*bar, unit),
                short(*value, unit),
                if target.is_met() { "met" } else { "**missed**" },
            )
            .unwrap();
        }
        text
    }
}

fn short(value: f64, unit: &str) -> String {
    let value = if value.abs() >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") };
    format!("{value} {unit}").trim_end().to_owned()
}
