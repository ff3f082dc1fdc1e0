//! The identity of a microphone: its stable id, and the name of its workspace.
//!
//! The **stable id** is the key of the row in `devices`, the value of a container label and a part of log lines. The
//! **workspace name** is the folder of the recordings and, after a prefix, the name of the container.
//!
//! Invariants: an id is printable ASCII of bounded length for any content of the USB strings, and different strings
//! give different ids. A workspace name never leaves the workspace.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::text::fingerprint;

/// Longest serial number that is used unchanged; the USB specification allows 126 characters.
const SERIAL_LIMIT: usize = 64;

/// Maximum length of the profile part of a workspace name.
const SLUG_LIMIT: usize = 64;

/// A USB sound card that can capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Microphone {
    /// ALSA card index, the N of `hw:N,0`.
    pub card: u32,
    /// Card name, which the driver derives from the product string.
    pub name: String,
    /// Its USB device; without one, only the card index identifies it.
    pub usb: Option<Usb>,
}

/// The USB device of a microphone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usb {
    /// Vendor id, four lower-case hexadecimal digits.
    pub vendor: String,
    /// Product id, likewise.
    pub product: String,
    /// Serial number in the form that [`serial`] returns.
    pub serial: Option<String>,
    /// Port, such as `1-1.4`: bus, then the port numbers from the root hub on.
    pub bus_path: String,
    /// Bus and device number, such as `001/005`; it changes at each connection.
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

/// Converts a serial number from sysfs to text for ids; `None` if it is empty.
///
/// Serial numbers of at most 64 letters, digits, inner spaces and `._:+=-` do not change. In others, each other byte
/// becomes `_`, and a hash of all bytes is appended, so that different serial numbers stay different.
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

/// Assigns a stable id to each connected microphone.
///
/// `known` are the ids in the database, each with the port at which it was last observed. `may_be_unclear` returns
/// whether a known microphone may be on a card that cannot be identified now.
///
/// A serial number that several connected microphones share does not identify them. The one at the known port keeps
/// the id with the serial number; the others get ids with their ports. A microphone keeps such an id at that port,
/// even if it is the only one with this serial number later. A microphone is omitted while its id may belong to one
/// on a card that cannot be identified.
#[must_use]
pub fn identify(
    microphones: Vec<Microphone>,
    known: &BTreeMap<String, Option<String>>,
    may_be_unclear: impl Fn(&str) -> bool,
) -> BTreeMap<String, Microphone> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for microphone in &microphones {
        *counts.entry(plain_id(microphone)).or_default() += 1;
    }
    let mut identified = BTreeMap::new();
    for microphone in microphones {
        let plain = plain_id(&microphone);
        let by_port = microphone.usb.as_ref().map(|usb| format!("{plain}-port{}", usb.bus_path));
        let id = match by_port {
            Some(by_port) if microphone.usb.as_ref().is_some_and(|usb| usb.serial.is_some()) => {
                let port = microphone.usb.as_ref().map(|usb| usb.bus_path.as_str());
                let at_known_port = known.get(&plain).is_some_and(|at| at.as_deref() == port);
                if !at_known_port && !known.contains_key(&by_port) && may_be_unclear(&plain) {
                    continue;
                }
                if at_known_port || (counts[&plain] == 1 && !known.contains_key(&by_port)) { plain } else { by_port }
            }
            _ => plain,
        };
        // One USB device with two sound cards: no known hardware is built so, but no card may replace another.
        let id = if identified.contains_key(&id) { format!("{id}-card{}", microphone.card) } else { id };
        identified.insert(id, microphone);
    }
    identified
}

fn plain_id(microphone: &Microphone) -> String {
    match &microphone.usb {
        Some(Usb { vendor, product, serial: Some(serial), .. }) => format!("{vendor}-{product}-{serial}"),
        Some(Usb { vendor, product, serial: None, bus_path, .. }) => format!("{vendor}-{product}-port{bus_path}"),
        None => format!("alsa-card{}", microphone.card),
    }
}

/// A workspace name for a device with this profile, different from all `taken` ones.
///
/// The name is `{slug}-{suffix}` with the first free suffix of: the last four letters or digits of the serial number,
/// five, and so on; the port (`1-1.4` -> `p1d1d4`); both; a hash of the id. Without a port the card (`c001`) replaces
/// it.
#[must_use]
pub fn workspace_name(slug: &str, id: &str, serial: Option<&str>, bus_path: Option<&str>, card: u64, taken: &BTreeSet<&str>) -> String {
    let slug = slug_part(slug);
    let characters: String = serial.unwrap_or("").chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
    let port = bus_path.map(port_part);
    let shortest = characters.len().saturating_sub(4);
    let suffixes = (0..=shortest).rev().map(|from| characters[from..].to_owned()).filter(|suffix| !suffix.is_empty());
    let last = match &port {
        Some(port) => [port.clone(), format!("{characters}{port}")],
        None => [format!("c{card:03}"), format!("{characters}c{card:03}")],
    };
    suffixes
        .chain(last)
        .chain([short_hash(id.as_bytes())])
        .map(|suffix| format!("{slug}-{suffix}"))
        .find(|name| !taken.contains(name.as_str()))
        .unwrap_or_else(|| format!("{slug}-{}", fingerprint(id)))
}

/// Whether `name` was created for this profile. Such a name is kept, because its folder contains recordings.
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

/// Name of the container that records to the workspace `folder`.
#[must_use]
pub fn container_name(folder: &str) -> String {
    format!("silvasonic-recorder-{folder}")
}

/// The slug in lower case; other characters than letters and digits become a single `-`.
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
    fn ordinary_serial_numbers_do_not_change() {
        for text in ["034F6A21", "a b-c", "1.2:3", "0"] {
            assert_eq!(serial(format!("{text}\n").as_bytes()).as_deref(), Some(text));
        }
        assert_eq!(serial(b" \n"), None);
        assert_eq!(serial(b""), None);
    }

    #[test]
    fn other_serial_numbers_become_well_formed_and_stay_different() {
        let unusual: &[&[u8]] =
            &[b"a/b/c", b"a_b/c", b"a\nb", b"../x", b"..", b"\xff\xfe", b"\xff\xfd", b"'; DROP", &[b'x'; 65], &[b'x'; 66]];
        let seen: BTreeSet<String> = unusual.iter().filter_map(|raw| serial(raw)).collect();
        assert_eq!(seen.len(), unusual.len());
        for text in seen {
            assert!(text.len() <= SERIAL_LIMIT && text.chars().all(|c| c.is_ascii_alphanumeric() || " _:+=-~".contains(c)), "{text}");
        }
    }

    #[test]
    fn an_id_contains_the_serial_number_else_the_port_else_the_card() {
        assert_eq!(ids(vec![usb(0, Some("S1"), "1-1")], &[]), [id("0869-0389-S1", 0)]);
        assert_eq!(ids(vec![usb(0, None, "1-1.4")], &[]), [id("0869-0389-port1-1.4", 0)]);
        let bare = Microphone { card: 3, name: String::new(), usb: None };
        assert_eq!(ids(vec![bare], &[]), [id("alsa-card3", 3)]);
    }

    #[test]
    fn a_microphone_with_a_serial_number_keeps_its_id_at_another_port() {
        assert_eq!(ids(vec![usb(1, Some("S1"), "1-2")], &[("0869-0389-S1", "1-1")]), [id("0869-0389-S1", 1)]);
    }

    #[test]
    fn microphones_with_the_same_serial_number_are_identified_by_port_except_the_one_at_its_known_port() {
        let twins = || vec![usb(0, Some("S"), "1-1"), usb(1, Some("S"), "1-2")];
        assert_eq!(ids(twins(), &[]), [id("0869-0389-S-port1-1", 0), id("0869-0389-S-port1-2", 1)]);
        assert_eq!(ids(twins(), &[("0869-0389-S", "1-2")]), [id("0869-0389-S", 1), id("0869-0389-S-port1-1", 0)]);
        assert_eq!(ids(twins(), &[("0869-0389-S", "1-9")]), [id("0869-0389-S-port1-1", 0), id("0869-0389-S-port1-2", 1)]);
    }

    #[test]
    fn a_microphone_with_a_shared_serial_number_keeps_its_id_while_the_other_is_disconnected() {
        let known = [("0869-0389-S", "1-1"), ("0869-0389-S-port1-2", "1-2")];
        assert_eq!(ids(vec![usb(1, Some("S"), "1-2")], &known), [id("0869-0389-S-port1-2", 1)]);
        assert_eq!(ids(vec![usb(0, Some("S"), "1-1")], &known), [id("0869-0389-S", 0)]);
    }

    #[test]
    fn no_microphone_gets_the_id_of_one_that_cannot_be_identified_now() {
        let known = [("0869-0389-hidden", "1-1")];
        assert_eq!(ids(vec![usb(1, Some("hidden"), "1-2")], &known), []);
        assert_eq!(ids(vec![usb(1, Some("hidden"), "1-1")], &known), [id("0869-0389-hidden", 1)]);
    }

    #[test]
    fn two_cards_never_get_the_same_id() {
        assert_eq!(ids(vec![usb(0, None, "1-1"), usb(1, None, "1-1")], &[]).len(), 2);
    }

    #[test]
    fn a_workspace_name_gets_longer_until_it_is_free() {
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
        fn ids_and_workspace_names_are_valid_and_unique_for_any_usb_strings(
            serials in vec(vec(any::<u8>(), 0..130), 1..6),
            slug in vec(any::<char>(), 0..100).prop_map(String::from_iter),
        ) {
            let microphones = serials.iter().zip(1..).map(|(raw, n)| usb(n, serial(raw).as_deref(), &format!("1-{n}"))).collect();
            let found = identify(microphones, &BTreeMap::new(), |_| false);
            prop_assert_eq!(found.len(), serials.len(), "each has its own id");
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
                prop_assert!(names.insert(name), "the name is used twice");
            }
        }

        #[test]
        fn different_serials_stay_different(one in vec(any::<u8>(), 0..130), other in vec(any::<u8>(), 0..130)) {
            prop_assert!(one.trim_ascii() == other.trim_ascii() || serial(&one).is_none() || serial(&one) != serial(&other));
        }
    }
}
