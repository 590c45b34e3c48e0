//! A NATS server of a test's own, on the configuration that is shipped: it can be stopped, killed and started again.

use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use uuid::Uuid;
use waybill::dev::servers::{Keep, Options, Servers};

use crate::harness::{TestBed, wait_until};

/// The server; ended and removed when dropped.
pub struct PrivateNats {
    home: PathBuf,
    servers: Option<Servers>,
}

impl PrivateNats {
    pub async fn start() -> Self {
        let home = std::env::temp_dir().join(format!("waybill-nats-{}", Uuid::new_v4().simple()));
        let mut nats = Self { home, servers: None };
        nats.start_again().await;
        nats
    }

    /// Starts it on the same address and with the same data.
    pub async fn start_again(&mut self) {
        let options = Options {
            home: self.home.clone(),
            keep: Keep::Durable,
            // No PostgreSQL is needed.
            database_url: Some(String::new()),
            nats_url: None,
        };
        self.servers = Some(Servers::start(options).await.unwrap());
    }

    /// As Waybill itself reaches it.
    pub fn url(&self) -> String {
        self.servers.as_ref().unwrap().nats_url().to_owned()
    }

    /// As the gateway `gw-eu-1` reaches it, with that gateway's rights.
    pub fn gateway_url(&self) -> String {
        self.servers.as_ref().unwrap().nats_gateway_url().unwrap()
    }

    /// Ends it in order.
    pub async fn stop(&mut self) {
        self.servers.take().unwrap().stop().await.unwrap();
    }

    /// Ends it with SIGKILL.
    pub async fn kill(&mut self) {
        kill(self.pid().unwrap(), Signal::SIGKILL).unwrap();
        self.stop().await;
    }

    fn pid(&self) -> Option<Pid> {
        let pid = std::fs::read_to_string(self.home.join("nats.pid")).ok()?;
        Some(Pid::from_raw(pid.trim().parse().ok()?))
    }

    /// A test's database, and this server with the names that its gateway's rights are for.
    pub async fn bed(&self) -> TestBed {
        let mut bed = TestBed::new().await;
        bed.nats_url = self.url();
        bed.nats = wait_until("NATS answers", async || {
            waybill::ingest::connect(&bed.nats_url, async_nats::ConnectOptions::new()).await.ok()
        })
        .await;
        (bed.stream, bed.subject_prefix) = ("USAGE".to_owned(), "usage.v1".to_owned());
        bed
    }
}

impl Drop for PrivateNats {
    fn drop(&mut self) {
        // The servers' guard would look for the process in the folder, which goes right away.
        if let Some((_, pid)) = self.servers.take().zip(self.pid()) {
            kill(pid, Signal::SIGKILL).ok();
        }
        std::fs::remove_dir_all(&self.home).ok();
    }
}
