//! A webhook, mail and Slack at once, while a server of one of them is away and the replicas that send are
//! killed: everybody is told of everything, and nobody of another tenant's.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix_web::{App, HttpResponse, HttpServer, web};
use aura_hitl::domain::approver::Role;
use futures_util::future::join;
use reqwest::Method;
use serde_json::{Value, json};
use support::mail::MailServer;
use support::proxy::Proxy;
use support::{Asked, Who, free_port};
use tempfile::TempDir;

use super::notices::{Answers, Receiver, SECRET, TENANTS, all_told, check, kill_one, start_dying};
use crate::report::{Report, Scale};
use crate::world::{People, World, at_once};

/// How long after the faults everything may take to be told: pauses have grown meanwhile.
const TOLD_WITHIN: Duration = Duration::from_mins(8);
/// By tenant: its channel in Slack, and the domain of its people.
const PLACES: [(&str, &str); 2] = [("C1", "one.example"), ("C2", "two.example")];
const POLICY: &str = "[[rule]]\nname = 'all'\nwhen = 'true'\napprovers = ['user:kim']\n";

/// Which server is away.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Away {
    Mail,
    Slack,
}

/// How Slack behaves.
#[derive(Clone, Copy)]
enum Weather {
    Fine,
    /// 503.
    Broken,
    /// 429.
    TooMany,
    /// It takes the call and says that it failed.
    Lying,
    /// It never answers.
    Hanging,
}

/// Channel and id of a message in Slack.
type Place = (String, String);

/// A Slack that keeps messages.
struct Chat {
    port: u16,
    messages: Arc<Mutex<BTreeMap<Place, Value>>>,
    weather: Arc<Mutex<Weather>>,
}

impl Chat {
    fn start() -> Self {
        let messages = Arc::<Mutex<BTreeMap<_, Value>>>::default();
        let weather = Arc::new(Mutex::new(Weather::Fine));
        let (port, count) = (free_port(), Arc::new(AtomicUsize::new(0)));
        let (kept, now) = (messages.clone(), weather.clone());
        let take = move |method: web::Path<String>, call: web::Json<Value>| {
            let weather = *now.lock().unwrap();
            let answer = match weather {
                Weather::Fine | Weather::Lying => {
                    let channel = call["channel"].as_str().unwrap().to_owned();
                    let ts = call["ts"].as_str().map_or_else(
                        || format!("17.{:09}", count.fetch_add(1, Ordering::Relaxed)),
                        ToOwned::to_owned,
                    );
                    assert!(["chat.postMessage", "chat.update"].contains(&method.as_str()));
                    kept.lock().unwrap().insert((channel.clone(), ts.clone()), call.into_inner());
                    HttpResponse::Ok().json(json!({ "ok": true, "channel": channel, "ts": ts }))
                }
                Weather::TooMany => {
                    HttpResponse::TooManyRequests().insert_header(("Retry-After", "1")).finish()
                }
                Weather::Broken | Weather::Hanging => HttpResponse::ServiceUnavailable().finish(),
            };
            async move {
                match weather {
                    Weather::Lying => return HttpResponse::InternalServerError().finish(),
                    Weather::Hanging => tokio::time::sleep(Duration::from_mins(1)).await,
                    Weather::Fine | Weather::Broken | Weather::TooMany => {}
                }
                answer
            }
        };
        #[expect(clippy::disallowed_methods, reason = "these routes are not the service's")]
        let server = HttpServer::new(move || {
            App::new().route("/api/{method}", web::post().to(take.clone()))
        });
        let server = server.workers(1).disable_signals().bind(("127.0.0.1", port)).unwrap().run();
        tokio::spawn(server);
        Self { port, messages, weather }
    }

    fn be(&self, weather: Weather) {
        *self.weather.lock().unwrap() = weather;
    }
}

/// The settings of all three channels.
fn settings(folder: &Path, receiver: &Receiver, mail: &Proxy, chat: &Chat) -> String {
    let people = TENANTS.iter().zip(PLACES).flat_map(|(tenant, (_, domain))| {
        ["kim", "user123"]
            .map(|user| format!("[people.'{tenant}/{user}']\nmail = '{user}@{domain}'\n"))
    });
    let channels = TENANTS.iter().zip(PLACES);
    let channels = channels.map(|(tenant, (channel, _))| format!("{tenant} = '{channel}'"));
    let at = |name: &str| folder.join(name).display().to_string();
    let text = format!(
        "public_url = 'http://127.0.0.1/api/aura/hitl'\npolicy_file = '{}'\n{}\
         [[notices.webhook]]\nname = 'all'\nurl = 'http://127.0.0.1:{}/'\nsecret_file = '{secret}'\n\
         [notices.mail]\nsmtp_url = 'smtp://127.0.0.1:{}?tls=none'\nfrom = 'a@example.com'\n\
         [notices.slack]\nbot_token_file = '{secret}'\nsigning_secret_file = '{secret}'\n\
         api_url = 'http://127.0.0.1:{}/api'\nchannels = {{ {} }}\n",
        at("policy.toml"),
        people.collect::<String>(),
        receiver.port,
        mail.address.port(),
        chat.port,
        channels.collect::<Vec<_>>().join(", "),
        secret = at("secret"),
    );
    for (name, text) in [("secret", SECRET), ("policy.toml", POLICY), ("settings.toml", &text)] {
        std::fs::write(folder.join(name), text).unwrap();
    }
    at("settings.toml")
}

/// Calls until there is an answer.
async fn surely(people: &People, who: Who<'_>, url: &str, body: &Value) {
    for _ in 0..200 {
        let sent = people.call_by(who, Method::POST, url).json(body).send().await;
        if sent.is_ok_and(|answer| [200, 201].contains(&answer.status().as_u16())) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Kills the replicas in turn and makes the server go away and come back, until the work is done.
async fn amid_faults(
    world: &mut World,
    away: (Away, &Proxy, &Chat),
    least: Duration,
    work: impl Future<Output = ()>,
) -> usize {
    let (away, mail, chat) = away;
    let done = AtomicBool::new(false);
    let began = std::time::Instant::now();
    let mut dying = start_dying(world).await;
    let faults = async {
        let mut kills = 0;
        let weathers =
            [Weather::Broken, Weather::Lying, Weather::Fine, Weather::TooMany, Weather::Hanging];
        while !done.load(Ordering::Relaxed) || began.elapsed() < least {
            match away {
                Away::Mail if kills % 3 < 2 => mail.cut(),
                Away::Mail => mail.reopen(),
                Away::Slack => chat.be(weathers[kills % weathers.len()]),
            }
            kill_one(world, &mut dying, kills % 2).await;
            kills += 1;
        }
        kills
    };
    let work = async {
        work.await;
        done.store(true, Ordering::Relaxed);
    };
    let (kills, ()) = join(faults, work).await;
    mail.reopen();
    chat.be(Weather::Fine);
    dying.kill();
    kills
}

/// What a text names of these requests.
fn named<'a>(text: &str, asked: &'a BTreeMap<String, usize>) -> Vec<(&'a str, usize)> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    let found = words.collect::<BTreeSet<_>>().into_iter();
    found.filter_map(|word| asked.get_key_value(word)).map(|(id, of)| (id.as_str(), *of)).collect()
}

/// The people whom each mail names requests to: approvers of what waits, requesters of outcomes.
fn check_mails(
    report: &mut Report,
    mails: &[support::mail::Mail],
    asked: &BTreeMap<String, usize>,
) {
    let mut told = BTreeMap::<String, BTreeSet<String>>::new();
    let (mut foreign, mut strangers, mut ids, mut repeats) = (0, 0, BTreeSet::new(), 0);
    for mail in mails {
        let to = mail.to();
        let (user, domain) = to.split_once('@').unwrap();
        let of = PLACES.iter().position(|(_, its)| *its == domain);
        let subject = mail.header("Subject");
        let asks = ["Approval needed", "wait for approval"].iter().any(|it| subject.contains(it));
        strangers += usize::from(of.is_none() || (user == "kim") != asks);
        repeats += usize::from(!ids.insert(mail.header("Message-ID")));
        for (id, tenant) in named(mail.text(), asked) {
            foreign += usize::from(Some(tenant) != of);
            told.entry(to.clone()).or_default().insert(id.to_owned());
        }
    }
    for user in ["kim", "user123"] {
        let is_told = |(id, of): &(&String, &usize)| {
            let of = told.get(&format!("{user}@{}", PLACES[**of].1));
            of.is_some_and(|told| told.contains(*id))
        };
        let missing = asked.iter().filter(|one| !is_told(one)).count();
        report.none(missing, &format!("requests of which {user} had no mail"));
    }
    report.none(foreign, "requests of another tenant in mails");
    report.none(strangers, "mails to the wrong person");
    report.figure(format!("{} mails, {repeats} repeats", mails.len()));
}

fn check_chat(report: &mut Report, chat: &Chat, asked: &BTreeMap<String, usize>) {
    let (mut foreign, mut open) = (0, 0);
    let (mut told, mut closed) = (BTreeSet::new(), BTreeSet::new());
    let messages = chat.messages.lock().unwrap();
    for ((channel, _), message) in messages.iter() {
        let asks = message.to_string().contains("hitl_approve");
        open += usize::from(asks);
        for (id, tenant) in named(&message.to_string(), asked) {
            foreign += usize::from(PLACES[tenant].0 != channel);
            told.insert(id);
            if !asks {
                closed.insert(id);
            }
        }
    }
    report.none(asked.len() - told.len(), "requests that Slack was not told of");
    report.none(asked.len() - closed.len(), "requests whose outcome Slack was not told of");
    report.none(foreign, "messages in the channel of another tenant");
    report.figure(format!(
        "{} messages in Slack, {open} of them posted and not noted",
        messages.len()
    ));
}

/// Requests of two tenants, registered and then approved amid faults.
async fn told_by_three(scale: Scale, report: &mut Report, away: Away) {
    let folder = TempDir::new().unwrap();
    let (receiver, chat) = (Receiver::start(Answers::Lying), Chat::start());
    let server = MailServer::plain();
    let port = server.settings().port.unwrap();
    let mail = Proxy::start(([127, 0, 0, 1], port).into()).await;
    let file = settings(folder.path(), &receiver, &mail, &chat);
    let mut world = World::start_with(2, &[("AURA_HITL_CONFIG", &file)]).await;
    let (bases, people) = (world.bases(), world.people.clone());
    let asked = (0..scale.of(1000, 200)).map(|place| (Asked::new(), place % 2));
    let asked = asked.collect::<Vec<_>>();
    let least = Duration::from_secs(scale.of(30, 8));
    let mut kills = 0;
    for is_decided in [false, true] {
        let work = at_once(asked.iter().collect(), 16, async |place, (asked, of)| {
            let user = if is_decided { "kim" } else { "user123" };
            let who = Who { user, tenant: TENANTS[*of], role: Role::User };
            let path =
                if is_decided { format!("approve/{}", asked.id) } else { "requests".to_owned() };
            let body = if is_decided {
                json!({ "userId": who.user })
            } else {
                json!({ "requestId": asked.id, "sessionId": asked.session, "actionType": "send_email" })
            };
            surely(&people, who, &format!("{}/api/aura/hitl/{path}", bases[place % 2]), &body)
                .await;
        });
        let work = async {
            work.await;
        };
        kills += amid_faults(&mut world, (away, &mail, &chat), least, work).await;
        all_told(&world, report, TOLD_WITHIN).await;
    }
    report.count(asked.len(), "requests");
    report.count(kills, "kills");
    let told = asked.iter().map(|(asked, _)| asked.id.clone()).collect();
    check(report, "the webhook", &receiver, &told);
    let asked = asked.into_iter().map(|(asked, of)| (asked.id, of)).collect();
    check_mails(report, &server.mails(), &asked);
    check_chat(report, &chat, &asked);
    world.check_alive(report);
}

/// The mail server refuses two thirds of the time.
pub async fn mail_away(scale: Scale, report: &mut Report) {
    told_by_three(scale, report, Away::Mail).await;
}

/// Slack fails, lies, says that there were too many calls, and hangs.
pub async fn slack_away(scale: Scale, report: &mut Report) {
    told_by_three(scale, report, Away::Slack).await;
}
