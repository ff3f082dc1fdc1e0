//! The defaults and profiles of this version, compiled in for stations without `SILVASONIC_CONFIG_DIR`. [p]

/// `defaults.yml`
pub const DEFAULTS: &str = include_str!("../defaults.yml");

macro_rules! profiles {
    ($($name:literal),* $(,)?) => {
        /// The files of `profiles/`: name and text.
        pub const PROFILES: &[(&str, &str)] = &[$(($name, include_str!(concat!("../profiles/", $name)))),*];
    };
}

profiles![
    "audiomoth_usb.yml",
    "behringer_uphoria.yml",
    "focusrite_scarlett.yml",
    "generic_usb.yml",
    "pettersson_m500.yml",
    "rode_nt_usb.yml",
    "ultramic_192k.yml",
    "ultramic_384_evo.yml",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_profile_file_is_compiled_in() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/profiles");
        let mut files: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        assert_eq!(files, PROFILES.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    }
}
