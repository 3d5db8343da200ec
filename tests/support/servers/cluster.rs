//! A Redis Cluster of one's own: three masters with a third of the slots each, and replicas of them
//! where a test adds some. The service logs in, with the rights that docs/OPERATIONS.md gives it.

use redis::cluster_routing::Slot;

use super::redis::{EAGER, SERVICE};
use super::{FAILOVER_TIMEOUT, PrivateRedis, free_port};
use crate::eventually::{eventually, eventually_within};

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
        let (port, bus) = (self.nodes[0].port().to_string(), self.buses[0].to_string());
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
        eventually_within(FAILOVER_TIMEOUT, async || {
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
            eventually_within(FAILOVER_TIMEOUT, async || {
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
        let hosts = self.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port()));
        format!("redis+cluster://service:p%40ss@{}", hosts.collect::<Vec<_>>().join(","))
    }
}

/// A key's slot.
pub fn slot_of(key: &str) -> u16 {
    (0..16384).find(|&number| Slot::new(number) == Some(Slot::for_key(key))).unwrap()
}
