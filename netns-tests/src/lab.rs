//! The lab: owns the namespaces of one test and takes all of them away, also after a panic.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::host::{self, NsId};
use crate::inside::Inside;
use crate::netns::{self, Netns};
use crate::node::Node;
use crate::server::Server;

/// Keeps the lab of a test that panics.
const KEEP: &str = "WEFT_LAB_KEEP";
/// Names longer than this are cut: namespaces are files.
const NAME_MAX: usize = 40;

/// The topology of one test.
///
/// Dropping it kills whatever lives in its namespaces and removes them. With `WEFT_LAB_KEEP=1` in the
/// environment, a test that panics keeps it instead and prints how to enter.
#[derive(Debug)]
pub struct Lab {
    pub(crate) shared: Arc<Shared>,
}

/// What nodes and pods need of their lab.
#[derive(Debug)]
pub(crate) struct Shared {
    pub tag: String,
    pub dir: PathBuf,
    counter: AtomicUsize,
    spaces: Mutex<Spaces>,
}

#[derive(Debug, Default)]
struct Spaces {
    paths: Vec<PathBuf>,
    ids: BTreeSet<NsId>,
    nodes: Vec<Node>,
}

/// A [`Lab`] named after the test function it is written in.
#[macro_export]
macro_rules! lab {
    () => {{
        fn here() {}
        $crate::Lab::new(&$crate::test_name(here))
    }};
}

/// The name of the function around `here`.
#[doc(hidden)]
pub fn test_name<F>(_here: F) -> String {
    let path = std::any::type_name::<F>();
    let outer = path.strip_suffix("::here").unwrap_or(path).trim_end_matches("::{{closure}}");
    outer.rsplit("::").next().unwrap_or(outer).to_owned()
}

/// A veth pair between two places; see [`Lab::wire`].
#[derive(Clone, Debug)]
pub struct Wire {
    /// The name of the link at both of its ends.
    pub link: String,
}

impl Lab {
    /// Makes an empty lab. `name` is the test's; see [`lab!`](crate::lab!).
    pub fn new(name: &str) -> Self {
        static SEQUENCE: AtomicUsize = AtomicUsize::new(0);
        host::prepare().expect("prepare /run/netns and /run/weft-lab");
        let name: String = name.chars().map(plain).take(NAME_MAX).collect();
        let tag = host::tag(SEQUENCE.fetch_add(1, Ordering::Relaxed), &name);
        let dir = Path::new(host::LABS).join(&tag);
        host::private_dir(&dir).expect("make the lab's folder");
        let shared = Shared { tag, dir, counter: AtomicUsize::new(0), spaces: Mutex::default() };
        Self { shared: Arc::new(shared) }
    }

    /// The prefix of everything this lab makes.
    pub fn tag(&self) -> &str {
        &self.shared.tag
    }

    /// A path for a file of the test, which goes with the lab.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.shared.dir.join(name)
    }

    /// A machine of its own: network namespace, mount namespace, empty state folders.
    pub fn node(&self, name: &str) -> Node {
        let node = Node::create(&self.shared, name).unwrap_or_else(|error| panic!("node {name}: {error}"));
        self.shared.spaces().nodes.push(node.clone());
        node
    }

    /// A server behind `node`'s uplink, the node's default route. It knows no way back to pods.
    pub fn outside(&self, node: &Node) -> Server {
        Server::create(&self.shared, node)
    }

    /// A veth pair between two places, up, each end with these addresses (`"192.0.2.1/24"`).
    pub fn wire(&self, a: (&impl Inside, &[&str]), b: (&impl Inside, &[&str])) -> Wire {
        self.shared.wire(a, b)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            if std::env::var_os(KEEP).is_some_and(|value| value == "1") {
                return self.shared.keep();
            }
            host::say(&format!("lab {}: {KEEP}=1 keeps it for a look", self.shared.tag));
        }
        self.shared.clean();
    }
}

impl Shared {
    /// A number that is unique in this lab.
    pub fn next(&self) -> usize {
        self.counter.fetch_add(1, Ordering::Relaxed)
    }

    /// Makes a network namespace that goes with the lab.
    pub fn netns(&self, name: &str) -> std::io::Result<Netns> {
        let netns = Netns::create(&format!("{}.{name}", self.tag))?;
        let mut spaces = self.spaces();
        spaces.paths.push(netns.path.clone());
        drop(spaces);
        Ok(netns)
    }

    /// Makes the processes of another namespace go with the lab.
    pub fn own(&self, space: NsId) {
        self.spaces().ids.insert(space);
    }

    pub fn wire(&self, a: (&impl Inside, &[&str]), b: (&impl Inside, &[&str])) -> Wire {
        let link = format!("wire{}", self.next());
        self.join((a.0, &link), (b.0, &link));
        for (place, addresses) in [(a.0.place(), a.1), (b.0.place(), b.1)] {
            configure(place, &link, addresses);
        }
        Wire { link }
    }

    /// Makes a veth pair with an end in each of two places, both down.
    pub fn join(&self, a: (&impl Inside, &str), b: (&impl Inside, &str)) {
        let netns = b.0.place().net.to_string_lossy();
        a.0.run(["ip", "link", "add", a.1, "type", "veth", "peer", "name", b.1, "netns", &netns]);
    }

    fn spaces(&self) -> std::sync::MutexGuard<'_, Spaces> {
        // A panic elsewhere must not keep the lab from cleaning up.
        self.spaces.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn clean(&self) {
        let spaces = std::mem::take(&mut *self.spaces());
        // By what the paths lead to now: a namespace that was destroyed meanwhile may have given its number to
        // another lab's.
        let mine = spaces.paths.iter().filter_map(|path| NsId::of(path).ok());
        host::kill_inhabitants(&mine.chain(spaces.ids).collect());
        for path in &spaces.paths {
            netns::remove(path);
        }
        host::remove_lab_dir(&self.dir);
    }

    fn keep(&self) {
        let spaces = self.spaces();
        let _ = std::fs::write(host::keep_mark(&self.tag), "");
        host::say(&format!("lab {} is kept; to enter:", self.tag));
        for node in &spaces.nodes {
            host::say(&format!("  {}", node.keep()));
        }
        for path in &spaces.paths {
            host::say(&format!("  nsenter --net={}", path.display()));
        }
        host::say(&format!("  rm {}   # lets the next run sweep it", host::keep_mark(&self.tag).display()));
    }
}

impl Inside for crate::inside::Place {
    fn place(&self) -> &Self {
        self
    }
}

/// Gives a link its addresses and sets it up.
pub(crate) fn configure(place: &impl Inside, link: &str, addresses: &[&str]) {
    // The link-local address too: while it is tentative the kernel solicits no next hop for what it forwards.
    place.set_sysctl(&format!("net.ipv6.conf.{link}.accept_dad"), "0");
    place.run(["ip", "link", "set", link, "up"]);
    for address in addresses {
        // Duplicate address detection would keep an IPv6 address unusable for a second.
        let nodad: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
        place.run([&["ip", "address", "add", address, "dev", link], nodad].concat());
    }
}

fn plain(c: char) -> char {
    if c.is_ascii_alphanumeric() { c } else { '_' }
}
