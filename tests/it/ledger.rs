//! A small ledger written row by row, as recording and posting would: what invoices and reports are tested on.

use chrono::{DateTime, NaiveDate, Utc};
use serde_json::Value;
use sqlx::{Connection, PgConnection, PgPool};
use uuid::Uuid;
use waybill::domain::ids::CustomerId;
use waybill::domain::period::BillingCalendar;
use waybill::ingest::posting::post_all;
use waybill::store::{Database, Rights};

use crate::harness::TestBed;

/// The stream's life that the ledger's batches count in.
pub const INCARNATION: Uuid = Uuid::from_u128(0x5742);

/// A ledger with one cost book and one sell book at twice its rates.
pub struct Ledger {
    /// Its database.
    pub database: Database,
    /// To write and look at rows directly, as the owner.
    pub pool: PgPool,
    database_url: String,
    next_sequence: i64,
    /// Removes the database at the end, where it is the ledger's own.
    _bed: Option<TestBed>,
}

/// One row of the journal.
#[derive(Clone)]
pub struct Row {
    pub customer: CustomerId,
    pub at: DateTime<Utc>,
    pub id: String,
    pub model: &'static str,
    pub input: i64,
    pub output: i64,
    pub rare: Option<Value>,
    pub task: Option<&'static str>,
    pub task_type: Option<&'static str>,
    pub parent: Option<&'static str>,
    pub project: Option<&'static str>,
    pub outcome: Option<&'static str>,
}

/// A call of `gpt-5`.
pub fn call(customer: CustomerId, at: &str, id: &str, input: i64, output: i64) -> Row {
    Row {
        customer,
        at: utc(at),
        id: id.to_owned(),
        model: "gpt-5",
        input,
        output,
        rare: None,
        task: None,
        task_type: None,
        parent: None,
        project: None,
        outcome: None,
    }
}

/// A call of a task.
pub fn task_call(customer: CustomerId, at: &str, task: &'static str, kind: &'static str, input: i64) -> Row {
    Row { task: Some(task), task_type: Some(kind), ..call(customer, at, &format!("{task}-{at}"), input, 0) }
}

/// The outcome of a task.
pub fn ended(
    customer: CustomerId,
    at: &str,
    task: &'static str,
    kind: &'static str,
    outcome: &'static str,
) -> Row {
    Row { outcome: Some(outcome), ..task_call(customer, at, task, kind, 0) }
}

pub fn utc(text: &str) -> DateTime<Utc> {
    text.parse().expect("a time")
}

impl Ledger {
    /// Books with `gpt-5` (input 0.0000015, output 0.000011 cost; `web_search` 0.01) and `tiny` (every rate one 10^-15).
    pub async fn new() -> Self {
        let bed = TestBed::new().await;
        let ledger = Self::beside(&bed).await;
        Self { _bed: Some(bed), ..ledger }
    }

    /// As [`Self::new`], in a database of somebody else.
    pub async fn beside(bed: &TestBed) -> Self {
        let pool = PgPool::connect(&bed.database_url).await.expect("the test's database answers");
        let ledger = Self {
            database: bed.database.clone(),
            pool,
            database_url: bed.database_url.clone(),
            next_sequence: 1,
            _bed: None,
        };
        ledger
            .run(
                "INSERT INTO price_books (name, kind, currency) VALUES ('provider-cost', 'cost', 'USD'), ('standard', 'sell', 'USD');
                 INSERT INTO prices (id, book_id, provider, model, conditions_key, per, valid_from)
                 SELECT ids.id, b.id, 'openai', ids.model, '', 1000000, '2020-01-01Z'
                 FROM (VALUES (1, 'cost', 'gpt-5'), (2, 'sell', 'gpt-5'), (3, 'cost', 'tiny'), (4, 'sell', 'tiny')) AS ids (id, kind, model)
                 JOIN price_books b ON b.kind = ids.kind;
                 SELECT setval(pg_get_serial_sequence('prices', 'id'), 100);
                 -- Reasoning and audio have no rates of their own: they take their parents'.
                 INSERT INTO price_rates (price_id, class, rate, quoted)
                 SELECT price, class, rate, rate * 1000000 FROM (VALUES
                     (1, 'input', 0.0000015), (1, 'output', 0.000011), (1, 'web_search', 0.01),
                     (2, 'input', 0.000003), (2, 'output', 0.000022), (2, 'web_search', 0.02),
                     (3, 'input', 0.000000000000001), (4, 'input', 0.000000000000001)) AS rates (price, class, rate);
                 INSERT INTO gateways (name) VALUES ('gw-1') ON CONFLICT DO NOTHING;
                 SELECT open_booking_date(DATE '2026-11-23')",
            )
            .await;
        ledger
    }

    /// With the rights of the owner, who drops months and puts sums right.
    pub async fn owner(&self) -> Database {
        Database::connect_as(&self.database_url, Rights::Owner).await.expect("the owner gets in")
    }

    /// A session of its own, as the owner.
    pub async fn connect(&self) -> PgConnection {
        PgConnection::connect(&self.database_url).await.expect("a connection")
    }

    /// Runs statements.
    pub async fn run(&self, statements: &str) {
        sqlx::raw_sql(sqlx::AssertSqlSafe(statements.to_owned()))
            .execute(&self.pool)
            .await
            .unwrap_or_else(|error| panic!("{statements}: {error}"));
    }

    /// One number.
    pub async fn count(&self, query: &str) -> i64 {
        sqlx::query_scalar(sqlx::AssertSqlSafe(query.to_owned()))
            .fetch_one(&self.pool)
            .await
            .expect("a number")
    }

    /// A customer in a zone, rated by both books for ever.
    pub async fn customer(&self, external_id: &str, zone: &str) -> CustomerId {
        let id: i64 = sqlx::query_scalar(
            "WITH made AS (INSERT INTO customers (external_id, name, time_zone, anchor_day) VALUES ($1, $1, $2, 1)
                           ON CONFLICT (external_id) DO UPDATE SET time_zone = EXCLUDED.time_zone RETURNING id)
             INSERT INTO book_assignments (customer_id, sell_book_id, cost_book_id, valid_from)
             SELECT made.id, s.id, c.id, '2020-01-01Z' FROM made, price_books s, price_books c
             WHERE s.kind = 'sell' AND c.kind = 'cost' RETURNING customer_id",
        )
        .bind(external_id)
        .bind(zone)
        .fetch_one(&self.pool)
        .await
        .expect("a customer");
        CustomerId(id)
    }

    /// Records rows as one batch, not posted.
    pub async fn record(&mut self, rows: &[Row]) {
        self.record_on(NaiveDate::from_ymd_opt(2026, 11, 23).expect("a date"), rows).await;
    }

    /// As [`Self::record`], on a booking date whose partition exists.
    pub async fn record_on(&mut self, booked_on: NaiveDate, rows: &[Row]) {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        let count = i32::try_from(rows.len()).expect("few rows");
        let mut tx = self.pool.begin().await.expect("a transaction");
        let batch: i64 = sqlx::query_scalar(
            "INSERT INTO ingest_batches (origin, incarnation, sequences, messages, events, recorded, duplicates, rejected, rows, booked_on)
             VALUES ('stream', $1, int8multirange(int8range($2, $2, '[]')), 1, $3, $3, 0, 0, $3, $4) RETURNING id",
        )
        .bind(INCARNATION)
        .bind(sequence)
        .bind(count)
        .bind(booked_on)
        .fetch_one(&mut *tx)
        .await
        .expect("a batch");
        for (index, row) in (0_i32..).zip(rows) {
            let (cost_price, sell_price) = if row.model == "tiny" { (3_i64, 4_i64) } else { (1, 2) };
            let priced = row.outcome.is_none();
            sqlx::query(
                "INSERT INTO usage_events (booked_on, event_key, part, kind, batch_id, stream_seq, event_index, customer_id, gateway_id,
                     occurred_at, source, id, content_hash, provider, model, task_id, task_type, task_parent, outcome, project, input,
                     output, rare, cost_price_id, sell_price_id, cost, charge)
                 SELECT $1, $2, 0, CASE WHEN $9 IS NULL THEN 'usage' ELSE 'outcome' END, $3, $4, $5, $6, g.id, $7, 'gw-1', $8, $2, 'openai', $10,
                     $11, $12, $13, $9, $14, $15, $16, $17, $18, $19, amounts.cost, amounts.charge
                 FROM gateways g, LATERAL (
                     SELECT COALESCE(sum(u.quantity * r.rate) FILTER (WHERE r.price_id = $18), 0) AS cost,
                            COALESCE(sum(u.quantity * r.rate) FILTER (WHERE r.price_id = $19), 0) AS charge
                     FROM (SELECT 'input' AS class, $15::numeric AS quantity UNION ALL SELECT 'output', $16
                           UNION ALL SELECT CASE key WHEN 'output_audio' THEN 'output' ELSE key END, value::numeric
                           FROM jsonb_each_text(COALESCE($17::jsonb, '{}'))) u JOIN price_rates r USING (class)) amounts",
            )
            .bind(booked_on)
            .bind(Uuid::new_v4())
            .bind(batch)
            .bind(sequence)
            .bind(index)
            .bind(row.customer.0)
            .bind(row.at)
            .bind(&row.id)
            .bind(row.outcome)
            .bind(row.model)
            .bind(row.task)
            .bind(row.task_type)
            .bind(row.parent)
            .bind(row.project)
            .bind(row.input)
            .bind(row.output)
            .bind(&row.rare)
            .bind(priced.then_some(cost_price))
            .bind(priced.then_some(sell_price))
            .execute(&mut *tx)
            .await
            .expect("a row of the journal");
        }
        tx.commit().await.expect("recorded");
    }

    /// Posts everything recorded.
    pub async fn post(&self) {
        post_all(&self.database).await.expect("posted");
    }

    /// Makes a period exist, as its first usage would.
    pub async fn open_period(&self, customer: CustomerId, zone: &str, at: &str) {
        let period = BillingCalendar::new(zone, 1).expect("a calendar").period_at(utc(at)).expect("a period");
        let mut tx = self.database.begin().await.expect("a transaction");
        waybill::store::periods::ensure(&mut tx, customer, period).await.expect("a period");
        waybill::store::commit(tx).await.expect("committed");
    }
}
