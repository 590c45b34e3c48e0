//! What recording holds in memory at a time, and what it does with an event that never gets in.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_nats::HeaderMap;
use serde_json::{Value, json};
use waybill::store::{catalog, commit};

use crate::harness::wait_until;
use crate::world::{Outcome, World, usage_event};

/// Blanks behind an event, so that decompressed it is almost as large as a message may be.
const BLANKS: usize = 4 * 1024 * 1024 - 4_096;

/// An event and blanks, compressed to a few hundred bytes.
fn padded_event(id: &str) -> Vec<u8> {
    let mut body = usage_event(id).to_string().into_bytes();
    body.resize(body.len() + BLANKS, b' ');
    compressed(&body)
}

/// An event with the blanks inside, compressed, and the headers that say so: it is kept with them where it is rejected.
pub fn blown_up(event: &Value) -> (HeaderMap, Vec<u8>) {
    let mut headers = HeaderMap::new();
    headers.insert("Content-Encoding", "zstd");
    (headers, compressed(event.to_string().replacen('{', &format!("{{{}", " ".repeat(BLANKS)), 1).as_bytes()))
}

fn compressed(body: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
    encoder.write_all(body).unwrap();
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
    let world = World::patient().await;
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
    assert_eq!(batches_with(&world, together).await, 1);
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

/// As while thousands of customers are created: each change asks for the catalog to be loaded again.
#[tokio::test(flavor = "multi_thread")]
async fn a_catalog_that_changes_faster_than_it_is_loaded_does_not_hold_up_recording() {
    let world = World::start().await;
    world.publish("gw-1", &usage_event("before")).await;
    world.settled().await;
    let stop = Arc::new(AtomicBool::new(false));
    let changing: Vec<_> = (0..3)
        .map(|_| {
            let (database, stop) = (world.bed.database.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut changes = 0;
                while !stop.load(Ordering::Relaxed) {
                    let mut tx = database.begin().await.unwrap();
                    catalog::bump(&mut tx).await.unwrap();
                    commit(tx).await.unwrap();
                    changes += 1;
                }
                changes
            })
        })
        .collect();
    for round in 0..10 {
        let events: Vec<Value> = (0..200).map(|number| usage_event(&format!("e-{round}-{number}"))).collect();
        world.publish("gw-1", &json!(events)).await;
        let expected = 1 + (round + 1) * 200;
        wait_until("it is recorded", async || (world.recorded_events().await == expected).then_some(()))
            .await;
    }
    stop.store(true, Ordering::Relaxed);
    for changing in changing {
        assert!(changing.await.unwrap() > 0, "the catalog can be changed all the same");
    }
}

/// How many batches account for a message: with the first of them it counts as recorded.
async fn batches_with(world: &World, sequence: i64) -> i64 {
    sqlx::query_scalar("SELECT count(*) FROM ingest_batches WHERE sequences @> $1")
        .bind(sequence)
        .fetch_one(&world.pool)
        .await
        .unwrap()
}

/// Has the database refuse every event whose id begins so.
async fn refuse_events(world: &World) {
    world
        .bed
        .run(
            "CREATE FUNCTION refused() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN
                 IF NEW.id LIKE 'refused%' THEN RAISE EXCEPTION 'refused' USING ERRCODE = '22000'; END IF;
                 RETURN NEW;
             END $$;
             CREATE TRIGGER refused BEFORE INSERT ON usage_events FOR EACH ROW EXECUTE FUNCTION refused();",
        )
        .await;
}

/// Each of them is looked for among its neighbours, not among all that come before it.
#[tokio::test(flavor = "multi_thread")]
async fn many_refused_events_of_a_message_are_found_by_trying_each_a_few_times() {
    const EVENTS: i64 = 180;
    let world = World::patient().await;
    refuse_events(&world).await;
    world
        .bed
        .run(
            "CREATE SEQUENCE tried;
             CREATE FUNCTION tried() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
             BEGIN PERFORM nextval('tried'); RETURN NEW; END $$;
             CREATE TRIGGER a_tried BEFORE INSERT ON usage_events FOR EACH ROW EXECUTE FUNCTION tried();",
        )
        .await;
    let name = |number| if number % 2 == 0 { format!("refused-{number}") } else { format!("taken-{number}") };
    let events: Vec<Value> = (0..EVENTS).map(|number| usage_event(&name(number))).collect();
    let sequence = world.publish("gw-1", &json!(events)).await;
    world.settled().await;
    assert_eq!(world.recorded_events().await, EVENTS / 2);
    assert_eq!(world.open_rejections().await.len(), 90);
    assert_eq!(batches_with(&world, sequence).await, 1);
    let tried: i64 = sqlx::query_scalar("SELECT last_value FROM tried").fetch_one(&world.pool).await.unwrap();
    assert!(tried < EVENTS * 10, "{tried} rows were tried");
    world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_with_refused_events_is_recorded_whole_or_not_at_all() {
    let world = World::patient().await;
    refuse_events(&world).await;
    let bad = |number: usize| matches!(number, 0 | 7 | 30..50 | 98);
    let name = |number| format!("{}-{number}", if bad(number) { "refused" } else { "taken" });
    let mut events: Vec<Value> = (0..100).map(|number| usage_event(&name(number))).collect();
    // What belongs together may be told apart nowhere.
    events[20]["data"]["usage_source"] = json!("estimated");
    events[90]["data"]["corrects"] = events[20]["id"].clone();
    let sequence = world.publish("gw-1", &json!(events)).await;
    let behind = world.publish("gw-1", &usage_event("behind")).await;
    world.settled().await;
    for (outcome, number) in world.outcomes(sequence, 100).await.into_iter().zip(0..) {
        let expected = if bad(number) { Outcome::Rejected("unstorable") } else { Outcome::Recorded };
        assert_eq!(outcome, expected, "{number}");
    }
    assert_eq!(batches_with(&world, sequence).await, 1);
    assert_eq!(world.outcomes(behind, 1).await, [Outcome::Recorded]);
    world.verified().await;
}

/// It is one row: settled by a part of its events, nobody would try the others again.
#[tokio::test(flavor = "multi_thread")]
async fn a_rejected_message_with_a_refused_event_stays_open_for_it_alone() {
    let world = World::patient().await;
    refuse_events(&world).await;
    let events: Vec<_> = ["a", "refused", "b", "c"].map(usage_event).into();
    let mut headers = HeaderMap::new();
    headers.insert("Content-Encoding", "unheard-of");
    let sequence = world.publish_raw("gw-1", headers, json!(events).to_string().into_bytes()).await;
    world.settled().await;
    assert_eq!(world.open_rejections().await, ["encoding"]);
    world.bed.run("UPDATE rejections SET headers = NULL, replay_requested = true").await;
    wait_until("it was tried again", async || {
        (world.open_rejections().await == ["unstorable"]).then_some(())
    })
    .await;
    assert_eq!(world.recorded_events().await, 3);
    assert_eq!(batches_with(&world, sequence).await, 1);
    world
        .bed
        .run("DROP TRIGGER refused ON usage_events; UPDATE rejections SET replay_requested = true")
        .await;
    wait_until("it is settled", async || world.open_rejections().await.is_empty().then_some(())).await;
    assert_eq!(world.recorded_events().await, 4);
    world.settled().await;
    world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_behind_a_rejection_that_cannot_be_kept_is_recorded() {
    let world = World::start().await;
    world
        .bed
        .run(
            "CREATE FUNCTION refused() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = '22000'; END $$;
             CREATE TRIGGER refused BEFORE INSERT ON rejections FOR EACH ROW EXECUTE FUNCTION refused();",
        )
        .await;
    let holding = world.recording_held().await;
    let bad = world.publish("gw-1", &json!({"id": "bad"})).await;
    for id in ["e-1", "e-2", "e-3"] {
        world.publish("gw-1", &usage_event(id)).await;
    }
    holding.rollback().await.unwrap();
    wait_until("the others are recorded", async || (world.recorded_events().await == 3).then_some(())).await;
    assert_eq!(batches_with(&world, bad).await, 0);
    world.bed.run("DROP TRIGGER refused ON rejections").await;
    world.settled().await;
    assert_eq!(world.open_rejections().await.len(), 1);
    world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_cannot_be_taken_apart_is_kept_without_what_was_said() {
    let world = World::start().await;
    let said =
        json!({"format": "openai.chat", "body": {"messages": ["SECRET"], "usage": {"prompt_tokens": 5}}});
    let mut event = usage_event("e-1");
    event["data"] = json!({"provider_usage": said});
    let body = format!("[{event},]");
    let sequence = world.publish_raw("gw-1", HeaderMap::new(), body.clone().into_bytes()).await;
    world.settled().await;
    let kept = String::from_utf8(world.rejected_bytes(sequence).await).unwrap();
    assert_eq!(kept, body.replace("\"SECRET\"", "{}"));
}
