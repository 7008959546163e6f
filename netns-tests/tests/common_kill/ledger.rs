//! Who held which address when, and the proof that nobody else held it then.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Instant;

use serde_json::Value;

/// From the answer of an ADD to the start of the operation that ends it.
#[derive(Clone, Debug)]
struct Holding {
    pod: String,
    from: Instant,
    until: Option<Instant>,
}

/// Every holding of a test, by address.
#[derive(Debug, Default)]
pub struct Ledger {
    book: Mutex<BTreeMap<String, Vec<Holding>>>,
}

impl Ledger {
    /// An ADD has answered.
    pub fn begins(&self, pod: &str, result: &Value) {
        let from = Instant::now();
        for address in addresses(result) {
            let holding = Holding { pod: pod.to_owned(), from, until: None };
            self.book.lock().unwrap().entry(address).or_default().push(holding);
        }
    }

    /// A DEL, or whatever else may end the attachment, is about to start.
    pub fn ends(&self, pod: &str) {
        let now = Instant::now();
        for holding in self.book.lock().unwrap().values_mut().flatten() {
            if holding.pod == pod && holding.until.is_none() {
                holding.until = Some(now);
            }
        }
    }

    /// How many times an address was held.
    pub fn len(&self) -> usize {
        self.book.lock().unwrap().values().map(Vec::len).sum()
    }

    /// Every two holdings of one address that overlap.
    pub fn overlaps(&self) -> Vec<String> {
        let mut found = Vec::new();
        for (address, holdings) in &*self.book.lock().unwrap() {
            let mut holdings = holdings.clone();
            holdings.sort_by_key(|holding| holding.from);
            for pair in holdings.windows(2) {
                if pair[0].until.is_none_or(|until| until > pair[1].from) {
                    found.push(format!("{address}: {:?} and {:?}", pair[0], pair[1]));
                }
            }
        }
        found
    }
}

/// The addresses of a result, without prefix length.
pub fn addresses(result: &Value) -> Vec<String> {
    let ips = result["ips"].as_array().unwrap();
    ips.iter().map(|ip| ip["address"].as_str().unwrap().split('/').next().unwrap().to_owned()).collect()
}

#[test]
fn the_checker_finds_an_overlap_and_nothing_else() {
    let ledger = Ledger::default();
    let result = serde_json::json!({"ips": [{"address": "10.0.0.1/24"}]});
    ledger.begins("a", &result);
    ledger.ends("a");
    ledger.begins("b", &result);
    assert!(ledger.overlaps().is_empty());
    ledger.begins("c", &result);
    ledger.ends("b");
    assert_eq!(ledger.overlaps().len(), 1);
}
