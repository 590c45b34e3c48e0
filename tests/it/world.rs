//! A running Waybill without its HTTP face: a stream, a consumer, posting and replay on a database of its own.

use std::collections::BTreeMap;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use async_nats::jetstream::{self, Context};
use async_nats::{ConnectOptions, HeaderMap};
use chrono::{DateTime, Utc};
use futures_util::StreamExt;
use serde_json::{Value, json};
use sqlx::{PgPool, Postgres, Row, Transaction};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use waybill::clock::Clock;
use waybill::domain::ids::CustomerId;
use waybill::domain::money::Amount;
use waybill::domain::price::quotation::NewPrice;
use waybill::health::Health;
use waybill::ingest::supervisor::{self, Demands, Plan};
use waybill::ingest::{self, Nudge, Recent, Recorder, StreamLimits, StreamNames, UsageStream};
use waybill::reports;
use waybill::shutdown::Shutdown;
use waybill::store::customers::{CustomerStatus, NewAssignment, NewCustomer};
use waybill::store::journal::JOURNAL_LOCK;
use waybill::store::reports::TaskScope;
use waybill::store::{Scope, catalog, commit, customers, gateways, prices};

use crate::harness::{TestBed, wait_until, wait_until_done};

/// Customers of every world.
pub const CUSTOMERS: [&str; 3] = ["acme", "globex", "initech"];
/// Gateways of every world.
pub const GATEWAYS: [&str; 2] = ["gw-1", "gw-2"];
/// Zone of every customer; its periods start on the first day of a month.
pub const TIME_ZONE: &str = "Europe/Berlin";
/// Book that costs are rated by.
pub const COST_BOOK: &str = "provider-cost";
/// Book that charges are rated by: cost plus nothing, so that both sides must agree.
pub const SELL_BOOK: &str = "at-cost";
/// Small enough for many streams beside each other on one test server.
const STREAM_BYTES_MAX: i64 = 128 << 20;
/// What a killed consumer had in hand is delivered again after this.
const ACK_WAIT: Duration = Duration::from_secs(3);
/// Longer than anybody waits for a test's messages to be recorded.
const LONG_ACK_WAIT: Duration = Duration::from_mins(1);
/// How long NATS may take to answer, or to store a message: some servers force each of them to disk.
pub const NATS_TIMEOUT: Duration = Duration::from_secs(30);
/// How often a consumer is killed.
const KILLS: usize = 3;
/// How many messages a killed consumer has recorded at least before each kill.
const KILL_AFTER_MESSAGES: i64 = 20;

/// How an event ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Recorded,
    Duplicate,
    Rejected(&'static str),
}

/// Sums over the whole journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Totals {
    pub events: i64,
    pub input: i64,
    pub output: i64,
    pub cost: Amount,
}

/// A task as it is posted.
#[derive(Debug, Clone)]
pub struct TaskRow {
    pub cost: Amount,
    pub charge: Amount,
    pub calls: i64,
    pub outcome: Option<String>,
}

/// What an event was rated to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rated {
    pub cost: Amount,
    pub charge: Amount,
    pub cost_price: i64,
    pub sell_price: i64,
}

pub struct World {
    pub bed: TestBed,
    pub pool: PgPool,
    pub stream: UsageStream,
    pub names: StreamNames,
    pub limits: StreamLimits,
    pub recorder: Recorder,
    context: Context,
    consumers: Mutex<Vec<Consuming>>,
    jobs: Shutdown,
}

/// A consumer of this process, and what stops it.
type Consuming = (Shutdown, JoinHandle<()>);

/// A usage event that every world can record.
pub fn usage_event(id: &str) -> Value {
    json!({
        "specversion": "1.0", "type": "llm.usage.v1", "source": "gw-1", "id": id, "subject": "acme",
        "time": event_time().to_rfc3339(),
        "data": {
            "provider": "openai", "model": "gpt-5", "status": "ok",
            "task": {"id": "task-1", "type": "test"},
            "usage": {"input": 100, "cache_read": 300, "output": 50},
        },
    })
}

/// The same as an estimate, which may be corrected.
pub fn estimate(id: &str) -> Value {
    let mut event = usage_event(id);
    event["data"]["usage_source"] = json!("estimated");
    event
}

/// The time.
pub fn now() -> DateTime<Utc> {
    Clock::System.now()
}

/// When test events happen: the same in one test run, so that two copies of an event are equal.
pub fn event_time() -> DateTime<Utc> {
    static TIME: std::sync::OnceLock<DateTime<Utc>> = std::sync::OnceLock::new();
    *TIME.get_or_init(|| DateTime::from_timestamp(Clock::System.now().timestamp() - 60, 0).unwrap())
}

fn price(model: &str, from: &str, input: &str, cache_read: Option<&str>, output: &str) -> Value {
    let mut rates = json!({"input": input, "output": output});
    if let Some(cache_read) = cache_read {
        rates["cache_read"] = json!(cache_read);
    }
    json!({"provider": "openai", "model": model, "per": 1_000_000, "rates": rates, "valid_from": from, "source": "test"})
}

/// gpt-5 as the benchmark priced it.
pub fn gpt5_prices() -> Value {
    json!([price("gpt-5", "2025-08-07T00:00:00Z", "1.25", Some("0.125"), "10")])
}

/// Prices of November 2023.
pub fn gpt5_prices_2023() -> Value {
    json!([
        price("gpt-4", "2023-03-14T00:00:00Z", "30", None, "60"),
        price("gpt-3.5-turbo", "2023-03-01T00:00:00Z", "1.5", None, "2"),
    ])
}

impl World {
    /// A world with gpt-5 priced and everything running.
    pub async fn start() -> Self {
        Self::idle().await.started().await
    }

    /// The same where copies, batches or gateways' own counts are counted: what a slow machine gets again before it has recorded
    /// it counts as well.
    pub async fn patient() -> Self {
        Self::patient_idle().await.started().await
    }

    async fn started(self) -> Self {
        self.publish_prices(gpt5_prices()).await;
        self.start_consumer();
        self
    }

    /// A world with customers and gateways, without prices and with nothing consuming yet.
    pub async fn idle() -> Self {
        Self::over(TestBed::new().await).await
    }

    /// The same with the ack wait of [`Self::patient`].
    pub async fn patient_idle() -> Self {
        let limits = StreamLimits { ack_wait: LONG_ACK_WAIT, ..limits() };
        Box::pin(Self::within(TestBed::new().await, limits)).await
    }

    /// As [`Self::idle`] over a test bed that was made elsewhere, which may name another NATS server.
    pub async fn over(bed: TestBed) -> Self {
        Box::pin(Self::within(bed, limits())).await
    }

    async fn within(bed: TestBed, limits: StreamLimits) -> Self {
        let pool = PgPool::connect(&bed.database_url).await.unwrap();
        let mut tx = bed.database.begin().await.unwrap();
        for gateway in GATEWAYS {
            gateways::create(&mut tx, gateway, None).await.unwrap();
        }
        let book = |value: Value| serde_json::from_value::<prices::NewBook>(value).unwrap();
        let cost = book(json!({"name": COST_BOOK, "kind": "cost", "currency": "USD"}));
        let cost_book = prices::create_book(&mut tx, &cost, "test").await.unwrap().info.id;
        let sell = book(
            json!({"name": SELL_BOOK, "kind": "sell", "currency": "USD", "base": COST_BOOK, "markup": "1"}),
        );
        let sell_book = prices::create_book(&mut tx, &sell, "test").await.unwrap().info.id;
        for external_id in CUSTOMERS {
            let new = NewCustomer { external_id, name: external_id, time_zone: TIME_ZONE, anchor_day: 1 };
            let customer = customers::create(&mut tx, new).await.unwrap();
            let books = NewAssignment {
                sell_book,
                override_book: None,
                cost_book,
                valid_from: DateTime::UNIX_EPOCH,
                valid_to: None,
            };
            customers::assign(&mut tx, customer.id, books).await.unwrap();
        }
        catalog::bump(&mut tx).await.unwrap();
        commit(tx).await.unwrap();

        let client = ingest::connect(&bed.nats_url, ConnectOptions::new()).await.unwrap();
        let mut context = jetstream::new(client);
        context.set_timeout(NATS_TIMEOUT);
        let names = StreamNames { stream: bed.stream.clone(), prefix: bed.subject_prefix.clone() };
        let stream = ingest::stream::open(&context, &names, limits).await.unwrap();
        let jobs = Shutdown::new();
        let recorder =
            Recorder::new(bed.database.clone(), Clock::System, &names.prefix, jobs.clone()).await.unwrap();
        let (nudge, recent) = (Nudge::default(), Recent::default());
        let recorder = recorder.keeping(recent.clone());
        jobs.spawn(ingest::posting::run(bed.database.clone(), recent, jobs.clone(), nudge.clone()));
        jobs.spawn(ingest::replay::run(recorder.clone(), nudge));
        Self { bed, pool, stream, names, limits, recorder, context, consumers: Mutex::default(), jobs }
    }

    /// Leaves posting and replay to others.
    pub async fn stop_jobs(&self) {
        self.jobs.stop();
        assert!(self.jobs.drained().await);
    }

    /// The stream's server.
    pub const fn context(&self) -> &Context {
        &self.context
    }

    /// Acknowledges so many messages as a consumer that recorded nothing would.
    pub async fn acknowledge_without_recording(&self, messages: usize) {
        let consumer = self.stream.consumer(self.limits).await.unwrap();
        let mut batch = consumer
            .batch()
            .max_messages(messages)
            .expires(Duration::from_secs(20))
            .messages()
            .await
            .unwrap();
        while let Some(message) = batch.next().await {
            message.unwrap().double_ack().await.unwrap();
        }
    }

    /// Starts a consumer in this process, beside those that there are.
    pub fn start_consumer(&self) {
        self.start_consumer_at(Clock::System);
    }

    /// The same, with another clock.
    pub fn start_consumer_at(&self, clock: Clock) {
        let plan = Plan {
            nats_url: self.bed.nats_url.clone(),
            names: self.names.clone(),
            limits: self.limits,
            demands: Demands::default(),
            consume: true,
        };
        let (database, context) = (self.bed.database.clone(), self.context.clone());
        let shutdown = Shutdown::new();
        let stop = shutdown.clone();
        let task = tokio::spawn(async move {
            let recorder = Recorder::new(database, clock, &plan.names.prefix, stop).await.unwrap();
            let (current, _) = watch::channel(None);
            supervisor::run(plan, context, recorder, Health::default(), Nudge::default(), current).await;
        });
        self.consumers.lock().unwrap().push((shutdown, task));
    }

    /// Holds back every transaction that records, until it is rolled back.
    pub async fn recording_held(&self) -> Transaction<'static, Postgres> {
        let mut holding = self.pool.begin().await.unwrap();
        sqlx::query("SELECT pg_advisory_xact_lock($1)")
            .bind(JOURNAL_LOCK)
            .execute(&mut *holding)
            .await
            .unwrap();
        holding
    }

    /// Stops them and waits until they have.
    pub async fn stop_consumers(&self) {
        let running = std::mem::take(&mut *self.consumers.lock().unwrap());
        for (shutdown, task) in running {
            shutdown.stop();
            task.await.unwrap();
        }
    }

    pub async fn publish_prices(&self, new: Value) {
        let new: Vec<NewPrice> = serde_json::from_value(new).unwrap();
        let mut tx = self.bed.database.begin().await.unwrap();
        prices::publish(&mut tx, COST_BOOK, &new, now(), "test").await.unwrap();
        commit(tx).await.unwrap();
    }

    /// The key of a customer.
    pub async fn customer(&self, external_id: &str) -> CustomerId {
        let mut tx = self.bed.database.read(Scope::Everything).await.unwrap();
        customers::by_external_id(&mut tx, external_id).await.unwrap().unwrap().id
    }

    /// Suspends a customer.
    pub async fn suspend(&self, customer: &str) {
        let id = self.customer(customer).await;
        let mut tx = self.bed.database.begin().await.unwrap();
        customers::update(&mut tx, id, None, Some(CustomerStatus::Suspended)).await.unwrap();
        catalog::bump(&mut tx).await.unwrap();
        commit(tx).await.unwrap();
    }

    /// Lets a gateway send events as old as `from`.
    pub async fn backfill(&self, gateway: &str, from: DateTime<Utc>) {
        let mut tx = self.bed.database.begin().await.unwrap();
        assert!(gateways::set_backfill(&mut tx, gateway, Some(from)).await.unwrap());
        catalog::bump(&mut tx).await.unwrap();
        commit(tx).await.unwrap();
    }

    /// Publishes one message and returns its sequence.
    pub async fn publish(&self, gateway: &str, event: &Value) -> i64 {
        self.publish_raw(gateway, HeaderMap::new(), event.to_string().into_bytes()).await
    }

    pub async fn publish_raw(&self, gateway: &str, headers: HeaderMap, body: Vec<u8>) -> i64 {
        let subject = format!("{}.{gateway}", self.names.prefix);
        let ack = self.context.publish_with_headers(subject, headers, body.into()).await.unwrap();
        i64::try_from(ack.await.unwrap().sequence).unwrap()
    }

    pub async fn publish_all(&self, gateway: &str, messages: &[Vec<u8>]) {
        for message in messages {
            self.publish_raw(gateway, HeaderMap::new(), message.clone()).await;
        }
    }

    /// Publishes what the server may refuse.
    pub async fn try_publish(&self, gateway: &str, body: Vec<u8>) -> Result<(), String> {
        let subject = format!("{}.{gateway}", self.names.prefix);
        let ack = self.context.publish(subject, body.into()).await.map_err(|error| error.to_string())?;
        ack.await.map(drop).map_err(|error| error.to_string())
    }

    pub async fn stream_length(&self) -> u64 {
        self.stream.stream.get_info().await.unwrap().state.messages
    }

    /// Waits until every message is accounted for, every batch posted, and the consumer has nothing left. A backlog may take
    /// its time, as long as it changes.
    pub async fn settled(&self) {
        let last = i64::try_from(self.stream.stream.get_info().await.unwrap().state.last_sequence).unwrap();
        wait_until_done("every message is recorded and posted", async || {
            let (missing, unposted): (i64, i64) = sqlx::query_as(
                "SELECT COALESCE((SELECT sum(upper(r) - lower(r)) FROM (
                            SELECT unnest(int8multirange(int8range(1, $1, '[]')) - COALESCE(range_agg(sequences), '{}')) AS r
                            FROM ingest_batches) AS missing), 0)::bigint,
                        (SELECT count(*) FROM ingest_batches WHERE posted_at IS NULL)",
            )
            .bind(last)
            .fetch_one(&self.pool)
            .await
            .unwrap();
            (last > 0 && (missing, unposted) != (0, 0))
                .then(|| format!("{missing} of {last} messages, and {unposted} batches to post"))
        })
        .await;
    }

    /// How the events of a message ended: recorded and rejected ones by their rows, the rest are duplicates.
    pub async fn outcomes(&self, sequence: i64, events: usize) -> Vec<Outcome> {
        let rows = sqlx::query(
            "SELECT event_index, NULL AS reason FROM usage_events WHERE stream_seq = $1 AND part = 0
             UNION ALL
             SELECT GREATEST(event_index, 0), reason FROM rejections WHERE stream_seq = $1",
        )
        .bind(sequence)
        .fetch_all(&self.pool)
        .await
        .unwrap();
        let mut outcomes = vec![Outcome::Duplicate; events];
        for row in rows {
            let index = usize::try_from(row.get::<i32, _>("event_index")).unwrap();
            let reason: Option<String> = row.get("reason");
            outcomes[index] = reason.map_or(Outcome::Recorded, |reason| Outcome::Rejected(reason.leak()));
        }
        outcomes
    }

    pub async fn rejected_bytes(&self, sequence: i64) -> Vec<u8> {
        sqlx::query_scalar("SELECT raw FROM rejections WHERE stream_seq = $1")
            .bind(sequence)
            .fetch_one(&self.pool)
            .await
            .unwrap()
    }

    /// How many stored payloads and rejections hold these bytes somewhere.
    pub async fn bytes_with(&self, needle: &[u8]) -> usize {
        let raws: Vec<Vec<u8>> =
            sqlx::query_scalar("SELECT raw FROM rejections").fetch_all(&self.pool).await.unwrap();
        let payloads: Vec<Vec<u8>> =
            sqlx::query_scalar("SELECT body FROM batch_payloads").fetch_all(&self.pool).await.unwrap();
        // What was rejected is kept with its rejection alone.
        assert!(!payloads.is_empty() || !raws.is_empty(), "something was received");
        let plain = payloads.iter().map(|body| zstd::decode_all(&body[..]).unwrap());
        plain.chain(raws).filter(|bytes| bytes.windows(needle.len()).any(|window| window == needle)).count()
    }

    pub async fn open_rejections(&self) -> Vec<String> {
        sqlx::query_scalar("SELECT reason FROM rejections WHERE resolved_at IS NULL ORDER BY id")
            .fetch_all(&self.pool)
            .await
            .unwrap()
    }

    pub async fn recorded_events(&self) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM usage_events WHERE part = 0")
            .fetch_one(&self.pool)
            .await
            .unwrap()
    }

    pub async fn totals(&self) -> Totals {
        let row = sqlx::query(
            "SELECT SUM(events)::bigint AS events, SUM(input)::bigint AS input, SUM(output)::bigint AS output,
                    SUM(cost) AS cost
             FROM usage_rollups",
        )
        .fetch_one(&self.pool)
        .await
        .unwrap();
        Totals {
            events: row.get("events"),
            input: row.get("input"),
            output: row.get("output"),
            cost: row.get("cost"),
        }
    }

    /// Of an event of one part.
    pub async fn rated(&self, id: &str) -> Rated {
        let row =
            sqlx::query("SELECT cost, charge, cost_price_id, sell_price_id FROM usage_events WHERE id = $1")
                .bind(id)
                .fetch_one(&self.pool)
                .await
                .unwrap();
        Rated {
            cost: row.get("cost"),
            charge: row.get("charge"),
            cost_price: row.get("cost_price_id"),
            sell_price: row.get("sell_price_id"),
        }
    }

    pub async fn task(&self, customer: &str, task: &str) -> TaskRow {
        let row = sqlx::query(
            "SELECT t.cost, t.charge, t.calls, t.outcome FROM tasks t JOIN customers c ON c.id = t.customer_id
             WHERE c.external_id = $1 AND t.task_id = $2",
        )
        .bind(customer)
        .bind(task)
        .fetch_one(&self.pool)
        .await
        .unwrap();
        TaskRow {
            cost: row.get("cost"),
            charge: row.get("charge"),
            calls: row.get("calls"),
            outcome: row.get("outcome"),
        }
    }

    pub async fn cost_by_agent(&self, customer: &str, task: &str) -> BTreeMap<String, Amount> {
        let rows = sqlx::query(
            "SELECT e.attributes ->> 'agent' AS agent, SUM(e.cost) AS cost
             FROM usage_events e JOIN customers c ON c.id = e.customer_id
             WHERE c.external_id = $1 AND e.task_id = $2 AND e.kind = 'usage' GROUP BY 1",
        )
        .bind(customer)
        .bind(task)
        .fetch_all(&self.pool)
        .await
        .unwrap();
        rows.into_iter().map(|row| (row.get("agent"), row.get("cost"))).collect()
    }

    /// Total charge per outcome of a task type, from the report.
    pub async fn charge_per_outcome(&self, customer: &str, task_type: &str) -> BTreeMap<String, Amount> {
        let customer = self.customer(customer).await;
        let now = Clock::System.now();
        let tasks = TaskScope {
            customer: Some(customer),
            from: DateTime::UNIX_EPOCH,
            to: now,
            task_type: Some(task_type.to_owned()),
            nested: false,
        };
        let mut tx = self.bed.database.read(Scope::Everything).await.unwrap();
        let report = reports::cost_per_task(&mut tx, Scope::Everything, &tasks, now).await.unwrap();
        let groups = report.groups.into_iter();
        groups.map(|group| (group.outcome.unwrap_or_default(), group.charge.total)).collect()
    }

    /// `waybill verify --rebuild` finds nothing.
    pub async fn verified(&self) {
        let proof = reports::verify::rebuild(&self.bed.database, Clock::System.now(), |_| ()).await.unwrap();
        assert!(proof.findings.is_empty(), "{:#?}", proof.findings);
    }

    /// The program itself, consuming this world's stream, in a process that can be killed.
    fn spawn_consumer_process(&self) -> Killed {
        Command::new(env!("CARGO_BIN_EXE_waybill"))
            .args(["serve", "--consumer", "--metrics-addr", "127.0.0.1:0"])
            .env("WAYBILL_DATABASE_URL", &self.bed.database_url)
            .env("WAYBILL_NATS_URL", &self.bed.nats_url)
            .env("WAYBILL_STREAM", &self.names.stream)
            .env("WAYBILL_SUBJECT_PREFIX", &self.names.prefix)
            .env("WAYBILL_STREAM_MAX_BYTES", STREAM_BYTES_MAX.to_string())
            .env("WAYBILL_ACK_WAIT_SECONDS", self.limits.ack_wait.as_secs().to_string())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map(Killed)
            .unwrap()
    }

    /// Publishes these, kills a consumer process three times in the middle of them, then lets one finish.
    pub async fn killed_three_times_while_draining(&self, gateway: &str, messages: &[Vec<u8>]) {
        for part in messages.chunks(messages.len().div_ceil(KILLS)) {
            let before = self.accounted_messages().await;
            // However much those before it have recorded, so much is left for this one.
            self.publish_all(gateway, part).await;
            let consumer = self.spawn_consumer_process();
            wait_until("the consumer records some messages", async || {
                (self.accounted_messages().await >= before + KILL_AFTER_MESSAGES).then_some(())
            })
            .await;
            drop(consumer);
        }
        self.start_consumer();
    }

    /// Messages that batches account for.
    pub async fn accounted_messages(&self) -> i64 {
        sqlx::query_scalar("SELECT COALESCE(SUM(messages), 0)::bigint FROM ingest_batches")
            .fetch_one(&self.pool)
            .await
            .unwrap()
    }
}

/// A process that is killed (SIGKILL) when dropped, so that a failing test leaves none behind.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.jobs.stop();
        for (shutdown, _) in self.consumers.lock().unwrap().drain(..) {
            shutdown.stop();
        }
    }
}

/// How a world's stream is stored.
pub fn limits() -> StreamLimits {
    StreamLimits { replicas: 1, bytes_max: STREAM_BYTES_MAX, ack_wait: ACK_WAIT }
}
