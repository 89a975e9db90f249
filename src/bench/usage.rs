//! What this process has used, and how busy the machine is: from Linux's /proc, else unknown.

use std::collections::BTreeMap;
use std::fs;

/// Clock ticks per second in /proc, on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// Seconds of CPU of all threads of this process.
pub(crate) fn cpu_seconds() -> Option<f64> {
    Some(read_stat(&fs::read_to_string("/proc/self/stat").ok()?)?.1)
}

/// Seconds of CPU by the name of the thread; threads of one name are added up.
pub(crate) fn cpu_by_thread() -> BTreeMap<String, f64> {
    let mut by_name = BTreeMap::new();
    let threads = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    for thread in threads {
        // A thread may end meanwhile.
        let Ok(stat) = fs::read_to_string(thread.path().join("stat")) else { continue };
        if let Some((name, seconds)) = read_stat(&stat) {
            *by_name.entry(name).or_insert(0.0) += seconds;
        }
    }
    by_name
}

/// What was used between two looks, without the threads that used next to nothing.
pub(crate) fn since(
    before: &BTreeMap<String, f64>,
    after: BTreeMap<String, f64>,
) -> BTreeMap<String, f64> {
    let used = |(name, seconds): (String, f64)| {
        let used = seconds - before.get(&name).copied().unwrap_or(0.0);
        (name, (used * TICKS_PER_SECOND).round() / TICKS_PER_SECOND)
    };
    after.into_iter().map(used).filter(|(_, used)| *used > 2.0 / TICKS_PER_SECOND).collect()
}

fn read_stat(stat: &str) -> Option<(String, f64)> {
    // The name, in parentheses, may hold anything.
    let (open, close) = (stat.find('(')?, stat.rfind(')')?);
    let fields: Vec<&str> = stat.get(close + 2..)?.split(' ').collect();
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    Some((stat.get(open + 1..close)?.to_owned(), (ticks(11)? + ticks(12)?) / TICKS_PER_SECOND))
}

/// The most memory that this process ever had resident, in bytes.
pub(crate) fn peak_rss_bytes() -> Option<u64> {
    status_bytes("VmHWM:")
}

fn status_bytes(name: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1_024)
}

/// The memory that it has resident now, in bytes.
pub(crate) fn rss_bytes() -> Option<u64> {
    status_bytes("VmRSS:")
}

/// The machine's load average of the last minute.
pub(crate) fn load_average() -> Option<f64> {
    fs::read_to_string("/proc/loadavg").ok()?.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_name_and_time_whatever_the_name() {
        let stat = "7 (a) b (c)) S 1 1 1 0 -1 4194560 9 0 0 0 150 50 0 0 20 0 1 0 5 0 0";
        assert_eq!(read_stat(stat), Some(("a) b (c)".to_owned(), 2.0)));
        assert_eq!(read_stat("nothing"), None);
    }
}
