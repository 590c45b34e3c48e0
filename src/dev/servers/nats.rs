//! The private NATS server with JetStream.

use std::path::{Path, PathBuf};

use async_nats::ConnectOptions;
use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::Child;

use super::process::{self, Account, LOOPBACK};
use super::{Keep, State, binaries};
use crate::dev::DevError;
use crate::ingest::connect;

/// How it is called in messages.
pub(super) const NAME: &str = "NATS";
/// The configuration, shared with `docker-compose.yml`.
const CONFIGURATION: &str = include_str!("nats.conf");
/// What a private server may store: more than the stream's default of 15 GiB.
const STORE_MAX: &str = "20GiB";

/// A running server.
#[derive(Debug)]
pub(super) struct Nats {
    child: Child,
    log: PathBuf,
}

impl Nats {
    /// Starts the server on the store inside `home`.
    pub(super) async fn start(home: &Path, state: &mut State, keep: Keep) -> Result<Self, DevError> {
        process::stop_left_behind(NAME, &pid_file(home), home, Signal::SIGTERM).await?;
        let program = binaries::nats().await?;
        process::persist(async || Self::launch(home, state, &program, keep).await).await
    }

    async fn launch(home: &Path, state: &mut State, program: &Path, keep: Keep) -> Result<Self, DevError> {
        [state.nats_port, state.nats_monitor_port] =
            process::free_ports([state.nats_port, state.nats_monitor_port])?;
        state.save(home)?;
        let configuration = home.join("nats.conf");
        std::fs::write(&configuration, CONFIGURATION)
            .map_err(DevError::io("cannot write", &configuration))?;

        let mut command = Account::Own.command(program);
        command.arg("-c").arg(&configuration).arg("-P").arg(pid_file(home));
        command.env("WAYBILL_NATS_HOST", quoted(LOOPBACK));
        command.env("WAYBILL_NATS_PORT", state.nats_port.to_string());
        command.env("WAYBILL_NATS_MONITOR", quoted(&format!("{LOOPBACK}:{}", state.nats_monitor_port)));
        command.env("WAYBILL_NATS_PASSWORD", quoted(&state.nats_password));
        command.env("WAYBILL_NATS_GATEWAY_PASSWORD", quoted(&state.nats_gateway_password));
        command.env("WAYBILL_NATS_ADMIN_PASSWORD", quoted(&state.nats_admin_password));
        command.env("WAYBILL_NATS_STORE_MAX", STORE_MAX);
        command.env("WAYBILL_NATS_STORE", quoted(&home.join("nats").to_string_lossy()));
        command.env("WAYBILL_NATS_SYNC", quoted(sync_interval(keep)));
        let log = home.join("logs").join("nats.log");
        let mut child = process::spawn(command, &log)?;
        let (address, url) = ((LOOPBACK, state.nats_port), state.nats_url());
        process::ready(NAME, &mut child, &log, async || answers(address, &url).await).await?;
        Ok(Self { child, log })
    }

    /// Ends it after it has written everything to disk.
    pub(super) async fn stop(self) -> Result<(), DevError> {
        process::stop(self.child, NAME, Signal::SIGTERM).await
    }

    /// Resolves when it ends by itself.
    pub(super) async fn exited(&mut self) -> DevError {
        self.child.wait().await.ok();
        process::exited(NAME, &self.log)
    }
}

fn pid_file(home: &Path) -> PathBuf {
    home.join("nats.pid")
}

/// Whether the server greets, lets us in and has its store open.
async fn answers(address: (&str, u16), url: &str) -> Result<(), String> {
    let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
    let mut greeting = String::new();
    let read = BufReader::new(stream).read_line(&mut greeting).await;
    read.map_err(|error| error.to_string())?;
    if !greeting.starts_with("INFO ") {
        return Err("it does not greet like a NATS server".to_owned());
    }
    let client = connect(url, ConnectOptions::new()).await.map_err(|error| error.to_string())?;
    let account = async_nats::jetstream::new(client).query_account().await;
    account.map(drop).map_err(|error| error.to_string())
}

/// How often the store is forced to disk; an acknowledged event must survive a power failure where data is kept.
const fn sync_interval(keep: Keep) -> &'static str {
    match keep {
        Keep::Durable | Keep::Measured { synced: true } => "always",
        Keep::Throwaway | Keep::Measured { synced: false } => "2m",
    }
}

/// A text as the configuration language writes it.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\""))
}
