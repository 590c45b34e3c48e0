//! The `waybill` program: parses the command line and dispatches; nothing else.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use waybill::dev;

/// Meters, prices and bills AI tokens.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Private servers for development and tests.
    #[command(subcommand)]
    Dev(Dev),
}

#[derive(Debug, Subcommand)]
enum Dev {
    /// Runs a command with fresh servers; their addresses are in `DATABASE_URL`, `WAYBILL_TEST_DATABASE_URL` and
    /// `WAYBILL_TEST_NATS_URL`.
    Exec {
        /// The command and its arguments.
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
}

#[tokio::main]
async fn main() -> anyhow::Result<ExitCode> {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    match Cli::parse().command {
        Command::Dev(Dev::Exec { command }) => {
            let mut words = command.into_iter();
            let program = words.next().unwrap_or_default();
            Ok(dev::exec::exec(program, words.collect()).await?)
        }
    }
}
