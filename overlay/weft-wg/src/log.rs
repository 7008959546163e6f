//! One line an event, on standard error.

use tracing::Level;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Begins to log. `boringtun` calls an idle peer an error; it is heard at `debug` only.
pub fn begin(level: Level) {
    let engine = if level >= Level::DEBUG { LevelFilter::DEBUG } else { LevelFilter::OFF };
    let filter = Targets::new().with_default(level).with_target("boringtun", engine);
    let lines =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_target(false).with_ansi(false);
    tracing_subscriber::registry().with(filter).with(lines).init();
}
