//! The requests, sessions and tasks of three tenants, made over HTTP and in Redis as agents and people
//! make them.

use reqwest::{Method, RequestBuilder};
use serde_json::{Value, json};

use aura_hitl::domain::approver::Role;

use crate::{Answer, Asked, Operation, TestApp, Who};

/// One person of each tenant. The last one is an admin.
pub const PEOPLE: [Who<'static>; 3] = [
    Who { user: "user1", tenant: "tenant1", role: Role::User },
    Who { user: "user2", tenant: "tenant2", role: Role::User },
    Who { user: "user3", tenant: "tenant3", role: Role::Admin },
];

/// A running service and its Redis, for tests that start them in different ways.
#[allow(async_fn_in_trait, reason = "nobody spawns these calls")]
pub trait Service {
    /// A call by a person, with token and identity headers.
    fn call(&self, who: Who<'_>, method: Method, path: &str) -> RequestBuilder;

    /// Writes a request and its session's pointer as Aura does; without Redis, registers it.
    async fn write(&self, owner: Who<'static>, asked: &Asked, pointer: &str);
}

impl Service for TestApp {
    fn call(&self, who: Who<'_>, method: Method, path: &str) -> RequestBuilder {
        Self::call(self, who, method, path)
    }

    async fn write(&self, owner: Who<'static>, asked: &Asked, pointer: &str) {
        if self.state.courier.engine() == "in-process" {
            self.register(owner, asked).await.assert(201, "");
            return;
        }
        self.put(&asked.id, &asked.document.to_string()).await;
        self.point(&asked.session, pointer).await;
    }
}

/// The answer to a call with a fixed trace id, so that answers can be compared.
pub async fn send(
    service: &impl Service,
    who: Who<'_>,
    (method, path): (&Method, &str),
    body: Option<Value>,
) -> Answer {
    let call = service.call(who, method.clone(), path).header("X-Trace-Id", "trace-1");
    let call = if let Some(body) = body { call.json(&body) } else { call };
    Answer::of(call.send().await.unwrap()).await
}

/// The operation as this person calls it, with a body that it accepts.
pub async fn perform(
    service: &impl Service,
    who: Who<'_>,
    operation: &Operation,
    path: &str,
) -> Answer {
    send(service, who, (&operation.method, path), operation.body(who)).await
}

/// What a tenant has: requests found in Redis and registered ones, pending and decided; their
/// sessions; tasks.
pub struct Belongings {
    pub owner: Who<'static>,
    pub requests: Vec<String>,
    /// The sessions of `requests`, in the same order.
    pub sessions: Vec<String>,
    /// The first one waits for nobody.
    pub tasks: Vec<String>,
    /// The pending ones of `requests`.
    pub pending: Vec<String>,
}

impl Belongings {
    /// Makes this many of each kind.
    pub async fn of(service: &impl Service, owner: Who<'static>, sets: usize) -> Self {
        let mut own = Self {
            owner,
            requests: Vec::new(),
            sessions: Vec::new(),
            tasks: Vec::new(),
            pending: Vec::new(),
        };
        let list = "/main/agent/tasks";
        let task = json!({ "taskType": "mail", "userId": owner.user, "tenantId": owner.tenant });
        let made = send(service, owner, (&Method::POST, list), Some(task)).await;
        own.tasks.push(made.data()["taskId"].as_str().unwrap().to_owned());
        for is_decided in [false, true].repeat(sets) {
            own.ask(service, is_decided).await;
        }
        // Every request that was registered or decided has a task.
        let path = format!("{list}?size=100");
        let all = send(service, owner, (&Method::GET, &path), None).await;
        let ids = all.data()["content"].as_array().unwrap().iter();
        let ids = ids.map(|task| task["taskId"].as_str().unwrap().to_owned());
        own.tasks.extend(ids.filter(|id| *id != made.data()["taskId"]));
        own
    }

    /// Makes a request in each possible way, with each possible source of its tenant and user.
    async fn ask(&mut self, service: &impl Service, is_decided: bool) {
        let owner = self.owner;
        let new =
            |tenant: Value| Asked::new().with("userId", owner.user.into()).with("tenantId", tenant);
        let registered = new(owner.tenant.into());
        let body = Some(registered.registration());
        send(service, owner, (&Method::POST, "/aura/hitl/requests"), body).await.assert(201, "");
        let (found, of_its_session) = (new(owner.tenant.into()), new(Value::Null));
        for asked in [&found, &of_its_session] {
            let pointer = json!({
                "requestId": asked.id, "userId": owner.user, "tenantId": owner.tenant,
            });
            service.write(owner, asked, &pointer.to_string()).await;
        }
        for asked in [registered, found, of_its_session] {
            if is_decided {
                let path = format!("/aura/hitl/approve/{}", asked.id);
                let body = Some(json!({ "userId": owner.user }));
                send(service, owner, (&Method::POST, &path), body).await.assert(200, "");
            } else {
                self.pending.push(asked.id.clone());
            }
            self.requests.push(asked.id);
            self.sessions.push(asked.session);
        }
    }

    /// The ids of a kind, as a route names it.
    pub fn named(&self, id: &str) -> &[String] {
        match id {
            // Without a policy file nobody has a grant: this is the id of none.
            "requestId" | "grantId" => &self.requests,
            "sessionId" => &self.sessions,
            "taskId" => &self.tasks,
            other => panic!("no test knows what a {other} is"),
        }
    }

    /// The decided ones of `requests`.
    pub fn decided(&self) -> impl Iterator<Item = &String> {
        self.requests.iter().filter(|id| !self.pending.contains(id))
    }
}
