//! The table of figures: a row a figure, a column a Controller.

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

struct Row {
    figure: String,
    values: Vec<Option<f64>>,
    unit: &'static str,
    limit: Option<f64>,
}

impl Table {
    pub(crate) fn new(columns: usize) -> Table {
        let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("").trim_start_matches(['\t', ' ', ':']);
        let cores = thread::available_parallelism().map_or(0, Into::into);
        Table { machine: format!("{}, {cores} cores {model}", name.trim()), rows: Vec::new(), columns, column: 0 }
    }

    pub(crate) fn add(&mut self, figure: impl Into<String>, value: f64, unit: &'static str) {
        self.put(figure.into(), value, unit, None);
    }

    /// A figure that should not be above `limit`.
    pub(crate) fn add_limited(&mut self, figure: impl Into<String>, value: f64, unit: &'static str, limit: f64) {
        self.put(figure.into(), value, unit, Some(limit));
    }

    fn put(&mut self, figure: String, value: f64, unit: &'static str, limit: Option<f64>) {
        eprintln!("{}{figure}: {value:.3} {unit}", if self.column == 0 { "" } else { "peer: " });
        // Sub-rows carry the same name again and again, so a peer's value goes to the first row that has none.
        let free = self.rows.iter_mut().find(|row| self.column > 0 && row.figure == figure && row.values[self.column].is_none());
        match free {
            Some(row) => row.values[self.column] = Some(value),
            None => {
                let mut values = vec![None; self.columns];
                values[self.column] = Some(value);
                self.rows.push(Row { figure, values, unit, limit });
            }
        }
    }

    pub(crate) fn print(&self, as_json: bool) {
        if as_json {
            let row = |row: &Row| {
                let peer = row.values.get(1);
                json!({"figure": row.figure, "value": row.values[0], "peer": peer, "limit": row.limit, "unit": row.unit})
            };
            println!("{}", json!({"machine": self.machine, "figures": self.rows.iter().map(row).collect::<Vec<Value>>()}));
            return;
        }
        println!("\n{}\n", self.machine);
        let text = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.3}"));
        let heads: String = ["here", "peer"][..self.columns].iter().map(|head| format!(" {head:>10}")).collect();
        println!("{:<66}{heads} {:>9}", "figure", "limit");
        for row in &self.rows {
            let values: String = row.values.iter().map(|value| format!(" {:>10}", text(*value))).collect();
            println!("{:<66}{values} {:>9} {}", row.figure, text(row.limit), row.unit);
        }
    }
}
