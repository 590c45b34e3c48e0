//! What recording and posting cost, beside what the database and the stream could do at best.
//!
//! Everything runs on private servers: PostgreSQL with fsync, NATS with `sync_interval: always` for packed messages and
//! its default for single ones. Everything is rated on both sides and posted before a clock stops, and every run ends
//! with a verification of its ledger. The machine may be busy: ratios are of neighbouring runs, and medians count.
//! Size and repeats: `WAYBILL_BENCH_EVENTS`, `WAYBILL_BENCH_REPEATS`; parts: `WAYBILL_BENCH_ONLY=packed,single,drain,live,
//! paced`, or `large` (of `v7` or `random` ids alone) with `WAYBILL_BENCH_ROWS`; another build to measure: `WAYBILL_BENCH_PROGRAM`.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot go on fails")]
#![expect(
    clippy::disallowed_methods,
    reason = "a benchmark has no configuration but what it is started with"
)]

mod baseline;
mod bed;
mod large;
mod machine;
mod report;
mod scenarios;
mod workload;

use report::Report;
use scenarios::Measured;
use workload::{Ids, PACKED};

use crate::bed::Bed;

/// Events of one run and repeats, where the environment does not say otherwise: as many as the figures are judged by.
const EVENTS: usize = 1_000_000;
const REPEATS: usize = 5;
/// Single transactions of that baseline, and single messages to a stream that syncs each: both are slow.
const SLOW_EVENTS: usize = 2_000;
/// Rows of the large journal.
const LARGE_ROWS: usize = 50_000_000;
/// Seed of the first repeat.
const SEED: u64 = 2026;

struct Plan {
    events: usize,
    repeats: u64,
    rows: usize,
    only: Option<String>,
}

impl Plan {
    fn from_environment() -> Self {
        let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<usize>().unwrap());
        Self {
            events: number("WAYBILL_BENCH_EVENTS").unwrap_or(EVENTS),
            repeats: u64::try_from(number("WAYBILL_BENCH_REPEATS").unwrap_or(REPEATS)).unwrap(),
            rows: number("WAYBILL_BENCH_ROWS").unwrap_or(LARGE_ROWS),
            only: std::env::var("WAYBILL_BENCH_ONLY").ok(),
        }
    }

    fn named(&self, part: &str) -> bool {
        self.only.as_ref().is_some_and(|only| only.split(',').any(|named| named == part))
    }

    /// Whether this one of the alternatives is to run: it is named, or none of them is.
    fn wants_one_of<const N: usize>(&self, part: &str, alternatives: [&str; N]) -> bool {
        self.named(part) || !alternatives.iter().any(|other| self.named(other))
    }

    fn wants(&self, part: &str) -> bool {
        self.wants_one_of(part, ["drain", "live", "paced"])
    }
}

#[tokio::main]
async fn main() {
    let plan = Plan::from_environment();
    let mut report = Report::default();
    if plan.named("large") {
        let kinds = [("v7", Ids::Ordered), ("random", Ids::Random)];
        let kinds: Vec<_> =
            kinds.into_iter().filter(|(name, _)| plan.wants_one_of(name, ["v7", "random"])).collect();
        Box::pin(large::measure(plan.rows, plan.events, &kinds, &mut report)).await;
        report.print();
        return;
    }
    for (form, per_message) in [("packed", PACKED), ("single", 1)] {
        if !plan.wants(form)
            && plan.only.as_ref().is_some_and(|only| only.contains("packed") || only.contains("single"))
        {
            continue;
        }
        let mut bed = Bed::start(form == "packed").await;
        measure(&plan, &mut bed, form, per_message, &mut report).await;
        bed.stop().await;
    }
    report.print();
}

async fn measure(plan: &Plan, bed: &mut Bed, form: &'static str, per_message: usize, report: &mut Report) {
    for seed in SEED..SEED + plan.repeats {
        if plan.wants("drain") {
            drain(plan, bed, form, per_message, seed, report).await;
        }
        if plan.wants("live") {
            live(plan, bed, form, per_message, seed, report).await;
        }
        if plan.wants("paced") {
            let ages = scenarios::paced(bed, seed, per_message).await;
            report.ages(form, ages);
        }
    }
    if form == "packed" && plan.wants("live") {
        let synced = scenarios::publish_alone(bed, SEED, SLOW_EVENTS).await;
        report.add("stream_synced", "published_singles_per_second", synced);
    }
}

async fn drain(
    plan: &Plan,
    bed: &mut Bed,
    form: &'static str,
    per_message: usize,
    seed: u64,
    report: &mut Report,
) {
    let (drained, run) = scenarios::drain(bed, seed, plan.events, per_message).await;
    let copied = scenarios::copy_baseline(bed, &run).await;
    report.drained(form, &drained, copied);
    report.disk(form, plan.events, scenarios::disk(&run).await);
    bed.end(run).await;
}

async fn live(
    plan: &Plan,
    bed: &mut Bed,
    form: &'static str,
    per_message: usize,
    seed: u64,
    report: &mut Report,
) {
    let slow = bed.run().await;
    let slow_rate = baseline::transaction_per_event(&slow, seed, SLOW_EVENTS).await;
    bed.end(slow).await;
    let measured: Measured = scenarios::live(bed, seed, plan.events, per_message).await;
    report.live(form, &measured, slow_rate);
}
