//! The overview in a real browser: headless Chromium, steered over the WebDriver protocol (W3C), plain HTTP and JSON.

use std::process::Command;
use std::sync::atomic::Ordering::Relaxed;

use serde_json::{Value, json};

use crate::house::{Client, Place, local, port, wait_for, wait_until};
use crate::process::Process;
use crate::server::Server;

/// A browser of its own, with a profile of its own.
pub struct Browser {
    driver: Process,
    port: u16,
    session: String,
    profile: tempfile::TempDir,
}

impl Browser {
    pub fn start() -> Self {
        let (port, profile) = (port(), tempfile::tempdir().unwrap());
        let mut command = Command::new("chromedriver");
        command.arg(format!("--port={port}")).env("HOME", profile.path()).env("TMPDIR", profile.path());
        let driver = Process::start(&mut command);
        wait_until("chromedriver listens", || Client::connect(local(port)).is_ok());
        let mut browser = Self { driver, port, session: String::new(), profile };
        let flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
        ];
        let mut args: Vec<String> = flags.iter().map(ToString::to_string).collect();
        args.push(format!("--user-data-dir={}", browser.profile.path().join("profile").display()));
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": { "args": args },
            "goog:loggingPrefs": { "browser": "ALL" },
        } } });
        let begun = browser.ask("POST", "/session", &wanted);
        browser.session = begun["sessionId"].as_str().expect("a session").to_owned();
        browser
    }

    fn ask(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            self.port,
            body.len()
        );
        let answer = Client::new(local(self.port)).ask(&request);
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        answer.json()["value"].clone()
    }

    fn command(&self, path: &str, body: &Value) -> Value {
        self.ask("POST", &format!("/session/{}/{path}", self.session), body)
    }

    pub fn open(&self, url: &str) {
        self.command("url", &json!({ "url": url }));
    }

    /// What an expression in the page comes to.
    pub fn eval(&self, expression: &str) -> Value {
        self.command("execute/sync", &json!({ "script": format!("return ({expression})"), "args": [] }))
    }

    pub fn text(&self, selector: &str) -> String {
        let found = self.eval(&format!("document.querySelector({selector:?})?.textContent"));
        found.as_str().unwrap_or_else(|| panic!("nothing at {selector}")).to_owned()
    }

    /// A screen of this size, as a phone would have it.
    pub fn screen(&self, width: u32, height: u32) {
        let params = json!({ "width": width, "height": height, "deviceScaleFactor": 2, "mobile": true });
        self.command("goog/cdp/execute", &json!({ "cmd": "Emulation.setDeviceMetricsOverride", "params": params }));
    }

    pub fn scheme(&self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.command(
            "goog/cdp/execute",
            &json!({ "cmd": "Emulation.setEmulatedMedia", "params": { "features": features } }),
        );
    }

    /// What the page complained about since last asked.
    pub fn complaints(&self) -> Vec<Value> {
        self.command("se/log", &json!({ "type": "browser" })).as_array().unwrap().clone()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // By the protocol if it still listens, then by force: the driver's family has the browser in it.
        if let Ok(mut client) = Client::connect(local(self.port)) {
            let _ = client.try_ask(&format!("DELETE /session/{} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", self.session));
        }
        self.driver.kill();
    }
}

fn place(server: &Server) -> Place {
    Place::new(&format!(
        "node: us-east-1\nzone: us-east\nzones: [us-east, us-west]\n\
         listeners: [{{ address: \"127.0.0.1:0\", routes: [\
         {{ name: events, match: {{ path: /events, method: POST }}, upstream: queue, policy: writes }}, \
         {{ name: quotes, match: {{ path_prefix: /quotes }}, upstream: queue }}] }}]\n\
         upstreams: {{ queue: {{ endpoints: [{{ address: \"{}\", zone: us-east }}] }} }}\n\
         policies:\n  writes:\n    retry: off\n    fallback: spool\n    order_by: header:Shipment-Id\n    \
         breaker: {{ window: 10 calls, calls_min: 5, open_for: 1h, open_for_max: 1h }}\n",
        server.address
    ))
}

const EVENTS: &str = "tr[data-route=events]";

#[test]
fn the_overview_shows_the_node_and_lives() {
    let (well, server) = Server::moody();
    well.store(true, Relaxed);
    let (node, _place) = place(&server).node_of();
    let browser = Browser::start();
    browser.open(&format!("http://{}/", node.admin));
    assert_eq!(browser.eval("document.title"), "us-east-1 · Seawall");
    assert_eq!(
        browser.eval("[...document.querySelectorAll('tr[data-route]')].map(row => row.dataset.route)"),
        json!(["events", "quotes"])
    );
    let state = || browser.eval(&format!("document.querySelector({EVENTS:?}).dataset.breakerState"));
    assert_eq!((state(), browser.text("#spool-waiting").as_str()), (json!("closed"), "0"));
    assert!(browser.text("#dependencies").contains(&server.address.to_string()));
    assert!(browser.text("#dependencies").contains("us-west"), "zones are columns");
    assert_eq!(browser.eval("document.querySelector('#ledger-verdict').dataset.verdict"), "unknown");
    assert!(browser.text("#summary").contains("every route answers in full"));
    assert!(browser.text("#journal").contains("config loaded"));
    wait_until("it lives", || browser.eval("document.body.dataset.live") == "yes");

    // From here on nobody loads the page again.
    browser.eval("window.marked = true");
    well.store(false, Relaxed);
    for n in 0..7 {
        assert_eq!(node.post("/events", &format!("Shipment-Id: <b>{n}</b>\r\n"), "x").status, 202);
    }
    wait_until("the page shows the breaker open", || state() == "open");
    assert!(browser.text(EVENTS).contains("open"), "in words too, not by colour alone");
    wait_until("and what waits", || browser.text("#spool-waiting") == "7");
    wait_until("and that answers are reduced", || {
        browser.text("#summary").contains("1 of 2 routes with reduced answers")
    });
    let kinds = "[...document.querySelectorAll('#journal li')].map(entry => entry.dataset.kind)";
    let shown = wait_for("the journal grows", || {
        let kinds = browser.eval(kinds);
        kinds.as_array().unwrap().contains(&json!("breaker_opened")).then_some(kinds)
    });
    assert_eq!(shown.as_array().unwrap().last(), Some(&json!("node_started")), "newest first: {shown}");
    let cause = browser.eval("document.querySelector('#journal li[data-kind=breaker_opened] a.cause').hash");
    assert_eq!(browser.eval(&format!("document.querySelector({cause}) !== null")), true, "its cause is one click away");
    assert_eq!(browser.eval("window.marked"), true, "live, not loaded again");
    assert_eq!(browser.complaints(), [] as [Value; 0], "nothing on the console");
}

/// A phone, by night: nothing is cut off, nothing has to be pushed sideways but the wide tables in their own frames.
#[test]
fn the_overview_fits_a_phone_by_day_and_by_night() {
    let (well, server) = Server::moody();
    well.store(true, Relaxed);
    let (node, _place) = place(&server).node_of();
    let browser = Browser::start();
    let background = || {
        browser.eval("getComputedStyle(document.documentElement).backgroundColor + getComputedStyle(document.body).backgroundColor")
    };
    browser.open(&format!("http://{}/", node.admin));
    browser.scheme("light");
    let day = background();
    browser.scheme("dark");
    assert_ne!(background(), day, "it knows the night");
    for (width, height) in [(320, 568), (360, 740), (768, 1024), (1920, 1080)] {
        browser.screen(width, height);
        wait_until("the screen is that wide", || browser.eval("window.innerWidth") == width);
        assert_eq!(
            browser.eval("document.documentElement.scrollWidth <= window.innerWidth"),
            true,
            "at {width} the page is {} wide",
            browser.eval("document.documentElement.scrollWidth")
        );
        let hidden = browser.eval(
            "['#summary', '#routes', '#spool-waiting', '#ledger-verdict', '#journal li'].filter(it => \
             { const box = document.querySelector(it).getBoundingClientRect(); return box.width === 0 || box.height === 0; })",
        );
        assert_eq!(hidden, json!([]), "at {width}");
    }
    // Whoever has no mouse gets to every frame that scrolls, and past the header at once.
    assert_eq!(browser.eval("[...document.querySelectorAll('.scroll')].every(frame => frame.tabIndex === 0)"), true);
    assert_eq!(browser.eval("document.querySelector('a.skip').hash"), "#main");
    assert_eq!(browser.complaints(), [] as [Value; 0], "nothing on the console");
}

/// The node goes and comes back: the page says so, and goes on.
#[test]
fn the_overview_says_when_it_is_cut_off_and_comes_back() {
    let (_well, server) = Server::moody();
    let place = place(&server);
    let admin = format!("127.0.0.1:{}", port());
    let node = place.node_with(&["run", "--admin", &admin], &[]);
    let browser = Browser::start();
    browser.open(&format!("http://{admin}/"));
    wait_until("it lives", || browser.eval("document.body.dataset.live") == "yes");
    node.kill();
    wait_until("it says so", || browser.eval("document.body.dataset.live") == "lost");
    assert!(browser.text("#live").contains("connection lost"));
    let _node = place.node_with(&["run", "--admin", &admin], &[]);
    wait_until("it lives again", || browser.eval("document.body.dataset.live") == "yes");
    wait_until("what it missed is there", || {
        browser.eval("document.querySelectorAll('#journal li[data-kind=node_started]').length") == 2
    });
}
