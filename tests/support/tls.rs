//! TLS of one's own: an authority, the certificates that it makes, a Postgres that proves itself
//! with one and asks for passwords, and a Redis with TLS beside the plain port.

use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use sqlx::{AssertSqlSafe, Connection as _, PgConnection};
use tempfile::TempDir;

use crate::{PrivatePostgres, PrivateRedis, free_port};
use crate::{eventually, unique};

/// The service's rights in Redis: those of docs/OPERATIONS.md, and none for a Cluster or Sentinels.
pub const RIGHTS: &str = "~hitl:* ~{* &hitl:channel:* &hitl:decision:* &hitl:outcomes \
                          &__keyspace@*__:hitl:request:* &__keyspace@*__:hitl:session:* +get +set \
                          +pttl +time +eval +publish +pubsub|numsub +subscribe +psubscribe +info +ping \
                          +scan +strlen +config|get";
/// What the servers of these tests are called, to those who trust their certificates.
pub const HOST: &str = "127.0.0.1";

/// An authority that nobody trusts unless told to.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

/// A server's certificate and its key, in PEM.
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

impl Identity {
    /// The files of the certificate and of the key.
    pub fn files(&self, folder: &TempDir) -> [String; 2] {
        [("crt", &self.certificate), ("key", &self.key)].map(|(name, text)| {
            let file = folder.path().join(name);
            std::fs::write(&file, text).unwrap();
            file.to_str().unwrap().to_owned()
        })
    }
}

impl Authority {
    pub fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, unique("authority"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// The certificate of a server of this name, valid until the end of a year.
    pub fn certify(&self, host: &str, until: i32) -> Identity {
        let mut params = CertificateParams::new([host.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2000, 1, 1);
        params.not_after = date_time_ymd(until, 12, 31);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Identity { certificate, key: key.serialize_pem() }
    }

    pub fn identity(&self) -> Identity {
        self.certify(HOST, 4000)
    }

    /// What those who trust it are given.
    pub fn file(&self, folder: &TempDir) -> PathBuf {
        let file = folder.path().join(unique("authority"));
        std::fs::write(&file, &self.pem).unwrap();
        file
    }
}

impl PrivatePostgres {
    /// A statement of the superuser's.
    pub async fn sql(&self, statement: impl Into<String>) {
        let mut superuser = PgConnection::connect(&self.url()).await.unwrap();
        let statement: String = statement.into();
        sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut superuser).await.unwrap();
    }

    /// From now on it has this certificate, and whoever is not the superuser needs TLS and a password.
    pub async fn prove(&self, identity: &Identity) {
        let name = unique("server");
        let owner = std::fs::metadata(self.folder()).unwrap();
        for (file, text) in [
            (format!("{name}.crt"), &*identity.certificate),
            (format!("{name}.key"), &*identity.key),
            (
                "pg_hba.conf".to_owned(),
                "host all postgres all trust\nhostssl all all all scram-sha-256\n",
            ),
        ] {
            let file = self.folder().join(file);
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
            std::os::unix::fs::chown(&file, Some(owner.uid()), Some(owner.gid())).unwrap();
        }
        self.sql(format!("ALTER SYSTEM SET ssl_cert_file = '{name}.crt'")).await;
        self.sql(format!("ALTER SYSTEM SET ssl_key_file = '{name}.key'")).await;
        self.sql("ALTER SYSTEM SET ssl = on").await;
        self.sql("SELECT pg_reload_conf()").await;
        eventually(async || {
            let mut superuser = PgConnection::connect(&self.url()).await.unwrap();
            let file: String =
                sqlx::query_scalar("SHOW ssl_cert_file").fetch_one(&mut superuser).await.unwrap();
            file.starts_with(&name).then_some(())
        })
        .await;
    }

    /// From now on whoever is not the superuser needs a password.
    pub async fn ask_for_passwords(&self) {
        let rules = "host all postgres all trust\nhost all all all scram-sha-256\n";
        std::fs::write(self.folder().join("pg_hba.conf"), rules).unwrap();
        self.sql("SELECT pg_reload_conf()").await;
        eventually(async || {
            let nobody = self.url().replacen("postgres@", "nobody:canary@", 1);
            let refused = PgConnection::connect(&nobody).await.unwrap_err().to_string();
            refused.contains("password").then_some(())
        })
        .await;
    }

    /// Makes a user of this password and a database that belongs to it.
    pub async fn welcome(&self, user: &str, password: &str) {
        self.sql(format!("CREATE ROLE {user} LOGIN PASSWORD '{password}'")).await;
        self.sql(format!("CREATE DATABASE hitl OWNER {user}")).await;
    }

    /// Where the service is to find it, and whom to trust.
    pub fn strict_url(&self, login: &str, authority: &Path) -> String {
        let (port, authority) = (self.port(), authority.display());
        format!("postgres://{login}@{HOST}:{port}/hitl?sslmode=verify-full&sslrootcert={authority}")
    }
}

/// A Redis with TLS on a port of its own, beside the one of the test.
pub struct StrictRedis {
    pub plain: PrivateRedis,
    pub port: u16,
    _folder: TempDir,
}

impl StrictRedis {
    /// With a user `service` of this password and these rights.
    pub async fn start(identity: &Identity, password: &str, rights: &str) -> Self {
        Self::start_with(identity, password, rights, &[]).await
    }

    /// The same with further arguments of `redis-server`.
    pub async fn start_with(
        identity: &Identity,
        password: &str,
        rights: &str,
        more: &[&str],
    ) -> Self {
        let (folder, port) = (TempDir::new().unwrap(), free_port());
        let [certificate, key] = identity.files(&folder);
        let (own, password) = (port.to_string(), format!(">{password}"));
        let tls = ["--tls-port", &own, "--tls-auth-clients", "no"];
        let files = ["--tls-cert-file", &certificate, "--tls-key-file", &key];
        let user = ["--user", "service", "on", &password];
        let rights: Vec<_> = rights.split_whitespace().collect();
        let arguments = [&tls[..], &files, &user, &rights, more].concat();
        Self { plain: PrivateRedis::start_with(&arguments).await, port, _folder: folder }
    }

    pub fn url(&self, login: &str) -> String {
        format!("rediss://{login}@{HOST}:{}", self.port)
    }
}
