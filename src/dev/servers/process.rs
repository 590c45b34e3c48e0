//! Running other programs: as whom, how they are recognised later, and how they end when this process does.

use std::ffi::OsStr;
use std::fs::{File, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Gid, Pid, Uid, User};
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};
use tokio::time::Instant;

use crate::dev::DevError;

/// Where private servers listen.
pub(super) const LOOPBACK: &str = "127.0.0.1";
/// Where free ports are looked for, and how often: below those that systems give to outgoing connections, so that a
/// server that is started again finds its port as it left it.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
const PORT_TRIES: usize = 100;
/// How long a server may take to answer after its start; recovery after a crash is part of it.
const START_TIMEOUT: Duration = Duration::from_mins(1);
/// How long a server that ends at once is started again.
const RESTART_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a server may take to end after it was asked to.
const STOP_TIMEOUT: Duration = Duration::from_mins(1);
/// First and longest pause between two looks at a condition.
const POLL: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));
/// For what no single program does.
const SHELL: &str = "/bin/sh";
/// Lines of a log that an error shows.
const TAIL_LINES: usize = 12;
/// Users that PostgreSQL may run as where this process is root, which PostgreSQL refuses.
const SERVER_USERS: [&str; 2] = ["postgres", "nobody"];

/// Ends the servers when this process is gone: its standard input is a pipe from us, which the system closes whatever
/// happens to us. Arguments: PostgreSQL's data folder, the home, and what to do with both at the end.
const GUARD: &str = r#"
trap '' INT TERM HUP
read -r word
[ "$word" = done ] && exit 0
stop() {
    pid=$(head -n 1 "$2" 2>/dev/null)
    [ -n "$pid" ] || return
    { tr '\0' ' ' < "/proc/$pid/cmdline" || ps -p "$pid" -o args=; } 2>/dev/null | grep -qF -- "$3" || return
    kill -s "$1" "$pid" && while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
}
stop TERM "$2/nats.pid" "$2"
stop INT "$1/postmaster.pid" "$1"
[ "$3" = remove ] && rm -rf -- "$1" "$2" && rmdir -- "$(dirname -- "$1")" 2>/dev/null
exit 0
"#;

/// The user that a program runs as.
#[derive(Debug, Clone, Copy)]
pub(super) enum Account {
    /// The user of this process.
    Own,
    /// Another one, because this process is root.
    Other { uid: Uid, gid: Gid },
}

impl Account {
    /// The user for PostgreSQL.
    pub(super) fn for_postgres() -> Result<Self, DevError> {
        if !Uid::effective().is_root() {
            return Ok(Self::Own);
        }
        let user = SERVER_USERS.iter().find_map(|name| User::from_name(name).ok().flatten());
        user.map(|user| Self::Other { uid: user.uid, gid: user.gid }).ok_or_else(|| DevError::Missing {
            what: "a user other than root for PostgreSQL to run as".to_owned(),
            tried: format!("there is none named {}", SERVER_USERS.join(" or ")),
        })
    }

    /// A command that runs as this user, outside of our process group (Ctrl-C is for us) and of our folder.
    pub(super) fn command(self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.process_group(0).current_dir("/").stdin(Stdio::null());
        if let Self::Other { uid, gid } = self {
            command.uid(uid.as_raw()).gid(gid.as_raw());
        }
        command
    }

    /// Whether this user can enter a folder.
    pub(super) async fn can_enter(self, folder: &Path) -> bool {
        let Self::Other { .. } = self else { return true };
        let mut command = self.command(SHELL);
        command.args(["-c", "cd -- \"$0\""]).arg(folder);
        output(command).await.is_ok()
    }

    /// Gives a file or folder to this user.
    pub(super) fn own(self, path: &Path) -> Result<(), DevError> {
        match self {
            Self::Own => Ok(()),
            Self::Other { uid, gid } => {
                std::os::unix::fs::chown(path, Some(uid.as_raw()), Some(gid.as_raw()))
                    .map_err(DevError::io("cannot give away", path))
            }
        }
    }
}

/// Runs a program to its end and returns what it printed.
pub(super) async fn output(command: Command) -> Result<String, DevError> {
    output_of(command, "").await
}

/// The same for a program that reads `input`.
pub(super) async fn output_of(mut command: Command, input: &str) -> Result<String, DevError> {
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let failed = |detail: String| DevError::Failed { program: program.clone(), detail };
    command.kill_on_drop(true).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| failed(error.to_string()))?;
    if let Some(mut pipe) = child.stdin.take() {
        // A program that does not read says itself what it did not like.
        pipe.write_all(input.as_bytes()).await.ok();
    }
    let output = child.wait_with_output().await.map_err(|error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(failed(format!("{}: {}", output.status, last_lines(&String::from_utf8_lossy(&said)))))
}

/// Starts a server that writes to `log`.
pub(super) fn spawn(mut command: Command, log: &Path) -> Result<Child, DevError> {
    let file = File::options().create(true).append(true).open(log);
    let file = file.map_err(DevError::io("cannot write", log))?;
    let errors = file.try_clone().map_err(DevError::io("cannot write", log))?;
    let program = command.as_std().get_program().to_string_lossy().into_owned();
    let child = command.stdout(file).stderr(errors).spawn();
    child.map_err(|error| DevError::Failed { program, detail: error.to_string() })
}

/// Asks a running server to end and waits for it.
pub(super) async fn stop(mut child: Child, server: &'static str, signal: Signal) -> Result<(), DevError> {
    let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()) else { return Ok(()) };
    if let Err(error) = kill(Pid::from_raw(pid), signal) {
        tracing::debug!(%error, server, "had ended already");
    }
    let ended = tokio::time::timeout(STOP_TIMEOUT, child.wait()).await;
    match ended {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(DevError::Failed { program: server.to_owned(), detail: error.to_string() }),
        Err(_) => {
            let detail = format!("did not end within {} s and was killed", STOP_TIMEOUT.as_secs());
            child.kill().await.ok();
            Err(DevError::Failed { program: server.to_owned(), detail })
        }
    }
}

/// Ends the server that an earlier, killed run has left behind: the process in the pid file, if its command line says
/// that it is ours.
pub(super) async fn stop_left_behind(
    server: &'static str,
    pid_file: &Path,
    mention: &Path,
    signal: Signal,
) -> Result<(), DevError> {
    let Some(pid) = left_behind(pid_file, mention).await else { return Ok(()) };
    tracing::info!(server, pid = pid.as_raw(), "stopping the server of an earlier run");
    kill(pid, signal).ok();
    let gone = until(STOP_TIMEOUT, async || match kill(pid, None) {
        Err(Errno::ESRCH) => Ok(()),
        _ => Err("it still runs".to_owned()),
    });
    gone.await.map_err(|detail| DevError::Failed { program: server.to_owned(), detail })
}

async fn left_behind(pid_file: &Path, mention: &Path) -> Option<Pid> {
    let content = std::fs::read_to_string(pid_file).ok()?;
    let pid: i32 = content.lines().next()?.trim().parse().ok()?;
    let command_line = if let Ok(line) = std::fs::read(format!("/proc/{pid}/cmdline")) {
        String::from_utf8_lossy(&line).replace('\0', " ")
    } else {
        let mut ps = Account::Own.command("ps");
        ps.args(["-p", &pid.to_string(), "-o", "args="]);
        output(ps).await.ok()?
    };
    command_line.contains(mention.to_str()?).then_some(Pid::from_raw(pid))
}

/// The process that outlives us just long enough to end our servers.
#[derive(Debug)]
pub(super) struct Guard {
    child: Child,
}

impl Guard {
    /// Starts it; with `remove` it also removes both folders. It holds `lock` until it is done, so that the servers of
    /// the next run are not taken for those of this one.
    pub(super) fn start(data: &Path, home: &Path, remove: bool, lock: File) -> Result<Self, DevError> {
        let mut command = Account::Own.command(SHELL);
        command.args(["-c", GUARD, "waybill-guard"]).arg(data).arg(home).arg(if remove {
            "remove"
        } else {
            "keep"
        });
        let child = command.stdin(Stdio::piped()).stdout(lock).stderr(Stdio::null()).spawn();
        let child = child
            .map_err(|error| DevError::Failed { program: SHELL.to_owned(), detail: error.to_string() })?;
        Ok(Self { child })
    }

    /// Lets it go: the servers have ended.
    pub(super) async fn dismiss(mut self) {
        if let Some(mut pipe) = self.child.stdin.take() {
            // Where the guard is gone already there is nobody to tell.
            pipe.write_all(b"done\n").await.ok();
        }
        self.child.wait().await.ok();
    }
}

/// Looks again and again, with growing pauses, until `condition` gives a value or the time is up; then its last complaint.
pub(super) async fn until<T, E>(
    timeout: Duration,
    mut condition: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T, E> {
    let deadline = Instant::now() + timeout;
    let mut pause = POLL.0;
    loop {
        match condition().await {
            Ok(value) => return Ok(value),
            Err(complaint) if Instant::now() >= deadline => return Err(complaint),
            Err(_) => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(POLL.1);
    }
}

/// Waits until a server that was just started answers; ends early where it has ended by itself.
pub(super) async fn ready<T>(
    server: &'static str,
    child: &mut Child,
    log: &Path,
    mut answer: impl AsyncFnMut() -> Result<T, String>,
) -> Result<T, DevError> {
    let mut ended = false;
    let answered = until(START_TIMEOUT, async || {
        if let Ok(Some(_)) = child.try_wait() {
            ended = true;
            return Ok(None);
        }
        answer().await.map(Some)
    });
    let detail = match answered.await {
        Ok(Some(value)) => return Ok(value),
        Ok(None) => return Err(exited(server, log)),
        Err(detail) => detail,
    };
    let (seconds, tail) = (START_TIMEOUT.as_secs(), tail(log));
    Err(DevError::NotReady { server, seconds, detail, log: log.to_owned(), tail })
}

/// Starts a server, again where it ends at once: what is left of a killed one can be in its way, or its port has been
/// taken since it was found free.
pub(super) async fn persist<T>(mut start: impl AsyncFnMut() -> Result<T, DevError>) -> Result<T, DevError> {
    let started = until(RESTART_TIMEOUT, async || match start().await {
        Err(error @ DevError::Exited { .. }) => Err(error),
        decided => Ok(decided),
    });
    started.await?
}

/// The error for a server that ended by itself.
pub(super) fn exited(server: &'static str, log: &Path) -> DevError {
    DevError::Exited { server, log: log.to_owned(), tail: tail(log) }
}

/// A free TCP port of the loopback interface: the wished one if it is free, 0 wishing none.
pub(super) fn free_port(wish: u16) -> Result<u16, DevError> {
    let [port] = free_ports([wish])?;
    Ok(port)
}

/// The same for several, no two of them the same: each is held until all are found.
pub(super) fn free_ports<const N: usize>(wishes: [u16; N]) -> Result<[u16; N], DevError> {
    let mut held = Vec::new();
    for wish in wishes {
        held.push(listener(wish)?);
    }
    let mut ports = wishes;
    for (port, listener) in ports.iter_mut().zip(held) {
        let address = listener.local_addr();
        *port = address.map_err(DevError::io("cannot listen on", Path::new(LOOPBACK)))?.port();
    }
    Ok(ports)
}

/// Holds such a port.
fn listener(wish: u16) -> Result<TcpListener, DevError> {
    let others = std::iter::repeat_with(|| rand::random_range(PORTS)).take(PORT_TRIES);
    let mut candidates = (wish != 0).then_some(wish).into_iter().chain(others);
    if let Some(listener) = candidates.find_map(|port| TcpListener::bind((LOOPBACK, port)).ok()) {
        return Ok(listener);
    }
    TcpListener::bind((LOOPBACK, 0)).map_err(DevError::io("cannot listen on", Path::new(LOOPBACK)))
}

/// Sets the permission bits of a file or folder.
pub(super) fn permit(path: &Path, mode: u32) -> Result<(), DevError> {
    std::fs::set_permissions(path, Permissions::from_mode(mode))
        .map_err(DevError::io("cannot set the mode of", path))
}

fn tail(log: &Path) -> String {
    last_lines(
        &std::fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default(),
    )
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}
