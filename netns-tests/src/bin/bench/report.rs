//! What was measured, for people (a table) and for programs (JSON). Both are made from the same rows.

mod rows;
mod table;

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::Outcome;
use crate::burst::{Bursts, WORKERS};
use crate::chains::Spec;
use crate::facts::Facts;
use crate::growth::{Growth, Run};
use crate::options::{Effort, Options};
use crate::sequential::Sequential;
use crate::start::Start;
use crate::subject::{Role, Subject, Work};
use rows::{Figure, Measured, Row, Steps};

/// What a run found.
#[derive(Debug)]
pub struct Report {
    pub facts: Facts,
    quick: bool,
    effort: Effort,
    pub start: Option<Start>,
    comparisons: Vec<Comparison>,
    pub growth: Vec<Growth>,
}

/// Weft and the bare kernel beside one version of the reference plugins.
#[derive(Debug)]
struct Comparison {
    name: &'static str,
    title: &'static str,
    /// Headings of the three columns.
    labels: [Option<String>; 3],
    rows: Vec<Row>,
    steps: Vec<Steps>,
    retaken: usize,
}

impl Report {
    pub fn new(options: &Options, facts: Facts) -> Self {
        Self {
            facts,
            quick: options.quick,
            effort: options.effort,
            start: None,
            comparisons: Vec::new(),
            growth: Vec::new(),
        }
    }

    /// Adds a chain: one comparison for each version of the reference.
    pub fn add_chain(
        &mut self,
        spec: &Spec,
        subjects: &[Subject],
        sequential: Vec<Sequential>,
        bursts: Vec<Bursts>,
    ) {
        let figures: Vec<_> = sequential.into_iter().zip(bursts).collect();
        let of = |role: Role| {
            let all = subjects.iter().zip(&figures).filter(move |(subject, _)| subject.role == role);
            all.map(|(subject, (sequential, bursts))| Measured { subject, sequential, bursts })
        };
        let (weft, floor) = (of(Role::Weft).next(), of(Role::Floor).next());
        let mut references: Vec<Option<Measured<'_>>> = of(Role::Reference).map(Some).collect();
        if references.is_empty() {
            references.push(None);
        }
        for reference in references {
            let columns = [reference, weft, floor];
            self.comparisons.push(Comparison {
                name: spec.name,
                title: spec.title,
                labels: columns.map(|column| column.map(|measured| measured.subject.label.clone())),
                rows: rows::of(columns, &spec.targets),
                steps: columns.into_iter().flatten().filter_map(steps).collect(),
                retaken: weft.map_or(0, |measured| measured.sequential.retaken),
            });
        }
    }

    /// Writes the numbers, making the folder if need be.
    pub fn write_json(&self, path: &Path) -> Outcome<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let text = serde_json::to_string_pretty(&self.json())?;
        fs::write(path, text + "\n").map_err(|error| format!("write {}: {error}", path.display()).into())
    }

    fn json(&self) -> Value {
        let facts: Vec<Value> = self.facts.iter().map(|(name, value)| json!([name, value])).collect();
        json!({
            "format": 1,
            "facts": facts,
            "quick": self.quick,
            "pairs": self.effort.pairs,
            "at_once": WORKERS,
            "start": self.start.as_ref().map(|start| json!({
                "true_ms": Figure::of(&start.true_).json(), "weft_version_ms": Figure::of(&start.version).json(),
            })),
            "comparisons": self.comparisons.iter().map(Comparison::json).collect::<Vec<_>>(),
            "growth": self.growth.iter().map(growth_json).collect::<Vec<_>>(),
        })
    }
}

/// A chain of several plugins: which of them takes how long.
fn steps(measured: Measured<'_>) -> Option<Steps> {
    let Work::Chain(chain) = &measured.subject.work else { return None };
    let kinds: Vec<String> = chain.kinds().map(str::to_owned).collect();
    (kinds.len() > 1).then(|| Steps::of(measured, kinds))
}

impl Comparison {
    fn json(&self) -> Value {
        let [reference, weft, floor] = &self.labels;
        json!({
            "chain": self.name,
            "title": self.title,
            "reference": reference,
            "weft": weft,
            "floor": floor,
            "rows": self.rows.iter().map(Row::json).collect::<Vec<_>>(),
            "plugins": self.steps.iter().map(Steps::json).collect::<Vec<_>>(),
            "addresses_retaken_at_return": self.retaken,
        })
    }
}

fn growth_json(growth: &Growth) -> Value {
    let run = |run: &Run| {
        json!({"add_first_ms": run.add.few, "add_last_ms": run.add.many, "add_ratio": run.add.growth(),
               "del_few_ms": run.del.few, "del_many_ms": run.del.many, "del_ratio": run.del.growth()})
    };
    json!({
        "kind": growth.key,
        "title": growth.title,
        "runs": growth.runs.iter().map(run).collect::<Vec<_>>(),
        "best_run": growth.best_run(),
        "undisturbed": growth.undisturbed(),
        "target": growth.promised.then_some(rows::GROWTH_LIMIT),
    })
}
