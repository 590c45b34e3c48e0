//! Seeded, real-looking traffic: agents working on tasks, step by step, over the models that fit each step.
//!
//! The same seed and times give the same events. Payloads are what the providers return, so that the whole path from decomposing
//! to billing is exercised.

use chrono::{DateTime, TimeDelta, Utc};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};
use uuid::Uuid;

/// Who the traffic is for: external ids of the demo's customers.
pub const CUSTOMERS: [&str; 3] = ["acme", "globex", "initech"];
/// The gateway it comes from.
pub const GATEWAY: &str = "gw-eu-1";
/// Share of tasks that end in success, in percent.
const SUCCESS_PERCENT: u32 = 78;
/// Share of tasks that are still open, in percent.
const OPEN_PERCENT: u32 = 6;

/// A kind of work: its type, its project, how many steps it takes, and who does them.
struct Work {
    task_type: &'static str,
    project: &'static str,
    steps: std::ops::RangeInclusive<u32>,
    route: &'static [Route],
}

/// A model that steps are routed to, by an agent.
struct Route {
    agent: &'static str,
    model: Model,
}

/// The models of the demo: provider, name and payload format.
#[derive(Clone, Copy)]
enum Model {
    Gpt5,
    Gpt56Luna,
    ClaudeSonnet45,
    ClaudeHaiku45,
    Gemini25Flash,
    DeepseekV4Flash,
}

const WORKS: [Work; 3] = [
    Work {
        task_type: "refund",
        project: "support",
        steps: 3..=9,
        route: &[
            Route { agent: "triage", model: Model::Gpt56Luna },
            Route { agent: "policy", model: Model::Gpt5 },
            Route { agent: "reply", model: Model::ClaudeHaiku45 },
        ],
    },
    Work {
        task_type: "code-review",
        project: "engineering",
        steps: 4..=14,
        route: &[
            Route { agent: "reader", model: Model::Gemini25Flash },
            Route { agent: "reviewer", model: Model::ClaudeSonnet45 },
            Route { agent: "tests", model: Model::DeepseekV4Flash },
        ],
    },
    Work {
        task_type: "research",
        project: "insights",
        steps: 6..=20,
        route: &[
            Route { agent: "planner", model: Model::Gpt5 },
            Route { agent: "search", model: Model::Gemini25Flash },
            Route { agent: "summary", model: Model::DeepseekV4Flash },
            Route { agent: "writer", model: Model::ClaudeSonnet45 },
        ],
    },
];

/// A source of events.
#[derive(Debug)]
pub struct Traffic {
    random: StdRng,
    seed: u64,
    from: DateTime<Utc>,
    span: TimeDelta,
    task_number: u64,
    queue: std::collections::VecDeque<Value>,
}

impl Traffic {
    /// Traffic whose tasks start in `[from, to)`, and of which nothing is later than `to`.
    pub fn new(seed: u64, from: DateTime<Utc>, to: DateTime<Utc>) -> Self {
        let span = (to - from).max(TimeDelta::seconds(1));
        Self {
            random: StdRng::seed_from_u64(seed),
            seed,
            from,
            span,
            task_number: 0,
            queue: std::collections::VecDeque::new(),
        }
    }

    /// One task: its calls in order, and its outcome unless it is still open.
    fn task(&mut self) {
        self.task_number += 1;
        let customer = CUSTOMERS[self.random.random_range(0..CUSTOMERS.len())];
        let work = &WORKS[self.random.random_range(0..WORKS.len())];
        let offset =
            TimeDelta::milliseconds(self.random.random_range(0..self.span.num_milliseconds().max(1)));
        let mut at = self.from + offset;
        // Unique in every run, also with the same seed: tasks of two runs are no one task.
        let (seed, from, number) = (self.seed, self.from.timestamp(), self.task_number);
        let task =
            json!({"id": format!("{}-{seed}-{from:x}-{number}", work.task_type), "type": work.task_type});
        let steps = self.random.random_range(work.steps.clone());
        // The conversation grows with each step; what was sent before is read from the cache.
        let mut context: i64 = self.random.random_range(900..4_000);
        let mut cached = 0;
        for _ in 0..steps {
            let route = &work.route[self.random.random_range(0..work.route.len())];
            let output = self.random.random_range(40..1_400);
            let (provider, model, usage) = self.payload(route.model, context, cached, output);
            let latency_ms = 250 + output * 9;
            let event = self.event(
                customer,
                at,
                "llm.usage.v1",
                &json!({
                    "provider": provider,
                    "model": model,
                    "task": task,
                    "provider_usage": usage,
                    "attributes": {"project": work.project, "agent": route.agent},
                    "status": "ok",
                    "latency_ms": latency_ms,
                }),
            );
            self.queue.push_back(event);
            cached = context;
            context += output + self.random.random_range(60..900);
            at += TimeDelta::milliseconds(latency_ms + self.random.random_range(100..20_000));
        }
        let fate = self.random.random_range(0..100);
        if fate < 100 - OPEN_PERCENT {
            let outcome = if fate < SUCCESS_PERCENT { "success" } else { "failure" };
            let event = self.event(customer, at, "llm.task.v1", &json!({"task": task, "outcome": outcome}));
            self.queue.push_back(event);
        }
    }

    fn event(&mut self, customer: &str, at: DateTime<Utc>, kind: &str, data: &Value) -> Value {
        // What a task would still do after that has not happened yet.
        let at = at.min(self.from + self.span);
        let millis = u64::try_from(at.timestamp_millis()).unwrap_or_default();
        let id =
            uuid::Builder::from_unix_timestamp_millis(millis, &self.random.random::<[u8; 10]>()).into_uuid();
        json!({
            "specversion": "1.0",
            "id": Uuid::hyphenated(id).to_string(),
            "source": GATEWAY,
            "type": kind,
            "subject": customer,
            "time": at.to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
            "data": data,
        })
    }

    /// What the provider of a model returns for a call.
    fn payload(
        &mut self,
        model: Model,
        context: i64,
        cached: i64,
        output: i64,
    ) -> (&'static str, &'static str, Value) {
        let reasoning = output * self.random.random_range(20..70) / 100;
        let cached = cached.min(context) / 128 * 128;
        match model {
            Model::Gpt5 => ("openai", "gpt-5", openai_chat(context, cached, output, reasoning)),
            Model::Gpt56Luna => {
                ("openai", "gpt-5.6-luna", openai_responses(context, cached, output, reasoning))
            }
            Model::ClaudeSonnet45 => ("anthropic", "claude-sonnet-4-5", anthropic(context, cached, output)),
            Model::ClaudeHaiku45 => ("anthropic", "claude-haiku-4-5", anthropic(context, cached, output)),
            Model::Gemini25Flash => {
                ("google", "gemini-2.5-flash", gemini(context, cached, output, reasoning))
            }
            Model::DeepseekV4Flash => ("deepseek", "deepseek-v4-flash", deepseek(context, cached, output)),
        }
    }
}

impl Iterator for Traffic {
    type Item = Value;

    /// The next event; there is always one.
    fn next(&mut self) -> Option<Value> {
        if self.queue.is_empty() {
            self.task();
        }
        self.queue.pop_front()
    }
}

fn openai_chat(prompt: i64, cached: i64, output: i64, reasoning: i64) -> Value {
    json!({"format": "openai.chat", "body": {
        "prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": reasoning, "audio_tokens": 0},
    }})
}

fn openai_responses(input: i64, cached: i64, output: i64, reasoning: i64) -> Value {
    let written = (input - cached) / 2 / 128 * 128;
    json!({"format": "openai.responses", "body": {
        "input_tokens": input, "output_tokens": output, "total_tokens": input + output,
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": written},
        "output_tokens_details": {"reasoning_tokens": reasoning},
    }})
}

fn anthropic(context: i64, cached: i64, output: i64) -> Value {
    let written = (context - cached) / 2;
    json!({"format": "anthropic.messages", "body": {
        "input_tokens": context - cached - written,
        "cache_read_input_tokens": cached,
        "cache_creation_input_tokens": written,
        "cache_creation": {"ephemeral_5m_input_tokens": written, "ephemeral_1h_input_tokens": 0},
        "output_tokens": output,
        "service_tier": "standard",
    }})
}

fn gemini(prompt: i64, cached: i64, output: i64, thoughts: i64) -> Value {
    json!({"format": "gemini.generate_content", "body": {
        "promptTokenCount": prompt, "cachedContentTokenCount": cached, "candidatesTokenCount": output,
        "thoughtsTokenCount": thoughts, "totalTokenCount": prompt + output + thoughts,
    }})
}

fn deepseek(prompt: i64, cached: i64, output: i64) -> Value {
    json!({"format": "deepseek.chat", "body": {
        "prompt_tokens": prompt, "prompt_cache_hit_tokens": cached, "prompt_cache_miss_tokens": prompt - cached,
        "completion_tokens": output, "total_tokens": prompt + output,
    }})
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Tasks take up to eleven minutes: in an hour many would end after it.
    fn hour(seed: u64, from: i64) -> Vec<Value> {
        let at = |seconds| DateTime::from_timestamp(seconds, 0).unwrap();
        Traffic::new(seed, at(from), at(from + 3_600)).take(2_000).collect()
    }

    #[test]
    fn nothing_comes_from_the_future_and_every_run_has_tasks_of_its_own() {
        let tasks = |events: &[Value]| -> std::collections::BTreeSet<String> {
            events.iter().map(|event| event["data"]["task"]["id"].as_str().unwrap().to_owned()).collect()
        };
        let (first, later) = (hour(1, 1_764_000_000), hour(1, 1_764_000_060));
        let end = DateTime::from_timestamp(1_764_003_600, 0).unwrap();
        for event in &first {
            let time: DateTime<Utc> = event["time"].as_str().unwrap().parse().unwrap();
            assert!(time <= end, "{event}");
        }
        assert_eq!(first, hour(1, 1_764_000_000));
        assert!(
            tasks(&first).is_disjoint(&tasks(&later))
                && tasks(&first).is_disjoint(&tasks(&hour(2, 1_764_000_000)))
        );
    }
}
