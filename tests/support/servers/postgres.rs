//! A Postgres of one's own, or a standby that streams from one: stopped, crashed, frozen with all its
//! backends, promoted and started again on the port that it keeps.

use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;

use super::{Server, as_other_user, free_port, kill, try_kill};
use crate::eventually::eventually;

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
        Self::standby_at(free_port(), primary).await
    }

    /// The same on a given port.
    pub async fn standby_at(port: u16, primary: &Self) -> Self {
        let folder = TempDir::new_in("/tmp").unwrap();
        let mut standby = Self { port, bin: Self::bin(), server: None, folder };
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
        if let Some(bin) = std::env::var_os("POSTGRES_BIN") {
            return bin.into();
        }
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

    /// Ends it and its backends as a power cut does.
    pub fn cut_power(&mut self) {
        self.freeze();
        let backends = self.backends().collect::<Vec<_>>();
        drop(self.server.take());
        for backend in &backends {
            try_kill("-KILL", backend);
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
