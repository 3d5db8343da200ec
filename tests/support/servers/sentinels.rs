//! A Redis with a replica of one's own, and three Sentinels that make the replica the master when the
//! other is gone. Both the servers and the Sentinels ask the service for a password.

use std::process::Command;

use tempfile::TempDir;

use super::redis::{EAGER, SERVICE};
use super::{FAILOVER_TIMEOUT, PrivateRedis, Server, free_port, kill};
use crate::eventually::eventually_within;

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
        let port = master.port().to_string();
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
            eventually_within(FAILOVER_TIMEOUT, async || {
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
        eventually_within(FAILOVER_TIMEOUT, async || {
            let said = Self::ask(self.sentinels[2].0, "MASTER").await?;
            let is_named =
                |server: &PrivateRedis| said.contains(&format!(" port {} ", server.port()));
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
