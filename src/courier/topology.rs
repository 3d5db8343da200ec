//! How Redis is set up: one server, a Cluster, or servers that Sentinels watch over. Reads that
//! from the settings, and connects. Must not know what the connection is for.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use futures_util::FutureExt as _;
use futures_util::future::select_ok;
use redis::aio::{ConnectionLike, MultiplexedConnection, PubSub};
use redis::cluster::ClusterClient;
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{MultipleNodeRoutingInfo, ResponsePolicy, RoutingInfo};
use redis::sentinel::{SentinelClient, SentinelNodeConnectionInfo, SentinelServerType};
use redis::{
    AsyncCommands as _, AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo,
    IntoConnectionInfo, Pipeline, RedisConnectionInfo, RedisFuture, RedisResult, TlsMode, Value,
    cmd,
};
use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};

/// Longest to wait for one answer, or to connect to one server.
pub const STEP_TIMEOUT: Duration = Duration::from_millis(450);
/// The same for connecting to one node of a Cluster, which is done twice in a row when a node is
/// away: as one of those named in the URL, and as one of those that the others name.
const NODE_TIMEOUT: Duration = Duration::from_millis(300);
/// Where Sentinels listen unless the URL says otherwise.
const SENTINEL_PORT: u16 = 26379;

/// Where Redis is.
#[derive(Clone, Debug)]
pub enum RedisSettings {
    /// One of
    /// - `redis://[user:password@]host[:port][/db]`
    /// - `redis+cluster://[user:password@]host[:port][,host[:port]…]`
    /// - `redis+sentinel://[user:password@]host[:port][,host[:port]…]/master[/db]`, with
    ///   `?sentinel_password=…` (and `&sentinel_user=…`) if the Sentinels ask for one themselves
    ///
    /// or the same with `rediss` for TLS.
    Url(SecretString),
    /// Host, port and password, as older deployments configure it.
    Host {
        /// Name or address.
        host: String,
        /// TCP port.
        port: u16,
        /// `AUTH` password of the default user.
        password: Option<SecretString>,
    },
}

impl RedisSettings {
    /// Whether they name a Redis; nothing is connected.
    ///
    /// # Errors
    /// One sentence, which repeats nothing of a URL: it may hold a password.
    pub fn check(&self) -> anyhow::Result<()> {
        self.topology().map(drop)
    }

    pub(super) fn topology(&self) -> anyhow::Result<Topology> {
        match self {
            Self::Url(url) => Topology::read(url.expose_secret()).context(
                "REDIS_URL must look like redis://host:6379, redis+cluster://host:6379,host:6379 \
                 or redis+sentinel://host:26379,host:26379/master",
            ),
            Self::Host { host, port, password } => {
                let password = password.as_ref().map(ExposeSecret::expose_secret);
                let address = ConnectionAddr::Tcp(host.clone(), *port).into_connection_info()?;
                let address = address.set_redis_settings(login(None, password));
                Ok(Topology::Single(Client::open(address)?))
            }
        }
    }
}

/// How Redis is set up.
#[derive(Debug)]
pub enum Topology {
    Single(Client),
    Cluster {
        client: Box<ClusterClient>,
        /// Those of the URL. Each hears all that is published on any.
        nodes: Vec<ConnectionInfo>,
    },
    Sentinel {
        sentinels: Vec<ConnectionInfo>,
        /// The name under which they know the master.
        master: String,
        /// How to log in to it.
        node: SentinelNodeConnectionInfo,
    },
}

impl Topology {
    /// Reads a URL. What the library says of it may repeat it, password and all, and is dropped.
    fn read(url: &str) -> anyhow::Result<Self> {
        let Some((scheme, rest)) = url.split_once("://") else { bail!("it has no scheme") };
        let Some((scheme @ ("redis" | "rediss"), kind @ ("cluster" | "sentinel"))) =
            scheme.split_once('+')
        else {
            return Ok(Self::Single(Client::open(url).ok().context("it cannot be read")?));
        };
        // One URL a host, as the library has them.
        let (authority, tail) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (login, hosts) = match authority.rsplit_once('@') {
            Some((login, hosts)) => (format!("{login}@"), hosts),
            None => (String::new(), authority),
        };
        let urls = hosts.split(',').map(|host| {
            ensure!(!host.is_empty(), "it names no host");
            let url = redis::parse_redis_url(&format!("{scheme}://{login}{host}{tail}"));
            url.context("a host in it cannot be read")
        });
        let urls = urls.collect::<anyhow::Result<Vec<_>>>()?;
        if kind == "cluster" { Self::cluster(urls) } else { Self::sentinel(urls, scheme) }
    }

    fn cluster(nodes: Vec<Url>) -> anyhow::Result<Self> {
        let nodes = nodes.into_iter().map(server).collect::<anyhow::Result<Vec<_>>>()?;
        let has_database = nodes.iter().any(|node| node.redis_settings().db() != 0);
        ensure!(!has_database, "a Cluster has no numbered databases");
        let client = ClusterClient::builder(nodes.clone())
            .connection_timeout(NODE_TIMEOUT)
            .response_timeout(STEP_TIMEOUT)
            // Enough to follow a slot to where it has moved.
            .retries(3)
            .min_retry_wait(10)
            .max_retry_wait(100)
            .build();
        Ok(Self::Cluster { client: Box::new(client.ok().context("it cannot be used")?), nodes })
    }

    /// Behind the hosts stands the name of the master, perhaps its database, and perhaps how to log
    /// in to the Sentinels; before them, how to log in to the servers.
    fn sentinel(hosts: Vec<Url>, scheme: &str) -> anyhow::Result<Self> {
        let Some(url) = hosts.first() else { bail!("it names no host") };
        let mut path = url.path().trim_matches('/').split('/');
        let master = path.next().unwrap_or_default().to_owned();
        ensure!(!master.is_empty(), "it names no master");
        let db = path.next().unwrap_or("0").parse().ok().context("its database is not a number")?;
        ensure!(path.next().is_none(), "it goes on after the database");
        let (mut user, mut password) = (None, None);
        for (name, value) in url.query_pairs() {
            match &*name {
                "sentinel_user" => user = Some(value.into_owned()),
                "sentinel_password" => password = Some(value.into_owned()),
                _ => bail!("only sentinel_user and sentinel_password may follow the ?"),
            }
        }
        let login = login(user.as_deref(), password.as_deref());
        let (mut sentinels, mut node) = (Vec::new(), SentinelNodeConnectionInfo::default());
        for mut url in hosts {
            url.set_path("");
            url.set_query(None);
            if url.port().is_none() {
                let _has_a_host = url.set_port(Some(SENTINEL_PORT));
            }
            let sentinel = server(url)?;
            node = node.set_redis_connection_info(sentinel.redis_settings().clone().set_db(db));
            sentinels.push(sentinel.set_redis_settings(login.clone()));
        }
        if scheme == "rediss" {
            node = node.set_tls_mode(TlsMode::Secure);
        }
        Ok(Self::Sentinel { sentinels, master, node })
    }

    /// Connects.
    pub async fn connect(&self) -> RedisResult<Connection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(STEP_TIMEOUT))
            .set_response_timeout(Some(STEP_TIMEOUT));
        let client = match self {
            Self::Single(client) => client.clone(),
            Self::Cluster { client, .. } => {
                return client.get_async_connection().await.map(Connection::Cluster);
            }
            Self::Sentinel { sentinels, master, node } => {
                find_master(sentinels, master, node).await?
            }
        };
        client.get_multiplexed_async_connection_with_config(&config).await.map(Connection::Single)
    }

    /// A connection that hears what is published.
    pub async fn listen(&self) -> RedisResult<PubSub> {
        match self {
            Self::Single(client) => client.get_async_pubsub().await,
            Self::Cluster { nodes, .. } => {
                let connecting = nodes.iter().map(|node| {
                    let node = node.clone();
                    async move { Client::open(node)?.get_async_pubsub().await }.boxed()
                });
                Ok(select_ok(connecting).await?.0)
            }
            Self::Sentinel { sentinels, master, node } => {
                find_master(sentinels, master, node).await?.get_async_pubsub().await
            }
        }
    }
}

/// Asks all Sentinels at once, each by itself: the library would wait for the first one named, which
/// may well have gone down with its master. The master is asked for anew each time.
async fn find_master(
    sentinels: &[ConnectionInfo],
    master: &str,
    node: &SentinelNodeConnectionInfo,
) -> RedisResult<Client> {
    let asked = sentinels.iter().map(|sentinel| {
        let (sentinel, node) = (vec![sentinel.clone()], Some(node.clone()));
        async move {
            let kind = SentinelServerType::Master;
            SentinelClient::build(sentinel, master, node, kind)?.async_get_client().await
        }
        .boxed()
    });
    Ok(select_ok(asked).await?.0)
}

fn server(url: Url) -> anyhow::Result<ConnectionInfo> {
    url.into_connection_info().ok().context("it cannot be read")
}

fn login(user: Option<&str>, password: Option<&str>) -> RedisConnectionInfo {
    let login = RedisConnectionInfo::default();
    let login = user.into_iter().fold(login, RedisConnectionInfo::set_username);
    password.into_iter().fold(login, RedisConnectionInfo::set_password)
}

/// A connection, however Redis is set up. Clones share it.
#[derive(Clone)]
pub enum Connection {
    /// To a server that has every key.
    Single(MultiplexedConnection),
    /// To servers that have some of the keys each.
    Cluster(ClusterConnection),
}

impl Connection {
    /// Whether any server answers.
    pub async fn ping(&mut self) -> RedisResult<()> {
        match self {
            Self::Single(connection) => connection.ping().await,
            // By itself it would want every master's answer.
            Self::Cluster(connection) => {
                let any = Some(ResponsePolicy::OneSucceeded);
                let to = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, any));
                connection.route_command(cmd("PING"), to).await.map(drop)
            }
        }
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Single(connection) => connection.req_packed_command(command),
            Self::Cluster(connection) => connection.req_packed_command(command),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        commands: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Single(connection) => connection.req_packed_commands(commands, offset, count),
            Self::Cluster(connection) => connection.req_packed_commands(commands, offset, count),
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Single(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(url: &str) -> anyhow::Result<Topology> {
        RedisSettings::Url(SecretString::from(url)).topology()
    }

    #[test]
    fn the_scheme_says_how_redis_is_set_up() {
        for url in
            ["redis://h", "rediss://u:p@h:1/2", "redis+unix:///run/redis", "unix:///run/redis"]
        {
            assert!(matches!(read(url).unwrap(), Topology::Single(_)), "{url}");
        }
        for url in ["redis+cluster://h", "rediss+cluster://u:p%40@a:1,[::1]:2,c/"] {
            assert!(matches!(read(url).unwrap(), Topology::Cluster { .. }), "{url}");
        }
        for url in ["redis+sentinel://h/m", "rediss+sentinel://u:p@a:1,[::1],c/m/2"] {
            assert!(matches!(read(url).unwrap(), Topology::Sentinel { .. }), "{url}");
        }
    }

    #[test]
    fn sentinels_have_their_own_login() {
        let url = "redis+sentinel://u:p@a,b:1/main/3?sentinel_password=q%26&sentinel_user=s";
        let Topology::Sentinel { sentinels, master, node } = read(url).unwrap() else { panic!() };
        assert_eq!(master, "main");
        let addresses = sentinels.iter().map(|sentinel| sentinel.addr().to_string());
        assert_eq!(addresses.collect::<Vec<_>>(), ["a:26379", "b:1"]);
        for sentinel in &sentinels {
            let login = sentinel.redis_settings();
            assert_eq!((login.username(), login.password()), (Some("s"), Some("q&")));
            assert_eq!(login.db(), 0);
        }
        let node = format!("{node:?}");
        assert!(node.contains("db: 3") && node.contains("Some(\"u\")"), "{node}");
    }

    #[test]
    fn what_is_wrong_with_a_url_is_said_without_repeating_it() {
        for (url, problem) in [
            ("canary", "has no scheme"),
            ("redis+canary://h", "cannot be read"),
            ("http+cluster://:canary@h", "cannot be read"),
            ("redis+cluster://:canary@", "names no host"),
            ("redis+cluster://:canary@h,,i", "names no host"),
            ("redis+cluster://:canary@h:port", "a host in it"),
            ("redis+cluster://:canary@h,i/1", "no numbered databases"),
            ("redis+sentinel://:canary@h", "names no master"),
            ("redis+sentinel://:canary@h/", "names no master"),
            ("redis+sentinel://:canary@h/main/one", "not a number"),
            ("redis+sentinel://:canary@h/main/1/2", "goes on"),
            ("redis+sentinel://h/main?password=canary", "may follow the ?"),
        ] {
            let said = format!("{:#}", read(url).unwrap_err());
            assert!(
                said.starts_with("REDIS_URL must look like") && said.contains(problem),
                "{said}"
            );
            assert!(!said.contains("canary") && !said.contains('\n'), "{said}");
        }
    }
}
