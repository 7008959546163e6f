//! Who this node is: an instance id, bound to the machine's id and the node's name, never to its address. Pure.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use weft_netlink::link::Mac;

use super::finding::{Code, Finding};
use super::record::{FORMAT, parse, to_value};
use super::{Refusal, StartFacts};

/// What is written under `/var/lib/weft`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct IdentityFile {
    format: u32,
    instance: String,
    machine_id: String,
    node: String,
}

/// This start of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Outlives restarts, boots and new addresses; not a wiped disk.
    pub instance: String,
    /// New with each start.
    pub session: String,
    /// The files must be written.
    pub write: bool,
    /// Something that a person should know.
    pub finding: Option<Finding>,
}

impl Identity {
    /// For `/var/lib/weft`.
    pub fn file(&self, machine_id: &str, node: &str) -> Vec<u8> {
        let (machine_id, node) = (machine_id.to_owned(), node.to_owned());
        to_value(&IdentityFile { format: FORMAT, instance: self.instance.clone(), machine_id, node })
    }
}

/// Who this node is.
///
/// # Errors
/// When pods run that were started under another identity: a new one would give their addresses away.
pub fn decide(facts: &StartFacts) -> Result<Identity, Refusal> {
    let session = random_id(&facts.seed, "session");
    let known =
        |instance: String, write: bool| Identity { instance, session: session.clone(), write, finding: None };
    let file =
        facts.identity_file.as_deref().map(|bytes| parse::<IdentityFile>("identity", "identity", bytes));
    let problem = match file {
        Some(Ok(file)) if file.machine_id == facts.machine_id && file.node == *facts.node => {
            let write = facts.run_identity.as_ref() != Some(&file.instance);
            return Ok(known(file.instance, write));
        }
        Some(Ok(file)) if file.machine_id != facts.machine_id => Some(
            "the identity in the data folder belongs to another machine, as after copying a disk".to_owned(),
        ),
        Some(Ok(file)) => Some(format!(
            "the identity in the data folder is that of node {}, not of {}",
            file.node, facts.node
        )),
        Some(Err(error)) => Some(format!("the identity in the data folder cannot be read: {error}")),
        None => None,
    };
    // What was noted in this very boot proves itself: the pods that run were started under it.
    let foreign = problem.is_some() && !unreadable(facts);
    if let Some(instance) = facts.run_identity.clone().filter(|_| !foreign) {
        return Ok(Identity { finding: problem.map(finding), ..known(instance, true) });
    }
    if facts.local.iter().any(|block| block.used > 0) {
        let problem = problem.unwrap_or_else(|| "the identity in the data folder is missing".to_owned());
        return Err(refuse(&problem));
    }
    Ok(Identity { finding: problem.map(finding), ..known(random_id(&facts.seed, "instance"), true) })
}

/// The instance that this machine has by what is left of its files; `None` if these do not say.
pub fn known_instance(
    node: &str,
    machine_id: &str,
    identity_file: Option<&[u8]>,
    run_identity: Option<String>,
) -> Option<String> {
    match identity_file.map(|bytes| parse::<IdentityFile>("identity", "identity", bytes)) {
        Some(Ok(file)) => (file.machine_id == machine_id && file.node == node).then_some(file.instance),
        Some(Err(_)) | None => run_identity,
    }
}

fn unreadable(facts: &StartFacts) -> bool {
    let file = facts.identity_file.as_deref();
    file.is_some_and(|bytes| parse::<IdentityFile>("identity", "identity", bytes).is_err())
}

fn finding(problem: String) -> Finding {
    Finding {
        code: Code::Identity,
        subject: String::new(),
        sentence: problem,
        way_out:
            "Nothing to do: this node took an identity of its own. Blocks of the old one come back after \
                  reissue_after, or at once with `weftd node rm --destroyed`"
                .to_owned(),
    }
}

fn refuse(problem: &str) -> Refusal {
    Refusal {
        sentence: "weftd does not start while pods run that were started under another identity".to_owned(),
        details: format!("{problem}. Put the old file back, or drain the node and restart it"),
    }
}

/// 128 bits for one purpose from the seed of this start.
pub fn random_id(seed: &[u8; 32], purpose: &str) -> String {
    let mut digest = Sha256::new();
    digest.update(seed);
    digest.update(purpose.as_bytes());
    digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// The MAC of a node's VXLAN device: from its instance, so that it stays the same and needs no agreement.
pub fn vtep_mac(instance: &str) -> Mac {
    let digest = Sha256::digest(format!("vtep {instance}").as_bytes());
    let mut octets = [0; 6];
    for (octet, byte) in octets.iter_mut().zip(&digest) {
        *octet = *byte;
    }
    octets[0] = octets[0] & 0xfc | 0x02;
    Mac(octets)
}
