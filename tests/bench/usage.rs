//! What processes use: memory, and time on a core. As the kernel counts it, in ticks of 10 ms.

use std::time::Duration;

/// Resident memory in bytes.
pub fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
}

/// Time on a core until now.
pub fn cpu(pid: u32) -> Duration {
    times(&pid.to_string()).map_or(Duration::ZERO, |(own, _ended)| own)
}

/// The same of a server with the processes that it has started, whether they run or have ended.
pub fn cpu_with_children(pid: u32) -> Duration {
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let running = children.unwrap_or_default();
    let running = running.split_whitespace().filter_map(times).map(|(own, _ended)| own);
    let (own, ended) = times(&pid.to_string()).unwrap_or_default();
    own + ended + running.sum::<Duration>()
}

/// The same of all that this process has started and that has ended.
pub fn cpu_of_ended() -> Duration {
    times("self").unwrap().1
}

/// Of a process itself, and of its children that have ended.
fn times(pid: &str) -> Option<(Duration, Duration)> {
    // proc(5): utime, stime, cutime and cstime are fields 14 to 17; the name may hold spaces.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_name, fields) = stat.rsplit_once(") ")?;
    let ticks = fields.split(' ').skip(11).take(4).map(|ticks| ticks.parse::<u64>().unwrap());
    let ticks = ticks.collect::<Vec<_>>();
    let time = |ticks: &[u64]| Duration::from_millis(ticks.iter().sum::<u64>() * 10);
    Some((time(&ticks[..2]), time(&ticks[2..])))
}
