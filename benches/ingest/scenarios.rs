//! The runs: a backlog drained, live traffic at full speed, live traffic at a rate.

use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use futures_util::{StreamExt, TryStreamExt, stream};
use sqlx::Row;
use waybill::clock::Clock;

use crate::baseline;
use crate::bed::{Bed, Run};
use crate::machine::{self, Cpu};
use crate::workload::{GATEWAY, Ids, Workload};

/// Messages on their way to the stream at a time: enough that it never waits for us.
const SINGLES_IN_FLIGHT: usize = 4_096;
const PACKED_IN_FLIGHT: usize = 128;
/// How often the paced publisher sends what was made since: a packing gateway lingers 10 ms at most.
const LINGER: Duration = Duration::from_millis(10);
/// Events per second of the latency runs, and for how long.
const RATE: u32 = 10_000;
const RATED_SECONDS: u32 = 12;

/// One run, measured.
pub struct Measured {
    pub events: usize,
    pub elapsed: Duration,
    pub cpu: Cpu,
    pub wal_bytes: u64,
    pub rss_mib: u64,
}

impl Measured {
    pub fn per_second(&self) -> f64 {
        rate(self.events, self.elapsed)
    }

    /// Microseconds of CPU per event, of one program or of all.
    #[expect(clippy::float_arithmetic, clippy::cast_precision_loss, reason = "figures for people, no money")]
    pub fn cpu_micros(&self, program: Option<&str>) -> f64 {
        let programs =
            self.cpu.iter().filter(|(name, _)| program.is_none_or(|program| program == name.as_str()));
        programs.map(|(_, time)| time.as_secs_f64()).sum::<f64>() * 1e6 / self.events as f64
    }
}

#[expect(clippy::float_arithmetic, clippy::cast_precision_loss, reason = "figures for people, no money")]
pub fn rate(events: usize, elapsed: Duration) -> f64 {
    events as f64 / elapsed.as_secs_f64()
}

fn now() -> DateTime<Utc> {
    Clock::System.now()
}

/// Publishes as fast as the stream takes it.
async fn publish(run: &Run, workload: &mut Workload, events: usize, per_message: usize) {
    let in_flight = if per_message == 1 { SINGLES_IN_FLIGHT } else { PACKED_IN_FLIGHT };
    let counts = (0..events).step_by(per_message).map(|sent| per_message.min(events - sent));
    let bodies = counts.map(|count| workload.message(count, |_| now()));
    stream::iter(bodies)
        .map(|body| run.publisher.publish(GATEWAY, body))
        .buffer_unordered(in_flight)
        .try_for_each(|_| async { Ok(()) })
        .await
        .unwrap();
}

async fn wal_position(run: &Run) -> i64 {
    run.number("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint").await
}

/// A backlog: published first, then recorded and posted against the clock.
pub async fn drain(bed: &mut Bed, seed: u64, events: usize, per_message: usize) -> (Measured, Run) {
    let run = bed.run().await;
    let measured = drain_into(&run, seed, events, per_message, Ids::Ordered).await;
    run.verify(events).await;
    (measured, run)
}

/// The same into the ledger of a run, whatever is in it already.
pub async fn drain_into(run: &Run, seed: u64, events: usize, per_message: usize, ids: Ids) -> Measured {
    let before = run.events().await;
    publish(run, &mut Workload::new(seed, ids), events, per_message).await;
    let (wal, cpu, started) = (wal_position(run).await, machine::cpu(), Instant::now());
    let service = run.serve();
    run.settled(before + events).await;
    finish(run, events, started, &cpu, wal, service.id()).await
}

/// Published, recorded and posted at once, as fast as it goes.
pub async fn live(bed: &mut Bed, seed: u64, events: usize, per_message: usize) -> Measured {
    let run = bed.run().await;
    let mut workload = Workload::new(seed, Ids::Ordered);
    let service = run.serve();
    // Until it is connected and consumes.
    publish(&run, &mut workload, 1, 1).await;
    run.settled(1).await;
    let (wal, cpu, started) = (wal_position(&run).await, machine::cpu(), Instant::now());
    publish(&run, &mut workload, events, per_message).await;
    run.settled(events + 1).await;
    let measured = finish(&run, events, started, &cpu, wal, service.id()).await;
    drop(service);
    run.verify(events + 1).await;
    bed.end(run).await;
    measured
}

async fn finish(run: &Run, events: usize, started: Instant, cpu: &Cpu, wal: i64, service: u32) -> Measured {
    let elapsed = started.elapsed();
    let cpu = machine::between(cpu, &machine::cpu());
    let wal_bytes = u64::try_from(wal_position(run).await - wal).unwrap_or_default();
    Measured { events, elapsed, cpu, wal_bytes, rss_mib: machine::peak_mib(service) }
}

/// Ages in milliseconds: p50 and p99.
#[derive(Debug, Clone, Copy)]
pub struct Ages {
    pub recorded: (f64, f64),
    pub posted: (f64, f64),
}

/// Traffic at 10,000 events a second: from made to committed, and from committed to posted, by the commit times that
/// PostgreSQL keeps.
pub async fn paced(bed: &mut Bed, seed: u64, per_message: usize) -> Ages {
    let run = bed.run().await;
    let mut workload = Workload::new(seed, Ids::Ordered);
    let service = run.serve();
    publish(&run, &mut workload, 1, 1).await;
    run.settled(1).await;

    let events = usize::try_from(RATE * RATED_SECONDS).unwrap();
    // One message is sent when its last event is made; single ones every millisecond.
    let linger = if per_message == 1 { LINGER / 10 } else { LINGER };
    let at_once = usize::try_from(u128::from(RATE) * linger.as_micros() / 1_000_000).unwrap();
    let (start, started) = (now(), Instant::now());
    let mut sends = tokio::task::JoinSet::new();
    for made in (0..events).step_by(at_once) {
        let due = started + linger * u32::try_from(made / at_once + 1).unwrap();
        tokio::time::sleep_until(due.into()).await;
        for first in (made..made + at_once).step_by(per_message) {
            let at = |index: usize| {
                start
                    + TimeDelta::microseconds(
                        i64::try_from((first + index) * 1_000_000).unwrap() / i64::from(RATE),
                    )
            };
            let body = workload.message(per_message.min(at_once), at);
            let publisher = run.publisher.clone();
            sends.spawn(async move { publisher.publish(GATEWAY, body).await });
        }
        while let Some(sent) = sends.try_join_next() {
            sent.unwrap().unwrap();
        }
    }
    while let Some(sent) = sends.join_next().await {
        sent.unwrap().unwrap();
    }
    run.settled(events + 1).await;
    drop(service);
    let ages = ages(&run).await;
    run.verify(events + 1).await;
    bed.end(run).await;
    ages
}

async fn ages(run: &Run) -> Ages {
    // The journal row's transaction recorded it; its batch row was last written by the transaction that posted it. The
    // first event woke everything up and does not count.
    let row = sqlx::query(
        "WITH committed AS (
             SELECT e.occurred_at, pg_xact_commit_timestamp(e.xmin) AS recorded, pg_xact_commit_timestamp(b.xmin) AS posted
             FROM usage_events e JOIN ingest_batches b ON b.id = e.batch_id
             WHERE b.id > (SELECT min(id) FROM ingest_batches)
         ), ages AS (
             SELECT extract(epoch FROM recorded - occurred_at)::float8 * 1000 AS recorded,
                    extract(epoch FROM posted - recorded)::float8 * 1000 AS posted FROM committed
         )
         SELECT percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY recorded) AS recorded,
                percentile_cont(ARRAY[0.5, 0.99]) WITHIN GROUP (ORDER BY posted) AS posted FROM ages",
    )
    .fetch_one(&run.pool)
    .await
    .unwrap();
    let pair = |name: &str| {
        let values: Vec<f64> = row.get(name);
        (values[0], values[1])
    };
    Ages { recorded: pair("recorded"), posted: pair("posted") }
}

/// What the stream takes of single messages, as events per second.
pub async fn publish_alone(bed: &mut Bed, seed: u64, events: usize) -> f64 {
    let run = bed.run().await;
    let started = Instant::now();
    publish(&run, &mut Workload::new(seed, Ids::Ordered), events, 1).await;
    let elapsed = started.elapsed();
    bed.end(run).await;
    rate(events, elapsed)
}

/// Bytes on disk per event, checkpoint and rest of the batch rows aside: journal with its indexes, sums, evidence.
#[derive(Debug, Clone, Copy)]
pub struct Disk {
    pub heap: i64,
    pub indexes: i64,
    pub rollups: i64,
    pub tasks: i64,
    pub evidence: i64,
}

pub async fn disk(run: &Run) -> Disk {
    Disk {
        heap: run.number("SELECT sum(pg_table_size(relid))::bigint FROM pg_partition_tree('usage_events') WHERE isleaf").await,
        indexes: run.number("SELECT sum(pg_indexes_size(relid))::bigint FROM pg_partition_tree('usage_events') WHERE isleaf").await,
        rollups: run.number("SELECT pg_total_relation_size('usage_rollups')").await,
        tasks: run.number("SELECT pg_total_relation_size('tasks')").await,
        evidence: run.number("SELECT pg_total_relation_size('batch_payloads') + pg_total_relation_size('ingest_batches')").await,
    }
}

/// The rows of a drained run, copied raw into an empty journal of the same form.
pub async fn copy_baseline(bed: &mut Bed, drained: &Run) -> f64 {
    let target = bed.run().await;
    let (rows, elapsed) = baseline::raw_copy(drained, &target).await;
    bed.end(target).await;
    rate(rows, elapsed)
}
