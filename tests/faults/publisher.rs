//! Gateways: each writes down what it is about to send, sends it, and sends it again until the stream has confirmed it.
//!
//! What the ledger must hold afterwards is not computed here: the auditor reads the journals.

use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use waybill::clock::Clock;
use waybill::ingest::{PublishError, Publisher};

use crate::bed::{Bed, CUSTOMERS, MODELS};
use crate::harness::wait_until;

/// Of a thousand events so many are sent again, sent again with other content, cannot be recorded, or are of last week.
const COPIES: u32 = 50;
const CONFLICTS: u32 = 10;
const POISON: u32 = 10;
const LATE: u32 = 20;
const OUTCOMES: u32 = 30;
/// The same of estimates, where a load does not say otherwise.
const ESTIMATES: u32 = 40;
/// Of a hundred messages so many are compressed.
const COMPRESSED: u32 = 20;
/// Events that may be sent again are among the last so many.
const REMEMBERED: usize = 200;
/// Pause before a message is sent again.
const RETRY: Duration = Duration::from_millis(100);

/// What the gateways do.
#[derive(Debug, Clone)]
pub struct Load {
    pub seed: u64,
    pub gateways: usize,
    /// Messages of each gateway, where it is not stopped before.
    pub messages: usize,
    /// Most events of a message; half of the messages have one.
    pub events_max: u32,
    /// Pause between two messages of a gateway.
    pub pause: Duration,
    /// Of a thousand events so many are estimates, and half as many correct one.
    pub estimates: u32,
}

impl Load {
    /// A small one.
    pub fn seeded(seed: u64) -> Self {
        let pause = Duration::from_millis(5);
        Self { seed, gateways: 3, messages: 60, events_max: 12, pause, estimates: ESTIMATES }
    }

    /// Without an end, until it is stopped.
    pub fn endless(seed: u64) -> Self {
        Self { messages: usize::MAX, pause: Duration::from_millis(20), ..Self::seeded(seed) }
    }

    /// Starts the gateways; they reach NATS through the bed's `intake`.
    pub async fn start(&self, bed: &Bed) -> Sending {
        let (stop, tally) = (Arc::new(AtomicBool::new(false)), Arc::new(Tally::default()));
        let mut gateways = Vec::new();
        for number in 0..self.gateways {
            let name = &bed.gateways[number % bed.gateways.len()];
            let gateway = Gateway::new(bed, name, &format!("{:x}-{number}", self.seed)).await;
            let sender = Sender {
                gateway: Gateway { tally: Arc::clone(&tally), ..gateway },
                events: Events::new(self.seed, number, name),
                stop: Arc::clone(&stop),
            };
            gateways.push(tokio::spawn(sender.run(self.clone())));
        }
        Sending { stop, tally, gateways }
    }

    /// Starts the gateways and waits until all is sent and confirmed.
    pub async fn sent(&self, bed: &Bed) {
        self.start(bed).await.finished().await;
    }
}

/// Sends again whatever the gateways have written down so far, as they do with what is not settled.
pub async fn send_again(bed: &Bed) {
    for gateway in &bed.gateways {
        let publisher = Publisher::of_gateway(&bed.intake_url(), &bed.names.prefix, gateway).await.unwrap();
        for body in written(bed, gateway) {
            while publisher.publish(gateway, body.clone()).await.is_err() {
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

/// Writes down, in a journal beside those of the gateways, that a message is about to be sent; `notes` say what each of its
/// events is meant to be.
pub fn write_down(bed: &Bed, gateway: &str, body: &str, notes: &[&str]) {
    about_to_send(&mut open_journal(bed, "own"), 0, gateway, body, notes);
}

fn open_journal(bed: &Bed, name: &str) -> File {
    let path = bed.folder.join("journals").join(name).with_extension("jsonl");
    File::options().create(true).append(true).open(path).unwrap()
}

fn about_to_send(journal: &mut File, message: u64, gateway: &str, body: &str, notes: &[&str]) {
    let line = json!({"message": message, "gateway": gateway, "body": body, "notes": notes});
    journal.write_all(format!("{line}\n").as_bytes()).unwrap();
}

/// The lines of all journals, those of a journal in order.
fn lines(bed: &Bed) -> impl Iterator<Item = Value> {
    let journals = std::fs::read_dir(bed.folder.join("journals")).unwrap();
    journals.flat_map(|journal| {
        let text = std::fs::read_to_string(journal.unwrap().path()).unwrap();
        // A gateway at work may not have finished its last line: what that says is still to be sent.
        let lines = text.lines().filter_map(|line| serde_json::from_str(line).ok());
        lines.collect::<Vec<Value>>()
    })
}

/// The bodies that a gateway has written down, in order.
fn written(bed: &Bed, gateway: &str) -> Vec<Bytes> {
    let own = lines(bed).filter(|line| line["gateway"] == gateway);
    own.filter_map(|line| Some(Bytes::from(line["body"].as_str()?.to_owned()))).collect()
}

/// Events that are written down as being meant so.
fn noted(bed: &Bed, note: &str) -> i64 {
    let notes = lines(bed).filter_map(|line| line["notes"].as_array().cloned()).flatten();
    notes.filter(|noted| noted == note).map(|_| 1).sum()
}

/// Copies that the ledger has found beside those that the gateways sent on purpose; meant for when all is settled.
pub async fn copies_not_meant(bed: &Bed) -> i64 {
    bed.number("SELECT sum(duplicates)::bigint FROM ingest_batches").await - noted(bed, "copy")
}

/// What the stream has answered.
#[derive(Debug, Default)]
struct Tally {
    confirmed: AtomicU64,
    refused: AtomicU64,
    unconfirmed: AtomicU64,
}

/// Gateways at work.
pub struct Sending {
    stop: Arc<AtomicBool>,
    tally: Arc<Tally>,
    gateways: Vec<JoinHandle<()>>,
}

impl Sending {
    /// Messages that the stream has confirmed so far.
    pub fn confirmed(&self) -> u64 {
        self.tally.confirmed.load(Ordering::Relaxed)
    }

    /// How often a gateway was told that the stream does not take its message.
    pub fn refused(&self) -> u64 {
        self.tally.refused.load(Ordering::Relaxed)
    }

    /// How often a gateway was told nothing.
    pub fn unconfirmed(&self) -> u64 {
        self.tally.unconfirmed.load(Ordering::Relaxed)
    }

    /// Waits until so many more messages are confirmed.
    pub async fn goes_on(&self, messages: u64) {
        let enough = self.confirmed() + messages;
        wait_until("the gateways go on", async || (self.confirmed() >= enough).then_some(())).await;
    }

    /// What reads [`Self::confirmed`] from elsewhere.
    pub fn counter(&self) -> impl Fn() -> u64 + Send + use<> {
        let tally = Arc::clone(&self.tally);
        move || tally.confirmed.load(Ordering::Relaxed)
    }

    /// Waits until all is sent and confirmed; returns how many messages that were.
    pub async fn finished(self) -> u64 {
        for gateway in self.gateways {
            gateway.await.unwrap();
        }
        self.tally.confirmed.load(Ordering::Relaxed)
    }

    /// Asks for no further messages, and waits until the last ones are confirmed; returns how many there were.
    pub async fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.finished().await
    }
}

/// A gateway that sends what it is told, and writes it down for the auditor before.
pub struct Gateway {
    name: String,
    publisher: Publisher,
    journal: File,
    messages: u64,
    tally: Arc<Tally>,
}

impl Gateway {
    /// One of the bed's gateways, with a journal of its own.
    pub async fn new(bed: &Bed, name: &str, journal: &str) -> Self {
        let publisher = Publisher::of_gateway(&bed.intake_url(), &bed.names.prefix, name).await.unwrap();
        let journal = open_journal(bed, journal);
        Self { name: name.to_owned(), publisher, journal, messages: 0, tally: Arc::default() }
    }

    /// Sends a body until the stream has confirmed it; `notes` say what each of its events is meant to be.
    pub async fn send(&mut self, body: String, notes: &[&str], zstd: bool) {
        self.messages += 1;
        let number = self.messages;
        about_to_send(&mut self.journal, number, &self.name, &body, notes);
        let body = if zstd { zstd::bulk::compress(body.as_bytes(), 1).unwrap() } else { body.into_bytes() };
        let body = Bytes::from(body);
        let sequence = loop {
            match self.publisher.publish_packed(&self.name, body.clone(), zstd).await {
                Ok(published) => break published.sequence,
                Err(error) => {
                    let told = match error {
                        PublishError::Refused(_) => &self.tally.refused,
                        PublishError::Unconfirmed(_) => &self.tally.unconfirmed,
                    };
                    told.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(RETRY).await;
                }
            }
        };
        writeln!(self.journal, "{}", json!({"confirmed": number, "sequence": sequence})).unwrap();
        self.tally.confirmed.fetch_add(1, Ordering::Relaxed);
    }
}

struct Sender {
    gateway: Gateway,
    events: Events,
    stop: Arc<AtomicBool>,
}

impl Sender {
    async fn run(mut self, load: Load) {
        for _ in 0..load.messages {
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let (body, notes) = self.events.message(&load);
            // What is kept of a message that cannot be taken apart is what came: the auditor looks for its text.
            let zstd = self.events.chance(100, COMPRESSED) && notes != ["whole"];
            self.gateway.send(body, &notes, zstd).await;
            tokio::time::sleep(load.pause).await;
        }
    }
}

/// A source of events: the same seed gives the same ones, but for their times.
struct Events {
    random: StdRng,
    name: String,
    source: String,
    number: u64,
    sequence: u64,
    sent: Vec<Value>,
    /// Estimates that nothing corrects yet.
    estimates: Vec<Value>,
}

impl Events {
    fn new(seed: u64, number: usize, gateway: &str) -> Self {
        let own = u64::try_from(number).unwrap();
        Self {
            random: StdRng::seed_from_u64(seed.wrapping_mul(1_000).wrapping_add(own)),
            name: format!("{seed:x}-{number}"),
            source: format!("{gateway}/pod-{number}"),
            number: 0,
            sequence: 0,
            sent: Vec::new(),
            estimates: Vec::new(),
        }
    }

    fn chance(&mut self, of: u32, times: u32) -> bool {
        self.random.random_range(0..of) < times
    }

    /// A body, and what each of its events is meant to be.
    fn message(&mut self, load: &Load) -> (String, Vec<&'static str>) {
        if self.chance(1_000, POISON) {
            self.number += 1;
            // Found again by what it says: it has no id.
            return (format!("no JSON {}-{}", self.name, self.number), vec!["whole"]);
        }
        if self.chance(2, 1) {
            let (event, note) = self.event(load.estimates);
            return (event.to_string(), vec![note]);
        }
        let count = self.random.random_range(2..=load.events_max.max(2));
        let (events, notes): (Vec<Value>, _) = (0..count).map(|_| self.event(load.estimates)).unzip();
        (Value::from(events).to_string(), notes)
    }

    fn event(&mut self, estimates: u32) -> (Value, &'static str) {
        let dice = self.random.random_range(0..1_000);
        let again = (!self.sent.is_empty()).then(|| self.random.random_range(0..self.sent.len()));
        match again {
            Some(index) if dice < COPIES => return (self.sent[index].clone(), "copy"),
            Some(index) if dice < COPIES + CONFLICTS => {
                let sent = self.sent[index].clone();
                return (self.conflict(sent), "conflict");
            }
            _ => {}
        }
        if dice < COPIES + CONFLICTS + POISON {
            return (self.poison(), "poison");
        }
        if dice < COPIES + CONFLICTS + POISON + LATE {
            let days = self.random.random_range(3..20);
            let mut event = self.envelope("llm.usage.v1", now() - TimeDelta::days(days));
            event["data"] = self.usage();
            return (event, "late");
        }
        let event = if dice >= 1_000 - OUTCOMES {
            let mut event = self.envelope("llm.task.v1", now());
            let outcome = ["success", "failure"][self.random.random_range(0..2)];
            event["data"] = json!({"task": self.task(), "outcome": outcome});
            event
        } else if self.chance(1_000, estimates) {
            self.estimate()
        } else if !self.estimates.is_empty() && self.chance(1_000, estimates / 2) {
            self.correction()
        } else {
            let mut event = self.envelope("llm.usage.v1", now());
            event["data"] = self.usage();
            event
        };
        if self.sent.len() == REMEMBERED {
            self.sent.remove(0);
        }
        self.sent.push(event.clone());
        (event, "new")
    }

    fn estimate(&mut self) -> Value {
        let mut event = self.envelope("llm.usage.v1", now());
        event["data"] = self.usage();
        event["data"]["usage_source"] = json!("estimated");
        self.estimates.push(event.clone());
        event
    }

    /// What an estimate should have been. Which of two corrections stands is not tested here: none has a second one.
    fn correction(&mut self) -> Value {
        let index = self.random.random_range(0..self.estimates.len());
        let estimate = self.estimates.swap_remove(index);
        let mut event = self.envelope("llm.usage.v1", now());
        event["data"] = self.usage();
        event["subject"] = estimate["subject"].clone();
        event["data"]["corrects"] = estimate["id"].clone();
        event
    }

    /// An event that was sent, with other content.
    fn conflict(&mut self, mut event: Value) -> Value {
        let mut data = self.usage();
        data["usage"] = json!({"input": 999_983, "output": 7});
        data.as_object_mut().unwrap().remove("provider_usage");
        // Either content of an estimate is one, and either one of a correction is for the same estimate.
        for name in ["usage_source", "corrects"] {
            if let Some(value) = event["data"].get(name) {
                data[name] = value.clone();
            }
        }
        event["data"] = data;
        event["type"] = json!("llm.usage.v1");
        event
    }

    fn envelope(&mut self, kind: &str, time: DateTime<Utc>) -> Value {
        self.number += 1;
        self.sequence += 1;
        let customer = CUSTOMERS[self.random.random_range(0..CUSTOMERS.len())];
        json!({"specversion": "1.0", "id": format!("{}-{}", self.name, self.number), "source": self.source,
               "type": kind, "subject": customer, "time": time.to_rfc3339_opts(SecondsFormat::Micros, true),
               "sequence": self.sequence, "epoch": self.name})
    }

    fn task(&mut self) -> Value {
        let task = self.random.random_range(0..40);
        let kind = ["refund", "review"][task % 2];
        json!({"id": format!("task-{task}"), "type": kind})
    }

    fn usage(&mut self) -> Value {
        let (provider, model) = MODELS[self.random.random_range(0..MODELS.len())];
        let (prompt, output) = (self.random.random_range(200..60_000), self.random.random_range(20..4_000));
        let cached = prompt * self.random.random_range(0..90) / 100;
        let reasoning = output * self.random.random_range(0..70) / 100;
        let project = ["support", "sales"][self.random.random_range(0..2)];
        let mut data = json!({"provider": provider, "model": model, "task": self.task(), "status": "ok",
                              "attributes": {"project": project}});
        if self.chance(2, 1) {
            data["usage"] = json!({"input": prompt - cached, "cache_read": cached, "output": output});
        } else if provider == "openai" {
            data["provider_usage"] = json!({"format": "openai.chat", "body": {
                "prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output,
                "prompt_tokens_details": {"cached_tokens": cached},
                "completion_tokens_details": {"reasoning_tokens": reasoning}}});
        } else {
            data["provider_usage"] = json!({"format": "anthropic.messages", "body": {
                "input_tokens": prompt - cached, "cache_read_input_tokens": cached,
                "cache_creation_input_tokens": reasoning, "output_tokens": output}});
        }
        data
    }

    /// An event that cannot be recorded.
    fn poison(&mut self) -> Value {
        let mut event = self.envelope("llm.usage.v1", now());
        event["data"] = self.usage();
        match self.random.random_range(0..4) {
            0 => event["data"]["model"] = json!("gpt-99"),
            1 => event["subject"] = json!("nobody"),
            2 => event["time"] = json!("yesterday"),
            _ => event["data"]["usage"] = json!({"input": -1}),
        }
        event
    }
}

/// The time.
pub fn now() -> DateTime<Utc> {
    Clock::System.now()
}
