//! What is said of servers that do not answer, refuse, or are set to other than what is asked for.

use std::fs::File;
use std::path::PathBuf;

use async_nats::jetstream::stream::Compression;
use uuid::Uuid;
use waybill::store::api_keys::{self, NewHolder};
use waybill::store::commit;

use super::*;

/// A monitoring address with a password, where nobody answers.
fn dead_monitor() -> (String, String) {
    let [address] = free_addresses();
    (format!("http://ops:s3cret@{address}"), format!("http://{address}"))
}

/// Answers every request with what the monitoring of some NATS server says.
async fn monitor_of(varz: Value) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let body = varz.to_string();
            let head =
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            let asked = client.read(&mut [0; 1024]).await;
            assert!(asked.is_ok_and(|bytes| bytes > 0), "somebody asks");
            client.write_all((head + &body).as_bytes()).await.ok();
        }
    });
    format!("http://{address}")
}

/// The program's log in a file; removed when dropped.
struct Log(PathBuf);

impl Log {
    fn start(world: &World) -> (Service, Self) {
        let log = Self(std::env::temp_dir().join(format!("waybill-log-{}", Uuid::new_v4().simple())));
        let [http, metrics] = free_addresses();
        let child = serve(world, http, metrics).stderr(File::create(&log.0).unwrap()).spawn().unwrap();
        (Service { child, http, metrics }, log)
    }

    /// The first line with all of these, once there is one.
    async fn says(&self, words: &[&str]) -> String {
        wait_until_within(&format!("the log says {words:?}"), NOTICED_WITHIN, async || {
            let text = std::fs::read_to_string(&self.0).unwrap();
            text.lines().find(|line| words.iter().all(|word| line.contains(word))).map(ToOwned::to_owned)
        })
        .await
    }
}

/// What finance is answered.
async fn asked(world: &World, service: &Service, path: &str) -> String {
    let mut tx = world.bed.database.begin().await.unwrap();
    let key = api_keys::create(&mut tx, NewHolder::Finance, "test", None).await.unwrap().token;
    commit(tx).await.unwrap();
    let mut client = TcpStream::connect(service.http).await.unwrap();
    let headers = format!("Host: here\r\nAuthorization: Bearer {key}\r\nConnection: close");
    client.write_all(format!("GET {path} HTTP/1.1\r\n{headers}\r\n\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    answer
}

impl Drop for Log {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_that_never_answers_is_a_doubt_beside_one_that_does_and_refused_alone() {
    let world = World::idle().await;
    world.publish_prices(gpt5_prices()).await;
    world.publish("gw-1", &usage_event("e-1")).await;
    let (good, (dead, dead_shown)) = (address("WAYBILL_TEST_NATS_MONITOR_URL"), dead_monitor());
    let both = format!("{dead},{good}");
    let connected = world.bed.nats.server_info();
    let synced = json!({"server_id": connected.server_id, "version": connected.version,
        "jetstream": {"config": {"sync_always": true, "strict": true}}});
    let vouching = monitor_of(synced).await;
    let service = Service::start_with(&world, |command| {
        command.env("WAYBILL_NATS_MONITOR_URL", format!("{dead},{vouching}"));
        command.env("WAYBILL_NATS_DURABILITY", "always");
    });
    service.ready().await;
    recorded(&world, 1).await;
    service.shows("waybill_nats_unverified_servers 1").await;
    drop(service);

    // Where the loss is accepted there is nothing to vouch for.
    let service = Service::start_with(&world, |command| {
        command.env("WAYBILL_NATS_MONITOR_URL", &both).env("WAYBILL_NATS_DURABILITY", "any");
    });
    service.ready().await;
    service.shows("waybill_nats_unverified_servers 0").await;
    drop(service);

    // What is wrong is said with where, whatever stands first in the list.
    let service = Service::start_with(&world, |command| {
        command.env("WAYBILL_NATS_MONITOR_URL", &both).env("WAYBILL_NATS_DURABILITY", "always");
    });
    service.refuses(&["nats sync_interval is", &format!("(at {good})")]).await;
    drop(service);

    let (other, other_shown) = dead_monitor();
    let service = Service::start_with(&world, |command| {
        command.env("WAYBILL_NATS_MONITOR_URL", format!("{dead},{other}"));
        command.env("WAYBILL_NATS_DURABILITY", "always");
    });
    let named = [format!("nats monitor of {dead_shown} does"), format!("nats monitor of {other_shown} does")];
    service.refuses(&[&named[0], &named[1]]).await;
    let said = get(service.http, "/readyz").await.unwrap();
    assert!(!said.contains("s3cret"), "{said}");
    service.shows("waybill_nats_unverified_servers 2").await;
    drop(service);
    let service = Service::start_with(&world, |command| {
        command.env("WAYBILL_NATS_MONITOR_URL", &dead).env("WAYBILL_NATS_DURABILITY", "any");
    });
    service.refuses(&[&named[0]]).await;
    service.shows("waybill_nats_unverified_servers 0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_customers_zone_that_the_server_does_not_know_is_named_while_recording_goes_on() {
    let world = World::idle().await;
    world.publish_prices(gpt5_prices()).await;
    let (service, log) = Log::start(&world);
    service.ready().await;
    let mut used = usage_event("e-0");
    used["subject"] = "globex".into();
    world.publish("gw-1", &used).await;
    world.settled().await;
    // As after an upgrade of the server to one without this name.
    let set = async |zone: &str| {
        let statement = format!("UPDATE customers SET time_zone = '{zone}' WHERE external_id = 'globex'");
        sqlx::raw_sql(sqlx::AssertSqlSafe(statement)).execute(&world.pool).await.unwrap();
    };
    set("Mars/Olympus").await;
    service
        .refuses(&["postgres time_zone of customers is Mars/Olympus, which the server does not know"])
        .await;
    log.says(&["usage is not posted: postgres time_zone"]).await;
    service.shows("waybill_setting_wrong{object=\"postgres\",setting=\"time_zone\"} 1").await;
    let days = asked(&world, &service, "/v1/usage?group_by=day").await;
    assert!(days.contains(" 503 ") && days.contains("GET /readyz names it"), "{days}");
    log.says(&["request failed", "Mars/Olympus"]).await;
    world.publish("gw-1", &usage_event("e-1")).await;
    recorded(&world, 2).await;
    set("Europe/Berlin").await;
    service.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn durability_that_nobody_vouches_for_is_shown() {
    let world = World::idle().await;
    let service = Service::start_with(&world, |command| {
        command.env_remove("WAYBILL_NATS_MONITOR_URL").env("WAYBILL_NATS_DURABILITY", "always");
    });
    service.ready().await;
    service.shows("waybill_nats_unverified_servers 1").await;
    drop(service);
    let service = Service::start_with(&world, |command| {
        command.env_remove("WAYBILL_NATS_MONITOR_URL").env("WAYBILL_NATS_DURABILITY", "any");
    });
    service.shows("waybill_nats_unverified_servers 0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_the_server_refuses_to_make_is_named_with_what_else_is_wrong() {
    let world = World::idle().await;
    world.context().delete_stream(&world.names.stream).await.unwrap();
    let monitor = address("WAYBILL_TEST_NATS_MONITOR_URL");
    let service = Service::start_with(&world, |command| {
        command.env("WAYBILL_STREAM_REPLICAS", "3").env("WAYBILL_NATS_MONITOR_URL", monitor);
        command.env("WAYBILL_NATS_DURABILITY", "always").env("WAYBILL_POSTGRES_DURABILITY", "always");
    });
    service
        .refuses(&[
            "stream create is refused: replicas > 1 not supported in non-clustered mode",
            "nats sync_interval is",
            "postgres fsync is",
            // It answers.
            "\"stream\":\"recording waits for the settings\"",
        ])
        .await;
    service.shows("waybill_setting_wrong{object=\"stream\",setting=\"create\"} 1").await;
    drop(service);

    // Where it can be made, it is.
    let service = Service::start(&world);
    service.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_and_consumer_are_named_together() {
    let world = World::idle().await;
    let service = Service::start(&world);
    service.ready().await;
    let (good_stream, good_consumer) = (config(&world).await, consumer_config(&world).await);
    let bounded = async_nats::jetstream::consumer::Config {
        max_expires: Duration::from_secs(1),
        max_batch: 100,
        ..good_consumer.clone()
    };
    let subject = format!("CONSUMER.CREATE.{}.{CONSUMER}", world.names.stream);
    let set = async |config| {
        let update = json!({"stream_name": world.names.stream, "config": config, "action": "update"});
        let _: Value = world.context().request(subject.clone(), &update).await.unwrap();
    };
    set(&bounded).await;
    world.context().update_stream(Config { max_messages: 9, ..good_stream.clone() }).await.unwrap();
    service
        .refuses(&[
            "stream max_msgs is 9",
            "consumer max_expires is 1s, must be at least 2s",
            "consumer max_batch is 100, must be at least 2500",
        ])
        .await;
    world.context().update_stream(good_stream).await.unwrap();
    set(&good_consumer).await;
    service.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn compression_is_refused_where_a_server_may_damage_it() {
    let world = World::idle().await;
    let compressed = Config { compression: Some(Compression::S2), ..config(&world).await };
    world.context().update_stream(compressed).await.unwrap();
    let service = Service::start(&world);
    service.ready().await;
    drop(service);
    let old = json!({"version": "2.11.9", "jetstream": {"config": {"sync_always": true}}});
    let monitor = monitor_of(old).await;
    let service = Service::start_with(&world, |command| {
        command.env("WAYBILL_NATS_MONITOR_URL", monitor);
    });
    service.refuses(&["stream compression is \\\"s2\\\", must be none: NATS 2.11.9 may damage"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_another_size_than_asked_for_is_kept_and_said() {
    let world = World::idle().await;
    let other = Config { max_bytes: 64 << 20, ..config(&world).await };
    world.context().update_stream(other).await.unwrap();
    let (service, log) = Log::start(&world);
    service.ready().await;
    let said = log.says(&["may hold 67108864 bytes", "WAYBILL_STREAM_MAX_BYTES says 134217728"]).await;
    assert!(said.contains("--max-bytes=134217728") && said.contains("WARN"), "{said}");
    assert_eq!(config(&world).await.max_bytes, 64 << 20, "whoever set it meant it");
    service.shows("waybill_stream_bytes_max 67108864").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setting_whose_value_changes_is_not_called_right_again() {
    let world = World::idle().await;
    let (service, log) = Log::start(&world);
    service.ready().await;
    let good = config(&world).await;
    for most in [9, 8] {
        world.context().update_stream(Config { max_messages: most, ..good.clone() }).await.unwrap();
        log.says(&[&format!("stream max_msgs is {most}, must be -1")]).await;
    }
    assert!(!std::fs::read_to_string(&log.0).unwrap().contains("right again"));
    world.context().update_stream(good).await.unwrap();
    log.says(&["right again", "max_msgs"]).await;
    service.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn open_rejections_are_counted_until_there_are_none_and_gauges_have_an_age() {
    let world = World::idle().await;
    let (service, log) = Log::start(&world);
    service.ready().await;
    world.publish("gw-1", &usage_event("e-1")).await;
    service.shows("waybill_rejections_open{reason=\"unpriced\"} 1").await;
    world.publish_prices(gpt5_prices()).await;
    recorded(&world, 1).await;
    service.shows("waybill_rejections_open{reason=\"unpriced\"} 0").await;
    for of in ["stream", "ledger"] {
        let started = now().timestamp() - 60;
        let read = wait_until("gauges have an age", async || {
            let text = get(service.metrics, "/metrics").await?;
            let line = format!("waybill_gauges_read_timestamp_seconds{{of=\"{of}\"}} ");
            text.lines().find_map(|text| text.strip_prefix(&line)?.parse::<i64>().ok())
        })
        .await;
        assert!((started..=now().timestamp()).contains(&read), "{of}: {read}");
    }
    // Somebody holds what they are read from longer than a statement waits for a lock.
    let mut holder = world.pool.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE rejections IN ACCESS EXCLUSIVE MODE").execute(&mut *holder).await.unwrap();
    let said = log.says(&["gauges cannot be read", "ledger"]).await;
    assert!(said.contains("WARN"), "{said}");
    drop(holder);
    log.says(&["gauges can be read again"]).await;
}
