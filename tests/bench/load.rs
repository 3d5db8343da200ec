//! One cell of the table: the same call over and over from so many at once, and what it came to.
//! Over HTTP wrk drives it; what is below HTTP is driven from here, by as many tasks.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde::Deserialize;
use tokio::task::JoinSet;

use crate::usage::{cpu_of_ended, cpu_with_children};

/// What came of it.
#[derive(Clone, Debug)]
pub struct Run {
    pub calls: u64,
    /// Answered with a status of 400 or more that was not asked for.
    pub refused: u64,
    pub per_second: f64,
    /// Half of the calls, 99 % and 99.9 % took no longer; in milliseconds.
    pub millis: [f64; 3],
    /// Microseconds on a core for a call: of the client, and of each of the processes watched.
    pub cpu: Vec<f64>,
}

impl Run {
    /// This and another one that went on beside it. Whose time on a core was whose is not known.
    pub fn beside(self, other: &Self) -> Self {
        let millis = [0, 1, 2].map(|which| f64::max(self.millis[which], other.millis[which]));
        Self {
            calls: self.calls + other.calls,
            refused: self.refused + other.refused,
            per_second: self.per_second + other.per_second,
            millis,
            cpu: Vec::new(),
        }
    }
}

/// Processes whose time on a core is counted, each with those that it has started.
#[derive(Clone, Debug, Default)]
pub struct Watched(pub Vec<u32>);

impl Watched {
    pub fn cpu(&self) -> Vec<Duration> {
        self.0.iter().map(|&pid| cpu_with_children(pid)).collect()
    }
}

/// Microseconds a call between two readings.
pub fn per_call(before: Vec<Duration>, after: Vec<Duration>, calls: u64) -> Vec<f64> {
    let used = after.into_iter().zip(before).map(|(after, before)| after.saturating_sub(before));
    used.map(|used| used.as_secs_f64() * 1e6 / calls.max(1) as f64).collect()
}

/// What calls.lua says.
#[derive(Deserialize)]
struct Said {
    calls: u64,
    micros: u64,
    refused: u64,
    broken: u64,
    p50: u64,
    p99: u64,
    p999: u64,
}

/// Plays a script over so many connections.
pub async fn wrk(
    base: &str,
    script: &Path,
    connections: usize,
    time: Duration,
    watched: &Watched,
) -> Run {
    // One thread can do all that two cores leave to the client; 64 connections get two.
    let threads = if connections > 16 { "2" } else { "1" };
    let mut command = Command::new("wrk");
    command.args(["--threads", threads, "--timeout", "10s", "--connections"]);
    command.arg(connections.to_string());
    command.arg("--duration").arg(format!("{}s", time.as_secs()));
    command.arg("--script").arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/calls.lua"));
    command.arg(base).arg("--").arg(script).arg(threads);
    let (own, others) = (cpu_of_ended(), watched.cpu());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().find(|line| line.starts_with('{'));
    let line = line
        .unwrap_or_else(|| panic!("wrk failed: {text}{}", String::from_utf8_lossy(&output.stderr)));
    let said: Said = serde_json::from_str(line).unwrap();
    assert_eq!(said.broken, 0, "connections broke: {text}");
    assert!(said.calls > 0, "nothing was answered: {text}");
    let mut cpu = per_call(vec![own], vec![cpu_of_ended()], said.calls);
    cpu.extend(per_call(others, watched.cpu(), said.calls));
    Run {
        calls: said.calls,
        refused: said.refused,
        per_second: said.calls as f64 * 1e6 / said.micros as f64,
        millis: [said.p50, said.p99, said.p999].map(|micros| micros as f64 / 1000.0),
        cpu,
    }
}

/// Does numbered work from so many tasks at once, one piece after another each.
pub async fn flat_out<F>(
    tasks: usize,
    time: Duration,
    watched: &Watched,
    work: impl Fn(usize) -> F + Clone + Send + Sync + 'static,
) -> Run
where
    F: Future<Output = ()> + Send + 'static,
{
    let own = std::process::id();
    let before = (crate::usage::cpu(own), watched.cpu());
    let (next, began) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let mut running = JoinSet::new();
    for _task in 0..tasks {
        let (next, work) = (Arc::clone(&next), work.clone());
        running.spawn(async move {
            let mut taken = Vec::new();
            while began.elapsed() < time {
                let at = Instant::now();
                work(next.fetch_add(1, Ordering::Relaxed)).await;
                taken.push(at.elapsed());
            }
            taken
        });
    }
    let mut taken = running.join_all().await.concat();
    let seconds = began.elapsed().as_secs_f64();
    let calls = taken.len() as u64;
    let mut cpu = per_call(vec![before.0], vec![crate::usage::cpu(own)], calls);
    cpu.extend(per_call(before.1, watched.cpu(), calls));
    taken.sort_unstable();
    let millis = [0.5, 0.99, 0.999].map(|part| quantile(&taken, part));
    Run { calls, refused: 0, per_second: calls as f64 / seconds, millis, cpu }
}

/// Milliseconds that this part of them does not exceed; they are sorted.
pub fn quantile(sorted: &[Duration], part: f64) -> f64 {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a place in a list"
    )]
    let place = (sorted.len() as f64 * part).ceil() as usize;
    let found = sorted.get(place.saturating_sub(1));
    found.map_or(f64::NAN, |taken| taken.as_secs_f64() * 1000.0)
}

/// The middle one.
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values = values.into_iter().collect::<Vec<_>>();
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
