//! Callers with false identities, and callers who want another's requests and tasks.

use std::time::Duration;

use aura_hitl::domain::approver::Role;
use reqwest::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use reqwest::{Method, StatusCode};
use serde_json::Value;
use support::belongings::{Belongings, PEOPLE, Service as _, perform, send};
use support::forged::{self, Forged};
use support::harmful::{self, BODY};
use support::{ALICE, Answer, Operation, Who, framed, operations, unique};

use crate::damage::Dice;
use crate::report::{Report, Scale};
use crate::world::{SECRET, World, answered, at_once};

/// Calls at a time.
const MAX_CALLS: usize = 32;

/// Every route that asks for a token, under both prefixes, with this id.
fn secured(id: &str) -> Vec<(Operation, String)> {
    let operations = operations().into_iter().filter(|operation| !operation.is_open());
    let calls = operations
        .flat_map(|operation| operation.paths_to(id).map(|path| (operation.clone(), path)));
    calls.collect()
}

/// The strangers: people of other tenants, with their own or the owner's user id, in these roles.
fn strangers_to(owner: Who<'static>, roles: &[Role]) -> Vec<Who<'static>> {
    let mut strangers = Vec::new();
    for other in PEOPLE.into_iter().filter(|other| other.tenant != owner.tenant) {
        for user in [other.user, owner.user] {
            strangers.extend(roles.iter().map(|&role| Who { user, role, ..other }));
        }
    }
    strangers
}

pub async fn strangers(scale: Scale, report: &mut Report) {
    let mut world = World::start(1).await;
    let mut all = Vec::new();
    for owner in PEOPLE {
        all.push(Belongings::of(&world, owner, scale.of(5, 1)).await);
    }
    let before = world.settled().await;
    let roles = scale.of(&[Role::User, Role::Admin][..], &[Role::Admin]);
    let (read, leaks) = read_as_strangers(&world, &all, roles).await;
    let (swapped, accepted) = swap_identities(&world, &all).await;
    report.count(read, "calls for another tenant's things");
    report.wrongs("leaks", &leaks);
    report.count(swapped, "calls under two identities");
    report.wrongs("of them not refused with 403", &accepted);
    world.check_untouched(report, &before).await;
    let (same, leaks) = same_ids(&world, scale.of(500, 20)).await;
    report.count(same, "calls about ids that three tenants share");
    report.wrongs("answers about another tenant's", &leaks);

    // All of it was there, and still belongs to its owners.
    for theirs in &all {
        let path = |id: &String| format!("/api/aura/hitl/requests/{id}");
        for path in theirs.requests.iter().map(path) {
            let answer = send(&world, theirs.owner, (&Method::GET, &path), None).await;
            report.demand(answer.status == StatusCode::OK, || format!("{path}: {}", answer.text));
        }
    }
}

/// Three tenants register under the same ids, and each decides its own: nobody can tell that there
/// are others.
async fn same_ids(world: &World, count: usize) -> (usize, Vec<String>) {
    let ids = (0..count).map(|_| unique("same")).collect::<Vec<_>>();
    let results = at_once(ids, 8, async |place, id| {
        let (mut calls, mut leaks) = (0, Vec::new());
        let mut expect = |who: Who<'_>, what: &str, answer: &Answer, status: u16, word: &str| {
            calls += 1;
            let is_right = answer.status == status && answer.text.contains(word);
            let others = PEOPLE.into_iter().filter(|other| other.tenant != who.tenant);
            if !is_right || others.clone().any(|other| answer.text.contains(other.tenant)) {
                leaks.push(format!("{who:?} {what} {id}: {}", answer.text));
            }
        };
        let mut people = PEOPLE;
        people.rotate_left(place % 3);
        let base = "/api/aura/hitl";
        let body = |who: Who<'_>| {
            serde_json::json!({
                "requestId": id, "sessionId": "session_of_many", "actionType": who.tenant,
            })
        };
        for who in people {
            let path = format!("{base}/requests");
            let made = send(world, who, (&Method::POST, &path), Some(body(who))).await;
            expect(who, "registers", &made, 201, "pending");
        }
        let verdicts = [("approve", "approved"), ("reject", "rejected"), ("approve", "approved")];
        for (who, (verb, status)) in people.into_iter().zip(verdicts) {
            let path = format!("{base}/{verb}/{id}");
            let body = serde_json::json!({ "userId": who.user });
            let decided = send(world, who, (&Method::POST, &path), Some(body)).await;
            expect(who, verb, &decided, 200, status);
        }
        for (who, (_, status)) in people.into_iter().zip(verdicts) {
            for path in [
                format!("{base}/requests/{id}"),
                format!("{base}/requests/{id}/decision"),
                format!("{base}/signals/session_of_many?requestId={id}"),
            ] {
                let read = send(world, who, (&Method::GET, &path), None).await;
                expect(who, &path, &read, 200, status);
            }
        }
        (calls, leaks)
    })
    .await;
    let calls = results.iter().map(|(calls, _)| calls).sum();
    (calls, results.into_iter().flat_map(|(_, leaks)| leaks).collect())
}

/// Calls every route with the ids of other tenants, and with ids that do not exist.
async fn read_as_strangers(
    world: &World,
    all: &[Belongings],
    roles: &[Role],
) -> (usize, Vec<String>) {
    let mut groups = Vec::new();
    for operation in operations() {
        let Some(kind) = operation.id() else { continue };
        for theirs in all {
            for stranger in strangers_to(theirs.owner, roles) {
                let ids = theirs.named(kind).iter().collect::<Vec<_>>();
                groups.extend(
                    [0, 1].map(|prefix| (operation.clone(), prefix, stranger, ids.clone())),
                );
            }
        }
    }
    let cases = groups.iter().map(|(.., ids)| ids.len()).sum();
    let leaks = at_once(groups, MAX_CALLS, async |_, (operation, prefix, stranger, ids)| {
        let path = |id: &str| operation.paths_to(id)[prefix].clone();
        let call = async |id: &str| {
            answered(async || perform(world, stranger, &operation, &path(id)).await).await
        };
        let nothing = call(&unique("x")).await;
        let is_refused = nothing.status == StatusCode::NOT_FOUND
            || (operation.id() == Some("sessionId") && nothing.body.get("data").is_none());
        let mut leaks = Vec::new();
        if !is_refused {
            leaks.push(format!("{stranger:?} for nothing: {}", nothing.text));
        }
        for id in ids {
            let answer = call(id).await;
            if answer.seen() != nothing.seen() {
                let method = &operation.method;
                leaks.push(format!("{stranger:?} {method} {}: {}", path(id), answer.text));
            }
        }
        leaks
    });
    (cases, leaks.await.concat())
}

/// A valid token with another user's name in a header or in the body: refused, whether the request
/// exists or not.
async fn swap_identities(world: &World, all: &[Belongings]) -> (usize, Vec<String>) {
    let mut calls = Vec::new();
    for theirs in all {
        let owner = theirs.owner;
        for caller in PEOPLE.into_iter().filter(|who| who.tenant != owner.tenant) {
            let swaps =
                [("X-Tenant-ID", owner.tenant, "E2007"), ("X-User-ID", owner.user, "E2001")];
            let fields = [("userId", owner.user, "E2001"), ("tenantId", owner.tenant, "E2007")];
            for operation in operations().into_iter().filter(|operation| !operation.is_open()) {
                let body = operation.body(caller);
                let there = operation.id().map(|kind| theirs.named(kind)[0].clone());
                for id in [there.unwrap_or_default(), unique("x")] {
                    for path in operation.paths_to(&id) {
                        let mut add = |headers: HeaderMap, body: Option<Value>, code| {
                            calls.push((
                                caller,
                                operation.method.clone(),
                                path.clone(),
                                headers,
                                body,
                                code,
                            ));
                        };
                        for (name, value, code) in swaps {
                            let name = HeaderName::try_from(name).unwrap();
                            let pair = (name, HeaderValue::from_static(value));
                            add(HeaderMap::from_iter([pair]), body.clone(), code);
                        }
                        for (field, value, code) in fields {
                            let mut body = body.clone();
                            if let Some(named) = body.as_mut().and_then(|body| body.get_mut(field))
                            {
                                *named = value.into();
                                add(HeaderMap::new(), body, code);
                            }
                        }
                    }
                }
            }
        }
    }
    let count = calls.len();
    let accepted =
        at_once(calls, MAX_CALLS, async |_, (caller, method, path, headers, body, code)| {
            let call = world.call(caller, method.clone(), &path).headers(headers);
            let call = if let Some(body) = &body { call.json(body) } else { call };
            let answer = Answer::of(call.send().await.unwrap()).await;
            let is_refused = (answer.status, answer.code()) == (StatusCode::FORBIDDEN, code);
            (!is_refused).then(|| format!("{caller:?} {method} {path} {body:?}: {}", answer.text))
        });
    (count, accepted.await.into_iter().flatten().collect())
}

pub async fn hostile_tokens(scale: Scale, report: &mut Report) {
    let mut world = World::start(1).await;
    let routes = secured(&world.ask_many(1).await[0].id);
    let before = world.settled().await;
    let forged = forged::all(SECRET.as_bytes());
    report.count(forged.len(), "forged tokens");
    report.count(routes.len(), "routes");
    let mut calls = Vec::new();
    for (operation, path) in &routes {
        let forged = forged.iter();
        calls.extend(forged.map(|Forged { authorization, code, .. }| {
            (operation.method.clone(), path.clone(), authorization.clone(), Some(*code))
        }));
    }
    let (mut dice, flips) = (Dice::new(7), scale.of(20_000, 1_500));
    for place in 0..flips {
        let genuine = world.people.token(PEOPLE[place % PEOPLE.len()]);
        let (operation, path) = &routes[dice.below(routes.len())];
        let authorization = format!("Bearer {}", flipped(&mut dice, &genuine));
        calls.push((operation.method.clone(), path.clone(), authorization, None));
    }
    report.count(flips, "genuine tokens with flipped bits");
    let wrongs = at_once(calls, MAX_CALLS, async |_, (method, path, authorization, code)| {
        let value = HeaderValue::from_str(&authorization).unwrap();
        let call = world.call(ALICE, method.clone(), &path);
        let call = call.headers(HeaderMap::from_iter([(AUTHORIZATION, value)]));
        let answer = Answer::of(call.send().await.unwrap()).await;
        let is_refused = answer.status == StatusCode::UNAUTHORIZED
            && answer.headers.get("WWW-Authenticate").is_some_and(|scheme| scheme == "Bearer")
            && code.map_or(["E2000", "E2002", "E2003"].contains(&answer.code()), |code| {
                answer.code() == code
            });
        (!is_refused).then(|| format!("{method} {path} {authorization}: {}", answer.text))
    });
    report.wrongs(
        "accepted, or answered otherwise than 401",
        &wrongs.await.into_iter().flatten().collect::<Vec<_>>(),
    );
    world.check_untouched(report, &before).await;
    let genuine = send(&world, ALICE, (&Method::GET, "/api/main/agent/tasks"), None).await;
    report.demand(genuine.status == StatusCode::OK, || format!("genuine: {}", genuine.text));
}

/// A token that differs from a genuine one in a few bits: of its text as it goes over the wire, or
/// of what a part of it stands for.
fn flipped(dice: &mut Dice, genuine: &str) -> String {
    loop {
        let mut token = genuine.to_owned();
        for _ in 0..=dice.below(3) {
            token = if dice.below(2) == 0 && token.split('.').count() == 3 {
                let (part, byte, bit) = (dice.below(3), dice.below(200), dice.below(8));
                forged::flipped(genuine, part, byte, u8::try_from(bit).unwrap())
            } else {
                let mut text = token.into_bytes();
                let byte = dice.below(text.len());
                text[byte] ^= 1 << dice.below(7);
                String::from_utf8(text).unwrap()
            };
        }
        if token.trim() != genuine && HeaderValue::from_str(&token).is_ok() {
            return token;
        }
    }
}

pub async fn odd_identities(_scale: Scale, report: &mut Report) {
    let mut world = World::start(1).await;
    let id = world.ask_many(1).await[0].id.clone();
    let before = world.settled().await;
    let mut calls = Vec::new();
    for (operation, path) in secured(&id) {
        let head = world.head(ALICE, &operation.method, &path);
        let mut table = harmful::odd_identities();
        if operation.decides() {
            table.push(format!("X-Tenant-ID: {}\r\n", ALICE.tenant));
        }
        let what = |lines: &String| format!("{} {path} {lines:?}", operation.method);
        calls.extend(
            table.iter().map(|lines| (what(lines), format!("{head}{lines}{}", framed(BODY)))),
        );
    }
    report.count(calls.len(), "calls");
    let wrongs = at_once(calls, MAX_CALLS, async |_, (what, bytes)| {
        let answer = world.raw(bytes).await;
        let is_refused = answer.first().status == StatusCode::BAD_REQUEST
            && answer.count() == 1
            && answer.is_closed;
        (!is_refused).then(|| format!("{what}: {:?}", answer.text))
    });
    report.wrongs(
        "accepted, or answered otherwise than 400",
        &wrongs.await.into_iter().flatten().collect::<Vec<_>>(),
    );
    world.check_untouched(report, &before).await;
    // All that was wrong with them was their headers.
    let head = world.head(ALICE, &Method::POST, &format!("/api/aura/hitl/approve/{id}"));
    let good = world.raw(head + &ALICE.lines() + &framed(BODY)).await;
    report.demand(good.first().status == StatusCode::OK, || good.text.clone());
    report.demand(world.quiet_within(Duration::from_secs(10)).await.is_some(), || {
        "not sent".to_owned()
    });
}
