//! Attacks with a gateway's credentials, and what is billed: the ledger has what others published, once, and in time.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, Context};
use async_nats::{ConnectOptions, HeaderMap};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use waybill::ingest::{self, Publisher};
use waybill::store::{catalog, commit, gateways};

use crate::forward_bed::{self, recorded, recorded_exactly};
use crate::harness::{everything, get, wait_until};
use crate::nats_raw::Raw;
use crate::private_nats::{PrivateNats, SHIPPED_GATEWAY};
use crate::world::{NATS_TIMEOUT, Outcome, World, gpt5_prices, usage_event};

/// The gateway whose credentials the attacker has; the shipped one is the victim.
const ATTACKER: &str = "gw-us-1";
/// How much later a victim's event may be recorded while others flood.
const LAG_MAX: Duration = Duration::from_secs(30);
/// How long a revoked connection may live.
const REVOCATION_MAX: Duration = Duration::from_mins(1);
/// Connections that a flood makes, where everything is to be run and else, and how many it holds open at a time.
const FLOOD_CONNECTIONS: (usize, usize) = (10_000, 2_000);
const FLOOD_HELD: usize = 600;
/// How long a flood may take.
const FLOOD_MAX: Duration = Duration::from_mins(5);
/// Bytes of a junk message, and the pause that makes 10 MB of them a second; and most messages of them.
const JUNK_BYTES: usize = 60_000;
const JUNK_PAUSE: Duration = Duration::from_millis(6);
const JUNK_MESSAGES: usize = 500;
/// What `max_connections` says.
const CONNECTIONS_MAX: u64 = 500;

fn event(gateway: &str, id: &str) -> Value {
    let mut event = usage_event(id);
    event["source"] = gateway.into();
    event
}

/// Two gateways with real credentials on the shipped configuration, and a ledger that records what they publish.
struct Billed {
    nats: PrivateNats,
    world: World,
}

impl Billed {
    async fn start() -> Self {
        let nats = PrivateNats::start().await;
        nats.add_gateway(ATTACKER).await;
        let world = World::over(nats.bed().await).await;
        let mut tx = world.bed.database.begin().await.unwrap();
        gateways::create(&mut tx, ATTACKER, None).await.unwrap();
        catalog::bump(&mut tx).await.unwrap();
        commit(tx).await.unwrap();
        world.publish_prices(gpt5_prices()).await;
        world.start_consumer();
        Self { nats, world }
    }

    async fn attacker(&self) -> Raw {
        Raw::connect(&self.nats.gateway_url_of(ATTACKER)).await
    }

    /// Publishes as the attacker, and returns the sequence that the stream gave it.
    async fn attack(&self, raw: &mut Raw, headers: &[(&str, &str)], body: &str) -> i64 {
        let said = raw.acknowledged(&format!("usage.v1.{ATTACKER}"), headers, body).await;
        let said: Value = serde_json::from_str(&said).unwrap();
        assert!(said["error"].is_null(), "{said}");
        said["seq"].as_i64().unwrap()
    }

    /// Makes the victim a gateway of the ledger.
    async fn register_victim(&self) {
        let mut tx = self.world.bed.database.begin().await.unwrap();
        gateways::create(&mut tx, SHIPPED_GATEWAY, None).await.unwrap();
        catalog::bump(&mut tx).await.unwrap();
        commit(tx).await.unwrap();
    }

    /// Our publisher, with the victim's credentials.
    async fn publisher(&self) -> Publisher {
        Publisher::of_gateway(&self.nats.gateway_url(), "usage.v1", SHIPPED_GATEWAY).await.unwrap()
    }
}

/// A gateway that trusts the stream's deduplication, with ids that can be guessed.
async fn trusting(url: &str) -> Context {
    let options = ConnectOptions::new().custom_inbox_prefix(format!("_INBOX_{SHIPPED_GATEWAY}"));
    let mut context = jetstream::new(ingest::connect(url, options).await.unwrap());
    context.set_timeout(NATS_TIMEOUT);
    context
}

#[tokio::test(flavor = "multi_thread")]
async fn guessed_message_ids_cost_only_who_relies_on_them() {
    let billed = Billed::start().await;
    let setting = forward_bed::setting(&billed.world, billed.nats.gateway_url()).await;
    let forwarder = setting.start().await;
    let mut expected = BTreeSet::new();
    let mut attacker = billed.attacker().await;
    for number in 0..5 {
        // Whatever the victim could use as message id of its next events.
        for guess in ["trusting", "forwarded", "direct"] {
            let (id, poison) = (format!("{guess}-{number}"), format!("poison-{guess}-{number}"));
            let body = event(ATTACKER, &poison).to_string();
            billed.attack(&mut attacker, &[("Nats-Msg-Id", &id)], &body).await;
            expected.insert(poison);
        }
    }
    // The control: the stream confirms the victim's events, and has them not.
    let context = trusting(&billed.nats.gateway_url()).await;
    for number in 0..5 {
        let (id, mut headers) = (format!("trusting-{number}"), HeaderMap::new());
        headers.insert("Nats-Msg-Id", id.as_str());
        let body = event(SHIPPED_GATEWAY, &id).to_string();
        let sent =
            context.publish_with_headers(format!("usage.v1.{SHIPPED_GATEWAY}"), headers, body.into()).await;
        assert!(sent.unwrap().await.unwrap().duplicate, "the attack works where message ids are guessed");
    }
    // Our forwarder and our publisher.
    let ids: Vec<String> = (0..5).map(|number| format!("forwarded-{number}")).collect();
    forwarder.post(&ids).await;
    forwarder.settled().await;
    expected.extend(ids);
    let publisher = billed.publisher().await;
    for number in 0..5 {
        let id = format!("direct-{number}");
        publisher.publish(SHIPPED_GATEWAY, event(SHIPPED_GATEWAY, &id).to_string().into()).await.unwrap();
        expected.insert(id);
    }
    billed.world.settled().await;
    // With nothing of the trusting one.
    recorded_exactly(&billed.world, &expected).await;
    billed.world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_headers_say_is_not_believed() {
    let billed = Billed::start().await;
    billed.register_victim().await;
    let victims = format!("usage.v1.{SHIPPED_GATEWAY}");
    let spoofed = [
        ("Nats-Subject", victims.as_str()),
        ("Nats-Stream", "OTHER"),
        ("Nats-Sequence", "4711"),
        ("Nats-Time-Stamp", "2020-01-01T00:00:00Z"),
        ("Nats-Request-Info", r#"{"acc":"WAYBILL"}"#),
    ];
    let mut attacker = billed.attacker().await;
    let own = billed.attack(&mut attacker, &spoofed, &event(ATTACKER, "own").to_string()).await;
    let other = event(SHIPPED_GATEWAY, "in-its-name").to_string();
    let other = billed.attack(&mut attacker, &spoofed, &other).await;
    billed.world.settled().await;
    // Counted under the sequence and the gateway that the server knows.
    assert_eq!(billed.world.outcomes(own, 1).await, [Outcome::Recorded]);
    assert_eq!(billed.world.outcomes(other, 1).await, [Outcome::Rejected("not_allowed")]);
    billed.world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn captured_messages_count_once_and_a_revoked_gateway_is_out_at_once() {
    let billed = Billed::start().await;
    billed.register_victim().await;
    let messages: Vec<Value> = (0..20)
        .map(|message| (0..5).map(|number| event(ATTACKER, &format!("e-{message}-{number}"))).collect())
        .collect();
    let mut gateway = billed.attacker().await;
    for message in &messages {
        billed.attack(&mut gateway, &[], &message.to_string()).await;
    }
    billed.world.settled().await;
    let before = billed.world.totals().await;
    assert_eq!(before.events, 100);
    // Somebody who has captured them has the credentials as well.
    let mut thief = billed.attacker().await;
    for message in messages.iter().chain(&messages) {
        let again = billed.attack(&mut thief, &[], &message.to_string()).await;
        billed.world.settled().await;
        assert_eq!(billed.world.outcomes(again, 5).await, [Outcome::Duplicate; 5]);
    }
    assert_eq!(billed.world.totals().await, before);
    billed.world.verified().await;

    let mut victim = Raw::connect(&billed.nats.gateway_url()).await;
    assert_eq!(victim.said("UNSUB 98").await, "");
    let revoked = Instant::now();
    billed.nats.revoke_gateway(ATTACKER).await;
    // A connection that is only silent answers.
    let cut = async { while !thief.said("UNSUB 97").await.ends_with("(closed)") {} };
    tokio::time::timeout(REVOCATION_MAX, cut).await.expect("a revoked connection is cut");
    println!("cut {:?} after it was revoked", revoked.elapsed());
    let said = billed.attacker().await.said("").await;
    assert!(said.contains("Authorization Violation") || said.contains("(closed)"), "{said}");
    assert_eq!(victim.said("UNSUB 99").await, "", "others stay connected");
}

/// What an attacker does who wants to be in the way.
struct Flood {
    met: Arc<Met>,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

/// How often a flood has connected, and met the limits that are to hold it up.
#[derive(Default)]
struct Met {
    attempts: AtomicUsize,
    connections_refused: AtomicUsize,
    subscriptions_refused: AtomicUsize,
    junk_taken: AtomicUsize,
}

impl Met {
    fn connections_are_done(&self) -> bool {
        self.attempts.load(Ordering::Relaxed) >= flood_connections()
            && self.connections_refused.load(Ordering::Relaxed) > 0
    }
}

impl Flood {
    fn start(nats: &PrivateNats) -> Self {
        let mut flood = Self { met: Arc::default(), stop: Arc::default(), tasks: JoinSet::new() };
        let url = nats.gateway_url_of(ATTACKER);
        let address = url.rsplit_once('@').unwrap().1.to_owned();
        for _ in 0..8 {
            flood.tasks.spawn(connections(address.clone(), Arc::clone(&flood.met), Arc::clone(&flood.stop)));
        }
        flood.tasks.spawn(subscriptions(url.clone(), Arc::clone(&flood.met), Arc::clone(&flood.stop)));
        flood.tasks.spawn(junk(url, Arc::clone(&flood.met), Arc::clone(&flood.stop)));
        flood
    }

    /// Whether it has connected as often as it is to, met each limit, and got its junk in. With none of its connections
    /// left it gets as far as to subscribe and to publish.
    fn done(&self) -> bool {
        self.met.connections_are_done()
            && self.met.subscriptions_refused.load(Ordering::Relaxed) > 0
            && self.met.junk_taken.load(Ordering::Relaxed) > 0
    }
}

/// As many as `make test-faults` asks for, or few enough for the tests beside it.
fn flood_connections() -> usize {
    if everything() { FLOOD_CONNECTIONS.0 } else { FLOOD_CONNECTIONS.1 }
}

/// Connects again and again, says half a sentence, and waits.
async fn connections(address: String, met: Arc<Met>, stop: Arc<AtomicBool>) {
    let mut held = VecDeque::new();
    while !stop.load(Ordering::Relaxed) && !met.connections_are_done() {
        met.attempts.fetch_add(1, Ordering::Relaxed);
        if let Ok(mut stream) = TcpStream::connect(&address).await {
            stream.write_all(b"CONNECT {\"verbose\":fal").await.ok();
            held.push_back(stream);
        }
        if held.len() > FLOOD_HELD / 8
            && let Some(stream) = held.pop_front()
        {
            met.connections_refused.fetch_add(usize::from(refused(&stream)), Ordering::Relaxed);
        }
    }
}

/// Whether the server has told a connection that there are too many.
fn refused(stream: &TcpStream) -> bool {
    let mut said = vec![0; 1 << 16];
    let read = stream.try_read(&mut said).unwrap_or_default();
    String::from_utf8_lossy(&said[..read]).contains("maximum connections exceeded")
}

/// Asks for 1,000 subscriptions per connection, with subjects of 4 KiB in between.
async fn subscriptions(url: String, met: Arc<Met>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let Some(mut raw) = Raw::try_connect(&url).await else { continue };
        for number in 0..1_000 {
            raw.send(&format!("SUB _INBOX_{ATTACKER}.{number} {number}")).await;
        }
        raw.send(&format!("SUB _INBOX_{ATTACKER}.{} 1", "x".repeat(4_096))).await;
        while let Some(line) = raw.line().await {
            let refused = line.contains("maximum subscriptions exceeded");
            met.subscriptions_refused.fetch_add(usize::from(refused), Ordering::Relaxed);
        }
    }
}

/// Publishes what is no event to its own subject, 10 MB a second.
async fn junk(url: String, met: Arc<Met>, stop: Arc<AtomicBool>) {
    let (mut sent, body) = (0, "x".repeat(JUNK_BYTES));
    let message = format!("PUB usage.v1.{ATTACKER} {JUNK_BYTES}\r\n{body}");
    while !stop.load(Ordering::Relaxed) && sent < JUNK_MESSAGES {
        let Some(mut raw) = Raw::try_connect(&url).await else { continue };
        while !stop.load(Ordering::Relaxed) && sent < JUNK_MESSAGES && raw.is_open() {
            let said = raw.said(&message).await;
            met.junk_taken.fetch_add(usize::from(said.is_empty()), Ordering::Relaxed);
            sent += 1;
            tokio::time::sleep(JUNK_PAUSE).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn floods_do_not_hold_up_the_billing_of_others() {
    let billed = Billed::start().await;
    billed.register_victim().await;
    let publisher = billed.publisher().await;
    wait_until("the victim is connected", async || publisher.connected().then_some(())).await;
    let flood = Flood::start(&billed.nats);
    let (mut expected, mut slowest) = (BTreeSet::new(), Duration::ZERO);
    let started = Instant::now();
    while !flood.done() {
        assert!(started.elapsed() < FLOOD_MAX, "the flood does not meet its limits");
        let id = format!("e-{}", expected.len());
        let sent = Instant::now();
        let body = event(SHIPPED_GATEWAY, &id).to_string();
        while publisher.publish(SHIPPED_GATEWAY, body.clone().into()).await.is_err() {
            assert!(started.elapsed() < FLOOD_MAX, "the victim gets nothing in");
        }
        expected.insert(id);
        wait_until("it is recorded", async || {
            (recorded(&billed.world).await.len() == expected.len()).then_some(())
        })
        .await;
        slowest = slowest.max(sent.elapsed());
        if let Some(connections) = open_connections(&billed.nats).await {
            assert!(connections <= CONNECTIONS_MAX, "{connections} connections");
        }
    }
    flood.stop.store(true, Ordering::Relaxed);
    let [connections, subscriptions] = [&flood.met.connections_refused, &flood.met.subscriptions_refused]
        .map(|refused| refused.load(Ordering::Relaxed));
    println!("{connections} connections and {subscriptions} subscriptions of the flood were refused");
    drop(flood);
    println!(
        "{} events of the victim during the flood, the slowest recorded after {slowest:?}",
        expected.len()
    );
    assert!(slowest < LAG_MAX, "{slowest:?}");
    // Who was not connected gets in again, too.
    let late = billed.publisher().await;
    wait_until("a new connection works", async || late.connected().then_some(())).await;
    billed.world.settled().await;
    recorded_exactly(&billed.world, &expected).await;
    let reasons = wait_until("the junk is kept", async || {
        let reasons: BTreeSet<String> = billed.world.open_rejections().await.into_iter().collect();
        (!reasons.is_empty()).then_some(reasons)
    })
    .await;
    assert_eq!(reasons, BTreeSet::from(["json".to_owned()]), "the junk is kept as what it is: {reasons:?}");
    billed.world.verified().await;
}

/// How many connections the server says that it has.
async fn open_connections(nats: &PrivateNats) -> Option<u64> {
    let answer = get(nats.monitor(), "/varz").await?;
    let varz: Value = serde_json::from_str(answer.split_once("\r\n\r\n")?.1).unwrap_or(json!(null));
    varz["connections"].as_u64()
}
