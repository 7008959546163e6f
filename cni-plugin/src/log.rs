//! One line for each operation: what, for whom, how long, how it ended. A log that cannot be written never fails
//! an operation.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::json;
use weft_cni::error::Error;
use weft_cni::object::Object;
use weft_ipam::is_at;

/// Where the log goes if the configuration does not say.
const DEFAULT_FILE: &str = "/var/log/weft/weft.log";
/// A log larger than this becomes `<file>.1`, so that a busy node's disk does not fill.
const LARGEST: u64 = 10 * 1024 * 1024;

/// `logFile`, `logLevel` and `logFormat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConf {
    target: Target,
    level: Level,
    format: Format,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    File(PathBuf),
    Stderr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Off,
    Error,
    Info,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Text,
    Json,
}

/// One finished operation.
#[derive(Clone, Copy, Debug)]
pub struct Line<'a> {
    /// ADD, DEL, …
    pub command: &'a str,
    /// Network, container and interface, as far as known.
    pub network: &'a str,
    /// The container ID.
    pub container: &'a str,
    /// The interface in the pod.
    pub ifname: &'a str,
    /// How long it took.
    pub took: Duration,
    /// Its addresses, or what else there is to say.
    pub note: &'a str,
    /// Why it failed.
    pub error: Option<&'a Error>,
}

impl Default for LogConf {
    fn default() -> Self {
        Self { target: Target::File(DEFAULT_FILE.into()), level: Level::Info, format: Format::Text }
    }
}

impl LogConf {
    /// Reads the three keys.
    ///
    /// # Errors
    /// Code 2 for a level or format there is not.
    pub fn parse(object: &Object) -> Result<Self, Error> {
        let mut conf = Self::default();
        match object.string("logFile")?.as_deref() {
            None | Some("") => {}
            Some("stderr") => conf.target = Target::Stderr,
            Some(path) if path.starts_with('/') => conf.target = Target::File(path.into()),
            Some(other) => {
                let hint = "an absolute path, or \"stderr\"";
                return Err(Error::unsupported("logFile", other).with_details(hint));
            }
        }
        conf.level = match object.string("logLevel")?.as_deref() {
            None | Some("" | "info") => Level::Info,
            Some("error") => Level::Error,
            Some("off") => Level::Off,
            Some(other) => {
                let hint = "\"info\" (the default), \"error\" or \"off\"";
                return Err(Error::unsupported("logLevel", other).with_details(hint));
            }
        };
        conf.format = match object.string("logFormat")?.as_deref() {
            None | Some("" | "text") => Format::Text,
            Some("json") => Format::Json,
            Some(other) => {
                return Err(
                    Error::unsupported("logFormat", other).with_details("\"text\" (the default) or \"json\"")
                );
            }
        };
        Ok(conf)
    }

    /// Writes the line of a finished operation.
    pub fn write(&self, line: &Line<'_>) {
        let level = if line.error.is_some() { Level::Error } else { Level::Info };
        if self.level < level {
            return;
        }
        let text = match self.format {
            Format::Text => text_line(line),
            Format::Json => json_line(line),
        };
        // The operation's outcome does not depend on its log.
        let _unlogged = match &self.target {
            Target::File(path) => append(path, &text),
            Target::Stderr => io::stderr().write_all(text.as_bytes()),
        };
    }
}

fn append(path: &Path, text: &str) -> io::Result<()> {
    // A FIFO that nobody reads must not hold up an operation.
    let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
    let open = || OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(flags).open(path);
    let mut file = match open() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            path.parent().map_or(Ok(()), std::fs::create_dir_all)?;
            open()?
        }
        opened => opened?,
    };
    // Others may be about to do the same: one puts the file aside, and only if nobody has.
    if file.metadata()?.size() > LARGEST && file.try_lock().is_ok() && is_at(&file, path)? {
        let mut old = path.as_os_str().to_owned();
        old.push(".1");
        std::fs::rename(path, old)?;
        file = open()?;
    }
    file.write_all(text.as_bytes())
}

fn text_line(line: &Line<'_>) -> String {
    let Line { command, network, container, ifname, note, .. } = line;
    let head = format!("{} {command} network={network} container={container} if={ifname}", timestamp());
    let took = line.took.as_micros();
    match line.error {
        None => format!("{head} took={took}us ok {note}\n"),
        Some(error) => {
            let sentence = one_line(&format!("{}: {}", error.msg, error.details));
            format!("{head} took={took}us error code={} {sentence} {note}\n", error.code)
        }
    }
}

fn json_line(line: &Line<'_>) -> String {
    let mut value = json!({
        "time": timestamp(), "command": line.command, "network": line.network, "containerID": line.container,
        "ifname": line.ifname, "microseconds": u64::try_from(line.took.as_micros()).unwrap_or(u64::MAX),
        "ok": line.error.is_none(), "note": line.note,
    });
    if let Some(error) = line.error {
        value["error"] = json!({"code": error.code, "msg": error.msg, "details": error.details});
    }
    format!("{value}\n")
}

/// A log line is one line, whatever a delegate or a file name put into the error.
fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// UTC, RFC 3339 with milliseconds.
fn timestamp() -> String {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (seconds, millis) = (since.as_secs(), since.subsec_millis());
    let (year, month, day) = civil_date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

/// Days since 1970-01-01 as a date (Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms").
fn civil_date(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let era = shifted / 146_097;
    let day_of_era = shifted % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(civil_date(0), (1970, 1, 1));
        assert_eq!(civil_date(19_782), (2024, 2, 29));
        assert_eq!(civil_date(20_778), (2026, 11, 21));
    }

    #[test]
    fn a_line_break_in_an_error_does_not_break_the_log() {
        let error = Error::new(7, "a\nb").with_details("c\td");
        let line = Line {
            command: "ADD",
            network: "n",
            container: "c",
            ifname: "eth0",
            took: Duration::from_micros(5),
            note: "",
            error: Some(&error),
        };
        assert_eq!(text_line(&line).lines().count(), 1);
        assert_eq!(json_line(&line).lines().count(), 1);
    }
}
