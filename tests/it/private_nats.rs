//! A NATS server of a test's own, on the configuration that is shipped: it can be stopped, killed and started again.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use uuid::Uuid;
use waybill::dev::servers::{Keep, Options, Servers};

use crate::harness::{TestBed, wait_until, wait_until_within};

/// The gateway that the configuration has an account of.
pub const SHIPPED_GATEWAY: &str = "gw-eu-1";
/// How long another test's server may have taken the address of one that is down.
const ADDRESS_FREE_WITHIN: Duration = Duration::from_mins(3);
/// The password of a gateway that is added, and what `nats server passwd` makes of it.
const ADDED_PASSWORD: &str = "another-gateways-own";
const ADDED_HASH: &str = "$2a$04$JqR3vXk0bWn8sLz5TfYc.uo3MzZ5fsiNvdTo3KPEhRioUpp78O.2a";

/// The server; ended and removed when dropped.
pub struct PrivateNats {
    home: PathBuf,
    /// Where it was reached first, and always is.
    url: Option<String>,
    servers: Option<Servers>,
}

impl PrivateNats {
    pub async fn start() -> Self {
        let home = std::env::temp_dir().join(format!("waybill-nats-{}", Uuid::new_v4().simple()));
        let mut nats = Self { home, url: None, servers: None };
        nats.start_again().await;
        nats
    }

    /// Starts it on the same address and with the same data.
    pub async fn start_again(&mut self) {
        let was = |servers: &Servers| self.url.as_ref().is_none_or(|url| url == servers.nats_url());
        let servers = start_where_they_were(self.options(), was).await;
        self.url = Some(servers.nats_url().to_owned());
        self.servers = Some(servers);
    }

    fn options(&self) -> Options {
        Options {
            home: self.home.clone(),
            keep: Keep::Durable,
            // No PostgreSQL is needed.
            database_url: Some(String::new()),
            nats_url: None,
        }
    }

    /// Where its store lies.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// As Waybill itself reaches it.
    pub fn url(&self) -> String {
        self.servers.as_ref().unwrap().nats_url().to_owned()
    }

    /// As the gateway `gw-eu-1` reaches it, with that gateway's rights.
    pub fn gateway_url(&self) -> String {
        self.servers.as_ref().unwrap().nats_gateway_url().unwrap()
    }

    /// As another gateway reaches it that was added with [`Self::add_gateway`].
    pub fn gateway_url_of(&self, name: &str) -> String {
        let url = self.gateway_url();
        let (_, address) = url.rsplit_once('@').unwrap();
        format!("nats://{name}:{ADDED_PASSWORD}@{address}")
    }

    /// As whoever looks after the server reaches it.
    pub fn admin_url(&self) -> String {
        let url = self.url();
        let (_, address) = url.rsplit_once('@').unwrap();
        format!("nats://admin:{}@{address}", self.state()["nats_admin_password"].as_str().unwrap())
    }

    /// Where it tells about itself.
    pub fn monitor(&self) -> SocketAddr {
        let port = u16::try_from(self.state()["nats_monitor_port"].as_u64().unwrap()).unwrap();
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn state(&self) -> serde_json::Value {
        let state = std::fs::read(state_file(&self.home)).unwrap();
        serde_json::from_slice(&state).unwrap()
    }

    /// Adds a gateway as the configuration says: a copy of the account's block with a password of its own, and SIGHUP twice.
    pub async fn add_gateway(&self, name: &str) {
        self.reconfigure(|text| {
            let block = account(&text, SHIPPED_GATEWAY).to_owned();
            let added = block.replace(SHIPPED_GATEWAY, name);
            let added = added.replace("$WAYBILL_NATS_GATEWAY_PASSWORD", &format!("\"{ADDED_HASH}\""));
            text.replace(&block, &format!("{block}{added}"))
        })
        .await;
        self.reconfigure(|text| text).await;
    }

    /// Takes a gateway's account away, and SIGHUP.
    pub async fn revoke_gateway(&self, name: &str) {
        self.reconfigure(|text| text.replace(account(&text, name), "")).await;
    }

    /// Changes the configuration and waits until the running server has read it.
    async fn reconfigure(&self, change: impl FnOnce(String) -> String) {
        let (path, log) = (self.home.join("nats.conf"), self.home.join("logs/nats.log"));
        let read = || std::fs::read_to_string(&log).unwrap().matches("Reloaded server configuration").count();
        let before = read();
        std::fs::write(&path, change(std::fs::read_to_string(&path).unwrap())).unwrap();
        kill(self.pid().unwrap(), Signal::SIGHUP).unwrap();
        wait_until("the configuration is read", async || (read() > before).then_some(())).await;
    }

    /// The addresses that it listens on, as the system says.
    #[cfg(target_os = "linux")]
    pub fn listening(&self) -> BTreeSet<String> {
        /// What the tables call a socket that listens.
        const LISTEN: &str = "0A";
        let pid = self.pid().unwrap();
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
        let sockets: BTreeSet<PathBuf> =
            open.filter_map(|link| std::fs::read_link(link.path()).ok()).collect();
        let tables =
            ["tcp", "tcp6"].map(|name| std::fs::read_to_string(format!("/proc/{pid}/net/{name}")).unwrap());
        let lines = tables.iter().flat_map(|table| table.lines().skip(1));
        let fields = lines.map(|line| line.split_whitespace().collect::<Vec<_>>());
        fields
            .filter(|field| {
                field[3] == LISTEN && sockets.contains(Path::new(&format!("socket:[{}]", field[9])))
            })
            .map(|field| {
                let (host, port) = field[1].split_once(':').unwrap();
                let port = u16::from_str_radix(port, 16).unwrap();
                let host = u32::from_str_radix(host, 16).map(|host| Ipv4Addr::from(host.to_le_bytes()));
                host.map_or_else(|_| field[1].to_owned(), |host| format!("{host}:{port}"))
            })
            .collect()
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

/// Starts servers of a home on the addresses that the home knows. Where one is taken they get another, which nobody who was
/// told of the first one would find: they are started again until it is free.
pub async fn start_where_they_were(options: Options, was: impl Fn(&Servers) -> bool) -> Servers {
    let state = state_file(&options.home);
    let known = std::fs::read(&state).ok();
    wait_until_within("their addresses are free", ADDRESS_FREE_WITHIN, async || {
        if let Some(known) = &known {
            std::fs::write(&state, known).unwrap();
        }
        let servers = Servers::start(options.clone()).await.unwrap();
        if was(&servers) {
            return Some(servers);
        }
        servers.stop().await.unwrap();
        None
    })
    .await
}

/// What a home knows of its servers.
fn state_file(home: &Path) -> PathBuf {
    home.join("servers.json")
}

/// The block of an account in the configuration.
fn account<'a>(text: &'a str, name: &str) -> &'a str {
    let start = text.find(&format!("  \"{name}\" {{\n")).unwrap();
    let end = text[start..].find("\n  }\n").unwrap() + "\n  }\n".len();
    &text[start..start + end]
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

#[tokio::test]
async fn one_whose_address_is_taken_while_it_is_down_waits_for_it() {
    let mut nats = PrivateNats::start().await;
    let (url, state) = (nats.url(), nats.state());
    let port = u16::try_from(state["nats_port"].as_u64().unwrap()).unwrap();
    nats.stop().await;
    let taken = wait_until("it is free", async || TcpListener::bind(("127.0.0.1", port)).ok()).await;
    let file = state_file(&nats.home);
    let released = async {
        wait_until("it has started elsewhere", async || {
            let now: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).ok()?).ok()?;
            (now["nats_port"] != state["nats_port"]).then_some(())
        })
        .await;
        drop(taken);
    };
    tokio::join!(nats.start_again(), released);
    assert_eq!(nats.url(), url);
}
