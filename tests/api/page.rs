//! The inbox page's files: where they are, how browsers may keep them, and what may frame the page. What
//! the page does is tested in a browser by `scripts/page-tests`.

use std::collections::BTreeSet;
use std::io::Read as _;

use aura_hitl::domain::clock::Clock;
use flate2::read::GzDecoder;
use reqwest::{Client, Method, Response, StatusCode};
use support::{Mode, TestApp, both_modes};

const PLACES: [&str; 2] = ["/api/aura/hitl/inbox/", "/aura/hitl/inbox/"];

async fn get(app: &TestApp, path: &str, headers: &[(&str, &str)]) -> Response {
    let call = app.client.get(format!("{}{path}", app.base));
    let call = headers.iter().fold(call, |call, (name, value)| call.header(*name, *value));
    call.send().await.unwrap()
}

fn header<'a>(response: &'a Response, name: &str) -> &'a str {
    response.headers().get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
}

/// The addresses that a file names: `"x/y.js"` in the page, `from './x.js'` in a module.
fn named(text: &str) -> Vec<String> {
    let quoted = text.split(['"', '\'']).skip(1).step_by(2);
    let is_file = |name: &&str| {
        [".js", ".css", ".svg"].iter().any(|ending| name.ends_with(ending))
            && !name.contains([' ', '`'])
    };
    quoted.filter(is_file).map(ToOwned::to_owned).collect()
}

both_modes! {
    async fn the_page_and_all_its_files_are_served_to_anybody_and_kept_for_ever(app: TestApp) {
        for place in PLACES {
            let page = get(&app, place, &[]).await;
            assert_eq!(page.status(), StatusCode::OK);
            assert_eq!(header(&page, "Content-Type"), "text/html; charset=utf-8");
            assert_eq!(header(&page, "Cache-Control"), "no-cache");
            let html = page.text().await.unwrap();
            assert!(!html.contains("{{"), "{html}");
            let mut unread = named(&html);
            let mut read = BTreeSet::new();
            let mut compressed = 0;
            while let Some(path) = unread.pop() {
                if !read.insert(path.clone()) {
                    continue;
                }
                let file = get(&app, &format!("{place}{path}"), &[]).await;
                assert_eq!(file.status(), StatusCode::OK, "{path}");
                assert_eq!(header(&file, "Cache-Control"), "public, max-age=31536000, immutable");
                assert_eq!(header(&file, "X-Content-Type-Options"), "nosniff");
                let text = file.text().await.unwrap();
                let folder = path.rsplit_once('/').unwrap().0;
                for other in named(&text).iter().filter(|other| other.starts_with('.')) {
                    unread.push(match other.strip_prefix("../") {
                        Some(other) => format!("{}/{other}", folder.rsplit_once('/').unwrap().0),
                        None => format!("{folder}/{}", other.trim_start_matches("./")),
                    });
                }
                let small = get(&app, &format!("{place}{path}"), &[("Accept-Encoding", "gzip")]).await;
                assert_eq!(header(&small, "Content-Encoding"), "gzip");
                let bytes = small.bytes().await.unwrap();
                let mut unpacked = String::new();
                GzDecoder::new(&bytes[..]).read_to_string(&mut unpacked).unwrap();
                assert_eq!(unpacked, text, "{path}");
                compressed += bytes.len();
            }
            assert!(read.len() > 10, "{read:?}");
            assert!(compressed < 100 * 1024, "{compressed} bytes");
        }
    }
}

both_modes! {
    async fn a_browser_that_has_a_file_is_told_so(app: TestApp) {
        let place = PLACES[0];
        let html = get(&app, place, &[]).await.text().await.unwrap();
        let style = named(&html).into_iter().find(|name| name.contains("style")).unwrap();
        for path in [place.to_owned(), format!("{place}{style}")] {
            for coding in ["identity", "gzip"] {
                let first = get(&app, &path, &[("Accept-Encoding", coding)]).await;
                let tag = header(&first, "ETag").to_owned();
                assert!(tag.starts_with('"'), "{tag}");
                assert!(header(&first, "Vary").contains("accept-encoding"));
                let again = get(&app, &path, &[("Accept-Encoding", coding), ("If-None-Match", &tag)]).await;
                assert_eq!(again.status(), StatusCode::NOT_MODIFIED, "{path} {coding}");
                assert_eq!(header(&again, "ETag"), tag);
                assert_eq!(again.bytes().await.unwrap().len(), 0);
                // Each form has its own tag: a cache must not mix them up.
                let other = if coding == "gzip" { "identity" } else { "gzip" };
                let other = get(&app, &path, &[("Accept-Encoding", other), ("If-None-Match", &tag)]).await;
                assert_eq!(other.status(), StatusCode::OK);
            }
        }
        // The page's own head alone, as monitors ask for it.
        let call = app.client.request(Method::HEAD, format!("{}{place}", app.base));
        assert_eq!(call.send().await.unwrap().status(), StatusCode::OK);
        // Another release's file, a file that is none, and another method.
        let unknown = get(&app, &format!("{place}0123456789abcdef/main.js"), &[]).await;
        assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
        let version = style.split('/').next().unwrap();
        for name in ["index.html", "none.js", "../../Cargo.toml", "%2e%2e%2fpage.rs"] {
            let none = get(&app, &format!("{place}{version}/{name}"), &[]).await;
            assert_eq!(none.status(), StatusCode::NOT_FOUND, "{name}");
        }
        let post = app.client.post(format!("{}{place}", app.base)).send().await.unwrap();
        assert_eq!((post.status(), header(&post, "Allow")), (StatusCode::METHOD_NOT_ALLOWED, "GET, HEAD"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_without_its_slash_leads_to_the_page() {
    let app = TestApp::spawn(Mode::Embedded).await;
    let client = Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    for place in PLACES {
        let bare = format!("{}{}", app.base, place.trim_end_matches('/'));
        for (query, address) in [("", "inbox/"), ("?request=req-1", "inbox/?request=req-1")] {
            let answer = client.get(format!("{bare}{query}")).send().await.unwrap();
            assert_eq!(answer.status(), StatusCode::PERMANENT_REDIRECT);
            assert_eq!(header(&answer, "Location"), address);
            let page = get(&app, &format!("{}{query}", place.trim_end_matches('/')), &[]).await;
            assert_eq!((page.status(), page.url().path()), (StatusCode::OK, place));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_named_origins_may_frame_the_page_and_nothing_else_is_framed() {
    let framed = TestApp::spawn_with(Mode::Embedded, Clock::System, |config| {
        config.inbox_frame_ancestors = vec!["https://dwp.example".into(), "http://a.b:42".into()];
    })
    .await;
    let alone = TestApp::spawn(Mode::Embedded).await;
    for (app, ancestors, old) in [
        (&framed, "frame-ancestors https://dwp.example http://a.b:42", ""),
        (&alone, "frame-ancestors 'none'", "DENY"),
    ] {
        let page = get(app, PLACES[0], &[]).await;
        let policy = header(&page, "Content-Security-Policy");
        assert!(policy.ends_with(ancestors), "{policy}");
        assert!(policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self';"));
        assert!(policy.contains("require-trusted-types-for 'script'"), "{policy}");
        assert!(!policy.contains("unsafe"), "{policy}");
        assert_eq!(header(&page, "X-Frame-Options"), old);
        for other in ["/health/live", "/aura/hitl/requests", "/nowhere", "/swagger-ui/"] {
            let other = get(app, other, &[]).await;
            assert_eq!(header(&other, "X-Frame-Options"), "DENY");
            assert!(header(&other, "Content-Security-Policy").ends_with("frame-ancestors 'none'"));
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_is_told_where_the_platform_keeps_its_token() {
    let app = TestApp::spawn_with(Mode::Embedded, Clock::System, |config| {
        config.inbox_token_key = "a\"><script>".to_owned();
    })
    .await;
    let html = get(&app, PLACES[0], &[]).await.text().await.unwrap();
    assert!(html.contains(r#"data-token-key="a&quot;>&lt;script>""#), "{html}");
}
