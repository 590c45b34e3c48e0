//! `waybill serve` and `waybill dev`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::{ConfigError, DatabaseArgs, NatsArgs, nats_servers, scheme};

/// What must be on stable storage before it counts as stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Durability {
    /// Everything: a power failure takes nothing that was confirmed.
    #[default]
    Always,
    /// Whatever the server is set to: for tests, or where the loss is accepted.
    Any,
}

/// What is demanded of the servers before usage is taken.
#[derive(Debug, Clone, Default, Args)]
pub struct DemandArgs {
    /// Monitoring address of the NATS server, as http://host:port, several with commas; the only place that tells its `sync_interval`
    #[arg(long, env = "WAYBILL_NATS_MONITOR_URL", hide_env_values = true)]
    pub nats_monitor_url: Option<String>,
    /// What NATS must force to disk before it confirms a message: always, or any for a server whose power failure may lose events
    #[arg(long, env = "WAYBILL_NATS_DURABILITY", value_enum, default_value = "always")]
    pub nats_durability: Durability,
    /// The same for PostgreSQL and its commits (`fsync`, `full_page_writes`, `synchronous_commit`): always, or any
    #[arg(long, env = "WAYBILL_POSTGRES_DURABILITY", value_enum, default_value = "always")]
    pub postgres_durability: Durability,
}

impl DemandArgs {
    /// The monitoring addresses, one by one.
    pub fn nats_monitor_urls(&self) -> impl Iterator<Item = &str> {
        let urls = self.nats_monitor_url.iter().flat_map(|urls| urls.split(','));
        urls.map(str::trim).filter(|url| !url.is_empty())
    }
}

/// What `waybill serve` runs, and where it listens.
#[derive(Debug, Clone, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own on the command line")]
pub struct ServeArgs {
    /// The database.
    #[command(flatten)]
    pub database: DatabaseArgs,
    /// The stream.
    #[command(flatten)]
    pub nats: NatsArgs,
    /// What is demanded of both.
    #[command(flatten)]
    pub demands: DemandArgs,
    /// Where it listens.
    #[command(flatten)]
    pub listen: ListenArgs,
    /// Serve the REST API (default: everything, when no role is named)
    #[arg(long)]
    pub api: bool,
    /// Record usage events from the stream
    #[arg(long)]
    pub consumer: bool,
    /// Post recorded usage into sums, try rejections again
    #[arg(long)]
    pub jobs: bool,
    /// Bring the schema up to date at start
    #[arg(long, env = "WAYBILL_MIGRATE", default_value_t = false)]
    pub migrate: bool,
}

/// Where the program listens.
#[derive(Debug, Clone, Copy, Args)]
pub struct ListenArgs {
    /// Address of the REST API
    #[arg(long, env = "WAYBILL_HTTP_ADDR", default_value = "127.0.0.1:8080")]
    pub http_addr: SocketAddr,
    /// Address of the Prometheus metrics and the probes; port 0 takes a free one
    #[arg(long, env = "WAYBILL_METRICS_ADDR", default_value = "127.0.0.1:9464")]
    pub metrics_addr: SocketAddr,
}

/// What `waybill dev` starts.
#[derive(Debug, Clone, Args)]
pub struct DevArgs {
    /// Folder for data, logs and keys of the private servers
    #[arg(long, env = "WAYBILL_HOME", default_value = ".waybill")]
    pub home: PathBuf,
    /// Load the demo: 1 loads it into an empty ledger, 0 starts empty
    #[arg(long, env = "WAYBILL_DEMO", default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=1))]
    pub demo: u8,
    /// An existing PostgreSQL database to use instead of a private server
    #[arg(long, env = "WAYBILL_DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<String>,
    /// An existing NATS server to use instead of a private one
    #[arg(long, env = "WAYBILL_NATS_URL", hide_env_values = true)]
    pub nats_url: Option<String>,
    /// Monitoring address of that server, as http://host:port
    #[arg(long, env = "WAYBILL_NATS_MONITOR_URL", hide_env_values = true)]
    pub nats_monitor_url: Option<String>,
    /// Address of the REST API
    #[arg(long, env = "WAYBILL_HTTP_ADDR", default_value = "127.0.0.1:8080")]
    pub http_addr: SocketAddr,
    /// Address of the Prometheus metrics and the probes; port 0 takes a free one
    #[arg(long, env = "WAYBILL_METRICS_ADDR", default_value = "127.0.0.1:0")]
    pub metrics_addr: SocketAddr,
}

/// The roles of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles {
    /// The REST API.
    pub api: bool,
    /// Recording.
    pub consumer: bool,
    /// Posting and replay.
    pub jobs: bool,
}

impl ServeArgs {
    /// The roles: the ones named, or all where none is.
    pub const fn roles(&self) -> Roles {
        if self.api || self.consumer || self.jobs {
            Roles { api: self.api, consumer: self.consumer, jobs: self.jobs }
        } else {
            Roles { api: true, consumer: true, jobs: true }
        }
    }

    /// Refuses a configuration that contradicts itself.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn check(&self) -> Result<(), ConfigError> {
        let ListenArgs { http_addr, metrics_addr } = self.listen;
        if http_addr == metrics_addr && http_addr.port() != 0 {
            return Err(ConfigError::SameAddress(http_addr));
        }
        scheme(
            "WAYBILL_DATABASE_URL",
            &self.database.database_url,
            &["postgres", "postgresql"],
            "postgres://",
        )?;
        nats_servers("WAYBILL_NATS_URL", &self.nats.nats_url)?;
        for url in self.demands.nats_monitor_urls() {
            scheme("WAYBILL_NATS_MONITOR_URL", url, &["http", "https"], "http:// or https://")?;
        }
        Ok(())
    }
}
