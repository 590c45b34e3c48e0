//! Looks at the running program from the side: gauges of lag and backlog, and the watchdog of the pools.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::DeadPool;
use crate::clock::Clock;
use crate::health::Health;
use crate::ingest::repair::Repairer;
use crate::ingest::supervisor::Current;
use crate::ingest::{IngestError, Publisher, Recorder, StreamLimits, UsageStream};
use crate::shutdown::Shutdown;
use crate::store::gateways::{self, Heads};
use crate::store::{Database, PoolWatch, Scope, StoreError, gauges};

/// How often it is looked whether the database answers, and shown which parts work.
pub const PARTS_EVERY: Duration = Duration::from_secs(2);
/// How long the database may take to answer.
const PING_TIMEOUT: Duration = Duration::from_secs(2);
/// The part of the program's health that says whether it does.
pub const DATABASE: &str = "database";
/// The part that says whether the API can hand events to the stream.
pub const PUBLISHER: &str = "publisher";
/// How often gauges of lag and backlog are read.
const GAUGES_EVERY: Duration = Duration::from_secs(5);
/// Where reading those of the ledger takes long, because millions of rejections are open, it takes no more than a tenth of the
/// time ...
const LEDGER_SHARE: u32 = 10;
/// ... but they are never older than this, and what the reading takes.
const LEDGER_SELDOM: Duration = Duration::from_secs(20);
/// How often it is looked whether every acknowledged sequence is in a batch.
const COMPLETENESS_EVERY: Duration = Duration::from_secs(20);
/// How long what a gateway counted may be in the hands of one consumer while another records what comes after it.
const UNDERWAY_LONGEST: Duration = Duration::from_mins(1);
/// Most gateways with gaps that are shown, and most without: each is a time series.
const SHOWN_MAX: usize = 500;
/// How often the pools are looked at.
const POOLS_EVERY: Duration = Duration::from_secs(10);
/// How long a pool may neither give nor take back a connection before the process ends.
const POOL_PATIENCE: Duration = Duration::from_mins(1);

/// Asks whether the database answers, and whether what publishes for the API is connected, and shows which parts work, until
/// a stop is asked for. Probes answer from what is noted here: anybody may send them, and none of them takes a connection.
pub async fn parts(database: Database, publisher: Option<Publisher>, health: Health, shutdown: Shutdown) {
    let mut waiting: Option<JoinHandle<bool>> = None;
    loop {
        // One that waits is left to wait, never cancelled in the middle of a statement, and no second one waits beside it.
        let mut ping = waiting.take().unwrap_or_else(|| {
            let database = database.clone();
            tokio::spawn(async move { database.ping().await.is_ok() })
        });
        let answered = tokio::select! {
            () = shutdown.stopped() => return,
            answered = tokio::time::timeout(PING_TIMEOUT, &mut ping) => answered,
        };
        if matches!(answered, Ok(Ok(true))) {
            health.up(DATABASE);
        } else {
            health.down(DATABASE, "does not answer");
        }
        match &publisher {
            Some(publisher) if publisher.connected() => health.up(PUBLISHER),
            Some(publisher) => health.down(PUBLISHER, publisher.not_connected()),
            None => {}
        }
        if answered.is_err() {
            waiting = Some(ping);
        }
        show(health.parts());
        tokio::select! {
            () = shutdown.stopped() => return,
            () = tokio::time::sleep(PARTS_EVERY) => {}
        }
    }
}

/// Shows which parts work: those with nothing wrong.
pub fn show(parts: BTreeMap<&'static str, Option<String>>) {
    for (part, wrong) in parts {
        metrics::gauge!("waybill_part_up", "part" => part).set(u32::from(wrong.is_none()));
    }
}

/// Reads lag and backlog for the metrics until a stop is asked for.
pub async fn sample(database: Database, current: Current, shutdown: Shutdown) {
    let (mut of_stream, mut of_ledger) = (Reading::of("stream"), Reading::of("ledger"));
    let mut counted: Option<Instant> = None;
    let mut ledger_due = Instant::now();
    let (mut reasons, mut shown, mut heads) = (BTreeSet::new(), Shown::default(), Counted::default());
    while !shutdown.stopping() {
        let due = counted.is_none_or(|counted| counted.elapsed() >= COMPLETENESS_EVERY);
        let stream = current.borrow().clone();
        if let Some(stream) = stream {
            of_stream.ended(&sample_stream(&stream).await);
        }
        if Instant::now() >= ledger_due {
            let started = Instant::now();
            let mut read = sample_ledger(&database, &mut reasons).await;
            if read.is_ok() && due {
                read = sample_gateways(&database, &mut shown, &mut heads).await;
            }
            let took = started.elapsed();
            if of_ledger.ended(&read) {
                ledger_due =
                    Instant::now() + (took * LEDGER_SHARE).min(LEDGER_SELDOM).saturating_sub(GAUGES_EVERY);
                if due {
                    counted = Some(Instant::now());
                }
            }
        }
        tokio::select! {
            () = shutdown.stopped() => return,
            () = tokio::time::sleep(GAUGES_EVERY) => {}
        }
    }
}

/// Whether some gauges can be read: they keep their last value where not, so their age is shown, and a failure said once.
struct Reading {
    of: &'static str,
    fails: bool,
}

impl Reading {
    /// Their age begins now: where none of them is ever read, that is seen.
    fn of(of: &'static str) -> Self {
        let reading = Self { of, fails: false };
        reading.fresh();
        reading
    }

    #[expect(clippy::cast_precision_loss, reason = "a metric, not a quantity that is billed")]
    fn fresh(&self) {
        metrics::gauge!("waybill_gauges_read_timestamp_seconds", "of" => self.of)
            .set(Clock::System.now().timestamp() as f64);
    }

    /// Takes note of how a reading ended; whether it succeeded.
    fn ended<T, E: Display>(&mut self, result: &Result<T, E>) -> bool {
        match result {
            Ok(_) => {
                if self.fails {
                    tracing::info!(of = self.of, "gauges can be read again");
                }
                self.fresh();
            }
            Err(error) if self.fails => tracing::debug!(of = self.of, %error, "gauges still cannot be read"),
            Err(error) => {
                tracing::warn!(of = self.of, %error, "gauges cannot be read; they keep their last values");
            }
        }
        self.fails = result.is_err();
        result.is_ok()
    }
}

#[expect(clippy::cast_precision_loss, reason = "metrics, not quantities that are billed")]
async fn sample_stream(stream: &UsageStream) -> Result<(), IngestError> {
    let standing = stream.standing().await?;
    metrics::gauge!("waybill_stream_bytes").set(standing.bytes as f64);
    metrics::gauge!("waybill_stream_bytes_max").set(standing.bytes_max as f64);
    metrics::gauge!("waybill_stream_lag_messages").set(standing.undelivered as f64);
    metrics::gauge!("waybill_stream_unacked_messages").set(standing.unacknowledged as f64);
    metrics::gauge!("waybill_stream_oldest_waiting_seconds").set(standing.oldest.as_secs_f64());
    if let Some(most) = standing.unacknowledged_max {
        let most = if most < 0 { f64::INFINITY } else { most as f64 };
        metrics::gauge!("waybill_stream_unacked_messages_max").set(most);
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "metrics, not quantities that are billed")]
async fn sample_ledger(database: &Database, reasons: &mut BTreeSet<String>) -> Result<(), StoreError> {
    let mut tx = database.read(Scope::Everything).await?;
    let unposted = gauges::unposted(&mut tx).await?;
    metrics::gauge!("waybill_unposted_batches").set(unposted.batches as f64);
    metrics::gauge!("waybill_unposted_oldest_seconds").set(unposted.oldest_seconds as f64);
    let open = gauges::open_rejections(&mut tx).await?;
    // A reason that had some and has none any more is shown with none.
    for reason in std::mem::take(reasons) {
        if !open.iter().any(|open| open.reason == reason) {
            metrics::gauge!("waybill_rejections_open", "reason" => reason).set(0.0);
        }
    }
    for open in open {
        reasons.insert(open.reason.clone());
        metrics::gauge!("waybill_rejections_open", "reason" => open.reason).set(open.count as f64);
    }
    Ok(())
}

/// The gateways whose gaps are shown, each for as long as the program runs: a gauge keeps its last value.
#[derive(Debug, Default)]
struct Shown {
    with_gaps: BTreeSet<String>,
    without: BTreeSet<String>,
}

impl Shown {
    /// Whether a gateway is shown: those with gaps come first, because others do not take their places.
    fn takes(&mut self, gateway: &str, missing: i64) -> bool {
        if self.with_gaps.contains(gateway) || self.without.contains(gateway) {
            return true;
        }
        let places = if missing > 0 { &mut self.with_gaps } else { &mut self.without };
        places.len() < SHOWN_MAX && places.insert(gateway.to_owned())
    }
}

/// How far the gateways' counts had come a while ago. What several consumers have in hand leaves holes below what another of
/// them has just recorded: only what is still missing below an earlier end never came.
#[derive(Debug, Default)]
struct Counted<T> {
    heads: T,
    /// Those of a later look and when that was; they take the place of the others once they are old enough.
    next: Option<(T, Instant)>,
}

impl<T: Clone> Counted<T> {
    /// Takes note of how far they are now, and says how far they were a while ago: at the first look now, so that a restart hides
    /// nothing.
    fn look(&mut self, heads: T, now: Instant) -> &T {
        match &mut self.next {
            None => {
                self.heads = heads.clone();
                self.next = Some((heads, now));
            }
            Some((next, since)) if now.duration_since(*since) >= UNDERWAY_LONGEST => {
                self.heads = std::mem::replace(next, heads);
                *since = now;
            }
            Some(_) => {}
        }
        &self.heads
    }
}

#[expect(clippy::cast_precision_loss, reason = "metrics, not quantities that are billed")]
async fn sample_gateways(
    database: &Database,
    shown: &mut Shown,
    counted: &mut Counted<Heads>,
) -> Result<(), StoreError> {
    let mut tx = database.read(Scope::Everything).await?;
    let heads = gateways::heads(&mut tx).await?;
    for (gateway, missing) in gateways::missing_below(&mut tx, counted.look(heads, Instant::now())).await? {
        if shown.takes(&gateway, missing) {
            metrics::gauge!("waybill_gateway_missing_events", "gateway" => gateway).set(missing as f64);
        }
    }
    if let Some(days) = gauges::partition_days_ahead(&mut tx).await? {
        metrics::gauge!("waybill_journal_partition_days_ahead").set(days as f64);
    }
    Ok(())
}

/// Reads sequences again that are in no batch although they were acknowledged, or delivered long ago, until a stop is asked
/// for: after a restore of the database, the promotion of a standby that trailed, acknowledgements that nobody earned, or
/// where the consumer keeps messages back.
pub async fn completeness(recorder: Recorder, limits: StreamLimits, mut current: Current) {
    let shutdown = recorder.shutdown().clone();
    let mut reading = Reading::of("completeness");
    let mut repairer = Repairer::default();
    loop {
        let mut pause = COMPLETENESS_EVERY;
        let stream = current.borrow_and_update().clone();
        if let Some(stream) = stream {
            let round = match repairer.round(&stream, limits, &recorder).await {
                Err(IngestError::Stopping) => return,
                round => round,
            };
            if round.as_ref().is_ok_and(|round| round.repaired > 0 && round.left > 0) {
                pause = Duration::ZERO;
            }
            reading.ended(&round);
        }
        tokio::select! {
            () = shutdown.stopped() => return,
            changed = current.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Reports a dead pool until a stop is asked for.
pub async fn pools(database: Database, shutdown: Shutdown, failed: mpsc::Sender<DeadPool>) {
    let mut watch = PoolWatch::new(&database);
    loop {
        tokio::select! {
            () = shutdown.stopped() => return,
            () = tokio::time::sleep(POOLS_EVERY) => {}
        }
        if let Some(pool) = watch.look(POOL_PATIENCE).await {
            // Nobody listens any more once the program stops.
            let _ = failed.send(DeadPool(pool)).await;
            return shutdown.stopped().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::{Counted, SHOWN_MAX, Shown, UNDERWAY_LONGEST};

    #[test]
    fn what_may_still_be_underway_is_not_missing() {
        let (mut counted, start) = (Counted::default(), Instant::now());
        assert_eq!(counted.look(10, start), &10, "a restart hides nothing");
        assert_eq!(counted.look(20, start + UNDERWAY_LONGEST / 2), &10);
        assert_eq!(counted.look(30, start + UNDERWAY_LONGEST), &10);
        assert_eq!(counted.look(40, start + UNDERWAY_LONGEST * 3 / 2), &10);
        assert_eq!(counted.look(50, start + UNDERWAY_LONGEST * 2), &30);
        assert_eq!(counted.look(60, start + UNDERWAY_LONGEST * 3), &50);
    }

    #[test]
    fn a_gateway_with_gaps_is_shown_however_many_have_none() {
        let mut shown = Shown::default();
        let names: Vec<String> = (0..=SHOWN_MAX).map(|number| format!("gw-{number:04}")).collect();
        let (last, first) = names.split_last().unwrap();
        assert!(first.iter().all(|name| shown.takes(name, 0)));
        assert!(!shown.takes(last, 0));
        assert!(shown.takes(last, 1));
        assert!(shown.takes(last, 0), "and shows when it has none any more");
        assert!(first[..SHOWN_MAX - 1].iter().all(|name| shown.takes(&format!("{name}-b"), 1)));
        assert!(!shown.takes("gw-z", 1), "there is a bound");
    }
}
