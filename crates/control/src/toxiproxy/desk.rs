//! The desk: one task that holds every proxy and toxic, and answers one call after the other.
//!
//! A call is carried out whole, also when its caller has gone away, and no two calls see each other half-done. Nothing
//! here waits for a peer or for a name: a call that needs the address of a host is handed back untouched
//! ([`Outcome::Names`]), to come again when its caller has looked it up. Binding is all that takes time. What time it
//! is, is an argument: toxics that have had theirs are gone before a call sees them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::address::{Names, host_to_look_up, resolve, system_text, target};
use super::answer::{Answer, ApiError};
use super::bind::{Binder, Place};
use super::json::{Value, first_value, quote};
use super::routes::Call;
use super::toxic::{Refusal, TTL_MS_MAX, Toxic};
use super::{OpenProxy, ProxyPort, VERSION};

/// Fields of a proxy in a body. `Logger` is there because it is in every answer, and answers are sent back.
/// `half_close` is ours: to the original, a key it does not know.
const FIELDS: [&str; 6] = ["name", "listen", "upstream", "enabled", "Logger", "half_close"];

pub(super) struct Desk {
    port: Arc<dyn ProxyPort>,
    proxies: BTreeMap<String, Proxy>,
}

#[derive(Debug)]
struct Proxy {
    listen: String,
    upstream: String,
    enabled: bool,
    /// Shown only where it was chosen: whoever does not know of it reads what the original would write.
    half_close: Option<bool>,
    /// In the order they were added.
    toxics: Vec<Toxic>,
}

/// A proxy as a body asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    name: String,
    listen: String,
    upstream: String,
    enabled: bool,
    half_close: Option<bool>,
}

/// What Go would decode a proxy into.
#[derive(Clone, Copy)]
struct GoType {
    /// As messages name a field of it.
    of: &'static str,
    /// As they name the whole.
    name: &'static str,
    /// `enabled` is a pointer: `null` takes back what was said before.
    has_nullable_enabled: bool,
}

const PROXY: GoType = GoType { of: "Proxy", name: "toxiproxy.Proxy", has_nullable_enabled: false };
/// An element of what `/populate` takes.
const LISTED: GoType = GoType {
    of: "",
    name: "struct { toxiproxy.Proxy; Enabled *bool \"json:\\\"enabled\\\"\" }",
    has_nullable_enabled: true,
};

impl Wanted {
    fn new() -> Self {
        let (name, listen, upstream) = Default::default();
        Self { name, listen, upstream, enabled: true, half_close: None }
    }

    /// Takes what a value says.
    fn take(&mut self, binder: &mut Binder, value: &Value, go: GoType) {
        let place = |index: usize| Place { of: go.of, field: FIELDS[index] };
        for (index, value) in binder.members(value, &FIELDS, (None, go.name)) {
            match index {
                0 => binder.text(place(0), value, &mut self.name),
                1 => binder.text(place(1), value, &mut self.listen),
                2 => binder.text(place(2), value, &mut self.upstream),
                3 if *value == Value::Null && go.has_nullable_enabled => self.enabled = true,
                3 => binder.bool(place(3), value, &mut self.enabled),
                4 => drop(binder.members(value, &[], (Some(place(4)), "zerolog.Logger"))),
                _ => binder.choice(value, &mut self.half_close, |binder, value, chosen| {
                    binder.bool(place(5), value, chosen);
                }),
            }
        }
    }
}

impl Proxy {
    fn json(&self, name: &str) -> String {
        let half_close = self.half_close.map(|chosen| format!(",\"half_close\":{chosen}")).unwrap_or_default();
        format!(
            "{{\"name\":{},\"listen\":{},\"upstream\":{},\"enabled\":{},\"Logger\":{{}},\"toxics\":{}{half_close}}}",
            quote(name),
            quote(&self.listen),
            quote(&self.upstream),
            self.enabled,
            self.toxics_json(),
        )
    }

    /// Upstream first.
    fn toxics_json(&self) -> String {
        let all = seawall_core::fault::Direction::ALL.into_iter();
        let all = all.flat_map(|direction| self.toxics.iter().filter(move |toxic| toxic.direction == direction));
        format!("[{}]", all.map(Toxic::json).collect::<Vec<_>>().join(","))
    }

    fn toxic(&self, name: &str) -> Result<usize, ApiError> {
        let found = self.toxics.iter().position(|toxic| toxic.name == name);
        found.ok_or_else(|| ApiError::new(404, "toxic not found"))
    }
}

/// What has become of a call.
#[derive(Debug)]
pub(super) enum Outcome {
    Done(Answer),
    /// Nothing yet: these hosts have to be looked up first.
    Names(BTreeSet<String>),
}

impl Desk {
    pub(super) fn new(port: Arc<dyn ProxyPort>) -> Self {
        Self { port, proxies: BTreeMap::new() }
    }

    /// When the next toxic goes by itself.
    pub(super) fn next_expiry(&self) -> Option<Instant> {
        self.proxies.values().flat_map(|proxy| &proxy.toxics).filter_map(|toxic| toxic.until).min()
    }

    /// Lifts every toxic whose time is over.
    pub(super) fn expire(&mut self, now: Instant) {
        for (name, proxy) in &mut self.proxies {
            proxy.toxics.retain(|toxic| {
                let stays = toxic.until.is_none_or(|until| until > now);
                if !stays {
                    tracing::info!(proxy = name, toxic = toxic.name, "the time of a toxic is over");
                    self.port.lift(name, &toxic.name);
                }
                stays
            });
        }
    }

    pub(super) async fn answer(&mut self, call: Call, body: &Bytes, names: &Names, now: Instant) -> Outcome {
        self.expire(now);
        let mut hosts = self.hosts(&call, body);
        hosts.retain(|host| !names.contains_key(host));
        if hosts.is_empty() {
            Outcome::Done(self.carry_out(call, body, names, now).await)
        } else {
            Outcome::Names(hosts)
        }
    }

    /// The hosts whose addresses a call will ask for. One that will be refused anyhow asks for none.
    fn hosts(&self, call: &Call, body: &[u8]) -> BTreeSet<String> {
        let listens = match call {
            Call::Create => self.creatable(body).ok().filter(|wanted| wanted.enabled).map(|wanted| vec![wanted.listen]),
            Call::Update(name) => self.updated(name, body).ok().map(|wanted| vec![wanted.listen]),
            Call::Populate => wanted_list(body).ok().map(|all| {
                let is_asked = |wanted: &Wanted| wanted.enabled || self.proxies.contains_key(&wanted.name);
                all.into_iter().filter(is_asked).map(|wanted| wanted.listen).collect()
            }),
            Call::Reset => {
                let off = self.proxies.values().filter(|proxy| !proxy.enabled);
                Some(off.map(|proxy| proxy.listen.clone()).collect())
            }
            _ => None,
        };
        listens.unwrap_or_default().iter().filter_map(|listen| host_to_look_up(listen)).map(str::to_owned).collect()
    }

    async fn carry_out(&mut self, call: Call, body: &Bytes, names: &Names, now: Instant) -> Answer {
        match call {
            Call::Version => {
                Answer::typed("application/json;charset=utf-8", format!("{{\"version\": \"{VERSION}\"}}\n"))
            }
            Call::Metrics => {
                Answer::typed("text/plain; version=0.0.4; charset=utf-8", super::metrics::text(&self.port.traffic()))
            }
            Call::List => {
                let all = self.proxies.iter().map(|(name, proxy)| format!("{}:{}", quote(name), proxy.json(name)));
                Answer::json(200, format!("{{{}}}", all.collect::<Vec<_>>().join(",")))
            }
            Call::Create => self.create(body, names).await.into(),
            Call::Show(name) => self.proxy(&name).map(|proxy| Answer::json(200, proxy.json(&name))).into(),
            Call::Update(name) => self.update(&name, body, names).await.into(),
            Call::Delete(name) => self.delete(&name).await.into(),
            Call::ListToxics(name) => self.proxy(&name).map(|proxy| Answer::json(200, proxy.toxics_json())).into(),
            Call::AddToxic(name) => self.add_toxic(&name, body, now).into(),
            Call::ShowToxic(name, toxic) => self.show_toxic(&name, &toxic).into(),
            Call::UpdateToxic(name, toxic) => self.update_toxic(&name, &toxic, body, now).into(),
            Call::RemoveToxic(name, toxic) => self.remove_toxic(&name, &toxic).into(),
            Call::Populate => self.populate(body, names).await,
            Call::Reset => self.reset(names).await.into(),
        }
    }

    /// Every proxy is closed.
    pub(super) async fn close(&mut self) {
        for name in self.proxies.keys() {
            self.port.close(name).await;
        }
    }

    fn proxy(&self, name: &str) -> Result<&Proxy, ApiError> {
        self.proxies.get(name).ok_or_else(no_proxy)
    }

    /// A new proxy as a body asks for it, with the checks in the original's order.
    fn creatable(&self, body: &[u8]) -> Result<Wanted, ApiError> {
        let mut wanted = Wanted::new();
        decode(body, |binder, value| wanted.take(binder, value, PROXY))?;
        if wanted.name.is_empty() {
            return Err(ApiError::missing("name"));
        }
        if wanted.upstream.is_empty() {
            return Err(ApiError::missing("upstream"));
        }
        if self.proxies.contains_key(&wanted.name) {
            return Err(ApiError::new(409, "proxy already exists"));
        }
        Ok(wanted)
    }

    async fn create(&mut self, body: &[u8], names: &Names) -> Result<Answer, ApiError> {
        let Wanted { name, listen, upstream, enabled, half_close } = self.creatable(body)?;
        let mut proxy = Proxy { listen, upstream, enabled: false, half_close, toxics: Vec::new() };
        if enabled {
            start(&*self.port, names, &name, &mut proxy).await?;
        }
        let json = proxy.json(&name);
        self.proxies.insert(name, proxy);
        Ok(Answer::json(201, json))
    }

    /// A proxy as a body changes it.
    fn updated(&self, name: &str, body: &[u8]) -> Result<Wanted, ApiError> {
        let proxy = self.proxy(name)?;
        let (listen, upstream) = (proxy.listen.clone(), proxy.upstream.clone());
        let (enabled, half_close) = (proxy.enabled, proxy.half_close);
        let mut wanted = Wanted { name: String::new(), listen, upstream, enabled, half_close };
        decode(body, |binder, value| wanted.take(binder, value, PROXY))?;
        Ok(wanted)
    }

    async fn update(&mut self, name: &str, body: &[u8], names: &Names) -> Result<Answer, ApiError> {
        let wanted = self.updated(name, body)?;
        let port = Arc::clone(&self.port);
        let proxy = self.proxies.get_mut(name).ok_or_else(no_proxy)?;
        let differs = differs(names, proxy, &wanted)?;
        if proxy.enabled && (differs || !wanted.enabled) {
            port.close(name).await;
            proxy.enabled = false;
        }
        if differs {
            (proxy.listen, proxy.upstream) = (wanted.listen, wanted.upstream);
        }
        if proxy.half_close != wanted.half_close {
            proxy.half_close = wanted.half_close;
            port.set_half_close(name, proxy.half_close);
        }
        if wanted.enabled && !proxy.enabled {
            start(&*port, names, name, proxy).await?;
        }
        Ok(Answer::json(200, proxy.json(name)))
    }

    async fn delete(&mut self, name: &str) -> Result<Answer, ApiError> {
        self.proxies.remove(name).ok_or_else(no_proxy)?;
        self.port.close(name).await;
        Ok(Answer::empty(204))
    }

    fn add_toxic(&mut self, name: &str, body: &[u8], now: Instant) -> Result<Answer, ApiError> {
        let proxy = self.proxies.get_mut(name).ok_or_else(no_proxy)?;
        let value = first_value(body).map_err(|told| ApiError::body(&told))?;
        let exists = |name: &str| proxy.toxics.iter().any(|toxic| toxic.name == name);
        let toxic = Toxic::from_body(&value, exists, now).map_err(refused)?;
        self.port.put(name, toxic.fault());
        let json = toxic.json();
        proxy.toxics.push(toxic);
        Ok(Answer::json(200, json))
    }

    fn show_toxic(&self, name: &str, toxic: &str) -> Result<Answer, ApiError> {
        let proxy = self.proxy(name)?;
        Ok(Answer::json(200, proxy.toxics[proxy.toxic(toxic)?].json()))
    }

    fn update_toxic(&mut self, name: &str, toxic: &str, body: &[u8], now: Instant) -> Result<Answer, ApiError> {
        let proxy = self.proxies.get_mut(name).ok_or_else(no_proxy)?;
        let index = proxy.toxic(toxic)?;
        let value = first_value(body).map_err(|told| ApiError::body(&told))?;
        let changed = proxy.toxics[index].changed_by(&value, now).map_err(refused)?;
        self.port.put(name, changed.fault());
        let json = changed.json();
        proxy.toxics[index] = changed;
        Ok(Answer::json(200, json))
    }

    fn remove_toxic(&mut self, name: &str, toxic: &str) -> Result<Answer, ApiError> {
        let proxy = self.proxies.get_mut(name).ok_or_else(no_proxy)?;
        let index = proxy.toxic(toxic)?;
        proxy.toxics.remove(index);
        self.port.lift(name, toxic);
        Ok(Answer::empty(204))
    }

    async fn populate(&mut self, body: &[u8], names: &Names) -> Answer {
        let mut done = Vec::new();
        let ended = match wanted_list(body) {
            Ok(all) => self.populate_all(all, names, &mut done).await,
            Err(error) => Err(error),
        };
        let proxies = if done.is_empty() { "null".to_owned() } else { format!("[{}]", done.join(",")) };
        match ended {
            Ok(()) => Answer::json(201, format!("{{\"proxies\":{proxies}}}")),
            // The one error that says it is JSON, and ends without a line break.
            Err(error) => Answer::json(error.status, format!("{{{},\"proxies\":{proxies}}}", error.members())),
        }
    }

    async fn populate_all(&mut self, all: Vec<Wanted>, names: &Names, done: &mut Vec<String>) -> Result<(), ApiError> {
        for wanted in all {
            if let Some(known) = self.proxies.get_mut(&wanted.name) {
                if !differs(names, known, &wanted)? {
                    done.push(known.json(&wanted.name));
                    continue;
                }
                self.port.close(&wanted.name).await;
                known.enabled = false;
            }
            let Wanted { name, listen, upstream, enabled, half_close } = wanted;
            let mut proxy = Proxy { listen, upstream, enabled: false, half_close, toxics: Vec::new() };
            if enabled {
                start(&*self.port, names, &name, &mut proxy).await?;
            }
            done.push(proxy.json(&name));
            self.proxies.insert(name, proxy);
        }
        Ok(())
    }

    /// All that can be reset is; the first that cannot start keeps its toxics, and is told.
    async fn reset(&mut self, names: &Names) -> Result<Answer, ApiError> {
        let mut failed = None;
        for (name, proxy) in &mut self.proxies {
            if !proxy.enabled
                && let Err(error) = start(&*self.port, names, name, proxy).await
            {
                failed.get_or_insert(error);
                continue;
            }
            for toxic in std::mem::take(&mut proxy.toxics) {
                self.port.lift(name, &toxic.name);
            }
        }
        failed.map_or(Ok(Answer::empty(204)), Err)
    }
}

fn no_proxy() -> ApiError {
    ApiError::new(404, "proxy not found")
}

fn refused(refusal: Refusal) -> ApiError {
    match refusal {
        Refusal::Body(told) => ApiError::body(&told),
        Refusal::Stream => ApiError::new(400, "stream was invalid, can be either upstream or downstream"),
        Refusal::Kind => ApiError::new(400, "invalid toxic type"),
        Refusal::Exists => ApiError::new(409, "toxic already exists"),
        Refusal::Ttl => ApiError::new(400, format!("ttl was invalid, can be 1 to {TTL_MS_MAX} milliseconds or null")),
    }
}

fn decode(body: &[u8], take: impl FnOnce(&mut Binder, &Value)) -> Result<(), ApiError> {
    let read = || {
        let value = first_value(body)?;
        let mut binder = Binder::default();
        take(&mut binder, &value);
        binder.finish()
    };
    read().map_err(|told: String| ApiError::body(&told))
}

/// All that a body of `/populate` asks for, looked through before anything is done.
fn wanted_list(body: &[u8]) -> Result<Vec<Wanted>, ApiError> {
    let mut all = Vec::new();
    decode(body, |binder, value| match value {
        Value::Array(items) => {
            for item in items {
                let mut wanted = Wanted::new();
                wanted.take(binder, item, LISTED);
                all.push(wanted);
            }
        }
        Value::Null => {}
        other => binder.misfit(other.kind(), None, &format!("[]{}", LISTED.name)),
    })?;
    for (index, wanted) in all.iter().enumerate() {
        let missing = [("name", &wanted.name), ("upstream", &wanted.upstream)];
        if let Some((field, _)) = missing.into_iter().find(|(_, value)| value.is_empty()) {
            return Err(ApiError::missing(&format!("{field} at proxy {}", index + 1)));
        }
    }
    Ok(all)
}

fn differs(names: &Names, proxy: &Proxy, wanted: &Wanted) -> Result<bool, ApiError> {
    let listen = resolve(names, &wanted.listen).map_err(|told| ApiError::new(500, told))?;
    Ok(proxy.listen != listen.text || proxy.upstream != wanted.upstream)
}

/// Listens, and writes down where.
async fn start(port: &dyn ProxyPort, names: &Names, name: &str, proxy: &mut Proxy) -> Result<(), ApiError> {
    let failed = |told: String| ApiError::new(500, told);
    let listen = resolve(names, &proxy.listen).map_err(|told| failed(format!("listen tcp: {told}")))?;
    let open = OpenProxy {
        name: name.to_owned(),
        listen: listen.address,
        upstream: proxy.upstream.clone(),
        // What is no address is known only to who connects, as in the original.
        target: target(&proxy.upstream),
        half_close: proxy.half_close,
        faults: proxy.toxics.iter().map(Toxic::fault).collect(),
    };
    let opened = port.open(open).await;
    let address =
        opened.map_err(|error| failed(format!("listen tcp {}: bind: {}", listen.text, system_text(&error))))?;
    proxy.listen = address.to_string();
    proxy.enabled = true;
    Ok(())
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
