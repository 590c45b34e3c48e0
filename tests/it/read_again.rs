//! Messages that are read again, because their consumer was lost: what is settled stays as it is, whatever has changed since.

use async_nats::HeaderMap;
use chrono::TimeDelta;
use serde_json::{Value, json};
use sqlx::Row;
use waybill::clock::Clock;
use waybill::domain::ids::RejectionId;
use waybill::ingest::stream::CONSUMER;
use waybill::store::journal::{self, Suspect};
use waybill::store::rejections::{self, RejectionFilter};
use waybill::store::{catalog, commit, gateways};

use crate::harness::wait_until;
use crate::recording_bounds::blown_up;
use crate::world::{Outcome, World, estimate, gpt5_prices, now, usage_event};

/// Has everything in the stream read again, as it is where its consumer was deleted.
async fn read_again(world: &World, clock: Clock) {
    world.stop_consumers().await;
    world.stream.stream.delete_consumer(CONSUMER).await.unwrap();
    world.start_consumer_at(clock);
    let messages = world.stream_length().await;
    wait_until("everything is read again", async || {
        let consumer = world.stream.progress().await.ok()?;
        (consumer.ack_floor.stream_sequence == messages).then_some(())
    })
    .await;
    world.settled().await;
}

/// Discards what was rejected of these ids.
async fn discard(world: &World, ids: &[&str]) {
    for id in ids {
        let rejection: i64 =
            sqlx::query_scalar("SELECT id FROM rejections WHERE event_id = $1 ORDER BY id LIMIT 1")
                .bind(id)
                .fetch_one(&world.pool)
                .await
                .unwrap();
        let mut tx = world.bed.database.begin().await.unwrap();
        assert!(rejections::discard(&mut tx, RejectionId(rejection), "a test").await.unwrap());
        commit(tx).await.unwrap();
    }
}

/// Events of the last batch that were recorded, copies, and rejected.
async fn last_batch(world: &World) -> (i32, i32, i32) {
    let row =
        sqlx::query("SELECT recorded, duplicates, rejected FROM ingest_batches ORDER BY id DESC LIMIT 1")
            .fetch_one(&world.pool)
            .await
            .unwrap();
    (row.get("recorded"), row.get("duplicates"), row.get("rejected"))
}

/// A stream may keep its messages for as long as its owner likes.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_recorded_once_however_long_the_stream_keeps_it() {
    let world = World::start().await;
    world.publish("gw-1", &json!([usage_event("e-1"), usage_event("e-2")])).await;
    world.settled().await;
    for days in [62, 80, 400] {
        read_again(&world, Clock::fixed(now() + TimeDelta::days(days))).await;
        assert_eq!(last_batch(&world).await, (0, 2, 0), "after {days} days");
        assert_eq!(world.recorded_events().await, 2);
    }
    world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_discarded_is_not_billed_when_nothing_is_against_it_any_more() {
    let world = World::idle().await;
    world.start_consumer();
    let mut correction = usage_event("correction");
    correction["data"]["corrects"] = json!("estimate");
    let first = world.publish("gw-1", &json!([usage_event("e-1"), estimate("estimate")])).await;
    world.publish("gw-1", &correction).await;
    world.settled().await;
    assert_eq!(world.open_rejections().await, ["unpriced"; 3]);
    discard(&world, &["e-1", "estimate"]).await;
    world.publish_prices(gpt5_prices()).await;
    let waits = wait_until("the correction waits for its estimate", async || {
        (world.open_rejections().await == ["unknown_estimate"]).then_some(true)
    });
    assert!(waits.await);
    read_again(&world, Clock::System).await;
    assert_eq!(world.recorded_events().await, 0);
    assert_eq!(world.outcomes(first, 2).await, [Outcome::Rejected("unpriced"); 2]);
    assert_eq!(world.open_rejections().await, ["unknown_estimate"]);
    // Nor in another message; and what would be refused still is no new rejection. An estimate that is not there is not
    // corrected.
    let again = world.publish("gw-1", &json!([usage_event("e-1"), estimate("estimate")])).await;
    world.settled().await;
    assert_eq!(world.outcomes(again, 2).await, [Outcome::Duplicate; 2]);
    world.suspend("acme").await;
    let refused = world.publish("gw-1", &usage_event("e-1")).await;
    world.settled().await;
    assert_eq!(world.outcomes(refused, 1).await, [Outcome::Duplicate]);
    assert_eq!(world.recorded_events().await, 0);
    world.verified().await;
}

/// Discards everything that is open.
async fn discard_all(world: &World, reason: &str) {
    let mut tx = world.bed.database.begin().await.unwrap();
    let filter = RejectionFilter { reason: Some(reason), ..RejectionFilter::default() };
    let done = rejections::discard_many(&mut tx, filter, "a test", (100, 0)).await.unwrap();
    assert!(done.done > 0);
    commit(tx).await.unwrap();
}

/// With others it would be read by every batch that holds an event of their names, all of it.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_discarded_is_told_without_reading_it() {
    let world = World::idle().await;
    world.start_consumer();
    let numbered = |number: i64| {
        let mut event = usage_event("e-1");
        event["data"]["usage"]["output"] = json!(number);
        event
    };
    for number in 1..=5 {
        let (headers, body) = blown_up(&numbered(number));
        world.publish_raw("gw-1", headers, body).await;
    }
    world.settled().await;
    assert_eq!(world.open_rejections().await, ["unpriced"; 5]);
    discard_all(&world, "unpriced").await;
    world.publish_prices(gpt5_prices()).await;
    let sequence = world.publish("gw-1", &json!([numbered(50), numbered(2), numbered(3)])).await;
    world.settled().await;
    let (recorded, settled) = (Outcome::Recorded, Outcome::Duplicate);
    assert_eq!(world.outcomes(sequence, 3).await, [recorded, settled, settled]);

    let mut tx = world.pool.begin().await.unwrap();
    let time = usage_event("e-1")["time"].as_str().unwrap().parse().unwrap();
    let asked = Suspect { gateway: "gw-1", source: "gw-1", id: "e-1", time };
    assert_eq!(
        journal::discarded_events(&mut tx, &[asked], waybill::metering::READING).await.unwrap().len(),
        5
    );
    let read = "SELECT COALESCE(sum(seq_tup_read + idx_tup_fetch), 0)::bigint FROM pg_stat_xact_all_tables
                WHERE relid = (SELECT reltoastrelid FROM pg_class WHERE oid = 'rejections'::regclass)";
    assert_eq!(sqlx::query_scalar::<_, i64>(read).fetch_one(&mut *tx).await.unwrap(), 0);
    drop(tx);

    // As an earlier release kept them.
    world.bed.run("UPDATE rejections SET content_hash = NULL").await;
    let sequence = world.publish("gw-1", &json!([numbered(1), numbered(51), numbered(5)])).await;
    world.settled().await;
    assert_eq!(world.outcomes(sequence, 3).await, [settled, Outcome::Rejected("conflict"), settled]);
    world.verified().await;
}

/// What an earlier release could not read is told by its bytes; so is what this one cannot.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_discarded_unread_is_told_by_its_bytes() {
    let world = World::start().await;
    let mut unreadable = usage_event("e-1");
    unreadable["data"]["usage"]["output"] = json!(-1);
    world.publish("gw-1", &json!([unreadable, usage_event("e-2")])).await;
    let mut unknown = usage_event("e-3");
    unknown["subject"] = json!("nobody");
    world.publish("gw-1", &unknown).await;
    world.settled().await;
    assert_eq!(world.open_rejections().await, ["negative", "unknown_customer"]);
    discard(&world, &["e-1", "e-3"]).await;
    // As if the customer's event had not been readable then.
    let sequence = world.publish("gw-1", &unreadable).await;
    world.settled().await;
    assert_eq!(world.outcomes(sequence, 1).await, [Outcome::Duplicate]);
    let unread: uuid::Uuid = {
        let raw: Vec<u8> = sqlx::query_scalar("SELECT raw FROM rejections WHERE event_id = 'e-3'")
            .fetch_one(&world.pool)
            .await
            .unwrap();
        uuid::Uuid::from_bytes(waybill::metering::bytes_hash(&raw))
    };
    world.bed.run(&format!("UPDATE rejections SET content_hash = '{unread}' WHERE event_id = 'e-3'")).await;
    let mut other = unknown.clone();
    other["data"]["latency_ms"] = json!(7);
    let sequence = world.publish("gw-1", &json!([unknown, other])).await;
    world.settled().await;
    let outcomes = [Outcome::Duplicate, Outcome::Rejected("unknown_customer")];
    assert_eq!(world.outcomes(sequence, 2).await, outcomes, "bytes are no content");
}

/// By its reading the event has another hash, or it could not read it.
#[tokio::test(flavor = "multi_thread")]
async fn what_another_release_has_read_otherwise_and_was_discarded_is_told() {
    let world = World::idle().await;
    world.start_consumer();
    let ids = ["other", "unread", "unhashed", "later"];
    let events: Vec<Value> = ids.map(usage_event).into();
    world.publish("gw-1", &json!(events)).await;
    world.settled().await;
    assert_eq!(world.open_rejections().await, ["unpriced"; 4]);
    world
        .bed
        .run(
            "UPDATE rejections SET reading = reading - 1;
             UPDATE rejections SET reading = reading + 2 WHERE event_id = 'later';
             UPDATE rejections SET content_hash = gen_random_uuid() WHERE event_id IN ('other', 'later');
             UPDATE rejections SET content_hash = substr(sha256('\\x00' || raw)::text, 3, 32)::uuid WHERE event_id = 'unread';
             UPDATE rejections SET content_hash = NULL, reading = NULL WHERE event_id = 'unhashed';",
        )
        .await;
    discard(&world, &ids).await;
    world.publish_prices(gpt5_prices()).await;
    let sequence = world.publish("gw-1", &json!(events)).await;
    // With another place in its gateway's count it has other bytes.
    let stamped: Vec<Value> = events
        .into_iter()
        .zip(1..)
        .map(|(mut event, number)| {
            (event["epoch"], event["sequence"]) = (json!("boot"), json!(number));
            event
        })
        .collect();
    let restamped = world.publish("gw-1", &json!(stamped)).await;
    world.settled().await;
    for sequence in [sequence, restamped] {
        assert_eq!(world.outcomes(sequence, 4).await, [Outcome::Duplicate; 4]);
    }
    assert_eq!(world.recorded_events().await, 0);
    world.verified().await;
}

/// Registers a gateway.
async fn register(world: &World, gateway: &str) {
    let mut tx = world.bed.database.begin().await.unwrap();
    gateways::create(&mut tx, gateway, None).await.unwrap();
    catalog::bump(&mut tx).await.unwrap();
    commit(tx).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_discarded_of_a_gateway_that_was_not_registered_is_not_billed_once_it_is() {
    let world = World::start().await;
    let event = |id: &str| {
        let mut event = usage_event(id);
        event["source"] = json!("gw-new");
        event
    };
    world.publish("gw-new", &event("e-1")).await;
    world.settled().await;
    discard(&world, &["e-1"]).await;
    let again = world.publish("gw-new", &json!([event("e-1"), event("e-2")])).await;
    world.settled().await;
    assert_eq!(world.outcomes(again, 2).await, [Outcome::Duplicate, Outcome::Rejected("unknown_gateway")]);
    register(&world, "gw-new").await;
    wait_until("the other is recorded", async || world.open_rejections().await.is_empty().then_some(()))
        .await;
    world.publish("gw-new", &event("e-1")).await;
    world.settled().await;
    assert_eq!(world.recorded_events().await, 1);
    world.verified().await;
}

/// As an earlier release kept copies of a discarded event, or where a message could not be taken apart.
#[tokio::test(flavor = "multi_thread")]
async fn a_rejection_that_came_after_the_same_event_was_discarded_is_settled_where_it_is_tried_again() {
    let world = World::idle().await;
    world.start_consumer();
    for id in ["after", "before"] {
        for _ in 0..2 {
            world.publish("gw-1", &usage_event(id)).await;
        }
    }
    let mut headers = HeaderMap::new();
    headers.insert("Content-Encoding", "unheard-of");
    let whole = json!([usage_event("after"), usage_event("e-3")]);
    world.publish_raw("gw-1", headers, whole.to_string().into_bytes()).await;
    world.settled().await;
    // The first of each.
    discard(&world, &["after", "before"]).await;
    world
        .bed
        .run(
            "UPDATE rejections SET rejected_at = now() + interval '1 minute'
             WHERE resolved_at IS NULL AND event_id IS DISTINCT FROM 'before';
             UPDATE rejections SET headers = NULL, replay_requested = true WHERE reason = 'encoding'",
        )
        .await;
    world.publish_prices(gpt5_prices()).await;
    wait_until("all are settled", async || world.open_rejections().await.is_empty().then_some(())).await;
    let settled: Vec<(String, String)> =
        sqlx::query_as("SELECT COALESCE(event_id, 'whole'), resolution FROM rejections ORDER BY id")
            .fetch_all(&world.pool)
            .await
            .unwrap();
    let expected = [
        ("after", "discarded"),
        ("after", "discarded"),
        ("before", "discarded"),
        // Nobody has discarded this one.
        ("before", "recorded"),
        ("whole", "recorded"),
    ];
    assert_eq!(settled, expected.map(|(id, resolution)| (id.to_owned(), resolution.to_owned())));
    let recorded: Vec<String> =
        sqlx::query_scalar("SELECT id FROM usage_events ORDER BY id").fetch_all(&world.pool).await.unwrap();
    assert_eq!(recorded, ["before", "e-3"]);
    world.settled().await;
    world.verified().await;
}

/// What finance saw and discarded is settled, and nothing beside it.
#[tokio::test(flavor = "multi_thread")]
async fn other_content_other_gateways_and_other_ids_than_the_discarded_ones_are_judged_anew() {
    let world = World::idle().await;
    world.start_consumer();
    let mut elsewhere = usage_event("e-2");
    elsewhere["source"] = json!("gw-2");
    world.publish("gw-1", &json!([usage_event("e-1"), &elsewhere])).await;
    world.settled().await;
    assert_eq!(world.open_rejections().await, ["unpriced", "not_allowed"]);
    discard(&world, &["e-1", "e-2"]).await;
    world.publish_prices(gpt5_prices()).await;
    let mut changed = usage_event("e-1");
    changed["data"]["usage"]["output"] = json!(51);
    let mut own = usage_event("e-1");
    own["source"] = json!("gw-1/other");
    let first = world.publish("gw-1", &json!([usage_event("e-1"), changed, own, usage_event("e-3")])).await;
    // Nobody has discarded it but as an event of a gateway that may not send it.
    let second = world.publish("gw-2", &elsewhere).await;
    world.settled().await;
    let (recorded, settled) = (Outcome::Recorded, Outcome::Duplicate);
    assert_eq!(world.outcomes(first, 4).await, [settled, recorded, recorded, recorded]);
    assert_eq!(world.outcomes(second, 1).await, [recorded]);
    world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_what_is_recorded_is_no_rejection_where_it_would_be_refused_now() {
    let world = World::start().await;
    let mut others = usage_event("others");
    others["subject"] = json!("globex");
    world.publish("gw-1", &json!([usage_event("e-1"), usage_event("e-2"), others])).await;
    world.publish("gw-1", &usage_event("e-3")).await;
    world.settled().await;
    world.suspend("acme").await;
    read_again(&world, Clock::System).await;
    assert_eq!(world.open_rejections().await, Vec::<String>::new());
    assert_eq!((world.recorded_events().await, last_batch(&world).await.0), (4, 0));

    // What is new, or other than what is recorded, is refused; and who speaks for another gateway is told of.
    let mut changed = usage_event("e-1");
    changed["data"]["usage"]["input"] = json!(7);
    let mixed: Value = json!([usage_event("e-2"), changed, usage_event("e-4")]);
    let sequence = world.publish("gw-1", &mixed).await;
    let foreign = world.publish("gw-2", &usage_event("e-3")).await;
    world.settled().await;
    let suspended = Outcome::Rejected("suspended_customer");
    assert_eq!(world.outcomes(sequence, 3).await, [Outcome::Duplicate, suspended, suspended]);
    assert_eq!(world.outcomes(foreign, 1).await, [Outcome::Rejected("not_allowed")]);
    world.verified().await;
}

/// As a release that reads payloads otherwise has recorded it: told by its place in the stream.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_reads_otherwise_now_is_still_a_copy_where_its_message_is_read_again() {
    let world = World::start().await;
    let mut unreadable = usage_event("e-3");
    unreadable["data"]["provider_usage"] = json!({"format": "openai.chat", "body": {"prompt_tokens": 1}});
    let mixed = world.publish("gw-1", &json!([usage_event("e-1"), unreadable])).await;
    world.publish("gw-1", &json!([usage_event("e-2"), usage_event("e-3")])).await;
    world.settled().await;
    assert_eq!(world.open_rejections().await, ["ambiguous"]);
    let as_before = format!(
        "ALTER TABLE usage_events DISABLE TRIGGER USER;
         UPDATE usage_events SET content_hash = gen_random_uuid() WHERE id IN ('e-1', 'e-2');
         UPDATE usage_events SET stream_seq = {mixed}, event_index = 1 WHERE id = 'e-3';
         ALTER TABLE usage_events ENABLE TRIGGER USER;
         DELETE FROM rejections;"
    );
    world.bed.run(&as_before).await;
    read_again(&world, Clock::System).await;
    assert_eq!(world.open_rejections().await, Vec::<String>::new());
    assert_eq!(world.recorded_events().await, 3);

    // In another message it is another event.
    let other = world.publish("gw-1", &json!([usage_event("e-1"), unreadable])).await;
    world.settled().await;
    assert_eq!(world.outcomes(other, 2).await, ["conflict", "ambiguous"].map(Outcome::Rejected));
}

/// As rejections that an earlier release made of copies.
#[tokio::test(flavor = "multi_thread")]
async fn a_rejection_whose_event_is_recorded_is_settled_although_it_would_be_refused_still() {
    let world = World::idle().await;
    world.start_consumer();
    world.publish("gw-1", &usage_event("e-1")).await;
    world.settled().await;
    world.bed.run("UPDATE rejections SET event_id = NULL").await;
    world.stop_jobs().await;
    world.publish_prices(gpt5_prices()).await;
    world.publish("gw-1", &usage_event("e-1")).await;
    wait_until("the copy is recorded", async || (world.recorded_events().await == 1).then_some(())).await;
    world.suspend("acme").await;
    assert_eq!(waybill::ingest::replay::replay_once(&world.recorder).await.unwrap(), 1);
    let resolution: String =
        sqlx::query_scalar("SELECT resolution FROM rejections").fetch_one(&world.pool).await.unwrap();
    assert_eq!(resolution, "duplicate");
}
