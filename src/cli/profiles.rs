//! `silvasonic-controller profiles check`: validates defaults.yml, defaults.override.yml and the profile files.

use std::path::PathBuf;

use crate::database::seed::{DEFAULTS, OVERRIDE, Seeder, yaml_files};
use crate::decide::profile::Profile;
use crate::yaml::line_of;

/// Returns whether all files are valid, and one line for each valid file and each fault.
///
/// # Errors
/// Why the files cannot be listed.
pub fn check(folder: Option<PathBuf>) -> Result<(bool, String), String> {
    let mut report = Report { valid: true, lines: String::new() };
    let mut unreadable = Vec::new();
    let profiles = match &folder {
        Some(folder) if !folder.join("profiles").is_dir() => {
            let mut files = yaml_files(folder, "", &mut unreadable)?;
            files.retain(|source| source.name != DEFAULTS && source.name != OVERRIDE);
            files
        }
        _ => Seeder::new(folder.clone()).profile_sources(&mut unreadable)?,
    };
    let seeder = Seeder::new(folder);
    let settings_faults = seeder.settings_faults();
    for name in [DEFAULTS, OVERRIDE] {
        match seeder.read(name) {
            Ok(Some(source)) => {
                let faults = settings_faults.iter().filter(|fault| fault.starts_with(name));
                report.add(name, faults.map(|fault| with_line(name, &source.text, fault)).collect());
            }
            Ok(None) => {}
            Err(why) => report.add(name, vec![why]),
        }
    }
    let mut known: Vec<(&str, Profile)> = Vec::new();
    for source in &profiles {
        let faults = match Profile::from_yaml(&source.text) {
            Ok(profile) => {
                let faults = known.iter().flat_map(|(other, earlier)| conflicts(&source.text, &profile, other, earlier)).collect();
                known.push((&source.name, profile));
                faults
            }
            Err(faults) => faults,
        };
        report.add(&source.name, faults.iter().map(|fault| format!("{}:{fault}", source.name)).collect());
    }
    unreadable.into_iter().for_each(|fault| report.add("", vec![fault]));
    Ok((report.valid, report.lines))
}

struct Report {
    valid: bool,
    lines: String,
}

impl Report {
    fn add(&mut self, name: &str, faults: Vec<String>) {
        self.valid &= faults.is_empty();
        if faults.is_empty() {
            self.lines.push_str(&format!("{name}: ok\n"));
        }
        faults.iter().for_each(|fault| self.lines.extend([fault, "\n"]));
    }
}

/// Values of a valid profile that must be unique, but another profile has them, too.
fn conflicts(text: &str, profile: &Profile, other: &str, earlier: &Profile) -> Vec<String> {
    let line = |field| line_of(text, field).unwrap_or(1);
    let mut faults = Vec::new();
    if profile.slug == earlier.slug {
        faults.push(format!("{}: slug: {other} has the slug {}, too", line("slug"), profile.slug));
    }
    if let Some((vendor, product)) = profile.config.criteria().ids().filter(|ids| earlier.config.criteria().ids() == Some(*ids)) {
        let line = line("audio.match.usb_vendor_id");
        faults
            .push(format!("{line}: audio.match: {other} has the USB ids {vendor}:{product}, too; neither profile is chosen automatically"));
    }
    faults
}

/// Changes `file: field: what` to `file:line: field: what` if the file contains the field.
fn with_line(name: &str, text: &str, fault: &str) -> String {
    let rest = fault.strip_prefix(name).and_then(|rest| rest.strip_prefix(": ")).unwrap_or_default();
    match rest.split_once(':').and_then(|(field, _)| line_of(text, field)) {
        Some(line) => format!("{name}:{line}: {rest}"),
        None => fault.to_owned(),
    }
}
