//! Looks at the running program from the side: gauges of lag and backlog, and the watchdog of the pools.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use super::Failure;
use crate::health::Health;
use crate::ingest::repair::Repairer;
use crate::ingest::supervisor::Current;
use crate::ingest::{IngestError, Recorder, StreamLimits, UsageStream};
use crate::shutdown::Shutdown;
use crate::store::{Database, PoolWatch, Scope, StoreError, gateways, gauges};

/// How often gauges of lag and backlog are read.
const GAUGES_EVERY: Duration = Duration::from_secs(5);
/// How often it is looked whether every acknowledged sequence is in a batch.
const COMPLETENESS_EVERY: Duration = Duration::from_secs(20);
/// Most gateways whose gaps are shown, the first by name: each is a time series.
const GATEWAYS_MAX: i64 = 500;
/// How often the pools are looked at.
const POOLS_EVERY: Duration = Duration::from_secs(10);
/// How long a pool may neither give nor take back a connection before the process ends.
const POOL_PATIENCE: Duration = Duration::from_mins(1);

/// Reads lag and backlog for the metrics until a stop is asked for.
pub async fn sample(database: Database, current: Current, health: Health, shutdown: Shutdown) {
    let mut counted: Option<Instant> = None;
    while !shutdown.stopping() {
        for (part, wrong) in health.parts() {
            metrics::gauge!("waybill_part_up", "part" => part).set(if wrong.is_none() { 1.0 } else { 0.0 });
        }
        let due = counted.is_none_or(|counted| counted.elapsed() >= COMPLETENESS_EVERY);
        let stream = current.borrow().clone();
        if let Some(stream) = stream
            && let Err(error) = sample_stream(&stream).await
        {
            tracing::debug!(%error, "the gauges of the stream could not be read");
        }
        match sample_ledger(&database, due).await {
            Ok(()) if due => counted = Some(Instant::now()),
            Ok(()) => {}
            Err(error) => tracing::debug!(%error, "the gauges of the ledger could not be read"),
        }
        tokio::select! {
            () = shutdown.stopped() => return,
            () = tokio::time::sleep(GAUGES_EVERY) => {}
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "metrics, not quantities that are billed")]
async fn sample_stream(stream: &UsageStream) -> Result<(), IngestError> {
    let (bytes, most) = stream.filling().await?;
    metrics::gauge!("waybill_stream_bytes").set(bytes as f64);
    metrics::gauge!("waybill_stream_bytes_max").set(most as f64);
    let info = stream.progress().await?;
    metrics::gauge!("waybill_stream_lag_messages").set(info.num_pending as f64);
    metrics::gauge!("waybill_stream_unacked_messages").set(info.num_ack_pending as f64);
    metrics::gauge!("waybill_stream_unacked_messages_max").set(info.config.max_ack_pending as f64);
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "metrics, not quantities that are billed")]
async fn sample_ledger(database: &Database, due: bool) -> Result<(), StoreError> {
    let mut tx = database.read(Scope::Everything).await?;
    let unposted = gauges::unposted(&mut tx).await?;
    metrics::gauge!("waybill_unposted_batches").set(unposted.batches as f64);
    metrics::gauge!("waybill_unposted_oldest_seconds").set(unposted.oldest_seconds as f64);
    for open in gauges::open_rejections(&mut tx).await? {
        metrics::gauge!("waybill_rejections_open", "reason" => open.reason).set(open.count as f64);
    }
    if due {
        for gateway in gateways::list(&mut tx, None, None, GATEWAYS_MAX).await? {
            metrics::gauge!("waybill_gateway_missing_events", "gateway" => gateway.name)
                .set(gateway.missing as f64);
        }
        let days = gauges::partition_days_ahead(&mut tx).await?;
        metrics::gauge!("waybill_journal_partition_days_ahead").set(days as f64);
    }
    Ok(())
}

/// Reads sequences again that are in no batch although they were acknowledged, or delivered long ago, until a stop is asked
/// for: after a restore of the database, the promotion of a standby that trailed, acknowledgements that nobody earned, or
/// where the consumer keeps messages back.
#[expect(clippy::cast_precision_loss, reason = "metrics, not quantities that are billed")]
pub async fn completeness(recorder: Recorder, limits: StreamLimits, mut current: Current) {
    let shutdown = recorder.shutdown().clone();
    let mut repairer = Repairer::default();
    loop {
        let mut pause = COMPLETENESS_EVERY;
        let stream = current.borrow_and_update().clone();
        if let Some(stream) = stream {
            match repairer.round(&stream, limits, &recorder).await {
                Ok(round) => {
                    metrics::gauge!("waybill_unaccounted_sequences").set(round.left as f64);
                    metrics::gauge!("waybill_gone_sequences").set(round.gone as f64);
                    if round.repaired > 0 && round.left > 0 {
                        pause = Duration::ZERO;
                    }
                }
                Err(IngestError::Stopping) => return,
                Err(error) => {
                    tracing::warn!(%error, "whether every sequence is accounted for could not be looked at");
                }
            }
        }
        tokio::select! {
            () = shutdown.stopped() => return,
            changed = current.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Reports a dead pool until a stop is asked for.
pub async fn pools(database: Database, shutdown: Shutdown, failed: mpsc::Sender<Failure>) {
    let mut watch = PoolWatch::new(&database);
    loop {
        tokio::select! {
            () = shutdown.stopped() => return,
            () = tokio::time::sleep(POOLS_EVERY) => {}
        }
        if let Some(pool) = watch.look(POOL_PATIENCE).await {
            // Nobody listens any more once the program stops.
            let _ = failed.send(Failure::DeadPool(pool)).await;
            return;
        }
    }
}
