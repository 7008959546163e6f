//! Reads the state folder and the kernel while others change both. What looks odd at first sight may be an
//! operation under way, so it is looked at a second time, under the attachment's lock or after the other truth.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use weft_cni::error::{Error, code};
use weft_ipam::clock::Deadline;
use weft_ipam::{Attachment, HostKernel, Kernel, Key, Live, Owner, Phase, Record, Reservation, State};

use super::ranges::{self, Hint, Taken};
use super::{FORMAT, Observed, RangeRow, Row, RowState};

/// The longest wait for a rebuild of the records that somebody else is at.
const WAIT: Duration = Duration::from_secs(5);
/// In the place of a network's name: addresses of granted blocks belong to no single network.
const CLUSTER: &str = "(cluster)";

/// Observes this node.
///
/// # Errors
/// When the state folder or the kernel cannot be read, or the folder is taken away meanwhile.
pub fn observe() -> Result<Observed, Error> {
    let mut kernel = HostKernel::default();
    let open = |kernel: &mut HostKernel| State::open_existing(kernel, Deadline::after(Instant::now(), WAIT));
    let mut live = Vec::new();
    // A link without a folder may be one whose ADD, the first since boot, made both in between.
    for _ in 0..2 {
        if let Some(state) = open(&mut kernel)? {
            return Look { state: &state, kernel: &mut kernel, findings: Vec::new() }.around();
        }
        live = kernel.live()?;
        if live.is_empty() {
            break;
        }
    }
    Ok(without_folder(&live))
}

/// No folder: a node without pods, unless its interfaces say otherwise.
fn without_folder(live: &[Live]) -> Observed {
    let mut findings = Vec::new();
    if !live.is_empty() {
        findings.push(format!(
            "this node's records are gone, but {} interfaces of Weft's pods are there; \
             the next ADD on this node rebuilds the records from them",
            live.len()
        ));
    }
    let names = BTreeMap::new();
    let mut attachments: Vec<Row> = live.iter().map(|live| unrecorded(live, &names)).collect();
    attachments.sort();
    Observed { format: FORMAT, state_folder: None, attachments, ranges: Vec::new(), findings }
}

/// Names of networks by their hashes.
type Names = BTreeMap<String, String>;

struct Look<'a> {
    state: &'a State,
    kernel: &'a mut HostKernel,
    findings: Vec<String>,
}

impl Look<'_> {
    fn around(mut self) -> Result<Observed, Error> {
        let names = self.names()?;
        let links = self.kernel.live()?;
        let taken = self.taken()?;
        // Owners last: an attachment has its owner file before it has anything else, and until after.
        let owner_files = inodes(&self.at("owner"))?;
        let owners = self.state.owners()?;

        let mut attachments = Vec::new();
        for owner in &owners {
            let Some(key) = owner.key() else { continue };
            attachments.extend(self.attachment(owner, &key, &names)?);
        }
        let known: BTreeSet<Key> = owners.iter().filter_map(Owner::key).collect();
        attachments.extend(self.unrecorded(&links, &known, &names)?);
        attachments.extend(self.state.reserved()?.iter().map(reserved));
        attachments.sort();
        self.find_orphans(&taken, &owner_files)?;
        if let Some(wiped) = self.state.wiped()? {
            self.findings.push(format!(
                "the records were wiped while this node ran; addresses that other IPAM plugins had given before \
                 are unknown. Once the pods of those networks are gone, remove {}",
                wiped.file.display()
            ));
        }
        let mut ranges = self.ranges(&taken, &names)?;
        ranges.sort();
        if !self.state.is_current()? {
            return Err(Error::new(
                code::TRY_AGAIN,
                format!("{} was removed meanwhile", self.state.path().display()),
            ));
        }
        let state_folder = Some(self.state.path().to_owned());
        Ok(Observed { format: FORMAT, state_folder, attachments, ranges, findings: self.findings })
    }

    fn at(&self, relative: &str) -> PathBuf {
        self.state.path().join(relative)
    }

    fn names(&self) -> Result<Names, Error> {
        let mut names = Names::new();
        for entry in entries(&self.at("name"))? {
            // Empty for a network that is only known from the kernel.
            let name = fs::read_to_string(entry.path()).unwrap_or_default();
            if !name.is_empty() {
                names.insert(entry.file_name().to_string_lossy().into_owned(), name);
            }
        }
        Ok(names)
    }

    /// One attachment; `None` if it ended while we looked.
    fn attachment(&mut self, owner: &Owner, key: &Key, names: &Names) -> Result<Option<Row>, Error> {
        if let Some(record) = self.state.peek(key)?
            && record.phase == Phase::Done
            && self.kernel.is_alive(&record)?
            && self.holds_all(&record, key)?
        {
            self.findings.extend(record.notes.iter().map(|note| format!("{}: {note}", owner.describe())));
            return Ok(Some(row(owner, Some(&record), Some(true), names)));
        }
        let at_once = Deadline::after(Instant::now(), Duration::ZERO);
        match self.state.find(key, at_once) {
            Ok(None) => Ok(None),
            Ok(Some(attachment)) => self.odd(owner, &attachment, names).map(Some),
            Err(error) if error.code == code::TRY_AGAIN => {
                let record = self.state.peek(key)?;
                Ok(Some(Row { state: RowState::Busy, ..row(owner, record.as_ref(), None, names) }))
            }
            Err(error) => Err(error),
        }
    }

    /// Without the lock: whether the address files are links to the owner file.
    fn holds_all(&self, record: &Record, key: &Key) -> Result<bool, Error> {
        let owner = inode(&self.at("owner").join(key.id().as_str()))?;
        for taken in record.addresses.iter().filter(|taken| !taken.file.is_empty()) {
            if inode(&self.at(&taken.file))? != owner {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Under the lock nothing moves: what is odd now stays so until somebody does something about it.
    fn odd(&mut self, owner: &Owner, attachment: &Attachment<'_>, names: &Names) -> Result<Row, Error> {
        let who = owner.describe();
        let Some(record) = attachment.record()? else {
            self.findings
                .push(format!("{who} has no readable record; its DEL, or the next full pool, ends it"));
            return Ok(Row { state: RowState::Unreadable, ..row(owner, None, None, names) });
        };
        let alive = self.kernel.is_alive(&record)?;
        if record.phase == Phase::Intent {
            self.findings.push(format!("an ADD of {who} began and never ended; its DEL cleans up"));
        } else if !alive {
            self.findings.push(format!(
                "{who} is dead: its interface is gone and its DEL never came. Its addresses come back by that DEL, \
                 or when an ADD finds few left"
            ));
        }
        for taken in record.addresses.iter().filter(|taken| !taken.file.is_empty()) {
            // An ADD that only began may have written a candidate that it never got.
            if record.phase == Phase::Done && !attachment.holds(&taken.file)? {
                self.findings.push(format!(
                    "{who} uses {}, but the records do not keep it from others: {} is not its file",
                    taken.address.addr(),
                    self.at(&taken.file).display()
                ));
            }
        }
        self.findings.extend(record.notes.iter().map(|note| format!("{who}: {note}")));
        Ok(row(owner, Some(&record), Some(alive), names))
    }

    /// Interfaces of pods that no owner file speaks of, now as before the owners were read.
    fn unrecorded(
        &mut self,
        before: &[Live],
        known: &BTreeSet<Key>,
        names: &Names,
    ) -> Result<Vec<Row>, Error> {
        let mut missing: Vec<&Live> = before.iter().filter(|live| !known.contains(&live.alias.key)).collect();
        if missing.is_empty() {
            return Ok(Vec::new());
        }
        let now = self.kernel.live()?;
        missing.retain(|live| now.iter().any(|there| there.host == live.host));
        for live in &missing {
            self.findings.push(format!(
                "interface {} is a pod's, but there is no record of it; after `rm {}` the next ADD, or this \
                 command, rebuilds the records from the kernel",
                live.host.name,
                self.at("ready").display()
            ));
        }
        Ok(missing.into_iter().map(|live| unrecorded(live, names)).collect())
    }

    /// Every address file, by folder.
    fn taken(&self) -> Result<BTreeMap<PathBuf, Vec<Taken>>, Error> {
        let mut taken = BTreeMap::new();
        for parent in ["pool", "block"] {
            for folder in entries(&self.at(parent))? {
                // A name with a dot is a block on its way in.
                if folder.file_name().to_string_lossy().starts_with('.') {
                    continue;
                }
                let files = entries(&folder.path())?;
                let addresses = files.iter().filter_map(|file| {
                    let ip = file.file_name().to_str()?.parse().ok()?;
                    Some(Taken { ip, inode: file.ino() })
                });
                taken.insert(folder.path(), addresses.collect());
            }
        }
        Ok(taken)
    }

    /// Addresses that are taken by nobody: their owner is gone, and they were not given back with it.
    fn find_orphans(
        &mut self,
        taken: &BTreeMap<PathBuf, Vec<Taken>>,
        owners: &BTreeSet<u64>,
    ) -> Result<(), Error> {
        let reserved: BTreeSet<IpAddr> =
            self.state.reserved()?.into_iter().map(|reservation| reservation.address).collect();
        for (folder, addresses) in taken {
            let orphan = |taken: &&Taken| !owners.contains(&taken.inode) && !reserved.contains(&taken.ip);
            for address in addresses.iter().filter(orphan) {
                let path = folder.join(address.ip.to_string());
                // Given back since: its owner was just ending.
                if inode(&path)? == Some(address.inode) {
                    self.findings.push(format!(
                        "{} is taken, but whoever took it is gone; if no pod uses it, remove {}",
                        address.ip,
                        path.display()
                    ));
                }
            }
        }
        Ok(())
    }

    fn ranges(&self, taken: &BTreeMap<PathBuf, Vec<Taken>>, names: &Names) -> Result<Vec<RangeRow>, Error> {
        let mut rows = Vec::new();
        for block in self.state.granted()? {
            let folder = self.at("block").join(block.to_string().replace('/', "-"));
            rows.push(RangeRow {
                network: CLUSTER.to_owned(),
                range: Some(block.to_string()),
                used: taken.get(&folder).map_or(0, Vec::len),
                size: Some(ranges::size(block.first(), block.last())),
            });
        }
        let hints: Vec<Hint> = entries(&self.at("slot"))?
            .iter()
            .filter_map(|entry| Hint::parse(&entry.file_name().to_string_lossy()))
            .collect();
        let pools = self.at("pool");
        for (folder, addresses) in taken.iter().filter(|(folder, _)| folder.starts_with(&pools)) {
            let hash = folder.file_name().unwrap_or_default().to_string_lossy();
            let hints: Vec<&Hint> = hints.iter().filter(|hint| hint.network == hash).collect();
            rows.extend(ranges::of_pool(&name_of(&hash, names), addresses, &hints));
        }
        Ok(rows)
    }
}

fn row(owner: &Owner, record: Option<&Record>, alive: Option<bool>, names: &Names) -> Row {
    let [network, container, ifname] = &owner.hashes;
    let or_hash = |name: &str, hash: &str| if name.is_empty() { format!("#{hash}") } else { name.to_owned() };
    Row {
        network: if owner.network.is_empty() { name_of(network, names) } else { owner.network.clone() },
        container_id: or_hash(&owner.container_id, container),
        ifname: or_hash(&owner.ifname, ifname),
        addresses: record
            .map(|record| record.addresses.iter().map(|taken| taken.address.to_string()).collect())
            .unwrap_or_default(),
        host_link: record.and_then(|record| record.host.as_ref()).map(|host| host.name.clone()),
        state: record.map_or(RowState::Unreadable, row_state),
        alive,
    }
}

fn row_state(record: &Record) -> RowState {
    match (record.phase, record.rebuilt) {
        (Phase::Intent, _) => RowState::Intent,
        (Phase::Done, true) => RowState::Rebuilt,
        (Phase::Done, false) => RowState::Done,
    }
}

fn unrecorded(live: &Live, names: &Names) -> Row {
    let key = &live.alias.key;
    Row {
        network: name_of(key.network.as_str(), names),
        container_id: format!("#{}", key.container),
        ifname: format!("#{}", key.ifname),
        addresses: live.alias.addresses.iter().map(IpAddr::to_string).collect(),
        host_link: Some(live.host.name.clone()),
        state: RowState::Unrecorded,
        alive: Some(true),
    }
}

/// An address that the node keeps for itself: no pod's, and never given.
fn reserved(reservation: &Reservation) -> Row {
    Row {
        network: CLUSTER.to_owned(),
        container_id: format!("({})", reservation.why),
        ifname: String::new(),
        addresses: vec![reservation.address.to_string()],
        host_link: None,
        state: RowState::Reserved,
        alive: None,
    }
}

fn name_of(hash: &str, names: &Names) -> String {
    names.get(hash).cloned().unwrap_or_else(|| format!("#{hash}"))
}

/// What is in a folder; a missing one is empty.
fn entries(folder: &Path) -> Result<Vec<fs::DirEntry>, Error> {
    match fs::read_dir(folder).and_then(Iterator::collect) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed.map_err(|error| Error::io(format!("list {}", folder.display()), &error)),
    }
}

fn inodes(folder: &Path) -> Result<BTreeSet<u64>, Error> {
    Ok(entries(folder)?.iter().map(DirEntryExt::ino).collect())
}

fn inode(path: &Path) -> Result<Option<u64>, Error> {
    match fs::metadata(path) {
        Ok(there) => Ok(Some(there.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io(format!("look at {}", path.display()), &error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rebuilt_attachment_is_shown_by_its_hashes_and_the_networks_name() {
        let owner = Owner::of_key(&Key::of("net", "container", "eth0"));
        let names = Names::from([(owner.hashes[0].clone(), "net".to_owned())]);
        let shown = row(&owner, None, None, &names);
        assert_eq!(shown.network, "net");
        assert_eq!(shown.container_id, format!("#{}", owner.hashes[1]));
        assert_eq!(shown.state, RowState::Unreadable);
    }
}
