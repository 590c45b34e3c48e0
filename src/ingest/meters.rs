//! The metrics of recording and posting.

use std::time::Duration;

use crate::store::journal::Recorded;

/// Counts a recorded batch.
pub fn recorded(outcome: Recorded, messages: usize, events: usize, elapsed: Duration) {
    for (name, number) in
        [("recorded", outcome.recorded), ("duplicate", outcome.duplicates), ("rejected", outcome.rejected)]
    {
        metrics::counter!("waybill_events_total", "outcome" => name)
            .increment(u64::try_from(number).unwrap_or_default());
    }
    metrics::counter!("waybill_messages_total").increment(messages as u64);
    #[expect(clippy::cast_precision_loss, reason = "a metric, not a quantity that is billed")]
    metrics::histogram!("waybill_batch_events").record(events as f64);
    metrics::histogram!("waybill_record_seconds").record(elapsed);
}

/// Counts hours that were summed into days.
pub fn compacted(rows: i64) {
    metrics::counter!("waybill_compacted_rows_total").increment(u64::try_from(rows).unwrap_or_default());
}

/// Counts a posted slice.
pub fn posted(rows: i64, elapsed: Duration) {
    metrics::counter!("waybill_posted_rows_total").increment(u64::try_from(rows).unwrap_or_default());
    metrics::histogram!("waybill_post_seconds").record(elapsed);
}
