//! Rejections that are tried again, and what they are tried again with.

use chrono::TimeDelta;
use serde_json::json;
use sqlx::PgPool;
use waybill::clock::Clock;
use waybill::ingest::Recorder;
use waybill::ingest::replay::replay_once;
use waybill::shutdown::Shutdown;
use waybill::store::rejections::{Done, RejectionFilter, discard_many, request_replays};
use waybill::store::{catalog, commit, replay};

use crate::harness::{TestBed, wait_until};
use crate::recording_bounds::blown_up;
use crate::world::{Outcome, World, gpt5_prices, now, usage_event};

/// What is under way was judged by the window; that it is waived in the meantime must not count as answered by it.
#[tokio::test(flavor = "multi_thread")]
async fn a_window_that_is_waived_while_a_rejection_is_tried_again_is_waived() {
    let world = World::start().await;
    let mut late = usage_event("late");
    late["time"] = json!(now() - TimeDelta::days(60));
    world.publish("gw-1", &late).await;
    world.settled().await;
    assert_eq!(world.open_rejections().await, ["too_old"]);

    let held = world.recording_held().await;
    world.bed.run("UPDATE rejections SET replay_requested = true").await;
    wait_until("it is tried again", async || world.recorder.oldest_attempt().map(drop)).await;
    world.bed.run("UPDATE rejections SET replay_requested = true, window_waived = true").await;
    held.rollback().await.unwrap();
    wait_until("it is recorded", async || (world.recorded_events().await == 1).then_some(())).await;
    assert!(world.open_rejections().await.is_empty());
    world.verified().await;
}

/// A restore brings an older version back, and what was published after it is lost; whoever still holds the catalog of then
/// must see that the next one is another.
#[tokio::test]
async fn no_version_of_the_catalog_is_counted_twice() {
    let world = World::idle().await;
    let mut counted = Vec::new();
    for _ in 0..2 {
        world.bed.run("UPDATE catalog_version SET version = 5").await;
        let mut tx = world.bed.database.begin().await.unwrap();
        counted.push(catalog::bump(&mut tx).await.unwrap());
        commit(tx).await.unwrap();
    }
    assert!(counted[0] > 5 && counted[1] > counted[0], "{counted:?}");
    // Where the clock is behind what was counted it goes on by one.
    world.bed.run("UPDATE catalog_version SET version = 9007199254740990").await;
    let mut tx = world.bed.database.begin().await.unwrap();
    assert_eq!(catalog::bump(&mut tx).await.unwrap(), 9_007_199_254_740_991);
}

/// A database with 20,000 open rejections of three reasons in turn, tried with the newest catalog: `conflict` where the
/// sequence leaves 2 when divided by 3, `unpriced` where it leaves 0.
async fn with_open_rejections() -> (TestBed, PgPool) {
    let bed = TestBed::new().await;
    bed.run(
        "UPDATE catalog_version SET version = 7;
         INSERT INTO ingest_batches (origin, incarnation, messages, events, recorded, duplicates, rejected, rows, booked_on)
         VALUES ('stream', gen_random_uuid(), 1, 20000, 0, 0, 20000, 0, '2026-11-20');
         INSERT INTO rejections (batch_id, incarnation, stream_seq, event_index, subject, raw, reason, detail, gateway,
             catalog_version, rejected_at)
         SELECT b.id, b.incarnation, n, 0, 'usage.v1.gw-1', '{}',
             (ARRAY['unpriced', 'unknown_customer', 'conflict'])[1 + n % 3], 'why', 'gw-1', 7,
             timestamptz '2026-11-20Z' + n * interval '1 second'
         FROM ingest_batches b, generate_series(1, 20000) n",
    )
    .await;
    let pool = PgPool::connect(&bed.database_url).await.unwrap();
    (bed, pool)
}

/// The sequences of what is due, and how many rows of rejections were read for them.
async fn due(pool: &PgPool, limit: i64) -> (Vec<i64>, i64) {
    let reasons = ["unknown_gateway", "unknown_customer", "suspended_customer", "unpriced"];
    let mut tx = pool.begin().await.unwrap();
    let due =
        replay::due(&mut tx, &reasons.map(str::to_owned), &["nothing_used".to_owned()], limit).await.unwrap();
    let read = sqlx::query_scalar(
        "SELECT (seq_tup_read + idx_tup_fetch)::bigint FROM pg_stat_xact_user_tables WHERE relname = 'rejections'",
    )
    .fetch_one(&mut *tx)
    .await
    .unwrap();
    let due = replay::read(&mut tx, &due, i64::MAX).await.unwrap();
    (due.into_iter().map(|rejection| rejection.stream_seq).collect(), read)
}

/// Millions may wait for one price, and are looked at every second.
#[tokio::test]
async fn open_rejections_that_are_not_due_are_not_read() {
    let (bed, pool) = with_open_rejections().await;
    for statistics in ["", "ANALYZE rejections"] {
        bed.run(statistics).await;
        let (found, read) = due(&pool, 500).await;
        assert!(found.is_empty() && read <= 1, "{statistics}: {read} rows were read for {found:?}");
    }
    // Asked for, behind the catalog, or both; a conflict is none that a newer catalog does away with.
    bed.run(
        "UPDATE rejections SET catalog_version = 6 WHERE stream_seq IN (3, 5);
         UPDATE rejections SET catalog_version = 5 WHERE stream_seq = 6;
         UPDATE rejections SET replay_requested = true WHERE stream_seq IN (3, 7, 8)",
    )
    .await;
    assert_eq!(due(&pool, 500).await.0, [3, 6, 7, 8]);
    assert_eq!(due(&pool, 1).await.0, [3, 6], "the oldest one that was asked for, and the longest behind");
}

/// A day of junk leaves a million of them, all before what is new.
#[tokio::test]
async fn calls_that_used_nothing_hold_up_no_usage() {
    let (bed, pool) = with_open_rejections().await;
    bed.run(
        "UPDATE rejections SET reason = 'nothing_used', catalog_version = 6 WHERE stream_seq <= 2000;
         UPDATE rejections SET catalog_version = 6 WHERE stream_seq = 19998;",
    )
    .await;
    bed.run("VACUUM ANALYZE rejections").await;
    let (found, read) = due(&pool, 500).await;
    assert_eq!((found.len(), found.last()), (500, Some(&19998)));
    assert!(read <= 2_000, "{read} rows were read");
}

/// A few hundred bytes each in the stream, megabytes each where they are kept: read all at once, they would be gigabytes.
#[tokio::test(flavor = "multi_thread")]
async fn large_rejections_are_read_a_few_at_a_time() {
    const EVENTS: usize = 20;
    const TOGETHER_MAX: i64 = 32 << 20;
    let world = World::start().await;
    for number in 0..EVENTS {
        let mut event = usage_event(&format!("e-{number}"));
        event["subject"] = json!("newcomer");
        let (headers, body) = blown_up(&event);
        world.publish_raw("gw-1", headers, body).await;
    }
    world.settled().await;
    assert_eq!(world.open_rejections().await, ["unknown_customer"; EVENTS]);
    world.stop_jobs().await;
    world.bed.run("UPDATE rejections SET replay_requested = true; UPDATE customers SET external_id = 'newcomer' WHERE external_id = 'globex'").await;
    let mut tx = world.bed.database.begin_ingest().await.unwrap();
    let due = replay::due(&mut tx, &[], &[], 500).await.unwrap();
    assert_eq!(due.len(), EVENTS);
    let read = replay::read(&mut tx, &due, TOGETHER_MAX).await.unwrap();
    let bytes: usize = read.iter().map(|rejection| rejection.raw.len()).sum();
    assert!((24 << 20..=32 << 20).contains(&bytes), "{bytes} bytes are read together");
    let ids: Vec<_> = read.iter().map(|rejection| rejection.id).collect();
    assert_eq!(due[..ids.len()], ids, "the first ones");
    assert_eq!(replay::read(&mut tx, &due, 1).await.unwrap().len(), 1, "however large it is");
    commit(tx).await.unwrap();

    let mut tx = world.bed.database.begin().await.unwrap();
    catalog::bump(&mut tx).await.unwrap();
    commit(tx).await.unwrap();
    assert_eq!(replay_once(&world.recorder).await.unwrap(), 20);
    assert_eq!(world.recorded_events().await, 20);
    assert_eq!(world.open_rejections().await, Vec::<String>::new());
}

#[tokio::test]
async fn many_rejections_are_replayed_and_discarded_in_steps() {
    let (_bed, pool) = with_open_rejections().await;
    let mut tx = pool.begin().await.unwrap();
    let filter = RejectionFilter {
        reason: Some("unpriced"),
        from: Some("2026-11-20T00:00:30Z".parse().unwrap()),
        to: Some("2026-11-20T00:01:00Z".parse().unwrap()),
        ..RejectionFilter::default()
    };
    // Ten: from 30 to 57 seconds.
    for (waive, expected) in
        [(false, (4, 5)), (false, (4, 2)), (false, (2, 0)), (false, (0, 0)), (true, (4, 5)), (true, (4, 2))]
    {
        let Done { done, left } = request_replays(&mut tx, filter, waive, (4, 5)).await.unwrap();
        assert_eq!((done, left), expected, "{waive}");
    }
    for expected in [(7, 3), (3, 0), (0, 0)] {
        let Done { done, left } = discard_many(&mut tx, filter, "a test", (7, 100)).await.unwrap();
        assert_eq!((done, left), expected);
    }
    let others = "SELECT count(*) FROM rejections WHERE resolution = 'discarded'
                  AND NOT (reason = 'unpriced' AND stream_seq BETWEEN 30 AND 57)";
    assert_eq!(sqlx::query_scalar::<_, i64>(others).fetch_one(&mut *tx).await.unwrap(), 0);
}

/// Waiting makes no event too old: not for a price, and not in the stream.
#[tokio::test(flavor = "multi_thread")]
async fn the_window_is_measured_from_when_the_stream_took_an_event() {
    let world = World::idle().await;
    world.start_consumer();
    for id in ["kept", "of an earlier release"] {
        let mut event = usage_event(&id.replace(' ', "-"));
        event["time"] = json!(now() - TimeDelta::days(30));
        world.publish("gw-1", &event).await;
        world.settled().await;
    }
    assert_eq!(world.open_rejections().await, ["unpriced"; 2]);
    let kept = "SELECT count(*) FROM rejections
                WHERE received_at <= rejected_at AND event_time BETWEEN received_at - interval '31 days' AND received_at - interval '29 days'";
    assert_eq!(sqlx::query_scalar::<_, i64>(kept).fetch_one(&world.pool).await.unwrap(), 2);
    // As if the stream had been read ten days later, and by a release that did not keep when it took the message.
    world
        .bed
        .run(
            "UPDATE rejections SET rejected_at = rejected_at + interval '10 days';
             UPDATE rejections SET received_at = NULL WHERE event_id LIKE 'of%'",
        )
        .await;
    world.publish_prices(gpt5_prices()).await;
    wait_until("both are recorded", async || (world.recorded_events().await == 2).then_some(())).await;
    world.verified().await;
}

/// A recorder of another time.
async fn recorder_in(world: &World, days: i64) -> Recorder {
    let clock = Clock::fixed(now() + TimeDelta::days(days));
    Recorder::new(world.bed.database.clone(), clock, &world.names.prefix, Shutdown::new()).await.unwrap()
}

/// It is ahead of the time at which it is tried, and as old as when it came.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_lay_ahead_waits_for_its_price_as_any_other() {
    let world = World::idle().await;
    world.start_consumer();
    let mut ahead = usage_event("ahead");
    ahead["time"] = json!(now() + TimeDelta::hours(1));
    world.publish("gw-1", &ahead).await;
    world.settled().await;
    assert_eq!(world.open_rejections().await, ["future"]);
    world.stop_jobs().await;
    let ask = "UPDATE rejections SET replay_requested = true, window_waived = true";
    world.bed.run(ask).await;
    assert_eq!(replay_once(&world.recorder).await.unwrap(), 0);
    assert_eq!(world.open_rejections().await, ["future"], "what is still to come is waived by nobody");
    world.bed.run("UPDATE rejections SET replay_requested = true, window_waived = false").await;
    let later = recorder_in(&world, 40).await;
    assert_eq!(replay_once(&later).await.unwrap(), 0);
    assert_eq!(world.open_rejections().await, ["unpriced"]);
    world.publish_prices(gpt5_prices()).await;
    assert_eq!(replay_once(&later).await.unwrap(), 1);
    assert_eq!(world.recorded_events().await, 1);
}

/// An event of 70 days ago, as its id is used again.
async fn recorded_long_ago() -> World {
    let world = World::idle().await;
    world.publish_prices(gpt5_prices()).await;
    world.start_consumer_at(Clock::fixed(now() - TimeDelta::days(70)));
    world.publish("gw-1", &usage_event("x")).await;
    world.settled().await;
    world.stop_consumers().await;
    world.start_consumer();
    world
}

/// Copies are told in the 62 days before an event came, also of one that waits.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_whose_id_is_used_again_may_wait_for_its_price() {
    let world = recorded_long_ago().await;
    let mut again = usage_event("x");
    again["data"]["model"] = json!("gpt-6");
    world.publish("gw-1", &again).await;
    world.settled().await;
    assert_eq!(world.open_rejections().await, ["unpriced"]);
    let mut prices = gpt5_prices();
    prices[0]["model"] = json!("gpt-6");
    world.publish_prices(prices).await;
    wait_until("it is tried", async || (world.open_rejections().await != ["unpriced"]).then_some(())).await;
    assert_eq!(world.open_rejections().await, Vec::<String>::new());
    assert_eq!(world.recorded_events().await, 2);
}

/// Looked for among all that was ever recorded, an id may be that of two events.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_of_either_of_two_events_of_one_id_is_told() {
    let world = recorded_long_ago().await;
    let mut again = usage_event("x");
    again["data"]["usage"]["input"] = json!(1000);
    let new = world.publish("gw-1", &again).await;
    world.settled().await;
    assert_eq!(world.outcomes(new, 1).await, [Outcome::Recorded]);
    world.backfill("gw-1", now() - TimeDelta::days(100)).await;
    let mut third = usage_event("x");
    third["data"]["usage"]["input"] = json!(2000);
    let copies = world.publish("gw-1", &json!([usage_event("x"), again, third])).await;
    world.settled().await;
    let outcomes = [Outcome::Duplicate, Outcome::Duplicate, Outcome::Rejected("conflict")];
    assert_eq!(world.outcomes(copies, 3).await, outcomes);
    // As they are where their customer is suspended.
    world.suspend("acme").await;
    let refused = world.publish("gw-1", &json!([usage_event("x"), again])).await;
    world.settled().await;
    assert_eq!(world.outcomes(refused, 2).await, [Outcome::Duplicate; 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_sent_again_and_recorded_is_not_recorded_once_more_however_late_it_is_tried() {
    let world = World::idle().await;
    world.start_consumer();
    world.publish("gw-1", &usage_event("x")).await;
    world.settled().await;
    assert_eq!(world.open_rejections().await, ["unpriced"]);
    world.stop_jobs().await;
    world.publish_prices(gpt5_prices()).await;
    world.publish("gw-1", &usage_event("x")).await;
    wait_until("the copy is recorded", async || (world.recorded_events().await == 1).then_some(())).await;
    let later = recorder_in(&world, 100).await;
    assert_eq!(replay_once(&later).await.unwrap(), 1);
    let resolution: String =
        sqlx::query_scalar("SELECT resolution FROM rejections").fetch_one(&world.pool).await.unwrap();
    assert_eq!((resolution.as_str(), world.recorded_events().await), ("duplicate", 1));
}
