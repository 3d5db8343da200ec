//! How Redis is set up: one server, a Cluster, or servers monitored by Sentinels. Reads the set-up from
//! the settings and connects. Knows nothing of requests and signals.

use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use futures_util::FutureExt as _;
use futures_util::future::select_ok;
use redis::aio::{ConnectionLike, MultiplexedConnection, PubSub};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::cluster_routing::{
    MultipleNodeRoutingInfo, ResponsePolicy, RoutingInfo, SingleNodeRoutingInfo,
};
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncCommands as _, AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo,
    IntoConnectionInfo, Pipeline, RedisConnectionInfo, RedisFuture, RedisResult, TlsCertificates,
    TlsMode, Value, cmd, from_redis_value,
};
use reqwest::Url;
use secrecy::{ExposeSecret, SecretString};

/// Longest time to wait for one answer, or to connect to one server.
pub const ANSWER_TIMEOUT: Duration = Duration::from_millis(450);
/// Longest time to connect to one node of a Cluster. If a node is down, the library tries it twice in a
/// row: once because the URL names it, once because the other nodes name it.
const NODE_CONNECT_TIMEOUT: Duration = Duration::from_millis(300);
/// The port of a Sentinel if the URL names none.
const SENTINEL_PORT: u16 = 26379;

/// The address of Redis, and how to log in.
#[derive(Clone, Debug)]
pub enum RedisSettings {
    /// A URL of one of these forms:
    /// - `redis://[user:password@]host[:port][/db]`
    /// - `redis+cluster://[user:password@]host[:port][,host[:port]…]`
    /// - `redis+sentinel://[user:password@]host[:port][,host[:port]…]/master[/db]`, with
    ///   `?sentinel_password=…` (and `&sentinel_user=…`) if the Sentinels have a password of their own
    ///
    /// `rediss` in place of `redis` means TLS.
    Url(SecretString),
    /// A `rediss` URL, with certificate authorities that replace the system's.
    Tls {
        /// The URL, as in [`Self::Url`].
        url: SecretString,
        /// The certificates of the only authorities to trust, as PEM.
        trusted: String,
    },
    /// Host, port and password, as in the configuration of older deployments.
    Host {
        /// Host name or IP address.
        host: String,
        /// TCP port.
        port: u16,
        /// Password of Redis' default user.
        password: Option<SecretString>,
    },
}

impl RedisSettings {
    /// Checks the settings without connecting.
    ///
    /// # Errors
    /// A sentence that says which part of the URL is wrong, or that the certificates cannot be used. It
    /// repeats no part of the URL, because the URL may hold a password.
    pub fn check(&self) -> anyhow::Result<()> {
        self.topology().map(drop)
    }

    pub(super) fn topology(&self) -> anyhow::Result<Topology> {
        match self {
            Self::Url(url) => Topology::read(url.expose_secret(), None).context(URL_FORMS),
            Self::Tls { url, trusted } => {
                let url = url.expose_secret();
                ensure!(
                    url.starts_with("rediss"),
                    "redis_ca_file is set, but REDIS_URL does not begin with rediss: nothing would \
                     be encrypted"
                );
                let trusted =
                    TlsCertificates { client_tls: None, root_cert: Some(trusted.clone().into()) };
                open("rediss://localhost".into_connection_info()?, Some(&trusted))
                    .context("a certificate in the file that redis_ca_file names cannot be used")?;
                Topology::read(url, Some(&trusted)).context(URL_FORMS)
            }
            Self::Host { host, port, password } => {
                let password = password.as_ref().map(ExposeSecret::expose_secret);
                let address = ConnectionAddr::Tcp(host.clone(), *port).into_connection_info()?;
                let address = address.set_redis_settings(login(None, password));
                Ok(Topology::Single(Client::open(address)?))
            }
        }
    }
}

/// The valid forms of a URL, for error messages.
const URL_FORMS: &str = "REDIS_URL must look like redis://host:6379, redis+cluster://host:6379,host:6379 \
                     or redis+sentinel://host:26379,host:26379/master";

/// The clients for a set-up of Redis.
#[derive(Debug)]
pub enum Topology {
    Single(Client),
    Cluster {
        client: Box<ClusterClient>,
        /// The nodes that the URL names. A subscriber of any node receives the messages of all nodes.
        nodes: Vec<Client>,
    },
    Sentinel {
        sentinels: Vec<Client>,
        /// The name by which the Sentinels know the master.
        master: String,
        /// The login for the master.
        login: RedisConnectionInfo,
        /// The certificates to trust in place of the system's.
        trusted: Option<TlsCertificates>,
    },
}

impl Topology {
    /// Reads a URL. The library's error messages are dropped, because they may repeat the URL with its
    /// password.
    fn read(url: &str, trusted: Option<&TlsCertificates>) -> anyhow::Result<Self> {
        let Some((scheme, rest)) = url.split_once("://") else { bail!("it has no scheme") };
        ensure!(
            !url.contains('#'),
            "it has a #, which a password writes as %23; there is no #insecure: certificates are \
             always checked"
        );
        let Some((scheme @ ("redis" | "rediss"), kind @ ("cluster" | "sentinel"))) =
            scheme.split_once('+')
        else {
            return Self::single(url, trusted);
        };
        // The library expects one URL per host.
        let (authority, tail) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
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
        if kind == "cluster" { Self::cluster(urls, trusted) } else { Self::sentinel(urls, trusted) }
    }

    /// A single server. `?db=` overrides the database in the path, as in Python's client.
    fn single(url: &str, trusted: Option<&TlsCertificates>) -> anyhow::Result<Self> {
        let server = url.into_connection_info().ok().context("it cannot be read")?;
        let is_socket = matches!(server.addr(), ConnectionAddr::Unix(_));
        let mut db = server.redis_settings().db();
        let url = redis::parse_redis_url(url).context("it cannot be read")?;
        for (name, value) in url.query_pairs() {
            match &*name {
                "db" => db = value.parse().ok().context("its database is not a number")?,
                "protocol" => {}
                "user" | "pass" if is_socket => {}
                _ => bail!("it has a parameter that is not known; known are db and protocol"),
            }
        }
        let login = server.redis_settings().clone().set_db(db);
        let client = open(server.set_redis_settings(login), trusted);
        Ok(Self::Single(client.ok().context("it cannot be used")?))
    }

    fn cluster(nodes: Vec<Url>, trusted: Option<&TlsCertificates>) -> anyhow::Result<Self> {
        let has_parameters = nodes.iter().any(|node| node.query().is_some());
        ensure!(!has_parameters, "no parameter may follow its hosts");
        let nodes = nodes.into_iter().map(server).collect::<anyhow::Result<Vec<_>>>()?;
        let has_database = nodes.iter().any(|node| node.redis_settings().db() != 0);
        ensure!(!has_database, "a Cluster has no numbered databases");
        let client = ClusterClient::builder(nodes.clone());
        let client = trusted.cloned().into_iter().fold(client, ClusterClientBuilder::certs);
        let client = client
            .connection_timeout(NODE_CONNECT_TIMEOUT)
            .response_timeout(ANSWER_TIMEOUT)
            // While a node does not answer, the library looks for another one again and again, and all
            // calls wait meanwhile, for up to `NODE_CONNECT_TIMEOUT` each time. `link` limits their time.
            .overall_response_timeout(None)
            // Enough to follow a slot that has moved to another node.
            .retries(3)
            .min_retry_wait(10)
            .max_retry_wait(100)
            .build();
        let client = Box::new(client.ok().context("it cannot be used")?);
        let nodes = nodes.into_iter().map(|node| open(node, trusted));
        Ok(Self::Cluster { client, nodes: nodes.collect::<RedisResult<_>>()? })
    }

    /// Servers monitored by Sentinels. Before the hosts, the URL has the login for the servers; after the
    /// hosts, the master's name, optionally a database, and optionally the login for the Sentinels.
    fn sentinel(hosts: Vec<Url>, trusted: Option<&TlsCertificates>) -> anyhow::Result<Self> {
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
        let theirs = login(user.as_deref(), password.as_deref());
        let (mut sentinels, mut login) = (Vec::new(), RedisConnectionInfo::default());
        for mut url in hosts {
            url.set_path("");
            url.set_query(None);
            if url.port().is_none() {
                let _has_a_host = url.set_port(Some(SENTINEL_PORT));
            }
            let sentinel = server(url)?;
            login = sentinel.redis_settings().clone().set_db(db);
            sentinels.push(open(sentinel.set_redis_settings(theirs.clone()), trusted)?);
        }
        Ok(Self::Sentinel { sentinels, master, login, trusted: trusted.cloned() })
    }

    /// Whether both lead to the same data: they may differ only in the login and the trusted certificates.
    pub fn leads_to_same_data_as(&self, other: &Self) -> bool {
        fn addresses(clients: &[Client]) -> Vec<&ConnectionAddr> {
            clients.iter().map(|client| client.get_connection_info().addr()).collect()
        }
        match (self, other) {
            (Self::Single(one), Self::Single(two)) => {
                let [one, two] = [one, two].map(Client::get_connection_info);
                one.addr() == two.addr() && one.redis_settings().db() == two.redis_settings().db()
            }
            (Self::Cluster { nodes: one, .. }, Self::Cluster { nodes: two, .. }) => {
                addresses(one) == addresses(two)
            }
            (
                Self::Sentinel { sentinels: one, master, login, .. },
                Self::Sentinel { sentinels: two, master: to, login: new, .. },
            ) => addresses(one) == addresses(two) && master == to && login.db() == new.db(),
            _ => false,
        }
    }

    /// Connects to the server or the Cluster, with the time limits of this module.
    pub async fn connect(&self) -> RedisResult<Connection> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(ANSWER_TIMEOUT))
            .set_response_timeout(Some(ANSWER_TIMEOUT));
        let client = match self {
            Self::Single(client) => client.clone(),
            Self::Cluster { client, .. } => {
                return client.get_async_connection().await.map(Connection::Cluster);
            }
            Self::Sentinel { sentinels, master, login, trusted } => {
                find_master(sentinels, master, login, trusted.as_ref()).await?
            }
        };
        client.get_multiplexed_async_connection_with_config(&config).await.map(Connection::Single)
    }

    /// A connection for subscriptions to one node of a Cluster, by its address; `None` for the server
    /// that has all keys.
    pub async fn listen_on(&self, node: Node) -> RedisResult<PubSub> {
        match (self, node) {
            (Self::Cluster { nodes, .. }, Some((host, port))) => {
                let Some(known) = nodes.first() else { return self.listen().await };
                let known = known.get_connection_info();
                let address = match known.addr() {
                    ConnectionAddr::TcpTls { insecure, tls_params, .. } => ConnectionAddr::TcpTls {
                        host,
                        port,
                        insecure: *insecure,
                        tls_params: tls_params.clone(),
                    },
                    _ => ConnectionAddr::Tcp(host, port),
                };
                Client::open(known.clone().set_addr(address))?.get_async_pubsub().await
            }
            _ => self.listen().await,
        }
    }

    /// A connection for subscriptions.
    pub async fn listen(&self) -> RedisResult<PubSub> {
        match self {
            Self::Single(client) => client.get_async_pubsub().await,
            Self::Cluster { nodes, .. } => {
                let connecting = nodes.iter().map(|node| {
                    let node = node.clone();
                    async move { node.get_async_pubsub().await }.boxed()
                });
                Ok(select_ok(connecting).await?.0)
            }
            Self::Sentinel { sentinels, master, login, trusted } => {
                find_master(sentinels, master, login, trusted.as_ref())
                    .await?
                    .get_async_pubsub()
                    .await
            }
        }
    }
}

/// Finds the master by asking all Sentinels concurrently. The library would ask them in order and wait
/// for the first, which may be down together with the master. The answer is not cached.
async fn find_master(
    sentinels: &[Client],
    master: &str,
    login: &RedisConnectionInfo,
    trusted: Option<&TlsCertificates>,
) -> RedisResult<Client> {
    let asked = sentinels.iter().map(|sentinel| {
        async move { sentinel_client(sentinel, master, login, trusted)?.async_get_client().await }.boxed()
    });
    Ok(select_ok(asked).await?.0)
}

/// A client that finds the master through one Sentinel.
fn sentinel_client(
    sentinel: &Client,
    master: &str,
    login: &RedisConnectionInfo,
    trusted: Option<&TlsCertificates>,
) -> RedisResult<SentinelClient> {
    type Asking = SentinelClientBuilder;
    let sentinel = sentinel.get_connection_info();
    let (address, own) = (sentinel.addr().clone(), sentinel.redis_settings());
    let tls = matches!(address, ConnectionAddr::TcpTls { .. }).then_some(TlsMode::Secure);
    let asking = Asking::new([address], master, SentinelServerType::Master)?;
    let asking = own.username().into_iter().fold(asking, Asking::set_client_to_sentinel_username);
    let asking = own.password().into_iter().fold(asking, Asking::set_client_to_sentinel_password);
    let asking = login.username().into_iter().fold(asking, Asking::set_client_to_redis_username);
    let asking = login.password().into_iter().fold(asking, Asking::set_client_to_redis_password);
    let asking = tls.into_iter().fold(asking, Asking::set_client_to_redis_tls_mode);
    let trusted = trusted.cloned().into_iter();
    let asking = trusted.fold(asking, Asking::set_client_to_redis_certificates);
    asking.set_client_to_redis_db(login.db()).build()
}

/// A client of one server. With TLS, the server's certificate is checked against `trusted`, or against
/// the system's authorities.
fn open(server: ConnectionInfo, trusted: Option<&TlsCertificates>) -> RedisResult<Client> {
    match trusted {
        Some(trusted) => Client::build_with_tls(server, trusted.clone()),
        None => Client::open(server),
    }
}

fn server(url: Url) -> anyhow::Result<ConnectionInfo> {
    url.into_connection_info().ok().context("it cannot be read")
}

fn login(user: Option<&str>, password: Option<&str>) -> RedisConnectionInfo {
    let login = RedisConnectionInfo::default();
    let login = user.into_iter().fold(login, RedisConnectionInfo::set_username);
    password.into_iter().fold(login, RedisConnectionInfo::set_password)
}

/// A connection to any set-up of Redis. Clones share the connection.
#[derive(Clone)]
pub enum Connection {
    /// A connection to one server, which has all keys.
    Single(MultiplexedConnection),
    /// Connections to the nodes of a Cluster, each of which has some of the keys.
    Cluster(ClusterConnection),
}

/// The address of one master of a Cluster; `None` for a single server.
pub type Node = Option<(String, u16)>;

impl Connection {
    /// The answer to `INFO server` of one server.
    pub async fn server_info(&mut self) -> RedisResult<String> {
        let mut asking = cmd("INFO");
        asking.arg("server");
        match self {
            Self::Single(connection) => asking.query_async(connection).await,
            Self::Cluster(connection) => {
                let any = Some(ResponsePolicy::OneSucceeded);
                let to = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, any));
                let answer = connection.route_command(asking, to).await?;
                Ok(from_redis_value(answer)?)
            }
        }
    }

    /// Pings one server; on a Cluster, any master.
    pub async fn ping(&mut self) -> RedisResult<()> {
        match self {
            Self::Single(connection) => connection.ping().await,
            // By default the library would require the answer of every master.
            Self::Cluster(connection) => {
                let any = Some(ResponsePolicy::OneSucceeded);
                let to = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, any));
                connection.route_command(cmd("PING"), to).await.map(drop)
            }
        }
    }

    /// Runs a command on the server, or on this node of a Cluster.
    pub async fn on_node(self, node: Node, words: Cmd) -> RedisResult<Value> {
        match (self, node) {
            (Self::Cluster(mut cluster), Some((host, port))) => {
                let to = SingleNodeRoutingInfo::ByAddress { host, port };
                cluster.route_command(words, RoutingInfo::SingleNode(to)).await
            }
            (mut single, _) => words.query_async(&mut single).await,
        }
    }

    /// Runs a command on the server or on every master of a Cluster.
    pub async fn on_every_master(self, words: Cmd) -> RedisResult<Vec<(Node, Value)>> {
        let mut cluster = match self {
            Self::Single(mut single) => {
                return Ok(vec![(None, words.query_async(&mut single).await?)]);
            }
            Self::Cluster(cluster) => cluster,
        };
        let to = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
        let Value::Map(nodes) = cluster.route_command(words, to).await? else {
            return Ok(Vec::new());
        };
        let addressed = nodes.into_iter().map(|(node, answer)| {
            let node: String = from_redis_value(node)?;
            let address = node
                .rsplit_once(':')
                .and_then(|(host, port)| Some((host.to_owned(), port.parse::<u16>().ok()?)));
            Ok((address, answer))
        });
        addressed.collect()
    }

    /// Runs a command on every node and returns the answers.
    pub async fn on_every_node(self, command: Cmd) -> RedisResult<Vec<Value>> {
        match self {
            Self::Single(mut connection) => Ok(vec![command.query_async(&mut connection).await?]),
            Self::Cluster(mut connection) => {
                let to = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllNodes, None));
                Ok(match connection.route_command(command, to).await? {
                    Value::Map(nodes) => nodes.into_iter().map(|(_node, answer)| answer).collect(),
                    answer => vec![answer],
                })
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
    fn other_authorities_may_be_trusted_however_redis_is_set_up() {
        let key = rcgen::KeyPair::generate().unwrap();
        let authority =
            rcgen::CertificateParams::new(Vec::new()).unwrap().self_signed(&key).unwrap();
        let read = |url: &str| {
            RedisSettings::Tls { url: url.into(), trusted: authority.pem() }.topology().unwrap()
        };
        let is_checked = |server: &Client| {
            let address = server.get_connection_info().addr();
            let ConnectionAddr::TcpTls { insecure, tls_params, .. } = address else { panic!() };
            !insecure && format!("{tls_params:?}").contains("(1 roots)")
        };
        let Topology::Single(client) = read("rediss://h") else { panic!() };
        assert!(is_checked(&client));
        let Topology::Cluster { client, nodes } = read("rediss+cluster://a,b") else { panic!() };
        assert!(nodes.iter().all(is_checked));
        let client = format!("{client:?}");
        assert!(client.contains("Secure") && client.contains("(1 roots)"), "{client}");
        let Topology::Sentinel { sentinels, master, login, trusted } =
            read("rediss+sentinel://a/m")
        else {
            panic!()
        };
        assert!(sentinels.iter().all(is_checked));
        assert!(sentinel_client(&sentinels[0], &master, &login, trusted.as_ref()).is_ok());
    }

    #[test]
    fn only_the_login_and_the_authorities_may_differ() {
        let is_same = |one, two| read(one).unwrap().leads_to_same_data_as(&read(two).unwrap());
        for (one, two) in [
            ("redis://h", "redis://u:p@h:6379/0"),
            ("redis+cluster://a,b", "redis+cluster://u:p@a,b"),
            ("redis+sentinel://a/m", "redis+sentinel://u:p@a/m?sentinel_password=q"),
        ] {
            assert!(is_same(one, two), "{one} {two}");
        }
        for (one, two) in [
            ("redis://h", "redis://i"),
            ("redis://h", "redis://h:1"),
            ("redis://h", "redis://h/1"),
            ("redis://h", "rediss://h"),
            ("redis://h", "redis+cluster://h"),
            ("redis+cluster://a,b", "redis+cluster://a,c"),
            ("redis+sentinel://a/m", "redis+sentinel://b/m"),
            ("redis+sentinel://a/m", "redis+sentinel://a/n"),
            ("redis+sentinel://a/m", "redis+sentinel://a/m/1"),
        ] {
            assert!(!is_same(one, two), "{one} {two}");
        }
    }

    #[test]
    fn sentinels_have_their_own_login() {
        let url = "redis+sentinel://u:p@a,b:1/main/3?sentinel_password=q%26&sentinel_user=s";
        let Topology::Sentinel { sentinels, master, login, .. } = read(url).unwrap() else {
            panic!()
        };
        let sentinels: Vec<_> = sentinels.iter().map(Client::get_connection_info).collect();
        assert_eq!(master, "main");
        let addresses = sentinels.iter().map(|sentinel| sentinel.addr().to_string());
        assert_eq!(addresses.collect::<Vec<_>>(), ["a:26379", "b:1"]);
        for sentinel in &sentinels {
            let login = sentinel.redis_settings();
            assert_eq!((login.username(), login.password()), (Some("s"), Some("q&")));
            assert_eq!(login.db(), 0);
        }
        assert_eq!((login.username(), login.password(), login.db()), (Some("u"), Some("p"), 3));
    }

    #[test]
    fn errors_do_not_repeat_the_url() {
        for (url, problem) in [
            ("canary", "has no scheme"),
            ("redis+canary://h", "cannot be read"),
            ("http+cluster://:canary@h", "cannot be read"),
            ("redis+cluster://:canary@", "names no host"),
            ("redis+cluster://:canary@h,,i", "names no host"),
            ("redis+cluster://:canary@h:port", "a host in it"),
            ("redis+cluster://:canary@h,i/1", "no numbered databases"),
            ("redis+cluster://:canary@h?db=0", "no parameter"),
            ("redis://:canary@h?db=one", "not a number"),
            ("redis://:canary@h?socket_timeout=5", "not known"),
            ("redis://h?password=canary", "not known"),
            ("redis+sentinel://:canary@h", "names no master"),
            ("redis+sentinel://:canary@h/", "names no master"),
            ("redis+sentinel://:canary@h/main/one", "not a number"),
            ("redis+sentinel://:canary@h/main/1/2", "goes on"),
            ("redis+sentinel://h/main?password=canary", "may follow the ?"),
            ("rediss://:canary@h/#insecure", "always checked"),
            ("rediss+cluster://:canary@h#insecure", "always checked"),
            ("redis://:canary#@h", "always checked"),
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
