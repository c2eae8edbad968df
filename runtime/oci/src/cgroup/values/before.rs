//! What to write to a file so that it says again what it said before.

/// The line that takes back the writing of `value` to `file`, which had the content `text`; `None` for a file that does not
/// say what is written to it.
///
/// Files of one value are written as they are read. In those with a line for each device, or more than one value in a
/// line, what was not limited is not there: then it is the word for that.
pub(crate) fn before(file: &str, value: &str, text: &str) -> Option<String> {
    if file == "memory.oom_control" {
        return text.lines().find_map(|line| line.strip_prefix("oom_kill_disable ")).map(str::to_owned);
    }
    let (device, rest) = value.split_once(' ').unwrap_or((value, ""));
    let is_device = device.contains(':') || matches!(file, "rdma.max" | "net_prio.ifpriomap");
    if is_device {
        let line = text.lines().find(|line| line.split_ascii_whitespace().next() == Some(device));
        return Some(line.map_or_else(|| format!("{device} {}", unlimited(file, rest)), str::to_owned));
    }
    // Of a weight, the line for every device that has none of its own.
    let whole = text.lines().find(|line| line.starts_with("default ")).unwrap_or(text.trim());
    Some(if whole.is_empty() { "\n".to_owned() } else { whole.to_owned() })
}

/// What a device without a line has, in the words that its line would have.
fn unlimited(file: &str, written: &str) -> String {
    if written.contains('=') {
        let keys = written.split_ascii_whitespace().filter_map(|word| Some(word.split_once('=')?.0));
        return keys.map(|key| format!("{key}=max")).collect::<Vec<_>>().join(" ");
    }
    match file {
        "io.weight" | "io.bfq.weight" => "default".to_owned(),
        _ => "0".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_file_said_is_what_takes_a_value_back() {
        for (file, value, text, expected) in [
            ("memory.max", "5", "max\n", "max"),
            ("memory.limit_in_bytes", "5", "9223372036854771712\n", "9223372036854771712"),
            ("cpu.max", "5", "max 100000\n", "max 100000"),
            ("cpuset.cpus", "0", "\n", "\n"),
            ("memory.oom_control", "1", "oom_kill_disable 0\nunder_oom 0\noom_kill 0\n", "0"),
            ("io.max", "8:0 rbps=5", "8:16 rbps=1 wbps=max riops=max wiops=max\n", "8:0 rbps=max"),
            (
                "io.max",
                "8:0 rbps=5",
                "8:0 rbps=1 wbps=max riops=max wiops=max\n",
                "8:0 rbps=1 wbps=max riops=max wiops=max",
            ),
            ("io.weight", "200", "default 100\n8:0 50\n", "default 100"),
            ("io.weight", "8:0 200", "default 100\n", "8:0 default"),
            ("blkio.throttle.read_bps_device", "8:0 5", "", "8:0 0"),
            ("blkio.throttle.read_bps_device", "8:0 5", "8:0 7\n", "8:0 7"),
            ("blkio.bfq.weight", "300", "100\n", "100"),
            ("rdma.max", "mlx5_1 hca_handle=3", "", "mlx5_1 hca_handle=max"),
            ("net_prio.ifpriomap", "eth0 5", "lo 0\neth0 2\n", "eth0 2"),
        ] {
            assert_eq!(before(file, value, text).as_deref(), Some(expected), "{file} {value}");
        }
        assert_eq!(before("memory.oom_control", "1", ""), None);
    }
}
