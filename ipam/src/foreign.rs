//! Addresses that the reference plugin `host-local` gave before a network was switched to Weft: they stay taken
//! until their containers go. Files `<dataDir>/<network>/<address>`, holding `containerID\r\nifname`.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use weft_cni::conf::NetConf;
use weft_cni::error::Error;

/// Where host-local keeps its reservations unless the configuration says otherwise.
const DATA_DIR: &str = "/var/lib/cni/networks";

/// host-local's folder of one network, if there is one.
#[derive(Clone, Debug, Default)]
pub struct Foreign {
    folder: Option<PathBuf>,
}

/// One reservation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reservation {
    /// The address.
    pub address: IpAddr,
    /// Its container.
    pub container_id: String,
    /// Its interface; `None` in files of old versions.
    pub ifname: Option<String>,
}

impl Foreign {
    /// The folder of a network. DEL must not depend on a configuration that is still valid, so what cannot be read
    /// there counts as not said.
    pub fn of(conf: &NetConf) -> Self {
        let ipam = conf.ipam().ok().flatten();
        let data_dir =
            ipam.and_then(|ipam| ipam.string("dataDir").ok().flatten()).filter(|dir| !dir.is_empty());
        Self::open(Path::new(data_dir.as_deref().unwrap_or(DATA_DIR)), conf.name.as_str())
    }

    /// Looks for the folder of `network`.
    pub fn open(data_dir: &Path, network: &str) -> Self {
        let folder = data_dir.join(network);
        Self { folder: folder.is_dir().then_some(folder) }
    }

    /// Whether host-local holds this address.
    pub fn holds(&self, ip: IpAddr) -> bool {
        self.folder.as_ref().is_some_and(|folder| folder.join(ip.to_string()).exists())
    }

    /// All addresses that host-local holds.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let entries = self.folder.as_ref().and_then(|folder| fs::read_dir(folder).ok());
        entries.into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
    }

    /// All reservations. Files that hold no container are left alone.
    pub fn reservations(&self) -> Vec<Reservation> {
        self.addresses().filter_map(|address| self.read(address)).collect()
    }

    /// Drops the reservations of one attachment.
    ///
    /// # Errors
    /// Code 5 if a file cannot be removed.
    pub fn release(&self, container_id: &str, ifname: &str) -> Result<(), Error> {
        let ours = |held: &Reservation| {
            held.container_id == container_id && held.ifname.as_deref().is_none_or(|name| name == ifname)
        };
        for held in self.reservations().into_iter().filter(ours) {
            self.remove(&held)?;
        }
        Ok(())
    }

    /// Drops one reservation.
    ///
    /// # Errors
    /// Code 5 if the file cannot be removed.
    pub fn remove(&self, held: &Reservation) -> Result<(), Error> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let path = folder.join(held.address.to_string());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(format!("remove {}", path.display()), &error))
            }
            _ => Ok(()),
        }
    }

    fn read(&self, address: IpAddr) -> Option<Reservation> {
        let text = fs::read_to_string(self.folder.as_ref()?.join(address.to_string())).ok()?;
        let mut lines = text.trim().lines().map(str::trim);
        let container_id = lines.next().filter(|line| !line.is_empty())?.to_owned();
        let ifname = lines.next().filter(|line| !line.is_empty()).map(str::to_owned);
        Some(Reservation { address, container_id, ifname })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> (tempfile::TempDir, Foreign) {
        let data = tempfile::tempdir().unwrap();
        fs::create_dir(data.path().join("net")).unwrap();
        for (name, content) in files {
            fs::write(data.path().join("net").join(name), content).unwrap();
        }
        let foreign = Foreign::open(data.path(), "net");
        (data, foreign)
    }

    #[test]
    fn an_address_stays_taken_until_its_container_goes() {
        let (_data, foreign) =
            folder(&[("10.1.0.5", "abc\r\neth0"), ("10.1.0.6", "abc\r\neth1"), ("lock", "")]);
        let five: IpAddr = "10.1.0.5".parse().unwrap();
        assert!(foreign.holds(five));
        foreign.release("other", "eth0").unwrap();
        assert!(foreign.holds(five));
        foreign.release("abc", "eth0").unwrap();
        assert!(!foreign.holds(five));
        assert!(foreign.holds("10.1.0.6".parse().unwrap()), "the pod's other interface keeps its address");
    }

    #[test]
    fn old_files_without_interface_belong_to_the_whole_container() {
        let (_data, foreign) = folder(&[("fd00::5", " abc \n")]);
        foreign.release("abc", "eth7").unwrap();
        assert_eq!(foreign.addresses().count(), 0);
    }

    #[test]
    fn bookkeeping_files_and_empty_ones_are_left_alone() {
        let (_data, foreign) = folder(&[("last_reserved_ip.0", "10.1.0.9"), ("10.1.0.7", "")]);
        assert!(foreign.reservations().is_empty());
        assert!(foreign.holds("10.1.0.7".parse().unwrap()), "nobody knows whose it is: not given");
    }

    #[test]
    fn no_folder_holds_nothing() {
        let foreign = Foreign::open(Path::new("/nonexistent"), "net");
        assert!(!foreign.holds("10.0.0.1".parse().unwrap()));
    }
}
