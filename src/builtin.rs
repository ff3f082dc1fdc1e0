//! The built-in defaults, profiles and workers, used without `SILVASONIC_CONFIG_DIR`.

/// `defaults.yml`
pub const DEFAULTS: &str = include_str!("../defaults.yml");

/// The files of `workers/`: name and text.
pub const WORKERS: &[(&str, &str)] = &[("birdnet.yml", include_str!("../workers/birdnet.yml"))];

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
    use crate::decide::profile::Profile;
    use serde_json::json;

    #[test]
    fn every_profile_file_is_built_in() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/profiles");
        let mut files: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        assert_eq!(files, PROFILES.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    }

    #[test]
    fn the_built_in_profiles_have_the_right_values() {
        // slug, USB ids, part of the card's name, Hz, channels, segment in seconds
        let facts = [
            ("audiomoth_usb", None, Some("AudioMoth"), 384_000, 1, 10),
            ("behringer_uphoria", None, Some("UMC"), 48_000, 2, 10),
            ("focusrite_scarlett", None, Some("Scarlett"), 48_000, 2, 10),
            ("generic_usb", None, None, 48_000, 1, 10),
            ("pettersson_m500", None, Some("Pettersson"), 384_000, 1, 10),
            ("rode_nt_usb", Some(("19f7", "0003")), Some("RODE NT-USB"), 48_000, 2, 10),
            ("ultramic_192k", Some(("0869", "0308")), Some("ultramic"), 192_000, 1, 10),
            ("ultramic_384_evo", Some(("0869", "0389")), Some("ultramic"), 384_000, 1, 15),
        ];
        assert_eq!(facts.len(), PROFILES.len());
        for ((file, text), (slug, ids, name, rate, channels, segment)) in PROFILES.iter().zip(facts) {
            let profile = Profile::from_yaml(text).unwrap_or_else(|faults| panic!("{file}: {faults:?}"));
            assert_eq!((profile.slug.as_str(), *file), (slug, format!("{slug}.yml").as_str()));
            let config = profile.config.to_json();
            let matching = &config["audio"]["match"];
            assert_eq!(matching["usb_vendor_id"].as_str(), ids.map(|ids| ids.0), "{slug}");
            assert_eq!(matching["usb_product_id"].as_str(), ids.map(|ids| ids.1), "{slug}");
            assert_eq!(matching["alsa_name_contains"].as_str(), name, "{slug}");
            assert_eq!((&config["audio"]["sample_rate"], &config["audio"]["channels"]), (&json!(rate), &json!(channels)), "{slug}");
            assert_eq!(config["stream"]["segment_duration_s"], segment, "{slug}");
            let ultramic = slug.starts_with("ultramic");
            let processing = if ultramic { json!([12.0, 8192, 1000.0]) } else { json!([0.0, 4096, null]) };
            let keys = ["gain_db", "chunk_size", "highpass_filter_hz"];
            assert_eq!(json!(keys.map(|key| config["processing"][key].clone())), processing, "{slug}");
            assert_eq!(config["stream"]["live_stream_enabled"], ultramic, "{slug}");
            assert_eq!(config["stream"]["processed_enabled"], ultramic, "{slug}");
        }
    }
}
