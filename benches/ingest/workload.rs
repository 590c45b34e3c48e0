//! The workload: seeded usage events of 603 bytes, written straight into the bodies of messages.
//!
//! Customers are skewed log-uniformly, so the busiest has about a tenth of the calls; each of the open tasks belongs to
//! one customer, has eight calls and then makes room for the next.

use std::io::Write;

use bytes::Bytes;
use chrono::{DateTime, SecondsFormat, Utc};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use uuid::Uuid;

/// Size of one event, padded with blanks where its numbers are short.
pub const EVENT_BYTES: usize = 603;
/// Customers and models.
pub const CUSTOMERS: usize = 1_000;
pub const MODELS: usize = 50;
/// Calls of a task, and tasks that are open at a time.
const CALLS_PER_TASK: u8 = 8;
const OPEN_TASKS: usize = 100_000;
/// Most events of a packed message: a hundred of them stay below the 64 KiB of the stream.
pub const PACKED: usize = 100;
/// The gateway it all comes from.
pub const GATEWAY: &str = "gw-bench";
const PROVIDERS: [&str; 5] = ["openai", "anthropic", "google", "mistral", "deepseek"];
const WORKS: [(&str, &str, &str); 4] = [
    ("support", "refund", "triage"),
    ("engineering", "code-review", "reviewer"),
    ("insights", "research", "planner"),
    ("sales", "outreach", "writer"),
];

/// How event ids are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ids {
    /// UUIDv7: time first.
    Ordered,
    /// `UUIDv4`: all random.
    Random,
}

#[derive(Clone, Copy, Default)]
struct Task {
    number: u64,
    customer: usize,
    calls: u8,
}

/// A source of events: the same seed gives the same usage, only ids and times are of the moment.
pub struct Workload {
    random: StdRng,
    ids: Ids,
    tasks: Vec<Task>,
    task_number: u64,
}

/// External id of a customer.
pub fn customer(number: usize) -> String {
    format!("customer-{number:04}")
}

/// Name of a model, and its provider.
pub fn model(number: usize) -> (&'static str, String) {
    (PROVIDERS[number % PROVIDERS.len()], format!("model-{number:02}"))
}

impl Workload {
    pub fn new(seed: u64, ids: Ids) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
            ids,
            tasks: vec![Task::default(); OPEN_TASKS],
            task_number: 0,
        }
    }

    /// A customer: number n about as often as 1/n.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "below 1,001"
    )]
    fn skewed_customer(&mut self) -> usize {
        let exponent: f64 = self.random.random_range(0.0..1.0);
        ((CUSTOMERS as f64).powf(exponent) as usize - 1).min(CUSTOMERS - 1)
    }

    /// The next call of one of the open tasks.
    fn call(&mut self) -> Task {
        let slot = self.random.random_range(0..OPEN_TASKS);
        if self.tasks[slot].calls == 0 {
            let customer = self.skewed_customer();
            self.task_number += 1;
            self.tasks[slot] = Task { number: self.task_number, customer, calls: CALLS_PER_TASK };
        }
        self.tasks[slot].calls -= 1;
        self.tasks[slot]
    }

    fn id(&mut self, made: DateTime<Utc>) -> Uuid {
        match self.ids {
            Ids::Ordered => {
                let millis = u64::try_from(made.timestamp_millis()).unwrap_or_default();
                uuid::Builder::from_unix_timestamp_millis(millis, &self.random.random()).into_uuid()
            }
            Ids::Random => uuid::Builder::from_random_bytes(self.random.random()).into_uuid(),
        }
    }

    /// Appends one event.
    pub fn event(&mut self, made: DateTime<Utc>, out: &mut Vec<u8>) {
        let start = out.len();
        let task = self.call();
        let (provider, model) = model(self.random.random_range(0..MODELS));
        let (project, kind, agent) = WORKS[(task.customer + usize::from(task.number % 2 == 1)) % WORKS.len()];
        let prompt: u32 = self.random.random_range(200..60_000);
        let cached = prompt * self.random.random_range(0..90) / 100;
        let output: u32 = self.random.random_range(20..4_000);
        let reasoning = output * self.random.random_range(0..70) / 100;
        write!(
            out,
            concat!(
                r#"{{"specversion":"1.0","id":"{id}","source":"{GATEWAY}","type":"llm.usage.v1","subject":"customer-{customer:04}","#,
                r#""time":"{time}","data":{{"provider":"{provider}","model":"{model}","service_tier":"default","#,
                r#""task":{{"id":"{kind}-{task}","type":"{kind}"}},"#,
                r#""provider_usage":{{"format":"openai.chat","body":{{"prompt_tokens":{prompt},"completion_tokens":{output},"#,
                r#""prompt_tokens_details":{{"cached_tokens":{cached}}},"completion_tokens_details":{{"reasoning_tokens":{reasoning}}}}}}},"#,
                r#""attributes":{{"project":"{project}","agent":"{agent}","user":"u-{user}"}},"#,
                r#""status":"ok","latency_ms":{latency}"#,
            ),
            GATEWAY = GATEWAY,
            provider = provider,
            model = model,
            kind = kind,
            prompt = prompt,
            output = output,
            cached = cached,
            reasoning = reasoning,
            project = project,
            agent = agent,
            id = self.id(made),
            customer = task.customer,
            time = made.to_rfc3339_opts(SecondsFormat::Micros, true),
            task = task.number,
            user = self.random.random_range(0..20),
            latency = 200 + output / 2,
        )
        .ok();
        let length = EVENT_BYTES - b"}}".len();
        out.resize((start + length).max(out.len()), b' ');
        out.extend_from_slice(b"}}");
    }

    /// A message of `count` events made now: an array, or the event alone where it is one.
    pub fn message(&mut self, count: usize, mut made: impl FnMut(usize) -> DateTime<Utc>) -> Bytes {
        let mut body = Vec::with_capacity(count * (EVENT_BYTES + 1) + 2);
        if count == 1 {
            self.event(made(0), &mut body);
            return body.into();
        }
        for index in 0..count {
            body.push(if index == 0 { b'[' } else { b',' });
            self.event(made(index), &mut body);
        }
        body.push(b']');
        body.into()
    }
}
