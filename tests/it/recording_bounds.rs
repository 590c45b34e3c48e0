//! What recording holds in memory at a time, and what it does with an event that never gets in.

use std::io::Write;

use async_nats::HeaderMap;
use serde_json::json;

use crate::harness::wait_until;
use crate::world::{Outcome, World, usage_event};

/// Blanks behind an event, so that decompressed it is almost as large as a message may be.
const BLANKS: usize = 4 * 1024 * 1024 - 4_096;

/// An event and blanks, compressed to a few hundred bytes.
fn padded_event(id: &str) -> Vec<u8> {
    let mut body = usage_event(id).to_string().into_bytes();
    body.resize(body.len() + BLANKS, b' ');
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    encoder.write_all(&body).unwrap();
    encoder.finish().unwrap()
}

/// However many of them are fetched together: a few hundred bytes each in the stream, megabytes each in memory.
#[tokio::test(flavor = "multi_thread")]
async fn small_messages_of_large_bodies_are_recorded_a_few_at_a_time() {
    const MESSAGES: i64 = 60;
    // 32 MiB of such bodies are eight; as much may wait and be recorded together.
    const TOGETHER_MAX: i64 = 20;
    let world = World::idle().await;
    world.publish_prices(crate::world::gpt5_prices()).await;
    let mut headers = HeaderMap::new();
    headers.insert("Content-Encoding", "zstd");
    for number in 0..MESSAGES {
        let body = padded_event(&format!("e-{number}"));
        assert!(body.len() < 1_024, "{} bytes", body.len());
        world.publish_raw("gw-1", headers.clone(), body).await;
    }
    world.start_consumer();
    world.settled().await;
    assert_eq!(world.recorded_events().await, MESSAGES);
    let most: i64 = sqlx::query_scalar("SELECT MAX(messages)::bigint FROM ingest_batches")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    assert!(most <= TOGETHER_MAX, "{most} messages were recorded together");
}

/// As a constraint that somebody has added would, or a fault of ours: tried again for ever, it would hold up all others.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_always_violates_a_unique_key_is_rejected_alone() {
    let world = World::start().await;
    world
        .bed
        .run(
            "CREATE FUNCTION taken() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN IF NEW.id = 'taken' THEN RAISE unique_violation; END IF; RETURN NEW; END $$;
             CREATE TRIGGER taken BEFORE INSERT ON usage_events FOR EACH ROW EXECUTE FUNCTION taken();",
        )
        .await;
    let events: Vec<_> = ["before", "taken", "after"].map(usage_event).into();
    let together = world.publish("gw-1", &json!(events)).await;
    let alone = world.publish("gw-1", &usage_event("other")).await;
    world.settled().await;
    let outcomes = world.outcomes(together, 3).await;
    assert_eq!(outcomes, [Outcome::Recorded, Outcome::Rejected("unstorable"), Outcome::Recorded]);
    assert_eq!(world.outcomes(alone, 1).await, [Outcome::Recorded]);
    world.verified().await;
}

/// Reports that many people ask for at once hold up each other, not what is recorded: not even where it needs other prices.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_the_api_has_taken_do_not_hold_up_recording() {
    let world = World::start().await;
    world.publish("gw-1", &usage_event("before")).await;
    world.settled().await;
    let mut taken = Vec::new();
    while let Ok(tx) = world.bed.database.begin().await {
        taken.push(tx);
    }
    world.bed.run("UPDATE catalog_version SET version = version + 1").await;
    world.publish("gw-1", &usage_event("after")).await;
    wait_until("it is recorded", async || (world.recorded_events().await == 2).then_some(())).await;
    assert!(!taken.is_empty());
}
