//! Those who wait for a block: the plugin found nothing free.

use super::{Link, Machine, Phase};
use crate::cluster::finding::Code;
use crate::cluster::{Output, Refusal};

impl Machine {
    /// Answers those who wait for a block, as far as there is an answer.
    pub(super) fn answer_needs(&mut self) {
        if self.needs.is_empty() {
            return;
        }
        let families: Vec<bool> =
            self.network.iter().flat_map(|network| network.families().collect::<Vec<_>>()).collect();
        if !families.is_empty() && families.iter().all(|ipv4| self.stock(*ipv4).free) {
            for id in std::mem::take(&mut self.needs) {
                self.out.push_back(Output::NeedAnswer { id, result: Ok(()) });
            }
            return;
        }
        if let Some(reason) = self.hopeless() {
            self.refuse_needs(&reason);
        }
    }

    /// Why no block can come soon, if so.
    fn hopeless(&self) -> Option<String> {
        let said =
            |code: Code| self.findings.get(&(code, String::new())).map(|finding| finding.sentence.clone());
        let reason = match &self.phase {
            Phase::Removed => said(Code::Removed),
            Phase::Superseded | Phase::Waiting { .. } => said(Code::Clone),
            Phase::Starting | Phase::Member => None,
        };
        let reason = reason.or_else(|| match &self.link {
            Link::Down { reason, refused: false } => Some(format!("the store cannot be reached: {reason}")),
            Link::Down { reason, refused: true } => Some(format!("the store refuses this node: {reason}")),
            Link::Up => None,
        });
        let full = self.claims.full_until.is_some_and(|until| self.now.boot < until);
        reason
            .or_else(|| said(Code::StoreRefuses))
            .or_else(|| said(Code::StoreFull))
            .or_else(|| full.then(|| said(Code::ClusterFull)).flatten())
            .or_else(|| {
                let left = self.pause_left()?.as_secs();
                Some(format!("the store was restored from a backup; blocks can be claimed again in {left} s"))
            })
    }

    pub(super) fn refuse_needs(&mut self, details: &str) {
        for id in std::mem::take(&mut self.needs) {
            let sentence =
                format!("no address is free on node {} and no further block can be had", self.facts.node);
            let refusal = Refusal { sentence, details: details.to_owned() };
            self.out.push_back(Output::NeedAnswer { id, result: Err(refusal) });
        }
    }
}
