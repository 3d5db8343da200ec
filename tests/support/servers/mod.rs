//! Servers that a test starts, kills, freezes and starts again by itself: Redis alone, as a Cluster
//! and behind Sentinels, Postgres, `PgBouncer`, and a small disk. They end with the test; a program
//! that is not installed fails it.

use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

mod cluster;
mod pgbouncer;
mod postgres;
mod redis;
mod sentinels;
mod tmpfs;

pub use self::redis::PrivateRedis;
pub use cluster::{PrivateCluster, slot_of};
pub use pgbouncer::PgBouncer;
pub use postgres::PrivatePostgres;
pub use sentinels::PrivateSentinels;
pub use tmpfs::Tmpfs;

/// A port that nobody listens on, outside the range that the system gives to outgoing connections:
/// a server that is started on it again finds it free.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        // Other test processes begin elsewhere.
        let offset = std::process::id().wrapping_mul(61) + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = u16::try_from(15_000 + offset % 17_000).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Sends a signal to a process that this test started.
pub fn kill(signal: &str, pid: impl std::fmt::Display) {
    assert!(try_kill(signal, &pid), "kill {signal} {pid}");
}

/// The same to one that may have ended by itself.
pub fn try_kill(signal: &str, pid: &impl std::fmt::Display) -> bool {
    Command::new("kill")
        .args([signal, &pid.to_string()])
        .stderr(Stdio::null())
        .status()
        .unwrap()
        .success()
}

/// A server process; killed when dropped, and let go on first if it was frozen.
pub struct Server(Child);

impl Server {
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let log = File::options().create(true).append(true).open(log).unwrap();
        let name = command.get_program().to_string_lossy().into_owned();
        let started = command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        Self(started.spawn().unwrap_or_else(|error| panic!("cannot start {name}: {error}")))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _gone = self.0.kill();
        let _status = self.0.wait();
    }
}

pub(crate) fn is_root() -> bool {
    std::os::unix::fs::MetadataExt::uid(&std::fs::metadata("/proc/self").unwrap()) == 0
}

/// A program that refuses to run as root, and the folder that it works in.
fn as_other_user(program: impl AsRef<std::ffi::OsStr>, folder: &Path) -> Command {
    let mut command = Command::new(program);
    if is_root() {
        let id = |option, user| {
            let id = Command::new("id").args([option, user]).output().unwrap().stdout;
            String::from_utf8(id).unwrap().trim().parse::<u32>().ok()
        };
        let name = if id("-u", "postgres").is_some() { "postgres" } else { "nobody" };
        let (user, group) = (id("-u", name).unwrap(), id("-g", name).unwrap());
        std::os::unix::fs::chown(folder, Some(user), Some(group)).unwrap();
        command.uid(user).gid(group).current_dir("/");
    }
    command
}

/// How long a Cluster or Sentinels may take to elect or to fail over.
pub const FAILOVER_TIMEOUT: Duration = Duration::from_mins(1);
