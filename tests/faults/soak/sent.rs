//! What the gateway of the soak sends, and what it says it has sent.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use waybill::clock::Clock;
use waybill::ingest::{self, Publisher};

use super::workload::{GATEWAY, Ids, PACKED, Workload};
use crate::bed::Bed;

/// Messages that wait for the stream at a time: what a gateway holds while the stream is away.
const UNCONFIRMED_MAX: usize = 6_000;
/// How often the paced gateway sends.
const TICK: Duration = Duration::from_millis(10);
/// Pause before a message is sent again.
const RETRY: Duration = Duration::from_millis(200);
/// Of so many messages one is sent twice.
const COPIED: usize = 50;
/// Messages that may be sent again.
const REMEMBERED: usize = 100;

#[derive(Deserialize)]
struct Event<'a> {
    subject: &'a str,
    #[serde(borrow)]
    data: Data<'a>,
}

#[derive(Deserialize)]
struct Data<'a> {
    model: &'a str,
    #[serde(borrow)]
    provider_usage: ProviderUsage<'a>,
}

#[derive(Deserialize)]
struct ProviderUsage<'a> {
    #[serde(borrow)]
    body: Body<'a>,
}

#[derive(Deserialize)]
struct Body<'a> {
    prompt_tokens: u64,
    completion_tokens: u64,
    #[serde(borrow)]
    prompt_tokens_details: BTreeMap<&'a str, u64>,
    #[serde(borrow)]
    completion_tokens_details: BTreeMap<&'a str, u64>,
}

/// Calls, prompt, cached, completion and reasoning tokens by customer and model.
type Totals = BTreeMap<(String, String), [u64; 5]>;

/// The gateway.
pub struct Sending {
    publisher: Publisher,
    workload: Workload,
    totals: Totals,
    recent: VecDeque<Bytes>,
    messages: usize,
    unconfirmed: Arc<Semaphore>,
    /// Events made, and events that the stream has confirmed.
    pub made: Arc<AtomicU64>,
    pub confirmed: Arc<AtomicU64>,
}

impl Sending {
    pub async fn start(bed: &Bed, seed: u64) -> Self {
        let context = ingest::jetstream(&bed.intake_of_all_url(), "waybill-soak").await.unwrap();
        Self {
            publisher: Publisher::new(context, &bed.names.prefix),
            workload: Workload::new(seed, Ids::Ordered),
            totals: Totals::new(),
            recent: VecDeque::new(),
            messages: 0,
            unconfirmed: Arc::new(Semaphore::new(UNCONFIRMED_MAX)),
            made: Arc::default(),
            confirmed: Arc::default(),
        }
    }

    /// Sends so many events: as fast as it goes, or so many a second.
    pub async fn publish(&mut self, events: usize, rate: Option<u64>) {
        let started = Instant::now();
        let mut sent = 0;
        while sent < events {
            let count = PACKED.min(events - sent);
            if let Some(rate) = rate {
                let due = Duration::from_micros(sent as u64 * 1_000_000 / rate);
                if due > started.elapsed() + TICK {
                    tokio::time::sleep(TICK).await;
                    continue;
                }
            }
            self.send(count).await;
            sent += count;
        }
        self.all_confirmed().await;
    }

    async fn send(&mut self, count: usize) {
        let body = self.workload.message(count, |_| Clock::System.now());
        self.count(&body);
        self.made.fetch_add(count as u64, Ordering::Relaxed);
        let body: Bytes = zstd::bulk::compress(&body, 1).unwrap().into();
        self.messages += 1;
        if self.messages.is_multiple_of(COPIED) {
            let earlier = self.recent[self.messages / COPIED % self.recent.len()].clone();
            self.hand_over(earlier, 0).await;
        }
        self.hand_over(body.clone(), count as u64).await;
        self.recent.push_back(body);
        if self.recent.len() > REMEMBERED {
            self.recent.pop_front();
        }
    }

    /// Publishes a message in the background, again and again until the stream has confirmed it.
    async fn hand_over(&self, body: Bytes, events: u64) {
        let permit = Arc::clone(&self.unconfirmed).acquire_owned().await.unwrap();
        let (publisher, confirmed) = (self.publisher.clone(), Arc::clone(&self.confirmed));
        tokio::spawn(async move {
            while publisher.publish_packed(GATEWAY, body.clone(), true).await.is_err() {
                tokio::time::sleep(RETRY).await;
            }
            confirmed.fetch_add(events, Ordering::Relaxed);
            drop(permit);
        });
    }

    async fn all_confirmed(&self) {
        let all = self.unconfirmed.acquire_many(u32::try_from(UNCONFIRMED_MAX).unwrap()).await;
        drop(all.unwrap());
    }

    fn count(&mut self, body: &[u8]) {
        for event in serde_json::from_slice::<Vec<Event>>(body).unwrap() {
            let Body { prompt_tokens, completion_tokens, prompt_tokens_details, completion_tokens_details } =
                event.data.provider_usage.body;
            let figures = [
                1,
                prompt_tokens,
                prompt_tokens_details["cached_tokens"],
                completion_tokens,
                completion_tokens_details["reasoning_tokens"],
            ];
            let key = (event.subject.to_owned(), event.data.model.to_owned());
            let total = self.totals.entry(key).or_default();
            total.iter_mut().zip(figures).for_each(|(total, figure)| *total += figure);
        }
    }

    /// Waits for the last confirmation, and writes down what was sent.
    pub async fn finish(self, path: &Path) {
        self.all_confirmed().await;
        let mut writer = csv::Writer::from_path(path).unwrap();
        writer
            .write_record(["customer", "model", "calls", "prompt", "cached", "completion", "reasoning"])
            .unwrap();
        for ((customer, model), figures) in &self.totals {
            let figures = figures.map(|figure| figure.to_string());
            let fields = [customer, model].into_iter().chain(&figures);
            writer.write_record(fields).unwrap();
        }
        writer.flush().unwrap();
    }
}
