//! The hash that tells a copy of an event from another event under the same identity.

use sha2::{Digest, Sha256};

use crate::domain::event::{Report, TaskRef, UsageEvent, UsagePart};

/// Names the encoding below; a change of it needs a new one, or copies become conflicts.
const ENCODING: u8 = 1;
/// Stands in its place where bytes are hashed as they are.
const BYTES: u8 = 0;
/// Names how events are read: what they are found to hold, and what is hashed of that. It is raised where an event gets another
/// hash than the release before gave it, so that hashes which were kept are compared with those of the same reading only.
pub const READING: i16 = 1;

/// SHA-256, first 16 bytes, over what is billed: customer, time, correction, parts, task and outcome.
///
/// Attributes, status, latency, sequence and stated costs may differ between copies. Every text is led by its length
/// and every option by its presence, so no two events share an encoding.
pub fn content_hash(event: &UsageEvent) -> [u8; 16] {
    let mut bytes = Vec::with_capacity(512);
    bytes.push(ENCODING);
    text(&mut bytes, &event.customer);
    number(&mut bytes, event.occurred_at.timestamp_micros());
    option(&mut bytes, event.corrects.as_deref());
    match &event.report {
        Report::Usage(usage) => {
            bytes.push(1);
            length(&mut bytes, usage.parts.len());
            for usage_part in &usage.parts {
                part(&mut bytes, usage_part);
            }
            match &usage.task {
                None => bytes.push(0),
                Some(reference) => {
                    bytes.push(1);
                    task(&mut bytes, reference);
                }
            }
        }
        Report::Outcome(outcome) => {
            bytes.push(2);
            task(&mut bytes, &outcome.task);
            text(&mut bytes, outcome.outcome.as_str());
        }
    }
    first_half(Sha256::digest(&bytes))
}

/// The same over the bytes of what cannot be read. It is that of no content.
pub fn bytes_hash(bytes: &[u8]) -> [u8; 16] {
    first_half(Sha256::new_with_prefix([BYTES]).chain_update(bytes).finalize())
}

fn first_half(digest: impl Into<[u8; 32]>) -> [u8; 16] {
    let digest: [u8; 32] = digest.into();
    let mut hash = [0; 16];
    hash.copy_from_slice(&digest[..16]);
    hash
}

fn part(bytes: &mut Vec<u8>, part: &UsagePart) {
    text(bytes, &part.provider);
    text(bytes, &part.model);
    let conditions = &part.conditions;
    for condition in [
        &conditions.platform,
        &conditions.region,
        &conditions.service_tier,
        &conditions.processing,
        &conditions.speed,
    ] {
        option(bytes, condition.as_deref());
    }
    number(bytes, part.tier_input);
    length(bytes, part.quantities.non_zero().count());
    for (class, quantity) in part.quantities.non_zero() {
        text(bytes, class.name());
        number(bytes, quantity);
    }
}

fn task(bytes: &mut Vec<u8>, task: &TaskRef) {
    text(bytes, &task.id);
    option(bytes, task.kind.as_deref());
    option(bytes, task.parent.as_deref());
}

fn text(bytes: &mut Vec<u8>, value: &str) {
    length(bytes, value.len());
    bytes.extend_from_slice(value.as_bytes());
}

fn option(bytes: &mut Vec<u8>, value: Option<&str>) {
    match value {
        None => bytes.push(0),
        Some(value) => {
            bytes.push(1);
            text(bytes, value);
        }
    }
}

fn number(bytes: &mut Vec<u8>, value: i64) {
    bytes.extend_from_slice(&value.to_be_bytes());
}

fn length(bytes: &mut Vec<u8>, value: usize) {
    bytes.extend_from_slice(&(value as u64).to_be_bytes());
}
