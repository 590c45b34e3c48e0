//! A server of a test's own, on the shipped configuration: it can be killed, frozen, stopped and started again.

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid};
use uuid::Uuid;
use waybill::dev::servers::{Keep, Options, Servers};

use crate::rounds::thorough;

/// Which server it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    Postgres,
    Nats,
}

/// Copies a folder with all that is in it, owners and rights included.
pub fn copy(from: &Path, to: &Path) {
    assert!(Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap().success());
}

/// What a program is started with so that it may mount something for itself alone; `None`, said past what the test runner
/// keeps to itself, where this system gives nobody a namespace for that.
///
/// # Panics
/// There, where everything is to be run.
pub fn own_mounts() -> Option<[&'static str; 3]> {
    let [unshare, user, mount] = ["unshare", "--map-root-user", "--mount"];
    let given = Command::new(unshare).args([user, mount, "true"]).status();
    if given.is_ok_and(|status| status.success()) {
        return Some([unshare, user, mount]);
    }
    skipped("this system gives no mount namespace");
    None
}

/// Says that something cannot be tested here, where not everything is to be run.
fn skipped(why: &str) {
    let skipped = format!("SKIPPED: {why}");
    assert!(!thorough(), "{skipped}");
    writeln!(std::io::stderr(), "{skipped}").ok();
}

/// A small file system of its own in memory, so that a full disk is a few megabytes away.
pub struct Volume(PathBuf);

impl Volume {
    /// Mounts one of so many MiB; `None`, said past what the test runner keeps to itself, where this process may not mount.
    ///
    /// # Panics
    /// There, where everything is to be run.
    pub fn mount(mebibytes: u32) -> Option<Self> {
        let path = std::env::temp_dir().join(format!("waybill-volume-{}", Uuid::new_v4().simple()));
        std::fs::create_dir_all(&path).unwrap();
        let mounted = Uid::effective().is_root()
            && Command::new("mount")
                .args(["-t", "tmpfs", "-o", &format!("size={mebibytes}m,mode=0755"), "tmpfs"])
                .arg(&path)
                .status()
                .is_ok_and(|status| status.success());
        if !mounted {
            std::fs::remove_dir_all(&path).ok();
            skipped(&format!("a volume of {mebibytes} MiB cannot be mounted here; it needs root"));
            return None;
        }
        Some(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes until nothing fits any more; returns the file to remove.
    pub fn fill(&self) -> PathBuf {
        let ballast = self.0.join("ballast");
        let mut file = std::fs::File::create(&ballast).unwrap();
        let block = vec![0x5a; 1 << 16];
        while file.write_all(&block).is_ok() {}
        ballast
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Lazily: a server that ends a moment later does not keep it.
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
        std::fs::remove_dir(&self.0).ok();
    }
}

/// The server; killed and removed when dropped.
pub struct OwnServer {
    which: Which,
    home: PathBuf,
    servers: Option<Servers>,
    volume: Option<Volume>,
}

impl OwnServer {
    /// Starts it, on a volume of its own where one is given.
    pub async fn start(which: Which, volume: Option<Volume>) -> Self {
        let place = volume.as_ref().map_or_else(std::env::temp_dir, |volume| volume.path().to_owned());
        let home = place.join(format!("waybill-{which:?}-{}", Uuid::new_v4().simple()).to_lowercase());
        let mut server = Self { which, home, servers: None, volume };
        server.start_again().await;
        server
    }

    /// Starts it with the same data, if it can be on the same address.
    pub async fn start_again(&mut self) {
        let none = Some(String::new());
        let (database_url, nats_url) = match self.which {
            Which::Postgres => (None, none),
            Which::Nats => (none, None),
        };
        let options = Options { home: self.home.clone(), keep: Keep::Durable, database_url, nats_url };
        self.servers = Some(Servers::start(options).await.unwrap());
    }

    fn servers(&self) -> &Servers {
        self.servers.as_ref().expect("the server runs")
    }

    /// As Waybill reaches it.
    pub fn url(&self) -> String {
        match self.which {
            Which::Postgres => self.servers().database_url().to_owned(),
            Which::Nats => self.servers().nats_url().to_owned(),
        }
    }

    /// As the gateway `gw-eu-1` reaches it.
    pub fn gateway_url(&self) -> String {
        self.servers().nats_gateway_url().expect("the NATS server is ours")
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        address_of(&self.url())
    }

    /// The folder of its data.
    pub fn home(&self) -> &Path {
        &self.home
    }

    /// What its data is on, where that is a volume of its own.
    pub const fn volume(&self) -> Option<&Volume> {
        self.volume.as_ref()
    }

    /// The data directory of PostgreSQL.
    pub fn data(&self) -> PathBuf {
        let state = std::fs::read_to_string(self.home.join("servers.json")).unwrap();
        let state: serde_json::Value = serde_json::from_str(&state).unwrap();
        // PostgreSQL's own user may not enter the home.
        state["postgres_elsewhere"].as_str().map_or(self.home.clone(), PathBuf::from).join("postgres")
    }

    /// Ends it in order.
    pub async fn stop(&mut self) {
        self.servers.take().expect("the server runs").stop().await.unwrap();
    }

    /// Ends it and its children with SIGKILL.
    pub async fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
        // It has ended: this puts away what watches over it.
        self.servers.take().expect("the server runs").stop().await.ok();
    }

    /// Stops it and its children until [`Self::thaw`].
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    fn signal(&self, signal: Signal) {
        for pid in self.processes() {
            kill(pid, signal).ok();
        }
    }

    /// The server's process and then its children.
    pub fn processes(&self) -> Vec<Pid> {
        let Some(main) = self.main_process() else { return Vec::new() };
        let mut all = vec![main];
        all.extend(children(main));
        all
    }

    fn main_process(&self) -> Option<Pid> {
        let file = match self.which {
            Which::Nats => self.home.join("nats.pid"),
            Which::Postgres => find(&self.home, "postmaster.pid").or_else(|| {
                // PostgreSQL's own user may not enter the home.
                let state = std::fs::read_to_string(find(&self.home, "servers.json")?).ok()?;
                let state: serde_json::Value = serde_json::from_str(&state).ok()?;
                find(Path::new(state["postgres_elsewhere"].as_str()?), "postmaster.pid")
            })?,
        };
        let text = std::fs::read_to_string(file).ok()?;
        Some(Pid::from_raw(text.lines().next()?.trim().parse().ok()?))
    }
}

impl Drop for OwnServer {
    fn drop(&mut self) {
        self.thaw();
        if self.servers.is_some() {
            self.signal(Signal::SIGKILL);
        }
        self.servers = None;
        std::fs::remove_dir_all(&self.home).ok();
    }
}

/// A file of that name in a folder or in those right below it.
fn find(folder: &Path, name: &str) -> Option<PathBuf> {
    let here = folder.join(name);
    if here.exists() {
        return Some(here);
    }
    let folders = std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path().join(name));
    folders.into_iter().find(|path| path.exists())
}

fn children(parent: Pid) -> Vec<Pid> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let is_child = |pid: i32| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.split_whitespace().eq(["PPid:", &parent.to_string()]))
    };
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| is_child(*pid)).map(Pid::from_raw).collect()
}

/// Host and port of a URL.
pub fn address_of(url: &str) -> SocketAddr {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = authority.split('/').next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    host.parse().unwrap_or_else(|error| panic!("{host} is no address: {error}"))
}
