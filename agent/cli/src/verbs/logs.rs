//! `logs`.

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use http::Method;

use super::client::{Client, empty, with_query};
use super::target::Target;

/// Arguments of `logs`.
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    #[command(flatten)]
    target: Target,
    /// The container, as with --container
    #[arg(value_name = "CONTAINER", conflicts_with = "container")]
    container_position: Option<String>,
    /// Go on with what is written, until the container ends
    #[arg(short, long)]
    follow: bool,
    /// The log of the container before its last restart
    #[arg(short, long)]
    previous: bool,
    /// Only the last lines; -1 means all
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = clap::value_parser!(i64).range(-1..))]
    tail: Option<i64>,
    /// Only what is newer than this, e.g. 5s, 2m, 3h; 0s means all
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with = "since_time")]
    since: Option<Duration>,
    /// Only what is newer than this moment (RFC 3339)
    #[arg(long, value_name = "TIME")]
    since_time: Option<String>,
    /// Only so many bytes
    #[arg(long, value_name = "BYTES")]
    limit_bytes: Option<u64>,
    /// Print the time of each line
    #[arg(long)]
    timestamps: bool,
}

pub(crate) async fn run(client: &Client, args: LogsArgs) -> anyhow::Result<ExitCode> {
    let container = match args.container_position {
        Some(container) => container,
        None => args.target.container(client).await?,
    };
    let mut query: Vec<(&str, String)> = vec![("container", container)];
    for (key, on) in [("follow", args.follow), ("previous", args.previous), ("timestamps", args.timestamps)] {
        if on {
            query.push((key, "true".to_owned()));
        }
    }
    // As kubectl has it, -1 means all.
    if let Some(lines) = args.tail.filter(|lines| *lines >= 0) {
        query.push(("tailLines", lines.to_string()));
    }
    // As kubectl has it, no time at all means all.
    if let Some(since) = args.since.filter(|since| !since.is_zero()) {
        query.push(("sinceSeconds", (since.as_secs() + u64::from(since.subsec_nanos() > 0)).to_string()));
    }
    if let Some(time) = args.since_time {
        query.push(("sinceTime", time));
    }
    if let Some(bytes) = args.limit_bytes {
        query.push(("limitBytes", bytes.to_string()));
    }
    let query: Vec<(&str, &str)> = query.iter().map(|(key, value)| (*key, value.as_str())).collect();
    let mut answer = client.request(Method::GET, &with_query(&args.target.path("log"), &query), "*/*", empty()).await?;
    let mut out = io::stdout().lock();
    while let Some(piece) = answer.piece().await? {
        out.write_all(&piece)?;
        out.flush()?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads a duration as Go writes them: `1h30m`, `90s`, `1.5h`, `500ms`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is not a duration such as 5s, 2m or 1h30m");
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest == "0" {
        return Ok(total);
    }
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let digits = rest.find(|one: char| !one.is_ascii_digit() && one != '.').ok_or_else(wrong)?;
        let (number, after) = rest.split_at_checked(digits).ok_or_else(wrong)?;
        let letters = after.find(|one: char| one.is_ascii_digit() || one == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at_checked(letters).ok_or_else(wrong)?;
        let seconds = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(wrong()),
        };
        let number: f64 = number.parse().map_err(|_| wrong())?;
        total += Duration::try_from_secs_f64(number * seconds).map_err(|_| wrong())?;
        rest = after;
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_gos() {
        for (text, millis) in
            [("0", 0), ("0s", 0), ("5s", 5_000), ("1h30m", 5_400_000), ("1.5m", 90_000), ("250ms", 250)]
        {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for text in ["", "5", "m", "5x", "-5s", "1h-3m"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_tail_is_a_number_of_lines_or_minus_one() {
        use clap::Parser;
        #[derive(Debug, Parser)]
        struct Command {
            #[command(flatten)]
            args: LogsArgs,
        }
        let tail = |text: &str| Command::try_parse_from(["logs", "web", text]).map(|command| command.args.tail);
        assert_eq!(tail("--tail=0").unwrap(), Some(0));
        assert_eq!(tail("--tail=-1").unwrap(), Some(-1));
        let refused = tail("--tail=-5").unwrap_err().to_string();
        assert!(refused.contains("-5") && refused.contains("-1"), "{refused}");
    }
}
