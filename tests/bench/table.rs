//! The table of figures: a row a figure, a column a Controller.

use std::path::Path;
use std::{fs, thread};

use serde_json::{Value, json};

/// Rows in the order in which they were measured first.
pub(crate) struct Table {
    machine: String,
    rows: Vec<Row>,
    columns: usize,
    /// Which Controller is measured now: 0 is this one, 1 the peer.
    pub(crate) column: usize,
}

/// A figure.
pub(crate) struct Row {
    figure: String,
    values: Vec<Option<f64>>,
    unit: &'static str,
    limit: Option<f64>,
    /// How the figure of a later run is compared with this one; None: it depends on the machine or its load.
    check: Option<Check>,
}

/// What a later run may differ by.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Check {
    /// Nothing.
    Same,
    /// So much, up or down.
    About(f64),
    /// It may be less, or so many times as much.
    Ratio(f64),
}

impl Row {
    /// It should not be above this.
    pub(crate) fn limit(&mut self, limit: f64) -> &mut Row {
        self.limit = Some(limit);
        self
    }

    /// A limit where the condition holds, such as a number of microphones.
    pub(crate) fn limit_if(&mut self, holds: bool, limit: f64) -> &mut Row {
        self.limit = holds.then_some(limit);
        self
    }

    /// How `make bench-check` compares it.
    pub(crate) fn check(&mut self, check: Check) -> &mut Row {
        self.check = Some(check);
        self
    }

    fn json(&self) -> Value {
        let peer = self.values.get(1).copied().flatten();
        json!({"figure": self.figure, "value": self.values[0], "peer": peer, "limit": self.limit, "unit": self.unit})
    }
}

impl Table {
    pub(crate) fn new(columns: usize) -> Table {
        let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("").trim_start_matches(['\t', ' ', ':']);
        let cores = thread::available_parallelism().map_or(0, Into::into);
        Table { machine: format!("{}, {cores} cores {model}", name.trim()), rows: Vec::new(), columns, column: 0 }
    }

    /// Adds a figure of the Controller that is measured now.
    pub(crate) fn add(&mut self, figure: impl Into<String>, value: f64, unit: &'static str) -> &mut Row {
        let figure = figure.into();
        eprintln!("{}{figure}: {value:.3} {unit}", if self.column == 0 { "" } else { "peer: " });
        // Sub-rows carry the same name again and again, so a peer's value goes to the first row that has none.
        let free = |row: &Row| self.column > 0 && row.figure == figure && row.values[self.column].is_none();
        let place = self.rows.iter().position(free).unwrap_or_else(|| {
            self.rows.push(Row { figure, values: vec![None; self.columns], unit, limit: None, check: None });
            self.rows.len() - 1
        });
        self.rows[place].values[self.column] = Some(value);
        &mut self.rows[place]
    }

    /// Prints it for people.
    pub(crate) fn print(&self) {
        println!("\n{}\n", self.machine);
        let text = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.3}"));
        let heads: String = ["here", "peer"][..self.columns].iter().map(|head| format!(" {head:>10}")).collect();
        println!("{:<72}{heads} {:>9}", "figure", "limit");
        for row in &self.rows {
            let values: String = row.values.iter().map(|value| format!(" {:>10}", text(*value))).collect();
            println!("{:<72}{values} {:>9} {}", row.figure, text(row.limit), row.unit);
        }
    }

    /// As JSON, a figure a line, so that changes can be read in a review.
    pub(crate) fn json(&self) -> String {
        to_json(&self.machine, &self.rows.iter().map(Row::json).collect::<Vec<_>>())
    }

    /// Writes it to a file. Figures of an earlier run on the same machine stay if this run has not measured them.
    pub(crate) fn save(&self, path: &Path) {
        let earlier = read(path).filter(|file| file["machine"] == self.machine.as_str());
        let mut figures: Vec<Value> = earlier.and_then(|file| file["figures"].as_array().cloned()).unwrap_or_default();
        let mut used = vec![false; figures.len()];
        for row in self.rows.iter().map(Row::json) {
            let same = |(place, old): &(usize, &Value)| !used[*place] && old["figure"] == row["figure"];
            match figures.iter().enumerate().take(used.len()).find(same).map(|(place, _)| place) {
                Some(place) => {
                    used[place] = true;
                    let peer = if row["peer"].is_null() { figures[place]["peer"].clone() } else { row["peer"].clone() };
                    figures[place] = row;
                    figures[place]["peer"] = peer;
                }
                None => figures.push(row),
            }
        }
        fs::write(path, to_json(&self.machine, &figures)).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    }

    /// Compares counts and ratios with those of a reference run, and prints each; whether none got worse.
    pub(crate) fn compare(&self, path: &Path) -> bool {
        let file = read(path).unwrap_or_else(|| panic!("{}: no figures of a reference run", path.display()));
        println!(
            "\ncompared with {}, {}\n\n{:<72} {:>10} {:>10}",
            path.display(),
            file["machine"].as_str().unwrap_or_default(),
            "figure",
            "reference",
            "now"
        );
        let mut is_well = true;
        for row in &self.rows {
            let (Some(check), Some(now)) = (row.check, row.values[0]) else { continue };
            let reference = file["figures"].as_array().into_iter().flatten().find(|old| old["figure"] == row.figure.as_str());
            let Some(reference) = reference.and_then(|old| old["value"].as_f64()) else {
                is_well = false;
                println!("{:<72} {:>10} {now:>10.3} MISSING in the reference", row.figure, "");
                continue;
            };
            let fault = check.fault(reference, now);
            is_well &= fault.is_none();
            println!("{:<72} {reference:>10.3} {now:>10.3} {}", row.figure, fault.unwrap_or_default());
        }
        is_well
    }
}

impl Check {
    /// Why this value is not accepted.
    fn fault(self, reference: f64, now: f64) -> Option<String> {
        match self {
            // As the table shows them.
            Check::Same => (format!("{now:.3}") != format!("{reference:.3}")).then(|| "DIFFERS: must be the same".to_owned()),
            Check::About(by) => ((now - reference).abs() > by).then(|| format!("DIFFERS by more than {by}")),
            Check::Ratio(times) => (now > reference * times).then(|| format!("WORSE: more than {times} times as much")),
        }
    }
}

fn read(path: &Path) -> Option<Value> {
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}

fn to_json(machine: &str, figures: &[Value]) -> String {
    let lines: Vec<String> = figures.iter().map(|figure| format!("  {figure}")).collect();
    format!("{{\"machine\": {}, \"figures\": [\n{}\n]}}\n", json!(machine), lines.join(",\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_compared_exactly_and_ratios_with_a_tolerance() {
        let is_accepted = |check: Check, now: f64| check.fault(20.0, now).is_none();
        assert!(is_accepted(Check::Same, 20.0001) && !is_accepted(Check::Same, 19.0) && !is_accepted(Check::Same, 20.001));
        assert!(is_accepted(Check::About(2.0), 22.0) && is_accepted(Check::About(2.0), 18.0) && !is_accepted(Check::About(2.0), 22.5));
        assert!(is_accepted(Check::Ratio(1.1), 22.0) && is_accepted(Check::Ratio(1.1), 1.0) && !is_accepted(Check::Ratio(1.1), 22.1));
    }

    #[test]
    fn a_run_of_some_sections_keeps_the_other_figures_of_the_file_and_the_peers() {
        let path = std::env::temp_dir().join(format!("sv-bench-{}.json", std::process::id()));
        let mut table = Table::new(2);
        table.add("one", 1.0, "ms").limit(5.0);
        table.add("two", 2.0, "").check(Check::Same);
        table.column = 1;
        table.add("two", 22.0, "");
        table.save(&path);
        let mut again = Table::new(1);
        again.add("two", 3.0, "").check(Check::Same);
        again.add("three", 3.5, "");
        assert!(!again.compare(&path));
        again.save(&path);
        assert!(again.compare(&path));
        let file = read(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let row = |figure: &str, value: f64, peer: Value, limit: Value, unit: &str| json!({"figure": figure, "value": value, "peer": peer, "limit": limit, "unit": unit});
        let none = || Value::Null;
        let expected =
            [row("one", 1.0, none(), json!(5.0), "ms"), row("two", 3.0, json!(22.0), none(), ""), row("three", 3.5, none(), none(), "")];
        assert_eq!(file["figures"], json!(expected));
    }
}
