//! The service beside Restate, whose awakeables are the nearest to what it does: so many agents wait,
//! clients decide, and each agent notes when it was woken. Both start empty, and both have the decision
//! on disk before they answer. The agents and the clients are `peers/peers.mjs`.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use support::eventually_within;
use tempfile::TempDir;
use tokio::task::spawn_blocking;

use crate::service::Service;
use crate::usage::{cpu, cpu_with_children};
use crate::world::World;

/// How much of it.
#[derive(Args)]
pub struct Options {
    /// Agents that wait at once, and decisions by 64 clients.
    #[arg(long, default_value_t = 3000)]
    agents: u32,
    /// Decisions one after the other.
    #[arg(long, default_value_t = 500)]
    alone: u32,
}

/// One row of the table, as peers.mjs measured it.
struct Measured {
    per_second: f64,
    p50: f64,
    p99: f64,
}

impl Measured {
    fn read(value: &Value) -> Self {
        let number = |name: &str| value[name].as_f64().unwrap();
        Self { per_second: number("perSecond"), p50: number("p50"), p99: number("p99") }
    }
}

/// Where npm has put Restate and the clients.
fn packages() -> PathBuf {
    std::env::var_os("PEERS").expect("scripts/bench sets PEERS").into()
}

/// Restate's program for this machine. The one in `.bin` starts it in a process of its own, which would
/// be neither counted nor ended with it.
fn restate_server() -> PathBuf {
    let folder = packages().join("node_modules/@restatedev");
    let mut names = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name());
    let name = names.find(|name| name.to_string_lossy().starts_with("restate-server-")).unwrap();
    folder.join(name).join("bin/restate-server")
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Plays the runs on one side: those at once on the fresh store, the same later, then one by one.
async fn play(options: &Options, mut plan: Value) -> [Measured; 3] {
    let Options { agents, alone } = options;
    plan["runs"] = json!([
        { "count": agents, "clients": 64 },
        { "count": agents, "clients": 64 },
        { "count": alone, "clients": 1 },
    ]);
    let playing = spawn_blocking(move || {
        let mut node = Command::new("node")
            .arg(packages().join("peers.mjs"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        node.stdin.take().unwrap().write_all(plan.to_string().as_bytes()).unwrap();
        node.wait_with_output().unwrap()
    });
    let output = playing.await.unwrap();
    assert!(output.status.success(), "peers.mjs failed");
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().rev().find(|line| line.starts_with('[')).unwrap();
    let runs: Vec<Value> = serde_json::from_str(line).unwrap();
    [0, 1, 2].map(|run| Measured::read(&runs[run]))
}

/// Restate's server with an empty store, and where it listens.
struct Restate {
    server: Child,
    ingress: String,
    admin: String,
    _folder: TempDir,
}

impl Restate {
    async fn start() -> Self {
        let folder = TempDir::new().unwrap();
        let [ingress, admin, node] = [(); 3].map(|()| free_port());
        let address = |port: u16| format!("127.0.0.1:{port}");
        let server = Command::new(restate_server())
            .args(["--no-logo", "--listen-mode", "tcp"])
            .env("RESTATE_BASE_DIR", folder.path())
            .env("RESTATE_INGRESS__BIND_ADDRESS", address(ingress))
            .env("RESTATE_ADMIN__BIND_ADDRESS", address(admin))
            .env("RESTATE_BIND_ADDRESS", address(node))
            .env("RESTATE_LOG_FILTER", "error")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let started = Self {
            server,
            ingress: format!("http://{}", address(ingress)),
            admin: format!("http://{}", address(admin)),
            _folder: folder,
        };
        eventually_within(Duration::from_mins(1), async || {
            let [ingress, admin] = [
                format!("{}/restate/health", started.ingress),
                format!("{}/health", started.admin),
            ];
            let (ingress, admin) = tokio::join!(reqwest::get(ingress), reqwest::get(admin));
            (ingress.ok()?.status().is_success() && admin.ok()?.status().is_success()).then_some(())
        })
        .await;
        started
    }
}

impl Drop for Restate {
    fn drop(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }
}

/// Measures both, one after the other, and prints them side by side.
pub async fn run(options: &Options) -> ExitCode {
    let world = World::start().await;
    let service = Service::fresh(&world, "peers").await;
    let people = world.people.iter().take(50).map(
        |person| json!({ "user": person.user, "tenant": person.tenant, "token": person.token }),
    );
    let plan = json!({
        "side": "service", "base": service.base(), "redis": world.redis.url(),
        "people": people.collect::<Vec<_>>(),
    });
    let before = service.watched.0.iter().map(|pid| cpu_with_children(*pid)).sum::<Duration>();
    let ours = play(options, plan).await;
    let after = service.watched.0.iter().map(|pid| cpu_with_children(*pid)).sum::<Duration>();
    let our_cost = after.saturating_sub(before);
    drop(service);

    let restate = Restate::start().await;
    let pid = restate.server.id();
    let plan = json!({
        "side": "restate", "ingress": restate.ingress, "admin": restate.admin, "port": free_port(),
    });
    let before = cpu(pid);
    let theirs = play(options, plan).await;
    let their_cost = cpu(pid).saturating_sub(before);
    drop(restate);

    let decisions = f64::from(2 * options.agents + options.alone);
    let micros = |cost: Duration| cost.as_secs_f64() * 1e6 / decisions;
    println!("| figure | the service | Restate | ratio |\n|---|---:|---:|---:|");
    let row = |name: &str, ours: f64, theirs: f64| {
        println!("| {name} | {ours:.2} | {theirs:.2} | {:.2} |", ours / theirs);
    };
    row("decisions/s at 64, the first on a fresh store", ours[0].per_second, theirs[0].per_second);
    row("decisions/s at 64, the next", ours[1].per_second, theirs[1].per_second);
    row("decision → agent p50 at 64, ms", ours[1].p50, theirs[1].p50);
    row("decision → agent p99 at 64, ms", ours[1].p99, theirs[1].p99);
    row("decision → agent p50 at 1, ms", ours[2].p50, theirs[2].p50);
    row("decision → agent p99 at 1, ms", ours[2].p99, theirs[2].p99);
    row("servers' time on a core a request, µs", micros(our_cost), micros(their_cost));
    println!(
        "\nDurability: PostgreSQL `fsync` and `synchronous_commit` on, Redis append-only `everysec`; \
         Restate as it comes, its write-ahead log synced to disk. The clients and agents share the \
         cores with the servers, and are not counted. A request's cost includes that its agent asks."
    );
    ExitCode::SUCCESS
}
