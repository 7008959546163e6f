//! Pods that wait for an address: which question of the machine is whose, and when a refusal is not the last word.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;
use weft_cni::error::{Error, code};

use crate::cluster::Refusal;

/// How long a pod's question is kept; the plugin's own limit is 25 s.
const PATIENCE: Duration = Duration::from_secs(18);
/// How often the machine is asked again.
const PAUSE: Duration = Duration::from_millis(500);

/// Where a plugin waits.
pub type Answer = oneshot::Sender<Result<(), Error>>;

#[derive(Debug)]
struct Need {
    answer: Answer,
    since: Instant,
}

/// All that wait.
#[derive(Debug, Default)]
pub struct Needs {
    asked: BTreeMap<u64, Need>,
    /// Refused for a reason that may pass.
    again: Vec<Need>,
    again_at: Option<Instant>,
    last: u64,
}

impl Needs {
    /// Somebody waits; the number of the question to the machine.
    pub fn add(&mut self, answer: Answer, now: Instant) -> u64 {
        self.ask(Need { answer, since: now })
    }

    /// The machine's answer. A refusal whose reason `may_pass` is kept back for a while, and the machine asked again.
    pub fn settle(&mut self, id: u64, result: Result<(), Refusal>, may_pass: bool, now: Instant) {
        let Some(need) = self.asked.remove(&id) else { return };
        if result.is_err() && may_pass && now.duration_since(need.since) < PATIENCE {
            self.again_at.get_or_insert(now + PAUSE);
            self.again.push(need);
            return;
        }
        let error =
            |refusal: Refusal| Error::new(code::TRY_AGAIN, refusal.sentence).with_details(refusal.details);
        // The plugin may have given up.
        let _gone = need.answer.send(result.map_err(error));
    }

    /// When [`Needs::ask_again`] is due.
    pub fn due(&self) -> Option<Instant> {
        self.again_at
    }

    /// The numbers of the questions to ask again, without those whose plugin has gone.
    pub fn ask_again(&mut self) -> Vec<u64> {
        self.again_at = None;
        let again = std::mem::take(&mut self.again);
        again.into_iter().filter(|need| !need.answer.is_closed()).map(|need| self.ask(need)).collect()
    }

    fn ask(&mut self, need: Need) -> u64 {
        self.last += 1;
        self.asked.insert(self.last, need);
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal() -> Result<(), Refusal> {
        Err(Refusal { sentence: "no".to_owned(), details: "wait".to_owned() })
    }

    #[test]
    fn a_refusal_that_may_pass_is_asked_again_until_patience_ends() {
        let (start, mut needs) = (Instant::now(), Needs::default());
        let (answer, mut heard) = oneshot::channel();
        let first = needs.add(answer, start);
        needs.settle(first, refusal(), true, start);
        assert_eq!(needs.due(), Some(start + PAUSE));
        let again = needs.ask_again();
        assert!(again.len() == 1 && again[0] != first && needs.due().is_none());
        assert!(heard.try_recv().is_err(), "nothing was said yet");
        needs.settle(again[0], refusal(), true, start + PATIENCE);
        let error = heard.try_recv().unwrap().unwrap_err();
        assert_eq!((error.code, error.msg.as_str(), error.details.as_str()), (code::TRY_AGAIN, "no", "wait"));
    }

    #[test]
    fn a_refusal_for_good_and_a_grant_are_told_at_once() {
        let (start, mut needs) = (Instant::now(), Needs::default());
        let (answer, mut refused) = oneshot::channel();
        let id = needs.add(answer, start);
        needs.settle(id, refusal(), false, start);
        assert!(refused.try_recv().unwrap().is_err());
        let (answer, mut granted) = oneshot::channel();
        let id = needs.add(answer, start);
        needs.settle(id, Ok(()), true, start);
        assert!(granted.try_recv().unwrap().is_ok());
        needs.settle(id, refusal(), true, start);
        assert_eq!(needs.due(), None, "an answer to nobody is nothing");
    }

    #[test]
    fn who_has_gone_is_not_asked_for() {
        let (start, mut needs) = (Instant::now(), Needs::default());
        let (answer, heard) = oneshot::channel();
        let id = needs.add(answer, start);
        drop(heard);
        needs.settle(id, refusal(), true, start);
        assert_eq!(needs.ask_again(), Vec::<u64>::new());
    }
}
