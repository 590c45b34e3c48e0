//! What a fault test stands on: a ledger and a stream of its own, everything reached through proxies, and the auditor.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use async_nats::ConnectOptions;
use async_nats::jetstream::{self, Context, consumer};
use chrono::DateTime;
use serde_json::{Value, json};
use sqlx::PgPool;
use sqlx::postgres::PgPoolOptions;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use uuid::Uuid;
use waybill::clock::Clock;
use waybill::domain::price::quotation::NewPrice;
use waybill::ingest::{self, StreamLimits, StreamNames};
use waybill::store::customers::{NewAssignment, NewCustomer};
use waybill::store::{self, Database, catalog, commit, customers, gateways, prices};

use crate::cluster_bed::{Cluster, NODES};
use crate::dump;
use crate::harness::{TestBed, wait_until, wait_until_done};
use crate::protocol::Protocol;
use crate::proxy::Proxy;
use crate::rounds::thorough;
use crate::servers::{OwnServer, Volume, Which, address_of};
use crate::service::Serve;
use crate::snapshots::Snapshots;
use crate::watching::accounted_in;

/// Customers, and models with a price.
pub const CUSTOMERS: [&str; 4] = ["acme", "globex", "initech", "umbrella"];
pub const MODELS: [(&str, &str); 4] = [
    ("openai", "gpt-5"),
    ("openai", "gpt-5-mini"),
    ("anthropic", "claude-sonnet-4-5"),
    ("anthropic", "claude-haiku-4-5"),
];
/// Gateways on the servers that all tests share, and the one that the shipped configuration of NATS knows.
const SHARED_GATEWAYS: [&str; 2] = ["gw-1", "gw-2"];
const SHIPPED_GATEWAY: &str = "gw-eu-1";
/// Small enough for many streams beside each other ...
const STREAM_BYTES_MAX: i64 = 64 << 20;
/// ... and large enough for gateways that go on for a quarter of an hour: a full stream would stop them.
const LONG_STREAM_BYTES_MAX: i64 = 1 << 30;
/// What a killed consumer had in hand is delivered again after this.
pub const ACK_WAIT: Duration = Duration::from_secs(2);
/// The acknowledgement wait of production.
pub const LONG_ACK_WAIT_SECONDS: u64 = 60;
/// Connections of the program to NATS: its consumer's, and that of the API, which publishes.
pub const NATS_CONNECTIONS: u64 = 2;
/// Longer than a full batch takes to be fetched, decided and written.
pub const FULL_BATCH_SECONDS: u64 = 10;
/// How long nothing may be recorded or posted once the fault is over: longer than anything waits that is delivered again.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(2 * LONG_ACK_WAIT_SECONDS + 30);
/// How often it is looked whether it is.
const SETTLE_POLL: Duration = Duration::from_millis(50);

/// Batches that are not posted.
const UNPOSTED: &str = "SELECT count(*) FROM ingest_batches WHERE posted_at IS NULL";
/// The same, and corrections that came before their estimates, which are there by now: they are tried again.
const UNFINISHED: &str = "SELECT (SELECT count(*) FROM ingest_batches WHERE posted_at IS NULL)
    + (SELECT count(*) FROM rejections r WHERE r.resolved_at IS NULL AND r.reason = 'unknown_estimate'
         AND (SELECT true FROM usage_events e WHERE e.event_key = r.waits_for LIMIT 1))";

/// Which servers are the test's own, because the fault is of the server itself.
#[derive(Default)]
pub struct Own {
    pub postgres: bool,
    pub nats: bool,
    /// Where they keep their data, instead of the temporary folder.
    pub postgres_volume: Option<Volume>,
    pub nats_volume: Option<Volume>,
    /// Instead of one NATS server three, reached without proxies.
    pub cluster: bool,
    /// What is known beside the gateways, customers and models of every bed.
    pub catalog: Catalog,
    /// What the stream may hold, where that is not little.
    pub stream_bytes_max: Option<i64>,
}

/// A share of the machine for as long as a bed is used; all of it for one that is alone.
static MACHINE: Semaphore = Semaphore::const_new(BEDS_MAX as usize);
/// More beds than there are at a time.
const BEDS_MAX: u32 = 1_000;

/// Gateways, customers and models of a test's own, each model with its provider.
#[derive(Default)]
pub struct Catalog {
    pub gateways: Vec<String>,
    pub customers: Vec<String>,
    pub models: Vec<(String, String)>,
}

/// The bed; its folder is kept where the test fails.
pub struct Bed {
    pub names: StreamNames,
    /// The ledger, past the proxies.
    pub pool: PgPool,
    /// The stream's server, past the proxies.
    pub context: Context,
    /// Between the program and PostgreSQL, the program and NATS, the gateways and NATS.
    pub postgres: Proxy,
    pub nats: Proxy,
    pub intake: Proxy,
    pub own_postgres: Option<OwnServer>,
    pub own_nats: Option<OwnServer>,
    pub cluster: Option<Cluster>,
    /// The gateways that may publish.
    pub gateways: Vec<String>,
    pub folder: PathBuf,
    database_url: String,
    nats_url: String,
    gateway_url: String,
    stream_bytes_max: i64,
    snapshots: Option<Snapshots>,
    // Removed last.
    _shared: Option<TestBed>,
    share: SemaphorePermit<'static>,
}

impl Bed {
    /// On the servers that all tests share.
    pub async fn new(name: &str) -> Self {
        Self::with(name, Own::default()).await
    }

    /// With servers of its own.
    pub async fn with(name: &str, own: Own) -> Self {
        // Starting servers takes a large future, which no test needs to carry along.
        Box::pin(Self::start(name, own, 1)).await
    }

    /// On the servers that all tests share, with no other test beside it, because it compares times.
    pub async fn alone(name: &str) -> Self {
        Self::alone_with(name, Own::default()).await
    }

    /// The same with servers of its own.
    pub async fn alone_with(name: &str, own: Own) -> Self {
        Box::pin(Self::start(name, own, BEDS_MAX)).await
    }

    async fn start(name: &str, own: Own, share: u32) -> Self {
        let share = MACHINE.acquire_many(share).await.unwrap();
        let all_own = own.postgres && (own.nats || own.cluster);
        let shared = if all_own { None } else { Some(TestBed::new().await) };
        let own_postgres = if own.postgres {
            Some(OwnServer::start(Which::Postgres, own.postgres_volume).await)
        } else {
            None
        };
        let own_nats =
            if own.nats { Some(OwnServer::start(Which::Nats, own.nats_volume).await) } else { None };
        let database_url = match (&own_postgres, &shared) {
            (Some(server), _) => server.url(),
            (None, shared) => shared.as_ref().unwrap().database_url.clone(),
        };
        let cluster = if own.cluster { Some(Cluster::start().await) } else { None };
        let own_urls = own_nats.as_ref().map(|server| (server.url(), server.gateway_url()));
        let own_urls = cluster.as_ref().map(|cluster| (cluster.url(), cluster.gateway_url())).or(own_urls);
        let (nats_url, gateway_url, names, gateways) = match (own_urls, &shared) {
            (Some((url, gateway_url)), _) => {
                let names = StreamNames { stream: "USAGE".to_owned(), prefix: "usage.v1".to_owned() };
                (url, gateway_url, names, vec![SHIPPED_GATEWAY.to_owned()])
            }
            (None, shared) => {
                let shared = shared.as_ref().unwrap();
                let (stream, prefix) = (shared.stream.clone(), shared.subject_prefix.clone());
                let gateways = SHARED_GATEWAYS.map(str::to_owned).to_vec();
                (shared.nats_url.clone(), shared.nats_url.clone(), StreamNames { stream, prefix }, gateways)
            }
        };
        fill_catalog(&database_url, &own.catalog).await;
        let client = ingest::connect(&nats_url, ConnectOptions::new()).await.unwrap();
        let context = jetstream::new(client);
        let replicas = if cluster.is_some() { NODES } else { 1 };
        let bytes_max = own.stream_bytes_max.unwrap_or(limits().bytes_max);
        ingest::stream::open(&context, &names, StreamLimits { replicas, bytes_max, ..limits() })
            .await
            .unwrap();
        let first_nats = nats_url.split(',').next().unwrap();
        let folder = std::env::temp_dir()
            .join(format!("waybill-fault-{name}-{}", &Uuid::new_v4().simple().to_string()[..8]));
        std::fs::create_dir_all(folder.join("journals")).unwrap();
        Self {
            names,
            pool: PgPoolOptions::new().max_connections(4).connect(&database_url).await.unwrap(),
            context,
            postgres: Proxy::start(Protocol::Postgres, address_of(&database_url)).await,
            nats: Proxy::start(Protocol::Nats, address_of(first_nats)).await,
            intake: Proxy::start(Protocol::Nats, address_of(first_nats)).await,
            own_postgres,
            own_nats,
            cluster,
            gateways,
            folder,
            database_url,
            nats_url,
            gateway_url,
            stream_bytes_max: bytes_max,
            snapshots: None,
            _shared: shared,
            share,
        }
    }

    /// Lets other tests run beside one that was alone: it compares no times any more.
    pub fn is_alone_no_longer(&mut self) {
        drop(self.share.split(BEDS_MAX as usize - 1));
    }

    /// The program as it is built, with both its servers behind the proxies, but for a cluster.
    pub fn serve(&self) -> Serve {
        let (nats_url, replicas) = match &self.cluster {
            Some(cluster) => (cluster.url(), NODES),
            None => (self.nats.in_front_of(&self.nats_url), 1),
        };
        let database_url = format!("{}?sslmode=disable", self.postgres.in_front_of(&self.database_url));
        let serve = Serve {
            program: env!("CARGO_BIN_EXE_waybill").into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            log: self.folder.join("serve.log"),
        };
        serve
            .env("WAYBILL_DATABASE_URL", &database_url)
            .env("WAYBILL_NATS_URL", &nats_url)
            .env("WAYBILL_STREAM_REPLICAS", &replicas)
            .env("WAYBILL_STREAM", &self.names.stream)
            .env("WAYBILL_SUBJECT_PREFIX", &self.names.prefix)
            .env("WAYBILL_STREAM_MAX_BYTES", &self.stream_bytes_max)
            .env("WAYBILL_ACK_WAIT_SECONDS", &ACK_WAIT.as_secs())
            .env("WAYBILL_LOG", &"info,async_nats=warn,sqlx=error")
    }

    /// A program that is wrong on purpose, in the ways that are named (`sabotage/build.py`), with commas between.
    pub fn serve_sabotaged(&self, faults: &str) -> Serve {
        let program = std::env::var_os("WAYBILL_FAULTS_SABOTAGED");
        let program =
            program.expect("WAYBILL_FAULTS_SABOTAGED names the program: run make test-faults").into();
        Serve { program, ..self.serve() }.env("WAYBILL_SABOTAGE", &faults)
    }

    /// As a gateway reaches NATS: through the proxy of the gateways, but for a cluster.
    pub fn intake_url(&self) -> String {
        if self.cluster.is_some() {
            return self.gateway_url.clone();
        }
        self.intake.in_front_of(&self.gateway_url)
    }

    /// Starts the NATS server of its own again, and leads everybody there.
    pub async fn start_nats_again(&mut self) {
        let server = self.own_nats.as_mut().unwrap();
        server.start_again().await;
        for proxy in [&self.nats, &self.intake] {
            proxy.retarget(server.address());
        }
        let client = ingest::connect(&server.url(), ConnectOptions::new()).await.unwrap();
        self.context = jetstream::new(client);
    }

    /// As one that may publish for every gateway reaches NATS: through the proxy of the gateways.
    pub fn intake_of_all_url(&self) -> String {
        self.intake.in_front_of(&self.nats_url)
    }

    /// The database, past the proxies.
    pub fn database_url(&self) -> &str {
        &self.database_url
    }

    /// One number from the ledger.
    pub async fn number(&self, query: &'static str) -> i64 {
        sqlx::query_scalar(query).fetch_one(&self.pool).await.unwrap()
    }

    /// Messages that the stream has, and the life of it that they are counted in.
    pub async fn stream_state(&self) -> Option<(i64, Uuid)> {
        let stream = self.context.get_stream(&self.names.stream).await.ok()?;
        let info = stream.cached_info();
        let incarnation = info.config.metadata.get("waybill_incarnation")?.parse().ok()?;
        Some((i64::try_from(info.state.last_sequence).unwrap(), incarnation))
    }

    /// The consumer as its server sees it.
    pub async fn consumer_info(&self) -> Option<consumer::Info> {
        let stream = self.context.get_stream(&self.names.stream).await.ok()?;
        stream.consumer_info(ingest::stream::CONSUMER).await.ok()
    }

    /// Waits until every message of the stream is acknowledged, whether the ledger has it or not. Those may be many, as long
    /// as it goes on.
    pub async fn acknowledged(&self) {
        wait_until_done("every message is acknowledged", async || {
            let Some(consumer) = self.consumer_info().await else {
                return Some("the consumer does not answer".to_owned());
            };
            let (waiting, delivered) = (consumer.num_pending, consumer.num_ack_pending);
            (waiting > 0 || delivered > 0)
                .then(|| format!("{waiting} messages wait, {delivered} are delivered"))
        })
        .await;
    }

    /// Batches that are not posted.
    pub async fn unposted(&self) -> i64 {
        self.number(UNPOSTED).await
    }

    /// Waits until every batch is posted, and no correction waits for an estimate that is recorded. Those may be many, as
    /// long as it goes on.
    pub async fn posted(&self) {
        wait_until_done("every batch is posted", async || {
            let left = self.number(UNFINISHED).await;
            (left > 0).then(|| format!("{left} batches or corrections"))
        })
        .await;
    }

    /// Waits until a message of the stream is recorded.
    pub async fn recorded(&self, sequence: i64) {
        let (_, life) = self.stream_state().await.unwrap();
        wait_until("a message is recorded", async || {
            let found: bool = sqlx::query_scalar(
                "SELECT EXISTS (SELECT FROM ingest_batches WHERE incarnation = $1 AND sequences @> $2)",
            )
            .bind(life)
            .bind(sequence)
            .fetch_one(&self.pool)
            .await
            .unwrap();
            found.then_some(())
        })
        .await;
    }

    /// Waits until every message of the stream is accounted for and everything is [posted](Self::posted); returns how long
    /// it took. A backlog may take its time, as long as it shrinks.
    pub async fn settled(&self) -> Duration {
        self.until_settled(SETTLE_TIMEOUT, true).await
    }

    /// The same, within a limit.
    pub async fn settled_within(&self, limit: Duration) -> Duration {
        self.until_settled(limit, false).await
    }

    /// The same within a limit, which begins anew with whatever is done where that is asked for.
    async fn until_settled(&self, limit: Duration, anew: bool) -> Duration {
        let (started, mut since) = (Instant::now(), Instant::now());
        let mut before = None;
        while let Some(left) = self.unsettled().await {
            if anew && before.as_ref() != Some(&left) {
                since = Instant::now();
            }
            if since.elapsed() >= limit {
                self.not_settled(limit, &left).await;
            }
            before = Some(left);
            tokio::time::sleep(SETTLE_POLL).await;
        }
        started.elapsed()
    }

    /// Fails, with what is left and what the stream and its consumer say of themselves.
    async fn not_settled(&self, limit: Duration, left: &str) -> ! {
        let stream =
            self.context.get_stream(&self.names.stream).await.map(|stream| stream.cached_info().clone());
        let consumer = self.consumer_info().await;
        panic!(
            "not settled within {} s: {left}; see {}\n{stream:?}\n{consumer:?}",
            limit.as_secs(),
            self.folder.display()
        );
    }

    /// What is left to do; `None` where nothing is.
    async fn unsettled(&self) -> Option<String> {
        let Some((last, incarnation)) = self.stream_state().await else {
            return Some("the stream does not answer".to_owned());
        };
        let looked = async {
            let seen = accounted_in(&self.pool, Some(incarnation)).await?;
            Ok::<(i64, i64), sqlx::Error>((seen, sqlx::query_scalar(UNFINISHED).fetch_one(&self.pool).await?))
        };
        match looked.await {
            Ok((seen, 0)) if seen >= last => None,
            Ok((seen, unposted)) => Some(format!(
                "{seen} of {last} messages are accounted for, {unposted} batches or corrections are not posted"
            )),
            Err(error) => Some(error.to_string()),
        }
    }

    /// Takes snapshots of the ledger from now on until it is judged, for I12; after that they can be taken again.
    pub fn take_snapshots(&mut self) {
        self.snapshots = Some(Snapshots::take(self.database_url.clone(), self.folder.join("snapshots")));
    }

    /// Lets the auditor judge the ledger as it is now, with everything that the gateways say they sent.
    pub async fn audit(&mut self) -> Verdict {
        if let Some(snapshots) = self.snapshots.take() {
            snapshots.end().await;
        }
        let end = self.folder.join("end");
        dump::ledger(&self.database_url, &end).await.unwrap();
        dump::stream(&self.context, &self.names.stream, &end.join("stream.jsonl")).await;
        // A server that a test may kill can forget what it has delivered.
        if self.own_nats.is_none() && self.cluster.is_none() {
            dump::deliveries(&self.context, &self.names.stream, &end.join("deliveries.json")).await;
        }
        Verdict::of(&self.folder)
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        // No longer than their folder.
        drop(self.snapshots.take());
        if std::thread::panicking() {
            eprintln!("kept: {}", self.folder.display());
        } else {
            std::fs::remove_dir_all(&self.folder).ok();
        }
    }
}

/// What the auditor found.
#[derive(Debug)]
pub struct Verdict {
    pub violated: BTreeSet<String>,
    /// Events that could have been recorded and are rejections only.
    pub refused: usize,
    pub text: String,
}

impl Verdict {
    /// Judges a folder with `journals`, `snapshots` and `end`.
    pub fn of(folder: &Path) -> Self {
        let auditor = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/auditor/audit.py");
        let output = Command::new("python3").arg("-B").arg(auditor).arg(folder).output();
        let output = output.expect("python3 is on the PATH");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(output.status.code(), Some(0 | 1)) && errors.is_empty(), "{text}{errors}");
        let violated: BTreeSet<String> = text
            .lines()
            .filter_map(|line| Some(line.strip_prefix("VIOLATED ")?.split(':').next()?.to_owned()))
            .collect();
        assert_eq!(violated.is_empty(), output.status.success(), "{text}");
        let refused =
            text.lines().find_map(|line| line.strip_prefix("REFUSED ")?.split(':').next()?.parse().ok());
        Self { violated, refused: refused.unwrap_or(0), text }
    }

    /// Every invariant holds, and everything that could be recorded is.
    pub fn clean(&self) {
        assert!(self.violated.is_empty() && self.refused == 0, "{}", self.text);
    }

    /// Every invariant holds, and some events are rejections that could have been recorded.
    pub fn clean_but_refused(&self) {
        assert!(self.violated.is_empty() && self.refused > 0, "{}", self.text);
    }

    /// A deliberately wrong build was found out.
    pub fn violates(&self, invariant: &str) {
        assert!(self.violated.contains(invariant), "{invariant} should be violated:\n{}", self.text);
    }
}

/// How every bed's stream is stored.
pub fn limits() -> StreamLimits {
    let bytes_max = if thorough() { LONG_STREAM_BYTES_MAX } else { STREAM_BYTES_MAX };
    StreamLimits { replicas: 1, bytes_max, ack_wait: ACK_WAIT }
}

/// Gateways, customers, a cost book with a price per model, and a sell book of cost plus a fifth.
async fn fill_catalog(database_url: &str, more: &Catalog) {
    store::migrate(database_url).await.unwrap();
    let database = Database::connect(database_url).await.unwrap();
    let mut tx = database.begin().await.unwrap();
    let more_gateways = more.gateways.iter().map(String::as_str);
    for gateway in SHARED_GATEWAYS.into_iter().chain([SHIPPED_GATEWAY]).chain(more_gateways) {
        gateways::create(&mut tx, gateway, None).await.unwrap();
    }
    let book = |value: Value| serde_json::from_value::<prices::NewBook>(value).unwrap();
    let cost = book(json!({"name": "cost", "kind": "cost", "currency": "USD"}));
    let cost_book = prices::create_book(&mut tx, &cost, "test").await.unwrap().info.id;
    let sell = json!({"name": "sell", "kind": "sell", "currency": "USD", "base": "cost", "markup": "1.2"});
    let sell_book = prices::create_book(&mut tx, &book(sell), "test").await.unwrap().info.id;
    let more_models = more.models.iter().map(|(provider, model)| (provider.as_str(), model.as_str()));
    let new: Vec<Value> = MODELS
        .into_iter()
        .chain(more_models)
        .zip(1..)
        .map(|((provider, model), number)| {
            let rates = json!({"input": format!("{number}.25"), "cache_read": format!("0.12{number}"),
                               "cache_write_5m": format!("{number}.5625"), "output": format!("{number}0")});
            json!({"provider": provider, "model": model, "per": 1_000_000, "rates": rates,
                   "valid_from": "2025-01-01T00:00:00Z", "source": "test"})
        })
        .collect();
    let new: Vec<NewPrice> = serde_json::from_value(new.into()).unwrap();
    prices::publish(&mut tx, "cost", &new, Clock::System.now(), "test").await.unwrap();
    for external_id in CUSTOMERS.into_iter().chain(more.customers.iter().map(String::as_str)) {
        let new = NewCustomer { external_id, name: external_id, time_zone: "Europe/Berlin", anchor_day: 1 };
        let id = customers::create(&mut tx, new).await.unwrap().id;
        let books = NewAssignment {
            sell_book,
            override_book: None,
            cost_book,
            valid_from: DateTime::UNIX_EPOCH,
            valid_to: None,
        };
        customers::assign(&mut tx, id, books).await.unwrap();
    }
    catalog::bump(&mut tx).await.unwrap();
    commit(tx).await.unwrap();
    database.close().await;
}
