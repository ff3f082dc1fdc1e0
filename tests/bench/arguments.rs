//! What is typed after `bench`.

use std::path::PathBuf;

/// The options and the names of sections.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Arguments {
    /// The table as JSON on standard output.
    pub(crate) json: bool,
    /// A file to write the figures to.
    pub(crate) save: Option<PathBuf>,
    /// A file with the figures of a reference run.
    pub(crate) compare: Option<PathBuf>,
    /// None chosen means all.
    pub(crate) sections: Vec<String>,
}

impl Arguments {
    /// Reads them; what is wrong with them.
    pub(crate) fn read(mut words: impl Iterator<Item = String>, sections: &[&str]) -> Result<Arguments, String> {
        let mut read = Arguments::default();
        while let Some(word) = words.next() {
            let mut file = || words.next().map(PathBuf::from).ok_or_else(|| format!("{word}: the name of a file must follow"));
            match word.as_str() {
                "--json" => read.json = true,
                "--save" => read.save = Some(file()?),
                "--compare" => read.compare = Some(file()?),
                name if sections.contains(&name) => read.sections.push(word),
                _ => {
                    return Err(format!(
                        "{word}: no such section or option; sections are {}; options --json, --save FILE, --compare FILE",
                        sections.join(", ")
                    ));
                }
            }
        }
        Ok(read)
    }

    /// Whether a section is measured.
    pub(crate) fn chooses(&self, section: &str) -> bool {
        self.sections.is_empty() || self.sections.iter().any(|chosen| chosen == section)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Arguments, String> {
        Arguments::read(line.split_whitespace().map(str::to_owned), &["start", "quiet"])
    }

    #[test]
    fn sections_are_chosen_by_name_and_an_unknown_one_is_wrong_usage() {
        assert!(read("").unwrap().chooses("start"));
        let some = read("--json quiet --save a --compare b").unwrap();
        assert!(some.json && some.chooses("quiet") && !some.chooses("start"));
        assert_eq!((some.save, some.compare), (Some("a".into()), Some("b".into())));
        for wrong in ["qiet", "--jason", "quiet ''", "start --save"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        assert!(read("qiet").unwrap_err().contains("sections are start, quiet;"));
    }
}
