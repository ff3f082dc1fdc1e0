//! Finds the USB microphones of this machine in `<root>/proc/asound` and `<root>/sys`.
//!
//! The text of `/proc/asound/cards` cannot be trusted: a product string with a line break forges whole lines in it.
//! Therefore only the driver and the name of a card are read from it. Whether a card exists, and which USB device it
//! is, is read from entries that the kernel alone writes: `/proc/asound/cardN/usbid`, `usbbus` and sysfs, which must
//! agree.
//!
//! Unknown is not empty: a source that cannot be read or is implausible is an [`Unknown`]. A card whose entries are
//! incomplete or contradictory, as it is being connected or disconnected, is listed as unclear and scanned again. So is
//! one whose directories are not the same after the last read as before the first: its entries may be of two devices.
//!
//! A scan takes hundreds of system calls, and one of them can block: the kernel holds the lock of a USB device while it
//! resets it, and reading `serial` waits for that lock. So [`scan`] belongs on a thread of its own. To check whether a
//! scan is due, [`Watched::is_unchanged`] reads `/proc/asound` only, which no device can block.

use crate::collect::sort;
use crate::sorted_map::SortedMap;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, openat};

use crate::decide::device::{Microphone, Usb, serial};
use crate::decide::scan::{Scan, Signature, Unknown, UsbAddress};
use crate::hardware::formats;
use crate::text::shown;

/// Much more than 32 cards need.
const CARDS_LIMIT: u64 = 64 << 10;
const ATTRIBUTE_LIMIT: u64 = 4 << 10;

/// The files that show a change, and what they contained at a scan.
#[derive(Debug)]
pub struct Watched(Vec<(PathBuf, Vec<u8>)>);

impl Watched {
    /// Those of a scan below `root`.
    #[must_use]
    pub fn new(signature: &Signature, root: &Path) -> Self {
        let asound = root.join("proc/asound");
        let cards = (asound.join("cards"), signature.cards.clone());
        let addresses = signature.addresses.iter().map(|(card, address)| (asound.join(format!("card{card}/usbbus")), address.clone()));
        Self([cards].into_iter().chain(addresses).collect())
    }

    /// Whether nothing has changed. This costs three system calls for the list and three for each USB card.
    #[must_use]
    pub fn is_unchanged(&self) -> bool {
        let mut buffer = [0; 8 << 10];
        // The kernel creates the content of each of these small files when it is opened, and returns it in one read.
        self.0.iter().all(|(path, expected)| match crate::fs::open(path).and_then(|mut file| file.read(&mut buffer)) {
            Ok(length) => buffer[..length] == **expected,
            Err(error) => error.kind() == ErrorKind::NotFound && expected.is_empty(),
        })
    }
}

/// Scans all sound cards below `root`, except those in `stuck` that have the same USB address. Calls `begin` before
/// each.
///
/// # Errors
/// [`Unknown`], if `/proc/asound` cannot be read or is implausible.
pub fn scan(root: &Path, stuck: &[(u32, UsbAddress)], begin: impl Fn(u32, &UsbAddress)) -> Result<Scan, Unknown> {
    let asound = root.join("proc/asound");
    let text = match read(crate::fs::open(&asound.join("cards")), CARDS_LIMIT) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound && sound_is_not_loaded(root) => return Ok(Scan::default()),
        Err(error) => return Err(Unknown(format!("{}: {error}", asound.join("cards").display()))),
    };
    let lines = parse_cards(&text).map_err(|why| Unknown(format!("{}: {why}", asound.join("cards").display())))?;
    let present = card_directories(&asound).map_err(|error| Unknown(format!("{}: {error}", asound.display())))?;
    if present.is_empty() && !lines.is_empty() {
        return Err(Unknown(format!("{}: lists cards, but there is no directory of any of them", asound.join("cards").display())));
    }
    let mut scan = Scan { signature: Signature { cards: text, addresses: SortedMap::new() }, ..Scan::default() };
    for card in present {
        let address = read(crate::fs::open(&asound.join(format!("card{card}/usbbus"))), ATTRIBUTE_LIMIT).unwrap_or_default();
        scan.signature.addresses.insert(card, address.clone());
        let card_at = (card, address);
        if stuck.contains(&card_at) {
            scan.unclear.push((card, "it does not respond".to_owned()));
            continue;
        }
        begin(card, &card_at.1);
        match read_card(root, card, lines.get(&card).map(Vec::as_slice)) {
            Ok(Some(microphone)) => scan.microphones.push(microphone),
            Ok(None) => {}
            Err(why) => scan.unclear.push((card, why)),
        }
    }
    Ok(scan)
}

/// A kernel without sound modules has neither tree. If only one of them is hidden (in a container, `/proc/asound` is
/// masked), the other one exists.
fn sound_is_not_loaded(root: &Path) -> bool {
    let absent = |path: &str| matches!(fs::symlink_metadata(root.join(path)), Err(error) if error.kind() == ErrorKind::NotFound);
    absent("proc/asound") && absent("sys/class/sound") && fs::read_dir(root.join("sys/bus")).is_ok()
}

/// One line of `/proc/asound/cards`, genuine or forged.
#[derive(Debug, PartialEq, Eq)]
pub struct CardLine {
    /// The card's short id, `r4`.
    pub id: String,
    /// The driver, `USB-Audio`.
    pub driver: String,
    /// The card's name.
    pub name: String,
}

/// Parses `/proc/asound/cards` into its lines by card index. An index has several lines if some are forged.
///
/// # Errors
/// Why it is not such a file: it is empty, or has neither a line of a card nor the line that there are no cards.
pub fn parse_cards(text: &[u8]) -> Result<SortedMap<u32, Vec<CardLine>>, String> {
    let text = String::from_utf8_lossy(text);
    if text.trim() == "--- no soundcards ---" {
        return Ok(SortedMap::new());
    }
    if !text.is_empty() && !text.ends_with('\n') {
        return Err(format!("expected whole lines, got the end {:?}", shown(text.lines().next_back().unwrap_or_default()).to_string()));
    }
    let mut cards: SortedMap<u32, Vec<CardLine>> = SortedMap::new();
    for (index, line) in text.lines().filter_map(parse_card_line) {
        cards.entry(index).or_default().push(line);
    }
    if cards.is_empty() {
        return Err(format!("expected lines like ` 0 [id]: driver - name`, got {:?}", shown(&text).to_string()));
    }
    Ok(cards)
}

/// ` 0 [r4             ]: USB-Audio - UltraMic384K_EVO 16bit r4`
fn parse_card_line(line: &str) -> Option<(u32, CardLine)> {
    let (index, rest) = line.split_once('[')?;
    let (id, rest) = rest.split_once("]: ")?;
    let (driver, name) = rest.split_once(" - ").unwrap_or((rest, ""));
    // Neither PostgreSQL nor an environment variable can contain NUL.
    let line = CardLine { id: id.trim().to_owned(), driver: driver.to_owned(), name: name.trim().replace('\0', "\u{fffd}") };
    Some((index.trim().parse().ok()?, line))
}

/// The indexes N of the directories `/proc/asound/cardN`, which only the kernel creates.
fn card_directories(asound: &Path) -> io::Result<Vec<u32>> {
    let mut cards = Vec::new();
    for entry in fs::read_dir(asound)? {
        let name = entry?.file_name();
        // A link is named after the id of a card, and that may be `card7`.
        let index = name.to_str().and_then(|name| name.strip_prefix("card")).and_then(|index| index.parse().ok());
        if let Some(index) = index.filter(|_| asound.join(&name).symlink_metadata().is_ok_and(|entry| entry.is_dir())) {
            cards.push(index);
        }
    }
    sort(&mut cards);
    Ok(cards)
}

/// The microphone that is this card, `None` if it is not a microphone, or why that is unknown.
fn read_card(root: &Path, card: u32, lines: Option<&[CardLine]>) -> Result<Option<Microphone>, String> {
    let lines = lines.ok_or("not in /proc/asound/cards yet")?;
    let entry = Directory::open(root.join(format!("proc/asound/card{card}")))?;
    let usb_lines: Vec<&CardLine> = lines.iter().filter(|line| line.driver == "USB-Audio").collect();
    let ids = match entry.attribute("usbid") {
        Ok(ids) if usb_lines.is_empty() => return Err(format!("USB ids {} and another driver than USB-Audio", shown(&ids))),
        Ok(ids) => ids,
        Err(_) if usb_lines.is_empty() => return Ok(None),
        // The entry of the USB driver is missing: the product string of another card forged the line.
        Err(_) if lines.len() > 1 => return Ok(None),
        Err(why) => return Err(why),
    };
    let class = root.join("sys/class/sound").join(format!("card{card}"));
    let resolve = || fs::canonicalize(&class).map_err(|error| format!("{}: {error}", class.display()));
    let changed = || Err("its entries changed while they were read".to_owned());
    let directory = resolve()?;
    let Some(pcm) = capture_pcm(&directory, card)? else {
        return if entry.is_current() && resolve()? == directory { Ok(None) } else { changed() };
    };
    let id = entry.attribute("id")?;
    let name = usb_lines.iter().find(|line| line.id == id).unwrap_or(&usb_lines[0]).name.clone();
    // It has USB ids, so it has a USB device that cannot be found at this moment.
    let sys = root.join("sys");
    let sys = fs::canonicalize(&sys).map_err(|error| format!("{}: {error}", sys.display()))?;
    let parent = usb_parent(&sys, &directory)?.ok_or_else(|| format!("{}: no USB device above", directory.display()))?;
    let parent = Directory::open(parent)?;
    let usb = read_usb(&sys, &parent, entry.attribute("usbbus")?)?;
    // What cannot be read prevents nothing.
    let offer = formats::read(root, card, pcm).unwrap_or_default().into();
    if !entry.is_current() || !parent.is_current() || resolve()? != directory {
        return changed();
    }
    if ids != format!("{}:{}", usb.vendor, usb.product) {
        return Err(format!("USB ids {}:{} in sysfs, {} in /proc/asound", usb.vendor, usb.product, shown(&ids)));
    }
    Ok(Some(Microphone { card, pcm, name, usb: Some(usb), offer }))
}

/// A directory whose entries are read through its open file, so that all of them are of one generation. The kernel gives
/// a device that is connected again another directory, and no entry of the old one can be opened after it was removed.
struct Directory {
    path: PathBuf,
    file: File,
}

impl Directory {
    fn open(path: PathBuf) -> Result<Self, String> {
        let file = File::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { path, file })
    }

    fn read(&self, name: &str) -> io::Result<Vec<u8>> {
        let file = openat(&self.file, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map(File::from);
        read(file.map_err(io::Error::from), ATTRIBUTE_LIMIT)
    }

    fn attribute(&self, name: &str) -> Result<String, String> {
        let raw = self.read(name).map_err(|error| format!("{}: {error}", self.path.join(name).display()))?;
        Ok(String::from_utf8_lossy(&raw).trim_end().to_owned())
    }

    /// Whether the path still leads to this directory. While it is open, no other one can get its inode number.
    fn is_current(&self) -> bool {
        let identity = |metadata: io::Result<fs::Metadata>| metadata.map(|metadata| (metadata.dev(), metadata.ino())).ok();
        let open = identity(self.file.metadata());
        open.is_some() && open == identity(fs::metadata(&self.path))
    }
}

/// The lowest M of the entries `pcmC<N>D<M>c` in the directory of the card; `None` if it cannot capture.
fn capture_pcm(directory: &Path, card: u32) -> Result<Option<u32>, String> {
    let mut lowest: Option<u32> = None;
    let prefix = format!("pcmC{card}D");
    let entries = fs::read_dir(directory).map_err(|error| format!("{}: {error}", directory.display()))?;
    for entry in entries {
        let entry = entry.map_err(|error| format!("{}: {error}", directory.display()))?;
        let name = entry.file_name();
        let pcm = name.to_str().and_then(|name| name.strip_prefix(&prefix)?.strip_suffix('c')?.parse().ok());
        lowest = lowest.into_iter().chain(pcm).min();
    }
    Ok(lowest)
}

/// The nearest ancestor directory that is a USB device.
fn usb_parent(sys: &Path, directory: &Path) -> Result<Option<PathBuf>, String> {
    for ancestor in directory.ancestors().take_while(|ancestor| ancestor.starts_with(sys) && *ancestor != sys) {
        match fs::read_link(ancestor.join("subsystem")) {
            Ok(subsystem) if subsystem.file_name().is_some_and(|name| name == "usb") => {
                if attribute(&ancestor.join("uevent"))?.lines().any(|line| line == "DEVTYPE=usb_device") {
                    return Ok(Some(ancestor.to_owned()));
                }
            }
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(format!("{}: {error}", ancestor.join("subsystem").display())),
        }
    }
    Ok(None)
}

fn read_usb(sys: &Path, parent: &Directory, address: String) -> Result<Usb, String> {
    let serial = match parent.read("serial") {
        Ok(raw) => serial(&raw),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(format!("{}: {error}", parent.path.join("serial").display())),
    };
    let uevent = parent.attribute("uevent")?;
    let field = |name: &str| uevent.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    let found = format!("{}/{}", field("BUSNUM="), field("DEVNUM="));
    if found != address {
        return Err(format!("USB address {} in sysfs, {} in /proc/asound", shown(&found), shown(&address)));
    }
    let bus_path = parent.path.file_name().and_then(|name| name.to_str()).filter(|name| is_bus_path(name)).map(str::to_owned);
    // Read last: if the device is disconnected by now, this fails, and its missing serial does not count as absent.
    let vendor = usb_id(parent, "idVendor")?;
    let product = usb_id(parent, "idProduct")?;
    let bus_path = bus_path.ok_or_else(|| format!("{}: expected a USB bus path such as 1-1.4", parent.path.display()))?;
    let port_path = port_path(sys, &parent.path, &bus_path)?;
    Ok(Usb { vendor, product, serial, bus_path, port_path, address })
}

/// The lasting address of a port: the directory of the host controller below `sys/devices`, and the port numbers from
/// its root hub on, such as `pci0000:00/0000:00:07.0/4.2`. The number of a bus depends on the order in which the
/// controllers are found. `None` if there is no controller above the device.
fn port_path(sys: &Path, parent: &Path, bus_path: &str) -> Result<Option<String>, String> {
    let bus = |name: &str| name.strip_prefix("usb").and_then(|number| number.parse::<u32>().ok());
    let root_hub = parent.ancestors().find_map(|path| Some((path, bus(path.file_name()?.to_str()?)?)));
    let (Some((root_hub, number)), Some((_, ports))) = (root_hub, bus_path.split_once('-')) else { return Ok(None) };
    let Some(controller) = root_hub.parent() else { return Ok(None) };
    let Some(place) = controller.strip_prefix(sys.join("devices")).ok().and_then(Path::to_str).filter(|place| !place.is_empty()) else {
        return Ok(None);
    };
    // A controller of USB 3 has two root hubs with ports of their own, always the one of USB 2 first.
    let hubs = names(controller)?.iter().filter_map(|name| bus(name)).filter(|other| *other < number).count();
    let hub = if hubs == 0 { String::new() } else { format!("hub{}/", hubs + 1) };
    Ok(Some(format!("{}/{hub}{ports}", without_order(controller, place)?)))
}

/// `place` without the number of a platform device such as `xhci-hcd.1`, which the kernel counts in the order in which
/// it finds them. It remains below `platform` itself, and beside another one, as nothing else distinguishes them.
fn without_order(controller: &Path, place: &str) -> Result<String, String> {
    let stem = |name: &str| {
        let (stem, number) = name.strip_suffix(".auto").unwrap_or(name).rsplit_once('.')?;
        let is_counted = !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit());
        (is_counted && stem.starts_with(|c: char| c.is_ascii_alphabetic())).then(|| stem.to_owned())
    };
    let Some((above, name)) = place.rsplit_once('/') else { return Ok(place.to_owned()) };
    let (Some(own), Some(folder)) = (stem(name), controller.parent().filter(|_| above != "platform")) else { return Ok(place.to_owned()) };
    let alike = names(folder)?.iter().filter(|other| stem(other).as_ref() == Some(&own)).count();
    Ok(if alike == 1 { format!("{above}/{own}") } else { place.to_owned() })
}

/// The names in a directory.
fn names(directory: &Path) -> Result<Vec<String>, String> {
    let names = fs::read_dir(directory).and_then(|entries| {
        entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect::<io::Result<Vec<String>>>()
    });
    names.map_err(|error| format!("{}: {error}", directory.display()))
}

fn is_bus_path(name: &str) -> bool {
    name.len() <= 64 && name.starts_with(|c: char| c.is_ascii_digit()) && name.chars().all(|c| c.is_ascii_digit() || c == '-' || c == '.')
}

fn usb_id(parent: &Directory, name: &str) -> Result<String, String> {
    let text = parent.attribute(name)?;
    if text.len() == 4 && text.chars().all(|c| c.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(format!("{}: expected four hexadecimal digits, got {:?}", parent.path.join(name).display(), shown(&text).to_string()))
    }
}

fn attribute(path: &Path) -> Result<String, String> {
    let raw = read(File::open(path), ATTRIBUTE_LIMIT).map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(String::from_utf8_lossy(&raw).trim_end().to_owned())
}

fn read(file: io::Result<File>, limit: u64) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    file?.take(limit).read_to_end(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::test_runner::TestRunner;
    use std::io::Write as _;
    use std::os::unix::fs::symlink;
    use std::process::Command;
    use std::thread;

    #[test]
    fn cards_are_read_line_by_line() {
        let text = b" 0 [r4             ]: USB-Audio - UltraMic384K_EVO 16bit r4\n                      Dodotronic at usb-1, full speed\n10 [Intel          ]: HDA-Intel - HDA Intel\n";
        let cards = parse_cards(text).unwrap();
        assert_eq!(cards.keys().copied().collect::<Vec<_>>(), [0, 10]);
        assert_eq!(cards[&0][0], CardLine { id: "r4".into(), driver: "USB-Audio".into(), name: "UltraMic384K_EVO 16bit r4".into() });
    }

    #[test]
    fn no_soundcards_is_a_valid_list_and_an_empty_file_is_not() {
        assert_eq!(parse_cards(b"--- no soundcards ---\n").unwrap(), SortedMap::new());
        for garbage in [&b""[..], b"\n", b" 0 [r4   ", b"\xff\xfe", b"<html>"] {
            assert!(parse_cards(garbage).is_err(), "{garbage:?}");
        }
    }

    /// A tree below the temporary directory that contains one USB microphone, card 0, and nothing else.
    struct Tree(PathBuf);

    impl Tree {
        /// The file `cards`, and the name of the card.
        fn list(&self) {
            let asound = self.0.join("proc/asound");
            fs::write(asound.join("cards"), " 0 [r4             ]: USB-Audio - Mic\n                      Mic\n").unwrap();
            fs::write(asound.join("card0/id"), "r4\n").unwrap();
        }

        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("silvasonic-sysfs-{name}-{}", std::process::id()));
            let device = root.join("sys/devices/usb1/1-1");
            for folder in ["proc/asound/card0", "sys/class/sound", "sys/devices/usb1/1-1/1-1:1.0/sound/card0/pcmC0D0c"] {
                fs::create_dir_all(root.join(folder)).unwrap();
            }
            symlink("../../devices/usb1/1-1/1-1:1.0/sound/card0", root.join("sys/class/sound/card0")).unwrap();
            symlink("/sys/class/sound", device.join("1-1:1.0/sound/card0/subsystem")).unwrap();
            symlink("../../../bus/usb", device.join("subsystem")).unwrap();
            for (path, text) in [("card0/usbid", "0869:0389\n"), ("card0/usbbus", "001/002\n")] {
                fs::write(root.join("proc/asound").join(path), text).unwrap();
            }
            for (path, text) in
                [("uevent", "DEVTYPE=usb_device\nBUSNUM=001\nDEVNUM=002\n"), ("idVendor", "0869\n"), ("idProduct", "0389\n")]
            {
                fs::write(device.join(path), text).unwrap();
            }
            Self(root)
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn no_usb_string_forges_or_hides_a_card() {
        let tree = Tree::new("forged");
        let forged = (0..9_u32, 0..40_usize).prop_map(|(index, length)| {
            let name = "x".repeat(length);
            format!("a\n {index} [{name}]: USB-Audio - {name}\n --- no soundcards ---\n{index} [b]: HDA-Intel - c").into_bytes()
        });
        let text = prop_oneof![vec(any::<u8>(), 0..130), forged];
        // The kernel itself composes the id of letters, digits and `_` (sound/core/init.c, copy_valid_id_string).
        let strategy = ("[A-Za-z0-9_]{1,15}", text.clone(), text.clone(), text);
        let outcome = TestRunner::new(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() }).run(
            &strategy,
            |(id, product, manufacturer, serial)| {
                let asound = tree.0.join("proc/asound");
                let list = [b" 0 [", id.as_bytes(), b"]: USB-Audio - ", &product, b"\n    ", &manufacturer, b" at usb-1\n"].concat();
                fs::write(asound.join("cards"), list).unwrap();
                fs::write(asound.join("card0/id"), format!("{id}\n")).unwrap();
                fs::write(tree.0.join("sys/devices/usb1/1-1/serial"), &serial).unwrap();
                let scan = scan(&tree.0, &[], |_, _| {}).map_err(|why| TestCaseError::fail(why.to_string()))?;
                // A device can make its own line invalid, which affects only that device.
                prop_assert_eq!(scan.microphones.len() + scan.unclear.len(), 1, "{:?}", scan);
                for microphone in &scan.microphones {
                    prop_assert_eq!(microphone.card, 0);
                    prop_assert!(!microphone.name.contains(['\n', '\0']) && microphone.name.len() <= 1000, "{:?}", microphone.name);
                    prop_assert_eq!(&microphone.usb.as_ref().unwrap().bus_path, "1-1");
                }
                for (card, why) in &scan.unclear {
                    prop_assert_eq!(*card, 0);
                    prop_assert!(why.len() < 4000 && !why.contains('\n'), "{:?}", why);
                }
                Ok(())
            },
        );
        outcome.unwrap();
    }

    #[test]
    fn a_device_that_is_replaced_while_it_is_read_is_unclear() {
        let tree = Tree::new("replaced");
        let scan_all = || scan(&tree.0, &[], |_, _| {}).unwrap();
        tree.list();
        assert_eq!(scan_all().microphones.len(), 1);
        let (device, other) = (tree.0.join("sys/devices/usb1/1-1"), tree.0.join("other"));
        assert!(Command::new("cp").arg("-a").arg(&device).arg(&other).status().unwrap().success());
        fs::write(other.join("serial"), "S1\n").unwrap();
        // The scan waits for this id while the device returns: its serial number was not there, and is there now.
        let vendor = device.join("idVendor");
        fs::remove_file(&vendor).unwrap();
        assert!(Command::new("mkfifo").arg(&vendor).status().unwrap().success());
        let found = thread::scope(|scope| {
            let scan = scope.spawn(scan_all);
            let mut writer = fs::OpenOptions::new().write(true).open(&vendor).unwrap();
            fs::rename(&device, tree.0.join("old")).unwrap();
            fs::rename(&other, &device).unwrap();
            writer.write_all(b"0869\n").unwrap();
            drop(writer);
            scan.join().unwrap()
        });
        assert_eq!((found.microphones.len(), found.unclear.len()), (0, 1), "{found:?}");
        assert_eq!(scan_all().microphones[0].usb.as_ref().unwrap().serial.as_deref(), Some("S1"));
    }

    #[test]
    fn a_card_that_is_replaced_while_it_is_read_is_unclear() {
        let tree = Tree::new("card");
        tree.list();
        let (card, other) = (tree.0.join("proc/asound/card0"), tree.0.join("other"));
        assert!(Command::new("cp").arg("-a").arg(&card).arg(&other).status().unwrap().success());
        let vendor = tree.0.join("sys/devices/usb1/1-1/idVendor");
        fs::remove_file(&vendor).unwrap();
        assert!(Command::new("mkfifo").arg(&vendor).status().unwrap().success());
        let found = thread::scope(|scope| {
            let scan = scope.spawn(|| scan(&tree.0, &[], |_, _| {}).unwrap());
            let mut writer = fs::OpenOptions::new().write(true).open(&vendor).unwrap();
            fs::rename(&card, tree.0.join("old")).unwrap();
            fs::rename(&other, &card).unwrap();
            writer.write_all(b"0869\n").unwrap();
            drop(writer);
            scan.join().unwrap()
        });
        assert_eq!((found.microphones.len(), found.unclear.len()), (0, 1), "{found:?}");
    }

    #[test]
    fn the_lowest_capture_pcm_counts() {
        let tree = Tree::new("pcms");
        let directory = fs::canonicalize(tree.0.join("sys/class/sound/card0")).unwrap();
        for name in ["pcmC0D10c", "pcmC0D2c", "pcmC0D1p", "pcmC0D0p", "pcmC01D0c", "pcmC0Dxc", "controlC0"] {
            fs::create_dir(directory.join(name)).unwrap();
        }
        assert_eq!(capture_pcm(&directory, 0), Ok(Some(0)));
        fs::remove_dir(directory.join("pcmC0D0c")).unwrap();
        assert_eq!(capture_pcm(&directory, 0), Ok(Some(2)));
        assert_eq!(capture_pcm(&directory, 1), Ok(None));
    }

    #[test]
    fn the_address_of_a_port_does_not_depend_on_the_order_of_host_controllers() {
        let tree = Tree::new("ports");
        let sys = tree.0.join("sys");
        let address = |path: &str| {
            let parent = sys.join("devices").join(path);
            fs::create_dir_all(&parent).unwrap();
            port_path(&sys, &parent, path.rsplit('/').next().unwrap()).unwrap()
        };
        let (pci, pi) = ("pci0000:00/0000:00:07.0", "platform/axi/1000120000.pcie/1f00200000.usb");
        for (path, expected) in [
            (format!("{pci}/usb1/1-4/1-4.2"), "pci0000:00/0000:00:07.0/4.2"),
            (format!("{pci}/usb2/2-4"), "pci0000:00/0000:00:07.0/hub2/4"),
            ("pci0000:00/0000:00:08.0/usb10/10-4".to_owned(), "pci0000:00/0000:00:08.0/4"),
            (format!("{pi}/xhci-hcd.1/usb3/3-1"), "platform/axi/1000120000.pcie/1f00200000.usb/xhci-hcd/1"),
            ("platform/soc/fe980000.usb/usb4/4-1.1".to_owned(), "platform/soc/fe980000.usb/1.1"),
            ("platform/soc/xhci-hcd.5.auto/usb5/5-2".to_owned(), "platform/soc/xhci-hcd/2"),
            ("platform/xhci-hcd.0/usb6/6-2".to_owned(), "platform/xhci-hcd.0/2"),
        ] {
            assert_eq!(address(&path).as_deref(), Some(expected), "{path}");
        }
        // Two at one place are distinguished by their numbers alone.
        let both = "platform/axi/1000120000.pcie/1f00200000.usb/xhci-hcd.0/usb7/7-1";
        assert_eq!(address(both).as_deref(), Some("platform/axi/1000120000.pcie/1f00200000.usb/xhci-hcd.0/1"));
        assert_eq!(address("usb9/9-1"), None);
        assert_eq!(address("pci0000:00/0000:00:09.0/1-1"), None);
    }

    #[test]
    fn a_missing_root_is_unknown() {
        let error = scan(Path::new("/nonexistent"), &[], |_, _| {}).unwrap_err().to_string();
        assert!(error.starts_with("/nonexistent/proc/asound/cards: "), "{error}");
    }
}
