//! Servers and programs that a test starts, kills, freezes and starts again by itself. They end
//! with the test; a program that is not installed fails it.

use std::collections::HashMap;
use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aura_hitl::courier::RedisSettings;
use redis::cluster_routing::Slot;
use secrecy::SecretString;
use serde_json::Value;
use tempfile::TempDir;

use crate::helpers::{eventually, eventually_within};

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
fn try_kill(signal: &str, pid: &impl std::fmt::Display) -> bool {
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

/// A Redis of one's own.
pub struct PrivateRedis {
    program: String,
    port: u16,
    arguments: Vec<String>,
    server: Option<Server>,
    folder: TempDir,
}

impl PrivateRedis {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same with further arguments of `redis-server`.
    pub async fn start_with(arguments: &[&str]) -> Self {
        Self::start_program("redis-server".to_owned(), arguments).await
    }

    /// A server of another version.
    pub async fn start_program(program: String, arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|&one| one.to_owned()).collect();
        let folder = TempDir::new().unwrap();
        let mut redis = Self { program, port: free_port(), arguments, server: None, folder };
        redis.start_again().await;
        redis
    }

    /// Further arguments from its next start on.
    pub fn set_arguments(&mut self, arguments: &[&str]) {
        self.arguments = arguments.iter().map(|&one| one.to_owned()).collect();
    }

    /// Starts it, empty, on the port it had.
    pub async fn start_again(&mut self) {
        assert!(self.server.is_none(), "it is running");
        let mut command = Command::new(&self.program);
        command.args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
        command.args(["--maxmemory-policy", "noeviction", "--port"]).arg(self.port.to_string());
        command.arg("--dir").arg(self.folder.path()).args(&self.arguments);
        self.server = Some(Server::start(&mut command, &self.folder.path().join("log")));
        eventually(async || {
            let answer = self.try_command::<String>(&["PING"]).await;
            // A server with a password is up when it asks for it.
            answer.map_or_else(|error| error.code() == Some("NOAUTH"), |_| true).then_some(())
        })
        .await;
    }

    /// Kills it as a crash does; everything in it is lost.
    pub fn kill(&mut self) {
        self.server = None;
    }

    /// It stays there, and answers nothing.
    pub fn freeze(&self) {
        kill("-STOP", self.server.as_ref().unwrap().0.id());
    }

    pub fn thaw(&self) {
        kill("-CONT", self.server.as_ref().unwrap().0.id());
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn settings(&self) -> RedisSettings {
        RedisSettings::Url(SecretString::from(self.url()))
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn client(&self) -> redis::Client {
        redis::Client::open(self.url()).unwrap()
    }

    /// A command of the test's own.
    pub async fn command<T: redis::FromRedisValue>(&self, words: &[&str]) -> T {
        self.try_command(words).await.unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    pub async fn try_command<T: redis::FromRedisValue>(
        &self,
        words: &[&str],
    ) -> redis::RedisResult<T> {
        let mut connection = self.client().get_multiplexed_async_connection().await?;
        redis::cmd(words[0]).arg(&words[1..]).query_async(&mut connection).await
    }
}

/// Longest that a Cluster or Sentinels take to do their part.
pub const THEIR_PART: Duration = Duration::from_mins(1);
/// The service logs in, and may do no more than docs/OPERATIONS.md says; everybody else need not.
const SERVICE: [&str; 24] = [
    "--user",
    "service",
    "on",
    ">p@ss",
    "~hitl:*",
    "~{*",
    "&hitl:channel:*",
    "&hitl:decision:*",
    "&hitl:outcomes",
    "+get",
    "+set",
    "+pttl",
    "+exists",
    "+time",
    "+eval",
    "+publish",
    "+subscribe",
    "+psubscribe",
    "+pubsub|numsub",
    "+info",
    "+ping",
    "+role",
    "+cluster|slots",
    "+asking",
];
/// A replica that follows at once.
const EAGER: [&str; 2] = ["--repl-diskless-sync-delay", "0"];

/// A Redis Cluster of one's own: three masters with a third of the slots each.
pub struct PrivateCluster {
    /// The masters, then their replicas, if any were added.
    pub nodes: Vec<PrivateRedis>,
    /// The ports on which they talk to each other.
    buses: Vec<u16>,
}

impl PrivateCluster {
    const FIRST_SLOTS: [u16; 4] = [0, 5461, 10923, 16384];

    pub async fn start() -> Self {
        let mut cluster = Self { nodes: Vec::new(), buses: Vec::new() };
        for slots in Self::FIRST_SLOTS.windows(2) {
            let node = cluster.add().await;
            let (first, last) = (slots[0].to_string(), (slots[1] - 1).to_string());
            let _ok: String = node.command(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]).await;
        }
        cluster.is_whole().await;
        cluster
    }

    /// A further node, without slots.
    async fn add(&mut self) -> &PrivateRedis {
        let bus = free_port();
        let own = bus.to_string();
        let cluster = ["--cluster-enabled", "yes", "--cluster-require-full-coverage", "no"];
        let settings = ["--cluster-port", &own, "--cluster-node-timeout", "2000"];
        let node = [&cluster[..], &settings, &SERVICE, &EAGER].concat();
        let node = PrivateRedis::start_with(&node).await;
        self.nodes.push(node);
        self.buses.push(bus);
        let (port, bus) = (self.nodes[0].port.to_string(), self.buses[0].to_string());
        let node = self.nodes.last().unwrap();
        let _ok: String = node.command(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]).await;
        node
    }

    /// Gives a master a replica, and waits until it has followed.
    pub async fn add_a_replica_of(&mut self, master: usize) {
        let master: String = self.nodes[master].command(&["CLUSTER", "MYID"]).await;
        let replica = self.add().await;
        eventually(async || {
            let command = ["CLUSTER", "REPLICATE", &master];
            replica.try_command::<String>(&command).await.ok()
        })
        .await;
        eventually_within(THEIR_PART, async || {
            let role: redis::Value = replica.command(&["ROLE"]).await;
            format!("{role:?}").contains("connected").then_some(())
        })
        .await;
        self.is_whole().await;
    }

    /// Waits until every node knows the others, and that every slot is served.
    pub async fn is_whole(&self) {
        let known = format!("cluster_known_nodes:{}", self.nodes.len());
        for node in &self.nodes {
            eventually_within(THEIR_PART, async || {
                let info: String = node.command(&["CLUSTER", "INFO"]).await;
                ["cluster_state:ok", "cluster_slots_ok:16384", &known]
                    .into_iter()
                    .all(|line| info.lines().any(|there| there == line))
                    .then_some(())
            })
            .await;
        }
    }

    /// Which master has a key, as long as no slot is moved.
    pub fn node_of(key: &str) -> usize {
        let slot = slot_of(key);
        Self::FIRST_SLOTS.iter().rposition(|&first| first <= slot).unwrap()
    }

    pub fn url(&self) -> String {
        let hosts = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port));
        format!("redis+cluster://service:p%40ss@{}", hosts.collect::<Vec<_>>().join(","))
    }
}

/// A key's slot.
pub fn slot_of(key: &str) -> u16 {
    (0..16384).find(|&number| Slot::new(number) == Some(Slot::for_key(key))).unwrap()
}

/// A master, its replica, and three Sentinels that make it the master when the other is gone.
pub struct PrivateSentinels {
    pub servers: Vec<PrivateRedis>,
    sentinels: Vec<(u16, Server)>,
    _folder: TempDir,
}

impl PrivateSentinels {
    pub async fn start() -> Self {
        let settings = [&SERVICE[..], &EAGER].concat();
        let master = PrivateRedis::start_with(&settings).await;
        let port = master.port.to_string();
        let replica = [&settings[..], &["--replicaof", "127.0.0.1", &port]].concat();
        let replica = PrivateRedis::start_with(&replica).await;
        let folder = TempDir::new().unwrap();
        let sentinels = (0..3).map(|number| {
            let (own, conf) = (free_port(), folder.path().join(format!("{number}.conf")));
            let settings = format!(
                "bind 127.0.0.1\nport {own}\nsentinel monitor main 127.0.0.1 {port} 2\n\
                 sentinel down-after-milliseconds main 1500\nsentinel failover-timeout main 4000\n\
                 user watcher on >w@tch +role +sentinel|masters\n"
            );
            std::fs::write(&conf, settings).unwrap();
            let mut command = Command::new("redis-server");
            command.arg(&conf).arg("--sentinel").current_dir(folder.path());
            (own, Server::start(&mut command, &conf.with_extension("log")))
        });
        let sentinels = sentinels.collect();
        let site = Self { servers: vec![master, replica], sentinels, _folder: folder };
        site.is_whole().await;
        site
    }

    /// Waits until every Sentinel knows the others and a master with a replica that follows it.
    pub async fn is_whole(&self) {
        for (port, _server) in &self.sentinels {
            eventually_within(THEIR_PART, async || {
                let master = Self::ask(*port, "MASTER").await?;
                let replicas = Self::ask(*port, "REPLICAS").await?;
                let is_whole = master.contains("num-other-sentinels 2 ")
                    && master.contains(" flags master ")
                    && replicas.contains(" flags slave ")
                    && replicas.contains(" master-link-status ok ");
                is_whole.then_some(())
            })
            .await;
        }
    }

    /// What a Sentinel says about the master or its replicas, word by word.
    async fn ask(port: u16, what: &str) -> Option<String> {
        fn words(value: redis::Value) -> Vec<String> {
            match value {
                redis::Value::Array(values) => values.into_iter().flat_map(words).collect(),
                value => redis::from_redis_value(value).into_iter().collect(),
            }
        }
        let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
        let mut connection = client.get_multiplexed_async_connection().await.ok()?;
        let mut command = redis::cmd("SENTINEL");
        let answer = command.arg(what).arg("main").query_async(&mut connection).await;
        Some(words(answer.ok()?).join(" ") + " ")
    }

    /// Which of the servers is the master, as soon as one is.
    pub async fn master(&self) -> usize {
        eventually_within(THEIR_PART, async || {
            let said = Self::ask(self.sentinels[2].0, "MASTER").await?;
            let is_named =
                |server: &PrivateRedis| said.contains(&format!(" port {} ", server.port));
            let named = self.servers.iter().position(is_named)?;
            let role: redis::Value = self.servers[named].try_command(&["ROLE"]).await.ok()?;
            format!("{role:?}").contains("master").then_some(named)
        })
        .await
    }

    /// It answers nothing any more; the other two are enough.
    pub fn freeze_the_first_sentinel(&self) {
        kill("-STOP", self.sentinels[0].1.0.id());
    }

    pub fn url(&self) -> String {
        let hosts = self.sentinels.iter().map(|(port, _)| format!("127.0.0.1:{port}"));
        let hosts = hosts.collect::<Vec<_>>().join(",");
        let watcher = "sentinel_user=watcher&sentinel_password=w%40tch";
        format!("redis+sentinel://service:p%40ss@{hosts}/main?{watcher}")
    }
}

/// A Postgres of one's own.
pub struct PrivatePostgres {
    port: u16,
    bin: PathBuf,
    server: Option<Server>,
    folder: TempDir,
}

impl PrivatePostgres {
    pub async fn start() -> Self {
        // Not in a private TMPDIR: the user that it runs as must get there.
        Self::start_in(TempDir::new_in("/tmp").unwrap(), None).await
    }

    /// A standby of another server, which streams from it.
    pub async fn standby_of(primary: &Self) -> Self {
        let folder = TempDir::new_in("/tmp").unwrap();
        let mut standby = Self { port: free_port(), bin: Self::bin(), server: None, folder };
        let mut copy = standby.program("pg_basebackup");
        copy.args(["-R", "-X", "stream", "--checkpoint=fast", "--no-sync", "-U", "postgres"]);
        copy.args(["-h", "127.0.0.1", "-p", &primary.port.to_string(), "-D"]);
        let copied = copy.arg(standby.folder.path()).output().unwrap();
        assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(standby.folder.path(), private).unwrap();
        standby.start_again().await;
        standby
    }

    /// In a folder of the caller's, with its WAL elsewhere if need be.
    pub async fn start_in(folder: TempDir, wal: Option<&Path>) -> Self {
        let mut postgres = Self { port: free_port(), bin: Self::bin(), server: None, folder };
        let initialised = postgres
            .program("initdb")
            .args(["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"])
            .arg(postgres.folder.path())
            .args(wal.map(|wal| format!("--waldir={}", wal.display())))
            .output()
            .unwrap();
        assert!(initialised.status.success(), "{}", String::from_utf8_lossy(&initialised.stderr));
        postgres.start_again().await;
        postgres
    }

    fn bin() -> PathBuf {
        let asked = Command::new("pg_config").arg("--bindir").output().ok();
        let asked = asked.map(|said| PathBuf::from(String::from_utf8(said.stdout).unwrap().trim()));
        let packaged = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten();
        let packaged = packaged.map(|version| version.unwrap().path().join("bin"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut places = asked.into_iter().chain(packaged).chain(std::env::split_paths(&path));
        places.find(|bin| bin.join("initdb").is_file()).expect("PostgreSQL is not installed")
    }

    /// Its programs refuse to run as root.
    fn program(&self, name: &str) -> Command {
        let program = self.bin.join(name);
        as_other_user(program, self.folder.path())
    }

    /// Starts it with the data it had, on the port it had.
    pub async fn start_again(&mut self) {
        self.start_listening(&["-c", "unix_socket_directories="]).await;
    }

    /// The same, on a socket in its folder too.
    pub async fn start_with_sockets(&mut self) {
        let sockets = format!("unix_socket_directories={}", self.folder.path().display());
        self.start_listening(&["-c", &sockets]).await;
    }

    async fn start_listening(&mut self, arguments: &[&str]) {
        assert!(self.server.is_none(), "it is running");
        let mut command = self.program("postgres");
        command.args(["-c", "listen_addresses=127.0.0.1"]).args(arguments);
        command.arg("-p").arg(self.port.to_string()).arg("-D").arg(self.folder.path());
        self.server = Some(Server::start(&mut command, &self.folder.path().join("log")));
        eventually(async || {
            let connected = <sqlx::PgConnection as sqlx::Connection>::connect(&self.url()).await;
            connected.ok().map(drop)
        })
        .await;
    }

    /// Stops it at once, without telling its clients: `pg_ctl stop -m immediate`.
    pub fn crash(&mut self) {
        if let Some(mut server) = self.server.take() {
            kill("-QUIT", server.0.id());
            let _status = server.0.wait();
        }
    }

    /// The server and its backends stay there, and answer nothing.
    pub fn freeze(&self) {
        let server = self.server.as_ref().unwrap().0.id();
        kill("-STOP", server);
        self.backends().for_each(|backend| _ = try_kill("-STOP", &backend));
    }

    pub fn thaw(&self) {
        self.backends().for_each(|backend| _ = try_kill("-CONT", &backend));
        kill("-CONT", self.server.as_ref().unwrap().0.id());
    }

    fn backends(&self) -> impl Iterator<Item = String> {
        let parent = self.server.as_ref().unwrap().0.id();
        let listed = std::fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
        listed.unwrap().split_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>().into_iter()
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where its data and its settings are.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            // It may be frozen, in part or whole; what has ended meanwhile need not go on.
            let pids = self.backends().chain([server.0.id().to_string()]);
            pids.for_each(|pid| drop(Command::new("kill").args(["-CONT", &pid]).output()));
            self.crash();
        }
    }
}

fn is_root() -> bool {
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

/// A `PgBouncer` of one's own, as Debian packages it, in front of a Postgres.
pub struct PgBouncer {
    port: u16,
    server: Option<Server>,
    folder: TempDir,
}

impl PgBouncer {
    pub async fn start(postgres: u16, mode: &str) -> Self {
        let mut bouncer = Self { port: free_port(), server: None, folder: TempDir::new().unwrap() };
        let settings = format!(
            "[databases]\n* = host=127.0.0.1 port={postgres}\n[pgbouncer]\n\
             listen_addr = 127.0.0.1\nlisten_port = {}\nunix_socket_dir =\nauth_type = trust\n\
             auth_file = {}\n\
             pool_mode = {mode}\nmax_client_conn = 200\ndefault_pool_size = 10\n\
             server_login_retry = 1\n",
            bouncer.port,
            bouncer.folder.path().join("users").display()
        );
        std::fs::write(bouncer.folder.path().join("users"), "\"postgres\" \"\"\n").unwrap();
        std::fs::write(bouncer.folder.path().join("pgbouncer.ini"), settings).unwrap();
        bouncer.start_again().await;
        bouncer
    }

    pub async fn start_again(&mut self) {
        assert!(self.server.is_none(), "it is running");
        let path = std::env::var_os("PATH").unwrap_or_default();
        let program = std::env::split_paths(&path)
            .chain(["/usr/sbin".into()])
            .map(|folder| folder.join("pgbouncer"))
            .find(|program| program.is_file())
            .expect("PgBouncer is not installed");
        let mut command = as_other_user(program, self.folder.path());
        command.arg(self.folder.path().join("pgbouncer.ini"));
        self.server = Some(Server::start(&mut command, &self.folder.path().join("log")));
        eventually(async || {
            let mut plain =
                <sqlx::postgres::PgConnectOptions as std::str::FromStr>::from_str(&self.url())
                    .unwrap();
            plain = plain.extra_float_digits(None);
            let connected = <sqlx::PgConnection as sqlx::Connection>::connect_with(&plain).await;
            connected.ok().map(drop)
        })
        .await;
    }

    /// Ends it as a crash does.
    pub fn kill(&mut self) {
        self.server = None;
    }

    pub fn url(&self) -> String {
        format!("postgres://postgres@127.0.0.1:{}/postgres", self.port)
    }
}

/// A small disk of its own, which needs root.
pub struct Tmpfs(TempDir);

impl Tmpfs {
    pub fn mount(size: &str) -> Self {
        let folder = TempDir::new().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size},mode=777"), "tmpfs"]);
        let mounted = mount.arg(folder.path()).status().unwrap();
        assert!(mounted.success(), "mounting a small disk needs root (CAP_SYS_ADMIN)");
        Self(folder)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// Takes up all the room that is left.
    pub fn fill(&self) {
        let mut file = File::create(self.path().join("filling")).unwrap();
        let block = [1; 4096];
        while std::io::Write::write_all(&mut file, &block).is_ok() {}
    }

    /// Gives the room back.
    pub fn empty(&self) {
        std::fs::remove_file(self.path().join("filling")).unwrap();
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _best_effort = Command::new("umount").arg("-l").arg(self.path()).status();
    }
}

/// The binary that cargo builds with the tests, and names to them as they run.
fn binary() -> PathBuf {
    std::env::var_os("CARGO_BIN_EXE_aura-hitl").expect("run the tests with cargo").into()
}

/// The program itself, as an operator runs it, with no environment but what the test gives it.
pub struct Program {
    command: Command,
    folder: PathBuf,
}

/// The program as it runs.
pub struct Running {
    child: Child,
    pub base: String,
    out: PathBuf,
    err: PathBuf,
}

impl Program {
    /// In a folder that holds its data; `PATH` is all it inherits.
    pub fn new(folder: &TempDir, arguments: &[&str]) -> Self {
        Self::of(&binary(), folder, arguments)
    }

    /// The same of another build.
    pub fn of(binary: &Path, folder: &TempDir, arguments: &[&str]) -> Self {
        let mut command = Command::new(binary);
        command.args(arguments);
        Self::run(folder, command)
    }

    /// The same as a user who may do nothing special.
    pub fn as_nobody(folder: &TempDir, arguments: &[&str]) -> Self {
        let mut command = Command::new(binary());
        if is_root() {
            command = Command::new("setpriv");
            command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]);
            command.arg(binary());
        }
        command.args(arguments);
        Self::run(folder, command)
    }

    /// The service with so many open files; `kind` is the limit as `ulimit` names it.
    pub fn with_open_files(folder: &TempDir, kind: &str, files: u32) -> Self {
        let mut command = Command::new("sh");
        let limit = format!("ulimit {kind} {files} && exec \"$0\"");
        command.args(["-c", &limit]).arg(binary());
        Self::run(folder, command)
    }

    fn run(folder: &TempDir, mut command: Command) -> Self {
        let data = folder.path().join("data");
        command.current_dir(folder.path()).env_clear().stdin(Stdio::null());
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("PORT", "0").env("AURA_HITL_DATA_DIR", data);
        Self { command, folder: folder.path().to_path_buf() }
    }

    pub fn with(mut self, name: &str, value: impl AsRef<std::ffi::OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    pub fn without(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    /// Runs it to its end.
    pub fn output(mut self) -> Output {
        let running = self.command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = running.id();
        let (done, waiting) = std::sync::mpsc::channel::<()>();
        // One that does not end fails the test instead of hanging it.
        let guard = std::thread::spawn(move || {
            let ended = waiting.recv_timeout(Duration::from_secs(30));
            if ended == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                kill("-KILL", pid);
            }
        });
        let output = running.wait_with_output().unwrap();
        drop(done);
        guard.join().unwrap();
        output
    }

    /// Starts the service, and does not wait for anything.
    pub fn start(mut self) -> Running {
        let run = uuid::Uuid::new_v4().simple();
        let [out, err] = ["out", "err"].map(|name| self.folder.join(format!("{run}.{name}")));
        self.command.stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
        let child = self.command.spawn().unwrap();
        Running { child, base: String::new(), out, err }
    }

    /// The same, logging into a file that is there already.
    pub fn start_into(mut self, out: &Path) -> Running {
        let err = self.folder.join("stderr");
        self.command.stdout(File::options().write(true).open(out).unwrap());
        self.command.stderr(File::create(&err).unwrap());
        let child = self.command.spawn().unwrap();
        Running { child, base: String::new(), out: out.to_path_buf(), err }
    }

    /// Starts the service and waits until it listens.
    pub async fn serve(self) -> Running {
        let mut running = self.start();
        running.base = eventually(async || {
            let ended = running.child.try_wait().unwrap();
            assert!(ended.is_none(), "{ended:?}: {}", running.stderr());
            let lines = running.log();
            let listening = lines.iter().find(|line| line["message"] == "listening")?;
            Some(format!("http://{}", listening["address"].as_str().unwrap()))
        })
        .await;
        running
    }
}

impl Running {
    /// Every line of the log so far; each must be a JSON object.
    pub fn log(&mut self) -> Vec<Value> {
        let text = self.stdout();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let lines = whole.lines().map(|line| {
            let line: HashMap<String, Value> =
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            serde_json::to_value(line).unwrap()
        });
        lines.collect()
    }

    pub fn stdout(&self) -> String {
        std::fs::read_to_string(&self.out).unwrap()
    }

    pub fn stderr(&self) -> String {
        std::fs::read_to_string(&self.err).unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    pub fn terminate(&self) {
        kill("-TERM", self.child.id());
    }

    /// Waits for its end, at most as long as the service promises.
    pub async fn ended(&mut self) -> ExitStatus {
        eventually(async || self.child.try_wait().unwrap()).await
    }

    /// Asks it to stop, and waits until it has.
    pub async fn stop(&mut self) -> ExitStatus {
        self.terminate();
        self.ended().await
    }

    /// Ends it as a power cut does.
    pub fn crash(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}
