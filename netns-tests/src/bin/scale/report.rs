//! What was measured, for people (tables) and for programs (JSON). Both are made from the same rows.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::Outcome;

/// A ratio between sizes up to which something counts as constant: the machine is not quiet.
const CONSTANT: f64 = 1.5;

/// What a run found.
#[derive(Debug, Default)]
pub struct Report {
    pub facts: Vec<(&'static str, String)>,
    pub quick: bool,
    pub tables: Vec<Table>,
}

/// Rows under the same columns.
#[derive(Debug)]
pub struct Table {
    pub name: String,
    pub title: String,
    pub columns: Vec<String>,
    pub rows: Vec<Row>,
}

/// One figure in each column.
#[derive(Debug)]
pub struct Row {
    pub label: String,
    pub unit: &'static str,
    pub values: Vec<Option<f64>>,
    pub goal: Goal,
}

/// What the figures should be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// Nobody said.
    None,
    /// No figure above this.
    AtMost(f64),
    /// The largest and the smallest differ by no more than noise; differences below this floor are noise.
    Constant(f64),
}

impl Goal {
    fn met(self, values: &[f64]) -> Option<bool> {
        let largest = values.iter().copied().reduce(f64::max)?;
        let smallest = values.iter().copied().reduce(f64::min)?;
        match self {
            Self::None => None,
            Self::AtMost(limit) => Some(largest <= limit),
            Self::Constant(floor) => {
                (values.len() > 1).then_some(largest <= smallest * CONSTANT || largest - smallest <= floor)
            }
        }
    }

    fn text(self) -> String {
        match self {
            Self::None => String::new(),
            Self::AtMost(limit) => format!("≤ {limit}"),
            Self::Constant(_) => "constant".to_owned(),
        }
    }
}

impl Table {
    pub fn new(name: &str, title: &str, columns: Vec<String>) -> Self {
        Self { name: name.to_owned(), title: title.to_owned(), columns, rows: Vec::new() }
    }

    /// Adds a figure of the last column to the row of this label, which is made if need be.
    pub fn put(&mut self, column: usize, label: &str, unit: &'static str, value: f64, goal: Goal) {
        let width = self.columns.len();
        let at = self.rows.iter().position(|row| row.label == label).unwrap_or_else(|| {
            self.rows.push(Row { label: label.to_owned(), unit, values: vec![None; width], goal });
            self.rows.len() - 1
        });
        if let Some(cell) = self.rows.get_mut(at).and_then(|row| row.values.get_mut(column)) {
            *cell = Some(value);
        }
    }

    fn lines(&self, text: &mut String) {
        line(text, &format!("\n{}    {}", self.name, self.title));
        let heads: String = self.columns.iter().map(|column| format!("{column:>12}")).collect();
        line(text, &format!("  {:<42}{:<5}{heads}{:>11}{:>5}", "", "", "target", "met"));
        for row in &self.rows {
            let cells: String = row
                .values
                .iter()
                .map(|value| format!("{:>12}", value.map_or("-".to_owned(), cell)))
                .collect();
            let met = row.met().map_or("", |met| if met { "yes" } else { "NO" });
            line(text, &format!("  {:<42}{:<5}{cells}{:>11}{met:>5}", row.label, row.unit, row.goal.text()));
        }
    }

    fn json(&self) -> Value {
        let row = |row: &Row| json!({"label": row.label, "unit": row.unit, "values": row.values, "target": row.goal.text(), "met": row.met()});
        json!({"name": self.name, "title": self.title, "columns": self.columns,
               "rows": self.rows.iter().map(row).collect::<Vec<_>>()})
    }
}

impl Row {
    fn met(&self) -> Option<bool> {
        let values: Vec<f64> = self.values.iter().flatten().copied().collect();
        self.goal.met(&values)
    }
}

impl Report {
    pub fn text(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.facts {
            line(&mut text, &format!("{name:<13}{value}"));
        }
        self.tables.iter().for_each(|table| table.lines(&mut text));
        text
    }

    /// Writes the numbers, making the folder if need be.
    pub fn write_json(&self, path: &Path) -> Outcome<()> {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        let facts: Vec<Value> = self.facts.iter().map(|(name, value)| json!([name, value])).collect();
        let tables: Vec<Value> = self.tables.iter().map(Table::json).collect();
        let all = json!({"format": 1, "facts": facts, "quick": self.quick, "tables": tables});
        let text = serde_json::to_string_pretty(&all)?;
        fs::write(path, text + "\n").map_err(|error| format!("write {}: {error}", path.display()).into())
    }
}

fn line(text: &mut String, words: &str) {
    let _infallible = writeln!(text, "{}", words.trim_end());
}

fn cell(value: f64) -> String {
    if value >= 1000.0 {
        return format!("{value:.0}");
    }
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_judged_over_all_columns() {
        assert_eq!(Goal::AtMost(60.0).met(&[5.0, 61.0]), Some(false));
        assert_eq!(Goal::Constant(0.0).met(&[2.0, 2.9]), Some(true));
        assert_eq!(Goal::Constant(0.0).met(&[2.0, 9.0]), Some(false));
        assert_eq!(Goal::Constant(10.0).met(&[2.0, 9.0]), Some(true), "below what can be measured");
        assert_eq!(Goal::Constant(0.0).met(&[2.0]), None, "one figure shows no growth");
        assert_eq!(Goal::AtMost(1.0).met(&[]), None);
    }

    #[test]
    fn a_column_that_was_not_measured_is_shown_as_such() {
        let mut table = Table::new("t", "", vec!["10".to_owned(), "100".to_owned()]);
        table.put(1, "x", "ms", 3.25, Goal::None);
        let mut text = String::new();
        table.lines(&mut text);
        assert!(text.contains("-        3.25"), "{text}");
    }
}
