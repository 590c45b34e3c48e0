//! Somebody changes, deletes, restores or repeats what is in NATS: settings, the consumer, the stream itself.

use std::collections::BTreeSet;
use std::time::Duration;

use async_nats::HeaderMap;
use async_nats::jetstream::AckKind;
use async_nats::jetstream::stream::Config;
use futures_util::TryStreamExt;
use serde_json::{Value, json};
use waybill::ingest;
use waybill::ingest::stream::CONSUMER;

use crate::bed::{Bed, CUSTOMERS, Own, Verdict, limits};
use crate::harness::{wait_until, wait_until_done, wait_until_within};
use crate::publisher::{Load, copies_not_meant, send_again, write_down};
use crate::rounds::{rounds, seed, thorough};
use crate::servers::copy;
use crate::service::{Serve, Service, metric};
use crate::watching::caught_up;

/// Messages that are published again after the stream's window for copies.
const RETRIED: usize = 20;
/// How long it may take until a stream that is gone is made anew: the program gives it 20 s to be restored.
const MADE_ANEW: Duration = Duration::from_mins(1);

/// What the server must not refuse.
async fn ask(bed: &Bed, subject: String, request: &Value) {
    let answer: Value = bed.context.request(subject, request).await.unwrap();
    assert!(answer["error"].is_null(), "{answer}");
}

async fn stream_config(bed: &Bed) -> Config {
    bed.context.get_stream(&bed.names.stream).await.unwrap().cached_info().config.clone()
}

async fn delete_stream(bed: &Bed) {
    bed.context.delete_stream(&bed.names.stream).await.unwrap();
}

/// Makes the stream as an operator does who has the right settings.
async fn make_stream(bed: &Bed) {
    ingest::stream::open(&bed.context, &bed.names, limits()).await.unwrap();
}

/// F12: a stream with every setting that could lose usage, as far as the server lets them be set together.
#[tokio::test(flavor = "multi_thread")]
async fn f12_every_wrong_setting_is_named_and_nothing_is_recorded_until_it_is_right() {
    let mut bed = Bed::new("f12").await;
    let subjects = json!([format!("{}.*", bed.names.prefix)]);
    let wrong = json!({"name": bed.names.stream, "subjects": subjects, "storage": "memory", "num_replicas": 1,
        "retention": "workqueue", "discard": "old", "max_msgs": 1_000_000, "max_msgs_per_subject": 500_000,
        "max_age": 3_600_000_000_000_i64, "max_msg_size": 1_000_000, "duplicate_window": 0,
        "allow_rollup_hdrs": true, "allow_msg_ttl": true, "allow_msg_schedules": true});
    // What cannot be set together with these.
    let others = json!({"name": bed.names.stream, "subjects": subjects, "storage": "file", "num_replicas": 1,
        "retention": "interest", "discard": "new", "max_bytes": 1 << 26, "no_ack": true, "persist_mode": "async",
        "metadata": {"waybill_incarnation": "not a UUID"}});
    delete_stream(&bed).await;
    ask(&bed, format!("STREAM.CREATE.{}", bed.names.stream), &wrong).await;
    // The servers of the tests force nothing to disk.
    let monitor = std::env::var_os("WAYBILL_TEST_NATS_MONITOR_URL").unwrap().into_string().unwrap();
    let serve = bed.serve().env("WAYBILL_NATS_MONITOR_URL", &monitor).env("WAYBILL_STREAM_REPLICAS", &3);
    let refusing = serve.env("WAYBILL_NATS_DURABILITY", &"always").start();
    let load = Load::endless(seed("f12")).start(&bed).await;
    load.goes_on(30).await;
    refusing
        .refuses(&[
            "stream storage is",
            "stream retention is",
            "stream discard is",
            "stream num_replicas is",
            "stream max_msgs is",
            "stream max_msgs_per_subject is",
            "stream max_msg_size is",
            "stream max_bytes is",
            "stream max_age is",
            "stream allow_rollup_hdrs is",
            "stream allow_msg_ttl is",
            "stream allow_msg_schedules is",
            "stream deny_delete is",
            "stream deny_purge is",
            "stream allow_direct is",
            "stream metadata lacks",
            "nats sync_interval is",
        ])
        .await;
    delete_stream(&bed).await;
    ask(&bed, format!("STREAM.CREATE.{}", bed.names.stream), &others).await;
    let said = refusing
        .refuses(&[
            "stream retention is",
            "stream no_ack is",
            "stream persist_mode is",
            "stream metadata lacks",
            "nats sync_interval is",
        ])
        .await;
    assert!(!said.contains("stream discard"), "what is right is not named: {said}");
    assert_eq!(bed.number("SELECT count(*) FROM ingest_batches").await, 0, "nothing is recorded");
    drop(refusing);

    // Put right: the same program on the same servers records.
    delete_stream(&bed).await;
    make_stream(&bed).await;
    let service = bed.serve().start();
    service.ready().await;
    bed.take_snapshots();
    load.goes_on(30).await;
    load.stop().await;
    // What the other streams had is gone with them.
    send_again(&bed).await;
    bed.settled().await;
    bed.audit().await.clean();
}

/// F13: the stream is deleted and made anew under load; its sequences count from the start.
async fn f13(bed: &mut Bed, serve: Serve, again: u32) -> Verdict {
    let service = serve.start();
    service.ready().await;
    bed.take_snapshots();
    let load = Load::endless(seed("f13")).start(bed).await;
    for round in 0..again {
        load.goes_on(60).await;
        // Only a life that it has recorded of is one that ends for the program.
        caught_up(bed).await;
        let (_, before) = bed.stream_state().await.unwrap();
        delete_stream(bed).await;
        // Every other time nobody makes it: the program does, after it has waited for somebody to restore it.
        if round.is_multiple_of(2) {
            make_stream(bed).await;
        }
        let life = wait_until_within("the new life is recorded", MADE_ANEW, async || {
            let (_, life) = bed.stream_state().await?;
            let recorded: i64 =
                sqlx::query_scalar("SELECT count(*) FROM ingest_batches WHERE incarnation = $1")
                    .bind(life)
                    .fetch_one(&bed.pool)
                    .await
                    .unwrap();
            (recorded > 0).then_some(life)
        })
        .await;
        assert_ne!(life, before);
    }
    service.ready().await;
    lives_are_counted(&service, again).await;
    load.stop().await;
    bed.settled().await;
    bed.audit().await
}

/// Waits until metrics say that the stream has begun another life so often, at least.
async fn lives_are_counted(service: &Service, lives: u32) {
    wait_until("each change of life is counted", async || {
        let counted = metric(service.metrics, "waybill_stream_lives_total").await?;
        (counted >= f64::from(lives)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn f13_a_stream_made_anew_is_read_from_its_first_message_by_itself() {
    let mut bed = Bed::new("f13").await;
    let serve = bed.serve();
    let verdict = f13(&mut bed, serve.clone(), rounds(5)).await;
    // Before anything is sent again, which would hide what was skipped. What was deleted with the stream may be missing.
    let missing = BTreeSet::from(["I1", "I2", "I10"].map(str::to_owned));
    assert!(verdict.violated.is_subset(&missing), "{}", verdict.text);
    // What was deleted with the stream is published again by the gateways: it is not settled.
    let service = serve.start();
    service.ready().await;
    send_again(&bed).await;
    bed.settled().await;
    bed.audit().await.clean();
}

/// The control: sequences that an earlier life of the stream has had count as known.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the sabotaged program: make test-faults"]
async fn f13_control_sequences_that_decide_lose_the_first_messages_of_the_new_life() {
    let mut bed = Bed::new("f13-control").await;
    let serve = bed.serve_sabotaged("skip_below");
    f13(&mut bed, serve, 1).await.violates("I9");
}

/// F14: an operator changes, pauses, deletes and replaces the consumer.
#[tokio::test(flavor = "multi_thread")]
async fn f14_a_consumer_in_foreign_hands_is_named_or_made_again_and_loses_nothing() {
    let mut bed = Bed::new("f14").await;
    let service = bed.serve().start();
    service.ready().await;
    bed.take_snapshots();
    let load = Load::endless(seed("f14")).start(&bed).await;
    load.goes_on(60).await;
    let stream = bed.names.stream.clone();
    let subject = |what: &str| format!("CONSUMER.{what}.{stream}.{CONSUMER}");
    let good = bed.consumer_info().await.unwrap().config;
    let mut edited = serde_json::to_value(&good).unwrap();
    for (setting, value) in [
        ("max_deliver", json!(3)),
        ("ack_wait", json!(1_000_000_000)),
        ("filter_subject", json!(format!("{}.gw-1", bed.names.prefix))),
        ("max_ack_pending", json!(10)),
    ] {
        edited[setting] = value;
    }
    let update = |config: &Value| json!({"stream_name": stream, "config": config, "action": "update"});
    ask(&bed, subject("CREATE"), &update(&edited)).await;
    ask(&bed, subject("PAUSE"), &json!({"pause_until": "2099-01-01T00:00:00Z"})).await;
    service
        .refuses(&[
            "consumer max_deliver is 3, must be -1",
            "consumer ack_wait is",
            "consumer filter_subject is",
            "consumer max_ack_pending is 10",
            "consumer pause_until is",
        ])
        .await;
    ask(&bed, subject("CREATE"), &update(&serde_json::to_value(&good).unwrap())).await;
    ask(&bed, subject("PAUSE"), &json!({})).await;
    service.ready().await;

    // Deleted: made again, and everything is delivered once more.
    let floor = i64::try_from(bed.consumer_info().await.unwrap().ack_floor.stream_sequence).unwrap();
    ask(&bed, subject("DELETE"), &json!({})).await;
    wait_until_done("the consumer is there again, and everything was delivered again", async || {
        let left = delivered_once(&bed, floor).await;
        (left > 0).then(|| format!("{left} of {floor} messages"))
    })
    .await;
    println!("f14: {floor} messages were delivered again");

    if thorough() {
        ask(&bed, subject("DELETE"), &json!({})).await;
        let foreign = json!({"durable_name": CONSUMER, "ack_policy": "none", "deliver_policy": "new",
            "headers_only": true, "inactive_threshold": 60_000_000_000_i64});
        ask(&bed, subject("CREATE"), &json!({"stream_name": stream, "config": foreign})).await;
        service
            .refuses(&[
                "consumer ack_policy is",
                "consumer deliver_policy is",
                "consumer headers_only is",
                "consumer inactive_threshold is",
            ])
            .await;
        ask(&bed, subject("DELETE"), &json!({})).await;
        service.ready().await;
    }
    load.goes_on(30).await;
    load.stop().await;
    bed.settled().await;
    bed.audit().await.clean();
}

/// Of the messages up to a sequence, those that are in one batch only, or in none.
async fn delivered_once(bed: &Bed, last: i64) -> i64 {
    sqlx::query_scalar(
        "SELECT $1 - count(*)
         FROM (SELECT FROM ingest_batches, unnest(sequences) AS r,
                           generate_series(lower(r), LEAST(upper(r) - 1, $1)) AS sequence
               GROUP BY sequence HAVING count(*) > 1) AS again",
    )
    .bind(last)
    .fetch_one(&bed.pool)
    .await
    .unwrap()
}

/// F14: the consumer keeps back what it should deliver again. Here a worker asked it to; a server that lost its quorum did
/// so by itself.
#[tokio::test(flavor = "multi_thread")]
async fn f14_what_the_consumer_keeps_back_is_read_from_the_stream() {
    const KEPT_BACK: u8 = 20;
    let mut bed = Bed::new("f14-kept-back").await;
    bed.take_snapshots();
    let load = Load::endless(seed("f14-kept-back")).start(&bed).await;
    load.goes_on(60).await;
    let stream = ingest::stream::open(&bed.context, &bed.names, limits()).await.unwrap();
    let consumer = stream.consumer(limits()).await.unwrap();
    let taken = consumer.fetch().max_messages(KEPT_BACK.into()).messages().await.unwrap();
    let taken: Vec<_> = taken.try_collect().await.unwrap();
    assert_eq!(taken.len(), usize::from(KEPT_BACK));
    for message in taken {
        message.ack_with(AckKind::Nak(Some(Duration::from_hours(1)))).await.unwrap();
    }

    let service = bed.serve().start();
    service.ready().await;
    load.goes_on(60).await;
    load.stop().await;
    println!("f14: settled after {:?}", bed.settled().await);
    let kept_back = bed.consumer_info().await.unwrap().num_ack_pending;
    assert_eq!(kept_back, usize::from(KEPT_BACK), "the consumer has not delivered them again");
    let read = wait_until("they were read from the stream", async || {
        let read = metric(service.metrics, "waybill_repaired_sequences_total").await?;
        (read >= f64::from(KEPT_BACK)).then_some(read)
    })
    .await;
    assert!(read <= f64::from(KEPT_BACK), "{read} were read from the stream: nothing else should be");
    bed.audit().await.clean();
}

/// F17: a message is published again with its id, within the stream's window for copies and after it. What the auditor
/// says, and how many copies came after the window.
async fn f17(bed: &mut Bed, serve: Serve) -> (Verdict, i64) {
    const WINDOW: Duration = Duration::from_secs(10);
    let short = Config { duplicate_window: WINDOW, ..stream_config(bed).await };
    bed.context.update_stream(short).await.unwrap();
    let service = serve.start();
    service.ready().await;
    bed.take_snapshots();
    let load = Load::endless(seed("f17")).start(bed).await;
    let gateway = bed.gateways[0].clone();
    let bodies: Vec<String> = (1..=RETRIED).map(|number| event(&gateway, number).to_string()).collect();
    // Each copy right after its message, long before the window is over.
    for (number, body) in bodies.iter().enumerate() {
        for (note, copy) in [("new", false), ("copy", true)] {
            write_down(bed, &gateway, body, &[note]);
            let taken = taken_for_copy(bed, &gateway, number, body).await;
            assert_eq!(taken, Some(copy), "{note} of {number}");
        }
    }
    // Copies of its own would hide those that count here.
    load.stop().await;
    bed.settled().await;
    let copies = "SELECT sum(duplicates)::bigint FROM ingest_batches";
    let before = bed.number(copies).await;
    for (number, body) in bodies.iter().enumerate() {
        write_down(bed, &gateway, body, &["copy"]);
        wait_until("the window is over", async || {
            taken_for_copy(bed, &gateway, number, body).await.filter(|taken| !taken)
        })
        .await;
    }
    bed.settled().await;
    let copies = bed.number(copies).await - before;
    (bed.audit().await, copies)
}

#[tokio::test(flavor = "multi_thread")]
async fn f17_a_retry_after_the_window_for_copies_is_billed_once() {
    let mut bed = Bed::new("f17").await;
    let serve = bed.serve();
    let (verdict, copies) = f17(&mut bed, serve).await;
    verdict.clean();
    let recorded = bed.number("SELECT count(*) FROM usage_events WHERE id LIKE 'f17-%'").await;
    assert_eq!(recorded, i64::try_from(RETRIED).unwrap());
    assert!(copies >= recorded, "{copies} copies of {recorded} came after the window");
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the sabotaged program: make test-faults"]
async fn f17_control_without_the_look_up_a_retry_is_recorded_again() {
    let mut bed = Bed::new("f17-control").await;
    let serve = bed.serve_sabotaged("double");
    f17(&mut bed, serve).await.0.violates("I2");
}

/// Publishes a message with an id for the stream; whether the stream takes it for a copy, and `None` where it does not say.
async fn taken_for_copy(bed: &Bed, gateway: &str, number: usize, body: &str) -> Option<bool> {
    let mut headers = HeaderMap::new();
    headers.insert("Nats-Msg-Id", format!("{gateway}:{number}"));
    let subject = format!("{}.{gateway}", bed.names.prefix);
    let sent = bed.context.publish_with_headers(subject, headers, body.to_owned().into()).await;
    Some(sent.ok()?.await.ok()?.duplicate)
}

fn event(gateway: &str, number: usize) -> Value {
    let now = waybill::clock::Clock::System.now().to_rfc3339();
    json!({"specversion": "1.0", "id": format!("f17-{number}"), "source": format!("{gateway}/retries"),
        "type": "llm.usage.v1", "subject": CUSTOMERS[0], "time": now, "sequence": number, "epoch": "f17",
        "data": {"provider": "openai", "model": "gpt-5", "status": "ok",
                 "usage": {"input": 100 + number, "output": 10}}})
}

/// F20: the stream is put back to what a backup has, while the program runs.
async fn f20(bed: &mut Bed, serve: Serve) -> Verdict {
    let service = serve.start();
    service.ready().await;
    bed.take_snapshots();
    let seed = seed("f20");
    Load::seeded(seed).sent(bed).await;
    bed.settled().await;
    let events = bed.number("SELECT sum(recorded)::bigint FROM ingest_batches").await;
    let store = bed.own_nats.as_ref().unwrap().home().join("nats");
    let backup = bed.folder.join("backup");
    let (kept, before) = bed.stream_state().await.unwrap();
    bed.own_nats.as_mut().unwrap().stop().await;
    copy(&store, &backup);
    bed.start_nats_again().await;

    // Of these the backup knows nothing.
    Load::seeded(seed + 1).sent(bed).await;
    bed.settled().await;
    let known = copies_not_meant(bed).await;
    bed.own_nats.as_mut().unwrap().stop().await;
    std::fs::remove_dir_all(&store).unwrap();
    copy(&backup, &store);
    bed.start_nats_again().await;

    // The restored stream gives sequences again that the ledger has already seen.
    Load::seeded(seed + 2).sent(bed).await;
    let life = wait_until("the stream has another life", async || {
        let (_, life) = bed.stream_state().await?;
        (life != before).then_some(life)
    })
    .await;
    bed.settled().await;
    service.ready().await;
    let again = copies_not_meant(bed).await - known;
    println!("f20: {kept} messages with {events} events restored as {life}, {again} copies");
    assert!(again >= events, "{again} copies, {events} events came again");
    // The alarm looks at that.
    lives_are_counted(&service, 1).await;
    bed.audit().await
}

async fn with_nats(name: &str) -> Bed {
    Bed::with(name, Own { nats: true, ..Own::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn f20_a_stream_restored_from_a_backup_is_read_again_and_billed_once() {
    let mut bed = with_nats("f20").await;
    let serve = bed.serve();
    f20(&mut bed, serve).await.clean();
}

/// The control: what takes sequences that the ledger knows is not looked at.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs the sabotaged program: make test-faults"]
async fn f20_control_sequences_that_decide_lose_what_comes_after_the_restore() {
    let mut bed = with_nats("f20-control").await;
    let serve = bed.serve_sabotaged("skip_below");
    f20(&mut bed, serve).await.violates("I1");
}
