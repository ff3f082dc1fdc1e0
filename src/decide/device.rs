//! The identity of a microphone: its stable id, and the name of its workspace.
//!
//! The **stable id** is the key of the row in `devices`, the value of a container label and a part of log lines. The
//! **workspace name** is the folder of the recordings and, after a prefix, the name of the container.
//!
//! | id                                    | of a microphone                                |
//! | ------------------------------------- | ---------------------------------------------- |
//! | `{vendor}-{product}-{serial}`         | with a serial number                           |
//! | `{vendor}-{product}-{serial}-port{P}` | whose serial number another one has, too       |
//! | `{vendor}-{product}-port{P}`          | without a serial number                        |
//! | `alsa-card{N}`                        | without a USB device                           |
//! | one of these, and `-card{N}`          | on the second sound card of the same USB device |
//!
//! P is the bus path at which it was first connected. If another microphone has this id, a hash follows.
//!
//! Invariants: an id is printable ASCII of bounded length for any content of the USB strings, and different microphones
//! have different ids: a serial number that could imitate one of these forms is escaped. A port is recognised by its
//! lasting address, as the number of a bus can change at a reboot. A workspace name never leaves the workspace.

use crate::sorted_map::SortedMap;
use crate::sorted_set::SortedSet;

use serde_json::{Map, Value, json};

use crate::decide::offer::Offer;
use crate::text::fingerprint;

/// Longest serial number that is used unchanged; the USB specification allows 126 characters.
const SERIAL_LIMIT: usize = 64;

/// What precedes the workspace name in the name of a container.
const PREFIX: &str = "silvasonic-recorder-";
/// Maximum length of the profile part of a workspace name.
const SLUG_LIMIT: usize = 64;

/// A USB sound card that can capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Microphone {
    /// ALSA card index, the N of `hw:N,M`.
    pub card: u32,
    /// Number of its first PCM that can capture, the M of `hw:N,M`.
    pub pcm: u32,
    /// Card name, which the driver derives from the product string.
    pub name: String,
    /// Its USB device; without one, only the card index identifies it.
    pub usb: Option<Usb>,
    /// What it can capture.
    pub offer: Offer,
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
    /// Lasting address of the port, such as `pci0000:00/0000:00:07.0/1.4`: the host controller instead of the bus.
    pub port_path: Option<String>,
    /// Bus and device number, such as `001/005`; it changes at each connection.
    pub address: String,
}

/// The port at which a microphone was last observed, as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// [`Usb::bus_path`]
    pub bus_path: Option<String>,
    /// [`Usb::port_path`]
    pub port_path: Option<String>,
}

impl From<&Usb> for Port {
    fn from(usb: &Usb) -> Self {
        Self { bus_path: Some(usb.bus_path.clone()), port_path: usb.port_path.clone() }
    }
}

impl Microphone {
    /// ALSA device that a Recorder opens.
    #[must_use]
    pub fn alsa_device(&self) -> String {
        format!("hw:{},{}", self.card, self.pcm)
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
            "usb_port_path": usb.and_then(|usb| usb.port_path.as_ref()),
        }) else {
            unreachable!("an object literal is an object")
        };
        config
    }
}

/// Converts a serial number from sysfs to text for ids; `None` if it is empty.
///
/// Serial numbers of at most 64 letters, digits, inner spaces and `._:+=-` do not change, unless they could imitate the
/// port or the card in another id. In all others, each other byte becomes `_`, and a hash of all bytes is appended after
/// `~`, so that different serial numbers stay different.
#[must_use]
pub fn serial(raw: &[u8]) -> Option<String> {
    let raw = raw.trim_ascii();
    if raw.is_empty() {
        return None;
    }
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b" ._:+=-".contains(byte);
    let contains = |part: &[u8]| raw.windows(part.len()).any(|window| window == part);
    let imitates = raw.starts_with(b"port") || contains(b"-port") || contains(b"-card");
    if raw.len() <= SERIAL_LIMIT && raw.iter().all(plain) && !contains(b"..") && !imitates {
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
/// A microphone without a serial number is the one that is known at its port, whatever the bus is called now. A serial
/// number that several connected microphones share does not identify them. The one at the known port keeps the id with
/// the serial number; the others get ids with their ports. A microphone keeps such an id at that port, even if it is
/// the only one with this serial number later. A microphone is omitted while its id may belong to one on a card that
/// cannot be identified.
#[must_use]
pub fn identify(
    microphones: Vec<Microphone>,
    known: &SortedMap<String, Port>,
    may_be_unclear: impl Fn(&str) -> bool,
) -> SortedMap<String, Microphone> {
    let mut counts: SortedMap<String, usize> = SortedMap::new();
    for microphone in &microphones {
        *counts.entry(base(microphone)).or_default() += 1;
    }
    let mut identified = Identified::default();
    let mut others = microphones;
    // The best rule first, for all of them, so that a weaker one cannot give the id of one to another.
    for rule in [Rule::LastingAddress, Rule::BusPath, Rule::BusPathInId] {
        for microphone in std::mem::take(&mut others) {
            match identified.known_at(known, &microphone, rule) {
                Some(id) => identified.insert(id, microphone),
                None => others.push(microphone),
            }
        }
    }
    for microphone in others {
        let base = base(&microphone);
        let id = match &microphone.usb {
            Some(Usb { serial: Some(_), .. }) if may_be_unclear(&base) => continue,
            Some(usb) if usb.serial.is_none() || counts[&base] > 1 => identified.new_id(known, &base, usb),
            _ => base,
        };
        identified.insert(id, microphone);
    }
    identified.microphones
}

/// How the port of a known microphone is recognised.
#[derive(Clone, Copy)]
enum Rule {
    /// Both lasting addresses are equal.
    LastingAddress,
    /// One of the lasting addresses is not known, and the bus paths are equal.
    BusPath,
    /// The id contains the bus path, and no lasting address is known that would contradict.
    BusPathInId,
}

/// The microphones that have an id.
#[derive(Default)]
struct Identified {
    microphones: SortedMap<String, Microphone>,
}

impl Identified {
    /// The id that is known at the port of the microphone, according to a rule.
    fn known_at(&self, known: &SortedMap<String, Port>, microphone: &Microphone, rule: Rule) -> Option<String> {
        let usb = microphone.usb.as_ref()?;
        let is_at = |id: &str, port: &Port| match rule {
            Rule::LastingAddress => port.port_path.is_some() && port.port_path == usb.port_path,
            Rule::BusPath => (port.port_path.is_none() || usb.port_path.is_none()) && port.bus_path.as_ref() == Some(&usb.bus_path),
            Rule::BusPathInId => port.port_path.is_none() && id.ends_with(&format!("-port{}", usb.bus_path)),
        };
        let base = base(microphone);
        let prefix = format!("{base}-port");
        let plain = usb.serial.as_ref().and_then(|_| known.starting_at(&base).first().filter(|(id, _)| *id == base));
        let with_prefix = known.starting_at(&prefix).iter().take_while(|(id, _)| id.starts_with(&prefix));
        let with_port = with_prefix.filter(|(id, _)| is_port_part(&id[prefix.len()..]));
        let at_port = plain.into_iter().chain(with_port).filter(|(id, port)| is_at(id, port));
        at_port.map(|(id, _)| id).find(|id| self.is_free(id, usb)).cloned()
    }

    /// An id with the port, for a microphone that is not known at it.
    fn new_id(&self, known: &SortedMap<String, Port>, base: &str, usb: &Usb) -> String {
        let id = format!("{base}-port{}", usb.bus_path);
        let place = usb.port_path.as_ref().unwrap_or(&usb.bus_path);
        let with_hash = (0..).map(|n| format!("{id}~{}", &fingerprint(format!("{place} {n}"))[..PORT_HASH]));
        let is_new = |id: &String| !known.contains_key(id) && self.is_free(id, usb);
        std::iter::once(id.clone()).chain(with_hash).find(is_new).unwrap_or(id)
    }

    /// Whether no microphone at another port has this id.
    fn is_free(&self, id: &str, usb: &Usb) -> bool {
        let other = self.microphones.get(id).and_then(|microphone| microphone.usb.as_ref());
        other.is_none_or(|other| other.bus_path == usb.bus_path)
    }

    fn insert(&mut self, id: String, microphone: Microphone) {
        // One USB device with two sound cards: no known hardware is built so, but no card may replace another.
        let id = if self.microphones.contains_key(&id) { format!("{id}-card{}", microphone.card) } else { id };
        self.microphones.insert(id, microphone);
    }
}

/// Number of hexadecimal digits of the hash after a port. The hash of an escaped serial number has eight.
const PORT_HASH: usize = 12;

/// Whether this can follow `-port` in an id: a bus path, and a hash if another microphone has the id without it.
fn is_port_part(text: &str) -> bool {
    let (bus_path, hash) = text.split_once('~').map_or((text, None), |(bus_path, hash)| (bus_path, Some(hash)));
    bus_path.starts_with(|c: char| c.is_ascii_digit())
        && bus_path.chars().all(|c| c.is_ascii_digit() || c == '-' || c == '.')
        && hash.is_none_or(|hash| hash.len() == PORT_HASH && hash.chars().all(|c| c.is_ascii_hexdigit()))
}

/// The part of an id that does not depend on the port.
fn base(microphone: &Microphone) -> String {
    match &microphone.usb {
        Some(Usb { vendor, product, serial: Some(serial), .. }) => format!("{vendor}-{product}-{serial}"),
        Some(Usb { vendor, product, serial: None, .. }) => format!("{vendor}-{product}"),
        None => format!("alsa-card{}", microphone.card),
    }
}

/// A workspace name for a device with this profile, different from all `taken` ones.
///
/// The name is `{slug}-{suffix}` with the first free suffix of: the last four letters or digits of the serial number,
/// five, and so on; the port (`1-1.4` -> `p1d1d4`); both; a hash of the id. Without a port the card (`c001`) replaces
/// it.
#[must_use]
pub fn workspace_name(slug: &str, id: &str, serial: Option<&str>, bus_path: Option<&str>, card: u64, taken: &SortedSet<&str>) -> String {
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
    format!("{PREFIX}{folder}")
}

/// The workspace folder of a container with this name.
#[must_use]
pub fn folder_of(container: &str) -> Option<&str> {
    container.strip_prefix(PREFIX)
}

/// The slug in lower case; other characters than letters and digits become a single `-`.
fn slug_part(slug: &str) -> String {
    let mut part = String::new();
    for c in slug.chars().flat_map(char::to_lowercase) {
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
        let usb = Usb {
            vendor: "0869".to_owned(),
            product: "0389".to_owned(),
            serial: serial.map(str::to_owned),
            bus_path: bus_path.to_owned(),
            port_path: None,
            address: format!("001/{card:03}"),
        };
        Microphone { card, pcm: 0, name: "Mic".to_owned(), usb: Some(usb), offer: Offer::default() }
    }

    /// At a port of the host controller `controller`.
    fn at(card: u32, serial: Option<&str>, bus_path: &str, controller: &str) -> Microphone {
        let mut microphone = usb(card, serial, bus_path);
        let ports = bus_path.split_once('-').unwrap().1;
        microphone.usb.as_mut().unwrap().port_path = Some(format!("{controller}/{ports}"));
        microphone
    }

    /// Each known port is `bus_path`, or `bus_path port_path`, or empty.
    fn ids(microphones: Vec<Microphone>, known: &[(&str, &str)]) -> Vec<(String, u32)> {
        let port = |port: &str| match port.split_once(' ') {
            Some((bus_path, port_path)) => Port { bus_path: Some(bus_path.to_owned()), port_path: Some(port_path.to_owned()) },
            None => Port { bus_path: (!port.is_empty()).then(|| port.to_owned()), port_path: None },
        };
        let known = known.iter().map(|(id, at)| ((*id).to_owned(), port(at))).collect();
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
        let seen: SortedSet<String> = unusual.iter().filter_map(|raw| serial(raw)).collect();
        assert_eq!(seen.len(), unusual.len());
        for text in seen {
            assert!(text.len() <= SERIAL_LIMIT && text.chars().all(|c| c.is_ascii_alphanumeric() || " _:+=-~".contains(c)), "{text}");
        }
    }

    #[test]
    fn an_id_contains_the_serial_number_else_the_port_else_the_card() {
        assert_eq!(ids(vec![usb(0, Some("S1"), "1-1")], &[]), [id("0869-0389-S1", 0)]);
        assert_eq!(ids(vec![usb(0, None, "1-1.4")], &[]), [id("0869-0389-port1-1.4", 0)]);
        let bare = Microphone { card: 3, pcm: 0, name: String::new(), usb: None, offer: Offer::default() };
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
    fn a_serial_number_that_imitates_another_id_is_escaped() {
        for text in ["A-port1-2", "port1-1", "portable", "A-card1", "-port", "x-port"] {
            let escaped = serial(text.as_bytes()).unwrap();
            assert!(escaped.starts_with(&format!("{text}~")), "{escaped}");
        }
        for text in ["PORT1", "support", "A-Port1", "report-1", "card1"] {
            assert_eq!(serial(text.as_bytes()).as_deref(), Some(text));
        }
    }

    #[test]
    fn a_microphone_without_a_serial_number_is_found_again_at_its_socket_whatever_the_bus_is_called() {
        let known = [("0869-0389-port1-1", "1-1 A/1"), ("0869-0389-port2-1", "2-1 B/1")];
        let swapped = vec![at(0, None, "2-1", "A"), at(1, None, "1-1", "B")];
        assert_eq!(ids(swapped, &known), [id("0869-0389-port1-1", 0), id("0869-0389-port2-1", 1)]);
        assert_eq!(ids(vec![at(0, None, "7-1", "A")], &known), [id("0869-0389-port1-1", 0)]);
        // At another socket it is another one, even if its bus path is part of a known id.
        let found = ids(vec![at(0, None, "1-1", "C")], &known);
        assert!(found[0].0.starts_with("0869-0389-port1-1~"), "{found:?}");
        let known = [&known[..], &[(found[0].0.as_str(), "1-1 C/1")]].concat();
        assert_eq!(ids(vec![at(0, None, "5-1", "C")], &known), found);
    }

    #[test]
    fn a_row_without_the_lasting_address_is_found_by_its_bus_path() {
        let known = [("0869-0389-port1-1", "1-1"), ("0869-0389-port2-1", "")];
        let found = ids(vec![at(0, None, "1-1", "A"), at(1, None, "2-1", "B")], &known);
        assert_eq!(found, [id("0869-0389-port1-1", 0), id("0869-0389-port2-1", 1)]);
        // And without a lasting address, the bus path of a row with one counts.
        assert_eq!(ids(vec![usb(0, None, "2-1")], &[("0869-0389-port1-1", "2-1 A/1")]), [id("0869-0389-port1-1", 0)]);
    }

    #[test]
    fn microphones_with_the_same_serial_number_keep_their_ids_when_buses_swap_their_numbers() {
        let known = [("0869-0389-S", "1-1 A/1"), ("0869-0389-S-port2-1", "2-1 B/1")];
        let (first, second) = (at(0, Some("S"), "2-1", "A"), at(1, Some("S"), "1-1", "B"));
        let both = [id("0869-0389-S", 0), id("0869-0389-S-port2-1", 1)];
        assert_eq!(ids(vec![first.clone(), second.clone()], &known), both);
        assert_eq!(ids(vec![first], &known), both[..1]);
        assert_eq!(ids(vec![second], &known), both[1..]);
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
        for (slug, part) in [
            ("My_Mic", "my-mic"),
            ("Rode  NT/USB!", "rode-nt-usb"),
            ("Süd 2", "s-d-2"),
            ("__a__", "a"),
            ("日本", "profile"),
            ("ÄÖÜ", "profile"),
            ("", "profile"),
            ("../..", "profile"),
        ] {
            assert_eq!(slug_part(slug), part);
        }
        assert!(is_workspace_name(&workspace_name(&"x".repeat(1_000_000), "id", Some("1234"), None, 0, &SortedSet::new())));
    }

    #[test]
    fn a_name_belongs_to_the_profile_it_was_made_for() {
        assert!(belongs_to_profile("ultramic-384-evo-6a21", "ultramic_384_evo"));
        assert!(!belongs_to_profile("a-b-6a21", "a"));
        assert!(!belongs_to_profile("ultramic-384-evo-", "ultramic_384_evo"));
        assert!(!belongs_to_profile("../../etc", "x"));
    }

    /// A microphone: its serial number, host controller (of three) and port, and whether the lasting address is known.
    type Sample = (Option<Vec<u8>>, usize, usize, bool);

    /// With a serial number that resembles parts of ids, or any other.
    fn any_microphone() -> impl Strategy<Value = Sample> {
        let part = prop::sample::select(vec!["A", "port", "-port", "1-1", "1-2", "2-1", "-card", "1", "~", "-", ".", "/", "0869"]);
        let resembling = vec(part, 0..6).prop_map(|parts| parts.concat().into_bytes());
        let serial = prop::option::of(prop_oneof![4 => resembling, 1 => vec(any::<u8>(), 0..130)]);
        (serial, 0..3_usize, 1..3_usize, any::<bool>())
    }

    fn serial_of((raw, ..): &Sample) -> Option<String> {
        raw.as_ref().and_then(|raw| serial(raw))
    }

    /// It, when the buses of the host controllers have these numbers.
    fn connected(card: u32, sample: &Sample, buses: [u32; 3]) -> Microphone {
        let (_, controller, port, has_path) = sample;
        let bus_path = format!("{}-{port}", buses[*controller]);
        let mut microphone = at(card, serial_of(sample).as_deref(), &bus_path, ["A", "B", "C"][*controller]);
        if !has_path {
            microphone.usb.as_mut().unwrap().port_path = None;
        }
        microphone
    }

    fn as_known(identified: &SortedMap<String, Microphone>) -> impl Iterator<Item = (String, Port)> {
        identified.iter().map(|(id, microphone)| (id.clone(), microphone.usb.as_ref().unwrap().into()))
    }

    proptest! {
        #[test]
        fn different_microphones_at_different_ports_have_different_ids_whatever_is_known(
            one in any_microphone(),
            other in any_microphone(),
            known in vec((any_microphone(), any::<bool>()), 0..4),
        ) {
            prop_assume!((one.1, one.2) != (other.1, other.2));
            let mut rows = SortedMap::new();
            for (row, has_path) in &known {
                let earlier = identify(vec![connected(0, row, [2, 3, 1])], &rows, |_| false);
                for (id, port) in as_known(&earlier) {
                    rows.insert(id, Port { port_path: port.port_path.filter(|_| *has_path), ..port });
                }
            }
            let pair = || vec![connected(0, &one, [1, 2, 3]), connected(1, &other, [1, 2, 3])];
            let both = identify(pair(), &rows, |_| false);
            prop_assert_eq!(both.len(), 2, "{:?}", both);
            // And they keep them.
            rows.extend(as_known(&both));
            prop_assert_eq!(identify(pair(), &rows, |_| false), both);
        }

        #[test]
        fn no_microphone_takes_the_row_of_another_one(one in any_microphone(), other in any_microphone()) {
            let same_serial = serial_of(&one) == serial_of(&other);
            prop_assume!(!same_serial || (serial_of(&one).is_none() && (one.1, one.2) != (other.1, other.2)));
            let first = identify(vec![connected(0, &one, [1, 2, 3])], &SortedMap::new(), |_| false);
            let second = identify(vec![connected(0, &other, [1, 2, 3])], &as_known(&first).collect(), |_| false);
            prop_assert_ne!(first.keys().next(), second.keys().next());
        }

        #[test]
        fn ids_do_not_depend_on_the_numbers_of_buses(
            samples in vec(any_microphone(), 1..5),
            before in Just([1, 2, 3]).prop_shuffle(),
            after in Just([1, 2, 3]).prop_shuffle(),
        ) {
            let mut ports = SortedSet::new();
            let samples: Vec<Sample> = samples.into_iter().filter(|sample| ports.insert((sample.1, sample.2))).collect();
            let boot = |buses, rows: &SortedMap<String, Port>| {
                let with_path = |sample: &Sample| (sample.0.clone(), sample.1, sample.2, true);
                identify(samples.iter().zip(0..).map(|(sample, card)| connected(card, &with_path(sample), buses)).collect(), rows, |_| false)
            };
            let cards = |identified: &SortedMap<String, Microphone>| identified.iter().map(|(id, found)| (id.clone(), found.card)).collect::<Vec<_>>();
            let first = boot(before, &SortedMap::new());
            prop_assert_eq!(cards(&boot(after, &as_known(&first).collect())), cards(&first));
        }

        #[test]
        fn ids_and_workspace_names_are_valid_and_unique_for_any_usb_strings(
            serials in vec(vec(any::<u8>(), 0..130), 1..6),
            slug in vec(any::<char>(), 0..100).prop_map(String::from_iter),
        ) {
            let microphones = serials.iter().zip(1..).map(|(raw, n)| usb(n, serial(raw).as_deref(), &format!("1-{n}"))).collect();
            let found = identify(microphones, &SortedMap::new(), |_| false);
            prop_assert_eq!(found.len(), serials.len(), "each has its own id");
            let mut names: SortedSet<String> = SortedSet::new();
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
