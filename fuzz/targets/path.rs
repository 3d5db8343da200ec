//! Paths and queries, through the real router. An even first byte: the rest is the request's
//! target as it is. An odd one: the rest is an id, encoded into an address that takes one; only
//! an id that is one is looked up.
#![no_main]

use aura_hitl::domain::ids::{RequestId, SessionId, TaskId};
use aura_hitl_fuzz::service;
use libfuzzer_sys::fuzz_target;

fn percent_encoded(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("%{byte:02X}")).collect()
}

fuzz_target!(|data: &[u8]| {
    let Some((&choice, rest)) = data.split_first() else { return };
    let method = ["GET", "POST", "PUT", "PATCH", "DELETE"][usize::from(choice / 2) % 5];
    if choice % 2 == 0 {
        // Nothing but visible characters gets as far as a router.
        let target: Vec<u8> = rest.iter().copied().filter(u8::is_ascii_graphic).collect();
        let answer = service().call(method, &[b"/", target.as_slice()].concat(), Some(b"{}"));
        if !answer.body.is_empty() && !target.windows(7).any(|part| part == b"swagger") {
            assert!(answer.body.starts_with(b"{"), "{answer:?}");
        }
        return;
    }
    if rest.is_empty() {
        return;
    }
    let id = std::str::from_utf8(rest).ok();
    let prefix = if choice % 4 == 1 { "/api" } else { "" };
    for (address, is_id, otherwise) in [
        ("aura/hitl/requests", id.is_some_and(|id| RequestId::parse(id).is_ok()), 404),
        ("main/agent/tasks", id.is_some_and(|id| TaskId::parse(id).is_ok()), 404),
        ("aura/hitl/signals", id.is_some_and(|id| SessionId::parse(id).is_ok()), 200),
    ] {
        let target = format!("{prefix}/{address}/{}", percent_encoded(rest));
        let answer = service().call("GET", target.as_bytes(), None);
        let envelope = answer.envelope();
        // What is not UTF-8 arrives as U+FFFD, which sessions do not take.
        let is_id = is_id && !(address.ends_with("signals") && id.unwrap().contains('\u{fffd}'));
        let expected = if is_id { otherwise } else { 400 };
        assert_eq!(answer.status, expected, "{target}: {envelope}");
    }
});
