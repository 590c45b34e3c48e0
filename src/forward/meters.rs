//! The metrics of a forwarder.

use super::journal::Journal;

/// Counts events that are on disk for certain, and events that were turned away.
pub fn accepted(accepted: usize, refused: usize) {
    metrics::counter!("waybill_forward_accepted_events_total").increment(accepted as u64);
    metrics::counter!("waybill_forward_refused_events_total").increment(refused as u64);
}

/// Shows the number of the newest event that is on disk.
#[expect(clippy::cast_precision_loss, reason = "a metric, not a quantity that is billed")]
pub fn newest(sequence: u64) {
    metrics::gauge!("waybill_forward_accepted_sequence").set(sequence as f64);
}

/// Shows the number up to which the ledger has everything.
#[expect(clippy::cast_precision_loss, reason = "a metric, not a quantity that is billed")]
pub fn settled(sequence: u64) {
    metrics::gauge!("waybill_forward_settled_sequence").set(sequence as f64);
}

/// Counts the events of a message that the stream has.
pub fn published(events: usize) {
    metrics::counter!("waybill_forward_published_events_total").increment(events as u64);
}

/// Counts a message that the stream did not take at once.
pub fn retried() {
    metrics::counter!("waybill_forward_publish_retries_total").increment(1);
}

/// Counts events that are published again because the ledger does not have them.
pub fn republished(events: usize) {
    metrics::counter!("waybill_forward_republished_events_total").increment(events as u64);
}

/// Shows how many events are not settled yet, how many of them the stream has not acknowledged, how old the oldest is, and the
/// journal.
#[expect(
    clippy::cast_precision_loss,
    clippy::float_arithmetic,
    reason = "metrics, not quantities that are billed"
)]
pub fn state((unsettled, unpublished): (u64, u64), oldest_ms: i64, journal: &Journal) {
    let ((bytes, bytes_max), kept) = (journal.bytes(), journal.kept_bytes());
    metrics::gauge!("waybill_forward_unsettled_events").set(unsettled as f64);
    metrics::gauge!("waybill_forward_unpublished_events").set(unpublished as f64);
    metrics::gauge!("waybill_forward_oldest_unsettled_seconds").set(oldest_ms as f64 / 1000.0);
    metrics::gauge!("waybill_forward_journal_bytes").set(bytes.saturating_sub(kept) as f64);
    metrics::gauge!("waybill_forward_journal_kept_bytes").set(kept as f64);
    metrics::gauge!("waybill_forward_journal_max_bytes").set(bytes_max as f64);
    metrics::gauge!("waybill_forward_damaged_events").set(journal.damaged() as f64);
}
