//! The overview as the server draws it: what a browser without scripts sees.

use seawall_core::journal::{Draft, Kind};
use seawall_core::observation::NodeSnapshot;

use crate::world::world;

#[tokio::test]
async fn the_first_page_shows_everything_without_a_script() {
    let world = world().await;
    let opened =
        world.store.journal.record(Draft::new(Kind::BreakerOpened, "route:events").with("failure_rate", "57%"));
    world.store.journal.record(Draft::new(Kind::DegradedStarted, "route:<b>").because(Some(opened)));
    world.park("1").await;
    let answer = world.get("/").await;
    assert_eq!(answer.status, 200);
    let page = &answer.body;
    let (cause, effect) = (opened.0, opened.0 + 1);
    for part in [
        r#"<tr data-route="events" data-breaker-state="closed">"#,
        r#"<tr data-route="quotes" data-breaker-state="off">"#,
        r#"<th scope="col">us-east <small>(here)</small></th><th scope="col">us-west</th><th scope="col">mars</th><th scope="col">zone not told</th>"#,
        r#"data-endpoint="10.0.0.1:80" data-healthy="true""#,
        r#"<dd id="spool-waiting">0</dd>"#,
        r#"<dd id="spool-parked" class="state warn">1</dd>"#,
        r#"id="ledger-verdict" data-verdict="unknown""#,
        "<td>25 %</td>",
        "<td>60 s</td>",
        &format!(r##"<a class="cause" href="#entry-{cause}" data-cause="{cause}">because of {cause}</a>"##),
        &format!(r#"<li id="entry-{effect}" tabindex="-1" value="{effect}" data-kind="degraded_started">"#),
        "every route answers in full",
        "failure_rate=57%",
        "route:&lt;b&gt;",
    ] {
        assert!(page.contains(part), "{part}\n{page}");
    }
    let verdict = page.split(r#"id="ledger-verdict""#).next().unwrap().rsplit("<p ").next().unwrap();
    assert!(!verdict.contains("good"), "unknown is never shown as good");
    world.end().await;
}

#[tokio::test]
async fn trouble_is_said_in_words() {
    let world = world().await;
    {
        let mut snapshot = world.snapshot.lock().unwrap();
        for (route, state) in [(0, "open"), (1, "half_open")] {
            snapshot.routes[route].breaker.state = state;
        }
        snapshot.routes[0].degraded_since_ms = Some(crate::world::START.as_millis() - 61_000);
        snapshot.routes[0].waiting = 3;
        snapshot.routes[0].breaker.failure_rate = None;
        snapshot.upstreams[0].endpoints[0].healthy = false;
        snapshot.upstreams[0].endpoints[1].ejected = true;
    }
    let page = world.get("/").await.body;
    for part in [
        r#"data-breaker-state="open""#,
        r#"<span class="state bad" title="for 3.0 s, opened 2 times">open</span>"#,
        r#"<span class="state warn" title="for 3.0 s, opened 2 times">half-open</span>"#,
        r#"<span class="state warn">reduced for 61 s</span>"#,
        "1 of 2 routes with reduced answers; 2 of 2 routes with a breaker that is not closed; 1 endpoint fails its \
         health check; 1 endpoint is ejected as worse than the others",
        r#"data-summary="warn""#,
        "0 + 3 waiting",
        "too few calls to judge",
        r#"<span class="state bad">unhealthy</span>"#,
        r#"<span class="state warn">ejected</span>"#,
    ] {
        assert!(page.contains(part), "{part}\n{page}");
    }
    *world.ready.lock().unwrap() = Err("<draining>".into());
    let page = world.get("/").await.body;
    assert!(page.contains(r#"data-summary="bad">not ready: &lt;draining&gt;"#), "{page}");
    *world.snapshot.lock().unwrap() = NodeSnapshot::default();
    assert_eq!(world.get("/").await.status, 200, "a node without routes has a page too");
    world.end().await;
}

#[tokio::test]
async fn nothing_is_loaded_from_elsewhere() {
    let world = world().await;
    let answer = world.get("/").await;
    let policy = answer.head.lines().find(|line| line.starts_with("content-security-policy:")).expect("a policy");
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
    assert!(answer.has("x-content-type-options: nosniff") && answer.has("cache-control: no-store"));
    assert!(!answer.body.contains("http://") && !answer.body.contains("https://") && !answer.body.contains("style="));
    for (asset, kind) in [
        ("/assets/overview.css", "text/css; charset=utf-8"),
        ("/assets/overview.js", "text/javascript; charset=utf-8"),
        ("/assets/icon.svg", "image/svg+xml"),
    ] {
        assert!(answer.body.contains(asset), "{asset}");
        let asset = world.get(asset).await;
        assert!(asset.has(&format!("content-type: {kind}")) && !asset.body.is_empty(), "{}", asset.head);
    }
    world.end().await;
}
