//! `waybill dev`: everything on private servers, with a demo, until Ctrl-C.

use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::process::ExitCode;

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use comfy_table::presets::UTF8_FULL_CONDENSED;
use comfy_table::{Attribute, Cell, CellAlignment, ContentArrangement, Table};
use indicatif::{ProgressBar, ProgressStyle};

use super::{App, signalled, start};
use crate::clock::Clock;
use crate::config::{DatabaseArgs, DemandArgs, DevArgs, ListenArgs, NatsArgs, ServeArgs};
use crate::dev::demo;
use crate::dev::keys::DevEnv;
use crate::dev::servers::{Keep, Options, Servers};
use crate::dev::traffic::{CUSTOMERS, GATEWAY};
use crate::domain::tokens::TokenClass;
use crate::invoicing::{Draft, preview};
use crate::reports::{self, CostPerTask};
use crate::store::reports::TaskScope;
use crate::store::{self, Database, Scope, customers};

/// Lines of the invoice preview that are shown.
const LINES_SHOWN: usize = 20;
/// The interval of the cost-per-task table, in days.
const REPORT_DAYS: i64 = 35;

/// Starts servers and service, loads the demo into an empty ledger, shows it, and serves until a signal.
///
/// # Errors
/// A sentence for whatever keeps it from running.
pub async fn run(args: &DevArgs) -> anyhow::Result<ExitCode> {
    let step = Steps::default();
    step.begin("starting PostgreSQL and NATS");
    let options = Options {
        home: args.home.clone(),
        keep: Keep::Durable,
        database_url: args.database_url.clone(),
        nats_url: args.nats_url.clone(),
    };
    // Listened for once, so that none is lost between two steps.
    let asked = signalled();
    tokio::pin!(asked);
    let mut servers = tokio::select! {
        servers = Servers::start(options) => servers?,
        signal = &mut asked => { signal?; return Ok(ExitCode::SUCCESS); }
    };
    let served = serve(args, &mut servers, &step, asked).await;
    step.done();
    println!("Stopping the servers.");
    let stopped = servers.stop().await;
    let code = served?;
    stopped?;
    Ok(code)
}

/// Serves until it is asked to stop, or a server is gone.
async fn serve(
    args: &DevArgs,
    servers: &mut Servers,
    step: &Steps,
    mut asked: Pin<&mut impl Future<Output = anyhow::Result<()>>>,
) -> anyhow::Result<ExitCode> {
    let (mut app, mut env, demo) = tokio::select! {
        prepared = prepare(args, servers, step) => prepared?,
        signal = &mut asked => { signal?; return Ok(ExitCode::SUCCESS); }
    };
    let shutdown = app.shutdown.clone();
    let shown = tokio::select! {
        shown = show(&mut app, &mut env, demo, step) => shown,
        // The service stops at once, and says why.
        _ = shutdown.part_ended() => Ok(()),
        signal = &mut asked => {
            signal?;
            app.stop().await?;
            return Ok(ExitCode::SUCCESS);
        }
        gone = servers.exited() => Err(gone.into()),
    };
    if let Err(error) = shown {
        app.stop().await?;
        return Err(error);
    }
    let running = app.until_stopped();
    tokio::pin!(running);
    tokio::select! {
        ended = &mut running => ended,
        signal = &mut asked => {
            signal?;
            // It listens for itself, and is asked as well where the signal came before it did.
            shutdown.stop();
            running.await
        }
        gone = servers.exited() => {
            shutdown.stop();
            // The reason is the server; that the service cannot finish without it follows.
            let _ = running.await;
            Err(gone.into())
        }
    }
}

/// Brings the ledger up to date, sets the demo up and starts the service; up to when the demo's traffic goes where it is to be loaded.
async fn prepare(
    args: &DevArgs,
    servers: &Servers,
    step: &Steps,
) -> anyhow::Result<(App, DevEnv, Option<DateTime<Utc>>)> {
    step.begin("migrating, publishing the starter prices");
    store::migrate(servers.database_url()).await?;
    let database = Database::connect(servers.database_url()).await?;
    let now = Clock::System.now();
    demo::starter_book(&database, now).await?;
    let mut env = DevEnv::load(&args.home);
    let demo = if args.demo == 1 { demo::begin(&database, &mut env, now).await? } else { None };
    database.close().await;

    step.begin("starting the service");
    let app = start(&serve_args(args, servers)).await?;
    env.ensure_keys(&app.database, Clock::System.now()).await?;
    if let Some(address) = app.http_addr {
        env.set("WAYBILL_URL", format!("http://{}", reached_at(address)));
    }
    env.set("WAYBILL_DATABASE_URL", servers.database_url());
    env.set("WAYBILL_NATS_URL", servers.nats_url());
    if let Some(url) = monitor_url(args, servers) {
        env.set("WAYBILL_NATS_MONITOR_URL", url);
    }
    if let Some(url) = servers.nats_gateway_url() {
        env.set("WAYBILL_NATS_GATEWAY_URL", url);
    }
    env.save()?;
    Ok((app, env, demo))
}

/// Where programs of this machine reach a listener: one on all addresses by that of the loopback interface.
fn reached_at(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::LOCALHOST),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::LOCALHOST),
        });
    }
    address
}

fn monitor_url(args: &DevArgs, servers: &Servers) -> Option<String> {
    servers.nats_monitor_url().or_else(|| args.nats_monitor_url.clone())
}

fn serve_args(args: &DevArgs, servers: &Servers) -> ServeArgs {
    ServeArgs {
        database: DatabaseArgs { database_url: servers.database_url().to_owned() },
        nats: NatsArgs::local(servers.nats_url()),
        demands: DemandArgs { nats_monitor_url: monitor_url(args, servers), ..DemandArgs::default() },
        listen: ListenArgs { http_addr: args.http_addr, metrics_addr: args.metrics_addr },
        api: true,
        consumer: true,
        jobs: true,
        migrate: false,
    }
}

/// Loads the demo's traffic where that is to be done, then shows what is there.
async fn show(
    app: &mut App,
    env: &mut DevEnv,
    demo: Option<DateTime<Utc>>,
    step: &Steps,
) -> anyhow::Result<()> {
    app.settled().await?;
    let now = Clock::System.now();
    if let Some(until) = demo {
        step.begin("publishing the demo's traffic through NATS");
        let sent = demo::traffic(&app.database, &app.publisher, env, until).await?;
        step.done();
        println!(
            "{} events in {} messages went through the stream and are recorded.",
            sent.events, sent.messages
        );
    }
    step.done();
    // A ledger may have grown too large to look at all of it here; that is no reason not to serve it.
    if let Err(error) = show_figures(&app.database, now).await {
        println!("\nThe figures of the demo cannot be shown: {error:#}");
    }
    print_addresses(app, env);
    Ok(())
}

/// Shows the invoice of a customer of the demo, where there is one, and what tasks cost.
async fn show_figures(database: &Database, now: DateTime<Utc>) -> anyhow::Result<()> {
    let mut tx = database.read(Scope::Everything).await?;
    if let Some(customer) = customers::by_external_id(&mut tx, CUSTOMERS[0]).await? {
        let draft = preview(&mut tx, customer.id, now, now).await?;
        print_invoice(&draft)?;
        let tasks = TaskScope { from: now - TimeDelta::days(REPORT_DAYS), to: now, ..TaskScope::default() };
        print_tasks(&reports::cost_per_task(&mut tx, Scope::Everything, &tasks, now).await?);
    }
    Ok(())
}

fn print_invoice(draft: &Draft) -> anyhow::Result<()> {
    let zone: chrono_tz::Tz = draft.customer.time_zone.parse().context("the customer's zone")?;
    println!(
        "\nInvoice preview: {} ({}), {} to {} ({zone})",
        draft.customer.name,
        draft.customer.external_id,
        draft.period.start.with_timezone(&zone).format("%Y-%m-%d"),
        draft.period.end.with_timezone(&zone).format("%Y-%m-%d"),
    );
    for document in &draft.documents {
        let mut table = new_table(&["", "Model", "Class", "Quantity", "per million", "Exact", "Amount"]);
        for line in document.lines.iter().take(LINES_SHOWN) {
            // A package or a task has a price of its own, not one per million.
            let per = if line.class.is_some() { 1_000_000 } else { 1 };
            let rate = line.rate.times(per).map(|amount| amount.to_string()).unwrap_or_default();
            table.add_row([
                Cell::new(line.kind),
                Cell::new(line.model.as_deref().unwrap_or_default()),
                Cell::new(line.class.map(TokenClass::name).unwrap_or_default()),
                right(line.quantity),
                right(rate),
                right(line.exact),
                right(line.amount),
            ]);
        }
        if document.lines.len() > LINES_SHOWN {
            table.add_row([Cell::new(format!("… {} more lines", document.lines.len() - LINES_SHOWN))]);
        }
        let total = Cell::new(format!("{} {}", document.total, document.currency));
        table.add_row([
            Cell::new("Total").add_attribute(Attribute::Bold),
            Cell::new(""),
            Cell::new(""),
            Cell::new(""),
            Cell::new(""),
            right(document.exact_total),
            total.set_alignment(CellAlignment::Right).add_attribute(Attribute::Bold),
        ]);
        println!("{table}");
    }
    Ok(())
}

fn print_tasks(report: &CostPerTask) {
    println!("\nCost per task, all customers, last {REPORT_DAYS} days (what customers pay)");
    let mut table =
        new_table(&["Task type", "Outcome", "Tasks", "Total", "Mean", "p50", "p90", "p99", "Max", ""]);
    for group in &report.groups {
        let charge = &group.charge;
        table.add_row([
            Cell::new(group.task_type.as_deref().unwrap_or("–")),
            Cell::new(group.outcome.as_deref().unwrap_or("open")),
            right(group.tasks),
            right(short(charge.total)),
            right(short(charge.mean)),
            right(short(charge.p50)),
            right(short(charge.p90)),
            right(short(charge.p99)),
            right(short(charge.max)),
            Cell::new(group.currency),
        ]);
    }
    println!("{table}");
}

/// Six places are enough to look at; the API gives all.
fn short(amount: crate::domain::money::Amount) -> String {
    const PLACES: usize = 6;
    let text = amount.to_string();
    match text.split_once('.') {
        Some((whole, fraction)) if fraction.len() > PLACES => format!("{whole}.{}…", &fraction[..PLACES]),
        _ => text,
    }
}

fn print_addresses(app: &App, env: &DevEnv) {
    let url = env.get("WAYBILL_URL");
    println!("\nAPI          {url}/v1        reference {url}/docs");
    println!("Metrics      http://{}/metrics", reached_at(app.metrics_addr));
    println!("NATS         {}", env.get("WAYBILL_NATS_URL"));
    println!("PostgreSQL   {}", env.get("WAYBILL_DATABASE_URL"));
    for (label, variable) in [
        ("Admin key", "WAYBILL_ADMIN_KEY"),
        ("Finance key", "WAYBILL_FINANCE_KEY"),
        ("Gateway key", "WAYBILL_GATEWAY_KEY"),
        ("Customer key", "WAYBILL_CUSTOMER_KEY"),
    ] {
        if !env.get(variable).is_empty() {
            println!("{label:<12} {}", env.get(variable));
        }
    }
    println!("All of these are in {}. Try:", env.path.display());
    println!("  set -a; . {}; set +a", env.path.display());
    println!(
        "  curl -H \"Authorization: Bearer $WAYBILL_FINANCE_KEY\" \"$WAYBILL_URL/v1/invoices/preview?customer={}\"",
        CUSTOMERS[0]
    );
    println!("  {} verify", std::env::args_os().next().unwrap_or_default().display());
    println!(
        "Gateway {GATEWAY} publishes to subject {}.{GATEWAY}. Ctrl-C stops everything.",
        app.subject_prefix
    );
}

fn new_table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(header.iter().map(|title| Cell::new(title).add_attribute(Attribute::Bold)));
    table
}

fn right(value: impl Display) -> Cell {
    Cell::new(value).set_alignment(CellAlignment::Right)
}

/// One spinner with what is being done, where there is a terminal; plain lines elsewhere.
#[derive(Default)]
struct Steps {
    bar: std::cell::RefCell<Option<ProgressBar>>,
}

impl Steps {
    fn begin(&self, what: &'static str) {
        self.done();
        let bar = ProgressBar::new_spinner().with_message(what);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(std::time::Duration::from_millis(100));
        if bar.is_hidden() {
            println!("… {what}");
        }
        *self.bar.borrow_mut() = Some(bar);
    }

    fn done(&self) {
        if let Some(bar) = self.bar.borrow_mut().take() {
            bar.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::reached_at;

    #[test]
    fn an_address_that_stands_for_all_is_shown_as_one_that_can_be_reached() {
        for (listens, reached) in [
            ("0.0.0.0:8080", "127.0.0.1:8080"),
            ("[::]:8080", "[::1]:8080"),
            ("127.0.0.2:8080", "127.0.0.2:8080"),
        ] {
            assert_eq!(reached_at(listens.parse().unwrap()).to_string(), reached);
        }
    }
}
