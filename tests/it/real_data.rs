//! Real traces through the whole path: what comes out must equal what the traces say, to the last digit.

use std::collections::BTreeMap;
use std::path::PathBuf;

use chrono::{DateTime, NaiveDateTime, Utc};
use serde::Deserialize;
use serde_json::{Value, json};
use waybill::domain::money::Amount;

use crate::world::{World, gpt5_prices, gpt5_prices_2023};

/// A folder of the shared data; `None`, said loudly, where it is missing (an error in CI).
fn shared_data(name: &str) -> Option<PathBuf> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let found =
        root.ancestors().map(|folder| folder.join("shared/data").join(name)).find(|folder| folder.is_dir());
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "shared/data/{name} is missing in CI");
        eprintln!("SKIPPED: no shared/data/{name} beside the checkout or above it");
    }
    found
}

#[derive(Deserialize)]
struct Call {
    file: String,
    turn: u32,
    role: String,
    timestamp: NaiveDateTime,
    prompt_tokens: i64,
    completion_tokens: i64,
    cached_tokens: i64,
}

#[derive(Deserialize)]
struct Run {
    file: String,
    end_time: NaiveDateTime,
    agent_cost: Amount,
    user_cost: Amount,
    reward: serde_json::Number,
}

fn lines<T: for<'de> Deserialize<'de>>(path: PathBuf) -> Vec<T> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

impl Call {
    fn event(&self) -> Value {
        json!({
            "specversion": "1.0", "type": "llm.usage.v1", "source": "gw-1", "subject": "acme",
            "id": format!("{}:{}:{}", self.file, self.turn, self.role),
            "time": self.timestamp.and_utc().to_rfc3339(),
            "data": {
                "provider": "openai", "model": "gpt-5", "status": "ok",
                "task": {"id": self.file, "type": "airline"},
                "attributes": {"agent": self.role},
                "provider_usage": {"format": "openai.chat", "body": {
                    "prompt_tokens": self.prompt_tokens, "completion_tokens": self.completion_tokens,
                    "total_tokens": self.prompt_tokens + self.completion_tokens,
                    "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
                }},
            },
        })
    }
}

impl Run {
    fn total(&self) -> Amount {
        self.agent_cost.checked_add(self.user_cost).unwrap()
    }

    fn outcome(&self) -> &'static str {
        if self.reward.to_string() == "1.0" { "success" } else { "failure" }
    }

    fn event(&self) -> Value {
        json!({
            "specversion": "1.0", "type": "llm.task.v1", "source": "gw-1", "subject": "acme",
            "id": format!("{}:end", self.file), "time": self.end_time.and_utc().to_rfc3339(),
            "data": {"task": {"id": self.file, "type": "airline"}, "outcome": self.outcome()},
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_of_real_agent_runs_cost_what_the_benchmark_recorded() {
    let Some(data) = shared_data("tau2-airline") else { return };
    let calls: Vec<Call> = lines(data.join("calls.jsonl"));
    let runs: Vec<Run> = lines(data.join("tasks.jsonl"));
    assert_eq!((calls.len(), runs.len()), (99, 8));
    let world = World::start().await;
    world.backfill("gw-1", calls.iter().map(|call| call.timestamp.and_utc()).min().unwrap()).await;
    world.publish_prices(gpt5_prices()).await;
    // One event a message, a message an array, and the outcomes last.
    for call in &calls[..40] {
        world.publish("gw-1", &call.event()).await;
    }
    world.publish("gw-1", &calls[40..].iter().map(Call::event).collect()).await;
    world.publish("gw-1", &runs.iter().map(Run::event).collect()).await;
    world.settled().await;

    for run in &runs {
        let task = world.task("acme", &run.file).await;
        assert_eq!(task.cost, run.total(), "{}", run.file);
        assert_eq!(task.charge, run.total(), "{}: sold at cost", run.file);
        assert_eq!(task.outcome.as_deref(), Some(run.outcome()));
        let agents = world.cost_by_agent("acme", &run.file).await;
        assert_eq!(agents["assistant"], run.agent_cost, "{}", run.file);
        assert_eq!(agents["user"], run.user_cost, "{}", run.file);
    }
    let mut by_outcome: BTreeMap<String, Amount> = BTreeMap::new();
    for run in &runs {
        let sum = by_outcome.entry(run.outcome().to_owned()).or_default();
        *sum = sum.checked_add(run.total()).unwrap();
    }
    assert_eq!(world.charge_per_outcome("acme", "airline").await, by_outcome);
    world.verified().await;
}

/// The trace has no customers and no models: request n of a file goes to customer n mod 3 and model n mod 2.
const CUSTOMERS: [&str; 3] = ["acme", "globex", "initech"];
const MODELS: [&str; 2] = ["gpt-4", "gpt-3.5-turbo"];
/// Events packed into one message.
const PACKED: usize = 100;

struct Request {
    at: DateTime<Utc>,
    input: i64,
    output: i64,
}

fn requests(data: &std::path::Path, file: &str) -> Vec<Request> {
    let text = std::fs::read_to_string(data.join(file)).unwrap();
    text.lines()
        .skip(1)
        .map(|line| {
            let fields: Vec<&str> = line.split(',').collect();
            Request {
                at: NaiveDateTime::parse_from_str(fields[0], "%Y-%m-%d %H:%M:%S%.f").unwrap().and_utc(),
                input: fields[1].parse().unwrap(),
                output: fields[2].trim().parse().unwrap(),
            }
        })
        .collect()
}

/// Requests in the trace: its two files have 8,819 and 19,366 rows.
const REQUESTS: i64 = 28_185;

/// Every message of the trace, with ids that start with `run`.
fn messages(data: &std::path::Path, run: &str) -> Vec<Vec<u8>> {
    let mut events = Vec::new();
    for file in ["code.csv", "conv.csv"] {
        for (number, request) in requests(data, file).iter().enumerate() {
            events.push(json!({
                "specversion": "1.0", "type": "llm.usage.v1", "source": "gw-1", "subject": CUSTOMERS[number % 3],
                "id": format!("{run}:{file}:{number}"), "time": request.at.to_rfc3339(),
                "data": {"provider": "openai", "model": MODELS[number % 2],
                         "usage": {"input": request.input, "output": request.output},
                         "attributes": {"project": file.trim_end_matches(".csv")}},
            }));
        }
    }
    assert_eq!(i64::try_from(events.len()).unwrap(), REQUESTS);
    events.chunks(PACKED).map(|chunk| json!(chunk).to_string().into_bytes()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_trace_is_counted_to_the_last_token_and_survives_kills() {
    let Some(data) = shared_data("azure-llm-2023") else { return };
    let world = World::start().await;
    let first_day = "2023-11-01T00:00:00Z".parse().unwrap();
    world.backfill("gw-1", first_day).await;
    world.publish_prices(gpt5_prices_2023()).await;

    let first = messages(&data, "first");
    world.publish_all("gw-1", &first).await;
    world.settled().await;
    let counted = world.totals().await;
    assert_eq!((counted.events, counted.input, counted.output), (REQUESTS, 40_421_844, 4_334_561));
    // gpt-4 at 30 and 60, gpt-3.5-turbo at 1.5 and 2 dollars per million.
    let mut expected: i128 = 0;
    for file in ["code.csv", "conv.csv"] {
        for (number, request) in requests(&data, file).iter().enumerate() {
            let (input, output) = if number % 2 == 0 { (30_000, 60_000) } else { (1_500, 2_000) };
            expected += i128::from(request.input) * input + i128::from(request.output) * output;
        }
    }
    // Rates are per million in thousandths: 10^-9 of a dollar, 10^6 of our smallest unit.
    assert_eq!(counted.cost, Amount::from_femtos(expected * 1_000_000));
    world.verified().await;

    world.publish_all("gw-1", &first).await;
    world.settled().await;
    assert_eq!(world.totals().await, counted, "the same trace again changes nothing");

    let second = messages(&data, "second");
    world.stop_consumers().await;
    world.killed_three_times_while_draining("gw-1", &second).await;
    world.settled().await;
    let twice = world.totals().await;
    assert_eq!((twice.events, twice.input, twice.output), (2 * REQUESTS, 2 * 40_421_844, 2 * 4_334_561));
    world.verified().await;
}
