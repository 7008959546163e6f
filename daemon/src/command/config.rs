//! `weftd config init|get|set`: the cluster's configuration, created once and changed by compare-and-write.

use super::{Failure, Verdict, block_on, print, store};
use crate::cli::Output;
use crate::cluster::{Network, Problem, change, create};
use crate::conf::load::{Given, load};
use crate::conf::{Conf, read_changes};
use crate::store::{CONFIG, Compare, Expect, Txn, Write};

/// How often a change is tried again that somebody else's came before.
const ATTEMPTS: u32 = 5;

/// Creates it; refused if there is one.
pub fn init(given: &Given) -> Result<Verdict, Failure> {
    let conf = load(given, true)?;
    let Some(asked) = conf.asked().filter(|asked| asked.cidrs.is_some()) else {
        return Err(Failure::refused(
            "network.cidrs: is missing: the pods' networks, as in --network-cidrs 10.244.0.0/16",
        ));
    };
    let network = create(&asked).map_err(|problems| all(&problems))?;
    let created = block_on(async {
        let store = store::open(&conf)?;
        store::commit(store.as_ref(), write(&network, Expect::Absent)?).await
    })?;
    if created {
        print(&format!("created the cluster's configuration\n{}", table(&network)))?;
        return Ok(Verdict::Fine);
    }
    Err(Failure::refused(
        "the cluster has a configuration already: see `weftd config get`, change it by `weftd config set`",
    ))
}

/// Shows it.
pub fn get(given: &Given, output: Output) -> Result<Verdict, Failure> {
    let conf = load(given, false)?;
    let network = block_on(current(&conf))?;
    match output {
        Output::Table => print(&table(&network))?,
        Output::Json => print(&format!("{:#}\n", serde_json::to_value(&network).unwrap_or_default()))?,
    }
    Ok(Verdict::Fine)
}

/// Changes it.
pub fn set(given: &Given, changes: &[String]) -> Result<Verdict, Failure> {
    let conf = load(given, false)?;
    let asked = read_changes(changes)?;
    if let Some(cidrs) = &asked.cidrs {
        let clashes = crate::conf::overlaps(
            cidrs,
            &crate::conf::load::host_networks().map_err(Failure::could_not_tell)?,
        );
        if !clashes.is_empty() {
            return Err(clashes.into());
        }
    }
    block_on(async {
        let store = store::open(&conf)?;
        for _ in 0..ATTEMPTS {
            let (network, revision) = store::network(store.as_ref()).await?.ok_or_else(none)?;
            let changed = change(&network, &asked).map_err(|problems| all(&problems))?;
            if changed == network {
                return print("nothing to change: it is so already\n").map(|()| Verdict::Fine);
            }
            if store::commit(store.as_ref(), write(&changed, Expect::ModRevision(revision))?).await? {
                return print(&table(&changed)).map(|()| Verdict::Fine);
            }
        }
        Err(Failure::could_not_tell(
            "others change the configuration at the same time; see `weftd config get`, then try again",
        ))
    })
}

async fn current(conf: &Conf) -> Result<Network, Failure> {
    let store = store::open(conf)?;
    Ok(store::network(store.as_ref()).await?.ok_or_else(none)?.0)
}

fn none() -> Failure {
    Failure::refused(
        "the cluster has no configuration yet: create it by `weftd config init`, or `weftd run --init`",
    )
}

fn all(problems: &[Problem]) -> Failure {
    Failure::all(Verdict::FoundSomething, problems.iter().map(ToString::to_string).collect())
}

fn write(network: &Network, expect: Expect) -> Result<Txn, Failure> {
    let value = serde_json::to_vec(network).map_err(|error| Failure::could_not_tell(error.to_string()))?;
    Ok(Txn {
        compares: vec![Compare { key: CONFIG.to_owned(), expect }],
        writes: vec![Write::Put { key: CONFIG.to_owned(), value, lease: None }],
        on_conflict_read: Vec::new(),
    })
}

/// `key = value`, as in weftd.toml.
fn table(network: &Network) -> String {
    let mut lines = Vec::new();
    let value = serde_json::to_value(network).unwrap_or_default();
    for (key, value) in value.as_object().into_iter().flatten() {
        match (key.as_str(), value) {
            ("format", _) => {}
            ("backend", serde_json::Value::Object(backend)) => {
                for (part, value) in backend {
                    let name = if part == "kind" { "backend" } else { part };
                    lines.push(format!("{name} = {value}\n"));
                }
            }
            _ => lines.push(format!("{key} = {value}\n")),
        }
    }
    lines.concat()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Asked;

    #[test]
    fn the_table_has_a_line_for_each_key() {
        let asked =
            Asked { cidrs: Some(vec!["10.1.0.0/16".parse().unwrap()]), vni: Some(7), ..Asked::default() };
        let text = table(&create(&asked).unwrap());
        for line in [
            "cidrs = [\"10.1.0.0/16\"]",
            "backend = \"vxlan\"",
            "vni = 7",
            "block_size_v4 = 26",
            "masquerade = true",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
        assert!(!text.contains("format"), "{text}");
    }
}
