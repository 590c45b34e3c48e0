//! What the service does while a server is away, is busy, or lost something, and what it shows of it.

use std::os::unix::process::ExitStatusExt;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::JoinSet;
use waybill::clock::Clock;
use waybill::health::Health;
use waybill::http::AppState;
use waybill::ingest::Publisher;
use waybill::store::api_keys::{self, NewHolder};
use waybill::store::{Scope, commit, gateways};

use super::*;
use crate::http_bed::post;

/// How long a process may take to end: it gives what runs 20 s, and connections 5 s.
const ENDED_WITHIN: Duration = Duration::from_mins(1);
/// Posts while NATS is away, and how long each would wait for the stream.
const POSTS: u32 = 20;
const STREAM_WAIT: Duration = Duration::from_secs(5);

/// Has messages in hand acknowledged that the ledger does not have.
async fn acknowledged_and_not_recorded(world: &World, messages: usize) {
    for number in 0..messages {
        world.publish("gw-1", &usage_event(&format!("e-{number}"))).await;
    }
    world.acknowledge_without_recording(messages).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn recording_starts_although_the_api_has_all_its_connections_in_use() {
    let world = World::idle().await;
    world.publish_prices(gpt5_prices()).await;
    world.publish("gw-1", &usage_event("e-1")).await;
    let mut reports = JoinSet::new();
    for _ in 0..12 {
        let mut report = world.bed.database.read(Scope::Everything).await.unwrap();
        // Cut short by the end of the test. Each goes on for as long as that takes, past what one statement may.
        reports.spawn(async move {
            while sqlx::raw_sql("SELECT pg_sleep(1)").execute(&mut *report).await.is_ok() {}
        });
    }
    assert!(world.bed.database.ping().await.is_err(), "no connection is left");
    world.start_consumer();
    recorded(&world, 1).await;
    assert_eq!(reports.try_join_next().map(|ended| ended.is_ok()), None, "all of them are still underway");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_starts_without_nats_and_says_so_until_it_is_there() {
    let mut nats = PrivateNats::start().await;
    let world = World::over(nats.bed().await).await;
    world.publish_prices(gpt5_prices()).await;
    nats.stop().await;
    let service = Service::start(&world);
    service.refuses(&["\"publisher\":\"not connected", "\"stream\":\"the stream does not answer\""]).await;
    assert!(get(service.http, "/openapi.json").await.unwrap().contains(" 200 "), "the API answers");
    nats.start_again().await;
    service.ready().await;
    world.publish("gw-1", &usage_event("e-1")).await;
    recorded(&world, 1).await;
    drop(service);

    // A process with the API alone needs it for what it publishes.
    let service = Service::start_with(&world, |command| {
        command.arg("--api");
    });
    service.ready().await;
    nats.stop().await;
    service.refuses(&["\"publisher\":\"not connected", "\"settings\":\"the stream does not answer\""]).await;
    service.shows("waybill_part_up{part=\"publisher\"} 0").await;
    nats.start_again().await;
    service.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn that_the_stream_answers_again_is_said_while_something_else_is_wrong() {
    let mut nats = PrivateNats::start().await;
    let world = World::over(nats.bed().await).await;
    let good = config(&world).await;
    world.context().update_stream(Config { max_messages: 9, ..good.clone() }).await.unwrap();
    nats.stop().await;
    let service = Service::start(&world);
    service.refuses(&["\"stream\":\"the stream does not answer\""]).await;
    nats.start_again().await;
    service.refuses(&["stream max_msgs is 9", "\"stream\":\"recording waits for the settings\""]).await;
    world.context().update_stream(good).await.unwrap();
    service.ready().await;
}

/// The client keeps what it cannot send, and would send it later for callers who were told that nothing was stored.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_posted_while_nats_is_away_is_refused_at_once_and_never_sent() {
    let mut nats = PrivateNats::start().await;
    let world = World::over(nats.bed().await).await;
    let mut tx = world.bed.database.begin().await.unwrap();
    let gateway = gateways::id_of(&mut tx, "gw-1").await.unwrap().unwrap();
    let key = api_keys::create(&mut tx, NewHolder::Gateway(gateway), "test", None).await.unwrap().token;
    commit(tx).await.unwrap();
    let publisher = Publisher::new(world.context().clone(), &world.names.prefix);
    let state =
        AppState::new(world.bed.database.clone(), Clock::System, publisher.clone(), Health::default());
    let router = waybill::http::router(state).0;
    let sent = async |id: &str| post(&router, &key, "/v1/events", &usage_event(id)).await;
    nats.stop().await;
    wait_until("the publisher notices", async || (!publisher.connected()).then_some(())).await;
    let began = Instant::now();
    for number in 0..POSTS {
        let answer = sent(&format!("away-{number}")).await;
        assert_eq!(answer.problem(), (503, "unavailable".to_owned()), "{}", answer.text);
        assert!(answer.text.contains("nothing was stored"), "{}", answer.text);
    }
    assert!(began.elapsed() < STREAM_WAIT * POSTS / 2, "{:?}", began.elapsed());
    nats.start_again().await;
    wait_until("the publisher is back", async || publisher.connected().then_some(())).await;
    let answer = sent("back").await;
    assert_eq!((answer.status.as_u16(), &answer.json()["sequence"]), (202, &json!(1)), "{}", answer.text);
}

/// Replay shares the clock of transactions with what consumes, where something does.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_takes_long_leaves_a_process_that_does_not_consume_ready() {
    let world = World::idle().await;
    world.stop_jobs().await;
    world.start_consumer();
    world.publish("gw-1", &usage_event("e-1")).await;
    wait_until("it waits for its price", async || {
        (world.open_rejections().await == ["unpriced"]).then_some(())
    })
    .await;
    // Longer than a transaction may take before it counts as stuck, and than it takes to look again.
    world
        .bed
        .run(
            "CREATE FUNCTION take_long() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN PERFORM pg_sleep(23); RETURN NEW; END $$;
             CREATE TRIGGER take_long BEFORE INSERT ON ingest_batches FOR EACH ROW
             WHEN (NEW.origin = 'replay') EXECUTE FUNCTION take_long();",
        )
        .await;
    let service = Service::start_with(&world, |command| {
        command.arg("--api").arg("--jobs");
    });
    service.ready().await;
    world.publish_prices(gpt5_prices()).await;
    recorded(&world, 1).await;
    service.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_the_ledger_knows_is_given_time_to_be_restored_after_a_start_too() {
    let world = World::idle().await;
    world.publish_prices(gpt5_prices()).await;
    let service = Service::start(&world);
    service.ready().await;
    world.publish("gw-1", &usage_event("e-1")).await;
    recorded(&world, 1).await;
    drop(service);
    world.context().delete_stream(&world.names.stream).await.unwrap();
    let jobs = Service::start_with(&world, |command| {
        command.arg("--api").arg("--jobs");
    });
    jobs.refuses(&["does not exist; a process that records makes it"]).await;
    let service = Service::start(&world);
    service.refuses(&["does not exist any more; restore it now, or it is made anew"]).await;
    assert!(world.context().get_stream(&world.names.stream).await.is_err(), "nobody has made it");
    service.ready().await;
    world.publish("gw-1", &usage_event("e-2")).await;
    recorded(&world, 2).await;
    jobs.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_shown_before_there_is_a_consumer_and_how_long_it_does() {
    let world = World::idle().await;
    world.publish_prices(gpt5_prices()).await;
    for number in 0..2 {
        world.publish("gw-1", &usage_event(&format!("e-{number}"))).await;
    }
    let service = Service::start_with(&world, |command| {
        command.arg("--api").arg("--jobs");
    });
    service.shows("waybill_stream_lag_messages 2").await;
    service.shows("waybill_gauges_read_timestamp_seconds{of=\"stream\"}").await;
    let oldest = async || {
        let text = get(service.metrics, "/metrics").await?;
        let mut lines = text.lines();
        lines
            .find_map(|line| line.strip_prefix("waybill_stream_oldest_waiting_seconds ")?.parse::<f64>().ok())
    };
    wait_until("it waits", async || oldest().await.filter(|seconds| *seconds > 0.0)).await;
    world.start_consumer();
    recorded(&world, 2).await;
    service.shows("waybill_stream_lag_messages 0").await;
    wait_until("nothing waits", async || oldest().await.filter(|seconds| *seconds <= 0.0)).await;

    let unlimited = ConsumerConfig { max_ack_pending: -1, ..consumer_config(&world).await };
    update_consumer(&world, &unlimited).await;
    service.shows("waybill_stream_unacked_messages_max inf").await;
    service.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_sequences_are_shown_although_they_cannot_be_recorded() {
    let world = World::idle().await;
    world.publish_prices(gpt5_prices()).await;
    acknowledged_and_not_recorded(&world, 3).await;
    world
        .bed
        .run(
            "CREATE FUNCTION refuse_repairs() RETURNS trigger LANGUAGE plpgsql AS $$
             BEGIN RAISE EXCEPTION 'refused' USING ERRCODE = 'check_violation'; END $$;
             CREATE TRIGGER refuse_repairs BEFORE INSERT ON ingest_batches FOR EACH ROW
             WHEN (NEW.origin = 'repair') EXECUTE FUNCTION refuse_repairs();",
        )
        .await;
    let service = Service::start(&world);
    service.shows("waybill_unaccounted_sequences 3").await;
    service.shows("waybill_gauges_read_timestamp_seconds{of=\"completeness\"}").await;
    world.bed.run("DROP TRIGGER refuse_repairs ON ingest_batches").await;
    recorded(&world, 3).await;
    service.shows("waybill_unaccounted_sequences 0").await;
}

/// A session of PostgreSQL that does nothing any more, and is not closed; goes on when dropped.
struct Frozen(Pid);

impl Drop for Frozen {
    fn drop(&mut self) {
        kill(self.0, Signal::SIGCONT).ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_stops_although_a_session_of_the_database_never_answers() {
    let world = World::idle().await;
    let mut service = Service::start(&world);
    service.ready().await;
    let mut holder = world.pool.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE").execute(&mut *holder).await.unwrap();
    let token = format!("wb_{}_{}", "a".repeat(12), "b".repeat(43));
    let request = format!("GET /v1/usage HTTP/1.1\r\nHost: waybill\r\nAuthorization: Bearer {token}\r\n\r\n");
    let mut client = TcpStream::connect(service.http).await.unwrap();
    client.write_all(request.as_bytes()).await.unwrap();
    let frozen = wait_until("the request waits for the lock", async || {
        let waiting = "SELECT pid FROM pg_stat_activity
                       WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%api_keys%'";
        sqlx::query_scalar::<_, i32>(waiting).fetch_optional(&world.pool).await.unwrap()
    })
    .await;
    let frozen = Frozen(Pid::from_raw(frozen));
    kill(frozen.0, Signal::SIGSTOP).unwrap();
    drop((client, holder));
    kill(Pid::from_raw(i32::try_from(service.child.id()).unwrap()), Signal::SIGTERM).unwrap();
    let ended = wait_until_within("it has stopped", ENDED_WITHIN, async || service.child.try_wait().unwrap());
    let status = ended.await;
    assert_eq!((status.code(), status.signal()), (Some(0), None), "everything else was finished");
}
