//! What a microphone is, what it is called, and how it is known again. [p]
//!
//! A microphone's **stable id** is the name of its row in `devices`, a label and part of log lines, so whatever a
//! USB string holds, ids are printable ASCII of bounded length, and different strings give different ids. A **workspace
//! name** is the folder of its recordings and, behind a prefix, the name of its container.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::text::fingerprint;

/// Longest serial that is taken over as it is; the USB specification allows 126 characters.
const SERIAL_LIMIT: usize = 64;

/// Longest profile part of a workspace name.
const SLUG_LIMIT: usize = 64;

/// A USB sound card that can capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Microphone {
    /// ALSA card index, the N of `hw:N,0`.
    pub card: u32,
    /// Card name, as the driver made it from the product string.
    pub name: String,
    /// Its USB device; without one the card index is all there is to know it by.
    pub usb: Option<Usb>,
}

/// The USB side of a microphone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usb {
    /// Vendor id, four lower-case hexadecimal digits.
    pub vendor: String,
    /// Product id, likewise.
    pub product: String,
    /// Serial, made fit for an id by [`serial`].
    pub serial: Option<String>,
    /// Publisher path, such as `1-1.4`.
    pub bus_path: String,
    /// Publisher and device number, such as `001/005`: another one after each plugging.
    pub address: String,
}

impl Microphone {
    /// ALSA device that a Recorder opens.
    #[must_use]
    pub fn alsa_device(&self) -> String {
        format!("hw:{},0", self.card)
    }

    /// The keys of `devices.config` that follow the hardware.
    #[must_use]
    pub fn config(&self) -> Map<String, Value> {
        let usb = self.usb.as_ref();
        let Value::Object(config) = json!({
            "alsa_card_index": self.card,
            "alsa_device": self.alsa_device(),
            "alsa_name": self.name,
            "usb_vendor_id": usb.map(|usb| &usb.vendor),
            "usb_product_id": usb.map(|usb| &usb.product),
            "usb_serial": usb.and_then(|usb| usb.serial.as_ref()),
            "usb_bus_path": usb.map(|usb| &usb.bus_path),
        }) else {
            unreachable!("an object literal is an object")
        };
        config
    }
}

/// A serial as sysfs shows it -> text for ids, or `None` when it says nothing.
///
/// Serials of letters, digits, inner spaces and `._:+=-` up to 64 characters stay as they are. In any other one the
/// strange bytes become `_` and a hash of all bytes is appended, so that two serials never fall together.
#[must_use]
pub fn serial(raw: &[u8]) -> Option<String> {
    let raw = raw.trim_ascii();
    if raw.is_empty() {
        return None;
    }
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b" ._:+=-".contains(byte);
    if raw.len() <= SERIAL_LIMIT && raw.iter().all(plain) && !raw.windows(2).any(|pair| pair == b"..") {
        return Some(raw.iter().copied().map(char::from).collect());
    }
    let mut text: String = raw.iter().take(32).map(|byte| if plain(byte) && *byte != b'.' { char::from(*byte) } else { '_' }).collect();
    text.push('~');
    text.push_str(&short_hash(raw));
    Some(text)
}

/// Gives every present microphone its stable id.
///
/// `known` are the ids in the database with the bus path each was last seen at; `hidden` tells which of them may be on a
/// card that cannot be told now. A serial that several present cards
/// share identifies none of them: who owns the id at its port keeps it, the others are told apart by port. A card that
/// got such an id once keeps it at that port, also when its twin is away. A microphone that could be taken for a hidden
/// one is left out until that one can be told.
#[must_use]
pub fn identify(
    microphones: Vec<Microphone>,
    known: &BTreeMap<String, Option<String>>,
    hidden: impl Fn(&str) -> bool,
) -> BTreeMap<String, Microphone> {
    let mut sharers: BTreeMap<String, usize> = BTreeMap::new();
    for microphone in &microphones {
        *sharers.entry(plain_id(microphone)).or_default() += 1;
    }
    let mut present = BTreeMap::new();
    for microphone in microphones {
        let plain = plain_id(&microphone);
        let by_port = microphone.usb.as_ref().map(|usb| format!("{plain}-port{}", usb.bus_path));
        let id = match by_port {
            Some(by_port) if microphone.usb.as_ref().is_some_and(|usb| usb.serial.is_some()) => {
                let port = microphone.usb.as_ref().map(|usb| usb.bus_path.as_str());
                let at_home = known.get(&plain).is_some_and(|at| at.as_deref() == port);
                if !at_home && !known.contains_key(&by_port) && hidden(&plain) {
                    continue;
                }
                if at_home || (sharers[&plain] == 1 && !known.contains_key(&by_port)) { plain } else { by_port }
            }
            _ => plain,
        };
        // One USB device with two sound cards: no known hardware does it, but no card may hide another.
        let id = if present.contains_key(&id) { format!("{id}-card{}", microphone.card) } else { id };
        present.insert(id, microphone);
    }
    present
}

fn plain_id(microphone: &Microphone) -> String {
    match &microphone.usb {
        Some(Usb { vendor, product, serial: Some(serial), .. }) => format!("{vendor}-{product}-{serial}"),
        Some(Usb { vendor, product, serial: None, bus_path, .. }) => format!("{vendor}-{product}-port{bus_path}"),
        None => format!("alsa-card{}", microphone.card),
    }
}

/// A workspace name for a device with this profile that none of `taken` is.
///
/// `{slug}-{suffix}`; the suffix is the shortest of these that is free: the serial's last four letters or digits, ever
/// more of them, the port (`1-1.4` -> `p1d1d4`), both, a hash of the id. Without a serial it begins with the port,
/// without both with the card (`c001`).
#[must_use]
pub fn workspace_name(slug: &str, id: &str, serial: Option<&str>, bus_path: Option<&str>, card: u64, taken: &BTreeSet<&str>) -> String {
    let slug = slug_part(slug);
    let letters: String = serial.unwrap_or("").chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    let port = bus_path.map(port_part);
    let shortest = letters.len().saturating_sub(4);
    let endings = (0..=shortest).rev().map(|from| letters[from..].to_owned()).filter(|ending| !ending.is_empty());
    let last = match &port {
        Some(port) => [port.clone(), format!("{letters}{port}")],
        None => [format!("c{card:03}"), format!("{letters}c{card:03}")],
    };
    endings
        .chain(last)
        .chain([short_hash(id.as_bytes())])
        .map(|suffix| format!("{slug}-{suffix}"))
        .find(|name| !taken.contains(name.as_str()))
        .unwrap_or_else(|| format!("{slug}-{}", fingerprint(id)))
}

/// Whether `name` was made for this profile: such a name is kept, as recordings lie below it.
#[must_use]
pub fn belongs_to_profile(name: &str, slug: &str) -> bool {
    is_workspace_name(name)
        && name
            .strip_prefix(&slug_part(slug))
            .and_then(|rest| rest.strip_prefix('-'))
            .is_some_and(|suffix| !suffix.is_empty() && suffix.chars().all(|c| c.is_ascii_alphanumeric()))
}

/// Whether `name` can be a folder directly below the workspace and part of a container name.
#[must_use]
pub fn is_workspace_name(name: &str) -> bool {
    (1..=160).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
}

/// Name of the container that records into the workspace `folder`.
#[must_use]
pub fn container_name(folder: &str) -> String {
    format!("silvasonic-recorder-{folder}")
}

/// Lower case, runs of anything but letters and digits become one `-`.
fn slug_part(slug: &str) -> String {
    let mut part = String::new();
    for c in slug.chars().map(|c| c.to_ascii_lowercase()) {
        if part.len() == SLUG_LIMIT {
            break;
        }
        if c.is_ascii_alphanumeric() {
            part.push(c);
        } else if !part.is_empty() && !part.ends_with('-') {
            part.push('-');
        }
    }
    let part = part.trim_end_matches('-');
    if part.is_empty() { "profile".to_owned() } else { part.to_owned() }
}

fn port_part(bus_path: &str) -> String {
    let separated = bus_path.chars().take(40).filter_map(|c| match c {
        '-' | '.' => Some('d'),
        c if c.is_ascii_alphanumeric() => Some(c.to_ascii_lowercase()),
        _ => None,
    });
    std::iter::once('p').chain(separated).collect()
}

/// Eight hexadecimal digits of a SHA-256.
fn short_hash(bytes: &[u8]) -> String {
    fingerprint(bytes)[..8].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    fn usb(card: u32, serial: Option<&str>, bus_path: &str) -> Microphone {
        Microphone {
            card,
            name: "Mic".to_owned(),
            usb: Some(Usb {
                vendor: "0869".to_owned(),
                product: "0389".to_owned(),
                serial: serial.map(str::to_owned),
                bus_path: bus_path.to_owned(),
                address: format!("001/{card:03}"),
            }),
        }
    }

    fn ids(microphones: Vec<Microphone>, known: &[(&str, &str)]) -> Vec<(String, u32)> {
        let known = known.iter().map(|(id, port)| ((*id).to_owned(), Some((*port).to_owned()))).collect();
        identify(microphones, &known, |id| id == "0869-0389-hidden").into_iter().map(|(id, microphone)| (id, microphone.card)).collect()
    }

    fn id(text: &str, card: u32) -> (String, u32) {
        (text.to_owned(), card)
    }

    #[test]
    fn ordinary_serials_stay_as_they_are() {
        for text in ["034F6A21", "a b-c", "1.2:3", "0"] {
            assert_eq!(serial(format!("{text}\n").as_bytes()).as_deref(), Some(text));
        }
        assert_eq!(serial(b" \n"), None);
        assert_eq!(serial(b""), None);
    }

    #[test]
    fn strange_serials_become_well_formed_and_stay_different() {
        let strange: &[&[u8]] =
            &[b"a/b/c", b"a_b/c", b"a\nb", b"../x", b"..", b"\xff\xfe", b"\xff\xfd", b"'; DROP", &[b'x'; 65], &[b'x'; 66]];
        let seen: BTreeSet<String> = strange.iter().filter_map(|raw| serial(raw)).collect();
        assert_eq!(seen.len(), strange.len());
        for text in seen {
            assert!(text.len() <= SERIAL_LIMIT && text.chars().all(|c| c.is_ascii_alphanumeric() || " _:+=-~".contains(c)), "{text}");
        }
    }

    #[test]
    fn ids_are_made_of_serial_else_port_else_card() {
        assert_eq!(ids(vec![usb(0, Some("S1"), "1-1")], &[]), [id("0869-0389-S1", 0)]);
        assert_eq!(ids(vec![usb(0, None, "1-1.4")], &[]), [id("0869-0389-port1-1.4", 0)]);
        let bare = Microphone { card: 3, name: String::new(), usb: None };
        assert_eq!(ids(vec![bare], &[]), [id("alsa-card3", 3)]);
    }

    #[test]
    fn a_serial_is_followed_to_another_port() {
        assert_eq!(ids(vec![usb(1, Some("S1"), "1-2")], &[("0869-0389-S1", "1-1")]), [id("0869-0389-S1", 1)]);
    }

    #[test]
    fn a_shared_serial_is_kept_by_its_owner_at_its_port_and_told_apart_by_port_otherwise() {
        let twins = || vec![usb(0, Some("S"), "1-1"), usb(1, Some("S"), "1-2")];
        assert_eq!(ids(twins(), &[]), [id("0869-0389-S-port1-1", 0), id("0869-0389-S-port1-2", 1)]);
        assert_eq!(ids(twins(), &[("0869-0389-S", "1-2")]), [id("0869-0389-S", 1), id("0869-0389-S-port1-1", 0)]);
        assert_eq!(ids(twins(), &[("0869-0389-S", "1-9")]), [id("0869-0389-S-port1-1", 0), id("0869-0389-S-port1-2", 1)]);
    }

    #[test]
    fn a_twin_keeps_its_id_while_the_other_is_away() {
        let known = [("0869-0389-S", "1-1"), ("0869-0389-S-port1-2", "1-2")];
        assert_eq!(ids(vec![usb(1, Some("S"), "1-2")], &known), [id("0869-0389-S-port1-2", 1)]);
        assert_eq!(ids(vec![usb(0, Some("S"), "1-1")], &known), [id("0869-0389-S", 0)]);
    }

    #[test]
    fn nobody_takes_the_id_of_a_microphone_that_cannot_be_told_now() {
        let known = [("0869-0389-hidden", "1-1")];
        assert_eq!(ids(vec![usb(1, Some("hidden"), "1-2")], &known), []);
        assert_eq!(ids(vec![usb(1, Some("hidden"), "1-1")], &known), [id("0869-0389-hidden", 1)]);
    }

    #[test]
    fn no_card_hides_another() {
        assert_eq!(ids(vec![usb(0, None, "1-1"), usb(1, None, "1-1")], &[]).len(), 2);
    }

    #[test]
    fn workspace_names_lengthen_until_they_are_free() {
        let name =
            |serial, port, taken: &[&str]| workspace_name("ultramic_384_evo", "id", serial, port, 2, &taken.iter().copied().collect());
        assert_eq!(name(Some("034F6A21"), Some("1-1"), &[]), "ultramic-384-evo-6a21");
        assert_eq!(name(Some("034F6A21"), Some("1-1"), &["ultramic-384-evo-6a21"]), "ultramic-384-evo-f6a21");
        assert_eq!(name(Some("1"), Some("1-1.4"), &["ultramic-384-evo-1"]), "ultramic-384-evo-p1d1d4");
        assert_eq!(name(None, Some("1-1.4"), &[]), "ultramic-384-evo-p1d1d4");
        assert_eq!(name(Some("/-/"), Some("1-1"), &[]), "ultramic-384-evo-p1d1");
        assert_eq!(name(None, None, &[]), "ultramic-384-evo-c002");
        let all = ["ultramic-384-evo-p1d1", "ultramic-384-evo-p1d1"];
        assert_eq!(name(None, Some("1-1"), &all), format!("ultramic-384-evo-{}", short_hash(b"id")));
    }

    #[test]
    fn slugs_of_any_text_make_a_folder_name() {
        for (slug, part) in [("Rode  NT/USB!", "rode-nt-usb"), ("__a__", "a"), ("日本", "profile"), ("", "profile"), ("../..", "profile")]
        {
            assert_eq!(slug_part(slug), part);
        }
        assert!(is_workspace_name(&workspace_name(&"x".repeat(1_000_000), "id", Some("1234"), None, 0, &BTreeSet::new())));
    }

    #[test]
    fn a_name_belongs_to_the_profile_it_was_made_for() {
        assert!(belongs_to_profile("ultramic-384-evo-6a21", "ultramic_384_evo"));
        assert!(!belongs_to_profile("a-b-6a21", "a"));
        assert!(!belongs_to_profile("ultramic-384-evo-", "ultramic_384_evo"));
        assert!(!belongs_to_profile("../../etc", "x"));
    }

    proptest! {
        #[test]
        fn whatever_a_device_says_names_are_sound_and_its_own(
            serials in vec(vec(any::<u8>(), 0..130), 1..6),
            slug in vec(any::<char>(), 0..100).prop_map(String::from_iter),
        ) {
            let microphones = serials.iter().zip(1..).map(|(raw, n)| usb(n, serial(raw).as_deref(), &format!("1-{n}"))).collect();
            let found = identify(microphones, &BTreeMap::new(), |_| false);
            prop_assert_eq!(found.len(), serials.len(), "each has an id of its own");
            let mut names: BTreeSet<String> = BTreeSet::new();
            for (id, microphone) in &found {
                prop_assert!(id.len() <= 128 && !id.contains("..") && !id.contains('/'), "{id:?}");
                prop_assert!(id.chars().all(|c| c == ' ' || c.is_ascii_graphic()), "{id:?}");
                let usb = microphone.usb.as_ref().unwrap();
                let taken = names.iter().map(String::as_str).collect();
                let name = workspace_name(&slug, id, usb.serial.as_deref(), Some(&usb.bus_path), microphone.card.into(), &taken);
                prop_assert!(is_workspace_name(&name), "{name:?}");
                let folder = std::path::Path::new("/workspace/recorder").join(&name);
                prop_assert_eq!(folder.parent(), Some(std::path::Path::new("/workspace/recorder")));
                prop_assert!(names.insert(name), "two of one name");
            }
        }

        #[test]
        fn different_serials_stay_different(one in vec(any::<u8>(), 0..130), other in vec(any::<u8>(), 0..130)) {
            prop_assert!(one.trim_ascii() == other.trim_ascii() || serial(&one).is_none() || serial(&one) != serial(&other));
        }
    }
}
