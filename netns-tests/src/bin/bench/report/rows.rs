//! The rows of a comparison: three figures, Weft's share of the reference's, and the bound it should keep.

use serde_json::{Value, json};

use crate::burst::{Bursts, Phase};
use crate::chains::Targets;
use crate::samples::Samples;
use crate::sequential::Sequential;
use crate::subject::Subject;

/// Processor time of a pod, against the reference's.
const CPU_LIMIT: f64 = 0.25;
/// The slowest of mixed operations, against the usual ADD of ADDs alone.
const MIXED_LIMIT: f64 = 5.0;
/// ADD on a full node, against ADD on an empty one.
pub const GROWTH_LIMIT: f64 = 1.25;

/// All that is known of one subject.
#[derive(Clone, Copy, Debug)]
pub struct Measured<'a> {
    pub subject: &'a Subject,
    pub sequential: &'a Sequential,
    pub bursts: &'a Bursts,
}

/// One cell.
#[derive(Clone, Copy, Debug)]
pub struct Figure {
    /// A median, or the only number there is.
    pub typical: f64,
    pub p99: Option<f64>,
}

/// A bound for a ratio.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    AtMost(f64),
    AtLeast(f64),
}

#[derive(Debug)]
pub struct Row {
    pub key: &'static str,
    pub label: &'static str,
    pub unit: &'static str,
    /// Reference, Weft, bare kernel.
    pub figures: [Option<Figure>; 3],
    /// Weft's figure against the reference's; in the last row, Weft's own.
    pub ratio: Option<f64>,
    pub target: Option<Target>,
}

/// Medians of the plugins of one chain, in milliseconds.
#[derive(Debug)]
pub struct Steps {
    pub label: String,
    pub kinds: Vec<String>,
    pub add: Vec<f64>,
    pub del: Vec<f64>,
}

type Columns<'a> = [Option<Measured<'a>>; 3];

/// The rows for a reference, Weft and the bare kernel, any of which may be missing.
pub fn of(columns: Columns<'_>, targets: &Targets) -> Vec<Row> {
    let at_most = |limit: Option<f64>| limit.map(Target::AtMost);
    let at_least = |limit: Option<f64>| limit.map(Target::AtLeast);
    let times = |key, label, samples: fn(&Measured<'_>) -> Samples, target| {
        Row::new(key, label, "ms", columns, |measured| Figure::of(&samples(measured)), target)
    };
    let rate = |key, label, rate: fn(&Bursts) -> f64, target| {
        Row::new(key, label, "/s", columns, |measured| Figure::alone(rate(measured.bursts)), target)
    };
    let mixed = |measured: &Measured<'_>| {
        let Bursts { add, mixed, .. } = measured.bursts;
        Figure::alone(mixed.latencies.p99() / add.latencies.median())
    };
    vec![
        times("add_returned", "ADD, returned", |m| m.sequential.add.returned.clone(), at_most(targets.add)),
        times("add_settled", "ADD, all work done", |m| m.sequential.add.settled.clone(), None),
        times("del_returned", "DEL, returned", |m| m.sequential.del.returned.clone(), at_most(targets.del)),
        times("del_settled", "DEL, all work done", |m| m.sequential.del.settled.clone(), None),
        times("cpu", "CPU of ADD + DEL", |m| m.sequential.cpu.clone(), at_most(Some(CPU_LIMIT))),
        rate("add_rate", "16 at once: ADD", |b| b.add.rate_returned(), at_least(targets.add_rate)),
        rate(
            "add_rate_settled",
            "  until all work done",
            |b| b.add.rate_settled(),
            at_least(targets.add_rate),
        ),
        rate("del_rate", "16 at once: DEL", |b| b.del.rate_returned(), at_least(targets.del_rate)),
        rate(
            "del_rate_settled",
            "  until all work done",
            |b| b.del.rate_settled(),
            at_least(targets.del_rate),
        ),
        times("add_at_once", "16 ADDs at once, each", |m| latencies(&m.bursts.add), None),
        times("del_at_once", "16 DELs at once, each", |m| latencies(&m.bursts.del), None),
        times("mixed_at_once", "16 mixed at once, each", |m| latencies(&m.bursts.mixed), None),
        Row::own("mixed_factor", "  p99 ÷ median of ADDs", columns, mixed, Target::AtMost(MIXED_LIMIT)),
    ]
}

fn latencies(phase: &Phase) -> Samples {
    phase.latencies.clone()
}

impl Row {
    fn new(
        key: &'static str,
        label: &'static str,
        unit: &'static str,
        columns: Columns<'_>,
        figure: impl Fn(&Measured<'_>) -> Figure,
        target: Option<Target>,
    ) -> Self {
        let figures = columns.map(|column| column.as_ref().map(&figure));
        let ratio = match figures {
            [Some(reference), Some(weft), _] => Some(weft.typical / reference.typical),
            _ => None,
        };
        Self { key, label, unit, figures, ratio, target }
    }

    /// A row whose figures are ratios themselves.
    fn own(
        key: &'static str,
        label: &'static str,
        columns: Columns<'_>,
        figure: impl Fn(&Measured<'_>) -> Figure,
        target: Target,
    ) -> Self {
        let row = Self::new(key, label, "×", columns, figure, Some(target));
        let [_, weft, _] = row.figures;
        Self { ratio: weft.map(|weft| weft.typical), ..row }
    }

    /// How Weft stands to the bare kernel.
    pub fn above_floor(&self) -> Option<f64> {
        let [_, weft, floor] = self.figures;
        Some(weft?.typical / floor?.typical)
    }

    /// Whether the bound is kept.
    pub fn met(&self) -> Option<bool> {
        Some(self.target?.is_met(self.ratio?))
    }

    pub fn json(&self) -> Value {
        let [reference, weft, floor] = self.figures.map(|figure| figure.as_ref().map(Figure::json));
        json!({
            "key": self.key, "label": self.label.trim(), "unit": self.unit,
            "reference": reference, "weft": weft, "floor": floor, "ratio": self.ratio,
            "target": self.target.map(|target| target.to_string()), "met": self.met(),
        })
    }
}

impl Figure {
    pub fn of(samples: &Samples) -> Self {
        Self { typical: samples.median(), p99: Some(samples.p99()) }
    }

    fn alone(number: f64) -> Self {
        Self { typical: number, p99: None }
    }

    pub fn json(&self) -> Value {
        match self.p99 {
            Some(p99) => json!({"median": self.typical, "p99": p99}),
            None => json!(self.typical),
        }
    }
}

impl Target {
    pub fn is_met(self, ratio: f64) -> bool {
        match self {
            Self::AtMost(limit) => ratio <= limit,
            Self::AtLeast(limit) => ratio >= limit,
        }
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::AtMost(limit) => write!(f, "≤ {limit}"),
            Self::AtLeast(limit) => write!(f, "≥ {limit}"),
        }
    }
}

impl Steps {
    pub fn of(measured: Measured<'_>, kinds: Vec<String>) -> Self {
        let medians = |steps: &[Samples]| steps.iter().map(Samples::median).collect();
        Self {
            label: measured.subject.label.clone(),
            kinds,
            add: medians(&measured.sequential.add.steps),
            del: medians(&measured.sequential.del.steps),
        }
    }

    pub fn json(&self) -> Value {
        json!({"chain_of": self.label, "plugins": self.kinds, "add_ms": self.add, "del_ms": self.del})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_that_is_reached_exactly_is_kept() {
        assert!(Target::AtMost(0.2).is_met(0.2) && !Target::AtMost(0.2).is_met(0.21));
        assert!(Target::AtLeast(5.0).is_met(5.0) && !Target::AtLeast(5.0).is_met(4.9));
    }
}
