//! Faults of real infrastructure: switchovers, killed poolers, full disks, slow networks, a log
//! pipe that nobody reads, and restarts behind a load balancer.

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures_util::future::join;
use sqlx::{AssertSqlSafe, Connection as _, Executor as _, PgConnection, Row as _};
use support::history::{Choice, Delivered, Ended};
use support::proxy::Proxy;
use support::{Asked, PgBouncer, PrivatePostgres, Program, Server, Tmpfs, eventually, free_port};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::report::{Report, Scale};
use crate::world::{People, Replica, SECRET, World, at_once};

const SECOND: Duration = Duration::from_secs(1);

fn approve() -> Choice {
    Choice::approved("user123")
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

async fn sql(url: &str, statement: &str) {
    let mut connection = PgConnection::connect(url).await.unwrap();
    connection.execute(AssertSqlSafe(statement.to_owned())).await.unwrap();
}

/// Starts replicas that connect to Postgres at `url`, for example through a proxy.
async fn replicas_on(world: &mut World, url: &str, count: usize, settings: &[(&str, &str)]) {
    for _ in 0..count {
        let replica = world.add_replica();
        replica.set("DATABASE_URL", url);
        for (name, value) in settings {
            replica.set(name, *value);
        }
        replica.start().await;
    }
    for base in world.bases() {
        world.people.until_ready(&base).await;
    }
}

pub async fn switchover(scale: Scale, report: &mut Report) {
    let mut world = World::start(0).await;
    let proxy = Proxy::start(local(world.postgres.port())).await;
    let url = format!("postgres://postgres@{}/postgres", proxy.address);
    let rounds = scale.of(5, 1);
    replicas_on(&mut world, &url, 2, &[]).await;
    let (bases, people) = (world.bases(), world.people.clone());
    let (mut slowest, mut ready_meanwhile) = (Duration::ZERO, 0);
    for _ in 0..rounds {
        let standby = PrivatePostgres::standby_of(&world.postgres).await;
        sql(&world.postgres.url(), "ALTER SYSTEM SET synchronous_standby_names = '*'").await;
        sql(&world.postgres.url(), "SELECT pg_reload_conf()").await;
        let asked = world.ask_many(200).await;
        let switching = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            // The primary is gone, and its address now leads to a standby that is not promoted yet.
            proxy.lead_to(local(standby.port()));
            proxy.cut();
            world.postgres.freeze();
            proxy.reopen();
            ready_meanwhile += times_ready(&people, &bases).await;
            promote(&standby).await;
            Instant::now()
        };
        slowest = slowest.max(decide_through(&people, &bases, asked, switching).await);
        world.postgres.thaw();
        world.postgres = standby;
    }
    report.count(rounds, "switchovers");
    report.none(ready_meanwhile, "ready while the address led to a standby");
    report.at_most(slowest, 2 * SECOND, "both replicas decide again after");
    world.check(report, 10 * SECOND, Delivered::Published).await;
}

/// Counts how often a replica answers within one second that it is ready.
async fn times_ready(people: &People, bases: &[String]) -> usize {
    let (began, mut times) = (Instant::now(), 0);
    while began.elapsed() < SECOND {
        for base in bases {
            times += usize::from(people.is_ready(base).await);
        }
    }
    times
}

/// Promotes a standby to primary. The new primary commits without waiting for a standby.
async fn promote(standby: &PrivatePostgres) {
    sql(&standby.url(), "ALTER SYSTEM RESET synchronous_standby_names").await;
    sql(&standby.url(), "SELECT pg_promote()").await;
}

/// Decides requests while the primary changes, and the last 50 once the new primary can be reached.
/// Returns the time from that moment until both replicas had decided one.
async fn decide_through(
    people: &People,
    bases: &[String],
    asked: Vec<Asked>,
    changing: impl Future<Output = Instant>,
) -> Duration {
    let (before, after) = asked.split_at(asked.len() - 50);
    let deciding = at_once(before.to_vec(), 8, async |place, asked| {
        people.decide_surely(&bases[place % 2], &asked.id, &approve()).await;
        tokio::time::sleep(Duration::from_millis(30)).await;
    });
    let mut slowest = Duration::ZERO;
    let probing = async {
        let reachable = changing.await;
        for (place, asked) in after.iter().enumerate() {
            people.decide_surely(&bases[place % 2], &asked.id, &approve()).await;
            if place < 2 {
                slowest = slowest.max(reachable.elapsed());
            }
        }
    };
    join(deciding, probing).await;
    slowest
}

/// Answers `HAProxy`'s checks as Patroni does at `/primary`: 200 if this Postgres takes writes.
async fn answer_checks_of(postgres: u16) -> (u16, JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answering = tokio::spawn(async move {
        while let Ok((mut check, _)) = listener.accept().await {
            tokio::spawn(async move {
                let _request = check.read(&mut [0; 1024]).await;
                let is_primary = takes_writes(postgres).await;
                let status = if is_primary { "200 OK" } else { "503 Service Unavailable" };
                let answer = format!("HTTP/1.0 {status}\r\n\r\n");
                let _best_effort = check.write_all(answer.as_bytes()).await;
            });
        }
    });
    (port, answering)
}

async fn takes_writes(port: u16) -> bool {
    let asking = async {
        let url = format!("postgres://postgres@127.0.0.1:{port}/postgres");
        let mut connection = PgConnection::connect(&url).await.ok()?;
        let row = connection.fetch_one("SELECT NOT pg_is_in_recovery()").await.ok()?;
        row.try_get::<bool, _>(0).ok()
    };
    tokio::time::timeout(SECOND / 2, asking).await.ok().flatten().unwrap_or(false)
}

pub async fn promoted_behind_haproxy(scale: Scale, report: &mut Report) {
    let mut world = World::start(0).await;
    let folder = TempDir::new().unwrap();
    // In the next round, a new standby starts at the port of the lost server.
    let (mut place, mut other) = (world.postgres.port(), free_port());
    let (checks, answering) = answer_checks_of(place).await;
    let (other_checks, others_answering) = answer_checks_of(other).await;
    let entrance = free_port();
    let settings = format!(
        "defaults\n    mode tcp\n    timeout connect 1s\n    timeout client 30m\n\
         \x20   timeout server 30m\n    retries 2\n    option redispatch\n\
         listen postgres\n    bind 127.0.0.1:{entrance}\n    option httpchk OPTIONS /primary\n\
         \x20   http-check expect status 200\n    timeout check 600ms\n\
         \x20   default-server inter 200ms fall 2 rise 1 on-marked-down shutdown-sessions\n\
         \x20   server a 127.0.0.1:{place} check port {checks}\n\
         \x20   server b 127.0.0.1:{other} check port {other_checks}\n"
    );
    let file = folder.path().join("haproxy.conf");
    std::fs::write(&file, settings).unwrap();
    let mut haproxy = installed("haproxy");
    haproxy.arg("-db").arg("-f").arg(&file);
    let _haproxy = Server::start(&mut haproxy, &folder.path().join("haproxy.out"));
    let url = format!("postgres://postgres@127.0.0.1:{entrance}/postgres");
    eventually(async || takes_writes(entrance).await.then_some(())).await;
    replicas_on(&mut world, &url, 2, &[]).await;
    let (bases, people) = (world.bases(), world.people.clone());
    let rounds = scale.of(6, 2);
    let (mut slowest, mut ready_meanwhile) = (Duration::ZERO, 0);
    for round in 0..rounds {
        let standby = PrivatePostgres::standby_at(other, &world.postgres).await;
        let synchronous = "ALTER SYSTEM SET synchronous_standby_names = 'ANY 1 (*)'";
        sql(&world.postgres.url(), synchronous).await;
        sql(&world.postgres.url(), "SELECT pg_reload_conf()").await;
        let asked = world.ask_many(200).await;
        let primary = &mut world.postgres;
        let promoting = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            // The primary either dies or falls silent. If silent, only HAProxy ends its
            // connections.
            if round % 2 == 0 {
                primary.cut_power();
            } else {
                primary.freeze();
            }
            ready_meanwhile += times_ready(&people, &bases).await;
            promote(&standby).await;
            eventually(async || takes_writes(entrance).await.then_some(())).await;
            Instant::now()
        };
        slowest = slowest.max(decide_through(&people, &bases, asked, promoting).await);
        world.postgres = standby;
        (place, other) = (other, place);
    }
    report.count(rounds, "primaries lost, every second one silent");
    report.none(ready_meanwhile, "ready without a primary");
    report.at_most(slowest, 2 * SECOND, "both replicas decide again after");
    world.check(report, 10 * SECOND, Delivered::Published).await;
    answering.abort();
    others_answering.abort();
}

pub async fn bouncer_killed(scale: Scale, report: &mut Report) {
    let rounds = scale.of(10, 2);
    let mut recovery = Duration::ZERO;
    for (mode, setting) in [("session", "none"), ("transaction", "transaction")] {
        let mut world = World::start(0).await;
        let mut bouncer = PgBouncer::start(world.postgres.port(), mode).await;
        let settings = [("AURA_HITL_DATABASE_POOLER", setting)];
        // Both replicas find the database empty and migrate it at the start, through the pooler.
        replicas_on(&mut world, &bouncer.url(), 2, &settings).await;
        let (bases, people) = (world.bases(), world.people.clone());
        for _ in 0..rounds {
            let asked = world.ask_many(200).await;
            let deciding = at_once(asked, 8, async |place, asked| {
                people.decide_surely(&bases[place % 2], &asked.id, &approve()).await;
            });
            let killing = async {
                tokio::time::sleep(Duration::from_millis(200)).await;
                bouncer.kill();
                tokio::time::sleep(Duration::from_millis(300)).await;
                bouncer.start_again().await;
                Instant::now()
            };
            let ((), back) = join(async { drop(deciding.await) }, killing).await;
            for base in &bases {
                people.until_ready(base).await;
            }
            recovery = recovery.max(back.elapsed());
        }
        world.check(report, 10 * SECOND, Delivered::Published).await;
    }
    report.count(rounds * 2, "kills of PgBouncer");
    // The rest of the 200 is decided meanwhile, in a quick run by a debug binary.
    let limit = if scale.is_quick { 10 } else { 5 };
    report.at_most(recovery, limit * SECOND, "all decided and ready after");
}

pub async fn disk_full(scale: Scale, report: &mut Report) {
    let rounds = scale.of(5, 1);
    let (mut recovery, mut ready, mut odd) = (Duration::ZERO, 0, Vec::new());
    for engine in ["sqlite", "postgres"] {
        let disk = Tmpfs::mount(if engine == "sqlite" { "4m" } else { "120m" });
        // The write-ahead log is on another disk, because Postgres stops if the log has no room.
        let wal = TempDir::new_in("/tmp").unwrap();
        let mut world = World::start(0).await;
        if engine == "postgres" {
            let data = TempDir::new_in(disk.path()).unwrap();
            open_to_all(wal.path());
            world.postgres = PrivatePostgres::start_in(data, Some(&wal.path().join("wal"))).await;
            let url = world.postgres.url();
            replicas_on(&mut world, &url, 1, &[]).await;
        } else {
            let replica = world.add_replica();
            let data = disk.path().join("data").display().to_string();
            for (name, value) in
                [("DATABASE_URL", ""), ("REDIS_URL", ""), ("AURA_HITL_DATA_DIR", &data)]
            {
                replica.set(name, value);
            }
            replica.start().await;
        }
        let (base, people) = (world.bases().remove(0), world.people.clone());
        people.until_ready(&base).await;
        for _ in 0..rounds {
            let known = register_some(&world, &base, 5, &mut odd).await;
            disk.fill();
            let mut refused = 0;
            let began = Instant::now();
            while refused < 5 && began.elapsed() < 20 * SECOND {
                match people.register(&base, &Asked::new()).await {
                    Some(503) => refused += 1,
                    Some(201) => {}
                    status => odd.push(format!("{engine}: {status:?} on a full disk")),
                }
            }
            report.demand(refused == 5, || format!("{engine}: a full disk refused nothing"));
            ready += usize::from(people.is_ready(&base).await);
            disk.empty();
            let back = Instant::now();
            people.until_ready(&base).await;
            for asked in &known {
                if people.decide_surely(&base, &asked.id, &approve()).await != Ended::Ok {
                    odd.push(format!("{engine}: {} is not decided", asked.id));
                }
            }
            recovery = recovery.max(back.elapsed());
        }
        // The processes must end before the disk that holds their files is unmounted.
        world.replicas.clear();
        drop(world);
    }
    report.count(rounds * 2, "full disks");
    report.none(ready, "ready on a full disk");
    report.wrongs("answers that should not be", &odd);
    report.at_most(recovery, 5 * SECOND, "ready and decided after there was room");
}

fn open_to_all(folder: &Path) {
    assert!(Command::new("chmod").arg("777").arg(folder).status().unwrap().success());
}

async fn register_some(
    world: &World,
    base: &str,
    count: usize,
    odd: &mut Vec<String>,
) -> Vec<Asked> {
    let asked = (0..count).map(|_| Asked::new()).collect::<Vec<_>>();
    for one in &asked {
        let status = world.people.register(base, one).await;
        if status != Some(201) {
            odd.push(format!("{status:?} with room on the disk"));
        }
    }
    asked
}

pub async fn slow_connect(scale: Scale, report: &mut Report) {
    let mut world = World::start(0).await;
    let proxy = Proxy::start(local(world.postgres.port())).await;
    let url = format!("postgres://postgres@{}/postgres", proxy.address);
    // Migrates the schema before the network becomes slow.
    replicas_on(&mut world, &url, 1, &[]).await;
    world.replicas.clear();
    // The delay applies to each direction.
    proxy.delay(Duration::from_millis(150));
    let began = Instant::now();
    replicas_on(&mut world, &url, 1, &[]).await;
    let start = began.elapsed();
    let (base, people) = (world.bases().remove(0), world.people.clone());
    let mut recovery = Duration::ZERO;
    let rounds = scale.of(10, 2);
    for _ in 0..rounds {
        let asked = world.ask_many(10).await;
        proxy.cut();
        proxy.reopen();
        let back = Instant::now();
        at_once(asked, 10, async |_, asked| {
            people.decide_surely(&base, &asked.id, &approve()).await;
        })
        .await;
        recovery = recovery.max(back.elapsed());
    }
    report.count(rounds, "times that every connection had to be made anew");
    report.at_most(start, 30 * SECOND, "started and ready after");
    report.at_most(recovery, 5 * SECOND, "ten requests decided after");
    world.check(report, 10 * SECOND, Delivered::Published).await;
}

pub async fn stalled_output(scale: Scale, report: &mut Report) {
    let world = World::start(0).await;
    let folder = TempDir::new().unwrap();
    let pipe = folder.path().join("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let reader = std::fs::File::options().read(true).write(true).open(&pipe).unwrap();
    let port = free_port();
    let program = Program::of(&crate::world::binary("AURA_HITL_BINARY"), &folder, &["serve"])
        .with("DATABASE_URL", world.postgres.url())
        .with("REDIS_URL", world.redis.url())
        .with("JWT_SECRET", SECRET)
        .with("AURA_HITL_RATE_LIMIT_PER_SECOND", "0")
        .with("RUST_LOG", "trace")
        .with("PORT", port.to_string());
    let mut running = program.start_into(&pipe);
    let (base, people) = (format!("http://127.0.0.1:{port}"), world.people.clone());
    people.until_ready(&base).await;
    let asked = world.ask_many(scale.of(5000, 500)).await;
    let refused = AtomicUsize::new(0);
    at_once(asked, 16, async |_, asked| {
        if people.decide(&base, &asked.id, &approve()).await != Ended::Ok {
            refused.fetch_add(1, Ordering::Relaxed);
        }
    })
    .await;
    report.count(scale.of(5000, 500), "decisions while nobody read the log");
    report.none(refused.into_inner(), "not answered 200");
    let metrics = reqwest::get(format!("{base}/metrics")).await.unwrap().text().await.unwrap();
    let dropped = metrics
        .lines()
        .find_map(|line| line.strip_prefix("aura_hitl_log_lines_dropped_total "))
        .and_then(|count| count.parse::<u64>().ok());
    report.demand(dropped > Some(0), || format!("dropped lines are not counted: {dropped:?}"));
    report.count(dropped.unwrap_or_default(), "lines dropped and counted");
    let began = Instant::now();
    running.terminate();
    let status = running.ended().await;
    report.at_most(began.elapsed(), 10 * SECOND, "exit after");
    report.demand(status.success(), || format!("it ended with {status}"));
    drop(reader);
}

fn installed(name: &str) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let program = std::env::split_paths(&path)
        .chain(["/usr/sbin".into()])
        .map(|folder| folder.join(name))
        .find(|program| program.is_file());
    Command::new(program.unwrap_or_else(|| panic!("{name} is not installed")))
}

/// Starts a load balancer in front of the replicas, from Debian's package.
fn load_balancer(kind: &str, folder: &Path, ports: &[u16]) -> (Server, u16) {
    let port = free_port();
    let file = folder.join(format!("{kind}.conf"));
    let servers = |line: &dyn Fn(usize, u16) -> String| {
        ports.iter().enumerate().map(|(n, port)| line(n, *port)).collect::<String>()
    };
    let (settings, program) = if kind == "nginx" {
        let servers =
            servers(&|_, port| format!("server 127.0.0.1:{port} max_fails=1 fail_timeout=1s;\n"));
        let at = folder.display();
        let text = format!(
            "daemon off; pid {at}/nginx.pid; error_log {at}/nginx.log; worker_processes 1;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; client_body_temp_path {at}/body; proxy_temp_path {at}/proxy;\n\
             fastcgi_temp_path {at}/f; uwsgi_temp_path {at}/u; scgi_temp_path {at}/s;\n\
             upstream hitl {{ {servers} keepalive 32; }}\n\
             server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://hitl;\n\
             proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }} }}\n"
        );
        (text, "nginx")
    } else {
        let servers = servers(&|n, port| format!("    server s{n} 127.0.0.1:{port} check\n"));
        let text = format!(
            "defaults\n    mode http\n    timeout connect 2s\n    timeout client 30s\n\
             \x20   timeout server 30s\n    retries 3\n    option redispatch\n\
             frontend f\n    bind 127.0.0.1:{port}\n    default_backend b\n\
             backend b\n    option httpchk GET /health/ready\n\
             \x20   timeout check 2s\n    default-server inter 500ms fall 1 rise 1\n{servers}"
        );
        (text, "haproxy")
    };
    std::fs::write(&file, settings).unwrap();
    let mut command = installed(program);
    match kind {
        "nginx" => command.arg("-c").arg(&file).arg("-p").arg(folder),
        _ => command.arg("-db").arg("-f").arg(&file),
    };
    (Server::start(&mut command, &folder.join(format!("{kind}.out"))), port)
}

pub async fn rolling_restarts(scale: Scale, report: &mut Report) {
    let mut restarts = 0;
    let failed = Mutex::new(Vec::new());
    let calls = scale.of(25_000, 1_000);
    for kind in ["nginx", "haproxy"] {
        let mut world = World::start(2).await;
        let folder = TempDir::new().unwrap();
        let ports = world.replicas.iter().map(|replica| replica.port).collect::<Vec<_>>();
        let (_balancer, port) = load_balancer(kind, folder.path(), &ports);
        let (base, people) = (format!("http://127.0.0.1:{port}"), world.people.clone());
        eventually(async || people.is_ready(&base).await.then_some(())).await;
        let asked = world.ask_many(calls).await;
        let is_over = AtomicBool::new(false);
        let bases = world.bases();
        let deciding = async {
            at_once(asked, 16, async |_, asked| {
                let ended = people.decide(&base, &asked.id, &approve()).await;
                if ended != Ended::Ok {
                    failed.lock().unwrap().push(format!("{kind}: {}: {ended:?}", asked.id));
                }
                // Slows the calls down, so that many come before, during and after each restart.
                tokio::time::sleep(Duration::from_millis(20)).await;
            })
            .await;
            is_over.store(true, Ordering::Relaxed);
        };
        let replicas: &mut Vec<Replica> = &mut world.replicas;
        let restarting = async {
            let mut done = 0;
            while !is_over.load(Ordering::Relaxed) {
                let place = done % 2;
                replicas[place].process().terminate();
                let _status = replicas[place].process().ended().await;
                replicas[place].kill();
                replicas[place].start().await;
                people.until_ready(&bases[place]).await;
                // The load balancer must notice this replica before the other one is restarted.
                tokio::time::sleep(SECOND).await;
                done += 1;
            }
            done
        };
        let ((), done) = join(deciding, restarting).await;
        restarts += done;
        world.check(report, 10 * SECOND, Delivered::Published).await;
    }
    report.count(calls * 2, "calls through nginx and HAProxy");
    report.count(restarts, "restarts");
    report.wrongs("calls failed", &failed.into_inner().unwrap());
}
