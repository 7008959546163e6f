//! The sockets of the data plane, and what comes in by them.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use weft_netlink::rules::{self, ForwardChain, Overlay, OverlayState};
use weft_netlink::{Drained, EventStream, Protocol, Result, Socket, nft, route};

use crate::backoff::Name;
use crate::dirty::Dirty;
use crate::execute::{self, Outcome};
use crate::objects::Key;
use crate::observed::Observed;
use crate::plan::Op;

/// Room for a batch, also one of all next hops of a large cluster.
const SEND_ROOM: i32 = 4 * 1024 * 1024;
/// Room for answers: a batch of requests that are all refused.
const RECEIVE_ROOM: i32 = 1024 * 1024;

/// The sockets.
#[derive(Debug)]
pub struct Kernel {
    route: Socket,
    rules: Socket,
    events: EventStream,
    commits: EventStream,
    own_port: u32,
    /// The links whose neighbours the event socket hears of.
    followed: [u32; 2],
    state: OverlayState,
    namer: Namer,
}

/// What events have told since it was last looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct News {
    /// Objects that others took away or changed, with their names as far as the kernel tells; `None` for those that
    /// the kernel itself dropped.
    pub lost: BTreeMap<Key, Culprit>,
    /// What of ours changed.
    pub touched: Dirty,
    /// Something that leads to other nodes may have changed.
    pub facts: bool,
    /// Everything must be read again.
    pub resync: bool,
    /// Others committed packet rules; the last of them.
    pub commit: Option<Name>,
}

/// Who took an object away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Culprit {
    /// The kernel, or somebody it does not name.
    Unknown,
    /// A process.
    Process(Name),
}

/// Names processes. Remembers the last one, as one program takes many things away and may end meanwhile.
#[derive(Debug, Default)]
struct Namer {
    last: Option<(u32, String)>,
}

impl Kernel {
    /// Opens the sockets in the calling thread's network namespace, and subscribes: what changes from here on is heard.
    ///
    /// # Errors
    /// When a socket cannot be had, e.g. without CAP_NET_ADMIN.
    pub fn open() -> Result<Self> {
        let (route, rules) = (Socket::route()?, Socket::open(Protocol::Netfilter)?);
        for socket in [&route, &rules] {
            socket.set_send_room(SEND_ROOM)?;
            socket.set_receive_room(RECEIVE_ROOM)?;
        }
        let own_port = route.port_id()?;
        let (events, commits) = (EventStream::route()?, EventStream::nftables()?);
        let (state, namer) = (OverlayState::default(), Namer::default());
        Ok(Self { route, rules, events, commits, own_port, followed: [0; 2], state, namer })
    }

    /// The descriptors to poll for events.
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.events.as_fd(), self.commits.as_fd()]
    }

    /// How many requests the kernel was sent so far.
    pub fn requests(&self) -> u64 {
        u64::from(self.route.requests()) + u64::from(self.rules.requests())
    }

    /// How many bytes the kernel answered so far.
    pub fn received(&self) -> u64 {
        self.route.received() + self.rules.received()
    }

    /// Reads what the kernel has.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn read(&mut self) -> Result<Observed> {
        // The filter first: what changes while the lists are read must not be missed.
        let links = Observed::read_links(&mut self.route)?;
        self.follow(&links);
        let mut observed = Observed::read(&mut self.route)?;
        while self.follow(&observed) {
            observed = Observed::read(&mut self.route)?;
        }
        Ok(observed)
    }

    /// Brings all waiting events in.
    pub fn drain(&mut self, observed: &mut Observed, news: &mut News) {
        let (own_port, namer) = (self.own_port, &mut self.namer);
        let drained = self.events.drain(|event| {
            let effect = observed.apply(&event);
            news.touched.merge(effect.touched);
            news.facts |= effect.facts;
            news.resync |= effect.resync;
            for (key, by) in effect.lost.into_iter().filter(|(_, by)| *by != own_port) {
                news.lose(key, namer.culprit(by));
            }
        });
        news.resync |= !matches!(drained, Ok(Drained::Complete));
        news.resync |= self.follow(observed);
        let drained = self.commits.drain(|event| {
            if let Some(commit) = nft::parse_event(event.kind, event.body)
                && !is_own_thread(commit.process)
            {
                news.commit = Some(Name::Known(format!("{} (process {})", commit.name, commit.process)));
            }
        });
        if !matches!(drained, Ok(Drained::Complete)) {
            news.commit.get_or_insert_with(|| Name::Vague("somebody".to_owned()));
        }
    }

    /// Carries operations out. What others do meanwhile goes into `news`.
    pub fn execute(&mut self, ops: &[Op], observed: &mut Observed, news: &mut News) -> Outcome {
        // The executor needs the request socket while events are read: a socket of its own for the time being.
        let Self { route, events, followed, own_port, namer, .. } = self;
        let refresh = |observed: &mut Observed| {
            let drained = events.drain(|event| {
                let effect = observed.apply(&event);
                news.resync |= effect.resync && event.port_id != *own_port;
                // Forwarding entries name nobody: those are our own doing here.
                let others = effect.lost.into_iter().filter(|(_, by)| *by != *own_port && *by != 0);
                others.for_each(|(key, by)| news.lose(key, namer.culprit(by)));
                news.touched.merge(effect.touched);
                news.facts |= effect.facts;
            });
            news.resync |= !matches!(drained, Ok(Drained::Complete));
            let carriers = observed.carrier_indexes();
            if carriers != *followed {
                news.resync |= events.follow_neighbours(carriers).is_err();
                *followed = carriers;
            }
        };
        execute::execute(route, ops, observed, refresh)
    }

    /// Brings the packet rules in; see [`rules::ensure_overlay`].
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn ensure_rules(&mut self, wanted: &Overlay, may_remove: bool) -> Result<bool> {
        rules::ensure_overlay(&mut self.rules, &mut self.state, wanted, may_remove)
    }

    /// Foreign chains that forwarded packets pass.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn forward_chains(&mut self) -> Result<Vec<ForwardChain>> {
        rules::forward_chains(&mut self.rules)
    }

    /// Removes Weft's tables.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_rules(&mut self) -> Result<bool> {
        rules::remove_tables(&mut self.rules)
    }

    /// Removes a link.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn remove_link(&mut self, index: u32) -> Result<()> {
        self.route.execute_tolerating(&[weft_netlink::link::delete(index)], |_, errno| errno == libc::ENODEV)
    }

    /// Indexes of the links with a default route from a router advertisement.
    ///
    /// # Errors
    /// When the kernel refuses to tell.
    pub fn advertised(&mut self) -> Result<Vec<u32>> {
        let routes = route::defaults(&mut self.route, false)?;
        Ok(routes.iter().filter(|r| route::from_router_advertisement(r)).map(|r| r.link).collect())
    }

    /// Says whether the filter had to be changed for a device that is there.
    fn follow(&mut self, observed: &Observed) -> bool {
        let carriers = observed.carrier_indexes();
        if carriers == self.followed {
            return false;
        }
        let followed = self.events.follow_neighbours(carriers);
        self.followed = carriers;
        followed.is_err() || carriers != [0; 2]
    }
}

/// The kernel names threads, not processes, as the makers of packet rules.
fn is_own_thread(id: u32) -> bool {
    Path::new("/proc/self/task").join(id.to_string()).exists()
}

impl Namer {
    /// The port of a process's first socket is its id; later ones, and those of the kernel, tell nothing.
    fn culprit(&mut self, port_id: u32) -> Culprit {
        match port_id {
            0 => Culprit::Unknown,
            id if id < 1 << 22 => Culprit::Process(self.name(id)),
            _ => Culprit::Process(Name::Vague("a process that the kernel does not name".to_owned())),
        }
    }

    fn name(&mut self, id: u32) -> Name {
        if let Ok(name) = fs::read_to_string(format!("/proc/{id}/comm")) {
            self.last = Some((id, format!("{} (process {id})", name.trim_end())));
        }
        match &self.last {
            Some((last, name)) if *last == id => Name::Known(name.clone()),
            _ => Name::Vague(format!("process {id}, which has ended")),
        }
    }
}

impl News {
    /// Of several losses of one object the last one counts, but not for the name.
    fn lose(&mut self, key: Key, by: Culprit) {
        let by = match (by, self.lost.remove(&key)) {
            (Culprit::Process(name), Some(Culprit::Process(before))) => {
                Culprit::Process(name.after(Some(before)))
            }
            (by, _) => by,
        };
        self.lost.insert(key, by);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_keeps_its_name_when_it_has_ended() {
        let mut namer = Namer::default();
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        // Until it has become that program.
        let known = loop {
            let culprit = namer.culprit(child.id());
            if let Culprit::Process(name) = &culprit
                && name.text().starts_with("sleep")
            {
                break culprit;
            }
        };
        assert_eq!(known, Culprit::Process(Name::Known(format!("sleep (process {})", child.id()))));
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(namer.culprit(child.id()), known);
        let vague = Culprit::Process(Name::Vague(format!("process {}, which has ended", child.id())));
        assert_eq!(Namer::default().culprit(child.id()), vague);
        // Nor is the name lost to an event that comes without it.
        let (key, mut news) = (Key::Rules, News::default());
        news.lose(key.clone(), known.clone());
        news.lose(key.clone(), vague.clone());
        assert_eq!(news.lost.remove(&key), Some(known.clone()));
        news.lose(key.clone(), vague);
        news.lose(key.clone(), known.clone());
        assert_eq!(news.lost.remove(&key), Some(known));
    }
}
