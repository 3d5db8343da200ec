//! A Redis of one's own, empty at each start, on a port that it keeps. It can be killed as a crash
//! does, frozen and started again, with other arguments or another version of the program.

use std::process::Command;

use aura_hitl::courier::RedisSettings;
use secrecy::SecretString;
use tempfile::TempDir;

use super::{Server, free_port, kill};
use crate::eventually::eventually;

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

/// The service logs in, and may do no more than docs/OPERATIONS.md says; everybody else need not.
pub(super) const SERVICE: [&str; 29] = [
    "--user",
    "service",
    "on",
    ">p@ss",
    "~hitl:*",
    "~{*",
    "&hitl:channel:*",
    "&hitl:decision:*",
    "&hitl:outcomes",
    "&__keyspace@*__:hitl:request:*",
    "&__keyspace@*__:hitl:session:*",
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
    "+scan",
    "+strlen",
    "+config|get",
    "+cluster|slots",
    "+asking",
];

/// A replica that follows at once.
pub(super) const EAGER: [&str; 2] = ["--repl-diskless-sync-delay", "0"];
