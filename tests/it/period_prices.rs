//! Prices over a billing period: what the preview shows is what is finalized, to the last digit, and `verify` agrees.

use axum::http::{Method, StatusCode};
use serde_json::{Value, json};
use waybill::clock::Clock;
use waybill::domain::ids::CustomerId;
use waybill::domain::invoice::InvoiceLine;
use waybill::domain::price::period_price::quotation::NewPeriodPrice;
use waybill::invoicing::{Closed, DEFAULT_GRACE, Document, Request, close_and_finalize, preview};
use waybill::reports::verify::{self, Check};
use waybill::store::{Scope, commit, invoices, period_prices};

use crate::http_bed::{Answer, Api};
use crate::ledger::{Ledger, Row, call, ended, task_call, utc};

const OCTOBER: &str = "2026-10-15T00:00:00Z";
const NOVEMBER: &str = "2026-11-15T00:00:00Z";

async fn publish(ledger: &Ledger, new: Value) {
    publish_into(ledger, "standard", new).await;
}

async fn publish_into(ledger: &Ledger, book: &str, new: Value) {
    let new: Vec<NewPeriodPrice> = serde_json::from_value(new).unwrap();
    let mut tx = ledger.database.begin().await.unwrap();
    period_prices::publish(&mut tx, book, &new, utc("2026-12-02T00:00:00Z"), "test").await.unwrap();
    commit(tx).await.unwrap();
}

async fn draft(ledger: &Ledger, customer: CustomerId, at: &str) -> Vec<Document> {
    let mut tx = ledger.database.read(Scope::Customer(customer)).await.unwrap();
    preview(&mut tx, customer, utc(at), utc("2026-12-02T00:00:00Z")).await.unwrap().documents
}

/// Closes a period, and makes sure that its preview, before and after, is its invoice, and that the ledger holds.
async fn closed(ledger: &Ledger, customer: CustomerId, at: &str) -> (Closed, Document) {
    let [before] = draft(ledger, customer, at).await.try_into().expect("one document");
    let request = Request { customer, at: utc(at), grace: DEFAULT_GRACE, actor: "test".to_owned() };
    let clock = Clock::fixed(utc("2026-12-02T00:00:00Z"));
    let closed = close_and_finalize(&ledger.database, &clock, &request).await.unwrap();
    let again = close_and_finalize(&ledger.database, &clock, &request).await.unwrap();
    assert_eq!((again.already, &again.invoices), (true, &closed.invoices), "closed once");
    let [id] = closed.invoices.as_slice() else { panic!("one invoice, not {:?}", closed.invoices) };
    let mut tx = ledger.database.read(Scope::Everything).await.unwrap();
    let stored = invoices::get(&mut tx, *id).await.unwrap().unwrap();
    drop(tx);
    assert_eq!(stored.content_hash, stored.invoice.content_hash());
    assert_eq!(stored.invoice.lines, before.lines, "the preview is the invoice");
    assert_eq!((stored.invoice.exact_total, stored.invoice.total), (before.exact_total, before.total));
    assert_eq!(draft(ledger, customer, at).await, std::slice::from_ref(&before), "and stays so");
    assert_proven(ledger).await;
    (closed, before)
}

async fn assert_proven(ledger: &Ledger) {
    let proof = verify::rebuild(&ledger.database, utc("2027-06-01T00:00:00Z"), |_| ()).await.unwrap();
    assert_eq!(proof.findings, [], "the ledger holds");
}

fn shown(document: &Document) -> Vec<String> {
    let line = |line: &InvoiceLine| {
        let class = line.class.map_or("-", |class| class.name());
        let service = line.service.start.format("%m");
        format!(
            "{} {service} {class} {} x {} = {} {}",
            line.kind, line.quantity, line.rate, line.exact, line.amount
        )
    };
    document.lines.iter().map(line).collect()
}

/// gpt-5: input 3 up to a million and 2 above; output at half of the list from 101 tokens on; searches in tens at 0.15.
fn prices() -> Value {
    let of_gpt5 = |name: &str, kind: &str, class: &str| {
        json!({"name": name, "kind": kind, "provider": "openai", "model": "gpt-5", "classes": [class],
               "valid_from": "2026-01-01T00:00:00Z"})
    };
    let mut input = of_gpt5("input", "graduated", "input");
    (input["per"], input["tiers"]) =
        (json!(1_000_000), json!([{"up_to": "1000000", "rate": "3"}, {"rate": "2"}]));
    let mut output = of_gpt5("output", "volume", "output");
    output["tiers"] = json!([{"up_to": "100", "factor": "1"}, {"factor": "0.5"}]);
    let mut searches = of_gpt5("searches", "package", "web_search");
    (searches["size"], searches["amount"]) = (json!("10"), json!("0.15"));
    json!([input, output, searches])
}

#[tokio::test]
async fn tiers_and_packages_are_settled_on_the_invoice_late_usage_included() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "Asia/Kathmandu").await;
    publish(&ledger, prices()).await;
    let searching = Row {
        rare: Some(json!({"web_search": 11})),
        ..call(acme, "2026-10-06T00:00:00Z", "b", 900_000, 101)
    };
    let first = call(acme, "2026-10-05T00:00:00Z", "a", 600_000, 0);
    let tiny = Row { model: "tiny", ..call(acme, "2026-10-07T00:00:00Z", "c", 5, 0) };
    // The last batch first: the lines do not depend on it.
    ledger.record(&[searching, tiny]).await;
    ledger.record(&[first]).await;
    ledger.post().await;
    let (_, october) = closed(&ledger, acme, OCTOBER).await;
    assert_eq!(
        shown(&october),
        [
            "usage 09 input 1500000 x 0.000003 = 4.5 4.50",
            "usage 09 output 101 x 0.000022 = 0.002222 0.00",
            "usage 09 web_search 11 x 0.02 = 0.22 0.22",
            "usage 09 input 5 x 0.000000000000001 = 0.000000000000005 0.00",
            "tier 09 input 500000 x -0.000001 = -0.5 -0.50",
            "tier 09 output 101 x -0.000011 = -0.001111 0.00",
            "package 09 web_search 2 x 0.15 = 0.3 0.30",
            "included_usage 09 web_search -11 x 0.02 = -0.22 -0.22",
        ]
    );
    assert_eq!(
        (october.exact_total.to_string().as_str(), october.total.to_string().as_str()),
        ("4.301111000000005", "4.30")
    );
    assert_eq!(
        october.lines[4].note.as_deref(),
        Some("input: graduated: 500000 above 1000000 at 2 instead of 3 per 1000000")
    );
    assert_eq!(october.lines[6].note.as_deref(), Some("searches: 2 packages of 10 at 0.15, used 11"));

    // Late usage counts in the period it is booked to.
    ledger
        .record(&[
            call(acme, "2026-10-07T00:00:00Z", "late", 100_000, 0),
            call(acme, "2026-11-07T00:00:00Z", "d", 950_000, 100),
        ])
        .await;
    ledger.post().await;
    // Nor does a price that is published afterwards move what is final.
    let mut dearer = prices()[1].clone();
    (dearer["tiers"], dearer["valid_from"]) = (json!([{"factor": "2"}]), json!("2026-10-02T00:00:00Z"));
    publish(&ledger, json!([dearer])).await;
    let (_, november) = closed(&ledger, acme, NOVEMBER).await;
    assert_eq!(
        shown(&november),
        [
            "usage 10 input 950000 x 0.000003 = 2.85 2.85",
            "usage 10 output 100 x 0.000022 = 0.0022 0.00",
            "late_usage 09 input 100000 x 0.000003 = 0.3 0.30",
            "tier 10 input 50000 x -0.000001 = -0.05 -0.05",
            "tier 10 output 100 x 0.000022 = 0.0022 0.00",
        ]
    );
    assert_eq!(draft(&ledger, acme, OCTOBER).await, [october]);
}

#[tokio::test]
async fn a_change_within_the_period_goes_on_counting() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    let mut input = prices()[0].clone();
    publish(&ledger, json!([input])).await;
    input["tiers"] = json!([{"up_to": "1000000", "rate": "3"}, {"rate": "1"}]);
    input["valid_from"] = json!("2026-10-15T00:00:00Z");
    publish(&ledger, json!([input])).await;
    publish(&ledger, json!([input])).await;
    assert_eq!(
        ledger.count("SELECT count(*) FROM period_prices").await,
        3,
        "what stood, its end, the new one"
    );
    assert_eq!(ledger.count("SELECT count(*) FROM period_prices WHERE superseded_by IS NOT NULL").await, 1);
    ledger
        .record(&[
            call(acme, "2026-10-05T00:00:00Z", "a", 1_200_000, 0),
            call(acme, "2026-10-14T23:59:59Z", "b", 1, 0),
            call(acme, "2026-10-15T00:00:00Z", "c", 500_000, 0),
        ])
        .await;
    ledger.post().await;
    let (_, october) = closed(&ledger, acme, OCTOBER).await;
    assert_eq!(
        shown(&october),
        [
            "usage 10 input 1700001 x 0.000003 = 5.100003 5.10",
            "tier 10 input 200001 x -0.000001 = -0.200001 -0.20",
            "tier 10 input 500000 x -0.000002 = -1 -1.00",
        ]
    );
}

#[tokio::test]
async fn the_same_again_changes_nothing_after_others_either() {
    let ledger = Ledger::new().await;
    let input = |from: &str, to: Value, rate: &str| {
        let mut input = prices()[0].clone();
        (input["valid_from"], input["valid_to"], input["tiers"]) = (json!(from), to, json!([{"rate": rate}]));
        input
    };
    let june = "2026-06-01T00:00:00Z";
    let list = json!([input("2026-01-01T00:00:00Z", json!(june), "3"), input(june, Value::Null, "4")]);
    publish(&ledger, list.clone()).await;
    publish(&ledger, json!([input("2026-03-01T00:00:00Z", json!(june), "2")])).await;
    let kept = ledger.count("SELECT count(*) FROM period_prices").await;
    publish(&ledger, list).await;
    assert_eq!(ledger.count("SELECT count(*) FROM period_prices").await, kept);
}

fn refund(amount: &str) -> Value {
    json!([{"name": "refund", "kind": "task", "task_type": "refund", "outcome": "success", "amount": amount,
            "usage": "included", "valid_from": "2026-01-01T00:00:00Z"}])
}

#[tokio::test]
async fn a_task_is_charged_once_where_it_succeeded_and_credited_where_it_did_not_after_all() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    publish(&ledger, refund("0.50")).await;
    let at = "2026-10-05T00:00:00Z";
    let works = |task| task_call(acme, at, task, "refund", 1000);
    let ends = |at, task, outcome| ended(acme, at, task, "refund", outcome);
    ledger
        .record(&[
            works("done"),
            ends("2026-10-06T00:00:00Z", "done", "success"),
            works("failed"),
            ends("2026-10-06T00:00:00Z", "failed", "failure"),
            works("flips"),
            ends("2026-10-31T23:59:59.999999Z", "flips", "success"),
            works("late"),
            // Ended in November, when its October was open: November's.
            works("november"),
            ends("2026-11-01T00:00:00Z", "november", "success"),
            task_call(acme, at, "other", "lookup", 1000),
            ended(acme, at, "other", "lookup", "success"),
        ])
        .await;
    ledger.post().await;
    let (_, october) = closed(&ledger, acme, OCTOBER).await;
    assert_eq!(
        shown(&october),
        [
            "usage 10 input 6000 x 0.000003 = 0.018 0.02",
            "task 10 - 2 x 0.5 = 1 1.00",
            "included_usage 10 input -5000 x 0.000003 = -0.015 -0.02",
        ]
    );
    assert_eq!(
        (october.exact_total.to_string().as_str(), october.total.to_string().as_str()),
        ("1.003", "1.00")
    );

    // In November: an outcome of October arrives, another changes, and the price does.
    let mut dearer = refund("0.60")[0].clone();
    dearer["valid_from"] = json!("2026-11-01T00:00:00Z");
    publish(&ledger, json!([dearer])).await;
    ledger
        .record(&[
            ends("2026-10-30T00:00:00Z", "late", "success"),
            ends("2026-11-05T00:00:00Z", "flips", "failure"),
            // Said again.
            ends("2026-11-06T00:00:00Z", "done", "success"),
        ])
        .await;
    ledger.post().await;
    let (_, november) = closed(&ledger, acme, NOVEMBER).await;
    assert_eq!(
        shown(&november),
        ["task 10 - 1 x 0.5 = 0.5 0.50", "task 11 - -1 x 0.5 = -0.5 -0.50", "task 11 - 1 x 0.6 = 0.6 0.60",]
    );
    let credit = november.lines[1].note.as_deref().unwrap();
    assert!(credit.contains("credit"), "{credit}");
    assert_eq!(ledger.count("SELECT count(*) FROM task_charges").await, 5);
    assert_eq!(ledger.count("SELECT sum(quantity)::bigint FROM task_charges").await, 3);
    for statement in [
        "UPDATE task_charges SET amount = 0",
        "DELETE FROM task_charges",
        "TRUNCATE task_charges",
        "UPDATE period_prices SET amount = 0",
        "DELETE FROM period_prices",
    ] {
        let refused = sqlx::raw_sql(statement).execute(&ledger.pool).await.expect_err(statement);
        let code = refused.as_database_error().and_then(sqlx::error::DatabaseError::code);
        assert_eq!(code.as_deref(), Some("23001"), "{statement}: {refused}");
    }
    let twice = "INSERT INTO task_charges SELECT customer_id, task_id, number, invoice_id, period_price_id, quantity, \
                 amount, outcome, ended_at, service_period FROM task_charges LIMIT 1";
    sqlx::raw_sql(twice).execute(&ledger.pool).await.expect_err("charged twice");
}

#[tokio::test]
async fn an_outcome_that_is_the_first_event_of_a_month_is_charged() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    publish(&ledger, refund("0.50")).await;
    let at = "2026-10-31T23:59:00Z";
    ledger.record(&["november", "december"].map(|task| task_call(acme, at, task, "refund", 1000))).await;
    ledger.post().await;
    for (at, task) in [("2026-11-01T00:01:00Z", "november"), ("2026-12-01T00:00:00Z", "december")] {
        ledger.record(&[ended(acme, at, task, "refund", "success")]).await;
        ledger.post().await;
    }
    assert_eq!(ledger.count("SELECT count(*) FROM billing_periods").await, 3, "each has its month");
    closed(&ledger, acme, OCTOBER).await;
    let (_, november) = closed(&ledger, acme, NOVEMBER).await;
    assert_eq!(shown(&november), ["task 11 - 1 x 0.5 = 0.5 0.50"]);
    let december = draft(&ledger, acme, "2026-12-15T00:00:00Z").await;
    assert_eq!(shown(&december[0]), ["task 12 - 1 x 0.5 = 0.5 0.50"]);
}

#[tokio::test]
async fn an_outcome_that_changes_as_the_first_event_of_a_month_is_credited() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    publish(&ledger, refund("0.50")).await;
    ledger
        .record(&[
            task_call(acme, "2026-10-05T00:00:00Z", "t", "refund", 1000),
            ended(acme, "2026-10-06T00:00:00Z", "t", "refund", "success"),
        ])
        .await;
    ledger.post().await;
    closed(&ledger, acme, OCTOBER).await;
    // As of a customer whose November was not made by the closing: of a calendar that was changed, or of an older release.
    ledger.run("DELETE FROM billing_periods WHERE state = 'open'").await;
    ledger.record(&[ended(acme, "2026-11-05T00:00:00Z", "t", "refund", "failure")]).await;
    ledger.post().await;
    let (_, november) = closed(&ledger, acme, NOVEMBER).await;
    assert_eq!(shown(&november), ["task 11 - -1 x 0.5 = -0.5 -0.50"]);
}

#[tokio::test]
async fn more_tasks_than_are_looked_at_together_are_charged_each_once() {
    const MORE: i64 = 20_000;
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    publish(&ledger, refund("0.50")).await;
    ledger
        .record(&[
            task_call(acme, "2026-10-05T00:00:00Z", "done", "refund", 1000),
            ended(acme, "2026-10-06T00:00:00Z", "done", "refund", "success"),
        ])
        .await;
    ledger.post().await;
    // Straight into the sums: each like the one that was posted. Those of another type are in between.
    ledger
        .run(&format!(
            "INSERT INTO tasks (customer_id, task_id, task_type, first_event_at, last_event_at, calls, input, cache_read,
                 cache_write_5m, cache_write_1h, output, reasoning, cost, charge, models, outcome, ended_at, outcome_period,
                 first_batch, last_batch, first_booked_on, last_booked_on)
             SELECT customer_id, 'task ' || n, CASE n % 2 WHEN 0 THEN 'refund' ELSE 'lookup' END, first_event_at,
                 last_event_at, calls, input, cache_read, cache_write_5m, cache_write_1h, output, reasoning, cost, charge, models,
                 outcome, ended_at, outcome_period, first_batch, last_batch, first_booked_on, last_booked_on
             FROM tasks, generate_series(1, 2 * {MORE}) AS n WHERE task_id = 'done'"
        ))
        .await;
    let [document] = draft(&ledger, acme, OCTOBER).await.try_into().expect("one document");
    assert_eq!(shown(&document)[1], "task 10 - 20001 x 0.5 = 10000.5 10000.50");
    let request =
        Request { customer: acme, at: utc(OCTOBER), grace: DEFAULT_GRACE, actor: "test".to_owned() };
    let clock = Clock::fixed(utc("2026-12-02T00:00:00Z"));
    close_and_finalize(&ledger.database, &clock, &request).await.unwrap();
    for charged in ["count(*)", "count(DISTINCT task_id)", "sum(quantity)::bigint"] {
        let charged = format!("SELECT {charged} FROM task_charges");
        assert_eq!(ledger.count(&charged).await, 1 + MORE, "{charged}");
    }
    let left = "SELECT count(*) FROM tasks t WHERE task_type = 'refund' AND NOT EXISTS
                    (SELECT FROM task_charges c WHERE c.task_id = t.task_id)";
    assert_eq!(ledger.count(left).await, 0);
}

#[tokio::test]
async fn a_task_that_a_closed_period_left_out_is_found() {
    let mut ledger = Ledger::new().await;
    let (acme, quiet) = (ledger.customer("acme", "UTC").await, ledger.customer("quiet", "UTC").await);
    publish(&ledger, refund("0.50")).await;
    ledger
        .record(&[
            ended(acme, "2026-10-06T00:00:00Z", "done", "refund", "success"),
            ended(quiet, "2026-10-06T00:00:00Z", "free", "lookup", "success"),
        ])
        .await;
    ledger.post().await;
    closed(&ledger, acme, OCTOBER).await;
    let request =
        Request { customer: quiet, at: utc(OCTOBER), grace: DEFAULT_GRACE, actor: "test".to_owned() };
    let clock = Clock::fixed(utc("2026-12-02T00:00:00Z"));
    assert_eq!(close_and_finalize(&ledger.database, &clock, &request).await.unwrap().invoices, []);
    // What comes later is of November, and the price may end: neither is October's.
    ledger.record(&[ended(acme, "2026-10-07T00:00:00Z", "late", "refund", "success")]).await;
    ledger.post().await;
    ledger.run("UPDATE book_assignments SET valid_to = '2021-01-01Z'").await;
    assert_proven(&ledger).await;

    let booked = "UPDATE tasks SET outcome_period = '2026-10-01Z' WHERE task_id = 'late'";
    for (damage, task) in
        [(booked, "late"), ("UPDATE tasks SET task_type = 'refund' WHERE task_id = 'free'", "free")]
    {
        ledger.run(damage).await;
        let proof = verify::verify(&ledger.database, utc("2027-06-01T00:00:00Z")).await.unwrap();
        let found = proof.findings.iter().find(|finding| finding.subject.contains(&format!("task {task},")));
        let found = found.unwrap_or_else(|| panic!("{damage}: {:?}", proof.findings));
        assert_eq!(
            (found.check, found.expected.as_str(), found.actual.as_str()),
            (Check::TaskCharges, "a charge of 0.5 by period price 1", "none"),
            "{damage}"
        );
    }
}

#[tokio::test]
async fn a_customers_own_book_goes_before_its_sell_book() {
    let mut ledger = Ledger::new().await;
    let (acme, other) = (ledger.customer("acme", "UTC").await, ledger.customer("other", "UTC").await);
    ledger
        .run(&format!(
            "INSERT INTO price_books (name, kind, currency) VALUES ('acme-own', 'sell', 'USD');
             UPDATE book_assignments SET override_book_id = (SELECT id FROM price_books WHERE name = 'acme-own')
             WHERE customer_id = {acme}"
        ))
        .await;
    publish(&ledger, refund("0.50")).await;
    publish_into(&ledger, "acme-own", refund("0.40")).await;
    for customer in [acme, other] {
        ledger
            .record(&[
                task_call(customer, "2026-10-05T00:00:00Z", "t", "refund", 1_000_000),
                ended(customer, "2026-10-06T00:00:00Z", "t", "refund", "success"),
            ])
            .await;
    }
    ledger.post().await;
    for (customer, amount) in [(acme, "0.40"), (other, "0.50")] {
        let (_, october) = closed(&ledger, customer, OCTOBER).await;
        assert_eq!(october.total.to_string(), amount);
        assert_eq!(shown(&october)[2], "included_usage 10 input -1000000 x 0.000003 = -3 -3.00");
    }
    // An assignment that is changed in retrospect does not make a final invoice wrong.
    ledger.run("UPDATE book_assignments SET override_book_id = NULL, valid_to = '2021-01-01Z'").await;
    assert_proven(&ledger).await;
}

#[tokio::test]
async fn a_period_price_changes_nothing_of_what_is_recorded() {
    let mut ledger = Ledger::new().await;
    let acme = ledger.customer("acme", "UTC").await;
    publish(&ledger, prices()).await;
    ledger.record(&[call(acme, "2026-10-05T00:00:00Z", "a", 2_000_000, 0)]).await;
    ledger.post().await;
    let listed = "SELECT count(*) FROM usage_rollups r JOIN usage_events e USING (customer_id)
                  WHERE r.charge = 6 AND e.charge = 6 AND r.sell_price_id = 2";
    assert_eq!(ledger.count(listed).await, 1, "journal and rollups are at the list rate");
    assert_eq!(draft(&ledger, acme, OCTOBER).await[0].total.to_string(), "5.00");
    assert_proven(&ledger).await;
}

async fn api() -> (Api, Ledger, CustomerId) {
    let api = Api::start().await;
    let ledger = Ledger::beside(&api.bed).await;
    let acme = ledger.customer("acme", "UTC").await;
    (api, ledger, acme)
}

const PATH: &str = "/v1/price-books/standard/period-prices";

fn expect(answer: &Answer, status: u16, code: &str) {
    assert_eq!(answer.problem(), (status, code.to_owned()), "{}", answer.text);
}

#[tokio::test]
async fn period_prices_are_published_listed_and_ended() {
    let (api, ledger, _) = api().await;
    let finance = &api.keys.finance;
    let dry = api.post(finance, &format!("{PATH}?dry_run=true"), &prices()).await;
    assert_eq!(
        (dry.status, &dry.json()["prices"][0]["price"]["id"]),
        (StatusCode::OK, &Value::Null),
        "{}",
        dry.text
    );
    assert_eq!(ledger.count("SELECT count(*) FROM period_prices").await, 0);
    let mut with_source = prices();
    with_source[0]["source"] = json!("contract 7");
    let published = api.post(finance, PATH, &with_source).await;
    assert_eq!(published.status, StatusCode::CREATED, "{}", published.text);
    let published = published.json();
    assert_eq!(published["prices"][0]["status"], "added");
    let again = api.post(finance, PATH, &with_source).await;
    assert_eq!((again.status, &again.json()["prices"][2]["status"]), (StatusCode::OK, &json!("unchanged")));
    let input = &published["prices"][0]["price"];
    assert_eq!(
        input["tiers"],
        json!([{"up_to": "1000000", "rate": "3", "factor": null, "currency": "USD"},
               {"up_to": null, "rate": "2", "factor": null, "currency": "USD"}])
    );
    let path = format!("/v1/period-prices/{}", input["id"]);
    assert_eq!(api.get(finance, &path).await.json()["source"], "contract 7");

    // A customer sees those of its own sell book, and nobody else does.
    let seen = api.get(&api.keys.acme, PATH).await.json();
    assert_eq!(seen["data"].as_array().unwrap().len(), 3);
    assert!(seen["data"][0].get("source").is_none());
    assert_eq!(api.get(&api.keys.acme, &path).await.status, StatusCode::OK);
    expect(&api.get(&api.keys.globex, PATH).await, 404, "not_found");
    expect(&api.get(&api.keys.globex, &path).await, 404, "not_found");
    expect(&api.post(&api.keys.acme, PATH, &prices()).await, 403, "forbidden");

    let page = api.get(finance, &format!("{PATH}?limit=2")).await.json();
    let cursor = page["next_cursor"].as_str().unwrap();
    let rest = api.get(finance, &format!("{PATH}?limit=2&cursor={cursor}")).await.json();
    assert_eq!((&rest["data"][0]["name"], &rest["has_more"]), (&json!("searches"), &json!(false)));
    let csv = api.send(Method::GET, finance, PATH, "", &[("accept", "text/csv")]).await;
    assert!(csv.text.contains("1000000:3 on:2"), "{}", csv.text);

    let ended = api.patch(finance, &path, &json!({"valid_to": "2026-12-01T00:00:00Z"})).await;
    assert_eq!((ended.status, &ended.json()["valid_to"]), (StatusCode::OK, &json!("2026-12-01T00:00:00Z")));
    assert_eq!(api.get(finance, &path).await.json()["superseded_by"], ended.json()["id"]);
    expect(&api.patch(finance, &path, &json!({"valid_to": "2026-12-01T00:00:00Z"})).await, 409, "conflict");
    let end = |valid_to: &str| json!({"valid_to": valid_to});
    let begun = api
        .patch(finance, &format!("/v1/period-prices/{}", ended.json()["id"]), &end("2025-01-01T00:00:00Z"))
        .await;
    expect(&begun, 409, "conflict");
    let nowhere = api.patch(finance, "/v1/period-prices/99999", &end("2026-12-01T00:00:00Z")).await;
    expect(&nowhere, 404, "not_found");
    let mut announced = prices()[0].clone();
    (announced["name"], announced["valid_from"]) = (json!("next"), json!("2026-12-01T00:00:00Z"));
    let announced = api.post(finance, PATH, &json!([announced])).await.json();
    let id = &announced["prices"][0]["price"]["id"];
    let withdrawn = api
        .patch(finance, &format!("/v1/period-prices/{id}"), &json!({"valid_to": "2026-12-01T00:00:00Z"}))
        .await;
    assert_eq!(withdrawn.status, StatusCode::OK, "{}", withdrawn.text);
    assert_ne!(withdrawn.json()["superseded_at"], Value::Null);
    let audited = "SELECT count(*) FROM audit_log WHERE action LIKE 'period_prices.%'";
    assert_eq!(ledger.count(audited).await, 4);
}

#[tokio::test]
async fn a_bad_period_price_is_refused_with_its_field_and_what_it_conflicts_with() {
    let (api, ledger, _) = api().await;
    let finance = &api.keys.finance;
    let changed = |at: usize, field: &str, value: Value| {
        let mut prices = prices();
        prices[at][field] = value;
        prices
    };
    let tiers = |tiers: Value| changed(0, "tiers", tiers);
    for (body, field) in [
        (tiers(json!([{"up_to": "5", "rate": "1"}])), "[0].tiers[0].up_to"),
        (tiers(json!([{"rate": "1"}, {"rate": "1"}])), "[0].tiers[0].up_to"),
        (
            tiers(json!([{"up_to": "5", "rate": "1"}, {"up_to": "4", "rate": "1"}, {"rate": "1"}])),
            "[0].tiers[1].up_to",
        ),
        (tiers(json!([{"rate": "-1"}])), "[0].tiers[0].rate"),
        (tiers(json!([{"rate": "NaN"}])), "[0].tiers[0].rate"),
        (tiers(json!([{"rate": "0.123456789012345678901234567890"}])), "[0].tiers[0].rate"),
        (tiers(json!([{"rate": "1", "factor": "1"}])), "[0].tiers[0]"),
        (changed(0, "model", json!("gpt-5*")), "[0].tiers[0].rate"),
        (changed(0, "classes", json!(["inptu"])), "[0].classes[0]"),
        (changed(2, "amount", json!("0.0000000000000001")), "[2].amount"),
        (changed(1, "valid_to", json!("2026-01-01T00:00:00Z")), "[1].valid_to"),
        (json!([]), ""),
    ] {
        let answer = api.post(finance, PATH, &body).await;
        expect(&answer, 422, "invalid_value");
        assert_eq!(answer.json()["errors"][0]["field"], field, "{}", answer.text);
    }
    for body in [
        changed(0, "kind", json!("discount")),
        tiers(json!([{"from": "0", "rate": "1"}])),
        tiers(json!([{"rate": 1.5}])),
        changed(0, "vendor", json!("x")),
    ] {
        expect(&api.post(finance, PATH, &body).await, 400, "invalid_body");
    }
    let cost = api.post(finance, "/v1/price-books/provider-cost/period-prices", &prices()).await;
    expect(&cost, 422, "invalid_value");
    assert_eq!(cost.json()["errors"][0]["field"], "book");
    expect(&api.post(finance, "/v1/price-books/nowhere/period-prices", &prices()).await, 404, "not_found");
    assert_eq!(ledger.count("SELECT count(*) FROM period_prices").await, 0, "nothing is stored");

    let published = api.post(finance, PATH, &prices()).await.json();
    let id = published["prices"][0]["price"]["id"].as_i64().unwrap();
    let other_terms = json!([changed(0, "tiers", json!([{"rate": "1"}]))[0]]);
    let same_usage = json!([changed(0, "name", json!("other"))[0]]);
    for (body, field) in [(other_terms, "[0].valid_from"), (same_usage, "[0].model")] {
        let conflict = api.post(finance, PATH, &body).await;
        expect(&conflict, 409, "conflict");
        let error = &conflict.json()["errors"][0];
        assert_eq!(error["field"], field);
        let detail = error["detail"].as_str().unwrap();
        assert!(detail.contains(&format!("conflicts with period price {id}")), "{detail}");
    }
    assert_eq!(ledger.count("SELECT count(*) FROM period_prices").await, 3);
    // The database refuses it too, whoever asks.
    let twin = format!(
        "INSERT INTO period_prices (book_id, name, kind, model, classes, valid_from)
         SELECT book_id, name, kind, model, classes, valid_from FROM period_prices WHERE id = {id}"
    );
    let refused =
        sqlx::raw_sql(sqlx::AssertSqlSafe(twin)).execute(&ledger.pool).await.expect_err("two of a name");
    let constraint = refused.as_database_error().and_then(|error| error.constraint());
    assert_eq!(constraint, Some("period_prices_no_overlap"));
}

#[tokio::test]
async fn an_invoice_shows_its_settlement_and_its_tasks() {
    let (api, mut ledger, acme) = api().await;
    publish(&ledger, prices()).await;
    publish(&ledger, refund("0.50")).await;
    ledger
        .record(&[
            call(acme, "2026-10-05T00:00:00Z", "a", 1_500_000, 0),
            ended(acme, "2026-10-06T00:00:00Z", "t-1", "refund", "success"),
        ])
        .await;
    ledger.post().await;
    let finance = &api.keys.finance;
    let preview = api.get(&api.keys.acme, "/v1/invoices/preview?period=2026-10").await.json();
    let drafted = preview["invoices"][0]["lines"].clone();
    assert_eq!(preview["invoices"][0]["total"], "4.50");
    let finalize = json!({"customer": "acme", "period": "2026-10"});
    let closed = api.post(finance, "/v1/invoices/finalize", &finalize).await;
    assert_eq!(closed.status, StatusCode::OK, "{}", closed.text);
    let path = format!("/v1/invoices/{}", closed.json()["invoices"][0]["id"].as_str().unwrap());
    let invoice = api.get(&api.keys.acme, &path).await.json();
    assert_eq!(invoice["lines"], drafted);
    let tier = &drafted[1];
    assert_eq!(
        (&tier["kind"], &tier["rate"], &tier["amount"]),
        (&json!("tier"), &json!("-0.000001"), &json!("-0.50"))
    );
    assert_eq!(tier["note"], "input: graduated: 500000 above 1000000 at 2 instead of 3 per 1000000");
    let task = &drafted[2];
    assert_eq!((&task["kind"], &task["model"], &task["quantity"]), (&json!("task"), &Value::Null, &json!(1)));
    let id = task["period_price_id"].as_i64().unwrap();
    assert_eq!(api.get(&api.keys.acme, &format!("/v1/period-prices/{id}")).await.json()["name"], "refund");
    let csv = api.send(Method::GET, finance, &path, "", &[("accept", "text/csv")]).await;
    assert!(csv.text.lines().next().unwrap().ends_with("currency,note,period_price_id"), "{}", csv.text);
    assert!(csv.text.contains(",task,") && csv.text.contains("refund: finished tasks"), "{}", csv.text);

    let charged = api.get(&api.keys.acme, &format!("{path}/task-charges")).await.json();
    assert_eq!(
        charged["data"],
        json!([{"task": "t-1", "outcome": "success", "ended_at": "2026-10-06T00:00:00Z", "quantity": 1,
                "rate": "0.5", "amount": "0.5", "currency": "USD", "period_price_id": id}])
    );
    expect(&api.get(&api.keys.globex, &format!("{path}/task-charges")).await, 404, "not_found");
    assert_proven(&ledger).await;
}

#[tokio::test]
async fn what_goes_on_after_a_promotion_was_not_published() {
    let ledger = Ledger::new().await;
    let discount = |factor: &str, from: &str, to: &str| {
        json!({"name": "discount", "kind": "volume", "model": "gpt-5", "classes": ["input"],
            "tiers": [{"factor": factor}], "valid_from": from, "valid_to": to})
    };
    let [january, march, april] = ["2024-01-01T00:00:00Z", "2024-03-01T00:00:00Z", "2024-04-01T00:00:00Z"];
    let [june, july, december] = ["2024-06-01T00:00:00Z", "2024-07-01T00:00:00Z", "2024-12-01T00:00:00Z"];
    publish(&ledger, json!([discount("0.9", january, december)])).await;
    publish(&ledger, json!([discount("0.8", march, april)])).await;
    publish(&ledger, json!([discount("0.7", june, july)])).await;
    let mut lasting = discount("0.8", march, april);
    lasting["valid_to"] = Value::Null;
    for refused in [discount("0.9", april, december), lasting] {
        let new: Vec<NewPeriodPrice> = serde_json::from_value(json!([refused])).unwrap();
        let mut tx = ledger.database.begin().await.unwrap();
        let outcome =
            period_prices::publish(&mut tx, "standard", &new, utc("2026-12-02T00:00:00Z"), "test").await;
        assert!(outcome.is_err(), "{outcome:?}");
    }
    publish(&ledger, json!([discount("0.9", january, december)])).await;
    assert_eq!(ledger.count("SELECT count(*) FROM period_prices WHERE superseded_at IS NULL").await, 5);
}
