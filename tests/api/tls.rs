//! Postgres and Redis over TLS, with an authority and certificates made here: what is let in, and
//! what is refused and how that is said.

use std::num::NonZeroU32;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use aura_hitl::config::LedgerConfig;
use aura_hitl::courier::{RedisSettings, ScanSettings};
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::rate::RateLimit;
use aura_hitl::domain::record::Delivery;
use reqwest::Client;
use secrecy::SecretString;
use sqlx::{Connection as _, PgConnection};
use support::tls::{Authority, HOST, RIGHTS, StrictRedis};
use support::{
    ALICE, Answer, Asked, BOB, FAILOVER_TIMEOUT, Mode, PrivatePostgres, PrivateRedis, Program,
    Running, Server, TestApp, eventually, eventually_within, free_port, test_variable,
};
use tempfile::TempDir;

use crate::lifecycle::assert_refused;

pub const SECRET: &str = "canary-secret-0123456789abcdef0123456789abcdef";

/// The service, embedded but for its Redis.
fn program(folder: &TempDir, redis: &str) -> Program {
    Program::new(folder, &[])
        .with("DATABASE_URL", "sqlite:data/aura-hitl.db")
        .with("REDIS_URL", redis)
        .with("JWT_SECRET", SECRET)
}

async fn readiness(service: &Running) -> Answer {
    Answer::of(Client::new().get(format!("{}/health/ready", service.base)).send().await.unwrap())
        .await
}

/// Whether this is all that is said. A busy machine may take longer than the service waits.
pub fn is_late(reason: &str) -> bool {
    reason.contains("timed out") || reason.contains("no answer in time")
}

/// Every way to Redis: an agent there, and one that waits over HTTP and is woken through it.
async fn decides_and_wakes(app: &TestApp, redis: &PrivateRedis) {
    eventually(async || (app.get(ALICE, "/health/ready").await.status == 200).then_some(())).await;
    let [asked, registered] = [(); 2].map(|()| Asked::new());
    app.ask(&asked).await;
    app.approve(ALICE, &asked.id).await.assert(200, "");
    assert_eq!(app.settled(&asked.id).await.delivery, Delivery::Sent);
    assert!(app.signal(&asked.session).await.unwrap().contains(&asked.id));
    app.register(ALICE, &registered).await.assert(201, "");
    let path = format!(
        "/aura/hitl/signals/{}?requestId={}&waitSeconds=20",
        registered.session, registered.id
    );
    let (signal, ()) = tokio::join!(app.get(ALICE, &path), async {
        eventually(async || {
            // The hub's, and perhaps both of the intake.
            let patterns: i64 = redis.command(&["PUBSUB", "NUMPAT"]).await;
            (patterns % 2 == 1 && app.state.hub.waiters() == 1).then_some(())
        })
        .await;
        app.reject(ALICE, &registered.id, None).await.assert(200, "");
    });
    assert!(signal.data().as_str().unwrap().contains(&registered.id), "{}", signal.text);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_goes_over_tls_with_no_more_rights_than_are_needed() {
    let (folder, authority) = (TempDir::new().unwrap(), Authority::new());
    let trusted = authority.file(&folder);
    let postgres = PrivatePostgres::start().await;
    postgres.welcome("service", "p_word").await;
    postgres.prove(&authority.identity()).await;
    let mut redis = StrictRedis::start(&authority.identity(), "p@ss", RIGHTS).await;
    let app = TestApp::spawn_with(Mode::Embedded, Clock::System, |config| {
        let url = SecretString::from(postgres.strict_url("service:p_word", &trusted));
        config.ledger = LedgerConfig::Postgres {
            url,
            pooler: aura_hitl::ledger::Pooler::None,
            max_connections: 5,
        };
        let url = SecretString::from(redis.url("service:p%40ss"));
        config.redis = Some(RedisSettings::Tls { url, trusted: authority.pem.clone() });
        let [per_second, burst] = [20, 30].map(|number| NonZeroU32::new(number).unwrap());
        config.rate_limit = Some(RateLimit { per_second, burst });
        config.intake = Some(ScanSettings {
            interval: Duration::from_secs(1),
            count: 1000,
            keys_per_second: 50_000,
        });
    })
    .await;
    decides_and_wakes(&app, &redis.plain).await;

    // The limit that replicas share.
    let calls = (0..60).map(|_| app.get(BOB, "/main/agent/tasks"));
    let answers = futures_util::future::join_all(calls).await;
    assert!(answers.iter().any(|answer| answer.status == 429));
    let bucket: i64 = redis.plain.command(&["EXISTS", "hitl:rate:7:tenant1:bob"]).await;
    assert_eq!(bucket, 1);

    // Each of the rights was used: none can be taken away.
    eventually(async || {
        let used: String = redis.plain.command(&["INFO", "commandstats"]).await;
        let is_used = |right: &str| used.contains(&format!("cmdstat_{right}:"));
        RIGHTS.split(" +").skip(1).all(is_used).then_some(())
    })
    .await;

    // Everybody is encrypted who is not the test, and nothing was asked that is not allowed.
    let clients: String = redis.plain.command(&["CLIENT", "LIST"]).await;
    let services = clients.lines().filter(|line| line.contains("user=service"));
    let local = format!("laddr={HOST}:{}", redis.port);
    assert!(services.clone().count() >= 2 && services.clone().all(|line| line.contains(&local)));
    assert_eq!(denied(&redis.plain).await, Vec::<String>::new());
    let mut superuser = PgConnection::connect(&postgres.url()).await.unwrap();
    let encrypted: Vec<bool> = sqlx::query_scalar(
        "SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'service'",
    )
    .fetch_all(&mut superuser)
    .await
    .unwrap();
    assert!(!encrypted.is_empty() && encrypted.iter().all(|&is_encrypted| is_encrypted));

    // A signal that is owed is sent when Redis is back.
    let owed = Asked::new();
    app.ask(&owed).await;
    let full = async |limit| {
        let _ok: String = redis.plain.command(&["CONFIG", "SET", "maxmemory", limit]).await;
    };
    full("1").await;
    app.approve(ALICE, &owed.id).await.assert(200, "");
    assert_eq!(app.record(&owed.id).await.delivery, Delivery::Owed);
    redis.plain.kill();
    redis.plain.start_again().await;
    assert_eq!(app.settled(&owed.id).await.delivery, Delivery::Sent);
    assert!(app.signal(&owed.session).await.unwrap().contains(&owed.id));
    assert_eq!(denied(&redis.plain).await, Vec::<String>::new());
}

/// What Redis did not allow.
async fn denied(redis: &PrivateRedis) -> Vec<String> {
    let denied: Vec<redis::Value> = redis.command(&["ACL", "LOG"]).await;
    denied.into_iter().map(|entry| format!("{entry:?}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clusters_and_sentinels_prove_their_names_too() {
    let (folder, authority) = (TempDir::new().unwrap(), Authority::new());
    let (trusted, identity) = (authority.file(&folder), authority.identity());
    let rights = format!("{RIGHTS} +exists +role +cluster|slots");
    let (bus, ca) = (free_port().to_string(), trusted.to_str().unwrap());
    let cluster = ["--cluster-enabled", "yes", "--cluster-port", &bus, "--tls-cluster", "yes"];
    let more = ["--cluster-announce-ip", HOST, "--tls-ca-cert-file", ca];
    let more = [&cluster[..], &more].concat();
    let cluster = StrictRedis::start_with(&identity, "p@ss", &rights, &more).await;
    let _ok: String = cluster.plain.command(&["CLUSTER", "ADDSLOTSRANGE", "0", "16383"]).await;
    eventually(async || {
        let info: String = cluster.plain.command(&["CLUSTER", "INFO"]).await;
        info.contains("cluster_state:ok").then_some(())
    })
    .await;

    let watched = StrictRedis::start(&identity, "p@ss", &rights).await;
    let (conf, port) = (folder.path().join("sentinel.conf"), free_port());
    let [certificate, key] = identity.files(&folder);
    let settings = format!(
        "bind {HOST}\nport 0\ntls-port {port}\ntls-auth-clients no\ntls-replication yes\n\
         tls-cert-file {certificate}\ntls-key-file {key}\ntls-ca-cert-file {ca}\n\
         sentinel monitor main {HOST} {} 1\n",
        watched.port
    );
    std::fs::write(&conf, settings).unwrap();
    let mut command = Command::new("redis-server");
    command.arg(&conf).arg("--sentinel").current_dir(folder.path());
    let _sentinel = Server::start(&mut command, &folder.path().join("log"));

    let cluster_url = cluster.url("service:p%40ss").replace("rediss", "rediss+cluster");
    let sentinel_url = format!("rediss+sentinel://service:p%40ss@{HOST}:{port}/main");
    for (url, redis) in [(cluster_url, &cluster.plain), (sentinel_url, &watched.plain)] {
        let spawn = async |authority: &Authority| {
            let (url, trusted) = (SecretString::from(url.as_str()), authority.pem.clone());
            TestApp::spawn_with(Mode::Embedded, Clock::System, |config| {
                config.redis = Some(RedisSettings::Tls { url, trusted });
            })
            .await
        };
        let app = spawn(&authority).await;
        decides_and_wakes(&app, redis).await;
        let stranger = spawn(&Authority::new()).await;
        stranger.get(ALICE, "/health/ready").await.assert(503, "E5000");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_postgres_that_does_not_prove_its_name_ends_the_start() {
    let (folder, authority) = (TempDir::new().unwrap(), Authority::new());
    let trusted = authority.file(&folder);
    let stranger = Authority::new().file(&folder);
    let nothing = folder.path().join("nothing");
    let postgres = PrivatePostgres::start().await;
    postgres.welcome("service", "canary").await;
    let redis = test_variable("TEST_REDIS_URL");
    let start = async |url: String| {
        let program = program(&folder, &redis).with("DATABASE_URL", url);
        tokio::task::spawn_blocking(move || program.output()).await.unwrap()
    };
    let url = |authority: &Path| postgres.strict_url("service:canary", authority);

    assert_refused(&start(url(&trusted)).await, "has no TLS");
    postgres.prove(&authority.identity()).await;
    assert_refused(&start(url(&stranger)).await, "UnknownIssuer");
    assert_refused(&start(url(&nothing)).await, "No such file");
    let wrong = url(&trusted).replace("canary", "canary-wrong");
    assert_refused(&start(wrong).await, "password authentication failed");
    for (identity, expected) in [
        (authority.certify("elsewhere.test", 4000), "not valid for name"),
        (authority.certify(HOST, 2001), "expired"),
    ] {
        postgres.prove(&identity).await;
        assert_refused(&start(url(&trusted)).await, expected);
    }
    // It was nothing else.
    postgres.prove(&authority.identity()).await;
    let service = program(&folder, &redis).with("DATABASE_URL", url(&trusted)).serve().await;
    readiness(&service).await.assert(200, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_is_not_right_keeps_the_service_from_being_ready() {
    let (folder, authority) = (TempDir::new().unwrap(), Authority::new());
    let trusted = authority.file(&folder);
    let stranger = Authority::new().file(&folder);
    let right = StrictRedis::start(&authority.identity(), "canary", RIGHTS).await;
    let named = authority.certify("elsewhere.test", 4000);
    let named = StrictRedis::start(&named, "canary", RIGHTS).await;
    let expired = authority.certify(HOST, 2001);
    let expired = StrictRedis::start(&expired, "canary", RIGHTS).await;
    let mute = RIGHTS.replace("+info ", "");
    let mute = StrictRedis::start(&authority.identity(), "canary", &mute).await;
    let login = "service:canary";
    let plain = format!("rediss://{HOST}:{}", right.plain.port());
    let cases = [
        (right.url(login), Some(&stranger), "UnknownIssuer"),
        (right.url(login), None, "UnknownIssuer"),
        (named.url(login), Some(&trusted), "not valid for name"),
        (expired.url(login), Some(&trusted), "expired"),
        (plain, Some(&trusted), "timed out"),
        (right.url("service:canary-wrong"), Some(&trusted), "Password authentication failed"),
        (right.url("canary:canary"), Some(&trusted), "Password authentication failed"),
        (mute.url(login), Some(&trusted), "no permissions to run the 'info' command"),
    ];
    for (url, authority, expected) in cases {
        eventually_within(FAILOVER_TIMEOUT, async || {
            let folder = TempDir::new().unwrap();
            let program = program(&folder, &url);
            let program = match authority {
                Some(file) => program.with("AURA_HITL_REDIS_CA_FILE", file),
                None => program,
            };
            let mut service = program.serve().await;
            readiness(&service).await.assert(503, "E5000");
            let reason = eventually(async || {
                let mut lines = service.log().into_iter();
                lines.find_map(|line| line["error"].as_str().map(ToOwned::to_owned))
            })
            .await;
            let said = service.stdout() + &service.stderr();
            assert!(!said.contains("canary"), "{said}");
            let is_known = reason.contains(expected);
            assert!(is_known || is_late(&reason), "{expected:?} is not in {reason:?}");
            is_known.then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn authorities_that_are_none_are_refused() {
    let folder = TempDir::new().unwrap();
    for (name, text) in [
        ("good", Authority::new().pem),
        ("none", "canary\n".to_owned()),
        ("cut", "-----BEGIN CERTIFICATE-----\ncanary\n".to_owned()),
        ("odd", "-----BEGIN CERTIFICATE-----\nY2FuYXJ5\n-----END CERTIFICATE-----\n".to_owned()),
    ] {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    let (single, file) = ("rediss://:canary@redis:6379", "AURA_HITL_REDIS_CA_FILE");
    for (url, authorities, expected) in [
        (single, "no-such-file", "no-such-file"),
        (single, "none", "holds no certificate"),
        (single, "cut", "cannot be used"),
        (single, "odd", "cannot be used"),
        ("redis://:canary@redis:6379", "good", "does not begin with rediss"),
        ("redis+cluster://:canary@redis:6379", "good", "does not begin with rediss"),
        ("rediss://:canary@redis:6379/#insecure", "good", "certificates are always checked"),
        ("rediss://:canary@redis:6379/#insecure", "", "certificates are always checked"),
        ("rediss+cluster://:canary@redis/#insecure", "", "certificates are always checked"),
        ("rediss+sentinel://:canary@redis/main#insecure", "", "certificates are always checked"),
        ("", "good", "without REDIS_URL"),
    ] {
        let output = program(&folder, url).with(file, authorities).output();
        assert_refused(&output, expected);
    }
    let host = Program::new(&folder, &[]).with("REDIS_HOST", "redis").with("JWT_SECRET", SECRET);
    assert_refused(&host.with(file, "good").output(), "without TLS");
}
