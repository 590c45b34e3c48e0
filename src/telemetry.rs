//! Logs and metrics.
//!
//! Logs are structured: JSON lines on stderr where stderr is no terminal, readable lines where it is. Metrics are
//! Prometheus text on a listener of their own, so that they are never exposed with the API.

use std::io::IsTerminal;
use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Bounds of duration histograms, in seconds.
const SECONDS: &[f64] = &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Bounds of batch size histograms, in events.
const EVENTS: &[f64] = &[1.0, 10.0, 50.0, 100.0, 500.0, 1000.0, 5000.0, 10000.0, 50000.0];

/// How often the values that histograms were given are summed up: until then each of them is kept.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

/// What to log is not in the syntax of `RUST_LOG`.
#[derive(Debug, thiserror::Error)]
#[error(
    "WAYBILL_LOG or --log is `{filter}`, which names no logs: {cause}; write it like info, or waybill=debug,info"
)]
pub struct LogFilterError {
    /// What was asked for.
    filter: String,
    /// What is wrong with it.
    cause: ParseError,
}

/// Starts logging; `filter` is in the syntax of `RUST_LOG` (`info`, `waybill=debug`).
///
/// # Errors
/// [`LogFilterError`].
pub fn init_logs(filter: &str) -> Result<(), LogFilterError> {
    let filter =
        EnvFilter::try_new(filter).map_err(|cause| LogFilterError { filter: filter.to_owned(), cause })?;
    let registry = tracing_subscriber::registry().with(filter);
    // A second start in one process (tests) keeps the first logger.
    let started = if std::io::stderr().is_terminal() {
        registry
            .with(tracing_subscriber::fmt::layer().with_target(false).with_writer(std::io::stderr))
            .try_init()
    } else {
        registry
            .with(tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(std::io::stderr))
            .try_init()
    };
    if started.is_err() {
        tracing::debug!("logging was started before");
    }
    Ok(())
}

/// Installs the metrics recorder; the handle renders the Prometheus text. To be called where tasks can be spawned: one keeps
/// the histograms small while nobody scrapes.
///
/// # Errors
/// Where a recorder is installed already or the bounds are refused.
pub fn init_metrics() -> Result<PrometheusHandle, metrics_exporter_prometheus::BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)?
        .set_buckets_for_metric(Matcher::Suffix("_events".to_owned()), EVENTS)?
        .install_recorder()?;
    describe();
    let kept = handle.clone();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(UPKEEP_EVERY).await;
            kept.run_upkeep();
        }
    });
    Ok(handle)
}

fn describe() {
    use metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
    describe_counter!(
        "waybill_events_total",
        Unit::Count,
        "Events by outcome: recorded, duplicate, rejected"
    );
    describe_counter!(
        "waybill_stated_cost_parts_total",
        Unit::Count,
        "Recorded usage parts whose provider states its cost, by provider and verdict: agrees (within 1 %), above, below ours"
    );
    describe_counter!("waybill_messages_total", Unit::Count, "Messages recorded and acknowledged");
    describe_counter!("waybill_ingest_retries_total", Unit::Count, "Recording transactions tried again");
    describe_counter!("waybill_posted_rows_total", Unit::Count, "Journal rows folded into rollups and tasks");
    describe_counter!(
        "waybill_compacted_rows_total",
        Unit::Count,
        "Hours of usage that were summed into days"
    );
    describe_histogram!("waybill_batch_events", Unit::Count, "Events per recorded batch");
    describe_histogram!(
        "waybill_record_seconds",
        Unit::Seconds,
        "Time of a recording transaction with its acks"
    );
    describe_histogram!("waybill_post_seconds", Unit::Seconds, "Time of a posting transaction");
    describe_gauge!("waybill_stream_lag_messages", Unit::Count, "Messages in the stream not yet delivered");
    describe_gauge!(
        "waybill_stream_unacked_messages",
        Unit::Count,
        "Messages delivered and not yet acknowledged"
    );
    describe_gauge!(
        "waybill_stream_oldest_waiting_seconds",
        Unit::Seconds,
        "Age of the oldest message that is not acknowledged; 0 where there is none"
    );
    describe_gauge!("waybill_unposted_batches", Unit::Count, "Recorded batches not yet folded into the sums");
    describe_gauge!(
        "waybill_unposted_oldest_seconds",
        Unit::Seconds,
        "Age of the oldest batch not yet folded into the sums"
    );
    describe_gauge!(
        "waybill_unaccounted_sequences",
        Unit::Count,
        "Acknowledged stream sequences that no batch accounts for"
    );
    describe_gauge!(
        "waybill_gateway_missing_events",
        Unit::Count,
        "Numbers that are missing in a gateway's own count of its events"
    );
    describe_gauge!(
        "waybill_journal_partition_days_ahead",
        Unit::Count,
        "Days from the booking date to the end of the last journal partition"
    );
    describe_counter!("waybill_http_requests_total", Unit::Count, "Requests by method, route and status");
    describe_histogram!("waybill_http_request_seconds", Unit::Seconds, "Time from a request to its answer");
    describe_gauge!(
        "waybill_part_up",
        Unit::Count,
        "1 where the part of the program works, as /readyz says, else 0"
    );
    describe_safety();
    describe_gauge!("waybill_rejections_open", Unit::Count, "Open rejections by reason");
    describe_gauge!(
        "waybill_gauges_read_timestamp_seconds",
        Unit::Seconds,
        "When the gauges of the ledger, of the stream and of completeness were last read, as a Unix time; until then, when the process began to try"
    );
    describe_forwarder();
}

fn describe_safety() {
    use metrics::{Unit, describe_counter, describe_gauge};
    for (name, what) in [
        (
            "waybill_setting_wrong",
            "1 where a setting would lose or change usage: nothing is recorded meanwhile",
        ),
        ("waybill_gone_sequences", "Acknowledged stream sequences in no batch, and no longer in the stream"),
        ("waybill_stream_unacked_messages_max", "Messages that may be delivered and not yet acknowledged"),
        (
            "waybill_nats_unverified_servers",
            "NATS servers that never told their settings: whether they keep what they confirm is not known",
        ),
    ] {
        describe_gauge!(name, Unit::Count, what);
    }
    describe_gauge!("waybill_stream_bytes", Unit::Bytes, "What the stream holds");
    describe_gauge!("waybill_stream_bytes_max", Unit::Bytes, "What it may hold before it refuses");
    for (name, what) in [
        ("waybill_stream_lives_total", "Streams that counted their sequences from the start again"),
        (
            "waybill_consumer_rebuilds_total",
            "Subscriptions and connections made anew because nothing came in",
        ),
        (
            "waybill_repaired_sequences_total",
            "Stream sequences read again because no batch accounted for them",
        ),
    ] {
        describe_counter!(name, Unit::Count, what);
    }
}

fn describe_forwarder() {
    use metrics::{Unit, describe_counter, describe_gauge};
    for (name, what) in [
        ("waybill_forward_accepted_events_total", "Events that the journal has on disk"),
        ("waybill_forward_refused_events_total", "Events turned away"),
        ("waybill_forward_published_events_total", "Events that the stream has said it has, copies included"),
        ("waybill_forward_publish_retries_total", "Messages that the stream did not take at once"),
        ("waybill_forward_republished_events_total", "Events published again because the ledger lacked them"),
    ] {
        describe_counter!(name, Unit::Count, what);
    }
    describe_gauge!(
        "waybill_forward_accepted_sequence",
        Unit::Count,
        "Number of the newest event that the journal has on disk"
    );
    describe_gauge!(
        "waybill_forward_settled_sequence",
        Unit::Count,
        "Number up to which the ledger has every event"
    );
    describe_gauge!(
        "waybill_forward_unsettled_events",
        Unit::Count,
        "Events of the journal that the ledger lacks"
    );
    describe_gauge!(
        "waybill_forward_unpublished_events",
        Unit::Count,
        "Those of them that the stream has not acknowledged yet"
    );
    describe_gauge!(
        "waybill_forward_oldest_unsettled_seconds",
        Unit::Seconds,
        "Age of the oldest event that the ledger lacks"
    );
    describe_gauge!(
        "waybill_forward_journal_bytes",
        Unit::Bytes,
        "What the journal takes on disk, less what is settled"
    );
    describe_gauge!(
        "waybill_forward_journal_kept_bytes",
        Unit::Bytes,
        "What settled events take that are kept where there is room"
    );
    describe_gauge!("waybill_forward_journal_max_bytes", Unit::Bytes, "What it may take");
    describe_gauge!(
        "waybill_forward_damaged_events",
        Unit::Count,
        "Accepted events that cannot be read any more"
    );
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::{Path, PathBuf};

    use super::{UPKEEP_EVERY, init_logs, init_metrics};

    fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                sources(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }

    #[test]
    fn every_metric_is_described_and_every_description_is_of_one() {
        let mut paths = Vec::new();
        sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut paths);
        let mut used = BTreeSet::new();
        for path in paths.iter().filter(|path| !path.ends_with("src/telemetry.rs")) {
            let text = std::fs::read_to_string(path).unwrap();
            for kind in ["counter", "gauge", "histogram"] {
                for rest in text.split(&format!(" metrics::{kind}!(")).skip(1) {
                    let name = rest.trim_start().trim_start_matches('"').split('"').next().unwrap();
                    used.insert(name.to_owned());
                }
            }
        }
        let (describing, _) = include_str!("telemetry.rs").split_once("#[cfg(test)]").unwrap();
        let names = describing.split('"').filter(|text| text.starts_with("waybill_") && !text.contains(' '));
        let described: BTreeSet<String> = names.map(str::to_owned).collect();
        assert_eq!(used, described);
        assert!(used.len() > 30, "{} were found", used.len());
    }

    #[test]
    fn a_filter_that_names_no_logs_is_refused_with_a_sentence() {
        let said = init_logs("waybill=chatty").unwrap_err().to_string();
        assert!(said.contains("`waybill=chatty`") && said.contains("waybill=debug"), "{said}");
    }

    #[tokio::test]
    async fn histograms_are_summed_up_although_nobody_scrapes() {
        let handle = init_metrics().unwrap();
        metrics::histogram!("waybill_post_seconds").record(0.5);
        // A value that was summed up is in a distribution, which rendering makes too; so nothing is rendered here.
        let summed =
            || format!("{handle:?}").contains("distributions: RwLock { data: {\"waybill_post_seconds\"");
        assert!(!summed());
        tokio::time::timeout(3 * UPKEEP_EVERY, async {
            while !summed() {
                tokio::time::sleep(UPKEEP_EVERY / 50).await;
            }
        })
        .await
        .unwrap();
    }
}
