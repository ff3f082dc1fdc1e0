//! `silvasonic-controller profiles check`: validates defaults.yml, defaults.override.yml and the profile files.

use std::path::PathBuf;

use crate::config_folder::{ConfigFolder, is_settings_file, slug_conflict, yaml_files};
use crate::decide::profile::Profile;
use crate::yaml::{YamlFault, line_of};

/// Returns whether all files are valid, and one line for each valid file and each fault.
///
/// # Errors
/// Why the files cannot be listed.
pub fn check(folder: Option<PathBuf>) -> Result<(bool, String), String> {
    let mut report = Report { valid: true, lines: String::new() };
    let profiles = match &folder {
        Some(folder) if !folder.join("profiles").is_dir() => {
            let mut files = yaml_files(folder, "")?;
            files.retain(|source| !is_settings_file(&source.name));
            files
        }
        _ => ConfigFolder::new(folder.clone()).profile_sources()?,
    };
    let files = ConfigFolder::new(folder);
    let faults = files.settings_faults();
    for name in files.settings_files() {
        report.add(&name, faults.iter().filter(|fault| fault.file == name).map(|fault| fault.fault.clone()).collect());
    }
    let mut known: Vec<(&str, Profile)> = Vec::new();
    for source in &profiles {
        let read = source.text.as_ref().map_err(|fault| vec![fault.clone()]);
        let faults = match read.and_then(|text| Profile::from_yaml(text).map(|profile| (text, profile))) {
            Ok((text, profile)) => {
                let faults = known.iter().flat_map(|(other, earlier)| conflicts(text, &profile, other, earlier)).collect();
                known.push((&source.name, profile));
                faults
            }
            Err(faults) => faults,
        };
        report.add(&source.name, faults);
    }
    Ok((report.valid, report.lines))
}

struct Report {
    valid: bool,
    lines: String,
}

impl Report {
    fn add(&mut self, name: &str, faults: Vec<YamlFault>) {
        self.valid &= faults.is_empty();
        if faults.is_empty() {
            self.lines.push_str(&format!("{name}: ok\n"));
        }
        faults.iter().for_each(|fault| self.lines.push_str(&format!("{}\n", fault.in_file(name))));
    }
}

/// Values of a valid profile that must be unique, but another profile has them, too.
fn conflicts(text: &str, profile: &Profile, other: &str, earlier: &Profile) -> Vec<YamlFault> {
    let mut faults: Vec<YamlFault> = slug_conflict(text, profile, other, earlier).into_iter().collect();
    if let Some((vendor, product)) = profile.config.criteria().ids().filter(|ids| earlier.config.criteria().ids() == Some(*ids)) {
        let line = line_of(text, "audio.match.usb_vendor_id");
        let what = format!("audio.match: {other} has the USB ids {vendor}:{product}, too; neither profile is chosen automatically");
        faults.push(YamlFault { line, what });
    }
    faults
}
