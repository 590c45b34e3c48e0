//! What a forwarder publishes again, keeps and believes, by what the ledger says, or where nobody says anything.

use std::collections::BTreeSet;

use crate::forward_bed::{Forwarder, ids, recorded, recorded_exactly, segments, setting, watermark};
use crate::harness::{get, wait_until};
use crate::world::{World, gpt5_prices};

/// Waits until so many events are not settled, and the stream has every one of them.
async fn waits_for_the_ledger(forwarder: &Forwarder, events: u64) {
    wait_until("what is not settled is published", async || {
        let text = get(forwarder.metrics, "/metrics").await?;
        let shows = |line: &str| text.lines().any(|shown| shown == line);
        (shows(&format!("waybill_forward_unsettled_events {events}"))
            && shows("waybill_forward_unpublished_events 0"))
        .then_some(())
    })
    .await;
}

/// Once the stream has so many events, somebody acknowledges all of it and does not record it.
async fn lost_once_published(world: &World, forwarder: &Forwarder, events: f64) {
    wait_until("the stream has them", async || {
        (forwarder.metric("waybill_forward_published_events_total").await >= events).then_some(())
    })
    .await;
    let messages = usize::try_from(world.stream_length().await).unwrap();
    world.acknowledge_without_recording(messages).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_stream_has_lost_is_published_again() {
    let world = World::idle().await;
    world.publish_prices(gpt5_prices()).await;
    let mut setting = setting(&world, world.bed.nats_url.clone()).await;
    setting.more = vec![("WAYBILL_FORWARD_RESEND_SECONDS", "1".to_owned())];
    let forwarder = setting.start().await;
    let (lost, kept) = (ids("lost", 30), ids("kept", 5));
    forwarder.post(&lost).await;
    lost_once_published(&world, &forwarder, 30.0).await;
    world.start_consumer();
    forwarder.post(&kept).await;
    forwarder.settled().await;
    let all: BTreeSet<String> = lost.into_iter().chain(kept).collect();
    recorded_exactly(&world, &all).await;
    assert!(forwarder.metric("waybill_forward_republished_events_total").await >= 30.0);
    assert_eq!(watermark(&setting).await, [(35, 35)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn neighbours_of_two_segments_are_published_again() {
    let world = World::idle().await;
    world.publish_prices(gpt5_prices()).await;
    let mut setting = setting(&world, world.bed.nats_url.clone()).await;
    // Segments are an eighth of the bound.
    let bound = 2 << 20;
    setting.more = vec![
        ("WAYBILL_FORWARD_RESEND_SECONDS", "1".to_owned()),
        ("WAYBILL_FORWARD_JOURNAL_MAX_BYTES", bound.to_string()),
    ];
    let forwarder = setting.start().await;
    let (lost, kept) = (ids("lost", 1_500), ids("kept", 5));
    for few in lost.chunks(7) {
        forwarder.post(few).await;
    }
    lost_once_published(&world, &forwarder, 1_500.0).await;
    assert!(forwarder.metric("waybill_forward_journal_bytes").await > f64::from(bound / 8), "two segments");
    world.start_consumer();
    forwarder.post(&kept).await;
    forwarder.settled().await;
    let all: BTreeSet<String> = lost.into_iter().chain(kept).collect();
    recorded_exactly(&world, &all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_published_again_while_nobody_says_that_it_is_missing() {
    let world = World::idle().await;
    let mut setting = setting(&world, world.bed.nats_url.clone()).await;
    setting.more = vec![("WAYBILL_FORWARD_RESEND_SECONDS", "1".to_owned())];
    setting.api.stop().await;
    let forwarder = setting.start().await;
    forwarder.post(&ids("kept", 50)).await;
    // What lies above everything settled is published again after fifteen times the wait.
    wait_until("they are old enough", async || {
        (forwarder.metric("waybill_forward_oldest_unsettled_seconds").await > 17.0).then_some(())
    })
    .await;
    let published = forwarder.metric("waybill_forward_published_events_total").await;
    assert_eq!((published.to_string(), world.stream_length().await), ("50".to_owned(), 1));
    // Nor is it by a start.
    setting.noted_published(50).await;
    forwarder.kill();
    let forwarder = setting.start().await;
    waits_for_the_ledger(&forwarder, 50).await;
    assert!(forwarder.metric("waybill_forward_oldest_unsettled_seconds").await > 17.0);
    forwarder.post(&ids("new", 1)).await;
    waits_for_the_ledger(&forwarder, 51).await;
    let published = forwarder.metric("waybill_forward_published_events_total").await;
    assert_eq!((published.to_string(), world.stream_length().await), ("1".to_owned(), 2));
    // A stop notes it at once.
    assert!(forwarder.terminated().await.success());
    let forwarder = setting.start().await;
    waits_for_the_ledger(&forwarder, 51).await;
    assert_eq!(world.stream_length().await, 2);
    // The note only spares work.
    forwarder.kill();
    std::fs::remove_file(setting.journal().join("published.json")).unwrap();
    let forwarder = setting.start().await;
    waits_for_the_ledger(&forwarder, 51).await;
    assert_eq!(world.stream_length().await, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_stream_had_before_a_start_is_published_again_once_the_ledger_lacks_it() {
    let world = World::idle().await;
    world.publish_prices(gpt5_prices()).await;
    let mut setting = setting(&world, world.bed.nats_url.clone()).await;
    setting.more = vec![("WAYBILL_FORWARD_RESEND_SECONDS", "1".to_owned())];
    let forwarder = setting.start().await;
    let (lost, kept) = (ids("lost", 30), ids("kept", 5));
    forwarder.post(&lost).await;
    lost_once_published(&world, &forwarder, 30.0).await;
    setting.noted_published(30).await;
    forwarder.kill();
    let forwarder = setting.start().await;
    waits_for_the_ledger(&forwarder, 30).await;
    assert_eq!(world.stream_length().await, 1);
    world.start_consumer();
    forwarder.post(&kept).await;
    forwarder.settled().await;
    let all: BTreeSet<String> = lost.into_iter().chain(kept).collect();
    recorded_exactly(&world, &all).await;
    assert!(forwarder.metric("waybill_forward_republished_events_total").await >= 30.0);
    assert_eq!(watermark(&setting).await, [(35, 35)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_while_nobody_answers_does_not_publish_again_what_is_settled() {
    let world = World::start().await;
    let mut setting = setting(&world, world.bed.nats_url.clone()).await;
    let forwarder = setting.start().await;
    let mut all: BTreeSet<String> = ids("settled", 30).into_iter().collect();
    forwarder.post(&ids("settled", 30)).await;
    forwarder.settled().await;
    setting.noted(30).await;
    forwarder.kill();
    setting.api.stop().await;
    let forwarder = setting.start().await;
    // One after the other: the stream has what was settled, had it been published, before the second.
    for name in ["new", "newer"] {
        let published = forwarder.metric("waybill_forward_published_events_total").await;
        forwarder.post(&ids(name, 1)).await;
        all.extend(ids(name, 1));
        wait_until("it is recorded", async || (recorded(&world).await == all).then_some(())).await;
        wait_until("that is counted", async || {
            (forwarder.metric("waybill_forward_published_events_total").await > published).then_some(())
        })
        .await;
    }
    assert_eq!(forwarder.metric("waybill_forward_published_events_total").await.to_string(), "2");
    setting.api.start().await;
    forwarder.settled().await;
    assert_eq!(watermark(&setting).await, [(32, 32)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_copy_of_a_journal_is_recognised_and_believes_nothing() {
    let world = World::start().await;
    let setting = setting(&world, world.bed.nats_url.clone()).await;
    let copy = setting.folder.join("copy");
    let mut all = BTreeSet::new();
    for (name, through) in [("early", 5), ("later", 10)] {
        let forwarder = setting.start().await;
        let ids = ids(name, 5);
        forwarder.post(&ids).await;
        forwarder.settled().await;
        setting.noted(through).await;
        all.extend(ids);
        forwarder.kill();
        if name == "early" {
            std::fs::create_dir(&copy).unwrap();
            for entry in std::fs::read_dir(setting.journal()).unwrap() {
                let path = entry.unwrap().path();
                std::fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
            }
        }
    }
    std::fs::remove_dir_all(setting.journal()).unwrap();
    std::fs::rename(&copy, setting.journal()).unwrap();
    let forwarder = setting.start().await;
    wait_until("it is recognised", async || {
        get(forwarder.metrics, "/readyz").await.filter(|answer| answer.contains("this is an older copy"))
    })
    .await;
    // The numbers 6 to 10 are settled, for other events: these are forwarded all the same, and kept.
    let again = ids("again", 5);
    forwarder.post(&again).await;
    all.extend(again);
    wait_until("they are recorded", async || (recorded(&world).await.len() == all.len()).then_some(())).await;
    recorded_exactly(&world, &all).await;
    assert_eq!(forwarder.metric("waybill_forward_settled_sequence").await.to_string(), "0");
    // What `/readyz` says to wait for before it is stopped; of what the ledger lacks nobody can tell any more.
    waits_for_the_ledger(&forwarder, 5).await;
    let said = get(forwarder.metrics, "/readyz").await.unwrap();
    assert!(said.contains("waybill_forward_unpublished_events"), "{said}");
    // By now the journal's own count has reached the ledger's: the next run knows it all the same.
    forwarder.kill();
    let forwarder = setting.start().await;
    wait_until("it is still known", async || {
        get(forwarder.metrics, "/readyz").await.filter(|answer| answer.contains("this is an older copy"))
    })
    .await;
    assert_eq!(forwarder.metric("waybill_forward_settled_sequence").await.to_string(), "0");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_restored_ledger_has_forgotten_is_published_again() {
    let world = World::start().await;
    let setting = setting(&world, world.bed.nats_url.clone()).await;
    let forwarder = setting.start().await;
    let all = ids("e", 10);
    for body in all.chunks(5) {
        forwarder.post(body).await;
        forwarder.settled().await;
    }
    let published = forwarder.metric("waybill_forward_published_events_total").await;
    sqlx::query("UPDATE gateway_sequences SET seen = '{[1,6)}'").execute(&world.pool).await.unwrap();
    wait_until("they are published again, and settled", async || {
        let again = forwarder.metric("waybill_forward_published_events_total").await - published;
        (again >= 5.0 && watermark(&setting).await == [(10, 10)]).then_some(())
    })
    .await;
    forwarder.settled().await;
    recorded_exactly(&world, &all.into_iter().collect()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settled_segments_are_kept_for_a_ledger_that_is_restored() {
    let world = World::start().await;
    let mut setting = setting(&world, world.bed.nats_url.clone()).await;
    setting.more = vec![("WAYBILL_FORWARD_JOURNAL_MAX_BYTES", (2 << 20).to_string())];
    let forwarder = setting.start().await;
    let all = ids("e", 3_000);
    for body in all.chunks(100) {
        forwarder.post(body).await;
    }
    forwarder.settled().await;
    let kept = segments(&setting.journal());
    assert!(kept > 2, "an eighth of the bound each: {kept}");
    // The forwarder does not run when it happens, and is told only when it runs again.
    forwarder.kill();
    sqlx::query("UPDATE gateway_sequences SET seen = '{[1,2)}'").execute(&world.pool).await.unwrap();
    let forwarder = setting.start().await;
    forwarder.settled().await;
    assert!(forwarder.metric("waybill_forward_published_events_total").await >= 2_999.0);
    wait_until("it is shown what is kept", async || {
        (forwarder.metric("waybill_forward_journal_kept_bytes").await > 500_000.0).then_some(())
    })
    .await;
    assert_eq!(segments(&setting.journal()), kept);
    assert_eq!(watermark(&setting).await, [(3_000, 3_000)]);
    recorded_exactly(&world, &all.into_iter().collect()).await;
}
