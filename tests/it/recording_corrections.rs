//! Which of several corrections of an estimate stands, and what may correct one.

use chrono::TimeDelta;
use serde_json::{Value, json};
use sqlx::PgConnection;
use uuid::Uuid;
use waybill::clock::Clock;
use waybill::domain::event::SequenceMark;
use waybill::domain::identity::{EventIdentity, EventKey};
use waybill::domain::ids::{BatchId, GatewayId};
use waybill::ingest::replay;
use waybill::reports::verify::{self, Check};
use waybill::store::StoreError;
use waybill::store::journal::{self, Correction, JournalEvent};

use crate::harness::wait_until;
use crate::recording::correction;
use crate::world::{Outcome, World, estimate, gpt5_prices, now, usage_event};

fn input(units: i64) -> Value {
    json!({"input": units, "output": 0})
}

/// Input of all that is recorded, posted or not.
async fn recorded_input(world: &World) -> i64 {
    sqlx::query_scalar("SELECT SUM(input)::bigint FROM usage_events").fetch_one(&world.pool).await.unwrap()
}

/// An event with its place in its gateway's own count.
fn counted(mut event: Value, epoch: &str, number: i64) -> Value {
    (event["epoch"], event["sequence"]) = (json!(epoch), json!(number));
    event
}

async fn superseded(world: &World) {
    wait_until("the earlier correction is refused", async || {
        (world.open_rejections().await == ["superseded"]).then_some(())
    })
    .await;
}

/// It would take the estimate back, and the final usage would find nothing to take back.
#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_task_corrects_nothing() {
    let world = World::start().await;
    world.publish("gw-1", &estimate("guess")).await;
    let mut ended = usage_event("ended");
    ended["type"] = json!("llm.task.v1");
    ended["data"] =
        json!({"task": {"id": "task-1", "type": "test"}, "outcome": "success", "corrects": "guess"});
    let ended = world.publish("gw-1", &ended).await;
    world.publish("gw-1", &correction("final", "guess", input(120))).await;
    world.publish("gw-1", &usage_event("behind")).await;
    world.settled().await;
    assert_eq!(world.outcomes(ended, 1).await, [Outcome::Rejected("ambiguous")]);
    let totals = world.totals().await;
    assert_eq!((totals.events, totals.input), (2, 120 + 100));
    world.verified().await;
}

/// As earlier releases recorded it.
#[tokio::test(flavor = "multi_thread")]
async fn final_usage_is_recorded_where_the_end_of_a_task_has_taken_the_estimate_back() {
    let world = World::start().await;
    world.publish("gw-1", &estimate("guess")).await;
    world.publish("gw-1", &correction("ended", "guess", input(0))).await;
    world.settled().await;
    world
        .bed
        .run(
            "ALTER TABLE usage_events DISABLE TRIGGER USER;
             UPDATE usage_events SET kind = 'outcome', outcome = 'success' WHERE id = 'ended' AND kind = 'usage';
             ALTER TABLE usage_events ENABLE TRIGGER USER;",
        )
        .await;
    for (id, units) in [("final", 120), ("better", 130)] {
        world.publish("gw-1", &correction(id, "guess", input(units))).await;
        world.settled().await;
        assert_eq!(world.totals().await.input, units);
    }
    assert_eq!(world.open_rejections().await, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_correction_that_waited_for_its_estimate_takes_no_later_one_back() {
    let world = World::start().await;
    world.publish("gw-1", &correction("earlier", "guess", input(7))).await;
    world.settled().await;
    assert_eq!(world.open_rejections().await, ["unknown_estimate"]);
    world.publish("gw-1", &json!([estimate("guess"), correction("later", "guess", input(3))])).await;
    superseded(&world).await;
    world.settled().await;
    let totals = world.totals().await;
    assert_eq!((totals.events, totals.input), (1, 3));
    world.publish("gw-1", &correction("last", "guess", input(5))).await;
    world.settled().await;
    assert_eq!(world.totals().await.input, 5);
    world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_correction_that_waited_for_its_price_takes_no_later_one_back() {
    let world = World::start().await;
    world.publish("gw-1", &estimate("guess")).await;
    let mut unpriced = correction("earlier", "guess", input(7));
    unpriced["data"]["model"] = json!("gpt-6");
    world.publish("gw-1", &unpriced).await;
    world.publish("gw-1", &correction("later", "guess", input(3))).await;
    world.settled().await;
    assert_eq!(world.open_rejections().await, ["unpriced"]);
    let mut prices = gpt5_prices();
    prices[0]["model"] = json!("gpt-6");
    world.publish_prices(prices).await;
    superseded(&world).await;
    world.settled().await;
    assert_eq!(world.totals().await.input, 3);
    world.verified().await;
}

/// Two corrections wait for an estimate; what is done to them, and what stands once they are tried again.
async fn waiting(changed: &str) -> i64 {
    let world = World::start().await;
    world.publish("gw-1", &correction("first", "guess", input(7))).await;
    world.settled().await;
    world.publish("gw-1", &correction("second", "guess", input(3))).await;
    world.settled().await;
    world.stop_jobs().await;
    world.bed.run(changed).await;
    world.publish("gw-1", &estimate("guess")).await;
    wait_until("the estimate is recorded", async || (world.recorded_events().await == 1).then_some(())).await;
    world.bed.run("UPDATE rejections SET replay_requested = true").await;
    assert_eq!(replay::replay_once(&world.recorder).await.unwrap(), 2);
    recorded_input(&world).await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_corrections_that_are_tried_again_together_the_later_one_stands() {
    assert_eq!(waiting("").await, 3);
    // As where another consumer was faster with the later one.
    let other_way_round = "UPDATE rejections SET stream_seq = stream_seq + 1000;
                           UPDATE rejections SET stream_seq = 1003 - stream_seq;";
    assert_eq!(waiting(other_way_round).await, 7);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_corrections_of_two_lives_of_the_stream_the_last_one_recorded_stands() {
    let world = World::start().await;
    world.publish("gw-1", &correction("earlier", "guess", input(7))).await;
    world.settled().await;
    world.stop_jobs().await;
    world.publish("gw-1", &json!([estimate("guess"), correction("later", "guess", input(3))])).await;
    wait_until("both are recorded", async || (world.recorded_events().await == 2).then_some(())).await;
    world.bed.run("UPDATE rejections SET incarnation = gen_random_uuid(), replay_requested = true").await;
    assert_eq!(replay::replay_once(&world.recorder).await.unwrap(), 1);
    assert_eq!(recorded_input(&world).await, 7);
}

/// A forwarder publishes many messages at once and tries each again by itself: an earlier one may come later.
#[tokio::test(flavor = "multi_thread")]
async fn the_count_of_the_gateway_decides_over_the_place_in_the_stream() {
    let world = World::start().await;
    world.publish("gw-1", &counted(estimate("guess"), "boot", 1)).await;
    world.publish("gw-1", &counted(correction("later", "guess", input(3)), "boot", 3)).await;
    world.settled().await;
    world.publish("gw-1", &counted(correction("earlier", "guess", input(7)), "boot", 2)).await;
    superseded(&world).await;
    world.settled().await;
    let totals = world.totals().await;
    assert_eq!((totals.events, totals.input), (1, 3));
    // Nor is it put first by one of another count, which comes between them.
    world.publish("gw-1", &counted(correction("other", "guess", input(4)), "other", 1)).await;
    world.settled().await;
    assert_eq!(world.totals().await.input, 4);
    world.bed.run("UPDATE rejections SET replay_requested = true").await;
    world.publish("gw-1", &counted(correction("earlier-too", "guess", input(8)), "boot", 2)).await;
    wait_until("it is refused, too", async || {
        (world.open_rejections().await == ["superseded"; 2]).then_some(())
    })
    .await;
    world.publish("gw-1", &counted(correction("last", "guess", input(5)), "boot", 4)).await;
    world.settled().await;
    assert_eq!(world.totals().await.input, 5);
    world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_later_correction_with_an_earlier_place_stands_once_it_has_its_price() {
    let world = World::start().await;
    world.publish("gw-1", &counted(estimate("guess"), "boot", 1)).await;
    let mut unpriced = counted(correction("later", "guess", input(3)), "boot", 3);
    unpriced["data"]["model"] = json!("gpt-6");
    world.publish("gw-1", &unpriced).await;
    world.publish("gw-1", &counted(correction("earlier", "guess", input(7)), "boot", 2)).await;
    world.settled().await;
    assert_eq!(world.totals().await.input, 7);
    let mut prices = gpt5_prices();
    prices[0]["model"] = json!("gpt-6");
    world.publish_prices(prices).await;
    wait_until("it stands", async || (recorded_input(&world).await == 3).then_some(())).await;
    world.settled().await;
    assert_eq!(world.open_rejections().await, Vec::<String>::new());
    world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_corrections_in_a_batch_the_last_one_of_the_gateways_count_stands() {
    let earlier = counted(correction("earlier", "guess", input(7)), "boot", 2);
    let later = counted(correction("later", "guess", input(3)), "boot", 4);
    let other = counted(correction("other", "guess", input(5)), "other", 9);
    let guess = estimate("guess");
    for (messages, stands) in [
        (vec![json!([guess, later, earlier])], 3),
        (vec![json!([guess]), json!([later, earlier])], 3),
        // It comes after what it stands behind in the stream, and before what comes later in the count than itself.
        (vec![json!([guess]), json!([later, other, earlier])], 5),
    ] {
        let world = World::start().await;
        for message in &messages {
            world.publish("gw-1", message).await;
            world.settled().await;
        }
        assert_eq!(world.totals().await.input, stands, "{messages:?}");
        assert_eq!(world.open_rejections().await, Vec::<String>::new(), "{messages:?}");
        world.verified().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn corrections_of_two_counts_or_of_one_without_are_ordered_by_their_places() {
    let world = World::start().await;
    world.publish("gw-1", &counted(estimate("guess"), "boot", 1)).await;
    for (id, epoch, number, units) in [("a", "boot", 9, 3), ("b", "other", 2, 7), ("c", "boot", 10, 4)] {
        world.publish("gw-1", &counted(correction(id, "guess", input(units)), epoch, number)).await;
        world.settled().await;
        assert_eq!(world.totals().await.input, units);
    }
    world.publish("gw-1", &correction("d", "guess", input(6))).await;
    world.settled().await;
    assert_eq!(world.totals().await.input, 6);
    world.verified().await;
}

/// A world whose consumer books 70 days ago.
async fn recording_long_ago() -> World {
    let world = World::idle().await;
    world.publish_prices(gpt5_prices()).await;
    world.start_consumer_at(Clock::fixed(now() - TimeDelta::days(70)));
    world
}

/// The event as of so many days ago.
fn ago(days: i64, mut event: Value) -> Value {
    event["time"] = json!(now() - TimeDelta::days(days));
    event
}

/// It cannot have named what happened after it was sent.
#[tokio::test(flavor = "multi_thread")]
async fn a_correction_that_has_waited_takes_back_no_estimate_that_uses_the_id_again() {
    let world = recording_long_ago().await;
    world.publish("gw-1", &ago(30, estimate("guess"))).await;
    world.settled().await;
    let mut unpriced = ago(29, correction("unpriced", "guess", input(7)));
    unpriced["data"]["model"] = json!("gpt-6");
    // The estimate of the other one never came.
    world.publish("gw-1", &json!([unpriced, ago(29, correction("early", "lost", input(9)))])).await;
    world.settled().await;
    assert_eq!(world.open_rejections().await, ["unpriced", "unknown_estimate"]);
    world.bed.run("UPDATE rejections SET received_at = received_at - interval '29 days'").await;
    world.stop_consumers().await;
    world.start_consumer();
    for id in ["guess", "lost"] {
        let mut again = estimate(id);
        again["data"]["usage"] = input(1000);
        world.publish("gw-1", &again).await;
    }
    world.settled().await;
    let mut prices = gpt5_prices();
    prices[0]["model"] = json!("gpt-6");
    world.publish_prices(prices).await;
    let open = "SELECT reason || ' ' || attempts FROM rejections WHERE resolved_at IS NULL ORDER BY id";
    wait_until("both are tried", async || {
        let open: Vec<String> = sqlx::query_scalar(open).fetch_all(&world.pool).await.unwrap();
        (open == ["unknown_estimate 2"; 2]).then_some(())
    })
    .await;
    assert_eq!(recorded_input(&world).await, 100 + 2 * 1000);
    // The estimates may be corrected.
    for id in ["guess", "lost"] {
        world.publish("gw-1", &correction(&format!("final-{id}"), id, input(5))).await;
    }
    world.settled().await;
    assert_eq!(world.totals().await.input, 100 + 2 * 5);
    let proof = verify::rebuild(&world.bed.database, now(), |_| ()).await.unwrap();
    let found: Vec<_> = proof.findings.iter().map(|finding| finding.check).collect();
    assert_eq!(found, [Check::Identities]);
}

/// The correction of a guess was lost, and comes when the gateway sends its old traffic again: its id is another guess's then.
#[tokio::test(flavor = "multi_thread")]
async fn a_correction_of_a_backfill_takes_back_no_estimate_that_uses_the_id_again() {
    let world = recording_long_ago().await;
    world.publish("gw-1", &ago(34, estimate("guess"))).await;
    world.settled().await;
    world.stop_consumers().await;
    world.start_consumer();
    world.publish("gw-1", &estimate("guess")).await;
    world.settled().await;
    assert_eq!(world.recorded_events().await, 2);
    world.backfill("gw-1", now() - TimeDelta::days(80)).await;
    world.publish("gw-1", &ago(69, correction("final", "guess", input(7)))).await;
    world.settled().await;
    assert_eq!(world.open_rejections().await, ["unknown_estimate"]);
    assert_eq!(recorded_input(&world).await, 2 * 100);
}

/// A correction as [`journal::correct`] takes it, recorded by a batch: a copy of the one that there is, at another place.
async fn recorded(
    connection: &mut PgConnection,
    world: &World,
    batch: BatchId,
    (id, stream_seq): (&str, i64),
) -> JournalEvent {
    let identity = EventIdentity { source: "gw-1".into(), id: id.into() };
    let key = identity.key();
    sqlx::query(
        "INSERT INTO usage_events SELECT (jsonb_populate_record(u, jsonb_build_object(
             'event_key', $1, 'id', $2, 'stream_seq', $3, 'batch_id', $4))).*
         FROM usage_events u WHERE id = 'z' AND kind = 'usage'",
    )
    .bind(key.0)
    .bind(id)
    .bind(stream_seq)
    .bind(batch.0)
    .execute(&mut *connection)
    .await
    .unwrap();
    let gateway: i32 = sqlx::query_scalar("SELECT gateway_id FROM usage_events WHERE id = 'z' LIMIT 1")
        .fetch_one(connection)
        .await
        .unwrap();
    JournalEvent {
        identity,
        key,
        content_hash: Uuid::nil(),
        stream_seq,
        event_index: 0,
        customer: world.customer("acme").await,
        gateway: GatewayId(gateway),
        occurred_at: now(),
        corrects: None,
        task: None,
        outcome: None,
        project: None,
        attributes: None,
        status: None,
        estimated: false,
        latency_ms: None,
        parts: Vec::new(),
    }
}

/// Another writer was faster with one that is later than the second of them only.
#[tokio::test(flavor = "multi_thread")]
async fn no_correction_of_a_batch_takes_back_a_later_one_that_was_recorded_meanwhile() {
    let world = World::start().await;
    world.publish("gw-1", &counted(estimate("guess"), "boot", 1)).await;
    let z = world.publish("gw-1", &counted(correction("z", "guess", input(3)), "boot", 3)).await;
    world.settled().await;
    let life: Uuid = sqlx::query_scalar("SELECT incarnation FROM ingest_batches ORDER BY id LIMIT 1")
        .fetch_one(&world.pool)
        .await
        .unwrap();
    let original = EventIdentity { source: "gw-1".into(), id: "guess".into() }.key();
    let (other_life, estimate_by) = (Uuid::from_u128(7), now());
    let mark = |epoch: &str, number| Some(SequenceMark { epoch: epoch.into(), number });
    for (first, second, may_stand) in [
        ((other_life, 1, None), (life, z - 1, None), false),
        ((life, z + 1, mark("other", 9)), (life, z + 2, mark("boot", 2)), false),
        // Those of its own batch are none that it is compared with.
        ((life, z + 2, mark("boot", 5)), (life, z + 1, mark("boot", 4)), true),
    ] {
        let mut tx = world.pool.begin().await.unwrap();
        let batch = sqlx::query_scalar(
            "INSERT INTO ingest_batches (origin, messages, events, recorded, duplicates, rejected, rows, booked_on)
             SELECT 'replay', 0, 2, 2, 0, 0, 2, booked_on FROM journal_clock RETURNING id",
        )
        .fetch_one(&mut *tx)
        .await
        .map(BatchId)
        .unwrap();
        let x = recorded(&mut tx, &world, batch, ("x", first.1)).await;
        let y = recorded(&mut tx, &world, batch, ("y", second.1)).await;
        let corrections = [
            Correction { original, life: Some(first.0), mark: first.2.as_ref(), event: &x, estimate_by },
            Correction { original, life: Some(second.0), mark: second.2.as_ref(), event: &y, estimate_by },
        ];
        let corrected = journal::correct(&mut tx, batch, &corrections).await;
        match corrected {
            Ok(()) => assert!(may_stand, "{second:?} stands"),
            Err(StoreError::StandsOtherwise(EventKey(key))) => assert!(key == original.0 && !may_stand),
            Err(error) => panic!("{error}"),
        }
        tx.rollback().await.unwrap();
    }
}
