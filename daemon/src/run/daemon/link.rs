//! The daemon's end of the store: what is asked, what is followed, and whether an outage may be over in a moment.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{Daemon, Event, ROOM};
use crate::cluster::Input;
use crate::run::notices::Notice;
use crate::store::{Resume, StoreReply, StoreRequest, WatchInput};

/// How long it may take to find another member of the store.
const FAILOVER: Duration = Duration::from_secs(15);
/// Findings that only a person ends.
const LASTING: [&str; 6] =
    ["removed", "clone", "store-refuses", "store-full", "cluster-full", "history-rewritten"];

impl Daemon {
    pub(super) fn call(&mut self, request: StoreRequest) {
        let (store, events) = (self.store.clone(), self.events.0.clone());
        self.calls += 1;
        self.tasks.spawn(async move {
            let StoreRequest { id, op } = request;
            let result = store.call(op).await;
            // A daemon that ends hears nothing more.
            let _ending = events.send(Event::Store(StoreReply { id, result })).await;
        });
    }

    pub(super) fn follow(&mut self, resume: Option<Resume>) {
        if let Some((_, former)) = self.watch.take() {
            former.abort();
        }
        let (sender, receiver) = mpsc::channel(ROOM);
        let store = self.store.clone();
        let task = self.tasks.spawn(async move { store.follow(resume, sender).await });
        self.watch = Some((receiver, task));
    }

    pub(super) fn heard(&mut self, input: WatchInput) {
        if !matches!(input, WatchInput::Lost(_) | WatchInput::SessionLost { .. }) {
            self.store_heard = Instant::now();
        }
        self.tell(Input::Watch(input));
    }

    /// Whether what is in the way of a new block may be over in a moment: one member of the store is away, and
    /// another is being tried. After a longer outage everybody is refused at once.
    pub(super) fn may_pass(&self) -> bool {
        let for_good = |notice: &Notice| LASTING.contains(&notice.code.as_str());
        self.store_heard.elapsed() < FAILOVER && !self.notices.all().any(for_good)
    }

    /// One whom the store refused tries again as soon as somebody has changed what it refused.
    pub(super) fn look_for_a_new_login(&mut self) {
        let refused = self.notices.all().any(|notice| notice.code == "store-refuses");
        if refused && self.store.has_new_login() {
            tracing::info!("password or certificate were changed: the store is asked again");
            self.tell(Input::NewLogin);
        }
    }

    pub(super) fn ask_again(&mut self) {
        self.count();
        for id in self.needs.ask_again() {
            self.tell(Input::NeedBlock { id });
        }
    }
}
