//! Settings: `config/default.toml`, overridden by a file, overridden by the environment. All are checked
//! before anything starts. An invalid setting is refused with one sentence that says what to change.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::num::NonZeroU32;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use url::Url;

use self::mistakes::{Places, broken_file, choice, misspelt_variables, wrong_setting};
use self::names::{PLAIN_NAMES, PREFIX, SECRETS};
use self::notices::{RawContact, RawNotices};
use crate::audit::retention::{Retention, days};
use crate::courier::{RedisSettings, ScanSettings};
use crate::domain::rate::RateLimit;
use crate::domain::rules::{Approvers, Policy, UnscopedRequests};
use crate::identity::revocations::Revocations;
use crate::identity::{ClaimValue, JwtConfig};
use crate::ledger::Pooler;
use crate::limits::MAX_TASK_BYTES;
use crate::limits::quotas::QuotaLimits;
use crate::notices::NoticeSettings;
use crate::policy::Policy as PolicyFile;

mod mistakes;
mod names;
mod notices;

/// The default settings.
pub const DEFAULTS: &str = include_str!("../../config/default.toml");
/// Shortest JWT secret, in bytes: HS256's own output size, as RFC 7518 § 3.2 demands.
pub const MIN_SECRET_BYTES: usize = 32;
/// Largest `jwt_leeway_seconds`.
const MAX_LEEWAY_SECONDS: u64 = 30;
/// Largest `jwt_max_lifetime_seconds`: ten years.
const MAX_LIFETIME_SECONDS: u64 = 10 * 366 * 24 * 3600;
/// Largest `shutdown_seconds`: the process must exit within 10 s of SIGTERM.
const MAX_SHUTDOWN_SECONDS: u64 = 7;
/// Largest `rate_limit_per_second`: Redis measures the time per call in whole microseconds.
const MAX_RATE: u32 = 100_000;
/// Largest `rate_limit_burst`: at one call per second it drains within two weeks.
const MAX_BURST: u32 = 1_000_000;
/// Largest number of concurrent calls, connections and waits.
const MAX_CONCURRENCY: usize = 100_000;

/// Largest limit of pending requests: they are counted one by one.
const MAX_PENDING: u32 = 1_000_000;
/// Longest `inbox_token_key`, in characters.
const MAX_TOKEN_KEY_CHARS: usize = 128;
/// Largest `max_bytes_per_tenant_hour`: 1 TiB.
const MAX_BYTES_PER_HOUR: u64 = 1 << 40;

/// The connection parameters of libpq that the driver supports:
/// <https://www.postgresql.org/docs/current/libpq-connect.html#LIBPQ-PARAMKEYWORDS>.
const POSTGRES_PARAMETERS: [&str; 12] = [
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];
/// Settings that are comma-separated lists in the environment.
const LIST_SETTINGS: [&str; 2] = ["cors_origins", "inbox_frame_ancestors"];

/// Checked settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Address to listen on.
    pub host: String,
    /// TCP port; 0 lets the system choose.
    pub port: u16,
    /// The separate address of `/metrics`; `None` if it is served with the API.
    pub metrics_address: Option<SocketAddr>,
    /// The folder for the embedded mode's database and secret.
    pub data_dir: PathBuf,
    /// The database that records the decisions.
    pub ledger: LedgerConfig,
    /// The agents' Redis; `None` means the in-process courier.
    pub redis: Option<RedisSettings>,
    /// How requests in Redis are watched; `None` if they are not.
    pub intake: Option<ScanSettings>,
    /// Whether to run migrations at start.
    pub auto_migrate: bool,
    /// How tokens are checked.
    pub jwt: JwtConfig,
    /// Who may decide.
    pub policy: Policy,
    /// The policy file. With one, `policy.approvers` says nothing.
    pub policy_file: Option<Arc<PolicyFile>>,
    /// The rate limit of one person; `None` means no limit.
    pub rate_limit: Option<RateLimit>,
    /// Most concurrent calls; further calls are refused.
    pub max_calls_under_way: usize,
    /// Most open connections of clients; further clients wait until a connection closes.
    pub max_connections: usize,
    /// Most concurrent long-polls and streams of one person.
    pub max_waits_per_person: usize,
    /// Most concurrent long-polls and streams of one tenant.
    pub max_waits_per_tenant: usize,
    /// The quotas for registrations and tasks.
    pub quotas: QuotaLimits,
    /// The Auth server whose audit log gets an entry for every registration and decision.
    pub audit_url: Option<Url>,
    /// How long closed requests and final tasks are kept.
    pub retention: Retention,
    /// Origins that browsers may call from.
    pub cors_origins: Vec<String>,
    /// Origins that may frame the inbox page.
    pub inbox_frame_ancestors: Vec<String>,
    /// Where the platform's frontend keeps its token in the browser's `localStorage`; empty: nowhere.
    pub inbox_token_key: String,
    /// Who is told of requests, by which channels.
    pub notices: NoticeSettings,
    /// Seconds that running calls get to finish after SIGTERM.
    pub shutdown_seconds: u64,
    /// Probable mistakes, one sentence each, to be logged.
    pub warnings: Vec<String>,
    given: Given,
}

/// The value of each key, to find what a reload changes. For a key that names a file, the file's content.
type Given = BTreeMap<String, SecretString>;

/// The database of the ledger.
#[derive(Clone, Debug)]
pub enum LedgerConfig {
    /// Postgres, shared by all replicas.
    Postgres {
        /// `postgres://…`
        url: SecretString,
        /// The connection pooler in front of Postgres, if any.
        pooler: Pooler,
        /// Most connections per process.
        max_connections: u32,
    },
    /// A SQLite file, used by this process alone.
    Sqlite {
        /// The database file.
        file: PathBuf,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawConfig {
    host: String,
    port: u16,
    metrics_address: Option<String>,
    data_dir: PathBuf,
    database_url: Option<SecretString>,
    database_pooler: String,
    database_max_connections: u32,
    redis_url: Option<SecretString>,
    redis_host: Option<String>,
    redis_port: Option<u16>,
    redis_password: Option<SecretString>,
    redis_ca_file: Option<PathBuf>,
    intake: bool,
    intake_scan_interval_ms: u64,
    intake_scan_count: usize,
    intake_keys_per_second: u32,
    auto_migrate: bool,
    jwt_secret: Option<SecretString>,
    jwt_secret_previous: Option<SecretString>,
    jwt_leeway_seconds: u64,
    jwt_audience: Option<String>,
    jwt_issuer: Option<String>,
    jwt_max_lifetime_seconds: u64,
    agent_claim: Option<String>,
    person_claim: Option<String>,
    revocations_file: Option<PathBuf>,
    approvers: String,
    policy_file: Option<PathBuf>,
    unscoped_requests: String,
    require_if_match: bool,
    rate_limit_per_second: u32,
    rate_limit_burst: u32,
    max_calls_under_way: usize,
    max_connections: usize,
    max_waits_per_person: usize,
    max_waits_per_tenant: usize,
    max_pending_per_person: u32,
    max_pending_per_tenant: u32,
    max_bytes_per_tenant_hour: u64,
    audit_url: Option<String>,
    purge_requests_after_days: u32,
    purge_tasks_after_days: u32,
    cors_origins: Vec<String>,
    inbox_frame_ancestors: Vec<String>,
    inbox_token_key: String,
    public_url: Option<String>,
    #[serde(default)]
    people: BTreeMap<String, RawContact>,
    #[serde(default)]
    groups_people: BTreeMap<String, RawContact>,
    #[serde(default)]
    notices: RawNotices,
    shutdown_seconds: u64,
    #[serde(skip)]
    given: Given,
    #[serde(skip)]
    places: Places,
}

impl Config {
    /// Reads and checks the settings.
    ///
    /// # Errors
    /// A sentence that names the wrong setting and a valid value.
    pub fn load(file: Option<&Path>) -> anyhow::Result<Self> {
        let warnings = misspelt_variables();
        match RawConfig::load(file).and_then(Self::from_raw) {
            Ok(config) => Ok(Self { warnings, ..config }),
            Err(error) if warnings.is_empty() => Err(error),
            Err(error) => bail!("{error:#}; {}", warnings.join("; ")),
        }
    }

    /// Reads only the settings of tokens, and ignores errors in other settings' values.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_jwt(file: Option<&Path>) -> anyhow::Result<JwtConfig> {
        let mut raw = RawConfig::load(file)?;
        raw.check_token_lifetimes()?;
        raw.jwt(raw.redis_url.is_some() || raw.redis_host.is_some())
    }

    /// Reads only the address and the port of the service.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_address(file: Option<&Path>) -> anyhow::Result<(String, u16)> {
        let raw = RawConfig::load(file)?;
        Ok((raw.host, raw.port))
    }

    /// The default settings with this data folder and a free port. Reads neither a file nor the
    /// environment.
    ///
    /// # Errors
    /// When the folder or the JWT secret in it cannot be written.
    pub fn embedded_in(folder: &Path) -> anyhow::Result<Self> {
        let defaults = config::File::from_str(DEFAULTS, config::FileFormat::Toml);
        let settings = config::Config::builder().add_source(defaults).build()?;
        let mut raw: RawConfig = settings.try_deserialize()?;
        raw.data_dir = folder.to_path_buf();
        raw.port = 0;
        Self::from_raw(raw)
    }

    /// The keys whose values differ from those in `before`.
    #[must_use]
    pub fn changed_since<'a>(&'a self, before: &'a Self) -> Vec<&'a str> {
        let keys: BTreeSet<_> = self.given.keys().chain(before.given.keys()).collect();
        let value =
            |config: &'a Self, key: &str| config.given.get(key).map(ExposeSecret::expose_secret);
        let has_changed = |key: &&String| value(self, key) != value(before, key);
        keys.into_iter().filter(has_changed).map(String::as_str).collect()
    }

    fn from_raw(mut raw: RawConfig) -> anyhow::Result<Self> {
        raw.check_token_lifetimes()?;
        ensure!(
            (1..=MAX_SHUTDOWN_SECONDS).contains(&raw.shutdown_seconds),
            "shutdown_seconds is {}; it must be from 1 to {MAX_SHUTDOWN_SECONDS}",
            raw.shutdown_seconds
        );
        ensure!(
            (1..=1000).contains(&raw.database_max_connections),
            "database_max_connections is {}; it must be from 1 to 1000",
            raw.database_max_connections
        );
        for (name, value) in [
            ("max_calls_under_way", raw.max_calls_under_way),
            ("max_connections", raw.max_connections),
            ("max_waits_per_person", raw.max_waits_per_person),
            ("max_waits_per_tenant", raw.max_waits_per_tenant),
        ] {
            ensure!(
                (1..=MAX_CONCURRENCY).contains(&value),
                "{name} is {value}; it must be from 1 to {MAX_CONCURRENCY}"
            );
        }
        for (name, origins) in [
            ("cors_origins", &raw.cors_origins),
            ("inbox_frame_ancestors", &raw.inbox_frame_ancestors),
        ] {
            for origin in origins {
                ensure!(
                    is_origin(origin),
                    "{name} holds {origin:?}; an origin looks like https://app.example:8443"
                );
            }
        }
        ensure!(
            raw.inbox_token_key.chars().count() <= MAX_TOKEN_KEY_CHARS,
            "inbox_token_key has more than {MAX_TOKEN_KEY_CHARS} characters; it is a key like \
             dwp-access-token"
        );
        let metrics_address = raw.metrics_address()?;
        let retention = Retention {
            requests: days("purge_requests_after_days", raw.purge_requests_after_days)?,
            tasks: days("purge_tasks_after_days", raw.purge_tasks_after_days)?,
        };
        let quotas = raw.quotas()?;
        let rate_limit = raw.rate_limit()?;
        let audit_url = raw.audit_url.as_deref().map(audit_url).transpose()?;
        let redis = raw.redis()?;
        let intake = raw.intake()?;
        let ledger = raw.ledger()?;
        if matches!(ledger, LedgerConfig::Postgres { .. }) && redis.is_none() {
            bail!(
                "DATABASE_URL names Postgres but REDIS_URL is not set: replicas that share a \
                 database reach the agents only through the agents' Redis; set REDIS_URL (or \
                 REDIS_HOST), or unset DATABASE_URL for the embedded mode"
            );
        }
        let policy = raw.policy()?;
        let policy_file = raw.policy_file()?;
        let notices = notices::notices(
            raw.public_url.as_deref(),
            &raw.people,
            &raw.groups_people,
            &raw.notices,
            &mut raw.given,
        )?;
        let jwt = raw.jwt(redis.is_some())?;
        raw.check_ledger_is_named(redis.is_some())?;
        if let Some(RedisSettings::Tls { trusted, .. }) = &redis {
            raw.given.insert("redis_ca_file".to_owned(), SecretString::from(trusted.as_str()));
        }
        Ok(Self {
            host: raw.host,
            port: raw.port,
            metrics_address,
            data_dir: raw.data_dir,
            ledger,
            redis,
            intake,
            auto_migrate: raw.auto_migrate,
            jwt,
            policy,
            policy_file,
            rate_limit,
            max_calls_under_way: raw.max_calls_under_way,
            max_connections: raw.max_connections,
            max_waits_per_person: raw.max_waits_per_person,
            max_waits_per_tenant: raw.max_waits_per_tenant,
            quotas,
            audit_url,
            retention,
            cors_origins: raw.cors_origins,
            inbox_frame_ancestors: raw.inbox_frame_ancestors,
            inbox_token_key: raw.inbox_token_key,
            notices,
            shutdown_seconds: raw.shutdown_seconds,
            warnings: Vec::new(),
            given: raw.given,
        })
    }
}

impl RawConfig {
    /// How requests in Redis are watched. The numbers are checked also if they are not used.
    fn intake(&self) -> anyhow::Result<Option<ScanSettings>> {
        let (millis, count) = (self.intake_scan_interval_ms, self.intake_scan_count);
        ensure!(
            (100..=60_000).contains(&millis),
            "intake_scan_interval_ms is {millis}; it must be from 100 to 60000"
        );
        ensure!(
            (10..=10_000).contains(&count),
            "intake_scan_count is {count}; it must be from 10 to 10000"
        );
        let keys_per_second = self.intake_keys_per_second;
        ensure!(
            (1000..=10_000_000).contains(&keys_per_second),
            "intake_keys_per_second is {keys_per_second}; it must be from 1000 to 10000000"
        );
        let interval = Duration::from_millis(millis);
        Ok(self.intake.then_some(ScanSettings { interval, count, keys_per_second }))
    }
}

/// The Auth server's address. It is logged, so it must not contain a user or a password.
fn audit_url(text: &str) -> anyhow::Result<Url> {
    let url = Url::parse(text).ok().filter(|url| {
        ["http", "https"].contains(&url.scheme())
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
    });
    url.context("audit_url is not an address like http://auth.internal:8001")
}

impl RawConfig {
    fn check_token_lifetimes(&self) -> anyhow::Result<()> {
        ensure!(
            self.jwt_leeway_seconds <= MAX_LEEWAY_SECONDS,
            "jwt_leeway_seconds is {}; it may be at most {MAX_LEEWAY_SECONDS}",
            self.jwt_leeway_seconds
        );
        ensure!(
            (1..=MAX_LIFETIME_SECONDS).contains(&self.jwt_max_lifetime_seconds),
            "jwt_max_lifetime_seconds is {}; it must be from 1 to {MAX_LIFETIME_SECONDS}",
            self.jwt_max_lifetime_seconds
        );
        Ok(())
    }

    fn jwt(&mut self, is_shared: bool) -> anyhow::Result<JwtConfig> {
        let secret = self.secret(is_shared)?;
        self.given.insert("jwt_secret".to_owned(), secret.clone());
        Ok(JwtConfig {
            secret,
            previous: self.previous_secret()?,
            leeway_seconds: self.jwt_leeway_seconds,
            audience: self.jwt_audience.clone(),
            issuer: self.jwt_issuer.clone(),
            max_lifetime_seconds: self.jwt_max_lifetime_seconds,
            agent_claim: ClaimValue::parse("agent_claim", self.agent_claim.clone())?,
            person_claim: ClaimValue::parse("person_claim", self.person_claim.clone())?,
            revocations: self.revocations()?,
        })
    }

    /// As [`choice`], with the key's source in the error.
    fn choice<T: Copy>(&self, key: &str, given: &str, of: &[(&str, T)]) -> anyhow::Result<T> {
        choice(key, given, self.places.get(key), of)
    }

    fn quotas(&self) -> anyhow::Result<QuotaLimits> {
        for (name, value) in [
            ("max_pending_per_person", self.max_pending_per_person),
            ("max_pending_per_tenant", self.max_pending_per_tenant),
        ] {
            ensure!(
                (1..=MAX_PENDING).contains(&value),
                "{name} is {value}; it must be from 1 to {MAX_PENDING}"
            );
        }
        let bytes = self.max_bytes_per_tenant_hour;
        ensure!(
            (MAX_TASK_BYTES as u64..=MAX_BYTES_PER_HOUR).contains(&bytes),
            "max_bytes_per_tenant_hour is {bytes}; it must be from {MAX_TASK_BYTES} to {MAX_BYTES_PER_HOUR}"
        );
        Ok(QuotaLimits {
            pending_per_person: self.max_pending_per_person,
            pending_per_tenant: self.max_pending_per_tenant,
            bytes_per_tenant_hour: bytes,
        })
    }

    fn load(file: Option<&Path>) -> anyhow::Result<Self> {
        let mut builder = config::Config::builder()
            .add_source(config::File::from_str(DEFAULTS, config::FileFormat::Toml));
        let mut places = Places::new();
        let named = std::env::var_os("AURA_HITL_CONFIG").map(PathBuf::from);
        if let Some(file) = file.map(Path::to_path_buf).or(named) {
            ensure!(file.exists(), "the configuration file {} does not exist", file.display());
            ensure!(file.is_file(), "the configuration file {} is not a file", file.display());
            let bytes =
                fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
            let text = String::from_utf8(bytes).ok().with_context(|| {
                format!("{} is not UTF-8 text; save it as UTF-8", file.display())
            })?;
            let table: config::Map<String, config::Value> = config::Config::builder()
                .add_source(config::File::from_str(&text, config::FileFormat::Toml))
                .build()
                .and_then(config::Config::try_deserialize)
                .map_err(|error| broken_file(&file, &error))?;
            for secret in ["jwt_secret", "jwt_secret_previous", "redis_password"] {
                ensure!(
                    !table.contains_key(secret),
                    "{} holds {secret}; secrets come from the environment ({}) or a file ({}_FILE)",
                    file.display(),
                    secret.to_uppercase(),
                    secret.to_uppercase()
                );
            }
            places.extend(table.into_keys().map(|key| (key, format!("in {}", file.display()))));
            builder = builder.add_source(config::File::from_str(&text, config::FileFormat::Toml));
        }
        for InEnvironment { variable, key: name, value } in settings_in_environment()? {
            places.insert(name.clone(), format!("from {variable}"));
            let value = if LIST_SETTINGS.contains(&name.as_str()) {
                config::Value::from(value.split(',').map(str::trim).collect::<Vec<_>>())
            } else {
                config::Value::from(value)
            };
            builder = builder
                .set_override(name.clone(), value)
                .with_context(|| format!("cannot use the variable for {name}"))?;
        }
        let settings = builder.build().context("the settings cannot be put together")?;
        let values: BTreeMap<String, config::Value> = settings.clone().try_deserialize()?;
        let mut raw: Self =
            settings.try_deserialize().map_err(|error| wrong_setting(&error, &places))?;
        let given = |(key, value): (_, config::Value)| (key, SecretString::from(value.to_string()));
        raw.places = places;
        raw.given = values.into_iter().map(given).collect();
        Ok(raw)
    }

    fn ledger(&self) -> anyhow::Result<LedgerConfig> {
        let poolers = [("none", Pooler::None), ("transaction", Pooler::Transaction)];
        let pooler = self.choice("database_pooler", &self.database_pooler, &poolers)?;
        let text = self.database_url.as_ref().map_or("", |url| url.expose_secret());
        ensure!(
            pooler == Pooler::None || !(text.is_empty() || text.starts_with("sqlite:")),
            "database_pooler is {:?}, but decisions are kept in a SQLite file; remove it, or set \
             DATABASE_URL=postgres://…",
            self.database_pooler
        );
        let Some(url) = &self.database_url else {
            return Ok(LedgerConfig::Sqlite { file: self.data_dir.join("aura-hitl.db") });
        };
        let text = url.expose_secret();
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            let max_connections = self.database_max_connections;
            check_postgres_parameters(text)?;
            return Ok(LedgerConfig::Postgres { url: url.clone(), pooler, max_connections });
        }
        let Some(file) = text.strip_prefix("sqlite:") else {
            bail!(
                "DATABASE_URL must begin with postgres:// or sqlite: (for example sqlite:data/aura-hitl.db)"
            )
        };
        let file = file.strip_prefix("//").unwrap_or(file);
        let (file, parameters) = file.split_once('?').unwrap_or((file, ""));
        ensure!(
            matches!(parameters, "" | "mode=rwc" | "mode=rw"),
            "DATABASE_URL has a parameter that does not fit a ledger; only mode=rwc may follow the ?"
        );
        ensure!(
            !file.is_empty() && file != ":memory:",
            "DATABASE_URL names no SQLite file; decisions must survive a restart"
        );
        Ok(LedgerConfig::Sqlite { file: PathBuf::from(file) })
    }

    fn policy(&self) -> anyhow::Result<Policy> {
        let approvers = [("tenant", Approvers::Tenant), ("requester", Approvers::Requester)];
        let unscoped = [("refuse", UnscopedRequests::Refuse), ("accept", UnscopedRequests::Accept)];
        Ok(Policy {
            approvers: self.choice("approvers", &self.approvers, &approvers)?,
            unscoped_requests: self.choice(
                "unscoped_requests",
                &self.unscoped_requests,
                &unscoped,
            )?,
            require_if_match: self.require_if_match,
        })
    }

    /// Reads and checks the policy file. Its text is kept in `given`, so that a reload notices a change of
    /// the file.
    fn policy_file(&mut self) -> anyhow::Result<Option<Arc<PolicyFile>>> {
        let Some(file) = &self.policy_file else { return Ok(None) };
        let context =
            || format!("cannot read the rules that policy_file names: {}", file.display());
        // Reading a pipe or a device might never end.
        let is_file = fs::metadata(file).with_context(context)?.is_file();
        ensure!(is_file, "policy_file {} is not a file", file.display());
        let text = fs::read_to_string(file).with_context(context)?;
        let policy = PolicyFile::read(&text)
            .map_err(|mistake| anyhow::anyhow!("policy_file {}: {mistake}", file.display()))?;
        self.given.insert("policy_file".to_owned(), SecretString::from(text));
        Ok(Some(Arc::new(policy)))
    }

    /// Requires `DATABASE_URL` if Redis is configured or the service can be reached from other machines.
    /// Otherwise a misspelt `DATABASE_URL` would make production keep its decisions in a local file.
    fn check_ledger_is_named(&self, has_redis: bool) -> anyhow::Result<()> {
        if self.database_url.is_some() || !has_redis && is_loopback(&self.host) {
            return Ok(());
        }
        ensure!(
            !self.host.contains("://") && !self.host.contains('/'),
            "HOST is {:?}; it must be an address or a name alone, like 127.0.0.1",
            self.host
        );
        let host = self.host.trim_start_matches('[').trim_end_matches(']');
        ensure!(
            (host, self.port).to_socket_addrs().is_ok(),
            "HOST is {:?}, which is not known here; it must be an address of this machine, like \
             127.0.0.1",
            self.host
        );
        let why = if has_redis {
            "Redis is configured".to_owned()
        } else {
            format!("HOST is {}", self.host)
        };
        bail!(
            "DATABASE_URL is not set, although {why}; set DATABASE_URL=postgres://…, or, to keep \
             decisions in a file of this one process, DATABASE_URL=sqlite:{}",
            self.data_dir.join("aura-hitl.db").display()
        )
    }

    fn redis(&self) -> anyhow::Result<Option<RedisSettings>> {
        let settings = match (&self.redis_url, &self.redis_host) {
            (Some(_), Some(_)) => bail!("REDIS_URL and REDIS_HOST are both set; set one of them"),
            (Some(url), None) => match &self.redis_ca_file {
                Some(file) => {
                    RedisSettings::Tls { url: url.clone(), trusted: certificates_in(file)? }
                }
                None => RedisSettings::Url(url.clone()),
            },
            (None, Some(host)) => RedisSettings::Host {
                host: host.clone(),
                port: self.redis_port.unwrap_or(6379),
                password: self.redis_password.clone(),
            },
            (None, None) => {
                ensure!(
                    self.redis_port.is_none() && self.redis_password.is_none(),
                    "REDIS_PORT or REDIS_PASSWORD is set without REDIS_HOST; set REDIS_HOST too"
                );
                ensure!(
                    self.redis_ca_file.is_none(),
                    "redis_ca_file is set without REDIS_URL; set REDIS_URL=rediss://… too"
                );
                return Ok(None);
            }
        };
        ensure!(
            self.redis_ca_file.is_none() || matches!(settings, RedisSettings::Tls { .. }),
            "redis_ca_file is set, but REDIS_HOST is reached without TLS; set REDIS_URL=rediss://… \
             in its place"
        );
        settings.check()?;
        Ok(Some(settings))
    }

    fn metrics_address(&self) -> anyhow::Result<Option<SocketAddr>> {
        let Some(text) = &self.metrics_address else { return Ok(None) };
        let address = text.parse().ok().with_context(|| {
            format!("metrics_address is {text:?}; it looks like 127.0.0.1:9464 or 0.0.0.0:9464")
        })?;
        Ok(Some(address))
    }

    fn rate_limit(&self) -> anyhow::Result<Option<RateLimit>> {
        ensure!(
            self.rate_limit_per_second <= MAX_RATE,
            "rate_limit_per_second is {}; it may be at most {MAX_RATE}, and 0 is no limit",
            self.rate_limit_per_second
        );
        let burst = NonZeroU32::new(self.rate_limit_burst).filter(|burst| burst.get() <= MAX_BURST);
        let Some(burst) = burst else {
            bail!("rate_limit_burst is {}; it must be from 1 to {MAX_BURST}", self.rate_limit_burst)
        };
        let per_second = NonZeroU32::new(self.rate_limit_per_second);
        Ok(per_second.map(|per_second| RateLimit { per_second, burst }))
    }

    /// The secret shared with the Auth server. Without Redis and `JWT_SECRET`, the embedded mode's own.
    fn secret(&self, is_shared: bool) -> anyhow::Result<SecretString> {
        let secret = match &self.jwt_secret {
            Some(secret) => secret.clone(),
            None if is_shared => bail!(
                "JWT_SECRET is not set: it is the secret shared with the Auth server, at least \
                 {MIN_SECRET_BYTES} bytes; set JWT_SECRET or JWT_SECRET_FILE"
            ),
            None => embedded_secret(&self.data_dir)?,
        };
        is_long_enough("JWT_SECRET", &secret)?;
        Ok(secret)
    }

    /// The previous secret. An empty file means none, because a variable cannot be unset while the service
    /// runs.
    fn previous_secret(&self) -> anyhow::Result<Option<SecretString>> {
        let secret = self.jwt_secret_previous.clone();
        let secret = secret.filter(|secret| !secret.expose_secret().is_empty());
        if let Some(secret) = &secret {
            is_long_enough("JWT_SECRET_PREVIOUS", secret)?;
        }
        Ok(secret)
    }
}

impl RawConfig {
    /// The list of revoked tokens. Records the file's text as the setting's value, so that a reload notices
    /// a change of the file.
    fn revocations(&mut self) -> anyhow::Result<Revocations> {
        let Some(file) = &self.revocations_file else { return Ok(Revocations::default()) };
        let text = fs::read_to_string(file).with_context(|| {
            format!("cannot read the list that revocations_file names: {}", file.display())
        })?;
        let revocations = Revocations::read(file, &text)?;
        self.given.insert("revocations_file".to_owned(), SecretString::from(text));
        Ok(revocations)
    }
}

fn is_long_enough(name: &str, secret: &SecretString) -> anyhow::Result<()> {
    let bytes = secret.expose_secret().len();
    ensure!(
        bytes >= MIN_SECRET_BYTES,
        "{name} has {bytes} bytes; it must have at least {MIN_SECRET_BYTES}"
    );
    Ok(())
}

/// The certificates in a file, as PEM. `RedisSettings::check` parses them.
fn certificates_in(file: &Path) -> anyhow::Result<String> {
    let text = fs::read_to_string(file).with_context(|| {
        format!("cannot read the certificates that redis_ca_file names: {}", file.display())
    })?;
    ensure!(
        text.contains("-----BEGIN CERTIFICATE-----"),
        "redis_ca_file names {}, which holds no certificate (in PEM)",
        file.display()
    );
    Ok(text)
}

/// Refuses unknown parameters. The driver would ignore them, so that a misspelt `sslmode` would mean a
/// connection without TLS, and would log them with any secret in them.
fn check_postgres_parameters(url: &str) -> anyhow::Result<()> {
    let url = url::Url::parse(url).ok().context(
        "DATABASE_URL cannot be read; it looks like postgres://user:password@host:5432/database",
    )?;
    let mut names = url.query_pairs().map(|(name, _value)| name);
    if let Some(name) = names.find(|name| !POSTGRES_PARAMETERS.contains(&&**name)) {
        bail!(
            "DATABASE_URL has a parameter {name:?}, which is not known; known are {}",
            POSTGRES_PARAMETERS.join(", ")
        );
    }
    Ok(())
}

/// Whether a text is an origin as browsers send it: scheme, host and optionally a port, nothing else.
fn is_origin(text: &str) -> bool {
    // Nothing that would end it in a header.
    let is_plain =
        text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".:-_[]/".contains(&byte));
    is_plain
        && text.parse::<actix_web::http::Uri>().is_ok_and(|uri| {
            matches!(uri.scheme_str(), Some("http" | "https"))
                && uri.host().is_some_and(|host| !host.is_empty())
                && !text.ends_with('/')
                && uri.path_and_query().is_none_or(|rest| rest.as_str() == "/")
        })
}

/// Whether only programs on this machine can reach the address.
fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || address.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

/// A setting from an environment variable.
struct InEnvironment {
    variable: String,
    key: String,
    value: String,
}

/// All settings from environment variables. A blank variable counts as absent.
///
/// # Errors
/// When a value is not UTF-8, a variable and its `…_FILE` are both set, or such a file cannot be read.
fn settings_in_environment() -> anyhow::Result<Vec<InEnvironment>> {
    let mut settings = Vec::new();
    // Variables whose names are not UTF-8 are not settings. Names with our prefix come last, so that
    // they override the plain names.
    let (ours, plain): (Vec<_>, Vec<_>) = std::env::vars_os()
        .filter_map(|(variable, value)| Some((variable.into_string().ok()?, value)))
        .partition(|(variable, _)| variable.starts_with(PREFIX));
    for (variable, value) in plain.into_iter().chain(ours) {
        let key = variable.strip_prefix(PREFIX).unwrap_or(&variable);
        let secret = key.strip_suffix("_FILE").filter(|key| SECRETS.contains(key));
        let is_ours = key != variable || secret.is_some() || PLAIN_NAMES.contains(&key);
        if !is_ours || variable == "AURA_HITL_CONFIG" {
            continue;
        }
        let Ok(value) = value.into_string() else { bail!("{variable} is not UTF-8 text") };
        // Kubernetes sets variables for the services of a namespace. For services named aura-hitl or
        // redis, they look like our settings:
        // https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
        let is_service_link =
            value.starts_with("tcp://") || key.starts_with("SERVICE_") || key.starts_with("PORT_");
        if value.trim().is_empty() || is_service_link {
            continue;
        }
        if let Some(secret) = secret {
            for name in [secret.to_owned(), format!("{PREFIX}{secret}")] {
                ensure!(
                    std::env::var_os(&name).is_none_or(|value| value.is_empty()),
                    "{name} and {variable} are both set; set one of them"
                );
            }
            let text = fs::read_to_string(&value)
                .with_context(|| format!("cannot read the file {value} that {variable} names"))?;
            let (key, value) = (secret.to_lowercase(), text.trim().to_owned());
            settings.push(InEnvironment { variable, key, value });
        } else {
            let key = key.to_lowercase();
            settings.push(InEnvironment { variable, key, value });
        }
    }
    Ok(settings)
}

/// Makes a data folder that only its owner may read. An existing folder is left as it is.
///
/// # Errors
/// When the folder cannot be made.
pub fn make_private_folder(folder: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("cannot make the data folder {}", folder.display()))
}

/// The embedded mode's JWT secret, in a file that is made on first use and that only its owner may read.
fn embedded_secret(data_dir: &Path) -> anyhow::Result<SecretString> {
    let file = data_dir.join("jwt_secret");
    let writing = || format!("cannot keep a JWT secret in {}", file.display());
    make_private_folder(data_dir)?;
    let made = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&file);
    match made {
        Ok(mut made) => {
            let secret =
                [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()].map(|id| id.simple().to_string());
            made.write_all(secret.concat().as_bytes()).with_context(writing)?;
            made.sync_all().with_context(writing)?;
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error).with_context(writing),
    }
    let secret = fs::read_to_string(&file).with_context(writing)?;
    Ok(SecretString::from(secret.trim().to_owned()))
}
