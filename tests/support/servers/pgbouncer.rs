//! A `PgBouncer` of one's own, as Debian packages it, in front of a Postgres and in the pool mode that
//! the test names. It keeps its port over a crash.

use tempfile::TempDir;

use super::{Server, as_other_user, free_port};
use crate::eventually::eventually;

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
