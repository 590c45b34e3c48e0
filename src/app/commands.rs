//! What the subcommands other than `serve` and `dev` do.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use chrono::TimeDelta;

use super::{answered, ledger, migrated};
use crate::clock::Clock;
use crate::config::{
    CloseArgs, DatabaseArgs, KeyArgs, ListInvoicesArgs, NatsArgs, RerateArgs, RevokeArgs, SimulateArgs,
    VerifyArgs,
};
use crate::dev::simulate::{Plan, simulate as run_plan};
use crate::ingest::refold::{self, Refolded};
use crate::ingest::repair::Repairer;
use crate::ingest::{self, Publisher, Recorder};
use crate::invoicing::rerate::{self, Rerated};
use crate::invoicing::{InvoicingError, close_due};
use crate::reports::verify::{self, Verification};
use crate::shutdown::Shutdown;
use crate::store::api_keys::{self, AskedKey};
use crate::store::completeness::Sequences;
use crate::store::invoices::{self, InvoiceFilter};
use crate::store::refold::Replaced;
use crate::store::verify::Difference;
use crate::store::{Database, Rights, Scope, audit, commit, customers};

/// Who acts, for the audit log.
const ACTOR: &str = "command line";
/// How often a terminal is told what a long command is at.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// Returns to the start of the line of a terminal and empties it.
const CLEAR_LINE: &str = "\r\x1b[K";

/// Connects to the ledger of a one-off command.
async fn database(args: &DatabaseArgs) -> anyhow::Result<Database> {
    ledger(&args.database_url, Rights::Service).await
}

/// Brings the schema up to date.
///
/// # Errors
/// Where a migration fails.
pub async fn migrate(args: &DatabaseArgs) -> anyhow::Result<()> {
    migrated(&args.database_url).await?;
    println!("The schema is up to date.");
    Ok(())
}

/// Makes an API key and prints its token, once.
///
/// # Errors
/// Where the role does not go with the gateway and customer that are named, or they do not exist.
pub async fn create_key(args: &KeyArgs) -> anyhow::Result<()> {
    let database = database(&args.database).await?;
    let mut tx = database.begin().await?;
    let asked = AskedKey {
        role: args.role,
        name: &args.name,
        gateway: args.gateway.as_deref(),
        customer: args.customer.as_deref(),
        expires_at: None,
    };
    let holder = asked.holder(&mut tx).await?;
    let key = api_keys::create(&mut tx, holder, asked.name, asked.expires_at).await?;
    audit::record(&mut tx, ACTOR, "api_key.create", &key.public_id, Some(serde_json::json!(asked))).await?;
    commit(tx).await?;
    println!("{}", key.token);
    Ok(())
}

/// Revokes an API key.
///
/// # Errors
/// Where there is none with this public id.
pub async fn revoke_key(args: &RevokeArgs) -> anyhow::Result<()> {
    let database = database(&args.database).await?;
    let mut tx = database.begin().await?;
    let known = api_keys::revoke(&mut tx, &args.public_id, Clock::System.now()).await?;
    ensure!(known, "there is no key `{}`; give the twelve characters after `wb_`", args.public_id);
    audit::record(&mut tx, ACTOR, "api_key.revoke", &args.public_id, None).await?;
    commit(tx).await?;
    println!("Key {} no longer works.", args.public_id);
    Ok(())
}

/// Proves the ledger, prints what differs, and says by its exit code whether anything does (1), or whether it could not be
/// compared (2).
pub async fn verify(args: &VerifyArgs) -> ExitCode {
    answered(holds(args).await)
}

/// `true` where nothing differs.
async fn holds(args: &VerifyArgs) -> anyhow::Result<bool> {
    // Sums are put right by the owner alone: the service adds to tasks and never deletes one.
    let rights = if args.apply { Rights::Owner } else { Rights::Auditor };
    let database = ledger(&args.database.database_url, rights).await?;
    if args.apply && !put_right(&database).await? {
        return Ok(false);
    }
    let proof = if args.rebuild {
        rebuild(&database).await?
    } else {
        verify::verify(&database, Clock::System.now()).await?
    };
    let Verification { extent, as_of, checks, findings } = proof;
    for check in &checks {
        let count = findings.iter().filter(|finding| finding.check == *check).count();
        let verdict = if count == 0 { "holds".to_owned() } else { format!("{count} DIFFER") };
        println!("{:<16} {verdict}", check.as_str());
    }
    println!(
        "Compared {} batches ({} posted), {} journal rows, {} rollups, {} tasks and {} invoices, as of {as_of}.",
        extent.batches,
        extent.posted_batches,
        extent.journal_rows,
        extent.rollups,
        extent.tasks,
        extent.invoices
    );
    for finding in &findings {
        println!(
            "{}: {}: expected {}, is {}",
            finding.check.as_str(),
            finding.subject,
            finding.expected,
            finding.actual
        );
    }
    Ok(findings.is_empty())
}

/// Replaces sums that differ from the journal; `false` where that was refused.
async fn put_right(database: &Database) -> anyhow::Result<bool> {
    match refold::apply(database, ACTOR).await? {
        Refolded::Replaced(replaced) if replaced.nothing() => println!("All sums were right."),
        Refolded::Replaced(replaced) => print_replaced(replaced),
        Refolded::Partly(replaced, rows) => {
            print_replaced(replaced);
            println!(
                "Left, with everything of these customers: closed periods would change, and what was billed is final."
            );
            print_left(&rows);
            return Ok(false);
        }
        Refolded::Refused(rows) => {
            println!("Nothing was replaced: closed periods would change, and what was billed is final.");
            print_left(&rows);
            return Ok(false);
        }
        Refolded::Vain(rows) => {
            println!(
                "Nothing was replaced: these sums would differ from the journal afterwards too, which is a fault of Waybill; \
                 report it with these lines."
            );
            print_left(&rows);
            return Ok(false);
        }
    }
    Ok(true)
}

fn print_replaced(replaced: Replaced) {
    println!(
        "Replaced {} rollups, {} tasks and {} reasons of adjustments.",
        replaced.rollups, replaced.tasks, replaced.reasons
    );
}

fn print_left(rows: &[Difference]) {
    for row in rows {
        println!("{}: expected {}, is {}", row.subject, row.expected, row.actual);
    }
}

/// Proves with the journal folded again, and shows on a terminal what it is at and for how long.
async fn rebuild(database: &Database) -> anyhow::Result<Verification> {
    let at = std::cell::Cell::new(None);
    let work = verify::rebuild(database, Clock::System.now(), |check| at.set(Some((check, Instant::now()))));
    tokio::pin!(work);
    let terminal = std::io::stderr().is_terminal();
    let mut tick = tokio::time::interval(PROGRESS_EVERY);
    loop {
        tokio::select! {
            proof = &mut work => {
                if terminal {
                    eprint!("{CLEAR_LINE}");
                }
                return Ok(proof?);
            }
            _ = tick.tick(), if terminal => {
                if let Some((check, since)) = at.get() {
                    eprint!("{CLEAR_LINE}{}: {} s", check.as_str(), since.elapsed().as_secs());
                } else {
                    eprint!("{CLEAR_LINE}comparing ...");
                }
            }
        }
    }
}

/// Shows what recorded usage comes to at the prices that stand now, or adjusts it.
///
/// # Errors
/// Where the customer does not exist, or the database does not answer; an apply that fails in between is continued by
/// the same command.
pub async fn rerate(args: &RerateArgs) -> anyhow::Result<()> {
    let database = database(&args.database).await?;
    let mut tx = database.read(Scope::Everything).await?;
    let customer = match args.customer.as_deref() {
        None => None,
        Some(external_id) => {
            let known = customers::by_external_id(&mut tx, external_id).await?;
            Some(known.with_context(|| format!("there is no customer `{external_id}`"))?.id)
        }
    };
    let request = rerate::Request {
        from: args.from,
        to: args.to,
        customer,
        provider: args.provider.clone(),
        model: args.model.clone(),
        reason: args.reason.clone(),
    };
    if !args.apply {
        print_rerated(&rerate::preview(&mut tx, &request).await?)?;
        println!("Nothing was changed; with --apply this is adjusted.");
        return Ok(());
    }
    drop(tx);
    let rerated = rerate::apply(&database, &Clock::System, &request, ACTOR).await?;
    // It is committed, whatever becomes of the rest.
    let printed = print_rerated(&rerated);
    println!("Adjusted in {} batches.", rerated.batches.len());
    if let Err(error) = ingest::posting::post_all(&database).await {
        eprintln!("Not all of it is in the sums yet, the service adds it once it can: {error}");
    }
    printed
}

fn print_rerated(rerated: &Rerated) -> anyhow::Result<()> {
    const TOO_LARGE: &str = "the difference is too large to show";
    for (group, figures) in &rerated.groups {
        println!(
            "{}, period {} to {}, {} {}: {} events differ, {} have no price",
            group.customer,
            group.period.start,
            group.period.end,
            group.provider,
            group.model,
            figures.events,
            figures.unpriced
        );
        for (side, change, currency) in
            [("cost", figures.cost, group.cost_currency), ("charge", figures.charge, group.currency)]
        {
            let difference = change.difference().context(TOO_LARGE)?;
            let (before, after) = (change.before.to_string(), change.after.to_string());
            println!("  {side:<6} {before:>24} -> {after:>24}, difference {difference:>24} {currency}");
        }
    }
    for part in &rerated.unpriced {
        println!(
            "no price, left as it is: {} {} part {} at {}: {}",
            part.event.source, part.event.id, part.part, part.occurred_at, part.reason
        );
    }
    println!("{} usage parts looked at.", rerated.examined);
    Ok(())
}

/// Reads acknowledged sequences again that the ledger does not account for, and posts them.
///
/// # Errors
/// Where stream or database do not answer.
pub async fn repair(database_args: &DatabaseArgs, nats: &NatsArgs) -> anyhow::Result<()> {
    let database = database(database_args).await?;
    let context = ingest::jetstream(&nats.nats_url, "waybill-repair").await?;
    let stream = ingest::stream::existing(&context, &super::names(nats), super::limits(nats)).await?;
    let recorder =
        Recorder::new(database.clone(), Clock::System, &stream.names.prefix, Shutdown::new()).await?;
    let limits = super::limits(nats);
    let mut repairer = Repairer::default();
    let mut read = 0;
    let left = loop {
        let round = repairer.round(&stream, limits, &recorder).await?;
        read += round.repaired;
        if round.left == 0 || round.repaired == 0 {
            break round.left;
        }
        println!("{read} sequences read again, {} left.", round.left);
    };
    let gone: i64 = repairer.gone().iter().map(|gone| gone.count()).sum();
    println!(
        "{} sequences were unaccounted for: {read} read again and recorded, {gone} no longer in the stream.",
        read + gone + left
    );
    for Sequences { from, to } in repairer.gone() {
        println!("no longer in the stream: {from} to {}; only the gateways' journals have them", to - 1);
    }
    ingest::posting::post_all(&database).await?;
    ensure!(left == 0, "{left} sequences are left; run it again");
    Ok(())
}

/// Publishes seeded traffic.
///
/// # Errors
/// Where the stream does not take it.
pub async fn simulate(args: &SimulateArgs) -> anyhow::Result<()> {
    let context = ingest::jetstream(&args.nats.nats_url, "waybill-simulate").await?;
    let names = super::names(&args.nats);
    ingest::stream::open(&context, &names, super::limits(&args.nats)).await?;
    let now = Clock::System.now();
    let plan = Plan {
        events: args.events,
        seed: args.seed,
        from: now - TimeDelta::days(args.days.into()),
        to: now,
        per_message: args.per_message.into(),
        zstd: args.zstd,
        rate: args.rate,
    };
    let sent = run_plan(&Publisher::new(context, &names.prefix), &plan).await?;
    println!("{} events in {} messages within {:.1?}.", sent.events, sent.messages, sent.elapsed);
    Ok(())
}

/// Closes every period whose end and grace time have passed, and finalizes its invoices; says by its exit code whether one
/// could not be closed (1), or whether none could be looked at (2).
pub async fn close_invoices(args: &CloseArgs) -> ExitCode {
    answered(closed(args).await)
}

/// `true` where every period that was due is closed.
async fn closed(args: &CloseArgs) -> anyhow::Result<bool> {
    let database = database(&args.database).await?;
    let grace = TimeDelta::hours(args.grace_hours.into());
    let terminal = std::io::stderr().is_terminal();
    let unposted = |batches: i64| match batches {
        _ if !terminal => {}
        0 => eprint!("{CLEAR_LINE}"),
        _ => eprint!("{CLEAR_LINE}waiting for {batches} recorded batches to be posted ..."),
    };
    let turns = match close_due(&database, &Clock::System, grace, ACTOR, unposted).await {
        Err(error @ InvoicingError::NotPosted { .. }) => {
            unposted(0);
            return Err(error)
                .context("posting does not go on: see that `waybill serve` runs, and run it again");
        }
        turns => turns?,
    };
    let mut failed = 0;
    for turn in &turns {
        let (start, end) = (turn.period.start, turn.period.end);
        match &turn.outcome {
            Ok(closed) => println!(
                "customer {}: {start} to {end} closed, {} invoices",
                turn.customer,
                closed.invoices.len()
            ),
            Err(error) => {
                failed += 1;
                println!("customer {}: {start} to {end} NOT closed: {error}", turn.customer);
            }
        }
    }
    println!("{} periods were due.", turns.len());
    if failed > 0 {
        eprintln!("{failed} periods could not be closed; run it again when their reason is gone");
    }
    Ok(failed == 0)
}

/// Prints the newest invoices.
///
/// # Errors
/// Where the database does not answer.
pub async fn list_invoices(args: &ListInvoicesArgs) -> anyhow::Result<()> {
    let database = database(&args.database).await?;
    let mut tx = database.read(Scope::Everything).await?;
    let filter = InvoiceFilter { limit: args.limit.into(), ..InvoiceFilter::default() };
    for stored in invoices::list(&mut tx, &filter).await? {
        let invoice = &stored.invoice;
        let zone: chrono_tz::Tz = invoice.time_zone.parse().context("the customer's zone")?;
        println!(
            "{}  {:<24} {} to {}  {:>14} {}  {}",
            invoice.display_number(),
            stored.customer_external_id,
            invoice.period.start.with_timezone(&zone).date_naive(),
            invoice.period.end.with_timezone(&zone).date_naive(),
            invoice.total,
            invoice.total.currency(),
            stored.status
        );
    }
    Ok(())
}
