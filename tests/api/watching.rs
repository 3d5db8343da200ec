//! What whoever is on call sees: metrics as Prometheus scrapes them, traces as a collector gets
//! them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix_web::{App, HttpResponse, HttpServer, web};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use support::{
    Answer, Asked, Mode, PrivatePostgres, PrivateRedis, Program, Running, eventually, free_port,
    fresh_database, test_variable, unique,
};
use tempfile::TempDir;

const SECRET: &str = "a secret that the Auth server shares with us";

/// A process of the real binary, and a person who calls it.
struct Watched {
    service: Running,
    token: String,
    _folder: TempDir,
}

impl Watched {
    async fn start(mode: Mode, adjust: impl Fn(Program) -> Program) -> Self {
        let folder = TempDir::new().unwrap();
        let database = match mode {
            Mode::Embedded => None,
            Mode::Production => Some(fresh_database().await),
        };
        let program = |arguments: &[&str]| {
            let program = Program::new(&folder, arguments).with("JWT_SECRET", SECRET);
            match &database {
                None => program,
                Some(database) => program
                    .with("DATABASE_URL", database)
                    .with("REDIS_URL", test_variable("TEST_REDIS_URL"))
                    // The tests share this Redis: the intake would find the requests of all.
                    .with("AURA_HITL_INTAKE", "false"),
            }
        };
        let minting = program(&["token", "--sub", "user123", "--tenant", "tenant1"]).output();
        let token = String::from_utf8(minting.stdout).unwrap().trim().to_owned();
        let service = adjust(program(&[])).serve().await;
        Self { service, token, _folder: folder }
    }

    async fn call(&self, method: Method, path: &str, body: Value, trace: Option<&str>) -> Answer {
        let mut call = Client::new()
            .request(method, format!("{}{path}", self.service.base))
            .bearer_auth(&self.token)
            .header("X-Tenant-ID", "tenant1")
            .header("X-User-ID", "user123")
            .json(&body);
        if let Some(trace) = trace {
            call = call.header("traceparent", trace);
        }
        Answer::of(call.send().await.unwrap()).await
    }

    /// Registers a request; its id.
    async fn register(&self) -> String {
        let body = json!({ "sessionId": unique("session"), "actionType": "send_email" });
        let answer = self.call(Method::POST, "/aura/hitl/requests", body, None).await;
        answer.assert(201, "").data()["requestId"].as_str().unwrap().to_owned()
    }

    async fn approve(&self, id: &str, trace: Option<&str>) -> Answer {
        let body = json!({ "userId": "user123" });
        self.call(Method::POST, &format!("/api/aura/hitl/approve/{id}"), body, trace).await
    }

    async fn reject(&self, id: &str) -> Answer {
        let body = json!({ "userId": "user123", "reason": "no" });
        self.call(Method::POST, &format!("/aura/hitl/reject/{id}"), body, None).await
    }

    async fn metrics(&self) -> Metrics {
        Metrics::at(&self.service.base).await
    }
}

/// What a scrape answered: each series with its value.
struct Metrics(HashMap<String, f64>);

impl Metrics {
    async fn at(base: &str) -> Self {
        let answer = Client::new().get(format!("{base}/metrics")).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
        let text = answer.text().await.unwrap();
        let series = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let series = series.map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        });
        Self(series.collect())
    }

    /// The sum of the series of a name that have all these labels.
    fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let is_one = |series: &str| {
            let (found, with) = series.split_once('{').unwrap_or((series, ""));
            found == name && labels.iter().all(|label| with.contains(label))
        };
        let found = self.0.iter().filter(|(series, _)| is_one(series)).map(|(_, value)| *value);
        let found = found.collect::<Vec<_>>();
        assert!(!found.is_empty(), "no {name} with {labels:?} in {:#?}", self.0.keys());
        found.iter().sum()
    }

    #[track_caller]
    fn assert(&self, name: &str, labels: &[&str], value: f64) {
        let found = self.sum(name, labels);
        assert!((found - value).abs() < 1e-9, "{name} {labels:?} is {found}, not {value}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_fail_while_the_ledger_is_away_and_go_on_when_it_is_back() {
    let mut postgres = PrivatePostgres::start().await;
    let url = postgres.url();
    let watched = Watched::start(Mode::Production, |program| program.with("DATABASE_URL", &url));
    let watched = watched.await;
    let of = |metrics: &Metrics, name: &str, worker: &str| {
        metrics.sum(&format!("aura_hitl_worker_{name}"), &[&format!("worker=\"{worker}\"")])
    };
    let failures = |metrics: &Metrics, worker: &str| of(metrics, "failures_total", worker);
    let success =
        |metrics: &Metrics, worker: &str| of(metrics, "last_success_timestamp_seconds", worker);
    let until = async |is_so: &dyn Fn(&Metrics) -> bool| {
        eventually(async || Some(watched.metrics().await).filter(|metrics| is_so(metrics))).await
    };
    let started = watched.metrics().await;
    until(&|now| success(now, "expiry") > success(&started, "expiry")).await;

    let workers = ["expiry", "relay"];
    postgres.crash();
    let away = until(&|now| {
        workers.iter().all(|worker| failures(now, worker) > failures(&started, worker))
    })
    .await;
    let later = until(&|now| {
        let goes_on = success(now, "metrics") > success(&away, "metrics");
        goes_on && workers.iter().all(|worker| failures(now, worker) > failures(&away, worker))
    })
    .await;
    for worker in workers {
        let stands_still = (success(&later, worker) - success(&away, worker)).abs() < 1e-9;
        assert!(stands_still, "{worker} succeeds without a ledger");
    }

    postgres.start_again().await;
    until(&|now| workers.iter().all(|worker| success(now, worker) > success(&later, worker))).await;
}

/// A request as an agent writes it; its id.
async fn written(redis: &PrivateRedis) -> String {
    let Asked { id, session, document } = Asked::new();
    let (request, pointer) = (format!("hitl:request:{id}"), format!("hitl:session:{session}"));
    let _ok: String = redis.command(&["SET", &request, &document.to_string(), "EX", "1800"]).await;
    let _ok: String = redis.command(&["SET", &pointer, &id, "EX", "3600"]).await;
    id
}

/// A full Redis: it answers, and a signal that is to go there is owed.
async fn takes_no_writes(redis: &PrivateRedis, is_full: bool) {
    let limit = if is_full { "1" } else { "0" };
    let _ok: String = redis.command(&["CONFIG", "SET", "maxmemory", limit]).await;
}

async fn what_happens_is_counted(mode: Mode) {
    let watched = Watched::start(mode, |program| program).await;
    let before = watched.metrics().await;
    // Series that nobody has counted yet are there, so that their first increase is seen.
    before.assert("aura_hitl_decisions_total", &["rejected", "http"], 0.0);
    before.assert("aura_hitl_signals_total", &["relay", "sent"], 0.0);
    before.assert("aura_hitl_conflicts_total", &[], 0.0);
    before.assert("aura_hitl_refused_total", &["\"wrong_state\""], 0.0);
    before.assert("aura_hitl_requests_pending", &[], 0.0);

    let ids = [watched.register().await, watched.register().await, watched.register().await];
    watched.approve(&ids[0], None).await.assert(200, "");
    watched.reject(&ids[1]).await.assert(200, "");
    watched.reject(&ids[0]).await.assert(409, "E3006");
    watched.approve("nobody-knows-it", None).await.assert(404, "E1004");
    let cancel = format!("/aura/hitl/requests/{}/cancel", ids[2]);
    watched.call(Method::POST, &cancel, json!({}), None).await.assert(200, "");
    watched.register().await;
    let bad_token = Client::new().get(format!("{}/api/main/agent/tasks", watched.service.base));
    let bad_token = bad_token.bearer_auth("x").header("X-Tenant-ID", "tenant1").send().await;
    assert_eq!(bad_token.unwrap().status(), 401);

    let is_production = mode == Mode::Production;
    let name = if is_production { "production" } else { "embedded" };
    // What the ledger says may be 5 s old.
    let after = eventually(async || {
        let metrics = watched.metrics().await;
        (metrics.sum("aura_hitl_requests_pending", &[]) > 0.0).then_some(metrics)
    })
    .await;
    for (metric, labels, value) in [
        ("aura_hitl_decisions_total", &["\"approved\"", "\"http\"", name][..], 1.0),
        ("aura_hitl_decisions_total", &["\"rejected\"", "\"http\"", name], 1.0),
        ("aura_hitl_decisions_total", &["\"redis\""], 0.0),
        ("aura_hitl_decision_age_seconds_count", &[], 2.0),
        ("aura_hitl_outcomes_total", &["\"cancelled\""], 1.0),
        ("aura_hitl_refused_total", &["\"already_decided\""], 1.0),
        ("aura_hitl_refused_total", &["\"not_found\""], 1.0),
        ("aura_hitl_refused_total", &["\"token_invalid\""], 1.0),
        ("aura_hitl_conflicts_total", &[], 1.0),
        // Registered requests have no signals.
        ("aura_hitl_signals_total", &["\"decider\"", "\"sent\""], 0.0),
        ("aura_hitl_requests_pending", &[], 1.0),
        // Both prefixes are one route, and no id makes a series.
        (
            "aura_hitl_http_request_duration_seconds_count",
            &["route=\"/aura/hitl/approve/{requestId}\"", "\"2xx\"", "\"POST\""],
            1.0,
        ),
        (
            "aura_hitl_http_request_duration_seconds_count",
            &["route=\"/aura/hitl/approve/{requestId}\"", "\"4xx\""],
            1.0,
        ),
        ("aura_hitl_ledger_up", &[], 1.0),
        ("aura_hitl_courier_up", &[], 1.0),
        ("aura_hitl_waiters", &[], 0.0),
        // The scrape's own.
        ("aura_hitl_connections", &[], 1.0),
        ("aura_hitl_connections_max", &[], 2048.0),
        ("aura_hitl_calls_max", &[], 256.0),
        ("aura_hitl_redis_connects_total", &[], if is_production { 1.0 } else { 0.0 }),
    ] {
        after.assert(metric, labels, value);
    }
    assert!(after.sum("aura_hitl_ledger_connections", &[]) >= 1.0);
    assert!(after.sum("process_resident_memory_bytes", &[]) > 1e6);
    assert!(!after.0.keys().any(|series| series.contains(&ids[0])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_is_counted_embedded() {
    what_happens_is_counted(Mode::Embedded).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_happens_is_counted_in_production() {
    what_happens_is_counted(Mode::Production).await;
}

/// While Redis is away: a signal is owed, it is known since when, and the courier is down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_owed_is_seen_and_so_is_its_end() {
    let mut redis = PrivateRedis::start().await;
    let watched = {
        let url = redis.url();
        Watched::start(Mode::Production, move |program| program.with("REDIS_URL", &url)).await
    };
    let id = written(&redis).await;
    takes_no_writes(&redis, true).await;
    watched.approve(&id, None).await.assert(200, "");
    redis.kill();
    eventually(async || {
        let metrics = watched.metrics().await;
        let owed = metrics.sum("aura_hitl_signals_owed", &[]);
        let oldest = metrics.sum("aura_hitl_oldest_owed_seconds", &[]);
        let courier = metrics.sum("aura_hitl_courier_up", &[]);
        (owed > 0.5 && oldest > 0.0 && courier < 0.5).then_some(())
    })
    .await;
    redis.start_again().await;
    eventually(async || {
        let metrics = watched.metrics().await;
        let owed = metrics.sum("aura_hitl_signals_owed", &[]);
        let by_relay = metrics.sum("aura_hitl_signals_total", &["\"relay\"", "\"sent\""]);
        let reconnects = metrics.sum("aura_hitl_redis_connects_total", &[]);
        (owed < 0.5 && by_relay > 0.5 && reconnects > 1.5).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_may_have_an_address_of_their_own() {
    let port = free_port();
    let watched = Watched::start(Mode::Embedded, |program| {
        program.with("AURA_HITL_METRICS_ADDRESS", format!("127.0.0.1:{port}"))
    })
    .await;
    Metrics::at(&format!("http://127.0.0.1:{port}")).await.assert("aura_hitl_ledger_up", &[], 1.0);
    let elsewhere = |path| Client::new().get(path).send();
    for path in [
        format!("{}/metrics", watched.service.base),
        format!("{}/api/metrics", watched.service.base),
        format!("http://127.0.0.1:{port}/main/health"),
    ] {
        assert_eq!(elsewhere(path).await.unwrap().status(), StatusCode::NOT_FOUND);
    }
}

/// A collector of traces, as far as it is reached.
#[derive(Clone, Default)]
struct Collector {
    spans: Arc<Mutex<Vec<(String, Span)>>>,
}

impl Collector {
    fn start() -> (Self, String) {
        let collector = Self::default();
        let data = web::Data::new(collector.clone());
        let app = move || {
            let service = web::resource("/v1/traces").route(web::post().to(Self::collect));
            #[expect(clippy::disallowed_methods, reason = "no route of ours")]
            App::new().app_data(data.clone()).service(service)
        };
        let server = HttpServer::new(app).workers(1).disable_signals().bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", server.addrs()[0]);
        tokio::spawn(server.run());
        (collector, endpoint)
    }

    #[expect(clippy::unused_async, reason = "a handler is")]
    async fn collect(collector: web::Data<Self>, body: web::Bytes) -> HttpResponse {
        let batch = ExportTraceServiceRequest::decode(body).unwrap();
        let mut spans = collector.spans.lock().unwrap();
        for resource in batch.resource_spans {
            let attributes = resource.resource.unwrap_or_default().attributes;
            let name = attributes.iter().find(|one| one.key == "service.name");
            let name = format!("{:?}", name.and_then(|name| name.value.clone()));
            for scope in resource.scope_spans {
                spans.extend(scope.spans.into_iter().map(|span| (name.clone(), span)));
            }
        }
        HttpResponse::Ok().finish()
    }

    fn named(&self, name: &str) -> Vec<Span> {
        let spans = self.spans.lock().unwrap();
        spans.iter().filter(|(_, span)| span.name == name).map(|(_, span)| span.clone()).collect()
    }
}

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_trace_goes_from_the_gateway_to_the_courier_and_the_relay_links_to_it() {
    let (collector, endpoint) = Collector::start();
    let redis = PrivateRedis::start().await;
    let mut watched = {
        let url = redis.url();
        let with = |program: Program| {
            program
                .with("REDIS_URL", &url)
                .with("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
                .with("OTEL_BSP_SCHEDULE_DELAY", "100")
        };
        Watched::start(Mode::Production, with).await
    };
    let [at_once, later] = [written(&redis).await, written(&redis).await];
    let parent = format!("00-{TRACE}-{CALLER}-01");
    watched.approve(&at_once, Some(&parent)).await.assert(200, "");

    let name = "POST /api/aura/hitl/approve/{requestId}";
    let call = eventually(async || collector.named(name).pop()).await;
    assert_eq!(u128::from_str_radix(TRACE, 16).unwrap().to_be_bytes()[..], call.trace_id);
    assert_eq!(u64::from_str_radix(CALLER, 16).unwrap().to_be_bytes()[..], call.parent_span_id);
    assert!(call.attributes.iter().any(|one| one.key == "http.response.status_code"));
    for step in ["courier.find_request", "ledger.record_outcome", "courier.send"] {
        let spans = eventually(async || {
            let mut spans = collector.named(step);
            spans.retain(|span| span.trace_id == call.trace_id);
            (!spans.is_empty()).then_some(spans)
        })
        .await;
        assert!(spans.iter().all(|span| span.parent_span_id == call.span_id), "{step}");
    }
    // Nothing that happens outside of a call makes a trace.
    assert!(collector.named("ledger.claim_owed").is_empty());
    assert!(collector.spans.lock().unwrap().iter().all(|(name, _)| name.contains("aura-hitl")));

    takes_no_writes(&redis, true).await;
    watched.approve(&later, Some(&parent)).await.assert(200, "");
    takes_no_writes(&redis, false).await;
    let sent = eventually(async || {
        let mut sent = collector.named("relay.send");
        sent.retain(|span| span.links.iter().any(|link| link.trace_id == call.trace_id));
        sent.pop()
    })
    .await;
    assert_ne!(sent.trace_id, call.trace_id);
    let calls = collector.named(name);
    let causes = calls.iter().map(|call| &call.span_id).collect::<Vec<_>>();
    assert!(causes.contains(&&sent.links[0].span_id), "the link is to the call that decided");

    // The log's lines still carry the fields of the call.
    let log = watched.service.log();
    let decided = log.iter().find(|line| line["message"] == "decided").unwrap();
    assert_eq!(decided["span"]["trace_id"], TRACE);
    assert_eq!(decided["span"]["request_id"], at_once.as_str());
}

/// A collector that is away, or was never there, costs nobody anything but the traces.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_its_collector_the_service_goes_on_and_ends() {
    let endpoint = format!("http://127.0.0.1:{}", free_port());
    let mut watched = Watched::start(Mode::Embedded, |program| {
        program
            .with("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
            .with("OTEL_BSP_SCHEDULE_DELAY", "100")
    })
    .await;
    let id = watched.register().await;
    watched.approve(&id, None).await.assert(200, "");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(watched.service.stop().await.code(), Some(0));
}

#[test]
fn a_collector_without_an_address_is_refused() {
    let folder = TempDir::new().unwrap();
    let output =
        Program::new(&folder, &["serve"]).with("OTEL_EXPORTER_OTLP_ENDPOINT", "::").output();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("OTEL_EXPORTER_OTLP_ENDPOINT"), "{error}");
}
