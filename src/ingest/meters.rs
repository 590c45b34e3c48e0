//! The metrics of recording and posting.

use std::collections::BTreeMap;
use std::time::Duration;

use super::settings::WrongSetting;
use crate::store::journal::{JournalPart, Recorded};

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

/// Counts those of newly recorded usage parts whose provider states what it charged.
pub fn stated<'a>(parts: impl Iterator<Item = &'a JournalPart>) {
    let mut counts = BTreeMap::new();
    for part in parts {
        if let Some(verdict) = part.stated_verdict {
            *counts.entry((part.provider.as_str(), verdict)).or_insert(0) += 1;
        }
    }
    for ((provider, verdict), parts) in counts {
        let labels = [("provider", provider.to_owned()), ("verdict", verdict.name().to_owned())];
        metrics::counter!("waybill_stated_cost_parts_total", &labels).increment(parts);
    }
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

/// Shows the counter of the stream's lives before there is a second one, so that the first increase is seen.
pub fn expect_lives() {
    metrics::counter!("waybill_stream_lives_total").increment(0);
}

/// Counts a stream that is another than before.
pub fn new_life() {
    metrics::counter!("waybill_stream_lives_total").increment(1);
}

/// Counts a rebuilt `subscription` or `connection` of the consumer.
pub fn rebuilt(what: &'static str) {
    metrics::counter!("waybill_consumer_rebuilds_total", "what" => what).increment(1);
}

/// Shows a setting as wrong, or as right again.
pub fn setting(setting: &WrongSetting, wrong: bool) {
    metrics::gauge!("waybill_setting_wrong", "object" => setting.object, "setting" => setting.setting.clone())
        .set(u32::from(wrong));
}

/// Shows how many NATS servers never told their settings.
pub fn unverified_servers(servers: usize) {
    metrics::gauge!("waybill_nats_unverified_servers").set(u32::try_from(servers).unwrap_or(u32::MAX));
}

/// Shows how many sequences no batch accounts for, and how many of all rounds are no longer in the stream.
#[expect(clippy::cast_precision_loss, reason = "metrics, not quantities that are billed")]
pub fn completeness(left: i64, gone: i64) {
    metrics::gauge!("waybill_unaccounted_sequences").set(left as f64);
    metrics::gauge!("waybill_gone_sequences").set(gone as f64);
}

/// Counts sequences that were read again.
pub fn repaired(sequences: i64) {
    metrics::counter!("waybill_repaired_sequences_total")
        .increment(u64::try_from(sequences).unwrap_or_default());
}
