//! What systemd is told: one datagram each to `$NOTIFY_SOCKET` (sd_notify(3)), written by hand. Without that
//! variable nobody listens and nothing is sent.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::Duration;

/// The service manager, if there is one.
#[derive(Debug)]
pub struct Notifier {
    to: Option<(UnixDatagram, SocketAddr)>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// From the values of `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.
    ///
    /// # Errors
    /// When the socket cannot be made, or its name is none.
    pub fn new(socket: Option<&OsStr>, usec: Option<&str>, pid: Option<&str>) -> io::Result<Self> {
        let to = match socket.map(OsStr::as_bytes) {
            None | Some([]) => None,
            Some([b'@', name @ ..]) => Some(SocketAddr::from_abstract_name(name)?),
            Some(path) => Some(SocketAddr::from_pathname(Path::new(OsStr::from_bytes(path)))?),
        };
        let to = to.map(|addr| Ok::<_, io::Error>((UnixDatagram::unbound()?, addr))).transpose()?;
        if let Some((socket, _)) = &to {
            // A manager that does not read must not stop us.
            socket.set_nonblocking(true)?;
        }
        let ours = pid.is_none_or(|pid| pid == std::process::id().to_string());
        let period = usec.filter(|_| ours && to.is_some()).and_then(|usec| usec.parse().ok());
        Ok(Self { to, watchdog: period.filter(|usec| *usec > 0).map(Duration::from_micros) })
    }

    /// The same from the environment.
    ///
    /// # Errors
    /// As [`Notifier::new`].
    pub fn from_environment() -> io::Result<Self> {
        let text = |name| std::env::var(name).ok();
        let (usec, pid) = (text("WATCHDOG_USEC"), text("WATCHDOG_PID"));
        Self::new(std::env::var_os("NOTIFY_SOCKET").as_deref(), usec.as_deref(), pid.as_deref())
    }

    /// How often a sign of life is due: half of what the manager waits for.
    pub fn watchdog_period(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    /// Pods can be started.
    pub fn ready(&self, status: &str) {
        self.send(&format!("READY=1\nSTATUS={}", one_line(status)));
    }

    /// A sentence for `systemctl status`.
    pub fn status(&self, status: &str) {
        self.send(&format!("STATUS={}", one_line(status)));
    }

    /// A sign of life.
    pub fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// The process ends, as it was asked to.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    fn send(&self, message: &str) {
        if let Some((socket, addr)) = &self.to
            && let Err(error) = socket.send_to_addr(message.as_bytes(), addr)
        {
            tracing::debug!(%error, "the service manager was not told");
        }
    }
}

fn one_line(text: &str) -> String {
    text.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn each_message_is_one_datagram() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::new(Some(path.as_os_str()), None, None).unwrap();
        notifier.ready("two peers\nno findings");
        notifier.alive();
        notifier.stopping();
        assert_eq!(heard(&manager), "READY=1\nSTATUS=two peers no findings");
        assert_eq!(heard(&manager), "WATCHDOG=1");
        assert_eq!(heard(&manager), "STOPPING=1");
        assert_eq!(notifier.watchdog_period(), None);
    }

    #[test]
    fn an_abstract_socket_is_found_too() {
        let name = format!("weft-notify-test-{}", std::process::id());
        let addr = SocketAddr::from_abstract_name(&name).unwrap();
        let manager = UnixDatagram::bind_addr(&addr).unwrap();
        let at = format!("@{name}");
        Notifier::new(Some(OsStr::new(&at)), None, None).unwrap().status("x");
        assert_eq!(heard(&manager), "STATUS=x");
    }

    #[test]
    fn the_watchdog_is_fed_twice_as_often_as_it_asks_if_it_means_us() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let _manager = UnixDatagram::bind(&path).unwrap();
        let period = |usec, pid| Notifier::new(Some(path.as_os_str()), usec, pid).unwrap().watchdog_period();
        let own = std::process::id().to_string();
        assert_eq!(period(Some("60000000"), Some(own.as_str())), Some(Duration::from_secs(30)));
        assert_eq!(period(Some("60000000"), None), Some(Duration::from_secs(30)));
        assert_eq!(period(Some("60000000"), Some("1")), None, "it means another process");
        assert_eq!(period(Some("0"), None), None);
        assert_eq!(period(Some("soon"), None), None);
    }

    #[test]
    fn without_a_manager_and_with_a_dead_one_nothing_happens() {
        let nobody = Notifier::new(None, Some("1000"), None).unwrap();
        nobody.ready("x");
        assert_eq!(nobody.watchdog_period(), None);
        Notifier::new(Some(OsStr::new("/nonexistent/socket")), None, None).unwrap().alive();
    }
}
