//! Lists for people, with a million requests of one tenant beside a thousand: the first page of each scope,
//! a page far behind, and words.

use reqwest::Client;

use crate::report::Report;
use crate::service::{Service, one};
use crate::speed::Options;
use crate::world::{ADMIN, Call, World};

const SMALL: i64 = 1000;
/// Which page is far behind; a small ledger has just as many pending requests.
const FAR: usize = 100;

/// The name of a list with few requests, with many, who asks, and for what.
const LISTS: [(&str, &str, usize, &str); 8] = [
    ("small: list, decidable", "grown: list, decidable", 0, "size=20"),
    ("small: list, mine", "grown: list, mine", 0, "scope=mine"),
    ("small: list, tenant", "grown: list, tenant", ADMIN, "scope=tenant"),
    (
        "small: list, decided",
        "grown: list, decided",
        0,
        "status=approved,rejected,expired,cancelled,answered",
    ),
    ("small: list, page 100", "grown: list, page 100", 0, "size=1"),
    (
        "small: q, rare word",
        "grown: q, rare word",
        0,
        "q=%EC%84%B8%EA%B8%88%EA%B3%84%EC%82%B0%EC%84%9C&status=approved",
    ),
    ("small: q, common word", "grown: q, common word", 0, "q=weekly"),
    ("small: q, two letters", "grown: q, two letters", 0, "q=%EA%B2%B0%EC%9E%AC&status=approved"),
];

/// Measures both ledgers by turns.
pub async fn measure(options: &Options, report: &mut Report) {
    let world = World::start().await;
    let mut small = Service::start(&world, "small", options.time()).await;
    let mut grown = Service::start(&world, "grown", options.time()).await;
    let fill = include_str!("lists.sql");
    small.database.fill(fill, SMALL).await;
    grown.database.fill(fill, options.rows).await;
    for _run in 0..options.runs {
        for (small_name, grown_name, person, query) in LISTS {
            for (name, service) in [(small_name, &small), (grown_name, &grown)] {
                let path = format!("/api/aura/hitl/requests?{query}");
                let path = if name.ends_with("page 100") {
                    far(&world, service, &path).await
                } else {
                    path
                };
                report.add(name, 1, service.play_well(&[Call::get(person, path)], 1).await);
            }
        }
    }
    for (small, grown, ..) in LISTS {
        let [before, after] = [small, grown].map(|name| report.cell(name, 1).millis[0]);
        if grown.contains(": q,") {
            report.at_most(format!("{grown}: p50"), after, 300.0, "ms");
        } else {
            let name = format!("{grown}: p50 by that of a small ledger");
            report.at_most(name, after / before, 1.5, "times");
        }
    }
}

/// The address of a page far behind, by the cursors of those before.
async fn far(world: &World, service: &Service<'_>, path: &str) -> String {
    let (client, mut next) = (Client::new(), path.to_owned());
    for _page in 1..FAR {
        let page = one(&client, service.base(), world, &Call::get(0, next)).await;
        next = format!("{path}&cursor={}", page["nextCursor"].as_str().unwrap());
    }
    next
}
