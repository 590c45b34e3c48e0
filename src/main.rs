//! The `waybill` program: parses the command line and dispatches; nothing else.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use waybill::app::{self, commands};
use waybill::config::{
    CloseArgs, DatabaseArgs, DevArgs, DropArgs, ForwardArgs, KeyArgs, ListInvoicesArgs, NatsArgs,
    PriceCheckArgs, PriceFileArgs, PriceImportArgs, PriceListArgs, RerateArgs, RevokeArgs, ServeArgs,
    SimulateArgs, VerifyArgs,
};
use waybill::{dev, http, telemetry};

/// Gives memory back some ten seconds after its last use; the C library keeps what a backlog took (`docs/performance.md`).
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Meters, prices and bills AI tokens: usage events from NATS JetStream, exact invoices and cost per task.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// What to log, in the syntax of `RUST_LOG`: info, or waybill=debug,info
    #[arg(long, env = "WAYBILL_LOG", default_value = "info,async_nats=warn", global = true)]
    log: String,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the service: the API, the consumer and the jobs, or some of them
    Serve(ServeArgs),
    /// Run everything on private servers, with demo data; `dev exec` runs a command with fresh servers
    #[command(args_conflicts_with_subcommands = true)]
    Dev {
        #[command(flatten)]
        args: DevArgs,
        #[command(subcommand)]
        command: Option<Dev>,
    },
    /// Bring the schema up to date
    Migrate(DatabaseArgs),
    /// Print the OpenAPI document of the API
    Openapi,
    /// Prove on the live database that nothing is lost, nothing is counted twice, and all sums agree to the last digit; the
    /// exit code is 0 where they do, 1 where something differs, 2 where that could not be compared
    Verify(VerifyArgs),
    /// Show what recorded usage comes to at the prices that stand now, and with `--apply` adjust it
    Rerate(RerateArgs),
    /// Read sequences again from the stream that were acknowledged but are not in the ledger
    Repair {
        #[command(flatten)]
        database: DatabaseArgs,
        #[command(flatten)]
        nats: NatsArgs,
    },
    /// Run beside a gateway: take its events, keep them on disk, and publish them until the ledger has them
    Forward(ForwardArgs),
    /// Publish seeded, real-looking traffic to the stream
    Simulate(SimulateArgs),
    /// Close billing periods, list invoices
    #[command(subcommand)]
    Invoices(Invoices),
    /// List the months of the journal, archive and drop old ones
    #[command(subcommand)]
    Partitions(Partitions),
    /// Make and revoke API keys
    #[command(subcommand)]
    Keys(Keys),
    /// Import, list and compare prices, and quote calls by them
    #[command(subcommand)]
    Prices(Prices),
}

#[derive(Debug, Subcommand)]
enum Prices {
    /// Show what a price list would change in a book; `--apply` does it
    Import(PriceImportArgs),
    /// List prices of the ledger: token rates for 1,000,000 units, fees for one
    List(PriceListArgs),
    /// Compare two lists of prices; the exit code is 0 where they agree, 1 where they differ, 2 where that cannot be said
    Check(PriceCheckArgs),
    /// What calls cost by a price list: JSON lines of `at` and `data` from standard input; needs no database
    Quote(PriceFileArgs),
}

#[derive(Debug, Subcommand)]
enum Dev {
    /// Run a command with fresh servers; their addresses are in `DATABASE_URL`, `WAYBILL_TEST_DATABASE_URL`,
    /// `WAYBILL_TEST_NATS_URL` and `WAYBILL_TEST_NATS_MONITOR_URL`; addresses and settings of ours are not passed on to it
    Exec {
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
}

#[derive(Debug, Subcommand)]
enum Invoices {
    /// Close every period whose end and grace time have passed, and finalize its invoices; the exit code is 1 where one could
    /// not be closed, 2 where none could be looked at
    Close(CloseArgs),
    /// List invoices, newest first
    List(ListInvoicesArgs),
}

#[derive(Debug, Subcommand)]
enum Partitions {
    /// List the months of the journal with their sizes, and what keeps each from being dropped
    List(DatabaseArgs),
    /// Show which months would be dropped; `--apply` keeps their sums and drops their raw events, for good; the exit code is
    /// 1 where one may not be dropped, 2 where that could not be looked at
    Drop(DropArgs),
}

#[derive(Debug, Subcommand)]
enum Keys {
    /// Make a key and print its token, once
    Create(KeyArgs),
    /// Revoke a key by the twelve characters after `wb_`
    Revoke(RevokeArgs),
}

#[tokio::main]
async fn main() -> ExitCode {
    let Cli { log, command } = Cli::parse();
    let ended = match telemetry::init_logs(&log) {
        Ok(()) => dispatch(command).await,
        Err(error) => Err(error.into()),
    };
    ended.unwrap_or_else(|error| {
        eprintln!("{}", app::sentence(&error));
        ExitCode::FAILURE
    })
}

async fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Serve(args) => return app::start(&args).await?.until_stopped().await,
        Command::Dev { args, command: None } => return app::dev::run(&args).await,
        Command::Dev { command: Some(Dev::Exec { command }), .. } => {
            let mut words = command.into_iter();
            let program = words.next().unwrap_or_default();
            return Ok(dev::exec::exec(program, words.collect()).await?);
        }
        Command::Migrate(args) => commands::migrate(&args).await?,
        Command::Openapi => println!("{}", http::openapi::openapi_json()?),
        Command::Verify(args) => return Ok(commands::verify(&args).await),
        Command::Rerate(args) => commands::rerate(&args).await?,
        Command::Repair { database, nats } => commands::repair(&database, &nats).await?,
        Command::Forward(args) => app::forward::run(&args).await?,
        Command::Simulate(args) => commands::simulate(&args).await?,
        Command::Invoices(Invoices::Close(args)) => return Ok(commands::close_invoices(&args).await),
        Command::Invoices(Invoices::List(args)) => commands::list_invoices(&args).await?,
        Command::Partitions(Partitions::List(args)) => app::partitions::list(&args).await?,
        Command::Partitions(Partitions::Drop(args)) => return Ok(app::partitions::drop_before(&args).await),
        Command::Keys(Keys::Create(args)) => commands::create_key(&args).await?,
        Command::Prices(Prices::Import(args)) => app::prices::import(&args).await?,
        Command::Prices(Prices::List(args)) => app::price_lists::list(&args).await?,
        Command::Prices(Prices::Check(args)) => return Ok(app::price_lists::check(&args).await),
        Command::Prices(Prices::Quote(args)) => app::prices::quote(&args)?,
        Command::Keys(Keys::Revoke(args)) => commands::revoke_key(&args).await?,
    }
    Ok(ExitCode::SUCCESS)
}
