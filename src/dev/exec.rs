//! `waybill dev exec`: runs a command with fresh servers, which end with it.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::num::NonZero;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, ExitStatus};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use sqlx::Postgres;
use sqlx::migrate::MigrateDatabase;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use super::DevError;
use super::servers::{Keep, Options, Servers};
use crate::store::{self, StoreError};

/// The migrated, unused database that each test copies.
const TEMPLATE: &str = "waybill_template";
/// Beginnings of our variables that a command is given: what tests and benchmarks are told by. All others, such as those of a
/// `dev.env` that the shell has read, would lead the programs that it starts to other servers than these.
const PASSED_ON: [&str; 6] =
    ["WAYBILL_BENCH", "WAYBILL_FAULTS", "WAYBILL_LOG", "WAYBILL_SABOTAGE", "WAYBILL_SHARED", "WAYBILL_SOAK"];

/// How many tests run at a time where the command is not told: on a larger machine as many as it has processors would need
/// more connections than the servers give.
const TEST_THREADS: &str = "RUST_TEST_THREADS";
const TEST_THREADS_MAX: usize = 6;

/// Runs a command with `DATABASE_URL`, `WAYBILL_TEST_DATABASE_URL` (the template that tests copy), `WAYBILL_TEST_NATS_URL`
/// and `WAYBILL_TEST_NATS_MONITOR_URL` set, forwards signals to it, stops the servers whatever happens, and returns its
/// exit code. What the command starts of Waybill is told that these servers do not force anything to disk; of the other
/// `WAYBILL_*` variables it is given those of [`PASSED_ON`] only. Tests in it run at most six at a time where
/// `RUST_TEST_THREADS` does not say otherwise.
///
/// # Errors
/// [`DevError`] where the servers cannot be started or the command cannot be run.
pub async fn exec(program: OsString, arguments: Vec<OsString>) -> Result<ExitCode, DevError> {
    let mut signals = Signals::listen()?;
    let home = std::env::temp_dir().join(format!("waybill-test-{}", uuid::Uuid::new_v4().simple()));
    let options = Options { home, keep: Keep::Throwaway, database_url: None, nats_url: None };
    let servers = tokio::select! {
        servers = Servers::start(options) => servers?,
        signal = signals.next() => return Ok(died_of(signal)),
    };
    let ran = run(&servers, &mut signals, program, arguments).await;
    let stopped = servers.stop().await;
    let code = ran?;
    stopped?;
    Ok(code)
}

async fn run(
    servers: &Servers,
    signals: &mut Signals,
    program: OsString,
    arguments: Vec<OsString>,
) -> Result<ExitCode, DevError> {
    let server = servers.database_url().rsplit_once('/').map_or("", |(server, _)| server);
    let template = format!("{server}/{TEMPLATE}");
    Postgres::create_database(&template).await.map_err(StoreError::from)?;
    for url in [servers.database_url(), &template] {
        store::migrate(url).await?;
    }
    let mut command = Command::new(&program);
    command.args(arguments).kill_on_drop(true);
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(kept_back) {
            command.env_remove(name);
        }
    }
    command.env("DATABASE_URL", servers.database_url());
    command.env("WAYBILL_TEST_DATABASE_URL", template);
    command.env("WAYBILL_TEST_NATS_URL", servers.nats_url());
    if let Some(url) = servers.nats_monitor_url() {
        command.env("WAYBILL_TEST_NATS_MONITOR_URL", url);
    }
    if std::env::var_os(TEST_THREADS).is_none() {
        let processors = std::thread::available_parallelism().map_or(1, NonZero::get);
        command.env(TEST_THREADS, processors.min(TEST_THREADS_MAX).to_string());
    }
    command.env("WAYBILL_NATS_DURABILITY", "any").env("WAYBILL_POSTGRES_DURABILITY", "any");
    let terminal = std::io::stdin().is_terminal();
    if !terminal {
        // So that a signal reaches whatever the command has started, and reaches it once.
        command.process_group(0);
    }
    let program = program.to_string_lossy().into_owned();
    let failed =
        |error: std::io::Error| DevError::Failed { program: program.clone(), detail: error.to_string() };
    let mut child = command.spawn().map_err(failed)?;
    let group = child.id();
    let status = loop {
        let signal = tokio::select! {
            ended = child.wait() => break ended.map_err(failed)?,
            signal = signals.next() => signal,
        };
        forward(&child, signal, terminal);
    };
    if !terminal {
        end_group(group);
    }
    Ok(code(status))
}

/// Whether a variable of ours is not for the command.
fn kept_back(name: &str) -> bool {
    // What `cargo run` has told us about our package: a cargo in the command would run build scripts again.
    let of_cargo = name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    let of_ours = name.starts_with("WAYBILL_") && !PASSED_ON.iter().any(|kept| name.starts_with(kept));
    of_cargo || of_ours
}

/// Ends what a command has left running, which would outlive the servers it works with.
fn end_group(group: Option<u32>) {
    let group = group.and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
    if group.is_some_and(|group| killpg(group, Signal::SIGKILL).is_ok()) {
        tracing::info!("killed what the command left running");
    }
}

/// Passes a signal on. At a terminal, the terminal itself has told the command about Ctrl-C.
fn forward(child: &Child, signal: Signal, terminal: bool) {
    let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw) else { return };
    let told = match (terminal, signal) {
        (true, Signal::SIGINT) => Ok(()),
        (true, _) => kill(pid, signal),
        (false, _) => killpg(pid, signal),
    };
    if let Err(error) = told {
        tracing::debug!(%error, %signal, "the command has ended already");
    }
}

/// A command's exit code as a shell gives it.
fn code(status: ExitStatus) -> ExitCode {
    let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal));
    ExitCode::from(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1))
}

fn died_of(signal: Signal) -> ExitCode {
    code(ExitStatus::from_raw(signal as i32))
}

/// The signals that ask us to end.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn listen() -> Result<Self, DevError> {
        let listen = |kind| {
            let failed = |error: std::io::Error| DevError::Failed {
                program: "signal".to_owned(),
                detail: error.to_string(),
            };
            signal(kind).map_err(failed)
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::SIGINT,
            _ = self.terminate.recv() => Signal::SIGTERM,
            _ = self.hangup.recv() => Signal::SIGHUP,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::kept_back;

    #[test]
    fn a_command_is_not_led_to_other_servers() {
        for name in ["WAYBILL_DATABASE_URL", "WAYBILL_NATS_MONITOR_URL", "WAYBILL_STREAM", "CARGO_PKG_NAME"] {
            assert!(kept_back(name), "{name}");
        }
        for name in ["WAYBILL_FAULTS", "WAYBILL_BENCH_ROWS", "WAYBILL_LOG", "WAYBILL", "PATH", "CARGO_HOME"] {
            assert!(!kept_back(name), "{name}");
        }
    }
}
