//! What is looked at now and then, or when the host says that it changed: addresses, the plugin's folders, garbage.

use tokio::sync::mpsc;
use weft_netlink::Socket;
use weft_overlay::wanted::Wanted;

use super::{Daemon, Event, broken, host};
use crate::address;
use crate::cluster::Input;
use crate::command::Failure;
use crate::conf::{load, overlaps};
use crate::run::local::Local;

pub(super) const ADDRESSES_WAY_OUT: &str =
    "Give `interface` or `addresses` in weftd.toml; it is looked at again when addresses change";

impl Daemon {
    pub(super) fn follow_host(&mut self) {
        let (changed, mut changes) = mpsc::channel(1);
        let events = self.events.0.clone();
        self.tasks.spawn(async move {
            let forward = async {
                while let Some(changed) = changes.recv().await {
                    let _ending = events.send(Event::HostChanged(changed)).await;
                }
            };
            let (followed, ()) = tokio::join!(host::follow(changed), forward);
            if let Err(sentence) = followed {
                let _ending = events.send(Event::HostUnknown(sentence)).await;
            }
        });
    }

    /// A node without `[network]` obeys, also where its own network is hidden by that: then it says so.
    pub(super) fn look_for_overlaps(&mut self, wanted: &Wanted) {
        let clashes = load::host_networks().map(|networks| overlaps(&wanted.cidrs, &networks));
        let outcome = match clashes {
            Ok(clashes) if clashes.is_empty() => Ok(()),
            Ok(clashes) => Err(clashes.into_iter().map(|clash| clash.problem).collect::<Vec<_>>().join("; ")),
            Err(sentence) => Err(sentence),
        };
        self.notices.set("overlap", outcome, "Give this host, or the cluster, another network");
    }

    pub(super) fn look_at_addresses(&mut self) {
        let seen = Socket::route().map_err(|error| error.to_string()).and_then(|mut socket| {
            address::choose(&self.conf.underlay, &address::observe(&mut socket)?, &self.published)
        });
        match seen {
            // The machine waits until it has held for a while.
            Ok(addresses) if addresses != self.published => {
                tracing::info!(?addresses, "this node's addresses");
                self.published.clone_from(&addresses);
                self.notices.clear("addresses", "");
                self.tell(Input::Published(addresses));
            }
            seen => self.notices.set("addresses", seen.map(drop), ADDRESSES_WAY_OUT),
        }
    }

    /// Counts what is in use, and tells the machine if that is news.
    pub(super) fn count(&mut self) {
        match self.local.usage() {
            Ok(usage) => {
                self.notices.clear("usage", "");
                if usage != self.usage {
                    self.usage.clone_from(&usage);
                    self.note_use();
                    self.tell(Input::LocalUse(usage));
                }
            }
            Err(sentence) => self.notices.set("usage", Err(sentence), "Look at /run/weft; it is tried again"),
        }
    }

    pub(super) fn look(&mut self) -> Result<(), Failure> {
        if !self.places.are_current() {
            return Err(broken(
                "/run/weft was removed, or is not the host's any more: weftd ends, and finds the right one when it is started again",
            ));
        }
        if !self.plane.is_running() {
            return Err(broken("the data plane's thread ended: weftd ends, and the network stays"));
        }
        self.count();
        self.look_for_a_new_login();
        self.mind_foreign();
        self.mirror_use();
        self.probe();
        Ok(())
    }

    /// Puts routes to pods back, on a thread of its own.
    pub(super) fn mend(&mut self) {
        let events = self.events.0.clone();
        self.tasks.spawn(async move {
            let mended = tokio::task::spawn_blocking(Local::mend).await;
            let result = mended.unwrap_or_else(|error| Err(format!("put back routes to pods: {error}")));
            let _ending = events.send(Event::Mended(result)).await;
        });
    }

    pub(super) fn tidy(&mut self) {
        self.mend();
        let events = self.events.0.clone();
        self.tasks.spawn(async move {
            let collected = tokio::task::spawn_blocking(Local::collect).await;
            let result = collected.unwrap_or_else(|error| Err(format!("collect garbage: {error}")));
            let _ending = events.send(Event::Collected(result)).await;
        });
        self.look_at_addresses();
        if let Some(wanted) = self.wanted.clone() {
            // The records may have been wiped, and with them what was reserved.
            let followed = self.local.follow(&wanted);
            self.notices.set("local", followed, "Look at /run/weft: its owner, its space, its label");
        }
        self.conflist = None;
        self.offer();
    }
}
