//! Closing periods: one invoice whatever runs beside it, exact to the last digit, final.

use std::cell::RefCell;

use chrono::TimeDelta;
use futures_util::future::join_all;
use serde_json::json;
use sqlx::Connection;
use waybill::clock::Clock;
use waybill::domain::ids::CustomerId;
use waybill::ingest::posting::post_once;
use waybill::invoicing::{
    Closed, DEFAULT_GRACE, InvoicingError, Request, close_and_finalize, close_due, preview,
};
use waybill::reports::verify::{self, Check};
use waybill::store::periods::CLOSE_LOCK;
use waybill::store::{Scope, commit, completeness, invoices, periods, posting};

use crate::harness::{connected, wait_until};
use crate::ledger::{Ledger, Row, call, utc};

/// Advisory lock of a closing that waits for posting.
const POSTING_WANTED_LOCK: i64 = 0x77_61_79_05;

fn request(customer: CustomerId, at: &str) -> Request {
    Request { customer, at: utc(at), grace: DEFAULT_GRACE, actor: "test".to_owned() }
}

async fn close(ledger: &Ledger, now: &str, customer: CustomerId, at: &str) -> Result<Closed, InvoicingError> {
    close_and_finalize(&ledger.database, &Clock::fixed(utc(now)), &request(customer, at)).await
}

async fn invoice(ledger: &Ledger, closed: &Closed) -> invoices::StoredInvoice {
    let [id] = closed.invoices.as_slice() else { panic!("one invoice, not {:?}", closed.invoices) };
    let mut tx = ledger.database.read(Scope::Everything).await.unwrap();
    invoices::get(&mut tx, *id).await.unwrap().unwrap()
}

fn lines(stored: &invoices::StoredInvoice) -> Vec<String> {
    let line = |line: &waybill::domain::invoice::InvoiceLine| {
        let service = line.service.start.format("%m-%dT%H:%M");
        format!(
            "{} {service} {} {} {} = {} {}",
            line.kind,
            line.model.as_deref().unwrap(),
            line.class.unwrap(),
            line.quantity,
            line.exact,
            line.amount
        )
    };
    stored.invoice.lines.iter().map(line).collect()
}

async fn assert_proven(ledger: &Ledger) {
    let proof = verify::rebuild(&ledger.database, utc("2027-06-01T00:00:00Z"), |_| ()).await.unwrap();
    assert_eq!(proof.findings, [], "the ledger holds");
    assert_eq!(proof.extent.journal_rows, ledger.count("SELECT count(*) FROM usage_events").await);
}

#[tokio::test]
async fn a_period_is_invoiced_line_by_line_and_late_usage_on_the_next() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "Asia/Kathmandu").await;
    let rare = Row {
        rare: Some(json!({"web_search": 3, "output_audio": 2})),
        ..call(acme, "2026-10-20T00:00:00Z", "b", 0, 7)
    };
    ledger
        .record(&[
            // The first instant of October and the last of it, in a zone of 5 h 45 min.
            call(acme, "2026-09-30T18:15:00Z", "a", 1_000_001, 0),
            call(acme, "2026-10-31T18:14:59.999999Z", "c", 1, 0),
            rare,
            call(acme, "2026-10-31T18:15:00Z", "d", 5, 0),
        ])
        .await;
    ledger.post().await;
    let closed = close(&ledger, "2026-11-01T00:00:00Z", acme, "2026-10-15T00:00:00Z").await.unwrap();
    let october = invoice(&ledger, &closed).await;
    assert_eq!(
        lines(&october),
        [
            "usage 09-30T18:15 gpt-5 input 1000002 = 3.000006 3.00",
            "usage 09-30T18:15 gpt-5 output 7 = 0.000154 0.00",
            "usage 09-30T18:15 gpt-5 output_audio 2 = 0.000044 0.00",
            "usage 09-30T18:15 gpt-5 web_search 3 = 0.06 0.06",
        ]
    );
    assert_eq!(october.invoice.display_number(), "INV-000001");
    assert_eq!(october.invoice.exact_total.to_string(), "3.060204");
    assert_eq!(october.invoice.total.to_string(), "3.06");
    assert_eq!(october.invoice.manifest["events"], 3);
    assert_eq!(october.invoice.manifest["streams"][0]["covered"], json!([[1, 2]]));
    assert_eq!(october.content_hash, october.invoice.content_hash());

    // Late: it happened in October, and in a September that was never billed.
    ledger
        .record(&[
            call(acme, "2026-10-31T00:00:00Z", "e", 100, 0),
            call(acme, "2026-09-10T00:00:00Z", "f", 10, 0),
        ])
        .await;
    ledger.post().await;
    let closed = close(&ledger, "2026-12-01T00:00:00Z", acme, "2026-11-15T00:00:00Z").await.unwrap();
    let november = invoice(&ledger, &closed).await;
    assert_eq!(
        lines(&november),
        [
            "usage 10-31T18:15 gpt-5 input 5 = 0.000015 0.00",
            "late_usage 08-31T18:15 gpt-5 input 10 = 0.00003 0.00",
            "late_usage 09-30T18:15 gpt-5 input 100 = 0.0003 0.00",
        ]
    );
    assert_eq!(november.invoice.previous_hash.as_ref(), Some(&october.content_hash));
    let untouched = invoice(&ledger, &Closed { invoices: vec![october.invoice.id], ..closed.clone() }).await;
    assert_eq!(untouched, october);
    // Periods before the first billed one count as closed by it, made by late usage or not: what they held came late.
    for at in ["2026-09-15T00:00:00Z", "2026-06-15T00:00:00Z", "2016-06-15T00:00:00Z"] {
        let passed = close(&ledger, "2026-12-01T00:00:00Z", acme, at).await.unwrap();
        assert!(passed.already && passed.invoices.is_empty(), "{at}");
        let mut tx = ledger.database.read(Scope::Customer(acme)).await.unwrap();
        let draft = preview(&mut tx, acme, utc(at), utc("2026-12-01T00:00:00Z")).await.unwrap();
        assert_eq!(
            (draft.period, draft.closed_at, draft.documents.len()),
            (passed.period, Some(utc("2026-11-01T00:00:00Z")), 0),
            "{at}"
        );
    }
    assert_proven(&ledger).await;
}

#[tokio::test]
async fn fifty_closings_at_once_make_one_invoice() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    ledger.record(&[call(acme, "2026-10-20T00:00:00Z", "a", 1_000_000, 0)]).await;
    ledger.post().await;
    let clock = Clock::fixed(utc("2026-11-02T00:00:00Z"));
    let request = request(acme, "2026-10-01T00:00:00Z");
    let closing = || {
        wait_until("the closing is let through", async || {
            match close_and_finalize(&ledger.database, &clock, &request).await {
                Ok(closed) => Some(closed),
                Err(error) if error.retryable() => None,
                Err(error) => panic!("{error}"),
            }
        })
    };
    connected(&ledger.database).await;
    let closings = join_all((0..50).map(|_| closing())).await;
    let mut first = 0;
    let mut ids = Vec::new();
    for closed in closings {
        first += usize::from(!closed.already);
        ids.extend(closed.invoices);
    }
    assert_eq!((first, ids.len()), (1, 50));
    ids.dedup();
    assert_eq!(ids.len(), 1);
    assert_eq!(ledger.count("SELECT count(*) FROM invoices").await, 1);
    assert_eq!(ledger.count("SELECT last_number FROM invoice_series").await, 1);
    assert_eq!(ledger.count("SELECT count(*) FROM audit_log WHERE action = 'period.close'").await, 1);
    assert_proven(&ledger).await;
}

#[tokio::test]
async fn a_final_invoice_refuses_every_change() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    ledger.record(&[call(acme, "2026-10-20T00:00:00Z", "a", 1_000_000, 0)]).await;
    ledger.post().await;
    close(&ledger, "2026-11-02T00:00:00Z", acme, "2026-10-01T00:00:00Z").await.unwrap();
    for statement in [
        "UPDATE invoices SET total_minor = total_minor + 1",
        "UPDATE invoices SET status = 'void', total_minor = 0",
        "DELETE FROM invoices",
        "TRUNCATE invoices CASCADE",
        "UPDATE invoice_line_items SET amount_minor = 0",
        "DELETE FROM invoice_line_items",
        "TRUNCATE invoice_line_items",
        "UPDATE usage_events SET charge = 0",
        "DELETE FROM usage_events",
    ] {
        let refused = sqlx::raw_sql(statement).execute(&ledger.pool).await.expect_err(statement);
        let code = refused.as_database_error().and_then(sqlx::error::DatabaseError::code);
        assert_eq!(code.as_deref(), Some("23001"), "{statement}: {refused}");
    }
    assert_proven(&ledger).await;
}

#[tokio::test]
async fn a_period_is_closed_when_it_is_over_in_order_and_posted() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    ledger
        .record(&[
            call(acme, "2026-09-20T00:00:00Z", "a", 1, 0),
            call(acme, "2026-11-20T00:00:00Z", "b", 1, 0),
        ])
        .await;
    ledger.post().await;

    let early = close(&ledger, "2026-10-01T00:59:59Z", acme, "2026-09-01T00:00:00Z").await;
    assert!(
        matches!(early, Err(InvoicingError::TooEarly { possible_from, .. }) if possible_from == utc("2026-10-01T01:00:00Z")),
        "{early:?}"
    );
    let hasty = close(&ledger, "2026-12-02T00:00:00Z", acme, "2026-11-01T00:00:00Z").await;
    assert!(
        matches!(hasty, Err(InvoicingError::OutOfOrder { next }) if next.start == utc("2026-09-01T00:00:00Z")),
        "{hasty:?}"
    );
    let nobody = close(&ledger, "2026-12-02T00:00:00Z", CustomerId(-1), "2026-11-01T00:00:00Z").await;
    assert!(matches!(nobody, Err(InvoicingError::UnknownCustomer(_))), "{nobody:?}");

    close(&ledger, "2026-12-02T00:00:00Z", acme, "2026-09-01T00:00:00Z").await.unwrap();
    // Nothing was used in October: it is closed without an invoice, and no number is spent.
    let empty = close(&ledger, "2026-12-02T00:00:00Z", acme, "2026-10-01T00:00:00Z").await.unwrap();
    assert!(!empty.already && empty.invoices.is_empty());
    let again = close(&ledger, "2026-12-02T00:00:00Z", acme, "2026-10-01T00:00:00Z").await.unwrap();
    assert!(again.already && again.invoices.is_empty());

    // Recorded before the closing and not posted: the closing waits, in vain.
    ledger.record(&[call(acme, "2026-11-21T00:00:00Z", "c", 1, 0)]).await;
    let unposted = close(&ledger, "2026-12-02T00:00:00Z", acme, "2026-11-01T00:00:00Z").await;
    assert!(matches!(unposted, Err(InvoicingError::NotPosted { batches: 1 })), "{unposted:?}");
    ledger.post().await;
    let november = close(&ledger, "2026-12-02T00:00:00Z", acme, "2026-11-01T00:00:00Z").await.unwrap();
    let november = invoice(&ledger, &november).await;
    assert_eq!(lines(&november), ["usage 11-01T00:00 gpt-5 input 2 = 0.000006 0.00"]);
    assert_eq!(november.invoice.display_number(), "INV-000002");
    assert_proven(&ledger).await;
}

/// Otherwise all the years since would be due.
#[tokio::test]
async fn the_first_period_is_none_that_ends_before_the_customer_begins() {
    let ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "Asia/Kathmandu").await;
    let now = "2026-11-02T00:00:00Z";
    for at in ["0206-10-15T00:00:00Z", "2016-10-15T00:00:00Z", "2019-12-15T00:00:00Z"] {
        let refused = close(&ledger, now, acme, at).await;
        assert!(
            matches!(refused, Err(InvoicingError::BeforeBeginning { beginning }) if beginning == utc("2020-01-01T00:00:00Z")),
            "{refused:?}"
        );
    }
    assert_eq!(ledger.count("SELECT count(*) FROM billing_periods").await, 0);
    // It was made before any books were assigned to it: it may have been there to be billed.
    ledger.run("UPDATE customers SET created_at = '2019-12-20Z'").await;
    let first = close(&ledger, now, acme, "2019-12-25T00:00:00Z").await.unwrap();
    assert!(!first.already && first.invoices.is_empty());
}

#[tokio::test]
async fn a_closing_waits_for_the_poster() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    ledger.record(&[call(acme, "2026-10-20T00:00:00Z", "a", 1_000_000, 0)]).await;
    let (closed, ()) =
        tokio::join!(close(&ledger, "2026-11-02T00:00:00Z", acme, "2026-10-01T00:00:00Z"), ledger.post());
    assert_eq!(
        lines(&invoice(&ledger, &closed.unwrap()).await),
        ["usage 10-01T00:00 gpt-5 input 1000000 = 3 3.00"]
    );
}

#[tokio::test]
async fn a_closing_that_waits_has_posting_gather_no_more() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    ledger.record(&[call(acme, "2026-10-20T00:00:00Z", "a", 1_000_000, 0)]).await;
    let wanted = async || {
        let mut tx = ledger.database.begin_ingest().await.unwrap();
        let wanted = posting::waiting(&mut tx).await.unwrap().unwrap().wanted;
        // A dropped transaction ends some time later, and what it holds would look like a closing that waits.
        commit(tx).await.unwrap();
        wanted
    };
    assert!(!wanted().await, "nobody waits");
    let looked = async {
        wait_until("posting is wanted", async || wanted().await.then_some(())).await;
        assert_eq!(ledger.count(&locked(POSTING_WANTED_LOCK, "ShareLock", true)).await, 1, "by the closing");
        ledger.post().await;
    };
    let (closed, ()) =
        tokio::join!(close(&ledger, "2026-11-02T00:00:00Z", acme, "2026-10-01T00:00:00Z"), looked);
    assert_eq!(closed.unwrap().invoices.len(), 1);
}

/// Whoever holds an advisory lock, or waits for it.
fn locked(lock: i64, mode: &str, granted: bool) -> String {
    format!(
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = {lock} AND mode = '{mode}' AND granted = {granted}
           AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
}

/// Posts the next slice without the batches that the statement finds.
async fn post_but(ledger: &Ledger, batches: &str) {
    let mut passed_over = ledger.connect().await;
    let hold = format!("BEGIN; SELECT FROM ingest_batches WHERE {batches} FOR UPDATE");
    sqlx::raw_sql(sqlx::AssertSqlSafe(hold)).execute(&mut passed_over).await.unwrap();
    assert!(post_once(&ledger.database).await.unwrap() > 0);
    passed_over.close().await.unwrap();
}

/// However old the others are: what is recorded while it waits is waited for by nobody.
#[tokio::test]
async fn a_manifest_names_no_sequence_that_is_not_in_the_sums() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    ledger.record(&[call(acme, "2026-10-20T00:00:00Z", "a", 1_000_000, 0)]).await;
    let told = RefCell::new(Vec::new());
    let clock = Clock::fixed(utc("2026-11-01T02:00:00Z"));
    let database = ledger.database.clone();
    let closing = close_due(&database, &clock, TimeDelta::hours(1), "test", |batches| {
        told.borrow_mut().push(batches);
    });
    let posting = async {
        wait_until("it waits", async || told.borrow().first().copied()).await;
        ledger.record(&[call(acme, "2026-10-21T00:00:00Z", "b", 1_000_000, 0)]).await;
        ledger.run("UPDATE ingest_batches SET recorded_at = now() - interval '20 minutes'").await;
        let mut tx = ledger.database.begin_ingest().await.unwrap();
        assert_eq!(completeness::summarize(&mut tx, 100).await.unwrap(), 2);
        commit(tx).await.unwrap();
        post_but(&ledger, "sequences @> 2::bigint").await;
    };
    let (turns, ()) = tokio::join!(closing, posting);
    let turns = turns.unwrap();
    let [turn] = turns.as_slice() else { panic!("one period, not {turns:?}") };
    let october = invoice(&ledger, turn.outcome.as_ref().unwrap()).await;
    assert_eq!(october.invoice.manifest["events"], 1);
    assert_eq!(october.invoice.manifest["streams"][0]["covered"], json!([[1, 2]]));
}

/// Posters are always at some slice: where one is alive, the lock waits for it; where it is gone, whoever posts the rest needs
/// the lock.
#[tokio::test]
async fn half_of_a_later_batch_is_waited_for_only_where_its_poster_broke_off() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    ledger.record(&[call(acme, "2026-10-20T00:00:00Z", "a", 1_000_000, 0)]).await;
    let told = RefCell::new(Vec::new());
    let clock = Clock::fixed(utc("2026-11-01T02:00:00Z"));
    let (database, mut poster) = (ledger.database.clone(), ledger.connect().await);
    let closing = close_due(&database, &clock, TimeDelta::hours(1), "test", |batches| {
        told.borrow_mut().push(batches);
    });
    let posting = async {
        wait_until("it waits", async || told.borrow().first().copied()).await;
        ledger.record(&[]).await;
        ledger
            .run(
                "UPDATE half_postings SET posted_closing = 0
                 WHERE batch_id = (SELECT max(id) FROM ingest_batches)",
            )
            .await;
        let underway = format!("BEGIN; SELECT pg_advisory_xact_lock_shared({CLOSE_LOCK})");
        sqlx::raw_sql(sqlx::AssertSqlSafe(underway)).execute(&mut poster).await.unwrap();
        post_but(&ledger, "sequences @> 2::bigint").await;
        let waits = locked(CLOSE_LOCK, "ExclusiveLock", false);
        let waits = async || (ledger.count(&waits).await == 1).then_some(());
        wait_until("the closing waits for the poster alone", waits).await;
        poster.close().await.unwrap();
        let wanted = locked(POSTING_WANTED_LOCK, "ShareLock", true);
        let wanted = async || (ledger.count(&wanted).await == 1).then_some(());
        wait_until("the closing has given the lock back", wanted).await;
        ledger.post().await;
    };
    let (turns, ()) = tokio::join!(closing, posting);
    let turns = turns.unwrap();
    let [turn] = turns.as_slice() else { panic!("one period, not {turns:?}") };
    let october = invoice(&ledger, turn.outcome.as_ref().unwrap()).await;
    assert_eq!(lines(&october), ["usage 10-01T00:00 gpt-5 input 1000000 = 3 3.00"]);
    assert_eq!(october.invoice.manifest["streams"][0]["covered"], json!([[1, 3]]));
    assert_proven(&ledger).await;
}

#[tokio::test]
async fn what_is_due_is_closed_after_one_wait_for_all_that_was_recorded() {
    let mut ledger = Ledger::new().await;
    let customers = [ledger.customer("acme", "UTC").await, ledger.customer("other", "UTC").await];
    for customer in customers {
        ledger.record(&[call(customer, "2026-10-20T00:00:00Z", "a", 1_000_000, 0)]).await;
    }
    let told = RefCell::new(Vec::new());
    let clock = Clock::fixed(utc("2026-11-01T02:00:00Z"));
    let closing = close_due(&ledger.database, &clock, TimeDelta::hours(1), "test", |batches| {
        told.borrow_mut().push(batches);
    });
    let posting = async {
        wait_until("it waits", async || told.borrow().first().copied()).await;
        ledger.post().await;
    };
    let (turns, ()) = tokio::join!(closing, posting);
    let closed: Vec<_> = turns
        .unwrap()
        .into_iter()
        .map(|turn| (turn.customer, turn.outcome.unwrap().invoices.len()))
        .collect();
    assert_eq!(closed, customers.map(|customer| (customer, 1)), "their periods were made by posting");
    let told = told.into_inner();
    assert_eq!((told.first(), told.last()), (Some(&2), Some(&0)), "{told:?}");
    assert_proven(&ledger).await;
}

/// The usage of its last hour may be recorded after what is waited for.
#[tokio::test]
async fn what_becomes_due_during_the_wait_is_left_to_the_next_call() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    ledger.record(&[call(acme, "2026-10-20T00:00:00Z", "a", 1_000_000, 0)]).await;
    let told = RefCell::new(Vec::new());
    let clock = Clock::fixed(utc("2026-11-01T00:30:00Z"));
    let database = ledger.database.clone();
    let closing = close_due(&database, &clock, TimeDelta::hours(1), "test", |batches| {
        told.borrow_mut().push(batches);
    });
    let posting = async {
        wait_until("it waits", async || told.borrow().first().copied()).await;
        ledger.record(&[call(acme, "2026-10-31T23:50:00Z", "b", 1_000_000, 0)]).await;
        clock.advance(TimeDelta::hours(1));
        post_but(&ledger, "sequences @> 2::bigint").await;
    };
    let (turns, ()) = tokio::join!(closing, posting);
    let turns = turns.unwrap();
    assert!(turns.is_empty(), "{turns:?}");

    ledger.post().await;
    let turns = close_due(&database, &clock, TimeDelta::hours(1), "test", |_| ()).await.unwrap();
    let [turn] = turns.as_slice() else { panic!("one period, not {turns:?}") };
    let october = invoice(&ledger, turn.outcome.as_ref().unwrap()).await;
    assert_eq!(lines(&october), ["usage 10-01T00:00 gpt-5 input 2000000 = 6 6.00"]);
    assert_proven(&ledger).await;
}

#[tokio::test]
async fn a_period_that_runs_by_the_databases_clock_is_not_closed() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    ledger.record(&[call(acme, "2026-10-20T00:00:00Z", "a", 1, 0)]).await;
    ledger.post().await;
    let clock_at = |at: &str| {
        format!(
            "CREATE OR REPLACE FUNCTION latest_period_end() RETURNS timestamptz LANGUAGE sql AS $$ SELECT '{at}'::timestamptz $$"
        )
    };
    ledger.run(&clock_at("2026-10-31T23:59:59Z")).await;
    let refused = close(&ledger, "2026-11-02T00:00:00Z", acme, "2026-10-01T00:00:00Z").await;
    assert!(matches!(refused, Err(InvoicingError::NotOver { .. })), "{refused:?}");
    assert_eq!(ledger.count("SELECT count(*) FROM billing_periods WHERE state = 'closed'").await, 0);
    ledger.run(&clock_at("2026-11-01T00:00:00Z")).await;
    close(&ledger, "2026-11-02T00:00:00Z", acme, "2026-10-01T00:00:00Z").await.unwrap();
    let own = "SELECT count(*) FROM (SELECT clock_timestamp() AS now) AS before WHERE true_latest_period_end() >= before.now
               AND true_latest_period_end() <= clock_timestamp()";
    assert_eq!(ledger.count(own).await, 1);
}

#[tokio::test]
async fn the_preview_is_the_invoice_and_sees_its_own_customer_only() {
    let mut ledger = Ledger::new().await;
    let (acme, other) = (ledger.customer("acme", "UTC").await, ledger.customer("other", "UTC").await);
    ledger
        .record(&[
            call(acme, "2026-10-20T00:00:00Z", "a", 1_000_000, 3),
            Row { model: "tiny", ..call(acme, "2026-10-21T00:00:00Z", "b", 1, 0) },
            call(other, "2026-10-20T00:00:00Z", "c", 77, 0),
        ])
        .await;
    ledger.post().await;
    let at = utc("2026-10-15T00:00:00Z");
    let now = utc("2026-11-02T00:00:00Z");
    let mut tx = ledger.database.read(Scope::Customer(acme)).await.unwrap();
    let draft = preview(&mut tx, acme, at, now).await.unwrap();
    let foreign = preview(&mut tx, other, at, now).await;
    assert!(matches!(foreign, Err(InvoicingError::UnknownCustomer(_))), "{foreign:?}");
    drop(tx);
    assert_eq!((draft.closed_at, draft.as_of, draft.documents.len()), (None, now, 1));
    let closed = close(&ledger, "2026-11-02T00:00:00Z", acme, "2026-10-15T00:00:00Z").await.unwrap();
    let stored = invoice(&ledger, &closed).await;
    assert_eq!(stored.invoice.lines, draft.documents[0].lines);
    assert_eq!(stored.invoice.exact_total, draft.documents[0].exact_total);
    assert_eq!(stored.invoice.exact_total.to_string(), "3.000066000000001");
    assert_eq!(stored.invoice.total, draft.documents[0].total);
    // The customer of the invoice may read it, another may not.
    for (scope, visible) in [(Scope::Customer(acme), true), (Scope::Customer(other), false)] {
        let mut tx = ledger.database.read(scope).await.unwrap();
        assert_eq!(invoices::get(&mut tx, stored.invoice.id).await.unwrap().is_some(), visible);
    }
}

#[tokio::test]
async fn everything_due_is_closed_and_one_failure_stops_nobody_else() {
    let mut ledger = Ledger::new().await;
    let (acme, broken) = (ledger.customer("acme", "UTC").await, ledger.customer("broken", "UTC").await);
    ledger
        .record(&[
            call(acme, "2026-09-20T00:00:00Z", "a", 1, 0),
            call(acme, "2026-10-20T00:00:00Z", "b", 1, 0),
            call(broken, "2026-10-20T00:00:00Z", "c", 1, 0),
        ])
        .await;
    ledger.post().await;
    ledger
        .run(&format!(
            "UPDATE usage_rollups SET charge = charge + 0.000000000000001 WHERE customer_id = {broken}"
        ))
        .await;
    let clock = Clock::fixed(utc("2026-11-01T02:00:00Z"));
    let turns = close_due(&ledger.database, &clock, TimeDelta::hours(1), "test", |_| ()).await.unwrap();
    let closed: Vec<_> =
        turns.iter().map(|turn| (turn.customer, turn.period.start, turn.outcome.is_ok())).collect();
    let (september, october) = (utc("2026-09-01T00:00:00Z"), utc("2026-10-01T00:00:00Z"));
    assert_eq!(closed, [(acme, september, true), (broken, october, false), (acme, october, true)]);
    assert!(matches!(turns[1].outcome, Err(InvoicingError::Lines(_))));
    let findings = verify::verify(&ledger.database, utc("2027-01-01T00:00:00Z")).await.unwrap().findings;
    assert_eq!(findings.iter().map(|finding| finding.check).collect::<Vec<_>>(), [Check::Rollups]);
}

#[tokio::test]
async fn a_new_calendar_starts_where_the_old_period_ends() {
    let ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    ledger.open_period(acme, "UTC", "2026-11-15T00:00:00Z").await;
    for zone in ["America/New_York", "Asia/Kathmandu"] {
        ledger.open_period(acme, zone, "2026-12-15T00:00:00Z").await;
    }
    ledger.open_period(acme, "America/New_York", "2026-11-30T20:00:00Z").await;
    let mut tx = ledger.database.read(Scope::Everything).await.unwrap();
    let stored: Vec<_> = periods::list(&mut tx, acme)
        .await
        .unwrap()
        .into_iter()
        .map(|stored| (stored.period.start.to_rfc3339(), stored.period.end.to_rfc3339()))
        .collect();
    let pair = |start: &str, end: &str| (format!("{start}:00+00:00"), format!("{end}:00+00:00"));
    assert_eq!(
        stored,
        [
            pair("2026-11-01T00:00", "2026-12-01T00:00"),
            pair("2026-12-01T00:00", "2026-12-01T05:00"),
            pair("2026-12-01T05:00", "2027-01-01T05:00"),
        ]
    );
}
