//! Looks at the running program from the side: gauges of lag and backlog, and the watchdog of the pools.

use std::time::{Duration, Instant};

use async_nats::jetstream;
use tokio::sync::mpsc;

use super::Failure;
use crate::health::Health;
use crate::ingest::{self, UsageStream};
use crate::shutdown::Shutdown;
use crate::store::{Database, PoolWatch, Scope, completeness, gateways, gauges};

/// How often gauges of lag and backlog are read.
const GAUGES_EVERY: Duration = Duration::from_secs(5);
/// How often completeness is read, which looks at every batch.
const COMPLETENESS_EVERY: Duration = Duration::from_mins(1);
/// Most gateways whose gaps are shown, the first by name: each is a time series.
const GATEWAYS_MAX: i64 = 500;
/// How often the pools are looked at.
const POOLS_EVERY: Duration = Duration::from_secs(10);
/// How long a pool may neither give nor take back a connection before the process ends.
const POOL_PATIENCE: Duration = Duration::from_mins(1);

/// Reads lag and backlog for the metrics until a stop is asked for.
pub async fn sample(database: Database, stream: UsageStream, health: Health, shutdown: Shutdown) {
    let mut completeness_read: Option<Instant> = None;
    while !shutdown.stopping() {
        for (part, wrong) in health.parts() {
            metrics::gauge!("waybill_part_up", "part" => part).set(if wrong.is_none() { 1.0 } else { 0.0 });
        }
        let completeness_due = completeness_read.is_none_or(|read| read.elapsed() >= COMPLETENESS_EVERY);
        match sample_once(&database, &stream, completeness_due).await {
            Ok(()) if completeness_due => completeness_read = Some(Instant::now()),
            Ok(()) => {}
            Err(error) => tracing::debug!(%error, "gauges could not be read"),
        }
        tokio::select! {
            () = shutdown.stopped() => return,
            () = tokio::time::sleep(GAUGES_EVERY) => {}
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "metrics, not quantities that are billed")]
async fn sample_once(
    database: &Database,
    stream: &UsageStream,
    completeness_due: bool,
) -> anyhow::Result<()> {
    let consumer: jetstream::consumer::PullConsumer =
        stream.stream.get_consumer(ingest::stream::CONSUMER).await.map_err(anyhow::Error::from_boxed)?;
    let info = consumer.cached_info();
    metrics::gauge!("waybill_stream_lag_messages").set(info.num_pending as f64);
    metrics::gauge!("waybill_stream_unacked_messages").set(info.num_ack_pending as f64);
    let mut tx = database.read(Scope::Everything).await?;
    let unposted = gauges::unposted(&mut tx).await?;
    metrics::gauge!("waybill_unposted_batches").set(unposted.batches as f64);
    metrics::gauge!("waybill_unposted_oldest_seconds").set(unposted.oldest_seconds as f64);
    for open in gauges::open_rejections(&mut tx).await? {
        metrics::gauge!("waybill_rejections_open", "reason" => open.reason).set(open.count as f64);
    }
    if completeness_due {
        let floor = i64::try_from(info.ack_floor.stream_sequence).unwrap_or(i64::MAX);
        let missing = completeness::unaccounted(&mut tx, stream.incarnation, floor).await?.len();
        metrics::gauge!("waybill_unaccounted_sequences").set(missing as f64);
        for gateway in gateways::list(&mut tx, None, None, GATEWAYS_MAX).await? {
            metrics::gauge!("waybill_gateway_missing_events", "gateway" => gateway.name)
                .set(gateway.missing as f64);
        }
        let days = gauges::partition_days_ahead(&mut tx).await?;
        metrics::gauge!("waybill_journal_partition_days_ahead").set(days as f64);
    }
    Ok(())
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
