//! The service as a login that owns nothing and is a member of its roles: everything that runs day by day.

use std::process::{Child, Command, Output, Stdio};

use chrono::{DateTime, TimeDelta, Utc};
use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use uuid::Uuid;

use crate::harness::{TestBed, free_addresses, get, wait_until};
use crate::program::serve;
use crate::world::{World, gpt5_prices, now, usage_event};

/// What a service is a member of.
const SERVICE: [&str; 3] = ["waybill_ingest", "waybill_finance", "waybill_customer"];

/// A login of its own.
struct Login {
    name: String,
    url: String,
}

impl Login {
    /// Makes it, a member of some roles.
    async fn member_of(bed: &TestBed, roles: &[&str]) -> Self {
        let name = format!("login_{}", Uuid::new_v4().simple());
        bed.run(&format!("CREATE ROLE {name} LOGIN PASSWORD 'test'")).await;
        if !roles.is_empty() {
            bed.run(&format!("GRANT {} TO {name}", roles.join(", "))).await;
        }
        let (_, address) = bed.database_url.rsplit_once('@').unwrap();
        Self { url: format!("postgres://{name}:test@{address}"), name }
    }

    /// Removes it, which the server refuses where it owns anything.
    async fn removed(self, bed: &TestBed) {
        bed.run(&format!("DROP ROLE {}", self.name)).await;
    }

    /// Runs the program.
    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_waybill"));
        command.args(arguments).env("WAYBILL_DATABASE_URL", &self.url).output().unwrap()
    }

    /// Runs it, and gives what it prints.
    fn prints(&self, arguments: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.run(arguments);
        assert!(status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap()
    }

    /// Runs it, and gives what it complains of.
    fn complains(&self, arguments: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.run(arguments);
        assert!(!status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&stdout));
        String::from_utf8(stderr).unwrap()
    }
}

/// The program; killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// The API of the running program, and a key of every role.
struct Api {
    client: Client,
    url: String,
}

impl Api {
    async fn get(&self, key: &str, path: &str) -> Value {
        let asked = self.client.get(format!("{}{path}", self.url)).bearer_auth(key.trim());
        Self::answered(path, asked, StatusCode::OK).await
    }

    async fn post(&self, key: &str, path: &str, body: &Value, status: StatusCode) -> Value {
        let asked = self.client.post(format!("{}{path}", self.url)).bearer_auth(key.trim());
        let asked = asked.header("content-type", "application/json").body(body.to_string());
        Self::answered(path, asked, status).await
    }

    async fn answered(path: &str, request: reqwest::RequestBuilder, status: StatusCode) -> Value {
        let response = request.send().await.unwrap();
        let (is, text) = (response.status(), response.text().await.unwrap());
        assert_eq!(is, status, "{path}: {text}");
        serde_json::from_str(&text).unwrap()
    }
}

fn event_at(id: &str, at: DateTime<Utc>) -> Value {
    let mut event = usage_event(id);
    event["time"] = at.to_rfc3339().into();
    event["data"]["task"]["id"] = id.into();
    event
}

async fn number(world: &World, query: &str) -> i64 {
    sqlx::query_scalar(AssertSqlSafe(query.to_owned())).fetch_one(&world.pool).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_owns_nothing_runs_the_service() {
    let world = World::idle().await;
    world.publish_prices(gpt5_prices()).await;
    world.stop_jobs().await;
    let login = Login::member_of(&world.bed, &SERVICE).await;
    let partitions = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'usage_events'::regclass";
    assert_eq!(number(&world, partitions).await, 0, "none is made yet");
    let [http, metrics] = free_addresses();
    let mut command = serve(&world, http, metrics);
    command.env("WAYBILL_DATABASE_URL", &login.url).stderr(Stdio::null());
    let running = Running(command.spawn().unwrap());
    wait_until("it is ready", async || get(http, "/readyz").await.filter(|answer| answer.contains(" 200 ")))
        .await;
    let api = Api { client: Client::builder().no_proxy().build().unwrap(), url: format!("http://{http}") };
    let key = |arguments: &[&str]| login.prints(&[&["keys", "create", "--name", "test"], arguments].concat());
    let admin = key(&["--role", "admin"]);
    let finance = key(&["--role", "finance"]);
    let gateway = key(&["--role", "gateway", "--gateway", "gw-1"]);
    let acme = key(&["--role", "customer", "--customer", "acme"]);

    // Recorded and posted: a call of a period that is over, one of today, a duplicate and a rejection.
    let over = now() - TimeDelta::days(34);
    api.post(&gateway, "/v1/events", &event_at("old", over), StatusCode::ACCEPTED).await;
    world.publish("gw-1", &usage_event("e-1")).await;
    world.publish("gw-1", &usage_event("e-1")).await;
    let mut unpriced = usage_event("e-2");
    unpriced["data"]["model"] = "gpt-99".into();
    world.publish("gw-1", &unpriced).await;
    world.settled().await;
    assert_eq!(number(&world, partitions).await, 2, "this month's and the next");

    // What customers, finance and admin do.
    assert_eq!(api.get(&acme, "/v1/tasks/task-1").await["calls"], json!(1));
    assert_eq!(api.get(&finance, "/v1/tasks/task-1?customer=acme").await["calls"], json!(1));
    api.post(&admin, "/v1/customers", &json!({"external_id": "new", "name": "New"}), StatusCode::CREATED)
        .await;
    let dearer = json!([{"provider": "openai", "model": "gpt-5", "per": 1_000_000, "valid_from": "2026-01-01T00:00:00Z",
        "rates": {"input": "2.5", "cache_read": "0.25", "output": "20"}}]);
    let path = format!("/v1/price-books/{}/prices", crate::world::COST_BOOK);
    api.post(&finance, &path, &dearer, StatusCode::CREATED).await;
    let rerate = json!({"from": over, "to": now(), "reason": "corrected"});
    let rerated = api.post(&finance, "/v1/rerates?dry_run=false", &rerate, StatusCode::OK).await;
    assert_eq!(rerated["batches"].as_array().unwrap().len(), 1, "{rerated}");
    let period = json!({"customer": "acme", "period": over.to_rfc3339()});
    let closed = api.post(&finance, "/v1/invoices/finalize", &period, StatusCode::OK).await;
    assert_eq!(closed["invoices"].as_array().unwrap().len(), 1, "{closed}");
    login.prints(&["invoices", "close"]);

    // The date changes, and what was rejected is priced: the jobs go on.
    world.bed.run("UPDATE journal_clock SET booked_on = booked_on - 1").await;
    world.publish("gw-1", &usage_event("e-3")).await;
    wait_until("today is open again", async || {
        let open =
            "SELECT (booked_on = (now() AT TIME ZONE 'UTC')::date)::integer::bigint FROM journal_clock";
        (number(&world, open).await == 1).then_some(())
    })
    .await;
    let mut new = dearer.clone();
    new[0]["model"] = "gpt-99".into();
    api.post(&finance, &path, &new, StatusCode::CREATED).await;
    let resolved = "SELECT count(*) FROM rejections WHERE resolution = 'recorded'";
    wait_until("the rejection is recorded", async || (number(&world, resolved).await == 1).then_some(()))
        .await;

    world.settled().await;
    drop(running);
    world.verified().await;
    login.removed(&world.bed).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_ask_for_the_roles_that_they_need() {
    let world = World::patient().await;
    world.publish("gw-1", &usage_event("e-1")).await;
    world.settled().await;
    let service = Login::member_of(&world.bed, &SERVICE).await;
    let auditor = Login::member_of(&world.bed, &["waybill_auditor"]).await;
    let nobody = Login::member_of(&world.bed, &[]).await;

    // The auditor proves the ledger and does nothing else; the service leaves that to it.
    assert!(auditor.prints(&["verify", "--rebuild"]).contains("Compared 1 batches (1 posted)"));
    auditor.prints(&["partitions", "list"]);
    let refuses = "make the login a member of them";
    for (login, arguments) in [
        (&auditor, &["keys", "create", "--role", "admin", "--name", "x"][..]),
        (&auditor, &["invoices", "close"]),
        (&service, &["verify"]),
        (&nobody, &["verify"]),
        (&nobody, &["invoices", "list"]),
    ] {
        let said = login.complains(arguments);
        assert!(said.contains(refuses) && said.contains("waybill_"), "{arguments:?}: {said}");
    }
    // What the owner does, no role does.
    world.bed.run("UPDATE tasks SET calls = calls + 1").await;
    for arguments in [&["verify", "--rebuild", "--apply"][..], &["migrate"]] {
        let said = service.complains(arguments);
        assert!(said.contains("permission denied"), "{arguments:?}: {said}");
    }
    assert_eq!(world.recorded_events().await, 1);
    for login in [service, auditor, nobody] {
        login.removed(&world.bed).await;
    }
}
