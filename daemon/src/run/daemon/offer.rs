//! What the container runtime and the service manager see: plugins, the conflist, readiness.

use super::{Daemon, plane};
use crate::conf::PodMode;
use crate::conflist::{self, Conflist};
use crate::install;

impl Daemon {
    pub(super) fn install(&mut self) {
        let bin_dir = &self.conf.cni.bin_dir;
        let done =
            install::source().map_err(|error| vec![error]).and_then(|from| install::install(&from, bin_dir));
        match done {
            Ok(plugins) => {
                for plugin in plugins.iter().filter(|plugin| plugin.changed) {
                    tracing::info!(path = %plugin.path.display(), "plugin installed");
                }
            }
            // They may have been put there by somebody else.
            Err(_) if install::present(bin_dir) => {}
            Err(sentences) => self.notices.set(
                "plugins",
                Err(sentences.join("; ")),
                "Put weft and weft-ipam beside weftd, or run `weftd install --from FOLDER`",
            ),
        }
    }

    /// Writes the conflist once an ADD can succeed: addresses are granted, the data plane is in place, plugins are there.
    pub(super) fn offer(&mut self) {
        if !self.ready || !install::present(&self.conf.cni.bin_dir) {
            return;
        }
        let Some(report) = self.report.as_ref().filter(|report| plane::is_in_place(report)) else { return };
        let conflist =
            Conflist { mode: self.conf.network.mode.unwrap_or(PodMode::Bridge), mtu: report.pod_mtu };
        if self.conflist == Some(conflist) {
            return;
        }
        let written = conflist::write(&self.conf.cni.conf_dir, &conflist);
        if written == Ok(true) {
            tracing::info!(path = %conflist::path(&self.conf.cni.conf_dir).display(), mtu = conflist.mtu, "pods can start");
        }
        if written.is_ok() {
            self.conflist = Some(conflist);
            self.warn_of_earlier();
            self.tell_ready("pods can start");
        }
        self.notices.set(
            "conflist",
            written.map(drop),
            "Make the folder writable; it is tried again each minute",
        );
    }

    pub(super) fn warn_of_earlier(&mut self) {
        let earlier = conflist::earlier(&self.conf.cni.conf_dir);
        let outcome = if earlier.is_empty() {
            Ok(())
        } else {
            let names = earlier.join(", ");
            Err(format!(
                "{} has {names}, which container runtimes take before Weft's",
                self.conf.cni.conf_dir.display()
            ))
        };
        self.notices.set("other-network", outcome, "Remove that file, if Weft is to be the pods' network");
    }

    pub(super) fn tell_ready(&mut self, status: &str) {
        if self.told_ready {
            self.notifier.status(status);
        } else {
            self.told_ready = true;
            self.notifier.ready(status);
        }
    }
}
