//! Lists of requests: who sees what, in which order, and pages that neither repeat nor lose a request
//! while others come and go.

use std::collections::{BTreeMap, BTreeSet};

use aura_hitl::config::Config;
use aura_hitl::domain::clock::Clock;
use aura_hitl::domain::rules::Approvers;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use chrono::TimeDelta;
use serde_json::{Value, json};
use support::{
    ADMIN, ALICE, Answer, Asked, BOB, MALLORY, Mode, TestApp, Who, eventually, request_row, unique,
};

use crate::retention::{printed, run};

const LIST: &str = "/api/aura/hitl/requests";

/// The answer to a list with these parameters, which has to succeed.
async fn list(app: &TestApp, who: Who<'_>, query: &str) -> Answer {
    let answer = app.get(who, &format!("{LIST}?{query}")).await;
    answer.assert(200, "");
    assert_eq!(answer.body["message"], "Approval requests retrieved");
    let content = answer.data()["content"].as_array().unwrap();
    assert_eq!(answer.data()["numberOfElements"], content.len());
    answer
}

fn ids(answer: &Answer) -> Vec<String> {
    let content = answer.data()["content"].as_array().unwrap();
    content.iter().map(|one| one["requestId"].as_str().unwrap().to_owned()).collect()
}

/// All pages of a list, one after the other; `between` runs between two of them.
async fn pages(
    app: &TestApp,
    who: Who<'_>,
    query: &str,
    mut between: impl AsyncFnMut(&[String]),
) -> Vec<String> {
    let (mut all, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = list(app, who, &format!("{query}{cursor}")).await;
        all.extend(ids(&page));
        let Some(next) = page.data()["nextCursor"].as_str() else { return all };
        cursor = format!("&cursor={next}");
        between(&all).await;
    }
}

async fn nothing(_seen: &[String]) {}

/// Registers a request that expires after so many seconds.
async fn registered(app: &TestApp, who: Who<'_>, asked: Asked, seconds: u32) -> String {
    let mut body = asked.registration();
    body["expiresInSeconds"] = seconds.into();
    app.post(who, LIST, body).await.assert(201, "");
    asked.id
}

both_modes! {
    async fn what_waits_is_listed_with_everything_but_its_context(app: TestApp) {
        let later = registered(&app, ALICE, Asked::new(), 600).await;
        let asked = Asked::new()
            .with("message", "결재해 주세요: 메일 발송".into())
            .with("taskId", "task-7".into());
        let session = asked.session.clone();
        let sooner = registered(&app, ALICE, asked, 300).await;
        // Not theirs.
        registered(&app, MALLORY, Asked::new(), 100).await;

        let listed = list(&app, BOB, "").await;
        assert_eq!(ids(&listed), [sooner.clone(), later]);
        assert_eq!((&listed.data()["size"], &listed.data()["totalElements"]), (&json!(20), &json!(2)));
        assert_eq!(listed.data().get("nextCursor"), None);

        let read = app.get(BOB, &format!("{LIST}/{sooner}")).await;
        let record = app.record(&sooner).await;
        let time = |time: chrono::DateTime<chrono::Utc>| time.format("%Y-%m-%dT%H:%M:%S").to_string();
        let expected = json!({
            "requestId": sooner, "sessionId": session, "tenantId": "tenant1", "userId": "user123",
            "origin": "http", "actionType": "send_email", "message": "결재해 주세요: 메일 발송",
            "status": "pending", "risk": "medium", "rule": null, "createdAt": time(record.created_at),
            "expiresAt": time(record.expires_at), "taskId": "task-7", "fingerprint": record.fingerprint,
            "decidedBy": null, "decidedVia": null, "decidedAt": null, "settledAt": null, "reason": null,
            "approvals": 0, "approvalsNeeded": 1, "mayDecide": true,
            "decisions": ["approve", "reject"],
            "etag": read.headers["ETag"].to_str().unwrap().trim_matches('"'), "askedAgain": false,
            "agentWaitsUntil": null,
        });
        assert_eq!(listed.data()["content"][0], expected);
    }
}

both_modes! {
    async fn closed_requests_are_listed_by_their_status_the_latest_first(app: TestApp) {
        let mut made = Vec::new();
        for _ in 0..4 {
            made.push(registered(&app, ALICE, Asked::new(), 600).await);
        }
        let [approved, rejected, cancelled, pending] = made.try_into().unwrap();
        let expired = registered(&app, ALICE, Asked::new(), 1).await;
        app.approve(BOB, &approved).await.assert(200, "");
        app.reject(ALICE, &rejected, Some("아니요")).await.assert(200, "");
        app.post(ALICE, &format!("{LIST}/{cancelled}/cancel"), json!({})).await.assert(200, "");
        let closed = "status=expired,approved,rejected,cancelled,answered";
        let listed = eventually(async || {
            let listed = list(&app, BOB, closed).await;
            (ids(&listed).len() == 4).then_some(listed)
        })
        .await;
        assert_eq!(ids(&listed), [&expired, &cancelled, &rejected, &approved].map(String::clone));
        let content = listed.data()["content"].as_array().unwrap();
        let of = |field: &str| content.iter().map(|one| one[field].clone()).collect::<Vec<_>>();
        assert_eq!(of("status"), ["expired", "cancelled", "rejected", "approved"]);
        assert_eq!(of("decidedBy"), [json!(null), json!(null), json!("user123"), json!("bob")]);
        assert_eq!(of("decidedVia"), [json!(null), json!(null), json!("person"), json!("person")]);
        assert_eq!(of("reason"), [json!(null), json!(null), json!("아니요"), json!(null)]);
        assert_eq!(of("approvals"), [0, 0, 0, 1]);
        assert_eq!(of("mayDecide"), [false; 4]);
        assert!(of("settledAt").iter().all(Value::is_string), "{}", listed.text);

        for (status, id) in [("expired", &expired), ("approved", &approved), ("pending", &pending)] {
            assert_eq!(ids(&list(&app, BOB, &format!("status={status}")).await), [id.as_str()]);
        }
        assert!(ids(&list(&app, BOB, "status=answered").await).is_empty());
        // With pending ones: these come first.
        let mixed = list(&app, BOB, "status=pending,approved").await;
        assert_eq!(ids(&mixed), [&pending, &approved].map(String::clone));
        let newest = list(&app, BOB, &format!("{closed},pending&sort=-createdAt")).await;
        assert_eq!(ids(&newest), [&expired, &pending, &cancelled, &rejected, &approved].map(String::clone));
    }
}

both_modes! {
    async fn scopes_say_whose_requests_are_listed(app: TestApp) {
        let alices = registered(&app, ALICE, Asked::new(), 600).await;
        let bobs = registered(&app, BOB, Asked::new(), 700).await;
        let mallorys = registered(&app, MALLORY, Asked::new(), 800).await;
        let both = [alices.clone(), bobs.clone()];
        for (who, scope, expected) in [
            (ALICE, "decidable", &both[..]),
            (ADMIN, "decidable", &both[..]),
            (ALICE, "mine", &both[..1]),
            (BOB, "mine", &both[1..]),
            (ADMIN, "mine", &[]),
            (ADMIN, "tenant", &both[..]),
            (MALLORY, "decidable", std::slice::from_ref(&mallorys)),
        ] {
            assert_eq!(ids(&list(&app, who, &format!("scope={scope}")).await), expected, "{who:?} {scope}");
        }
        for who in [ALICE, BOB, MALLORY] {
            let refused = app.get(who, &format!("{LIST}?scope=tenant")).await;
            refused.assert(403, "E2001");
        }
        for id in [&alices, &bobs] {
            app.approve(BOB, id).await.assert(200, "");
        }
        assert_eq!(ids(&list(&app, ALICE, "scope=mine&status=approved").await), [alices]);
        assert_eq!(ids(&list(&app, BOB, "scope=mine&status=approved&sort=-createdAt").await), [bobs]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_requesters_find_what_only_they_may_decide() {
    for mode in [Mode::Embedded, Mode::Production] {
        let app = TestApp::spawn_with(mode, Clock::System, |config: &mut Config| {
            config.policy.approvers = Approvers::Requester;
        })
        .await;
        let alices = registered(&app, ALICE, Asked::new(), 600).await;
        let bobs = registered(&app, BOB, Asked::new(), 700).await;
        // Nobody's: anybody may decide it.
        let nobodys = unique("req");
        // From the beginning: what has expired might be expired before the next statement.
        let expires = if mode == Mode::Embedded {
            format!("'{}'", (app.state.clock.now() + TimeDelta::seconds(650)).to_rfc3339())
        } else {
            "now() + interval '650 s'".to_owned()
        };
        let row = request_row()
            .with("request_id", format!("'{nobodys}'"))
            .with("session_id", format!("'{}'", unique("session")))
            .with("status", "'pending'")
            .with("expires_at", expires)
            .with("outcome", "NULL")
            .with("decided_by", "NULL")
            .at(&["decided_at", "settled_at"], "NULL");
        app.sql(row.insert()).await;
        assert_eq!(pages(&app, ALICE, "size=1", nothing).await, [alices.clone(), nobodys.clone()]);
        assert_eq!(pages(&app, BOB, "size=1", nothing).await, [nobodys.clone(), bobs.clone()]);
        let all = list(&app, ADMIN, "scope=tenant").await;
        assert_eq!(ids(&all), [alices.clone(), nobodys, bobs]);
        let may = all.data()["content"].as_array().unwrap().iter();
        assert_eq!(may.map(|one| &one["mayDecide"]).collect::<Vec<_>>(), [false, true, false]);
        app.approve(ALICE, &alices).await.assert(200, "");
        assert_eq!(ids(&list(&app, ALICE, "status=approved").await), [alices]);
        assert!(ids(&list(&app, BOB, "status=approved").await).is_empty());
    }
}

both_modes! {
    async fn filters_are_exact(app: TestApp) {
        let mail = Asked::new().with("taskId", "task-1".into());
        let session = mail.session.clone();
        let mail = registered(&app, ALICE, mail, 600).await;
        let pay = registered(&app, BOB, Asked::new().with("actionType", "send_payment".into()), 700).await;
        let made = app.record(&pay).await.created_at;
        let [before, after] = [-1, 1].map(|by| {
            let time = made + TimeDelta::microseconds(by);
            time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
        });
        let both = [mail.clone(), pay.clone()];
        for (filter, expected) in [
            ("actionType=send_email".to_owned(), &both[..1]),
            ("actionType=send".to_owned(), &[]),
            ("userId=bob".to_owned(), &both[1..]),
            ("userId=nobody".to_owned(), &[]),
            (format!("sessionId={session}"), &both[..1]),
            ("taskId=task-1".to_owned(), &both[..1]),
            ("decidedBy=bob".to_owned(), &[]),
            ("risk=medium".to_owned(), &both[..]),
            ("risk=high".to_owned(), &[]),
            ("rule=large%20payments".to_owned(), &[]),
            (format!("from={before}"), &both[1..]),
            (format!("to={before}"), &both[..1]),
            (format!("to={after}"), &both[..]),
            (format!("from={before}&to={after}"), &both[1..]),
            ("from=2026-01-16T12:00:00%2B09:00".to_owned(), &both[..]),
            ("userId=bob&actionType=send_payment".to_owned(), &both[1..]),
            ("userId=bob&actionType=send_email".to_owned(), &[]),
            ("scope=mine&userId=bob".to_owned(), &[]),
        ] {
            for sort in ["expiresAt", "-createdAt", "-settledAt"] {
                let listed = list(&app, ALICE, &format!("{filter}&sort={sort}")).await;
                let found = ids(&listed).into_iter().collect::<BTreeSet<_>>();
                assert_eq!(found, expected.iter().cloned().collect(), "{filter} {sort}");
                assert_eq!(listed.data()["totalElements"], expected.len(), "{filter} {sort}");
            }
        }
        for id in &both {
            app.approve(BOB, id).await.assert(200, "");
        }
        for (filter, expected) in [
            ("decidedBy=bob", 2), ("decidedBy=user123", 0), ("actionType=send_payment", 1), ("userId=user123", 1),
        ] {
            let listed = list(&app, ALICE, &format!("status=approved&{filter}")).await;
            assert_eq!(ids(&listed).len(), expected, "{filter}");
        }
    }
}

both_modes! {
    async fn what_is_no_parameter_or_has_no_valid_value_is_named(app: TestApp) {
        for (query, field) in [
            ("statuss=pending", "statuss"),
            ("page=1", "page"),
            ("status=open", "status"),
            ("status=", "status"),
            ("status=pending,,approved", "status"),
            ("scope=all", "scope"),
            ("sort=createdAt", "sort"),
            ("status=approved&sort=expiresAt", "sort"),
            ("size=0", "size"),
            ("size=101", "size"),
            ("size=-1", "size"),
            ("size=ten", "size"),
            ("userId=", "userId"),
            ("sessionId=a%20b", "sessionId"),
            ("taskId=a/b", "taskId"),
            ("decidedBy=%00", "decidedBy"),
            ("actionType=", "actionType"),
            ("actionType=%00", "actionType"),
            ("rule=%00", "rule"),
            ("risk=huge", "risk"),
            ("from=yesterday", "from"),
            ("to=2026-01-16", "to"),
            ("to=9999999-01-16T00:00:00Z", "to"),
            ("userId=%FF", "userId"),
            ("userId=a&userId=b", "userId"),
            ("cursor=x", "cursor"),
        ] {
            for prefix in support::PREFIXES {
                let answer = app.get(ALICE, &format!("{prefix}/aura/hitl/requests?{query}")).await;
                answer.assert(400, "E4000");
                let fields = answer.data().as_object().unwrap();
                assert_eq!(fields.keys().collect::<Vec<_>>(), [field], "{query}: {}", answer.text);
            }
        }
        let several = app.get(ALICE, &format!("{LIST}?size=0&scope=x&other=1")).await;
        several.assert(400, "E4000");
        assert_eq!(several.data().as_object().unwrap().len(), 3, "{}", several.text);
        let korean = app.call(ALICE, reqwest::Method::GET, &format!("{LIST}?size=0"));
        let korean = Answer::of(korean.header("Accept-Language", "ko").send().await.unwrap()).await;
        assert_eq!(korean.data()["size"], "1에서 100 사이여야 합니다");
    }
}

both_modes! {
    async fn a_cursor_that_this_list_has_not_made_is_refused(app: TestApp) {
        for number in 0..3 {
            registered(&app, ALICE, Asked::new(), 600 + number).await;
        }
        let first = list(&app, ALICE, "size=1").await;
        let cursor = first.data()["nextCursor"].as_str().unwrap();
        list(&app, ALICE, &format!("size=2&cursor={cursor}")).await;
        let json = BASE64_URL_SAFE_NO_PAD.decode(cursor).unwrap();
        let genuine: Value = serde_json::from_slice(&json).unwrap();
        let forged = |change: &dyn Fn(&mut Value)| {
            let mut forged = genuine.clone();
            change(&mut forged);
            BASE64_URL_SAFE_NO_PAD.encode(forged.to_string())
        };
        let mut bad = vec![
            String::new(),
            "AAAA".to_owned(),
            "%F0%9F".to_owned(),
            BASE64_URL_SAFE_NO_PAD.encode("null"),
            BASE64_URL_SAFE_NO_PAD.encode("{}"),
            BASE64_URL_SAFE_NO_PAD.encode("[1,\"a\",false,0,\"b\"]"),
            cursor[1..].to_owned(),
            format!("{cursor}="),
            forged(&|one| one["v"] = 2.into()),
            forged(&|one| one["extra"] = 1.into()),
            forged(&|one| one["list"] = "another".into()),
            forged(&|one| one["at"] = i64::MAX.into()),
            forged(&|one| one["at"] = i64::MIN.into()),
            forged(&|one| one["at"] = (-1).into()),
            forged(&|one| one["at"] = "2026".into()),
            forged(&|one| one["id"] = "a b".into()),
            forged(&|one| one["id"] = "'; DROP TABLE hitl_request; --".into()),
            forged(&|one| one["closed"] = "no".into()),
        ];
        bad.push("A".repeat(5000));
        for cursor in &bad {
            let answer = app.get(ALICE, &format!("{LIST}?size=1&cursor={cursor}")).await;
            answer.assert(400, "E4000");
            assert!(answer.data()["cursor"].is_string(), "{}", answer.text);
        }
        // Of another list, or another person's.
        for (who, query) in [
            (ALICE, "scope=mine"), (ALICE, "status=approved"), (ALICE, "sort=-createdAt"),
            (ALICE, "actionType=send_email"), (BOB, ""), (MALLORY, ""),
        ] {
            let answer = app.get(who, &format!("{LIST}?{query}&cursor={cursor}")).await;
            answer.assert(400, "E4000");
            assert!(answer.data()["cursor"].as_str().unwrap().contains("another list"), "{}", answer.text);
        }
        // Whoever changes its time begins elsewhere, in the same list.
        let anywhere = forged(&|one| one["at"] = 0.into());
        assert_eq!(ids(&list(&app, ALICE, &format!("cursor={anywhere}")).await).len(), 3);
    }
}

/// A small generator of numbers, so that each run does the same.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

both_modes! {
    /// Of the requests that belong to a list all the time, each is on exactly one page, in order, however
    /// many others come and go meanwhile. Many have the same time.
    async fn pages_neither_repeat_nor_lose_a_request_while_others_come_and_go(app: TestApp) {
        let app = TestApp::spawn_with(app.mode, Clock::manual(), |_| {}).await;
        let mut numbers = Numbers(app.mode as u64 + 7);
        for (query, sort) in [
            ("", "expiresAt"),
            ("status=approved,rejected,cancelled&", "-settledAt"),
            ("status=pending,approved,rejected,cancelled&", "-settledAt"),
            ("status=pending,approved,rejected,cancelled&", "-createdAt"),
            ("userId=user123&", "expiresAt"),
            ("actionType=send_email&status=pending,approved&", "-createdAt"),
            ("scope=mine&", "expiresAt"),
            ("scope=mine&status=approved,rejected&", "-settledAt"),
        ] {
            for round in 0..3 {
                for _ in 0..12 {
                    change(&app, &mut numbers, &mut BTreeMap::new()).await;
                }
                // What the list has at the beginning, and what has happened to it since.
                let before = pages(&app, ALICE, &format!("{query}sort={sort}&size=100"), nothing).await;
                let mut changed = BTreeMap::new();
                let size = 1 + numbers.below(5);
                let seen = pages(&app, ALICE, &format!("{query}sort={sort}&size={size}"), async |_seen: &[String]| {
                    for _ in 0..numbers.below(4) {
                        change(&app, &mut numbers, &mut changed).await;
                    }
                })
                .await;
                let unchanged = before.iter().filter(|id| !changed.contains_key(*id)).collect::<Vec<_>>();
                let still = seen.iter().filter(|id| unchanged.contains(id)).collect::<Vec<_>>();
                assert_eq!(still, unchanged, "{query}{sort}, round {round}, pages of {size}");
                // What is decided between two pages of a list of both may be on a page of each kind.
                if !query.contains("pending,") || sort == "-createdAt" {
                    let once = seen.iter().collect::<BTreeSet<_>>();
                    assert_eq!(once.len(), seen.len(), "{query}{sort}, round {round}, pages of {size}");
                }
            }
        }
    }
}

/// A request comes, is closed, or time goes on; notes whose request it was.
async fn change(app: &TestApp, numbers: &mut Numbers, changed: &mut BTreeMap<String, u64>) {
    let kind = numbers.below(8);
    if kind == 0 {
        app.state.clock.advance(TimeDelta::milliseconds(3));
        return;
    }
    if kind < 4 {
        let who = if numbers.below(3) == 0 { BOB } else { ALICE };
        let action = if numbers.below(3) == 0 { "send_payment" } else { "send_email" };
        let seconds = 600 + u32::try_from(numbers.below(3)).unwrap();
        let id =
            registered(app, who, Asked::new().with("actionType", action.into()), seconds).await;
        changed.insert(id, kind);
        return;
    }
    let pending = ids(&list(app, ALICE, "size=100").await);
    if pending.len() < 8 {
        return;
    }
    let chosen = usize::try_from(numbers.below(pending.len() as u64)).unwrap();
    let id = &pending[chosen];
    changed.insert(id.clone(), kind);
    match kind {
        4 | 5 => app.approve(ALICE, id).await.assert(200, ""),
        6 => app.reject(BOB, id, None).await.assert(200, ""),
        _ => app.post(ADMIN, &format!("{LIST}/{id}/cancel"), json!({})).await.assert(200, ""),
    };
}

both_modes! {
    /// Of 25,000 requests a filter takes three. Each page reads 10,000 rows at most and says where the
    /// next one goes on.
    async fn a_page_reads_no_more_than_ten_thousand_rows(app: TestApp) {
        let rows = |from, to| {
            request_row()
                .with("request_id", "'old_' || n")
                .with("session_id", "'session_' || n")
                .with("user_id", "CASE WHEN n IN (1, 12000, 24999) THEN 'rare' ELSE 'user123' END")
                .with("outcome", "n")
                .with("etag", "'e'")
                .at(&["created_at", "expires_at", "decided_at", "settled_at"], "'2026-01-16T12:00:00+00:00'")
                .insert_each(from, to)
        };
        app.sql(rows(1, 25_000)).await;
        for sort in ["-settledAt", "-createdAt"] {
            let query = format!("status=approved&userId=rare&sort={sort}");
            let mut count = 0;
            let found = pages(&app, ALICE, &query, async |_seen: &[String]| count += 1).await;
            let found = found.into_iter().collect::<BTreeSet<_>>();
            assert_eq!(found, BTreeSet::from(["old_1", "old_12000", "old_24999"].map(str::to_owned)));
            assert_eq!(count, 2, "{sort}");
        }
        let all = list(&app, ALICE, "status=approved&size=1").await;
        assert_eq!(all.data()["totalElements"], 10_001);
    }
}

both_modes! {
    /// What an older release has written lacks the columns of lists; what this one writes is listed
    /// without a look at its document.
    async fn only_the_documents_of_an_older_release_are_read(app: TestApp) {
        let old = registered(&app, ALICE, Asked::new().with("message", "옛 요청".into()), 600).await;
        let new = registered(&app, ALICE, Asked::new().with("message", "새 요청".into()), 700).await;
        let before = list(&app, ALICE, "").await;
        app.sql(format!("UPDATE hitl_request SET message = NULL, etag = NULL WHERE request_id = '{old}'")).await;
        app.sql(format!("UPDATE hitl_request SET document = '?' WHERE request_id = '{new}'")).await;
        let after = list(&app, ALICE, "").await;
        assert_eq!(before.data()["content"], after.data()["content"]);
        assert_eq!(after.data()["content"][0]["message"], "옛 요청");
        // A row that somebody broke by hand hides itself alone.
        app.sql(format!("UPDATE hitl_request SET session_id = 'a b' WHERE request_id = '{new}'")).await;
        assert_eq!(ids(&list(&app, ALICE, "").await), [old]);
    }
}

over_redis! {
    /// It is in the ledger from its decision on.
    async fn a_decided_request_of_redis_is_listed(app: TestApp) {
        let asked = Asked::new().with("message", "가".repeat(3000).into());
        app.ask(&asked).await;
        app.approve(ALICE, &asked.id).await.assert(200, "");
        let listed = list(&app, ALICE, "status=approved").await;
        let one = &listed.data()["content"][0];
        assert_eq!((&one["requestId"], &one["origin"]), (&json!(asked.id), &json!("redis")));
        assert_eq!(one["message"], "가".repeat(2000));
        assert!(one["agentWaitsUntil"].is_string(), "{one}");
    }
}

both_modes! {
    /// For whoever is on call, of all tenants.
    async fn a_command_shows_what_waits_as_a_table(app: TestApp) {
        let message = "결재\u{1b}[2J 해 주세요";
        let alices = registered(&app, ALICE, Asked::new().with("message", message.into()), 700).await;
        let mallorys = registered(&app, MALLORY, Asked::new(), 600).await;
        let decided = registered(&app, ALICE, Asked::new(), 500).await;
        app.approve(BOB, &decided).await.assert(200, "");
        let shown = |arguments: &[&str]| {
            let arguments = [&["requests"], arguments].concat();
            let text = printed(&run(&app, &arguments));
            let place = |id: &String| text.find(id.as_str());
            (place(&mallorys), place(&alices), place(&decided), text.clone())
        };
        let (first, second, none, text) = shown(&[]);
        assert!(first.is_some() && first < second && none.is_none(), "{text}");
        assert!(text.contains("결재\\u{1b}[2J 해 주세요") && text.contains("2 requests"), "{text}");
        let (first, _, none, text) = shown(&["--status=approved,rejected"]);
        assert!(first.is_none() && none.is_some() && text.contains("bob"), "{text}");
        let (none, first, last, text) = shown(&["--status=pending,approved", "--tenant=tenant1"]);
        assert!(none.is_none() && first.is_some() && first < last, "{text}");
        let (first, second, _, _) = shown(&["--limit=1"]);
        assert!(first.is_some() && second.is_none());
        let refused = run(&app, &["requests", "--status=open"]);
        let said = String::from_utf8(refused.stderr).unwrap();
        assert!(!refused.status.success() && said.contains("pending, approved"), "{said}");
    }
}
