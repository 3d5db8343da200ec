//! All routes with their entries in the API document: addresses, example bodies, limits, and who may
//! call. Tests of all routes use this list, so they also cover a new route.

use aura_hitl::api::endpoint::{Access, Endpoint};
use reqwest::Method;
use serde_json::Value;

use crate::people::Who;

/// The prefixes under which every route is served.
pub const PREFIXES: [&str; 2] = ["/api", ""];

/// A route of the service, and what the API document says about it.
#[derive(Clone, Debug)]
pub struct Operation {
    pub method: Method,
    /// The address, with its ids still in braces.
    pub pattern: &'static str,
    pub access: Access,
    pub document: Value,
}

impl Operation {
    /// The address with ids filled in.
    pub fn path(&self) -> String {
        self.path_to("x-1")
    }

    /// The address with this id, as it goes over the wire.
    pub fn path_to(&self, id: &str) -> String {
        ["{requestId}", "{sessionId}", "{taskId}", "{grantId}"]
            .into_iter()
            .fold(self.pattern.to_owned(), |path, name| path.replace(name, id))
    }

    /// Both addresses with this id.
    pub fn paths_to(&self, id: &str) -> [String; 2] {
        PREFIXES.map(|prefix| format!("{prefix}{}", self.path_to(id)))
    }

    /// What the address names: `requestId`, `sessionId`, `taskId`, or nothing.
    pub fn id(&self) -> Option<&'static str> {
        Some(self.pattern.split_once('{')?.1.split_once('}')?.0)
    }

    pub fn is_open(&self) -> bool {
        self.access == Access::Open
    }

    /// Whether its answer does not end.
    pub fn is_stream(&self) -> bool {
        self.pattern.ends_with("/stream")
    }

    pub fn decides(&self) -> bool {
        self.access == Access::Approver
    }

    /// The body that the document gives for an example, as this person would send it; none when
    /// the operation takes none.
    pub fn body(&self, who: Who<'_>) -> Option<Value> {
        let content = &self.document["requestBody"]["content"]["application/json"];
        let mut body = content.get("example")?.clone();
        for (field, value) in [("userId", who.user), ("tenantId", who.tenant)] {
            if let Some(named) = body.get_mut(field) {
                *named = value.into();
            }
        }
        Some(body)
    }

    /// Largest body that it reads, in bytes.
    pub fn body_limit(&self) -> usize {
        match self.pattern {
            path if path.ends_with("/comments") => 32 * 1024,
            path if path.contains("/respond/") => 64 * 1024,
            _ if self.decides() && self.id().is_some() => 16 * 1024,
            _ => 1024 * 1024,
        }
    }
}

/// The API document.
pub fn document() -> Value {
    serde_json::to_value(aura_hitl::api::routes::document()).unwrap()
}

/// Every route.
pub fn operations() -> Vec<Operation> {
    let document = document();
    let operation = |route: Endpoint| {
        let method = route.method.as_str();
        let documented = &document["paths"][&route.path][method.to_lowercase()];
        Operation {
            document: expanded(&document, documented),
            // actix has HTTP types of its own.
            method: method.parse().unwrap(),
            pattern: route.path.leak(),
            access: route.access,
        }
    };
    aura_hitl::api::routes::table().into_iter().map(operation).collect()
}

/// A part of the document, with what it refers to in place of each reference.
fn expanded(document: &Value, part: &Value) -> Value {
    let expand = |part| expanded(document, part);
    match part {
        Value::Object(fields) => {
            let target = fields.get("$ref").map(|target| {
                let target = target.as_str().unwrap();
                document.pointer(&target[1..]).unwrap_or_else(|| panic!("{target} leads nowhere"))
            });
            let target = target.and_then(|target| expand(target).as_object().cloned());
            let own = fields.iter().filter(|(name, _)| *name != "$ref");
            let own = own.map(|(name, field)| (name.clone(), expand(field)));
            Value::Object(target.into_iter().flatten().chain(own).collect())
        }
        Value::Array(items) => items.iter().map(expand).collect(),
        other => other.clone(),
    }
}

/// The routes that end by themselves and that change nothing unless they are sent the right body.
pub fn careful_operations() -> Vec<Operation> {
    let mut operations = operations();
    operations.retain(|one| !one.is_stream() && !one.pattern.ends_with("/cancel"));
    operations
}
