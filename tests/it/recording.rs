//! What recording does with copies, corrections, gaps in the catalog and concurrent writers.

use std::ops::Range;

use chrono::TimeDelta;
use serde_json::{Value, json};
use sqlx::{Connection, PgConnection};
use waybill::clock::Clock;
use waybill::ingest::{Recorder, repair};
use waybill::reports::verify::{self, Check};
use waybill::shutdown::Shutdown;
use waybill::store::{replay, verify as compare};

use crate::harness::wait_until;
use crate::world::{Outcome, World, estimate, gpt5_prices, limits, now, usage_event};

/// An event that corrects an estimate.
pub fn correction(id: &str, of: &str, usage: Value) -> Value {
    let mut event = usage_event(id);
    event["data"]["corrects"] = json!(of);
    event["data"]["usage"] = usage;
    event
}

/// Two estimates of 70 days ago, of which the first is corrected to 7 tokens, and two of today, of 1,000, with their ids.
pub async fn estimates_of_ids_used_again() -> World {
    estimates_corrected_and_used_again(TimeDelta::days(70)).await
}

/// As [`estimates_of_ids_used_again`], corrected so long ago.
pub async fn estimates_corrected_and_used_again(ago: TimeDelta) -> World {
    let world = World::idle().await;
    world.publish_prices(gpt5_prices()).await;
    world.start_consumer_at(Clock::fixed(now() - TimeDelta::days(70)));
    for id in ["corrected", "final"] {
        world.publish("gw-1", &estimate(id)).await;
    }
    world.settled().await;
    world.stop_consumers().await;
    world.start_consumer_at(Clock::fixed(now() - ago));
    world.publish("gw-1", &correction("a", "corrected", json!({"input": 7, "output": 0}))).await;
    world.settled().await;
    world.stop_consumers().await;
    world.start_consumer();
    for id in ["corrected", "final"] {
        let mut again = estimate(id);
        again["data"]["usage"] = json!({"input": 1000, "output": 0});
        world.publish("gw-1", &again).await;
    }
    world.settled().await;
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn unpriced_usage_waits_for_its_price_and_is_then_recorded_by_itself() {
    let world = World::idle().await;
    world.start_consumer();
    world.publish("gw-1", &usage_event("e-1")).await;
    world.settled().await;
    assert_eq!(world.open_rejections().await, ["unpriced"]);
    assert_eq!(world.recorded_events().await, 0, "unpriced is never zero");
    world.verified().await;

    world.publish_prices(gpt5_prices()).await;
    wait_until("the event is recorded", async || (world.recorded_events().await == 1).then_some(())).await;
    wait_until("the rejection is resolved", async || world.open_rejections().await.is_empty().then_some(()))
        .await;
    world.settled().await;
    assert_eq!(world.task("acme", "task-1").await.calls, 1);
    // The same message again is a duplicate of what the replay recorded.
    let again = world.publish("gw-1", &usage_event("e-1")).await;
    world.settled().await;
    assert_eq!(world.outcomes(again, 1).await, [Outcome::Duplicate]);
    world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_estimate_is_replaced_by_final_usage_and_voided_by_zeros() {
    let world = World::start().await;
    world.publish("gw-1", &estimate("guess")).await;
    world.settled().await;
    let guessed = world.totals().await;
    assert_eq!((guessed.events, guessed.input, guessed.output), (1, 100, 50));

    world.publish("gw-1", &correction("final", "guess", json!({"input": 120, "output": 60}))).await;
    world.settled().await;
    let corrected = world.totals().await;
    assert_eq!((corrected.events, corrected.input, corrected.output), (1, 120, 60));
    // 120 x 1.25 + 60 x 10 dollars per million.
    assert_eq!(corrected.cost.to_string(), "0.00075");
    assert_eq!(world.task("acme", "task-1").await.calls, 1);
    world.verified().await;

    // A second correction of the same estimate replaces the first.
    world.publish("gw-1", &correction("void", "guess", json!({"input": 0, "output": 0}))).await;
    world.settled().await;
    let voided = world.totals().await;
    assert_eq!((voided.input, voided.output, voided.cost.to_string().as_str()), (0, 0, "0"));
    world.verified().await;
}

/// Posted as if nothing were wrong: only the proof can tell.
#[tokio::test(flavor = "multi_thread")]
async fn a_correction_that_takes_back_nothing_or_something_else_is_found() {
    let world = World::start().await;
    world.publish("gw-1", &estimate("guess")).await;
    for id in ["final", "void"] {
        world.publish("gw-1", &correction(id, "guess", json!({"input": 120, "output": 60}))).await;
    }
    world.settled().await;
    world.verified().await;
    for (damage, found) in [
        ("DELETE FROM usage_events WHERE kind = 'reversal' AND id = 'final'", "nothing is taken back"),
        ("UPDATE usage_events SET part = part + 1 WHERE kind = 'reversal' AND id = 'final'", "part 1001"),
        (
            "UPDATE usage_events SET output = output + 1 WHERE kind = 'reversal' AND id = 'void'",
            "units {-120,",
        ),
        ("DELETE FROM corrections", "none is written down"),
        (
            "UPDATE corrections SET correcting_key = gen_random_uuid() WHERE number = 2",
            "correction 2 of event",
        ),
    ] {
        let statements = format!("BEGIN; ALTER TABLE usage_events DISABLE TRIGGER USER; {damage}");
        let mut damaged = PgConnection::connect(&world.bed.database_url).await.unwrap();
        sqlx::raw_sql(sqlx::AssertSqlSafe(statements)).execute(&mut damaged).await.unwrap();
        let differences = compare::reversal_differences(&mut damaged, 10).await.unwrap();
        let said = format!("{differences:?}");
        assert!(said.contains(found), "{damage}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_correction_waits_for_its_estimate_and_only_estimates_are_corrected() {
    let world = World::start().await;
    world.publish("gw-1", &correction("early", "late", json!({"input": 7, "output": 0}))).await;
    world.settled().await;
    assert_eq!(world.open_rejections().await, ["unknown_estimate"]);
    world.publish("gw-1", &estimate("late")).await;
    wait_until("the correction is recorded", async || world.open_rejections().await.is_empty().then_some(()))
        .await;
    world.settled().await;
    assert_eq!(world.totals().await.input, 7);

    world.publish("gw-1", &usage_event("measured")).await;
    let refused =
        world.publish("gw-1", &correction("no", "measured", json!({"input": 1, "output": 0}))).await;
    world.settled().await;
    assert_eq!(world.outcomes(refused, 1).await, [Outcome::Rejected("unknown_estimate")]);
    world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_correction_names_the_first_estimate_not_another_correction() {
    let world = World::start().await;
    world.publish("gw-1", &estimate("guess")).await;
    let mut better = correction("better", "guess", json!({"input": 110, "output": 55}));
    better["data"]["usage_source"] = json!("estimated");
    world.publish("gw-1", &better).await;
    world.settled().await;
    let refused = world.publish("gw-1", &correction("x", "better", json!({"input": 1, "output": 1}))).await;
    world.publish("gw-1", &correction("final", "guess", json!({"input": 120, "output": 60}))).await;
    world.settled().await;
    assert_eq!(world.outcomes(refused, 1).await, [Outcome::Rejected("unknown_estimate")]);
    let totals = world.totals().await;
    assert_eq!((totals.events, totals.input, totals.output), (1, 120, 60));
    world.verified().await;
}

/// How often each open rejection was tried, oldest first.
async fn attempts(world: &World) -> Vec<i32> {
    sqlx::query_scalar("SELECT attempts FROM rejections WHERE resolved_at IS NULL ORDER BY id")
        .fetch_all(&world.pool)
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_correction_is_tried_again_when_its_estimate_is_there_and_not_before() {
    let world = World::start().await;
    world.publish("gw-1", &usage_event("measured")).await;
    let corrections = json!([
        correction("a", "never", json!({"input": 1, "output": 0})),
        correction("b", "measured", json!({"input": 1, "output": 0})),
        correction("c", "late", json!({"input": 7, "output": 0})),
    ]);
    world.publish("gw-1", &corrections).await;
    world.settled().await;
    assert_eq!(world.open_rejections().await, ["unknown_estimate"; 3]);
    // Whatever number the batch has that brings the estimate: one of a lower number may be committed later.
    world.bed.run("UPDATE rejections SET tried_after_batch = 1000000").await;
    world.publish("gw-1", &usage_event("other")).await;
    world.publish("gw-1", &estimate("late")).await;
    wait_until("the correction is recorded", async || {
        (world.open_rejections().await.len() == 2).then_some(())
    })
    .await;
    assert_eq!(attempts(&world).await, [1, 1], "the others still lack what they name");
    // Nobody knows what those wait for that a release before this one rejected: they are tried once.
    world.bed.run("UPDATE rejections SET waits_for = NULL WHERE resolved_at IS NULL").await;
    wait_until("they are tried", async || (attempts(&world).await == [2, 2]).then_some(())).await;
    world.publish("gw-1", &estimate("never")).await;
    wait_until("the other correction is recorded", async || {
        (world.open_rejections().await.len() == 1).then_some(())
    })
    .await;
    assert_eq!(attempts(&world).await, [2], "what was measured is never an estimate");
    world.settled().await;
    world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_due_rejections_those_are_tried_first_that_were_not_for_longest() {
    let world = World::idle().await;
    world.stop_jobs().await;
    world.start_consumer();
    let unknown = |id: &str| {
        let mut event = usage_event(id);
        event["subject"] = json!("nobody");
        event
    };
    world.publish("gw-1", &json!([unknown("a"), unknown("b"), unknown("c")])).await;
    wait_until("they are rejected", async || (world.open_rejections().await.len() == 3).then_some(())).await;
    world
        .bed
        .run(
            "UPDATE rejections SET catalog_version = CASE event_id WHEN 'a' THEN 2 WHEN 'b' THEN 0 ELSE 1 END",
        )
        .await;
    let mut tx = world.bed.database.begin_ingest().await.unwrap();
    let due = replay::due(&mut tx, &["unknown_customer".to_owned()], &[], 2).await.unwrap();
    let due = replay::read(&mut tx, &due, i64::MAX).await.unwrap();
    assert_eq!(due.iter().map(|due| due.event_index).collect::<Vec<_>>(), [1, 2]);
}

/// A client may try a mistyped model for ever.
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_used_nothing_of_a_model_without_a_price_are_no_unpriced_usage() {
    let world = World::start().await;
    let of_nothing = |mut event: Value| {
        event["data"]["model"] = json!("gpt-99");
        event["data"]["usage"] = json!({"input": 0, "output": 0});
        event
    };
    let mut used = of_nothing(usage_event("used"));
    used["data"]["usage"]["output"] = json!(1);
    let void = of_nothing(correction("void", "guess", Value::Null));
    let zeros = of_nothing(estimate("zeros"));
    let mut more = of_nothing(correction("more", "zeros", Value::Null));
    more["data"]["usage"]["input"] = json!(3);
    let events = json!([of_nothing(usage_event("failed")), used, estimate("guess"), void, zeros, more]);
    let sequence = world.publish("gw-1", &events).await;
    world.settled().await;
    let (nothing, unpriced) = (Outcome::Rejected("nothing_used"), Outcome::Rejected("unpriced"));
    // What takes back an estimate is money, and so may be what is known of an estimate later.
    let outcomes = [nothing, unpriced, Outcome::Recorded, unpriced, unpriced, unpriced];
    assert_eq!(world.outcomes(sequence, 6).await, outcomes);
    let mut prices = gpt5_prices();
    prices[0]["model"] = json!("gpt-99");
    world.publish_prices(prices).await;
    wait_until("all are recorded", async || world.open_rejections().await.is_empty().then_some(())).await;
    world.settled().await;
    let totals = world.totals().await;
    assert_eq!((totals.input, totals.output), (3, 1));
    world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_corrections_in_a_batch_the_later_one_stands() {
    let world = World::start().await;
    // The keys of these ids are in the other order.
    let (later, earlier) = ("0198c3a2-0001-7000-8000-000000000001", "0198c3a2-0002-7000-8000-000000000001");
    let events = json!([
        estimate("guess"),
        correction(earlier, "guess", json!({"input": 5, "output": 0})),
        correction(later, "guess", json!({"input": 3, "output": 0})),
    ]);
    world.publish("gw-1", &events).await;
    world.settled().await;
    let totals = world.totals().await;
    assert_eq!((totals.events, totals.input), (1, 3));
    world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_correction_is_judged_by_what_is_recorded_and_not_by_a_refused_copy() {
    let world = World::start().await;
    let mut copy = estimate("measured");
    copy["data"]["usage"] = json!({"input": 1, "output": 1});
    let void = |id: &str| correction(id, "measured", json!({"input": 0, "output": 0}));
    let together = world.publish("gw-1", &json!([usage_event("measured"), copy, void("a")])).await;
    let later = world.publish("gw-1", &json!([copy, void("b")])).await;
    world.settled().await;
    let refused = [Outcome::Rejected("conflict"), Outcome::Rejected("unknown_estimate")];
    assert_eq!(world.outcomes(together, 3).await[1..], refused);
    assert_eq!(world.outcomes(later, 2).await, refused);
    let totals = world.totals().await;
    assert_eq!((totals.events, totals.input), (1, 100));
    world.verified().await;
}

/// Copies are looked for in the 62 days before: an id that comes after them is another event's.
#[tokio::test(flavor = "multi_thread")]
async fn an_id_that_was_an_estimates_long_ago_may_be_one_again() {
    let world = estimates_of_ids_used_again().await;
    assert_eq!(world.totals().await.input, 7 + 100 + 2 * 1000);
    // Of each the new one is corrected, and corrected again.
    for (first, second, of) in [("b", "c", "corrected"), ("d", "e", "final")] {
        world.publish("gw-1", &correction(first, of, json!({"input": 90, "output": 0}))).await;
        world.settled().await;
        world.publish("gw-1", &correction(second, of, json!({"input": 30, "output": 0}))).await;
        world.settled().await;
    }
    assert_eq!(world.open_rejections().await, Vec::<String>::new());
    let totals = world.totals().await;
    assert_eq!((totals.events, totals.input), (4, 7 + 100 + 2 * 30));
    // A proof names the ids, and finds nothing else.
    let proof = verify::rebuild(&world.bed.database, now(), |_| ()).await.unwrap();
    let found: Vec<_> = proof.findings.iter().map(|finding| finding.check).collect();
    assert_eq!(found, [Check::Identities; 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_far_ahead_moves_no_booking_date_and_drops_no_batch() {
    let world = World::idle().await;
    world.publish_prices(gpt5_prices()).await;
    world.publish("gw-1", &usage_event("e-1")).await;
    world.acknowledge_without_recording(1).await;
    world.bed.bound_dates().await;
    let ahead = Clock::fixed(now() + TimeDelta::days(3));
    let recorder = Recorder::new(world.bed.database.clone(), ahead, &world.names.prefix, Shutdown::new());
    let recorder = recorder.await.unwrap();
    let (stream, recording) = (world.stream.clone(), recorder.clone());
    let repaired = tokio::spawn(async move { repair::repair(&stream, limits(), &recording).await.unwrap() });
    wait_until("the recorder says that it is stuck", async || recorder.stuck().then_some(())).await;
    let dates = "SELECT count(*) FROM journal_clock";
    assert_eq!(sqlx::query_scalar::<_, i64>(dates).fetch_one(&world.pool).await.unwrap(), 0);
    // A day ahead may be another midnight, and no date is too old to ask for.
    world.bed.run("SELECT open_booking_date((now() AT TIME ZONE 'UTC')::date + 1)").await;
    world.bed.run("SELECT open_booking_date('2020-01-01')").await;
    assert!(!repaired.is_finished());
    world.bed.unbound_dates().await;
    assert_eq!(repaired.await.unwrap().repaired, 1);
    assert_eq!(world.recorded_events().await, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn estimate_and_correction_may_share_a_message() {
    let world = World::start().await;
    let both = json!([correction("b", "a", json!({"input": 3, "output": 1})), estimate("a")]);
    world.publish("gw-1", &both).await;
    world.settled().await;
    let totals = world.totals().await;
    assert_eq!((totals.events, totals.input, totals.output), (1, 3, 1));
    world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_consumers_and_copies_in_every_message_record_each_event_once() {
    let world = World::start().await;
    // A second consumer on the same durable, with a recorder of its own.
    world.start_consumer();
    for round in 0..60 {
        let copies: Vec<Value> =
            (round..round + 20).map(|number| usage_event(&format!("e-{number}"))).collect();
        world.publish("gw-1", &json!(copies)).await;
    }
    world.settled().await;
    assert_eq!(world.recorded_events().await, 79);
    assert_eq!(world.open_rejections().await, Vec::<String>::new());
    world.verified().await;
}

/// Without statistics of its own a new partition is read whole for each fold, by its primary key.
#[tokio::test(flavor = "multi_thread")]
async fn batches_are_found_by_their_index_before_any_automatic_analysis() {
    let world = World::start().await;
    for message in 0..60 {
        let events: Vec<Value> =
            (0..200).map(|number| usage_event(&format!("e-{message}-{number}"))).collect();
        world.publish("gw-1", &json!(events)).await;
    }
    world.settled().await;
    let plan = "EXPLAIN SELECT count(*) FROM usage_events
                WHERE batch_id BETWEEN (SELECT max(id) FROM ingest_batches) AND (SELECT max(id) FROM ingest_batches)
                  AND booked_on = ANY(ARRAY(SELECT booked_on FROM journal_clock))";
    wait_until("a batch is found by the index of the batches", async || {
        let plan: Vec<String> = sqlx::query_scalar(plan).fetch_all(&world.pool).await.unwrap();
        plan.iter().any(|line| line.contains("_batch_id_idx")).then_some(())
    })
    .await;
}

/// Ids with a time in front, a millisecond apart.
fn timed_events(numbers: Range<u32>) -> Value {
    numbers.map(|number| usage_event(&format!("0198c3a2-{number:04x}-7000-8000-{number:012x}"))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_among_many_events_of_one_time_are_found_be_they_few_or_many() {
    let world = World::start().await;
    world.publish("gw-1", &timed_events(0..100)).await;
    world.settled().await;
    let few = world.publish("gw-1", &timed_events(90..290)).await;
    world.settled().await;
    let outcomes = world.outcomes(few, 200).await;
    assert_eq!(outcomes[..10], [Outcome::Duplicate; 10]);
    assert_eq!(outcomes[10..], [Outcome::Recorded; 190]);
    let all = world.publish("gw-1", &timed_events(0..200)).await;
    world.settled().await;
    assert_eq!(world.outcomes(all, 200).await, [Outcome::Duplicate; 200]);
    assert_eq!(world.recorded_events().await, 290);
    world.verified().await;
}

/// Within a date the journal's own key tells; what was booked on another date has to be looked for.
#[tokio::test(flavor = "multi_thread")]
async fn copies_of_another_date_are_found_among_many_events_of_one_time() {
    let world = World::start().await;
    world.publish("gw-1", &timed_events(0..100)).await;
    world.settled().await;
    world.stop_consumers().await;
    world.start_consumer_at(Clock::fixed(now() + TimeDelta::days(1)));
    // Nothing has come twice to this process yet: it takes all events for new unless it finds them.
    let late = world.publish("gw-1", &timed_events(60..200)).await;
    world.settled().await;
    let outcomes = world.outcomes(late, 140).await;
    assert_eq!(outcomes[..40], [Outcome::Duplicate; 40]);
    assert_eq!(outcomes[40..], [Outcome::Recorded; 100]);
    assert_eq!(world.recorded_events().await, 200);
    world.verified().await;
}

/// Nothing else would tell that a correction uses the id of another event of its date: it is refused, not recorded, so it
/// never meets the journal's key.
#[tokio::test(flavor = "multi_thread")]
async fn a_correction_that_only_a_newer_catalog_accepts_is_looked_up_whole() {
    let world = World::start().await;
    world.publish("gw-1", &timed_events(0..100)).await;
    world.settled().await;
    // The consumer hears of it when it records the batch: until then the correction is too old, and rejected.
    let old = now() - TimeDelta::days(60);
    world.backfill("gw-1", old - TimeDelta::days(1)).await;
    let mut events = timed_events(99..200);
    let no_estimate = events[1]["id"].clone();
    events[0]["time"] = json!(old.to_rfc3339());
    events[0]["data"]["corrects"] = no_estimate;
    let sequence = world.publish("gw-1", &events).await;
    world.settled().await;
    let outcomes = world.outcomes(sequence, 101).await;
    assert_eq!(outcomes[0], Outcome::Rejected("conflict"));
    assert_eq!(outcomes[1..], [Outcome::Recorded; 100]);
    world.verified().await;
}

/// So an event waits for one transaction before its own, however many were fetched before it.
#[tokio::test(flavor = "multi_thread")]
async fn what_comes_while_a_batch_is_recorded_is_recorded_together_after_it() {
    const MESSAGES: usize = 8;
    let world = World::patient().await;
    let consumer = world.stream.consumer(world.limits).await.unwrap();
    let holding = world.recording_held().await;
    let ids: Vec<String> = (0..MESSAGES).map(|number| format!("e-{number:02}")).collect();
    for (id, before) in ids.iter().zip(0..) {
        world.publish("gw-1", &usage_event(id)).await;
        wait_until("the message was fetched", async || {
            let info = consumer.clone().info().await.unwrap().clone();
            (info.num_ack_pending > before).then_some(())
        })
        .await;
    }
    holding.rollback().await.unwrap();
    world.settled().await;
    let batches: i64 =
        sqlx::query_scalar("SELECT count(*) FROM ingest_batches").fetch_one(&world.pool).await.unwrap();
    // The first one, what waited for it, and what was not decided yet.
    assert!((2..=3).contains(&batches), "{batches} batches");
    for id in &ids {
        assert_eq!(world.bytes_with(id.as_bytes()).await, 1, "the evidence of each is kept");
    }
    world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_is_delivered_again_before_it_is_recorded_is_recorded_once() {
    let world = World::start().await;
    let consumer = world.stream.consumer(limits()).await.unwrap();
    let holding = world.recording_held().await;
    world.publish("gw-1", &usage_event("e-1")).await;
    let mut unknown = usage_event("e-2");
    unknown["subject"] = json!("nobody");
    let mut counted = usage_event("e-3");
    (counted["sequence"], counted["epoch"]) = (json!("1"), json!("a"));
    let bad = world.publish("gw-1", &json!([unknown, counted])).await;
    wait_until("both messages were delivered again", async || {
        (consumer.clone().info().await.unwrap().num_redelivered == 2).then_some(())
    })
    .await;
    holding.rollback().await.unwrap();
    world.settled().await;
    assert_eq!(world.outcomes(bad, 2).await, [Outcome::Rejected("unknown_customer"), Outcome::Recorded]);
    assert_eq!((world.recorded_events().await, world.open_rejections().await.len()), (2, 1));
    world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_on_another_booking_date_is_still_a_duplicate() {
    let world = World::start().await;
    world.publish("gw-1", &usage_event("e-1")).await;
    world.settled().await;
    world.stop_consumers().await;
    // The same event comes again a month later, into another partition.
    let later = Clock::fixed(now() + TimeDelta::days(31));
    world.start_consumer_at(later);
    let again = world.publish("gw-1", &usage_event("e-1")).await;
    let new = world.publish("gw-1", &usage_event("e-2")).await;
    world.settled().await;
    assert_eq!(world.outcomes(again, 1).await, [Outcome::Duplicate]);
    assert_eq!(world.outcomes(new, 1).await, [Outcome::Recorded]);
    let partitions: i64 = sqlx::query_scalar("SELECT count(DISTINCT tableoid) FROM usage_events")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    assert_eq!(partitions, 2);
    world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sequences_that_nobody_recorded_are_read_again() {
    let world = World::idle().await;
    world.publish_prices(gpt5_prices()).await;
    // Acknowledged by somebody who never recorded them.
    for number in 0..5 {
        world.publish("gw-1", &usage_event(&format!("e-{number}"))).await;
    }
    world.acknowledge_without_recording(5).await;
    let repaired = repair::repair(&world.stream, limits(), &world.recorder).await.unwrap();
    assert_eq!((repaired.unaccounted, repaired.repaired, repaired.gone), (5, 5, 0));
    world.settled().await;
    assert_eq!(world.recorded_events().await, 5);
    let again = repair::repair(&world.stream, limits(), &world.recorder).await.unwrap();
    assert_eq!(again.unaccounted, 0);
    world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_could_lose_usage_is_refused() {
    use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy};
    use waybill::ingest::{IngestError, stream};
    let world = World::idle().await;
    let names = waybill::ingest::StreamNames {
        stream: format!("{}_WRONG", world.names.stream),
        prefix: format!("wrong.{}", world.names.prefix),
    };
    let wrong = Config {
        name: names.stream.clone(),
        subjects: vec![format!("{}.*", names.prefix)],
        retention: RetentionPolicy::WorkQueue,
        discard: DiscardPolicy::Old,
        max_bytes: 1 << 20,
        allow_rollup: true,
        ..Config::default()
    };
    world.context().create_stream(wrong).await.unwrap();
    let refused = stream::open(world.context(), &names, limits()).await;
    world.context().delete_stream(&names.stream).await.unwrap();
    let Err(IngestError::Drift { drift, .. }) = refused else { panic!("the stream must be refused") };
    for field in ["retention", "discard", "allow_rollup_hdrs", "deny_delete", "deny_purge", "max_msg_size"] {
        assert!(
            drift.iter().any(|sentence| sentence.starts_with(field)),
            "{field} is not named in {drift:?}"
        );
    }
}
