//! The program's own processes: replaced, killed, starved, told to stop, and given what cannot be recorded.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::api::{ask, event, finance_key, gateway_key};
use crate::bed::{Bed, CUSTOMERS, FULL_BATCH_SECONDS, LONG_ACK_WAIT_SECONDS, Verdict};
use crate::harness::{free_addresses, get, wait_until};
use crate::protocol::{Kind, Way};
use crate::proxy::End;
use crate::publisher::{Gateway, Load, write_down};
use crate::rounds::{rounds, seed, thorough};
use crate::service::{Serve, Service, metric};
use crate::watching::{
    accounted, caught_up, cpu_ticks, nothing_lacked, nothing_unearned, peak_mib, recording, redelivered,
};

/// How long the program may take to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// The same while somebody has said half of a request: its connection is waited for 8 s.
const HALF_SAID_STOP_TIMEOUT: Duration = Duration::from_secs(15);
/// What counts as idle: for so long nothing is taken from the stream, and hardly any of a processor is used. A busy machine
/// may give a program so little of it that it takes nothing for longer than that, but then it uses what it is given.
const IDLE: Duration = Duration::from_millis(600);
/// The most that an idle program uses in that time, in clock ticks: a tenth of a processor.
const IDLE_TICKS_MAX: u64 = 6;
/// How long it is measured what a program uses of a processor.
const SHARE_MEASURED: Duration = Duration::from_secs(2);
/// What a busy loop would use beside everything else, in percent of a processor, where it had to share it; a program that has
/// nothing to do uses far less.
const BUSY_LOOP_SHARE: u64 = 40;
/// Exports at a time beside full batches, and how many must have been answered.
const EXPORTS: usize = 50;
/// How soon they must be, and all must be recorded.
const EXPORTED_WITHIN: Duration = Duration::from_mins(5);
/// The most memory that recording may need.
const MEMORY_MAX_MIB: u64 = 256;

/// Waits until a program takes nothing more from the stream, and has decided what it took.
async fn takes_no_more(bed: &Bed, service: &Service) {
    let (mut taken, mut ticks, mut since) = (0, 0, Instant::now());
    wait_until("nothing more is taken", async || {
        let (now, used) = (bed.consumer_info().await?.delivered.consumer_sequence, cpu_ticks(service));
        if now != taken || used > ticks + IDLE_TICKS_MAX {
            (taken, ticks, since) = (now, used, Instant::now());
        }
        (taken > 0 && since.elapsed() >= IDLE).then_some(())
    })
    .await;
}

/// Waits until a process has ended by itself; how, and how long that took.
async fn ended(service: &mut Service) -> (std::process::ExitStatus, Duration) {
    let started = Instant::now();
    let status = wait_until("the program ends", async || service.ended()).await;
    (status, started.elapsed())
}

/// Waits until each of them has recorded something.
async fn all_record(consumers: &[Service]) {
    for consumer in consumers {
        wait_until("each of them records", async || {
            metric(consumer.metrics, "waybill_messages_total").await.filter(|messages| *messages > 0.0)
        })
        .await;
    }
}

/// F51: two consumers share the work and are replaced one after the other.
async fn f51(bed: &mut Bed, serve: Serve, replaced: u32) -> Verdict {
    let mut consumers = [serve.start(), serve.start()];
    for consumer in &consumers {
        consumer.ready().await;
    }
    bed.take_snapshots();
    let load = Load::endless(seed("f51")).start(bed).await;
    caught_up(bed).await;
    for number in 0..usize::try_from(replaced).unwrap() {
        all_record(&consumers).await;
        let next = serve.start();
        next.ready().await;
        let previous = std::mem::replace(&mut consumers[number % 2], next);
        assert!(previous.terminate().success());
        caught_up(bed).await;
    }
    all_record(&consumers).await;
    load.stop().await;
    bed.settled().await;
    bed.audit().await
}

#[tokio::test(flavor = "multi_thread")]
async fn f51_two_consumers_replaced_one_by_one_share_the_work() {
    let mut bed = Bed::new("f51").await;
    let serve = bed.serve();
    f51(&mut bed, serve, 2 * rounds(20)).await.clean();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the sabotaged program: make test-faults"]
async fn f51_control_without_the_look_up_copies_are_recorded_again() {
    let mut bed = Bed::new("f51-control").await;
    let serve = bed.serve_sabotaged("double");
    f51(&mut bed, serve, 2).await.violates("I2");
}

/// A forwarder in front of the bed's stream.
struct Forwarder {
    child: Child,
    events: SocketAddr,
}

impl Forwarder {
    async fn start(bed: &Bed, api: SocketAddr, key: &str) -> Self {
        let [events, metrics] = free_addresses();
        let log =
            std::fs::File::options().create(true).append(true).open(bed.folder.join("forward.log")).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_waybill"))
            .arg("forward")
            .env("WAYBILL_FORWARD_GATEWAY", &bed.gateways[0])
            .env("WAYBILL_FORWARD_JOURNAL", bed.folder.join("forward"))
            .env("WAYBILL_FORWARD_LISTEN", events.to_string())
            .env("WAYBILL_FORWARD_METRICS_ADDR", metrics.to_string())
            .env("WAYBILL_FORWARD_NATS_URL", bed.intake_url())
            .env("WAYBILL_SUBJECT_PREFIX", &bed.names.prefix)
            .env("WAYBILL_FORWARD_API_URL", format!("http://{api}"))
            .env("WAYBILL_FORWARD_KEY", key)
            .env("WAYBILL_FORWARD_POLL_MS", "100")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        wait_until("the forwarder answers", async || get(events, "/livez").await).await;
        Self { child, events }
    }

    /// Posts events, which are accepted.
    async fn post(&self, events: &[Value]) {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = client.post(format!("http://{}/v1/events", self.events));
        let request =
            request.header("content-type", "application/json").body(Value::from(events).to_string());
        assert_eq!(request.send().await.unwrap().status(), 202);
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Waits until the stream has so many messages.
async fn stored(bed: &Bed, messages: i64) {
    wait_until("the stream has the message", async || {
        (bed.stream_state().await?.0 >= messages).then_some(())
    })
    .await;
}

/// F53: a gateway's forwarder is killed before it has published what it accepted, and before it learns that it was stored.
async fn f53(bed: &mut Bed, serve: Serve, rounds: u32) -> Verdict {
    let gateway = bed.gateways[0].clone();
    let (key, subject) = (gateway_key(bed, &gateway).await, format!("{}.{gateway}", bed.names.prefix));
    let service = serve.start();
    service.ready().await;
    bed.take_snapshots();
    let mut forwarder = Forwarder::start(bed, service.http, &key).await;
    for round in 0..rounds {
        let source = format!("{gateway}/own");
        let events: Vec<Value> = (0..7)
            .map(|number| event(&source, &format!("f53-{round}-{number}"), CUSTOMERS[number % 4], "f53"))
            .collect();
        write_down(bed, &gateway, &Value::from(events.as_slice()).to_string(), &["new"; 7]);
        let (before, _) = bed.stream_state().await.unwrap();
        if round % 2 == 0 {
            let subject = subject.clone();
            let publish =
                bed.intake.hold(Way::ToServer, move |m| m.kind == Kind::Publish && *m.text == *subject);
            forwarder.post(&events).await;
            let held = publish.reached("what was accepted is on its way").await;
            drop(forwarder);
            held.end(End::Reset);
            assert_eq!(bed.stream_state().await.unwrap().0, before, "it was not published yet");
            forwarder = Forwarder::start(bed, service.http, &key).await;
            stored(bed, before + 1).await;
        } else {
            // What the ledger has when a forwarder starts is not published again.
            let commit = bed.postgres.hold(Way::ToServer, recording);
            let answer =
                bed.intake.hold(Way::ToClient, |m| m.kind == Kind::Deliver && m.text.starts_with("_INBOX_"));
            forwarder.post(&events).await;
            let held = answer.reached("what was accepted is stored").await;
            let commit = commit.reached("it is about to be recorded").await;
            drop(forwarder);
            held.end(End::Reset);
            forwarder = Forwarder::start(bed, service.http, &key).await;
            stored(bed, before + 2).await;
            commit.release();
        }
        bed.settled().await;
    }
    let (messages, _) = bed.stream_state().await.unwrap();
    println!("{rounds} bodies came as {messages} messages");
    bed.audit().await
}

#[tokio::test(flavor = "multi_thread")]
async fn f53_a_killed_forwarder_publishes_what_it_accepted_and_it_is_billed_once() {
    let mut bed = Bed::new("f53").await;
    let serve = bed.serve();
    f53(&mut bed, serve, 2 * rounds(50)).await.clean();
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the sabotaged program: make test-faults"]
async fn f53_control_without_the_look_up_what_is_published_again_is_recorded_again() {
    let mut bed = Bed::new("f53-control").await;
    let serve = bed.serve_sabotaged("double");
    f53(&mut bed, serve, 2).await.violates("I2");
}

/// F54: recording at full batches, beside exports, stays within its memory; killed in the middle, it recovers.
#[tokio::test(flavor = "multi_thread")]
async fn f54_full_batches_stay_within_the_memory_limit() {
    let mut bed = Bed::new("f54").await;
    let finance = finance_key(&bed).await;
    let messages = if thorough() { 1_000 } else { 150 };
    // A batch with corrections is not kept in memory for posting.
    let load =
        Load { messages, events_max: 90, pause: Duration::ZERO, estimates: 0, ..Load::seeded(seed("f54")) };
    load.sent(&bed).await;
    bed.take_snapshots();
    let (last, _) = bed.stream_state().await.unwrap();
    let serve = bed.serve().env("WAYBILL_ACK_WAIT_SECONDS", &FULL_BATCH_SECONDS);
    // Killed where it is largest: before its first commit.
    let stopping = bed.postgres.hold(Way::ToServer, recording);
    let mut first = serve.start();
    let held = stopping.reached("a full batch is about to be committed").await;
    first.kill();
    held.end(End::Reset);
    // What it had in hand is delivered again once the server knows that it will not be acknowledged. The first commit is
    // held back until everything before it is full: what waits is recorded together.
    let stopping = bed.postgres.hold(Way::ToServer, recording);
    let service = serve.start();
    let held = stopping.reached("a batch is about to be committed again").await;
    takes_no_more(&bed, &service).await;
    held.release();
    service.ready().await;
    let (mut exports, mut exported, mut peak) = (tokio::task::JoinSet::new(), 0, 0);
    let started = Instant::now();
    while accounted(&bed).await.unwrap() < last || exported < EXPORTS {
        assert!(started.elapsed() < EXPORTED_WITHIN, "{exported} exports were answered");
        while exports.len() < EXPORTS {
            let (http, key) = (service.http, finance.clone());
            exports.spawn(async move { ask(http, &key, "/v1/usage?group_by=model", "text/csv").await });
        }
        while let Some(answer) = exports.try_join_next() {
            // One that is told to come back later is no export.
            exported += usize::from(answer.unwrap().is_some_and(|answer| answer.status == 200));
        }
        peak = peak_mib(&service).max(peak);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    bed.settled().await;
    peak = peak_mib(&service).max(peak);
    let largest = bed.number("SELECT max(events)::bigint FROM ingest_batches").await;
    println!("{last} messages, batches of up to {largest} events, {exported} exports, {peak} MiB");
    assert!(largest > if thorough() { 9_000 } else { 2_000 }, "the batches were not full: {largest}");
    assert!(peak < MEMORY_MAX_MIB, "{peak} MiB");
    bed.audit().await.clean();
}

/// The share of one processor that a program uses for a moment, in percent.
async fn processor_share(service: &Service) -> u64 {
    let (ticks, started) = (cpu_ticks(service), Instant::now());
    tokio::time::sleep(SHARE_MEASURED).await;
    (cpu_ticks(service) - ticks) * 1_000 / u64::try_from(started.elapsed().as_millis()).unwrap()
}

/// F55: no file handles are left for clients: what runs goes on, without a busy loop, and clients are served again later.
#[tokio::test(flavor = "multi_thread")]
async fn f55_without_file_handles_recording_goes_on() {
    let mut bed = Bed::new("f55").await;
    let finance = finance_key(&bed).await;
    let mut serve = bed.serve();
    let script = bed.folder.join("limited");
    let text = format!("#!/bin/sh\nulimit -n 64\nexec '{}' \"$@\"\n", serve.program.display());
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    serve.program = script;
    let service = serve.start();
    service.ready().await;
    bed.take_snapshots();
    let seed = seed("f55");
    let load = Load::endless(seed).start(&bed).await;
    caught_up(&bed).await;
    // How much recording uses varies more than a busy loop adds: what is measured has nothing to do.
    load.stop().await;
    bed.settled().await;
    let mut clients = Vec::new();
    for _ in 0..100 {
        // Accepted by the system, if not by the program.
        clients.push(TcpStream::connect(service.http).await.unwrap());
    }
    wait_until("all handles are taken", async || (service.open_files() >= 64).then_some(())).await;
    assert!(get(service.http, "/livez").await.is_none(), "a client is served without a handle");
    let share = processor_share(&service).await;
    println!("{share} % of a processor without handles");
    assert!(share < BUSY_LOOP_SHARE, "a busy loop: {share} % of a processor");
    let load = Load::endless(seed + 1).start(&bed).await;
    load.goes_on(30).await;
    let lag = caught_up(&bed).await;
    println!("recorded within {lag:?}");
    drop(clients);
    wait_until("clients are served again", async || {
        let answer = ask(service.http, &finance, "/v1/customers", "application/json").await?;
        (answer.status == 200).then_some(())
    })
    .await;
    load.stop().await;
    bed.settled().await;
    bed.audit().await.clean();
}

/// F56: a tenth of a processor: slower, but nothing is delivered again or takes the program for dead.
#[tokio::test(flavor = "multi_thread")]
async fn f56_a_tenth_of_a_processor_is_only_slower() {
    let mut bed = Bed::new("f56").await;
    let service = bed.serve().env("WAYBILL_ACK_WAIT_SECONDS", &LONG_ACK_WAIT_SECONDS).supervised();
    service.ready().await;
    bed.take_snapshots();
    let load = Load::endless(seed("f56")).start(&bed).await;
    caught_up(&bed).await;
    let stop = Arc::new(AtomicBool::new(false));
    let pid = service.now(|service| service.pid());
    let starving = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            while !stop.load(Ordering::Relaxed) {
                nix::sys::signal::kill(pid, Signal::SIGSTOP).ok();
                std::thread::sleep(Duration::from_millis(90));
                nix::sys::signal::kill(pid, Signal::SIGCONT).ok();
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    });
    let before = accounted(&bed).await.unwrap();
    tokio::time::sleep(Duration::from_secs(if thorough() { 300 } else { 6 })).await;
    let recorded = wait_until("something is recorded meanwhile", async || {
        let recorded = accounted(&bed).await? - before;
        (recorded > 0).then_some(recorded)
    })
    .await;
    println!("{recorded} messages were recorded meanwhile");
    nothing_unearned(&bed).await;
    stop.store(true, Ordering::Relaxed);
    starving.join().unwrap();
    load.stop().await;
    bed.settled().await;
    assert_eq!(service.restarts(), 0);
    let (again, deliveries) = redelivered(&bed).await;
    assert!(again * 20 < deliveries, "{again} of {deliveries} deliveries were repeated");
    bed.audit().await.clean();
}

/// F57: SIGTERM while a batch is being committed: it is committed and acknowledged, and only then the program ends.
#[tokio::test(flavor = "multi_thread")]
async fn f57_a_stop_finishes_the_batch_in_hand() {
    let mut bed = Bed::new("f57").await;
    let serve = bed.serve();
    bed.take_snapshots();
    let load = Load::endless(seed("f57")).start(&bed).await;
    for _ in 0..rounds(30) {
        let mut service = serve.start();
        service.ready().await;
        let held =
            bed.postgres.hold(Way::ToServer, recording).reached("a batch is about to be committed").await;
        let before = accounted(&bed).await.unwrap();
        service.signal(Signal::SIGTERM);
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert!(service.ended().is_none(), "it does not leave a batch behind");
        held.release();
        let (status, took) = ended(&mut service).await;
        assert!(status.success() && took < STOP_TIMEOUT, "{status} after {took:?}");
        let after = accounted(&bed).await.unwrap();
        assert!(after > before, "the batch in hand is recorded");
        let acknowledged = wait_until("whatever it recorded it has acknowledged too", async || {
            let consumer = bed.consumer_info().await?;
            let delivered = i64::try_from(consumer.delivered.stream_sequence).unwrap();
            let acknowledged = delivered - i64::try_from(consumer.num_ack_pending).unwrap();
            (acknowledged >= after).then_some(acknowledged)
        })
        .await;
        assert_eq!(acknowledged, after, "more is acknowledged than recorded");
    }
    if thorough() {
        // A database that never answers holds up a stop only so long.
        let mut service = serve.start();
        service.ready().await;
        let held =
            bed.postgres.hold(Way::ToServer, recording).reached("a batch is about to be committed").await;
        service.signal(Signal::SIGTERM);
        let (_, took) = ended(&mut service).await;
        assert!(took < STOP_TIMEOUT + Duration::from_secs(3), "it took {took:?} to stop");
        held.end(End::Reset);
    }
    let service = serve.start();
    service.ready().await;
    load.stop().await;
    bed.settled().await;
    nothing_lacked(&bed);
    bed.audit().await.clean();
}

/// F57: SIGTERM while an export is underway: its client gets all of it, and only then the program ends.
#[tokio::test(flavor = "multi_thread")]
async fn f57_a_stop_finishes_the_export_in_hand() {
    const EXPORT: &str = "/v1/usage?group_by=model";
    let mut bed = Bed::new("f57-export").await;
    let finance = finance_key(&bed).await;
    let recording = bed.serve().start();
    recording.ready().await;
    Load::seeded(seed("f57-export")).sent(&bed).await;
    bed.settled().await;
    assert!(recording.terminate().success());
    let mut service = bed.serve().roles(&["--api"]).start();
    service.ready().await;
    let whole = ask(service.http, &finance, EXPORT, "text/csv").await.unwrap();
    let reaching = bed.postgres.hold(Way::ToServer, |m| m.is_statement("usage_within"));
    let (http, key) = (service.http, finance.clone());
    let export = tokio::spawn(async move { ask(http, &key, EXPORT, "text/csv").await });
    let held = reaching.reached("an export is underway").await;
    // Whoever says half of a request, for which nobody needs a key, keeps the program from nothing.
    let mut halves = Vec::new();
    for address in [service.http, service.metrics] {
        let mut half = TcpStream::connect(address).await.unwrap();
        half.write_all(b"GET / HT").await.unwrap();
        halves.push(half);
        get(address, "/livez").await.expect("the half is read by now");
    }
    service.signal(Signal::SIGTERM);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(service.ended().is_none(), "it does not leave an export behind");
    held.release();
    let answer = export.await.unwrap().expect("the client is answered");
    assert_eq!((answer.status, &answer.body), (200, &whole.body));
    assert!(whole.body.lines().count() > 1, "{}", whole.body);
    let (status, took) = ended(&mut service).await;
    assert!(status.success() && took < HALF_SAID_STOP_TIMEOUT, "{status} after {took:?}");
    drop(halves);
    bed.audit().await.clean();
}

/// The reason that an event cannot be recorded, and what is done to it for that.
type Poison = (&'static str, fn(&mut Value));
/// Poison of every kind.
const POISONS: [Poison; 13] = [
    ("unpriced", |e| e["data"]["model"] = json!("gpt-99")),
    ("unknown_customer", |e| e["subject"] = json!("nobody")),
    ("time", |e| e["time"] = json!("yesterday")),
    ("future", |e| e["time"] = json!("2096-01-01T00:00:00Z")),
    ("too_old", |e| e["time"] = json!("2020-01-01T00:00:00Z")),
    ("negative", |e| e["data"]["usage"] = json!({"input": -1})),
    ("type", |e| e["data"]["usage"] = json!({"input": "12"})),
    ("type", |e| e["data"]["usage"] = json!({"input": 1.5})),
    ("limit", |e| e["data"]["usage"] = json!({"input": 1_000_000_000_001_i64})),
    ("unmetered", |e| e["data"]["usage"] = json!({})),
    ("version", |e| e["type"] = json!("llm.usage.v2")),
    ("ambiguous", |e| e["data"]["provider_usage"] = json!({"format": "openai.chat", "body": {}})),
    ("not_allowed", |e| e["source"] = json!("somebody-else")),
];
/// Of ten events of a storm so many cannot be recorded.
const STORM_TENTHS: usize = 3;

/// F58: three of ten events cannot be recorded, in every way: the others are recorded as ever.
#[tokio::test(flavor = "multi_thread")]
async fn f58_a_storm_of_poison_touches_no_good_event() {
    let mut bed = if thorough() { Bed::alone("f58").await } else { Bed::new("f58").await };
    let (pairs, messages) = if thorough() { (5, 600) } else { (1, 60) };
    // Of so many rows as a thorough run has they would take the time that is measured.
    if !thorough() {
        bed.take_snapshots();
    }
    let mut shares = Vec::new();
    for pair in 0..pairs {
        let calm = drained(&bed, &format!("calm-{pair}"), messages, false).await;
        let storm = drained(&bed, &format!("storm-{pair}"), messages, true).await;
        println!("good events per second: {calm} without poison, {storm} with three tenths of it");
        shares.push(storm * 100 / calm.max(1));
    }
    shares.sort_unstable();
    let median = shares[shares.len() / 2];
    // So few events as the short selection has are no measure.
    assert!(
        !thorough() || median >= 50,
        "poison takes more than its share: {median} % are left, of {shares:?}"
    );
    for (reason, _) in POISONS {
        let found: i64 = sqlx::query_scalar("SELECT count(*) FROM rejections WHERE reason = $1")
            .bind(reason)
            .fetch_one(&bed.pool)
            .await
            .unwrap();
        assert!(found > 0, "no rejection says {reason}");
    }
    bed.audit().await.clean();
}

/// Publishes messages of 50 good events, and of others among them, then starts a consumer; good events that it then records
/// in a second.
async fn drained(bed: &Bed, name: &str, messages: usize, poisoned: bool) -> u64 {
    let gateway = bed.gateways[0].clone();
    let source = format!("{gateway}/{name}");
    let mut gateway = Gateway::new(bed, &gateway, name).await;
    let (mut good, mut bad) = (0, 0);
    for number in 0..messages {
        let (mut events, mut notes) = (Vec::new(), Vec::new());
        for index in 0..50 {
            let customer = CUSTOMERS[index % CUSTOMERS.len()];
            events.push(event(
                &source,
                &format!("{name}-{number}-{index}"),
                customer,
                &format!("{name}-{number}"),
            ));
            notes.push("new");
            good += 1;
            if poisoned && index % (10 - STORM_TENTHS) < STORM_TENTHS {
                let mut poison =
                    event(&source, &format!("{name}-poison-{number}-{index}"), customer, "poison");
                POISONS[bad % POISONS.len()].1(&mut poison);
                events.push(poison);
                notes.push("poison");
                bad += 1;
            }
        }
        gateway.send(Value::from(events).to_string(), &notes, false).await;
        if poisoned {
            gateway.send(format!("no JSON {number}"), &["whole"], false).await;
        }
    }
    let service = bed.serve().env("WAYBILL_ACK_WAIT_SECONDS", &LONG_ACK_WAIT_SECONDS).start();
    service.ready().await;
    bed.settled().await;
    let recorded: i64 = sqlx::query_scalar("SELECT count(*) FROM usage_events WHERE source = $1")
        .bind(&source)
        .fetch_one(&bed.pool)
        .await
        .unwrap();
    assert_eq!(recorded, good);
    // From the first batch on: how long that one took is not known, so its events do not count either.
    let (later, millis): (i64, i64) = sqlx::query_as(
        "WITH own AS (
             SELECT recorded, recorded_at, recorded_at = min(recorded_at) OVER () AS first FROM ingest_batches b
             WHERE EXISTS (SELECT 1 FROM usage_events e WHERE e.batch_id = b.id AND e.source = $1))
         SELECT COALESCE(sum(recorded) FILTER (WHERE NOT first), 0)::bigint,
                (extract(epoch FROM max(recorded_at) - min(recorded_at)) * 1000)::bigint FROM own",
    )
    .bind(&source)
    .fetch_one(&bed.pool)
    .await
    .unwrap();
    u64::try_from(later * 1_000 / millis.max(1)).unwrap()
}
