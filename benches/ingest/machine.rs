//! What the machine spent: CPU of this process and of everything it has started, memory and disk, from `/proc`.

use std::collections::BTreeMap;
use std::time::Duration;

/// CPU by program name.
pub type Cpu = BTreeMap<String, Duration>;

/// Unit of the times in `/proc`: Linux counts in hundredths of a second for programs, whatever its own clock does.
const TICK: Duration = Duration::from_millis(10);

struct Process {
    parent: u32,
    name: String,
    ticks: u32,
}

/// Reads one process; its own time and that of its children that have ended.
fn process(id: u32) -> Option<Process> {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    let (head, rest) = stat.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index).and_then(|field| field.parse::<u32>().ok());
    // After the name: state, parent, ..., from the twelfth: utime, stime, cutime, cstime.
    let ticks = (11..15).map(number).sum::<Option<u32>>()?;
    Some(Process { parent: number(1)?, name, ticks })
}

/// The CPU that this process and all its descendants have used so far.
pub fn cpu() -> Cpu {
    let ids = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let ids = ids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let processes: BTreeMap<u32, Process> = ids.filter_map(|id| Some((id, process(id)?))).collect();
    let own = std::process::id();
    let descends = |mut id: u32| loop {
        match processes.get(&id) {
            _ if id == own => return true,
            Some(process) => id = process.parent,
            None => return false,
        }
    };
    let mut cpu = Cpu::new();
    for (id, process) in processes.iter().filter(|(id, _)| descends(**id)) {
        let name = if *id == own { "publisher" } else { process.name.as_str() };
        *cpu.entry(name.to_owned()).or_default() += TICK * process.ticks;
    }
    cpu
}

/// What was used between two readings.
pub fn between(before: &Cpu, after: &Cpu) -> Cpu {
    let spent = |(name, time): (&String, &Duration)| {
        (name.clone(), time.saturating_sub(before.get(name).copied().unwrap_or_default()))
    };
    after.iter().map(spent).filter(|(_, time)| !time.is_zero()).collect()
}

/// The most memory that a process has held, in MiB.
pub fn peak_mib(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    let kib = line.split_ascii_whitespace().next().and_then(|number| number.parse::<u64>().ok());
    kib.unwrap_or_default() / 1024
}
