//! Usage, tasks, reports and invoices through the API: what finance sees, what a customer sees, and that both agree.

use axum::http::{Method, StatusCode, header};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Value, json};
use waybill::domain::ids::CustomerId;
use waybill::reports::fresh;
use waybill::store::Scope;

use crate::harness::wait_until;
use crate::http_bed::Api;
use crate::ledger::{Ledger, Row, call, ended, task_call, utc};

/// Tokens of the other customer's call: digits that no id, hash or time contains by chance.
const CANARY_TOKENS: i64 = 777_000_777_000;

/// Two customers' October; the API's clock stands in November.
async fn filled() -> (Api, Ledger) {
    let api = Api::start().await;
    let mut ledger = Ledger::beside(&api.bed).await;
    let (acme, globex) = (ledger.customer("acme", "UTC").await, ledger.customer("globex", "UTC").await);
    let part = Row {
        parent: Some("refund-1"),
        ..task_call(acme, "2026-10-02T01:01:00Z", "lookup-1", "lookup", 1_000)
    };
    ledger
        .record(&[
            task_call(acme, "2026-10-02T01:00:00Z", "refund-1", "refund", 1_000_000),
            Row {
                project: Some("=cmd()"),
                rare: Some(json!({"web_search": 1})),
                ..call(acme, "2026-10-03T01:00:00Z", "a", 0, 1)
            },
            part,
            ended(acme, "2026-10-02T02:00:00Z", "refund-1", "refund", "success"),
            task_call(acme, "2026-10-05T01:00:00Z", "refund-2", "refund", 3_000_000),
            ended(acme, "2026-10-05T02:00:00Z", "refund-2", "refund", "failure"),
            task_call(globex, "2026-10-02T01:00:00Z", "canary", "canary", CANARY_TOKENS),
        ])
        .await;
    ledger.post().await;
    (api, ledger)
}

const OCTOBER: &str = "from=2026-10-01T00:00:00Z&to=2026-11-01T00:00:00Z";

async fn json(api: &Api, key: &str, path: &str) -> Value {
    let answer = api.get(key, path).await;
    assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text);
    answer.json()
}

async fn csv(api: &Api, key: &str, path: &str) -> String {
    let answer = api.send(Method::GET, key, path, "", &[("accept", "text/csv")]).await;
    assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text);
    assert!(answer.headers[header::CONTENT_TYPE].to_str().unwrap().starts_with("text/csv"));
    answer.text
}

#[tokio::test]
async fn usage_and_margin() {
    let (api, _ledger) = filled().await;
    let finance = &api.keys.finance;
    let usage =
        json(&api, finance, &format!("/v1/usage?{OCTOBER}&group_by=customer,model&customer=acme")).await;
    let row = &usage["data"][0];
    assert_eq!(
        *row,
        json!({"customer": "acme", "model": "gpt-5", "events": 4, "quantities": {"input": 4_001_000, "output": 1, "web_search": 1},
               "cost": "6.011511", "charge": "12.023022", "margin": "6.011511", "margin_ratio": "0.5000", "currency": "USD"})
    );
    assert_eq!(usage["as_of"], "2026-11-23T12:00:00Z");
    let margin = json(&api, finance, &format!("/v1/reports/margin?{OCTOBER}")).await;
    let customers: Vec<&Value> =
        margin["data"].as_array().unwrap().iter().map(|row| &row["customer"]).collect();
    assert_eq!(customers, ["acme", "globex"]);
    let path = format!("/v1/usage?{OCTOBER}&group_by=project");
    let answer = api.send(Method::GET, finance, &path, "", &[("accept", "text/csv")]).await;
    assert_eq!(answer.headers["x-as-of"], "2026-11-23T12:00:00Z");
    let file = csv(&api, finance, &path).await;
    assert!(file.contains("\r\n,,,,'=cmd(),,,1,"), "{file}");
    assert_eq!(api.get(&api.keys.acme, "/v1/reports/margin").await.problem(), (403, "forbidden".to_owned()));
    for query in ["group_by=colour", "from=2026-11-01T00:00:00Z&to=2026-11-01T00:00:00Z"] {
        let refused = api.get(finance, &format!("/v1/usage?{query}")).await;
        assert_eq!(refused.problem(), (422, "invalid_value".to_owned()), "{query}");
    }
    assert_eq!(
        api.get(finance, "/v1/usage?grupo=model").await.problem(),
        (400, "invalid_request".to_owned())
    );
}

/// What is recorded while a report waits for its snapshot is not in it, nor does it say so.
#[tokio::test]
async fn as_of_is_never_later_than_the_snapshot() {
    let (api, ledger) = filled().await;
    let finance = &api.keys.finance;
    for path in [
        "/v1/usage?customer=acme",
        "/v1/reports/margin?customer=acme",
        "/v1/reports/cost-per-task?customer=acme",
        "/v1/tasks/refund-1?customer=acme",
        "/v1/invoices/preview?customer=acme",
    ] {
        let asked = api.clock.now();
        let mut holder = ledger.pool.begin().await.unwrap();
        sqlx::query("LOCK TABLE customers IN ACCESS EXCLUSIVE MODE").execute(&mut *holder).await.unwrap();
        let release = async {
            let waiting =
                "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database AND d.datname = current_database()
                 WHERE NOT granted AND relation = 'customers'::regclass";
            wait_until("the report waits", async || (ledger.count(waiting).await == 1).then_some(())).await;
            api.clock.advance(TimeDelta::minutes(1));
            holder.rollback().await.unwrap();
        };
        let (report, ()) = tokio::join!(json(&api, finance, path), release);
        assert_eq!(report["as_of"].as_str().unwrap().parse::<DateTime<Utc>>().unwrap(), asked, "{path}");
    }
}

#[tokio::test]
async fn fresh_usage_waits_until_what_was_recorded_is_posted() {
    let (api, mut ledger) = filled().await;
    let acme = CustomerId(ledger.count("SELECT id FROM customers WHERE external_id = 'acme'").await);
    assert!(fresh(&ledger.database, Scope::Customer(acme), 0).await.unwrap().is_some());
    ledger.record(&[call(acme, "2026-10-06T01:00:00Z", "b", 5, 0)]).await;
    for scope in [Scope::Everything, Scope::Customer(acme)] {
        assert!(fresh(&ledger.database, scope, 1).await.unwrap().is_none());
    }
    let input = |usage: &Value| usage["data"][0]["quantities"]["input"].clone();
    let path = format!("/v1/usage?{OCTOBER}");
    assert_eq!(input(&json(&api, &api.keys.acme, &path).await), 4_001_000);
    let path = format!("{path}&fresh=true");
    let (usage, ()) = tokio::join!(json(&api, &api.keys.acme, &path), ledger.post());
    assert_eq!((input(&usage), &usage["as_of"]), (json!(4_001_005), &json!("2026-11-23T12:00:00Z")));
    let path = format!("/v1/reports/margin?{OCTOBER}&fresh=true");
    let margin = json(&api, &api.keys.finance, &path).await;
    assert_eq!(margin["data"][0]["customer"], "acme");
    ledger.record(&[call(acme, "2026-10-06T02:00:00Z", "c", 5, 0)]).await;
    let behind = api.get(&api.keys.acme, &format!("/v1/usage?{OCTOBER}&fresh=true")).await;
    assert_eq!(behind.problem(), (503, "posting_behind".to_owned()));
    assert_eq!(behind.headers[header::RETRY_AFTER], "2");
}

#[tokio::test]
async fn a_customer_sees_its_own_amounts_and_no_cost() {
    let (api, _ledger) = filled().await;
    let key = &api.keys.acme;
    let post = json!({"customer": "acme", "period": "2026-10"});
    let closed = api.post(&api.keys.finance, "/v1/invoices/finalize", &post).await.json();
    let invoice = closed["invoices"][0]["id"].as_str().unwrap().to_owned();
    let canary_tokens = CANARY_TOKENS.to_string();
    let paths = [
        format!("/v1/usage?{OCTOBER}&group_by=model,class,day,project,task_type,provider,customer"),
        format!("/v1/usage?{OCTOBER}"),
        "/v1/tasks".to_owned(),
        "/v1/tasks/refund-1".to_owned(),
        "/v1/tasks/refund-1/calls".to_owned(),
        format!("/v1/reports/cost-per-task?{OCTOBER}"),
        format!("/v1/reports/cost-per-task?{OCTOBER}&nested=true"),
        "/v1/invoices".to_owned(),
        "/v1/invoices/preview?period=2026-10".to_owned(),
        format!("/v1/invoices/{invoice}"),
    ];
    for path in &paths {
        let body = json(&api, key, path).await.to_string();
        for hidden in
            ["\"cost\"", "\"charge\"", "margin", "globex", "canary", canary_tokens.as_str(), "manifest"]
        {
            assert!(!body.contains(hidden), "{path} shows {hidden}: {body}");
        }
        assert!(body.contains("amount") || body.contains("total"), "{path}: {body}");
    }
    for path in paths.iter().filter(|path| path.as_str() != "/v1/tasks/refund-1") {
        let file = csv(&api, key, path).await;
        let columns = file.lines().next().unwrap();
        assert!(
            !columns.contains("cost") && !columns.contains("margin") && !file.contains("canary"),
            "{path}: {file}"
        );
    }
    // Another customer's are not found, the same as what does not exist.
    let other = &api.keys.globex;
    let missing = api.get(other, "/v1/tasks/refund-1").await;
    assert_eq!(missing.comparable(), api.get(other, "/v1/tasks/no-such-task").await.comparable());
    assert_eq!(missing.problem(), (404, "not_found".to_owned()));
    let foreign = api.get(other, &format!("/v1/invoices/{invoice}")).await;
    assert_eq!(
        foreign.comparable(),
        api.get(other, &format!("/v1/invoices/{}", uuid::Uuid::nil())).await.comparable()
    );
    for path in [
        "/v1/usage?customer=acme",
        "/v1/tasks?customer=acme",
        "/v1/invoices?customer=acme",
        "/v1/invoices/preview?customer=acme",
    ] {
        assert_eq!(api.get(other, path).await.problem(), (404, "not_found".to_owned()), "{path}");
    }
    assert_eq!(json(&api, other, "/v1/invoices").await["data"], json!([]));
    let refused = api.post(key, "/v1/invoices/finalize", &post).await;
    assert_eq!(refused.problem(), (403, "forbidden".to_owned()));
}

#[tokio::test]
async fn tasks_with_their_steps_and_what_a_success_costs() {
    let (api, _ledger) = filled().await;
    let finance = &api.keys.finance;
    assert_eq!(api.get(finance, "/v1/tasks").await.problem(), (422, "invalid_value".to_owned()));
    let first = json(&api, finance, "/v1/tasks?customer=acme&limit=2").await;
    let next = first["next_cursor"].as_str().unwrap();
    let second = json(&api, finance, &format!("/v1/tasks?customer=acme&limit=2&cursor={next}")).await;
    let ids: Vec<&Value> = [&first, &second]
        .into_iter()
        .flat_map(|page| page["data"].as_array().unwrap())
        .map(|task| &task["id"])
        .collect();
    assert_eq!(ids, ["refund-2", "refund-1", "lookup-1"]);
    let task = json(&api, finance, "/v1/tasks/refund-1?customer=acme").await;
    assert_eq!(
        (&task["charge"], &task["cost"], &task["outcome"]),
        (&json!("3"), &json!("1.5"), &json!("success"))
    );
    assert_eq!((&task["nested"]["charge"], &task["nested"]["tasks"]), (&json!("3.003"), &json!(2)));
    let kinds: Vec<&Value> = task["steps"].as_array().unwrap().iter().map(|step| &step["kind"]).collect();
    assert_eq!(kinds, ["usage", "outcome"]);
    let steps = json(&api, finance, "/v1/tasks/refund-1/calls?customer=acme&limit=1").await;
    assert_eq!((&steps["data"][0], &steps["has_more"]), (&task["steps"][0], &json!(true)));

    let report =
        json(&api, &api.keys.acme, &format!("/v1/reports/cost-per-task?{OCTOBER}&nested=true")).await;
    let [refund] = report["types"].as_array().unwrap().as_slice() else { panic!("one type: {report}") };
    assert_eq!(refund["success_rate"], "0.5000");
    assert_eq!(refund["per_success"], json!({"amount": "12.003", "currency": "USD"}));
    assert_eq!(refund["wasted"], json!({"amount": "9", "currency": "USD"}));
    assert_eq!(report["unattributed"], json!([{"calls": 1, "amount": "0.020022", "currency": "USD"}]));
    let groups: Vec<(&Value, &Value)> = report["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|group| (&group["outcome"], &group["amount"]["p50"]))
        .collect();
    assert_eq!(groups, [(&json!("failure"), &json!("9")), (&json!("success"), &json!("3.003"))]);
}

/// A statement that takes too long is ended by the server in the same way as one that is cancelled.
#[tokio::test]
async fn a_task_whose_calls_take_too_long_shows_its_totals() {
    let (api, ledger) = filled().await;
    let finance = &api.keys.finance;
    let without_calls = async |path: &str| {
        let mut holder = ledger.pool.begin().await.unwrap();
        sqlx::query("LOCK TABLE usage_events IN ACCESS EXCLUSIVE MODE").execute(&mut *holder).await.unwrap();
        let cancel = "SELECT count(*) FILTER (WHERE pg_cancel_backend(l.pid)) FROM pg_locks l
            JOIN pg_database d ON d.oid = l.database AND d.datname = current_database()
            WHERE NOT l.granted AND l.relation = 'usage_events'::regclass";
        let cancelled =
            wait_until("the calls are read", async || (ledger.count(cancel).await == 1).then_some(()));
        // Finance waits longer for a lock than a slow machine takes to cancel the statement.
        let (answer, ()) = tokio::join!(api.get(finance, path), cancelled);
        holder.rollback().await.unwrap();
        answer
    };
    let task = without_calls("/v1/tasks/refund-1?customer=acme").await;
    assert_eq!(task.status, StatusCode::OK, "{}", task.text);
    let task = task.json();
    assert_eq!((&task["charge"], &task["nested"]["charge"]), (&json!("3"), &json!("3.003")));
    let steps = (&task["steps"], &task["steps_timed_out"], &task["has_more_steps"]);
    assert_eq!(steps, (&json!([]), &json!(true), &json!(true)));
    let task = json(&api, finance, "/v1/tasks/refund-1?customer=acme").await;
    assert_eq!(task["steps_timed_out"], json!(false));

    let calls = without_calls("/v1/tasks/refund-1/calls?customer=acme").await;
    assert_eq!(calls.problem(), (503, "timeout".to_owned()));
    assert_eq!(calls.headers[header::RETRY_AFTER], "30");
}

#[tokio::test]
async fn a_report_has_no_more_rows_than_it_may() {
    let (api, ledger) = filled().await;
    ledger
        .run(&format!(
            "INSERT INTO usage_rollups (customer_id, booked_period, service_period, hour, cost_price_id, sell_price_id, project,
                 task_type, kind, events, input, cache_read, cache_write_5m, cache_write_1h, output, reasoning, cost, charge)
             SELECT id, '2026-10-01Z', '2026-10-01Z', '2026-10-09Z', 1, 2, 'p-' || n, '', 'usage', 1, 1, 0, 0, 0, 0, 0, 1, 2
             FROM customers, generate_series(1, {max}) n WHERE external_id = 'globex';
             INSERT INTO tasks (customer_id, task_id, task_type, first_event_at, last_event_at, calls, input, cache_read,
                 cache_write_5m, cache_write_1h, output, reasoning, cost, charge, models, first_batch, last_batch,
                 first_booked_on, last_booked_on)
             SELECT id, 't-' || n, 't-' || n, '2026-10-09Z', '2026-10-09Z', 1, 1, 0, 0, 0, 0, 0, 1, 2, '{{}}', 1, 1, '2026-10-09',
                 '2026-10-09'
             FROM customers, generate_series(1, {max}) n WHERE external_id = 'globex';
             ANALYZE tasks",
            max = waybill::reports::ROWS_MAX
        ))
        .await;
    for (path, narrower) in [
        (format!("/v1/usage?{OCTOBER}&group_by=project"), "project=p-7"),
        (format!("/v1/usage?{OCTOBER}&group_by=project,class"), "project=p-7"),
        (format!("/v1/reports/cost-per-task?{OCTOBER}"), "task_type=t-7"),
    ] {
        // With the one that was there it is one too many.
        let refused = api.get(&api.keys.globex, &path).await;
        assert_eq!(refused.problem(), (422, "too_many_rows".to_owned()), "{path}");
        let narrow = json(&api, &api.keys.globex, &format!("{path}&{narrower}")).await;
        assert_eq!(narrow["data"].as_array().unwrap().len(), 1, "{path}");
    }
}

#[tokio::test]
async fn a_customer_takes_its_share_of_the_connections_and_no_more() {
    let (api, ledger) = filled().await;
    let acme = CustomerId(ledger.count("SELECT id FROM customers WHERE external_id = 'acme'").await);
    let mut reads = Vec::new();
    for _ in 0..3 {
        reads.push(api.bed.database.read(Scope::Customer(acme)).await.unwrap());
    }
    let (more, other, finance) = tokio::join!(
        api.get(&api.keys.acme, "/v1/tasks"),
        api.get(&api.keys.globex, "/v1/tasks"),
        api.get(&api.keys.finance, "/v1/tasks?customer=acme")
    );
    assert_eq!(more.problem(), (429, "too_many_requests".to_owned()));
    assert_eq!(more.headers[header::RETRY_AFTER], "2");
    assert_eq!((other.status, finance.status), (StatusCode::OK, StatusCode::OK));
    reads.pop();
    assert_eq!(api.get(&api.keys.acme, "/v1/tasks").await.status, StatusCode::OK);
}

#[tokio::test]
async fn an_invoice_is_previewed_finalized_once_and_read() {
    let (api, ledger) = filled().await;
    let finance = &api.keys.finance;
    let preview = json(&api, finance, "/v1/invoices/preview?customer=acme&period=2026-10").await;
    let running = json(&api, finance, "/v1/invoices/preview?customer=acme").await;
    assert_eq!(
        (&running["period_start"], &running["invoices"]),
        (&json!("2026-11-01T00:00:00Z"), &json!([]))
    );

    let body = json!({"customer": "acme", "period": "2026-10"});
    let closed = api.post_once(finance, "/v1/invoices/finalize", &body, "close-1").await;
    assert_eq!(closed.status, StatusCode::OK, "{}", closed.text);
    let replayed = api.post_once(finance, "/v1/invoices/finalize", &body, "close-1").await;
    assert_eq!(
        (replayed.text, &replayed.headers["idempotent-replayed"]),
        (closed.text.clone(), &"true".parse().unwrap())
    );
    let again = api.post(finance, "/v1/invoices/finalize", &body).await.json();
    let closed = closed.json();
    assert_eq!((&closed["already_closed"], &again["already_closed"]), (&json!(false), &json!(true)));
    assert_eq!(closed["invoices"], again["invoices"]);

    let id = closed["invoices"][0]["id"].as_str().unwrap();
    let invoice = json(&api, finance, &format!("/v1/invoices/{id}")).await;
    assert_eq!(invoice["lines"], preview["invoices"][0]["lines"]);
    assert_eq!(
        (&invoice["number"], &invoice["total"], &invoice["exact_total"]),
        (&json!("INV-000001"), &json!("12.02"), &json!("12.023022"))
    );
    assert_eq!(invoice["manifest"]["events"], 4);
    assert_eq!(
        invoice["lines"][0],
        json!({"line": 1, "kind": "usage", "service_start": "2026-10-01T00:00:00Z",
        "service_end": "2026-11-01T00:00:00Z", "provider": "openai", "model": "gpt-5", "class": "input", "quantity": 4_001_000,
        "rate": "0.000003", "exact_amount": "12.003", "amount": "12.00", "currency": "USD", "note": null,
        "period_price_id": null})
    );
    let file = csv(&api, &api.keys.acme, &format!("/v1/invoices/{id}")).await;
    assert_eq!(file.lines().count(), 4, "{file}");
    assert!(file.contains("1,usage,2026-10-01T00:00:00Z,2026-11-01T00:00:00Z,openai,gpt-5,input,4001000,0.000003,12.003,12.00,USD"), "{file}");

    let early =
        api.post(finance, "/v1/invoices/finalize", &json!({"customer": "acme", "period": "2026-11"})).await;
    assert_eq!(early.problem(), (409, "conflict".to_owned()));
    let odd =
        api.post(finance, "/v1/invoices/finalize", &json!({"customer": "acme", "period": "October"})).await;
    assert_eq!(odd.problem(), (422, "invalid_value".to_owned()));
    let nobody =
        api.post(finance, "/v1/invoices/finalize", &json!({"customer": "nobody", "period": "2026-10"})).await;
    assert_eq!(nobody.problem(), (404, "not_found".to_owned()));
    let unused = ledger.customer("unused", "UTC").await;
    ledger.run(&format!("UPDATE customers SET created_at = '2026-01-01Z' WHERE id = {unused}")).await;
    let ancient =
        api.post(finance, "/v1/invoices/finalize", &json!({"customer": "unused", "period": "2016-10"})).await;
    assert_eq!(ancient.problem(), (422, "invalid_value".to_owned()));
    assert_eq!(
        ancient.json()["errors"],
        json!([{"field": "period",
                "detail": "the customer begins at 2020-01-01 00:00:00 UTC; name a period that ends after it"}])
    );
    assert_eq!(ledger.count("SELECT count(*) FROM invoices").await, 1);
    let proof =
        waybill::reports::verify::verify(&ledger.database, utc("2026-12-01T00:00:00Z")).await.unwrap();
    assert_eq!(proof.findings, []);
}

#[tokio::test]
async fn the_invoices_of_a_month_are_those_of_every_zone() {
    let api = Api::start().await;
    let mut ledger = Ledger::beside(&api.bed).await;
    for (customer, zone) in
        [("acme", "UTC"), ("berlin", "Europe/Berlin"), ("new-york", "America/New_York"), ("late", "UTC")]
    {
        let id = ledger.customer(customer, zone).await;
        let at = if customer == "late" { "2026-09-15T00:00:00Z" } else { "2026-10-15T00:00:00Z" };
        ledger.record(&[call(id, at, customer, 1, 0)]).await;
    }
    ledger.post().await;
    let finance = &api.keys.finance;
    for (customer, period) in
        [("acme", "2026-10"), ("berlin", "2026-10"), ("new-york", "2026-10"), ("late", "2026-09")]
    {
        let body = json!({"customer": customer, "period": period});
        let closed = api.post(finance, "/v1/invoices/finalize", &body).await;
        assert_eq!(closed.status, StatusCode::OK, "{}", closed.text);
    }
    let listed = async |query: &str| {
        let invoices = json(&api, finance, &format!("/v1/invoices?{query}")).await;
        let customers =
            invoices["data"].as_array().unwrap().iter().map(|invoice| invoice["customer"].to_string());
        customers.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(listed("period=2026-10").await, r#""new-york" "berlin" "acme""#);
    assert_eq!(listed("period=2026-09").await, r#""late""#);
    assert_eq!(listed("period=2026-10&customer=berlin").await, r#""berlin""#);
    assert_eq!(listed("period=2026-10&from=2026-10-01T00:00:00Z").await, r#""new-york" "acme""#);
    for period in ["2026", "2026-13", "October", "2026-10-01T00:00:00Z"] {
        let refused = api.get(finance, &format!("/v1/invoices?period={period}")).await;
        assert_eq!(refused.problem(), (422, "invalid_value".to_owned()), "{period}");
    }
}

#[tokio::test]
async fn what_keeps_an_invoice_from_being_made_is_told_to_finance() {
    let (api, ledger) = filled().await;
    ledger.run("UPDATE usage_rollups SET charge = charge + 1").await;
    let body = json!({"customer": "acme", "period": "2026-10"});
    let path = "/v1/invoices/preview?period=2026-10";
    let finance = &api.keys.finance;
    for refused in [
        api.post(finance, "/v1/invoices/finalize", &body).await,
        api.get(finance, &format!("{path}&customer=acme")).await,
    ] {
        assert_eq!(refused.problem(), (409, "conflict".to_owned()));
        assert!(refused.text.contains("run `waybill verify`"), "{}", refused.text);
    }
    let billed = api.get(&api.keys.acme, path).await;
    assert_eq!(billed.problem(), (500, "internal".to_owned()));
    assert!(!billed.text.contains("verify"), "{}", billed.text);
}

#[tokio::test]
async fn no_year_is_too_far_for_an_answer() {
    let api = Api::start().await;
    let ledger = Ledger::beside(&api.bed).await;
    ledger.customer("acme", "Asia/Kathmandu").await;
    for period in ["%2B262142-12-31T23:59:59Z", "%2B262142-12", "-262143-01-01T00:00:00Z", "%2B10001-01"] {
        let refused = api.get(&api.keys.acme, &format!("/v1/invoices/preview?period={period}")).await;
        assert_eq!(refused.problem(), (422, "invalid_value".to_owned()), "{period}");
    }
}

#[tokio::test]
async fn a_zone_that_the_database_has_lost_is_no_fault_of_the_request() {
    let (api, ledger) = filled().await;
    let finance = &api.keys.finance;
    let body = json!({"customer": "acme", "period": "2026-10"});
    assert_eq!(api.post(finance, "/v1/invoices/finalize", &body).await.status, StatusCode::OK);
    // As after an upgrade of the server to one without this name.
    for table in ["invoices", "customers"] {
        let lost = format!("UPDATE {table} SET time_zone = 'Mars/Olympus'");
        ledger.run(&format!("ALTER TABLE {table} DISABLE TRIGGER USER; {lost}")).await;
    }
    for path in [&format!("/v1/usage?{OCTOBER}&group_by=day"), "/v1/invoices?period=2026-10"] {
        for key in [finance, &api.keys.acme] {
            let answer = api.get(key, path).await;
            assert_eq!(answer.problem(), (503, "unavailable".to_owned()), "{path}");
            assert!(answer.text.contains("does not know the time zone of a customer"), "{}", answer.text);
        }
    }
    let early = api.get(finance, "/v1/invoices?from=-10000-01-01T00:00:00Z").await;
    assert_eq!(early.problem(), (422, "invalid_value".to_owned()));
    let body = json!({"role": "finance", "name": "a\0b"});
    let nul = api.post(&api.keys.admin, "/v1/api-keys", &body).await;
    assert_eq!(nul.problem(), (422, "invalid_value".to_owned()));
}
