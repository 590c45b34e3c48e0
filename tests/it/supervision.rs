//! What the service does when a setting that decides whether usage can be lost is wrong, changes, or when the stream is
//! another than before.

#[path = "supervision_outages.rs"]
mod outages;
#[path = "supervision_servers.rs"]
mod servers;

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_nats::jetstream::consumer::Config as ConsumerConfig;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy};
use chrono::TimeDelta;
use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use waybill::ingest::stream::{self, CONSUMER};

use crate::harness::{address, free_addresses, get, wait_until, wait_until_within};
use crate::private_nats::PrivateNats;
use crate::program::serve;
use crate::world::{World, gpt5_prices, limits, now, usage_event};

/// How long it may take until something is noticed, and what follows from it is done: some things are looked at every 20 s
/// only, and some are given as long to be mended.
const NOTICED_WITHIN: Duration = Duration::from_mins(2);

/// The program beside a world; killed when dropped.
struct Service {
    child: Child,
    http: SocketAddr,
    metrics: SocketAddr,
}

impl Service {
    fn start(world: &World) -> Self {
        Self::start_with(world, |_| {})
    }

    fn start_with(world: &World, set: impl FnOnce(&mut Command)) -> Self {
        let [http, metrics] = free_addresses();
        let mut command = serve(world, http, metrics);
        set(&mut command);
        Self { child: command.stderr(Stdio::null()).spawn().unwrap(), http, metrics }
    }

    async fn ready(&self) {
        wait_until_within("it is ready", NOTICED_WITHIN, async || {
            get(self.http, "/readyz").await?.contains(" 200 ").then_some(())
        })
        .await;
    }

    /// Waits until it is not ready and names all of these.
    async fn refuses(&self, named: &[&str]) {
        wait_until_within(&format!("it names {named:?}"), NOTICED_WITHIN, async || {
            let answer = get(self.http, "/readyz").await?;
            (answer.contains(" 503 ") && named.iter().all(|name| answer.contains(name))).then_some(())
        })
        .await;
    }

    async fn shows(&self, line: &str) {
        wait_until_within(line, NOTICED_WITHIN, async || {
            get(self.metrics, "/metrics").await.filter(|text| text.contains(line))
        })
        .await;
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// The settings of a world's stream as they are now.
async fn config(world: &World) -> Config {
    world.context().get_stream(&world.names.stream).await.unwrap().cached_info().config.clone()
}

async fn consumer_config(world: &World) -> ConsumerConfig {
    world.stream.stream.consumer_info(CONSUMER).await.unwrap().config
}

async fn update_consumer(world: &World, config: &ConsumerConfig) {
    let update = json!({"stream_name": world.names.stream, "config": config, "action": "update"});
    let subject = format!("CONSUMER.CREATE.{}.{CONSUMER}", world.names.stream);
    let answer: Value = world.context().request(subject, &update).await.unwrap();
    assert!(answer["error"].is_null(), "{answer}");
}

async fn pending(world: &World) -> u64 {
    world.stream.stream.consumer_info(CONSUMER).await.unwrap().num_pending
}

async fn recorded(world: &World, events: i64) {
    wait_until_within(&format!("{events} events are recorded"), NOTICED_WITHIN, async || {
        (world.recorded_events().await == events).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_wrong_setting_is_named_together_and_nothing_is_recorded() {
    let world = World::idle().await;
    world.publish_prices(gpt5_prices()).await;
    world.context().delete_stream(&world.names.stream).await.unwrap();
    let wrong = Config {
        name: world.names.stream.clone(),
        subjects: vec![format!("{}.*", world.names.prefix)],
        retention: RetentionPolicy::WorkQueue,
        discard: DiscardPolicy::Old,
        max_bytes: 1 << 20,
        max_age: Duration::from_hours(1),
        allow_rollup: true,
        ..Config::default()
    };
    world.context().create_stream(wrong).await.unwrap();
    world.publish("gw-1", &usage_event("e-1")).await;
    // The servers of the tests force nothing to disk.
    let monitor = address("WAYBILL_TEST_NATS_MONITOR_URL");
    let service = Service::start_with(&world, |command| {
        command.env("WAYBILL_NATS_MONITOR_URL", monitor);
        command.env("WAYBILL_NATS_DURABILITY", "always").env("WAYBILL_POSTGRES_DURABILITY", "always");
    });
    service
        .refuses(&[
            "stream retention is",
            "stream discard is",
            "stream max_age is",
            "stream allow_rollup_hdrs is",
            "stream deny_delete is",
            "stream deny_purge is",
            "stream max_msg_size is",
            "stream metadata lacks waybill_incarnation",
            "nats sync_interval is",
            "postgres fsync is",
            "postgres full_page_writes is",
            "postgres synchronous_commit is",
        ])
        .await;
    for line in [
        "waybill_setting_wrong{object=\"stream\",setting=\"discard\"} 1",
        "waybill_setting_wrong{object=\"nats\",setting=\"sync_interval\"} 1",
        "waybill_setting_wrong{object=\"postgres\",setting=\"fsync\"} 1",
        "waybill_part_up{part=\"settings\"} 0",
    ] {
        service.shows(line).await;
    }
    assert_eq!(world.recorded_events().await, 0, "usage waits in the stream");

    // Healed while it runs, as far as this can be: what is left is still named.
    world.context().delete_stream(&world.names.stream).await.unwrap();
    stream::open(world.context(), &world.names, limits()).await.unwrap();
    service.shows("waybill_setting_wrong{object=\"stream\",setting=\"discard\"} 0").await;
    service.refuses(&["nats sync_interval is", "postgres fsync is"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_change_pause_recording_until_they_are_right_again() {
    let world = World::idle().await;
    world.publish_prices(gpt5_prices()).await;
    let service = Service::start(&world);
    service.ready().await;
    world.publish("gw-1", &usage_event("e-1")).await;
    recorded(&world, 1).await;

    let (good_stream, good_consumer) = (config(&world).await, consumer_config(&world).await);
    let lossy = Config { discard: DiscardPolicy::Old, max_messages: 9, ..good_stream.clone() };
    world.context().update_stream(lossy).await.unwrap();
    service.refuses(&["stream discard is", "stream max_msgs is 9, must be -1"]).await;
    world.publish("gw-1", &usage_event("e-2")).await;
    world.context().update_stream(good_stream).await.unwrap();
    let limited = ConsumerConfig { max_deliver: 3, ..good_consumer.clone() };
    update_consumer(&world, &limited).await;
    service.refuses(&["consumer max_deliver is 3, must be -1"]).await;
    service.shows("waybill_setting_wrong{object=\"stream\",setting=\"discard\"} 0").await;
    world.publish("gw-1", &usage_event("e-3")).await;
    // What is named next was looked at after that was there to be taken.
    update_consumer(&world, &ConsumerConfig { max_ack_pending: 10, ..limited }).await;
    service.refuses(&["consumer max_ack_pending is 10"]).await;
    assert!(pending(&world).await >= 1, "nothing is taken from the stream");
    assert!(world.recorded_events().await < 3, "nothing is recorded");

    update_consumer(&world, &good_consumer).await;
    service.ready().await;
    recorded(&world, 3).await;
    world.settled().await;
    world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_is_paused_is_named_and_one_that_is_deleted_is_made_again() {
    let world = World::idle().await;
    world.publish_prices(gpt5_prices()).await;
    let service = Service::start(&world);
    service.ready().await;
    world.publish("gw-1", &usage_event("e-1")).await;
    recorded(&world, 1).await;

    let subject = format!("CONSUMER.PAUSE.{}.{CONSUMER}", world.names.stream);
    let until = now() + TimeDelta::hours(1);
    let _: Value =
        world.context().request(subject, &json!({"pause_until": until.to_rfc3339()})).await.unwrap();
    service.refuses(&["consumer pause_until is"]).await;
    world.publish("gw-1", &usage_event("e-2")).await;
    world.stream.stream.resume_consumer(CONSUMER).await.unwrap();
    service.ready().await;
    recorded(&world, 2).await;

    world.stream.stream.delete_consumer(CONSUMER).await.unwrap();
    world.publish("gw-1", &usage_event("e-3")).await;
    recorded(&world, 3).await;
    service.ready().await;
    world.settled().await;
    world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_made_anew_is_read_from_its_first_message() {
    let world = World::idle().await;
    world.publish_prices(gpt5_prices()).await;
    let service = Service::start(&world);
    service.ready().await;
    service.shows("waybill_stream_lives_total 0").await;
    for number in 0..4 {
        world.publish("gw-1", &usage_event(&format!("old-{number}"))).await;
    }
    recorded(&world, 4).await;

    // By somebody else, without a mark of its own: its sequences cannot be told from those before.
    let good = config(&world).await;
    world.context().delete_stream(&world.names.stream).await.unwrap();
    let unmarked = Config { metadata: std::collections::HashMap::new(), ..good };
    world.context().create_stream(unmarked).await.unwrap();
    service.refuses(&["stream metadata lacks waybill_incarnation"]).await;

    // Gone altogether: made anew after a while.
    world.context().delete_stream(&world.names.stream).await.unwrap();
    service.refuses(&["does not exist any more"]).await;
    service.ready().await;
    for number in 0..3 {
        let sequence = world.publish("gw-1", &usage_event(&format!("new-{number}"))).await;
        assert_eq!(sequence, number + 1, "sequences count from the start");
    }
    recorded(&world, 7).await;
    service.shows("waybill_stream_lives_total 1").await;
    world.settled().await;
    world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_and_never_recorded_is_read_again_while_it_runs() {
    let world = World::idle().await;
    world.publish_prices(gpt5_prices()).await;
    let service = Service::start(&world);
    service.ready().await;
    world.publish("gw-1", &usage_event("e-0")).await;
    recorded(&world, 1).await;
    // While it is kept from taking them, somebody else acknowledges messages.
    let good = config(&world).await;
    world.context().update_stream(Config { max_messages: 9, ..good.clone() }).await.unwrap();
    service.refuses(&["stream max_msgs is"]).await;
    for number in 1..=5 {
        world.publish("gw-1", &usage_event(&format!("e-{number}"))).await;
    }
    world.acknowledge_without_recording(5).await;
    world.context().update_stream(good).await.unwrap();
    recorded(&world, 6).await;
    service.shows("waybill_repaired_sequences_total 5").await;
    service.shows("waybill_unaccounted_sequences 0").await;
    service.ready().await;
    world.settled().await;
    world.verified().await;
}

/// What a backup would have kept of the servers' store.
fn copy(from: &std::path::Path, to: &std::path::Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_restored_to_an_older_state_loses_nothing_of_what_comes_then() {
    let mut nats = PrivateNats::start().await;
    let world = World::over(nats.bed().await).await;
    world.publish_prices(gpt5_prices()).await;
    let service = Service::start(&world);
    service.ready().await;
    let unpriced = |id: &str| {
        let mut event = usage_event(id);
        event["data"]["model"] = json!("gpt-99");
        event
    };
    let rejected = async |id: &str| {
        wait_until(&format!("the rejection of {id} is kept"), async || {
            let query = "SELECT count(*) FROM rejections WHERE event_id = $1";
            let count: i64 = sqlx::query_scalar(query).bind(id).fetch_one(&world.pool).await.unwrap();
            (count > 0).then_some(())
        })
        .await;
    };
    world.publish("gw-1", &usage_event("e-1")).await;
    world.settled().await;
    nats.stop().await;
    let (store, backup) = (nats.home().join("nats"), nats.home().join("backup"));
    copy(&store, &backup);
    nats.start_again().await;
    world.publish("gw-1", &usage_event("e-2")).await;
    let known = world.publish("gw-1", &unpriced("x-3")).await;
    recorded(&world, 2).await;
    rejected("x-3").await;

    // The store is that of the backup again while the service runs, and what comes now takes sequences that it knows.
    nats.stop().await;
    std::fs::remove_dir_all(&store).unwrap();
    copy(&backup, &store);
    nats.start_again().await;
    world.publish("gw-1", &usage_event("running-2")).await;
    assert_eq!(world.publish("gw-1", &unpriced("running-3")).await, known);
    recorded(&world, 3).await;
    rejected("running-3").await;
    service.shows("waybill_stream_lives_total 1").await;
    service.ready().await;

    // The same while it is away: when it looks again, the stream is longer than what it knows of it.
    drop(service);
    nats.stop().await;
    std::fs::remove_dir_all(&store).unwrap();
    copy(&backup, &store);
    nats.start_again().await;
    world.publish("gw-1", &usage_event("away-2")).await;
    assert_eq!(world.publish("gw-1", &unpriced("away-3")).await, known);
    world.publish("gw-1", &usage_event("away-4")).await;
    let service = Service::start(&world);
    recorded(&world, 5).await;
    rejected("away-3").await;
    service.shows("waybill_stream_lives_total 1").await;
    world.settled().await;
    world.verified().await;
}

/// Passes everything on, but the first connections' requests for messages to where nobody sends any. The connection after
/// those hears nothing at all. At two addresses, of which a client takes one after the other in any order.
async fn deaf_proxy(server: String, deaf: usize) -> ([SocketAddr; 2], Arc<AtomicUsize>) {
    const ASKED: &[u8] = b"$JS.API.CONSUMER.MSG.NEXT.";
    const LOST: &[u8] = b"$XX.API.CONSUMER.MSG.NEXT.";
    let bind = || TcpListener::bind("127.0.0.1:0");
    let (first, second) = (bind().await.unwrap(), bind().await.unwrap());
    let addresses = [&first, &second].map(|listener| listener.local_addr().unwrap());
    let lost = Arc::new(AtomicUsize::new(0));
    let count = lost.clone();
    tokio::spawn(async move {
        let (mut connections, mut silent) = (0, Vec::new());
        loop {
            let accepted = tokio::select! { accepted = first.accept() => accepted, accepted = second.accept() => accepted };
            let (client, _) = accepted.unwrap();
            connections += 1;
            if connections == deaf + 1 {
                silent.push(client);
                continue;
            }
            let is_deaf = connections <= deaf;
            let (server, count) = (TcpStream::connect(&server).await.unwrap(), count.clone());
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await.ok() });
            tokio::spawn(async move {
                let mut buffer = vec![0; 1 << 16];
                while let Ok(read @ 1..) = from_client.read(&mut buffer).await {
                    let bytes = &mut buffer[..read];
                    let asked = bytes.windows(ASKED.len()).position(|window| window == ASKED);
                    if let Some(at) = asked.filter(|_| is_deaf) {
                        bytes[at..at + LOST.len()].copy_from_slice(LOST);
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                    if to_server.write_all(bytes).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    (addresses, lost)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_gets_nothing_although_messages_wait_is_rebuilt() {
    let world = World::idle().await;
    world.publish_prices(gpt5_prices()).await;
    let (credentials, server) = world.bed.nats_url.rsplit_once('@').unwrap();
    // One connection publishes, one consumes; the third would be the rebuilt one, but waits for the server until after the next
    // look.
    let ([proxy, same], lost) = deaf_proxy(server.to_owned(), 2).await;
    // Somebody takes the requests, or the server would say that nobody does.
    let mut swallow = world.bed.nats.subscribe("$XX.>").await.unwrap();
    tokio::spawn(async move { while swallow.next().await.is_some() {} });
    let url = format!("{credentials}@{proxy},{same}");
    let service = Service::start_with(&world, |command| {
        command.env("WAYBILL_NATS_URL", url);
    });
    world.publish("gw-1", &usage_event("e-1")).await;
    service.refuses(&["the stream does not answer"]).await;
    service.shows("waybill_consumer_rebuilds_total{what=\"subscription\"}").await;
    assert!(lost.load(Ordering::Relaxed) > 0, "requests were lost");
    assert_eq!(world.recorded_events().await, 0);
    // Another subscription did not help.
    service.shows("waybill_consumer_rebuilds_total{what=\"subscription\"} 2").await;
    service.shows("waybill_consumer_rebuilds_total{what=\"connection\"} 1").await;
    recorded(&world, 1).await;
    service.ready().await;
}
