//! The report as text.

use std::fmt::Write;

use super::rows::{Figure, GROWTH_LIMIT, Row, Steps};
use super::{Comparison, Report};
use crate::burst::WORKERS;
use crate::growth::{Growth, Pair};
use crate::start::Start;

impl Report {
    pub fn table(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.facts {
            line(&mut text, &format!("{name:<13}{value}"));
        }
        let effort = &self.effort;
        line(
            &mut text,
            &format!(
                "{:<13}{} pairs of ADD and DEL in turn; {} rounds of {} pods, {WORKERS} at once{}",
                "run",
                effort.pairs,
                effort.burst_rounds,
                effort.burst_pods,
                if self.quick { " (--quick)" } else { "" },
            ),
        );
        if let Some(start) = &self.start {
            start_lines(&mut text, start);
        }
        for comparison in &self.comparisons {
            comparison.lines(&mut text);
        }
        if !self.growth.is_empty() {
            growth_lines(&mut text, &self.growth);
        }
        text
    }
}

fn line(text: &mut String, words: &str) {
    let _infallible = writeln!(text, "{}", words.trim_end());
}

fn start_lines(text: &mut String, start: &Start) {
    let (true_, version) = (Figure::of(&start.true_), Figure::of(&start.version));
    line(text, &format!("\nstart    median (p99) of {} each, in turn", start.version.count()));
    line(
        text,
        &format!(
            "  /bin/true {} ms    weft VERSION {} ms    {:.2}×   ≤ 1  {}",
            cell(Some(true_)),
            cell(Some(version)),
            version.typical / true_.typical,
            yes_no(Some(version.typical <= true_.typical)),
        ),
    );
}

impl Comparison {
    fn lines(&self, text: &mut String) {
        line(text, &format!("\n{}    {}", self.name, self.title));
        let [reference, weft, floor] =
            self.labels.each_ref().map(|label| label.as_deref().map_or("-".to_owned(), heading));
        line(
            text,
            &format!(
                "  {:<24}{:<4}{reference:>20}{weft:>20}{:>9}{:>8}{:>5} {floor:>20}{:>8}",
                "median (p99)", "", "ratio", "target", "met", "÷ bare"
            ),
        );
        for row in &self.rows {
            self.row(text, row);
        }
        for steps in &self.steps {
            steps_line(text, steps);
        }
        if self.retaken > 0 {
            line(
                text,
                &format!(
                    "  no trace was left at the return of any DEL of weft's; {} addresses taken again at once",
                    self.retaken
                ),
            );
        }
    }

    fn row(&self, text: &mut String, row: &Row) {
        let [reference, weft, floor] = row.figures.map(cell);
        let target = row.target.map_or_else(String::new, |target| target.to_string());
        let above = row.above_floor().map_or_else(String::new, |ratio| format!("{ratio:.2}×"));
        line(
            text,
            &format!(
                "  {:<24}{:<4}{reference:>20}{weft:>20}{:>9}{target:>8}{:>5} {floor:>20}{above:>8}",
                row.label,
                row.unit,
                row.ratio.map_or_else(String::new, ratio_text),
                if row.target.is_some() { yes_no(row.met()) } else { "" },
            ),
        );
    }
}

fn steps_line(text: &mut String, steps: &Steps) {
    let each = |medians: &[f64]| {
        let words: Vec<String> =
            steps.kinds.iter().zip(medians).map(|(kind, median)| format!("{kind} {median:.2}")).collect();
        words.join(" + ")
    };
    line(text, &format!("  {}: ADD {} ms, DEL {} ms", steps.label, each(&steps.add), each(&steps.del)));
}

fn growth_lines(text: &mut String, growth: &[Growth]) {
    line(
        text,
        "\ngrowth    medians in ms: ADD of the first and of the last 100 pods of 1,000, DEL of 50 with few and with \
         all of them",
    );
    let pair = |pair: Pair| format!("{:>8.2} → {:<6.2}{:>6.2}×", pair.few, pair.many, pair.growth());
    for kind in growth {
        line(text, &format!("  {}", kind.title));
        for run in &kind.runs {
            line(text, &format!("      ADD {}      DEL {}", pair(run.add), pair(run.del)));
        }
        let (best_run, undisturbed) = (kind.best_run(), kind.undisturbed());
        let verdict = match kind.promised {
            true => format!("   ≤ {GROWTH_LIMIT}  {}", yes_no(Some(undisturbed <= GROWTH_LIMIT))),
            false => String::new(),
        };
        line(
            text,
            &format!(
                "    ADD grows {undisturbed:.2}× (best first to best last; best run {best_run:.2}×){verdict}"
            ),
        );
    }
}

/// As much of a label as a column holds.
fn heading(label: &str) -> String {
    label.chars().take(18).collect()
}

fn cell(figure: Option<Figure>) -> String {
    match figure {
        None => "-".to_owned(),
        Some(Figure { typical, p99: Some(p99) }) => format!("{typical:.2} ({p99:.2})"),
        Some(Figure { typical, p99: None }) if typical >= 100.0 => format!("{typical:.0}"),
        Some(Figure { typical, p99: None }) => format!("{typical:.1}"),
    }
}

fn ratio_text(ratio: f64) -> String {
    if ratio < 1.0 { format!("{ratio:.3}×") } else { format!("{ratio:.1}×") }
}

fn yes_no(met: Option<bool>) -> &'static str {
    match met {
        Some(true) => "yes",
        Some(false) => "NO",
        None => "-",
    }
}
