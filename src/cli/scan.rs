//! `silvasonic-controller scan`: shows the connected microphones, and generates a profile for one. Needs no service.

use crate::collect::sort_by_key;
use crate::sorted_map::SortedMap;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::decide::device::{Microphone, identify};
use crate::decide::offer::{Setting, summary};
use crate::decide::profile::{Match, Profile, best, scores};
use crate::hardware::formats;
use crate::hardware::sysfs;
use crate::text::{shown, table};

const SLUG_LIMIT: usize = 60;

/// The connected microphones.
pub struct ScanReport {
    microphones: Vec<ScannedCard>,
    /// Cards that could not be identified: index and why.
    unclear: Vec<(u32, String)>,
}

/// One microphone.
struct ScannedCard {
    id: String,
    microphone: Microphone,
    /// What it can capture, or why that cannot be read.
    capture: Result<Vec<Setting>, String>,
    best_match: Match,
}

impl ScanReport {
    /// Reads the hardware below `root`, all cards or one.
    ///
    /// # Errors
    /// Why the hardware cannot be read.
    pub fn read(root: &Path, profiles: &[Profile], card: Option<u32>) -> Result<Self, String> {
        let scan = sysfs::scan(root, &[], |_, _| {}).map_err(|why| why.to_string())?;
        let is_selected = |index: u32| card.is_none_or(|card| card == index);
        let read = |(id, microphone): (String, Microphone)| {
            let criteria = profiles.iter().map(|profile| (profile.slug.as_str(), profile.config.criteria()));
            let best_match = best(scores(criteria, &microphone));
            ScannedCard { id, capture: formats::read(root, microphone.card, microphone.pcm), best_match, microphone }
        };
        let ids = identify(scan.microphones, &SortedMap::new(), |_| false);
        let mut microphones: Vec<ScannedCard> = ids.into_iter().filter(|(_, microphone)| is_selected(microphone.card)).map(read).collect();
        sort_by_key(&mut microphones, |scanned| scanned.microphone.card);
        Ok(Self { microphones, unclear: scan.unclear.into_iter().filter(|(card, _)| is_selected(*card)).collect() })
    }

    /// For people.
    #[must_use]
    pub fn table(&self) -> String {
        let mut rows = vec![["CARD", "ID", "PORT", "NAME", "USB IDS", "SERIAL", "PROFILE (SCORE)", "CAPTURES"].map(str::to_owned)];
        for ScannedCard { id, microphone, capture, best_match } in &self.microphones {
            let usb = microphone.usb.as_ref();
            rows.push([
                microphone.alsa_device(),
                shown(id).to_string(),
                usb.map_or("-", |usb| &usb.bus_path).to_owned(),
                shown(&microphone.name).to_string(),
                usb.map_or_else(|| "-".to_owned(), |usb| format!("{}:{}", usb.vendor, usb.product)),
                shown(usb.and_then(|usb| usb.serial.as_deref()).unwrap_or("-")).to_string(),
                match best_match {
                    Match::None => "none".to_owned(),
                    Match::One { slug, score } => format!("{slug} ({score})"),
                    Match::Ambiguous { slugs, score } => format!("{} ({score} each: ambiguous)", slugs.join(", ")),
                },
                capture.as_ref().map_or_else(|why| format!("unknown: {why}"), |settings| summary(settings)),
            ]);
        }
        let mut text = if rows.len() == 1 { "no USB microphone is connected\n".to_owned() } else { table(&rows) };
        for (card, why) in &self.unclear {
            let _ = writeln!(text, "cannot identify card {card}: {}", shown(why));
        }
        text
    }

    /// For programs.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let one = |ScannedCard { id, microphone, capture, best_match }: &ScannedCard| {
            let (slugs, score) = match best_match {
                Match::None => (Vec::new(), 0),
                Match::One { slug, score } => (vec![slug.clone()], *score),
                Match::Ambiguous { slugs, score } => (slugs.clone(), *score),
            };
            let mut object = microphone.config();
            object.insert("id".to_owned(), id.as_str().into());
            object.insert("capture".to_owned(), capture.as_ref().map_or(Value::Null, |settings| formats::to_json(settings)));
            object.insert("capture_fault".to_owned(), capture.as_ref().err().map_or(Value::Null, |why| why.as_str().into()));
            object.insert("profiles".to_owned(), json!({"slugs": slugs, "score": score}));
            Value::Object(object)
        };
        let unclear = self.unclear.iter().map(|(card, why)| json!({"alsa_card_index": card, "why": why}));
        json!({"microphones": self.microphones.iter().map(one).collect::<Value>(), "unclear": unclear.collect::<Value>()})
    }

    /// A profile file, if there is exactly one microphone.
    ///
    /// # Errors
    /// There is no microphone, or there are several.
    pub fn profile(&self, profiles: &[Profile]) -> Result<String, String> {
        match &self.microphones[..] {
            [one] => Ok(one.profile(profiles)),
            [] => Err("no such USB microphone is connected".to_owned()),
            many => {
                let cards: Vec<String> = many.iter().map(|scanned| scanned.microphone.card.to_string()).collect();
                Err(format!("several microphones are connected; choose one with --card: {}", cards.join(", ")))
            }
        }
    }
}

impl ScannedCard {
    /// A profile file. It is valid for any name of the microphone.
    fn profile(&self, profiles: &[Profile]) -> String {
        let name: String = match self.microphone.name.trim() {
            "" => "USB microphone".to_owned(),
            name => name.chars().take(200).collect(),
        };
        let taken = |slug: &str| profiles.iter().any(|profile| profile.slug == slug);
        let slug = slug(&name);
        // The seeder refuses a second profile with the same slug.
        let slug = std::iter::once(slug.clone()).chain((2..).map(|n| format!("{slug}_{n}"))).find(|slug| !taken(slug)).unwrap_or(slug);
        let mut text = format!("# Created by `silvasonic-controller scan --profile` for {}.\n", quoted(&self.id));
        if let Match::One { score: 100, .. } | Match::Ambiguous { score: 100, .. } = self.best_match {
            text.push_str("# Another profile has these USB ids, too; with both, neither is chosen automatically.\n");
        }
        let setting = match &self.capture {
            Ok(settings) => {
                let _ = writeln!(text, "# It captures {}.", shown(&summary(settings)));
                formats::best(settings)
            }
            Err(why) => {
                let _ = writeln!(text, "# Cannot read what it captures ({}).", shown(why));
                None
            }
        };
        let setting = setting.unwrap_or_else(|| {
            text.push_str("# No known setting fits a profile: sample_rate, channels and format are a guess; please set them.\n");
            formats::Choice { sample_rate: 48_000, channels: 1, format: "S16LE" }
        });
        let _ = write!(
            text,
            "schema_version: \"1.0\"\nslug: {slug}\nname: {}\n\naudio:\n  sample_rate: {}\n  channels: {}\n  format: {}\n  match:\n",
            quoted(&name),
            setting.sample_rate,
            setting.channels,
            setting.format,
        );
        if let Some(usb) = &self.microphone.usb {
            let _ = writeln!(text, "    usb_vendor_id: \"{}\"\n    usb_product_id: \"{}\"", usb.vendor, usb.product);
        }
        let _ = writeln!(text, "    alsa_name_contains: {}", quoted(&name));
        text
    }
}

/// Letters and digits of `name` in lower case; other characters become a single `_`.
fn slug(name: &str) -> String {
    let plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { ' ' }).collect();
    let slug: String = plain.split_whitespace().collect::<Vec<_>>().join("_").chars().take(SLUG_LIMIT).collect();
    if slug.is_empty() { "usb_microphone".to_owned() } else { slug }
}

/// A double-quoted YAML text. Characters outside ASCII are escaped, as YAML and terminals do not accept all of them.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            ' '..='~' => quoted.push(c),
            c => quoted.push_str(&format!("\\U{:08x}", u32::from(c))),
        }
    }
    quoted + "\""
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decide::device::Usb;
    use crate::decide::offer::Offer;
    use crate::decide::profile::score;

    fn scanned(name: &str, capture: Result<Vec<Setting>, String>) -> ScannedCard {
        let usb = Usb {
            vendor: "0869".into(),
            product: "0389".into(),
            serial: None,
            bus_path: "1-1".into(),
            port_path: None,
            address: "001/002".into(),
        };
        ScannedCard {
            id: "x".into(),
            microphone: Microphone { card: 0, pcm: 0, name: name.into(), usb: Some(usb), offer: Offer::default() },
            capture,
            best_match: Match::None,
        }
    }

    #[test]
    fn a_generated_profile_is_valid_and_matches_for_any_microphone_name() {
        let long = "ü".repeat(300);
        let names = [
            "UltraMic384K_EVO 16bit r4",
            "",
            " \n",
            "a\"b\\c: #d\n- e",
            "'{[%&*",
            "\u{85}\u{feff}\u{202e}\u{7f}\u{1b}",
            "日本 マイク",
            "\u{fffd}",
            &long,
        ];
        for name in names {
            for capture in [Ok(vec![]), Err("a\nb".to_owned())] {
                let text = scanned(name, capture).profile(&[]);
                let profile = Profile::from_yaml(&text).unwrap_or_else(|faults| panic!("{name:?}: {faults:?}\n{text}"));
                assert_eq!(score(profile.config.criteria(), Some("0869"), Some("0389"), "other"), 100, "{text}");
                let by_name = score(profile.config.criteria(), None, None, name);
                assert_eq!(by_name, if name.trim().is_empty() { 0 } else { 50 }, "{text}");
            }
        }
    }

    #[test]
    fn a_generated_profile_avoids_slugs_that_exist() {
        let first = scanned("Mic", Ok(vec![])).profile(&[]);
        let first = Profile::from_yaml(&first).unwrap();
        assert_eq!(first.slug, "mic");
        assert_eq!(Profile::from_yaml(&scanned("Mic", Ok(vec![])).profile(&[first])).unwrap().slug, "mic_2");
    }
}
