//! The program as an operator runs it: start, readiness, metrics, stop.

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use sqlx::AssertSqlSafe;
use tokio::io::{AsyncBufReadExt, BufReader};
use waybill::ingest::Publisher;
use waybill::store::{PoolWatch, Scope, gauges};

use crate::harness::{TestBed, free_addresses, get, wait_until, wait_until_within};
use crate::private_nats::PrivateNats;
use crate::world::{World, usage_event};

/// An address that was free a moment ago.
pub fn free_address() -> SocketAddr {
    let [address] = free_addresses();
    address
}

/// The program on a world's database and stream.
pub fn serve(world: &World, http: SocketAddr, metrics: SocketAddr) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_waybill"));
    command
        .arg("serve")
        .env("WAYBILL_DATABASE_URL", &world.bed.database_url)
        .env("WAYBILL_NATS_URL", &world.bed.nats_url)
        .env("WAYBILL_STREAM", &world.names.stream)
        .env("WAYBILL_SUBJECT_PREFIX", &world.names.prefix)
        .env("WAYBILL_STREAM_MAX_BYTES", (128_i64 << 20).to_string())
        .env("WAYBILL_ACK_WAIT_SECONDS", world.limits.ack_wait.as_secs().to_string())
        .env("WAYBILL_HTTP_ADDR", http.to_string())
        .env("WAYBILL_METRICS_ADDR", metrics.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// Asks the process to stop and waits until it has.
fn terminate(child: Child) -> Output {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), Signal::SIGTERM).unwrap();
    child.wait_with_output().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_gets_ready_records_counts_and_stops_when_told() {
    let world = World::patient_idle().await;
    world.publish_prices(crate::world::gpt5_prices()).await;
    let [http, metrics] = free_addresses();
    let child = serve(&world, http, metrics).spawn().unwrap();
    wait_until("it is ready", async || get(http, "/readyz").await.filter(|answer| answer.contains(" 200 ")))
        .await;
    assert!(get(http, "/livez").await.unwrap().contains(" 200 "));
    world.publish("gw-1", &usage_event("e-1")).await;
    world.publish("gw-1", &usage_event("e-1")).await;
    let mut refused = usage_event("e-2");
    refused["data"]["model"] = "gpt-99".into();
    world.publish("gw-1", &refused).await;
    // Ours is 0.00125 USD.
    for (id, stated) in [("e-3", "0.00125"), ("e-4", "0.0025"), ("e-3", "0.00125")] {
        let mut event = usage_event(id);
        event["data"].as_object_mut().unwrap().remove("usage");
        event["data"]["provider_usage"] = json!({"format": "openai.chat",
            "body": {"usage": {"prompt_tokens": 1000, "completion_tokens": 0, "cost": stated}}});
        world.publish("gw-1", &event).await;
    }
    for counted in [
        "waybill_events_total{outcome=\"recorded\"} 3",
        "waybill_events_total{outcome=\"duplicate\"} 2",
        "waybill_stated_cost_parts_total{provider=\"openai\",verdict=\"agrees\"} 1",
        "waybill_stated_cost_parts_total{provider=\"openai\",verdict=\"above\"} 1",
        "waybill_events_total{outcome=\"rejected\"} 1",
        "waybill_rejections_open{reason=\"unpriced\"} 1",
        "waybill_stream_lag_messages 0",
        "waybill_record_seconds_count",
        "waybill_batch_events_count",
        "waybill_unposted_oldest_seconds 0",
        "waybill_unaccounted_sequences 0",
        "waybill_gateway_missing_events{gateway=\"gw-1\"} 0",
        "waybill_part_up{part=\"ingest\"} 1",
    ] {
        // Gaps of gateways are looked for every twenty seconds, where reading them takes long less often.
        wait_until_within(counted, Duration::from_mins(1), async || {
            get(metrics, "/metrics").await.filter(|text| text.contains(counted))
        })
        .await;
    }
    assert!(get(http, "/metrics").await.unwrap().contains(" 404 "), "metrics have a listener of their own");
    let stopped = terminate(child);
    assert!(stopped.status.success(), "{}", String::from_utf8_lossy(&stopped.stderr));
    world.settled().await;
    world.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_role_has_probes_beside_its_metrics_and_shows_a_database_that_is_gone() {
    /// Ends all sessions but its own; an autovacuum is another role's, which the login may not end.
    const ENDED: &str = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
                         WHERE datname = current_database() AND pid <> pg_backend_pid()
                           AND backend_type = 'client backend'";
    let world = World::idle().await;
    let (_, name) = world.bed.database_url.rsplit_once('/').unwrap();
    for role in ["--consumer", "--jobs"] {
        let [http, metrics] = free_addresses();
        let mut command = serve(&world, http, metrics);
        let child = command.arg(role).stderr(Stdio::null()).spawn().unwrap();
        let ready = wait_until("it is ready", async || {
            get(metrics, "/readyz").await.filter(|answer| answer.contains(" 200 "))
        })
        .await;
        assert!(ready.contains("\"database\":\"ok\""), "{ready}");
        assert!(get(metrics, "/livez").await.unwrap().contains(" 200 "));
        assert!(get(http, "/readyz").await.is_none(), "nobody listens there");
        let shows = async |line: &str| {
            wait_until(line, async || get(metrics, "/metrics").await.filter(|text| text.contains(line))).await
        };
        shows("waybill_part_up{part=\"database\"} 1").await;
        let mut owner = world.pool.acquire().await.unwrap();
        for statement in [&format!("ALTER DATABASE {name} CONNECTION LIMIT 0"), ENDED] {
            sqlx::raw_sql(AssertSqlSafe(statement.to_owned())).execute(&mut *owner).await.unwrap();
        }
        shows("waybill_part_up{part=\"database\"} 0").await;
        let said = get(metrics, "/readyz").await.unwrap();
        assert!(said.contains(" 503 ") && said.contains("\"database\":\"does not answer\""), "{said}");
        sqlx::raw_sql(AssertSqlSafe(format!("ALTER DATABASE {name} CONNECTION LIMIT -1")))
            .execute(&mut *owner)
            .await
            .unwrap();
        shows("waybill_part_up{part=\"database\"} 1").await;
        terminate(child);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_not_ready_while_nothing_can_be_recorded() {
    let world = World::idle().await;
    world.publish_prices(crate::world::gpt5_prices()).await;
    let [http, metrics] = free_addresses();
    let child = serve(&world, http, metrics).stderr(Stdio::null()).spawn().unwrap();
    wait_until("it is ready", async || get(http, "/readyz").await.filter(|answer| answer.contains(" 200 ")))
        .await;
    // Somebody holds the journal longer than a transaction waits for a lock.
    let mut holder = world.pool.begin().await.unwrap();
    sqlx::raw_sql("LOCK TABLE ingest_batches IN ACCESS EXCLUSIVE MODE").execute(&mut *holder).await.unwrap();
    world.publish("gw-1", &usage_event("e-1")).await;
    let down = async || get(http, "/readyz").await.filter(|answer| answer.contains(" 503 "));
    let said = wait_until("it is not ready", down).await;
    assert!(said.contains("usage cannot be recorded"), "{said}");
    drop(holder);
    wait_until("it is ready again", async || {
        get(http, "/readyz").await.filter(|answer| answer.contains(" 200 "))
    })
    .await;
    world.settled().await;
    assert_eq!(world.recorded_events().await, 1);
    terminate(child);
}

#[tokio::test(flavor = "multi_thread")]
async fn contradictions_and_missing_servers_are_refused_with_a_sentence() {
    let world = World::idle().await;
    let address = free_address();
    let refused = |mut command: Command| {
        let output = command.output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let same = refused(serve(&world, address, address));
    assert!(same.contains("metrics need an address of their own"), "{same}");
    let mut wrong = serve(&world, address, free_address());
    wrong.env("WAYBILL_DATABASE_URL", "mysql://localhost/waybill");
    let wrong = refused(wrong);
    assert!(wrong.contains("WAYBILL_DATABASE_URL starts with `mysql`"), "{wrong}");
    let mut websocket = serve(&world, address, free_address());
    websocket.env("WAYBILL_NATS_URL", "wss://localhost");
    let websocket = refused(websocket);
    assert!(
        websocket.contains("WAYBILL_NATS_URL starts with `wss`; it must start with nats://"),
        "{websocket}"
    );
    let mut logs = serve(&world, address, free_address());
    logs.env("WAYBILL_LOG", "waybill=chatty");
    let logs = refused(logs);
    assert!(logs.contains("WAYBILL_LOG or --log is `waybill=chatty`, which names no logs"), "{logs}");
    let mut gone = serve(&world, address, free_address());
    gone.env("WAYBILL_DATABASE_URL", format!("postgres://nobody@{}/none", free_address()));
    let gone = refused(gone);
    assert!(gone.contains("cannot connect to PostgreSQL; check WAYBILL_DATABASE_URL"), "{gone}");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let busy = refused(serve(&world, taken.local_addr().unwrap(), free_address()));
    assert!(busy.contains("set WAYBILL_HTTP_ADDR to a free address"), "{busy}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_permission_that_nats_denies_is_named_in_the_log() {
    let (world, nats) = (World::idle().await, PrivateNats::start().await);
    let mut command = tokio::process::Command::from(serve(&world, free_address(), free_address()));
    // A gateway's user may publish usage and nothing else.
    command.env("WAYBILL_NATS_URL", nats.gateway_url()).kill_on_drop(true);
    let mut child = command.spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let named = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            if line.contains("NATS reports an error") {
                assert!(line.contains("Permissions Violation for "), "{line}");
                return true;
            }
        }
        false
    };
    assert!(tokio::time::timeout(Duration::from_secs(30), named).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_right_that_nats_denies_a_gateway_is_told_by_what_could_not_be_published() {
    let nats = PrivateNats::start().await;
    let publisher = Publisher::of_gateway(&nats.gateway_url(), "usage.v1", "gw-other").await.unwrap();
    wait_until("it is connected", async || publisher.connected().then_some(())).await;
    let said = publisher.publish("gw-other", "{}".into()).await.unwrap_err().to_string();
    assert!(said.contains("did not confirm") && said.contains("ermissions Violation for "), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schema_that_is_older_than_the_program_is_refused_with_what_to_do() {
    let world = World::idle().await;
    world
        .bed
        .run("DELETE FROM _sqlx_migrations WHERE version = (SELECT max(version) FROM _sqlx_migrations)")
        .await;
    let output = serve(&world, free_address(), free_address()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("run `waybill migrate` as the owner"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_compared_is_no_difference() {
    let world = World::idle().await;
    let verify = |url: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_waybill"));
        command.arg("verify").env("WAYBILL_DATABASE_URL", url).output().unwrap()
    };
    assert_eq!(verify(&world.bed.database_url).status.code(), Some(0));
    let gone = verify(&format!("postgres://nobody@{}/none", free_address()));
    let said = String::from_utf8(gone.stderr).unwrap();
    assert_eq!(gone.status.code(), Some(2), "{said}");
    assert!(said.contains("check WAYBILL_DATABASE_URL"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pool_that_gives_and_takes_back_nothing_is_found() {
    let bed = TestBed::new().await;
    let mut watch = PoolWatch::new(&bed.database);
    assert_eq!(watch.look(Duration::ZERO).await, None, "idle connections are no trouble");
    let mut held = Vec::new();
    while let Ok(transaction) = bed.database.begin_ingest().await {
        held.push(transaction);
    }
    assert_eq!(watch.look(Duration::from_hours(1)).await, None, "it is given time");
    assert_eq!(watch.look(Duration::ZERO).await, Some("ingest"));
    held.pop();
    wait_until("a connection is given", async || bed.database.ping_ingest().await.ok()).await;
    assert_eq!(watch.look(Duration::ZERO).await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_partition_of_the_journal_is_there_before_it_is_needed() {
    let world = World::start().await;
    let ahead = async || {
        let mut tx = world.bed.database.read(Scope::Everything).await.unwrap();
        gauges::partition_days_ahead(&mut tx).await.unwrap()
    };
    assert_eq!(ahead().await, None, "partitions are made as dates open, and none has");
    world.publish("gw-1", &usage_event("e-1")).await;
    world.settled().await;
    let days = ahead().await.unwrap();
    assert!((29..=62).contains(&days), "{days} days");
}
