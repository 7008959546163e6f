//! Hears when the host's addresses or default routes change, so that nothing is polled for them.

use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use weft_netlink::EventStream;

/// A burst of changes is one change.
const SETTLE: Duration = Duration::from_millis(500);

/// Sends one `()` after each burst of changes, until the receiver is gone.
///
/// # Errors
/// A sentence when the kernel does not tell.
pub async fn follow(changed: mpsc::Sender<()>) -> Result<(), String> {
    let failed = |error: std::io::Error| format!("follow this node's addresses: {error}");
    let stream = EventStream::route().map_err(failed)?;
    let mut stream = AsyncFd::register(stream).map_err(|error| failed(error.into()))?;
    loop {
        stream.readable_mut().await.map_err(failed)?.clear_ready();
        tokio::time::sleep(SETTLE).await;
        // What happened is read from the kernel's tables, not from the events.
        stream.get_mut().drain(|_| {}).map_err(failed)?;
        // A message that waits already says the same.
        if changed.try_send(()).is_err() && changed.is_closed() {
            return Ok(());
        }
    }
}
