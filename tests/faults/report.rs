//! The result of a row: its counts, and whether each of its checks passed.

use std::fmt::Display;
use std::time::Duration;

/// How much of a row to run.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    pub is_quick: bool,
}

impl Scale {
    /// A count: the first one in the full run, the second one in the quick run.
    pub fn of<T>(self, full: T, quick: T) -> T {
        if self.is_quick { quick } else { full }
    }
}

/// The result of a row.
#[derive(Debug, Default)]
pub struct Report {
    counts: Vec<String>,
    failures: Vec<String>,
    demands: usize,
}

impl Report {
    /// A row that could not be run to its end.
    pub fn broken(&mut self, problem: &str) {
        self.failures.push(problem.to_owned());
    }

    /// A figure: `10,000 calls`.
    pub fn count(&mut self, amount: impl Display, what: &str) {
        self.counts.push(format!("{amount} {what}"));
    }

    /// Figures in a form of their own.
    pub fn figure(&mut self, figure: String) {
        self.counts.push(figure);
    }

    /// A figure that must be zero.
    pub fn none(&mut self, amount: usize, what: &str) {
        self.count(amount, what);
        self.demand(amount == 0, || format!("{amount} {what}"));
    }

    /// A figure that must not be over its limit.
    pub fn at_most(&mut self, took: Duration, limit: Duration, what: &str) {
        let [took_s, limit_s] = [took, limit].map(|time| time.as_secs_f64());
        self.counts.push(format!("{what} {took_s:.2} s"));
        self.demand(took <= limit, || format!("{what} {took_s:.2} s, over {limit_s:.1} s"));
    }

    /// A condition that must hold.
    pub fn demand(&mut self, is_so: bool, otherwise: impl FnOnce() -> String) {
        self.demands += 1;
        if !is_so {
            self.failures.push(otherwise());
        }
    }

    /// Violations. All are counted, the first few are printed.
    pub fn wrongs(&mut self, what: &str, wrongs: &[String]) {
        self.demands += 1;
        self.count(wrongs.len(), what);
        self.failures.extend(wrongs.iter().take(3).map(|wrong| format!("{what}: {wrong}")));
    }

    /// Fails for a row without any check.
    pub fn held(&self) -> bool {
        self.failures.is_empty() && self.demands > 0
    }

    /// The row's one line.
    pub fn line(&self, number: &str, fault: &str, took: Duration) -> String {
        let counts = self.counts.join(", ");
        let verdict = if self.held() {
            "held".to_owned()
        } else if self.failures.is_empty() {
            "NOT HELD: it demanded nothing".to_owned()
        } else {
            format!("NOT HELD: {}", self.failures.join("; "))
        };
        format!("{number:>3}  {fault}: {counts} ({:.0} s) — {verdict}", took.as_secs_f64())
    }
}
