//! Which life of which node the state belongs to: the boot, and the node's own network namespace. An attachment
//! cannot outlive either, so another stamp is simply another folder and nothing ever needs a reset.

use std::fs;
use std::io;

use weft_netlink::netns;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Boot id and the cookie of the node's network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The kernel's boot id, without dashes.
    pub boot: String,
    /// `SO_NETNS_COOKIE`, or the start time of PID 1 on kernels before 5.14.
    pub node: u64,
}

impl Stamp {
    /// The stamp of the calling thread's namespace.
    pub fn current() -> io::Result<Self> {
        let boot: String = fs::read_to_string(BOOT_ID)?.chars().filter(char::is_ascii_hexdigit).collect();
        if boot.len() != 32 {
            return Err(io::Error::other(format!("{BOOT_ID} holds no boot id")));
        }
        let node = match netns::own_cookie()? {
            Some(cookie) => cookie,
            None => first_process_start()?,
        };
        Ok(Self { boot, node })
    }

    /// The folder's name.
    pub fn folder(&self) -> String {
        format!("{}-{}", self.boot, self.node)
    }

    /// Whether a folder name belongs to another boot: certainly dead, whichever node it was.
    pub fn is_of_another_boot(&self, folder: &str) -> bool {
        folder.split_once('-').is_some_and(|(boot, node)| {
            boot.len() == 32 && boot != self.boot && node.bytes().all(|b| b.is_ascii_digit())
        })
    }
}

/// Field 22 of /proc/1/stat: a container that plays a node has a PID 1 of its own.
fn first_process_start() -> io::Result<u64> {
    let stat = fs::read_to_string("/proc/1/stat")?;
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    after_name
        .split_whitespace()
        .nth(19)
        .and_then(|word| word.parse().ok())
        .ok_or_else(|| io::Error::other("/proc/1/stat has no start time"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_of_another_boot_are_certainly_dead() {
        let stamp = Stamp { boot: "a".repeat(32), node: 7 };
        assert!(!stamp.is_of_another_boot(&stamp.folder()));
        assert!(!stamp.is_of_another_boot(&format!("{}-9", "a".repeat(32))), "another node on this kernel");
        assert!(stamp.is_of_another_boot(&format!("{}-7", "b".repeat(32))));
        assert!(!stamp.is_of_another_boot("wg"), "other people's folders are left alone");
    }

    #[test]
    fn one_namespace_has_one_stamp() {
        assert_eq!(Stamp::current().unwrap(), Stamp::current().unwrap());
    }

    #[test]
    fn the_fallback_finds_the_start_time() {
        assert!(first_process_start().is_ok());
    }
}
