//! The forwarder as an operator runs it, beside an API that can go away, in front of a world's stream.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use uuid::Uuid;
use waybill::clock::Clock;
use waybill::health::Health;
use waybill::http::AppState;
use waybill::ingest::Publisher;
use waybill::store::api_keys::{self, NewHolder};
use waybill::store::{catalog, commit, gateways};

use crate::harness::{free_addresses, get, wait_until, wait_until_done, wait_until_within};
use crate::program::free_address;
use crate::world::{World, usage_event};

/// The gateway that the shipped configuration of NATS knows.
pub const GATEWAY: &str = "gw-eu-1";
/// How long it may take to end: the program gives what runs 20 s, and each question that is underway 5 s.
const ENDED_WITHIN: Duration = Duration::from_mins(1);

/// What a forwarder is started with; its folder is removed when dropped.
pub struct Setting {
    pub folder: PathBuf,
    pub nats_url: String,
    pub prefix: String,
    pub api: Api,
    pub key: String,
    /// More variables of its environment.
    pub more: Vec<(&'static str, String)>,
}

impl Drop for Setting {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.folder).ok();
    }
}

/// The API over a world, on an address that stays.
pub struct Api {
    pub address: SocketAddr,
    state: AppState,
    running: Option<JoinHandle<()>>,
}

impl Api {
    pub async fn start(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        let router = waybill::http::router(self.state.clone()).0;
        self.running = Some(tokio::spawn(async move { axum::serve(listener, router).await.unwrap() }));
    }

    pub async fn stop(&mut self) {
        let running = self.running.take().unwrap();
        running.abort();
        running.await.ok();
    }
}

/// A gateway of the shipped name with its key, and the API running.
pub async fn setting(world: &World, nats_url: String) -> Setting {
    let mut tx = world.bed.database.begin().await.unwrap();
    let gateway = gateways::create(&mut tx, GATEWAY, None).await.unwrap().id;
    let key = api_keys::create(&mut tx, NewHolder::Gateway(gateway), "test", None).await.unwrap().token;
    catalog::bump(&mut tx).await.unwrap();
    commit(tx).await.unwrap();
    let publisher = Publisher::new(world.context().clone(), &world.names.prefix);
    let state = AppState::new(world.bed.database.clone(), Clock::System, publisher, Health::default());
    let mut api = Api { address: free_address(), state, running: None };
    api.start().await;
    let folder = std::env::temp_dir().join(format!("waybill-forward-{}", Uuid::new_v4().simple()));
    std::fs::create_dir(&folder).unwrap();
    Setting { folder, nats_url, prefix: world.names.prefix.clone(), api, key, more: Vec::new() }
}

/// A running forwarder; killed (SIGKILL) when dropped.
pub struct Forwarder {
    child: Mutex<Child>,
    pub events: SocketAddr,
    pub metrics: SocketAddr,
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Setting {
    pub fn journal(&self) -> PathBuf {
        self.folder.join("journal")
    }

    /// Sets what the program reads.
    pub fn environment(&self, command: &mut Command, events: &str, metrics: SocketAddr) {
        command
            .env("WAYBILL_FORWARD_GATEWAY", GATEWAY)
            .env("WAYBILL_FORWARD_JOURNAL", self.journal())
            .env("WAYBILL_FORWARD_LISTEN", events)
            .env("WAYBILL_FORWARD_METRICS_ADDR", metrics.to_string())
            .env("WAYBILL_FORWARD_NATS_URL", &self.nats_url)
            .env("WAYBILL_SUBJECT_PREFIX", &self.prefix)
            .env("WAYBILL_FORWARD_API_URL", format!("http://{}", self.api.address))
            .env("WAYBILL_FORWARD_KEY", &self.key)
            .env("WAYBILL_FORWARD_POLL_MS", "100")
            .env("WAYBILL_LOG", "warn")
            .envs(self.more.iter().map(|(name, value)| (*name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
    }

    /// Starts one and waits until it takes events; `wrap` is what goes before the program on its command line.
    pub async fn start_wrapped(&self, wrap: &[&str]) -> Forwarder {
        let program = env!("CARGO_BIN_EXE_waybill");
        let words: Vec<&str> = wrap.iter().copied().chain([program, "forward"]).collect();
        let [events, metrics] = free_addresses();
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        self.environment(&mut command, &events.to_string(), metrics);
        let forwarder = Forwarder { child: Mutex::new(command.spawn().unwrap()), events, metrics };
        wait_until("the forwarder answers", async || get(events, "/livez").await).await;
        forwarder
    }

    pub async fn start(&self) -> Forwarder {
        self.start_wrapped(&[]).await
    }

    /// Waits until the journal has noted that everything up to a number is settled, which is a moment after the metrics say it:
    /// the run after one that is killed knows no more than that.
    pub async fn noted(&self, through: u64) {
        let noted = self.journal().join("settled.json");
        wait_until("what is settled is noted", async || {
            let noted: Value = serde_json::from_slice(&std::fs::read(&noted).ok()?).ok()?;
            (noted["settled"]["through"] == through).then_some(())
        })
        .await;
    }

    /// The same of what the stream has said that it has.
    pub async fn noted_published(&self, through: u64) {
        let noted = self.journal().join("published.json");
        wait_until("what is published is noted", async || {
            let noted: Value = serde_json::from_slice(&std::fs::read(&noted).ok()?).ok()?;
            (noted["through"] == through).then_some(())
        })
        .await;
    }
}

impl Forwarder {
    /// Posts a body once: status and answer; `None` where there is no whole answer.
    pub async fn try_post(&self, body: &str) -> Option<(u16, Value)> {
        let request = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = request.post(format!("http://{}/v1/events", self.events));
        let answer =
            request.header("content-type", "application/json").body(body.to_owned()).send().await.ok()?;
        let status = answer.status().as_u16();
        Some((status, serde_json::from_slice(&answer.bytes().await.ok()?).ok()?))
    }

    /// Posts events that must be accepted.
    pub async fn post(&self, ids: &[String]) {
        let (status, answer) = self.try_post(&body(ids)).await.unwrap();
        assert_eq!(status, 202, "{answer}");
    }

    /// One of its metrics; 0 while it has none of that name.
    pub async fn metric(&self, name: &str) -> f64 {
        let text = wait_until("the metrics answer", async || get(self.metrics, "/metrics").await).await;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0.0, |number| number.trim().parse().unwrap())
    }

    /// Waits until the ledger has everything that it accepted. After an outage that may take its time, as long as it changes.
    pub async fn settled(&self) {
        wait_until_done("everything is settled", async || {
            let text = get(self.metrics, "/metrics").await.unwrap_or_default();
            let number = |name: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
                line.map(str::to_owned)
            };
            let accepted = number("waybill_forward_accepted_sequence");
            let settled = number("waybill_forward_settled_sequence");
            (accepted.is_none() || settled != accepted).then(|| format!("{settled:?} of {accepted:?}"))
        })
        .await;
    }

    /// SIGKILL, in the middle of whatever it does.
    pub fn kill(&self) {
        let mut child = self.child.lock().unwrap();
        child.kill().ok();
        child.wait().ok();
    }

    /// Asks it to stop, and waits until it has.
    pub async fn terminated(&self) -> ExitStatus {
        kill(Pid::from_raw(self.pid().parse().unwrap()), Signal::SIGTERM).unwrap();
        wait_until_within("it ends", ENDED_WITHIN, async || self.child.lock().unwrap().try_wait().unwrap())
            .await
    }

    pub fn pid(&self) -> String {
        self.child.lock().unwrap().id().to_string()
    }
}

/// An event of the gateway.
pub fn event(id: &str) -> Value {
    let mut event = usage_event(id);
    event["source"] = GATEWAY.into();
    event
}

/// Ids of events.
pub fn ids(name: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{name}-{number}")).collect()
}

/// Events as one body.
pub fn body(ids: &[String]) -> String {
    Value::from(ids.iter().map(|id| event(id)).collect::<Vec<_>>()).to_string()
}

/// Exactly these ids are recorded, each of them once.
pub async fn recorded_exactly(world: &World, expected: &BTreeSet<String>) {
    let recorded = recorded(world).await;
    let some = |left: &BTreeSet<String>, right: &BTreeSet<String>| {
        left.difference(right).take(5).cloned().collect::<Vec<_>>()
    };
    let (lost, unknown) = (some(expected, &recorded), some(&recorded, expected));
    assert!(lost.is_empty() && unknown.is_empty(), "lost: {lost:?} ..., not expected: {unknown:?} ...");
}

/// Waits until these ids are recorded, and nothing else is. After an outage that may take its time, as long as it changes.
pub async fn all_recorded(world: &World, expected: &BTreeSet<String>) {
    wait_until_done("all is recorded", async || {
        let recorded = recorded(world).await;
        (recorded != *expected).then(|| format!("{} of {}", recorded.len(), expected.len()))
    })
    .await;
}

/// The ids that are recorded, each of them once.
pub async fn recorded(world: &World) -> BTreeSet<String> {
    let ids: Vec<String> = sqlx::query_scalar("SELECT id FROM usage_events WHERE part = 0")
        .fetch_all(&world.pool)
        .await
        .unwrap();
    let count = ids.len();
    let ids: BTreeSet<String> = ids.into_iter().collect();
    assert_eq!(ids.len(), count, "an event is recorded twice");
    ids
}

/// The epochs that the ledger has counted, as `(settled, highest)`.
pub async fn watermark(setting: &Setting) -> Vec<(u64, u64)> {
    let url = format!("http://{}/v1/gateways/{GATEWAY}/watermark", setting.api.address);
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let answer = client.get(url).bearer_auth(&setting.key).send().await.unwrap().bytes().await.unwrap();
    let answer: Value = serde_json::from_slice(&answer).unwrap();
    let epochs = answer["epochs"].as_array().unwrap().iter();
    epochs.map(|epoch| (epoch["settled"].as_u64().unwrap(), epoch["highest"].as_u64().unwrap())).collect()
}

/// How many segments a journal has.
pub fn segments(journal: &Path) -> usize {
    let entries = std::fs::read_dir(journal).unwrap();
    entries
        .filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|is| is == "events"))
        .count()
}
