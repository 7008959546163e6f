//! `weftd run`: wires the store, the machine, the data plane and the plugin's folders together. Decides nothing
//! itself; everything it starts ends with it, and ending it changes nothing in the network.

mod aside;
mod daemon;
mod document;
mod host;
mod local;
mod needs;
mod notices;
mod places;
mod plane;
mod start;

use std::sync::Arc;

pub use document::Document;
pub use notices::Notice;
pub use places::{Places, RUN_DIR, data_files, identity as identity_file, memory, snapshot};
pub use plane::remove as remove_data_plane;

pub use start::machine_id;

use crate::command::{Failure, Verdict};
use crate::conf::Conf;
use crate::conf::load::{Given, load};
use crate::notify::Notifier;
use crate::rights;

/// The identity that the pods of this boot were started under.
///
/// # Errors
/// A sentence.
pub fn run_identity() -> Result<Option<String>, String> {
    local::Local::existing_identity()
}

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// Why it does not start, or ended: all reasons at once, each with what to do.
pub fn run(given: &Given, init: bool) -> Result<Verdict, Failure> {
    log_to_stderr();
    let conf = load(given, true)?;
    rights::prove(&conf).map_err(|missing| Failure::all(Verdict::CouldNotTell, missing))?;
    let places = Places::take(&conf).map_err(Failure::could_not_tell)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(4).build();
    let runtime = runtime.map_err(|error| Failure::could_not_tell(format!("start: {error}")))?;
    runtime.block_on(serve(Arc::new(conf), places, init))
}

async fn serve(conf: Arc<Conf>, places: Places, init: bool) -> Result<Verdict, Failure> {
    let notifier = Notifier::from_environment()
        .map_err(|error| Failure::could_not_tell(format!("find the service manager's socket: {error}")))?;
    let store = crate::store_of::open(&conf).map_err(Failure::refused)?;
    let started = start::start(&conf, &places, init)?;
    tracing::info!(node = %conf.node, version = env!("CARGO_PKG_VERSION"), "weftd runs");
    let mut daemon = daemon::Daemon::new(conf.clone(), places, notifier, store, started)?;
    if let Some(addr) = conf.metrics {
        daemon.serve_metrics(crate::metrics::listen(addr).await.map_err(Failure::could_not_tell)?);
    }
    daemon.run().await
}

/// One line for each change that an operator sees; `WEFT_LOG=debug` or `trace` for more.
fn log_to_stderr() {
    let level = match std::env::var(crate::conf::LOG).as_deref() {
        Ok("trace") => tracing::Level::TRACE,
        Ok("debug") => tracing::Level::DEBUG,
        Ok("warn") => tracing::Level::WARN,
        Ok("error") => tracing::Level::ERROR,
        _ => tracing::Level::INFO,
    };
    let subscriber =
        tracing_subscriber::fmt().with_max_level(level).with_target(false).with_writer(std::io::stderr);
    // The journal has its own clock.
    let installed = if std::env::var_os("JOURNAL_STREAM").is_some() {
        tracing::subscriber::set_global_default(subscriber.without_time().finish())
    } else {
        tracing::subscriber::set_global_default(subscriber.finish())
    };
    if installed.is_err() {
        tracing::debug!("somebody else writes the log already");
    }
}
