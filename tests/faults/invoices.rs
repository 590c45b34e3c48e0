//! Closing that is cut short: in the end every customer has one invoice, and no number is missing or given twice.

use std::process::Child;

use chrono::{Datelike, SecondsFormat, TimeDelta};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use crate::api::event;
use crate::bed::{Bed, CUSTOMERS};
use crate::postgres_server::{own_postgres, start_again};
use crate::protocol::{Message, Way};
use crate::proxy::End;
use crate::publisher::{Gateway, now};
use crate::service::Serve;

/// Calls of each customer in the month that is closed.
const CALLS: usize = 5;
/// The command that closes what is over.
const CLOSE: [&str; 4] = ["invoices", "close", "--grace-hours", "0"];

/// Records usage of every customer in the month that is over.
async fn used_last_month(bed: &Bed) {
    let name = bed.gateways[0].clone();
    let mut gateway = Gateway::new(bed, &name, "last-month").await;
    // A day before the last of it, whichever zone it is looked at from.
    let at = now() - TimeDelta::days(i64::from(now().day()) + 1);
    for customer in CUSTOMERS {
        for call in 0..CALLS {
            let mut event = event(&name, &format!("{customer}-{call}"), customer, "last-month");
            event["time"] = json!(at.to_rfc3339_opts(SecondsFormat::Micros, true));
            gateway.send(event.to_string(), &["new"], false).await;
        }
    }
    bed.settled().await;
}

/// Starts to close what is over.
fn closing(serve: &Serve) -> Child {
    serve.command(&CLOSE).spawn().unwrap()
}

/// The COMMIT of a period that is closed, on its way; and its answer.
fn about_to_close(message: &Message) -> bool {
    message.is_statement("COMMIT") && message.follows("INSERT INTO invoices")
}

fn has_closed(message: &Message) -> bool {
    message.completes("COMMIT") && message.follows("INSERT INTO invoices")
}

/// Closes what is left, and looks at what is there then.
async fn closed_once(bed: &mut Bed, serve: &Serve) {
    print!("{}", serve.run(&CLOSE));
    let numbers: Vec<(i64, i64)> = sqlx::query_as(
        "SELECT number, count(*) OVER (PARTITION BY customer_id, period_start) FROM invoices ORDER BY number",
    )
    .fetch_all(&bed.pool)
    .await
    .unwrap();
    let must: Vec<(i64, i64)> = (1..).map(|number| (number, 1)).take(CUSTOMERS.len()).collect();
    assert_eq!(numbers, must, "one invoice of every customer, and its number");
    serve.run(&["verify"]);
    bed.audit().await.clean();
}

/// F30: PostgreSQL is killed before a period is closed, and after it is, before anybody knows.
#[tokio::test(flavor = "multi_thread")]
async fn f30_postgres_killed_while_it_closes_gives_every_number_once() {
    let mut bed = Bed::with("f30-invoices", own_postgres()).await;
    let serve = bed.serve();
    let service = serve.clone().supervised();
    service.ready().await;
    bed.take_snapshots();
    used_last_month(&bed).await;
    let points = [(Way::ToServer, about_to_close as fn(&Message) -> bool), (Way::ToClient, has_closed)];
    for (way, point) in points {
        let reaching = bed.postgres.hold(way, point);
        let mut closing = closing(&serve);
        let held = reaching.reached("a period is being closed").await;
        bed.own_postgres.as_mut().unwrap().kill().await;
        held.end(End::Reset);
        assert!(!closing.wait().unwrap().success(), "it says that not everything is closed");
        start_again(&mut bed).await;
        service.ready().await;
    }
    closed_once(&mut bed, &serve).await;
}

/// F57: SIGTERM while a period is being closed: it is not, and the next run closes it.
#[tokio::test(flavor = "multi_thread")]
async fn f57_a_closing_that_is_stopped_closes_the_rest_next_time() {
    let mut bed = Bed::new("f57-invoices").await;
    let serve = bed.serve();
    let service = serve.start();
    service.ready().await;
    bed.take_snapshots();
    used_last_month(&bed).await;
    let reaching = bed.postgres.hold(Way::ToServer, about_to_close);
    let mut closing = closing(&serve);
    let held = reaching.reached("a period is being closed").await;
    kill(Pid::from_raw(i32::try_from(closing.id()).unwrap()), Signal::SIGTERM).unwrap();
    assert!(!closing.wait().unwrap().success(), "it says that not everything is closed");
    held.end(End::Reset);
    assert_eq!(bed.number("SELECT count(*) FROM invoices").await, 0);
    closed_once(&mut bed, &serve).await;
}
