//! Writes metrics as OpenMetrics, or as the older text format of Prometheus for clients that do not ask for OpenMetrics.
//!
//! The two differ in names of families, units and the end. A value that is unknown or not finite has no sample.

use std::fmt::Write;
use std::time::Duration;

/// The formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// The text format 0.0.4 of Prometheus.
    Prometheus,
}

/// What the samples of a family mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A value of this moment.
    Gauge,
    /// A number that grows until the program ends.
    Counter,
    /// Labels that describe something.
    Info,
    /// [`Durations`].
    Histogram,
}

impl Kind {
    fn suffix(self) -> &'static str {
        match self {
            Self::Counter => "_total",
            Self::Info => "_info",
            Self::Gauge | Self::Histogram => "",
        }
    }

    fn as_str(self, format: Format) -> &'static str {
        match self {
            Self::Info if format == Format::OpenMetrics => "info",
            Self::Gauge | Self::Info => "gauge",
            Self::Counter => "counter",
            Self::Histogram => "histogram",
        }
    }
}

/// Upper bounds of durations in seconds, as labels.
const BOUNDS: [(f64, &str); 9] =
    [(0.1, "0.1"), (0.25, "0.25"), (0.5, "0.5"), (1.0, "1.0"), (2.5, "2.5"), (5.0, "5.0"), (10.0, "10.0"), (30.0, "30.0"), (60.0, "60.0")];

/// How often durations were up to each bound.
#[derive(Clone, Debug, Default)]
pub struct Durations {
    buckets: [u64; BOUNDS.len()],
    count: u64,
    sum: Duration,
}

impl Durations {
    /// Counts one.
    pub fn add(&mut self, duration: Duration) {
        let buckets = self.buckets.iter_mut().zip(BOUNDS).filter(|(_, (bound, _))| duration.as_secs_f64() <= *bound);
        buckets.for_each(|(bucket, _)| *bucket += 1);
        self.count += 1;
        self.sum += duration;
    }
}

/// Name and value of each label.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// A text that grows.
#[derive(Debug)]
pub struct Writer {
    text: String,
    format: Format,
    /// The family of the next samples.
    family: &'static str,
    suffix: &'static str,
}

/// The units that end the name of a family.
const UNITS: [&str; 5] = ["seconds", "bytes", "ratio", "hertz", "celsius"];

impl Writer {
    /// Without metrics.
    #[must_use]
    pub fn new(format: Format) -> Self {
        Self { text: String::with_capacity(16 << 10), format, family: "", suffix: "" }
    }

    /// Begins a family: its name without the suffix of its kind, and what it means.
    pub fn family(&mut self, kind: Kind, name: &'static str, help: &str) {
        (self.family, self.suffix) = (name, kind.suffix());
        let full = if self.format == Format::OpenMetrics { "" } else { self.suffix };
        self.push(&["# TYPE ", name, full, " ", kind.as_str(self.format), "\n"]);
        let unit = name.rsplit('_').next().filter(|unit| UNITS.contains(unit) && !name.contains("_per_"));
        if let Some(unit) = unit.filter(|_| self.format == Format::OpenMetrics) {
            self.push(&["# UNIT ", name, " ", unit, "\n"]);
        }
        self.push(&["# HELP ", name, full, " ", help, "\n"]);
    }

    /// Adds a sample of the family, unless its value is unknown.
    pub fn sample(&mut self, labels: Labels<'_>, value: impl Into<Option<f64>>) {
        self.line(self.suffix, labels, value.into());
    }

    /// Adds the samples of a histogram.
    pub fn durations(&mut self, label: (&str, &str), durations: &Durations) {
        let buckets = durations.buckets.iter().zip(BOUNDS.iter().map(|(_, text)| *text)).chain([(&durations.count, "+Inf")]);
        for (count, bound) in buckets {
            self.line("_bucket", &[label, ("le", bound)], Some(*count as f64));
        }
        self.line("_count", &[label], Some(durations.count as f64));
        self.line("_sum", &[label], Some(durations.sum.as_secs_f64()));
    }

    fn line(&mut self, suffix: &str, labels: Labels<'_>, value: Option<f64>) {
        let Some(value) = value.filter(|value| value.is_finite()) else { return };
        self.push(&[self.family, suffix]);
        for (index, (name, value)) in labels.iter().enumerate() {
            self.push(&[if index == 0 { "{" } else { "," }, name, "=\""]);
            for c in value.chars() {
                match c {
                    '\\' => self.text.push_str("\\\\"),
                    '"' => self.text.push_str("\\\""),
                    '\n' => self.text.push_str("\\n"),
                    c => self.text.push(c),
                }
            }
            self.text.push('"');
        }
        self.text.push_str(if labels.is_empty() { " " } else { "} " });
        // Writing to a text does not fail.
        let _ = write!(self.text, "{value:.6}");
        let end = self.text.trim_end_matches('0').trim_end_matches('.').len();
        self.text.truncate(end);
        self.text.push('\n');
    }

    fn push(&mut self, parts: &[&str]) {
        parts.iter().for_each(|part| self.text.push_str(part));
    }

    /// The whole text.
    #[must_use]
    pub fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(format: Format) -> String {
        let mut writer = Writer::new(format);
        writer.family(Kind::Info, "x_build", "The program.");
        writer.sample(&[("version", "1")], 1.0);
        writer.family(Kind::Counter, "x_lost_seconds", "Seconds.");
        writer.sample(&[("device", "a\"b\\c\nd"), ("cause", "ä")], 2.5);
        writer.sample(&[], None);
        writer.sample(&[], f64::NAN);
        writer.family(Kind::Gauge, "x_bytes_per_seconds", "Rate.");
        writer.sample(&[], 120.0);
        writer.sample(&[], 1e15);
        writer.sample(&[], -0.000_001_4);
        writer.finish()
    }

    #[test]
    fn both_formats_are_as_specified() {
        let samples = [
            "x_build_info{version=\"1\"} 1\n",
            "x_lost_seconds_total{device=\"a\\\"b\\\\c\\nd\",cause=\"ä\"} 2.5\n",
            "x_bytes_per_seconds 120\nx_bytes_per_seconds 1000000000000000\nx_bytes_per_seconds -0.000001\n",
        ];
        let expected = format!(
            "# TYPE x_build info\n# HELP x_build The program.\n{}# TYPE x_lost_seconds counter\n# UNIT x_lost_seconds seconds\n# HELP \
             x_lost_seconds Seconds.\n{}# TYPE x_bytes_per_seconds gauge\n# HELP x_bytes_per_seconds Rate.\n{}# EOF\n",
            samples[0], samples[1], samples[2]
        );
        assert_eq!(written(Format::OpenMetrics), expected);
        let expected = format!(
            "# TYPE x_build_info gauge\n# HELP x_build_info The program.\n{}# TYPE x_lost_seconds_total counter\n# HELP \
             x_lost_seconds_total Seconds.\n{}# TYPE x_bytes_per_seconds gauge\n# HELP x_bytes_per_seconds Rate.\n{}",
            samples[0], samples[1], samples[2]
        );
        assert_eq!(written(Format::Prometheus), expected);
    }

    #[test]
    fn a_histogram_counts_durations_up_to_each_bound() {
        let mut durations = Durations::default();
        [0.05, 1.0, 1.5, 300.0].iter().for_each(|seconds| durations.add(Duration::from_secs_f64(*seconds)));
        let mut writer = Writer::new(Format::OpenMetrics);
        writer.family(Kind::Histogram, "x_seconds", "Time.");
        writer.durations(("a", "b"), &durations);
        let text = writer.finish();
        let counts: Vec<&str> = text.lines().filter(|line| line.starts_with('x')).filter_map(|line| line.rsplit(' ').next()).collect();
        assert_eq!(counts, ["1", "1", "1", "2", "3", "3", "3", "3", "3", "4", "4", "302.55"]);
        assert!(text.contains("x_seconds_bucket{a=\"b\",le=\"1.0\"} 2\n") && text.contains("x_seconds_bucket{a=\"b\",le=\"+Inf\"} 4\n"));
    }

    /// The values of the labels in a line, as a client reads them.
    fn values(line: &str) -> Vec<String> {
        let (mut values, mut chars) = (Vec::new(), line.chars());
        while chars.by_ref().any(|c| c == '"') {
            let mut value = String::new();
            loop {
                match chars.next().unwrap() {
                    '"' => break,
                    '\\' => match chars.next().unwrap() {
                        'n' => value.push('\n'),
                        c @ ('"' | '\\') => value.push(c),
                        c => panic!("\\{c}"),
                    },
                    c => value.push(c),
                }
            }
            values.push(value);
        }
        values
    }

    proptest! {
        #[test]
        fn a_client_reads_labels_as_they_were(a in ".*|[\"\\\\\n{}=, ]*", b in any::<String>()) {
            let mut writer = Writer::new(Format::OpenMetrics);
            writer.family(Kind::Gauge, "x", "X.");
            writer.sample(&[("a", &a), ("b", &b)], 1.0);
            let text = writer.finish();
            let lines: Vec<&str> = text.split('\n').collect();
            prop_assert_eq!(lines.len(), 5);
            prop_assert_eq!(values(lines[2]), [a, b]);
            let end = "\"} 1";
            prop_assert!(lines[2].ends_with(end));
        }
    }
}
