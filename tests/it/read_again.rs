//! Messages that are read again, because their consumer was lost: what is settled stays as it is, whatever has changed since.

use chrono::TimeDelta;
use serde_json::{Value, json};
use sqlx::Row;
use waybill::clock::Clock;
use waybill::domain::ids::RejectionId;
use waybill::ingest::stream::CONSUMER;
use waybill::store::{commit, rejections};

use crate::harness::wait_until;
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
        let rejection: i64 = sqlx::query_scalar("SELECT id FROM rejections WHERE event_id = $1")
            .bind(id)
            .fetch_one(&world.pool)
            .await
            .unwrap();
        let mut tx = world.bed.database.begin().await.unwrap();
        assert!(rejections::discard(&mut tx, RejectionId(rejection), "a test", now()).await.unwrap());
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
