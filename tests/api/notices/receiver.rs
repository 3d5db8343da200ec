//! A receiver of webhooks of one's own, which keeps what it gets and answers as it is told.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::http::StatusCode;
use actix_web::{App, HttpRequest, HttpResponse, HttpServer, web};
use aura_hitl::domain::notice::Event;
use aura_hitl::notices::WebhookSettings;
use serde_json::Value;
use support::{eventually, free_port};

/// The secret of every receiver.
pub const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

/// How a receiver answers.
#[derive(Clone, Copy, Debug)]
pub enum Answers {
    /// With this status, at once.
    With(u16),
    /// 204, but only after a long time.
    Late,
    /// With a redirect to where webhooks are taken, too.
    Elsewhere,
}

/// What a receiver got.
#[derive(Clone, Debug)]
pub struct Received {
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: String,
}

impl Received {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    pub fn id(&self) -> &str {
        &self.headers["webhook-id"]
    }

    pub fn event(&self) -> String {
        self.json()["type"].as_str().unwrap().to_owned()
    }

    pub fn request(&self) -> String {
        self.json()["data"]["requestId"].as_str().unwrap().to_owned()
    }
}

pub struct Receiver {
    port: u16,
    received: Arc<Mutex<Vec<Received>>>,
    answers: Arc<Mutex<Answers>>,
    server: Option<ServerHandle>,
}

impl Receiver {
    /// One that is not there yet.
    pub fn down() -> Self {
        let answers = Arc::new(Mutex::new(Answers::With(204)));
        Self { port: free_port(), received: Arc::default(), answers, server: None }
    }

    pub fn start() -> Self {
        let mut receiver = Self::down();
        receiver.come_up();
        receiver
    }

    pub fn come_up(&mut self) {
        let (received, answers) = (self.received.clone(), self.answers.clone());
        let take = move |call: HttpRequest, body: String| {
            let headers = call.headers().iter();
            let header = |(name, value): (&_, &actix_web::http::header::HeaderValue)| {
                let name: &actix_web::http::header::HeaderName = name;
                (name.as_str().to_owned(), value.to_str().unwrap().to_owned())
            };
            let one = Received {
                path: call.path().to_owned(),
                headers: headers.map(header).collect(),
                body,
            };
            received.lock().unwrap().push(one);
            let answers = *answers.lock().unwrap();
            async move {
                match answers {
                    Answers::With(status) => {
                        HttpResponse::build(StatusCode::from_u16(status).unwrap()).finish()
                    }
                    Answers::Late => {
                        tokio::time::sleep(Duration::from_mins(1)).await;
                        HttpResponse::NoContent().finish()
                    }
                    Answers::Elsewhere => HttpResponse::TemporaryRedirect()
                        .insert_header(("Location", "/elsewhere"))
                        .finish(),
                }
            }
        };
        let server = HttpServer::new(move || App::new().default_service(web::to(take.clone())));
        let server = server.workers(1).bind(("127.0.0.1", self.port)).unwrap().run();
        self.server = Some(server.handle());
        tokio::spawn(server);
    }

    pub fn answer(&self, answers: Answers) {
        *self.answers.lock().unwrap() = answers;
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/hook", self.port)
    }

    /// The settings of a webhook to this receiver, of all events and tenants.
    pub fn settings(&self, name: &str) -> WebhookSettings {
        WebhookSettings {
            name: name.to_owned(),
            url: self.url().parse().unwrap(),
            secret: SECRET.into(),
            previous_secret: None,
            events: Event::ALL.into(),
            tenants: None,
        }
    }

    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    /// The events of this request that came, in the order of their times.
    pub fn events_of(&self, request: &str) -> Vec<String> {
        let mut of_it = self.received();
        of_it.retain(|one| one.request() == request);
        of_it.sort_by_key(|one| one.json()["timestamp"].as_str().unwrap().to_owned());
        of_it.iter().map(Received::event).collect()
    }

    /// What came, once there is so much of it.
    pub async fn at_least(&self, count: usize) -> Vec<Received> {
        eventually(async || {
            let received = self.received();
            (received.len() >= count).then_some(received)
        })
        .await
    }
}
