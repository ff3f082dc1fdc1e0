//! Hardware trees: `proc/asound`, `sys` and `dev/snd` as the kernel shows them, recorded (tests/fixtures) or composed.
//!
//! What the Controller is given is a symbolic link, `host`. A new state is built beside the old one and the link is
//! renamed over, so a reader that opens one path sees either state and never a half-written one. Old states stay until
//! the station is gone: who is still reading one is not disturbed.

mod compose;

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

/// One sound card as a tree shows it. Make one with a preset, then alter it: `Card::ultramic().at("1-4.2").index(3)`.
#[derive(Clone, Debug)]
pub(crate) struct Card {
    pub(crate) index: u32,
    /// ALSA's short identifier, the name in brackets in `/proc/asound/cards`.
    pub(crate) id: String,
    /// What the USB device calls itself; any bytes.
    pub(crate) name: Vec<u8>,
    pub(crate) manufacturer: Vec<u8>,
    pub(crate) vid: String,
    pub(crate) pid: String,
    /// None: no `serial` file.
    pub(crate) serial: Option<Vec<u8>>,
    /// Name of the USB device's directory, such as `1-4.2`; None: a card without a USB parent.
    pub(crate) bus_path: Option<String>,
    /// The PCI device of the host controller of its bus.
    pub(crate) controller: String,
    /// Its USB device number; None: the next one.
    pub(crate) number: Option<u32>,
    /// How many capture PCMs it has; a speaker has none.
    pub(crate) captures: u32,
    pub(crate) playback: bool,
}

impl Card {
    fn usb(id: &str, manufacturer: &str, name: &str, ids: &str, port: &str) -> Card {
        let (vid, pid) = ids.split_once(':').expect("vendor:product");
        Card {
            index: 0,
            id: id.to_owned(),
            name: name.into(),
            manufacturer: manufacturer.into(),
            vid: vid.to_owned(),
            pid: pid.to_owned(),
            serial: None,
            bus_path: Some(port.to_owned()),
            controller: compose::PCI.to_owned(),
            number: None,
            captures: 1,
            playback: false,
        }
    }

    /// The recorded one: 0869:0389, serial 034F6A21, at 1-1.
    pub(crate) fn ultramic() -> Card {
        Card::usb("r4", "Dodotronic", "UltraMic384K_EVO 16bit r4", "0869:0389", "1-1").serial("034F6A21")
    }

    /// The nth of many UltraMics: its own card index, serial and port.
    pub(crate) fn numbered(n: u32) -> Card {
        Card::ultramic().index(n).id(&format!("r4_{n}")).serial(format!("SER{n:04}")).at(&format!("1-{}", n + 1))
    }

    /// The name of its Recorder's container.
    pub(crate) fn numbered_recorder(n: u32) -> String {
        format!("silvasonic-recorder-ultramic-384-evo-{n:04}")
    }

    /// 19f7:0003 without a serial, at 1-2; it can play as well.
    pub(crate) fn rode() -> Card {
        Card { playback: true, ..Card::usb("NTUSB", "RODE Microphones", "RODE NT-USB", "19f7:0003", "1-2") }
    }

    /// A cheap interface, 0d8c:0014 without a serial.
    pub(crate) fn generic(index: u32, port: &str) -> Card {
        let id = if index == 0 { "Device".to_owned() } else { format!("Device_{index}") };
        Card::usb(&id, "C-Media Electronics Inc.", "USB Audio Device", "0d8c:0014", port).index(index)
    }

    /// 1397:0509 with two capture PCMs, serial MC0001, at 1-1.
    pub(crate) fn behringer() -> Card {
        let card = Card::usb("Box", "BEHRINGER", "Two Capture Box", "1397:0509", "1-1").serial("MC0001");
        Card { captures: 2, playback: true, ..card }
    }

    /// 046d:0a4d at 1-1, which cannot record.
    pub(crate) fn speaker() -> Card {
        Card { captures: 0, playback: true, ..Card::usb("Speaker", "Logitech", "USB Speaker", "046d:0a4d", "1-1") }
    }

    /// On a bus of another host controller, e.g. `0000:00:08.0`; all cards of a bus have the same one.
    pub(crate) fn on(mut self, controller: &str) -> Card {
        self.controller = controller.to_owned();
        self
    }

    pub(crate) fn index(mut self, index: u32) -> Card {
        self.index = index;
        self
    }

    pub(crate) fn id(mut self, id: &str) -> Card {
        self.id = id.to_owned();
        self
    }

    pub(crate) fn name(mut self, name: impl Into<Vec<u8>>) -> Card {
        self.name = name.into();
        self
    }

    pub(crate) fn manufacturer(mut self, manufacturer: impl Into<Vec<u8>>) -> Card {
        self.manufacturer = manufacturer.into();
        self
    }

    /// Vendor and product, e.g. `0869:0389`.
    pub(crate) fn ids(mut self, ids: &str) -> Card {
        let (vid, pid) = ids.split_once(':').expect("vendor:product");
        (self.vid, self.pid) = (vid.to_owned(), pid.to_owned());
        self
    }

    pub(crate) fn serial(mut self, serial: impl Into<Vec<u8>>) -> Card {
        self.serial = Some(serial.into());
        self
    }

    pub(crate) fn no_serial(mut self) -> Card {
        self.serial = None;
        self
    }

    /// Plugged into that USB port; `1-4.2` lies behind a hub at `1-4`.
    pub(crate) fn at(mut self, bus_path: &str) -> Card {
        self.bus_path = Some(bus_path.to_owned());
        self
    }

    /// The kernel gives a new number at each plugging.
    pub(crate) fn number(mut self, number: u32) -> Card {
        self.number = Some(number);
        self
    }

    /// Without a USB parent, as some virtual or platform cards are.
    pub(crate) fn without_usb(mut self) -> Card {
        self.bus_path = None;
        self
    }
}

/// The hardware of a station.
pub(crate) struct Tree {
    dir: PathBuf,
    root: PathBuf,
    states: Cell<u32>,
}

impl Tree {
    /// Below `station`; no card is plugged.
    pub(crate) fn new(station: &Path) -> Tree {
        let tree = Tree { dir: station.join("hardware"), root: station.join("host"), states: Cell::new(0) };
        fs::create_dir(&tree.dir).unwrap();
        tree.set(&[]);
        tree
    }

    /// For `SILVASONIC_HOST_ROOT`.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Shows exactly these cards.
    pub(crate) fn set(&self, cards: &[Card]) {
        self.next(|root| compose::write(root, cards));
    }

    /// Shows a recorded tree, e.g. `02-ultramic-serial`.
    pub(crate) fn fixture(&self, name: &str) {
        self.next(|root| {
            let archive = format!("{}/tests/fixtures/{name}.tar.gz", env!("CARGO_MANIFEST_DIR"));
            let unpacked = Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(root).status().expect("tar");
            assert!(unpacked.success(), "{archive} could not be unpacked");
            compose::device_nodes(root);
        });
    }

    /// Shows the present state with an alteration, e.g. a file removed or cut short.
    pub(crate) fn alter(&self, change: impl FnOnce(&Path)) {
        let present = self.present();
        self.next(|root| {
            let copied = Command::new("cp").arg("-a").arg(present.join(".")).arg(root).status().expect("cp");
            assert!(copied.success(), "{} could not be copied", present.display());
            change(root);
        });
    }

    /// The directory that is shown now. It is safe to write to it where a reader must see a change in place.
    pub(crate) fn present(&self) -> PathBuf {
        fs::canonicalize(&self.root).unwrap()
    }

    /// The number of states shown so far; see [`Tree::show`].
    pub(crate) fn state(&self) -> u32 {
        self.states.get()
    }

    /// Shows an earlier state again.
    pub(crate) fn show(&self, state: u32) {
        let link = self.dir.join("link");
        symlink(format!("hardware/{state}"), &link).unwrap();
        fs::rename(&link, &self.root).unwrap();
    }

    fn next(&self, build: impl FnOnce(&Path)) {
        let state = self.states.get() + 1;
        let root = self.dir.join(state.to_string());
        fs::create_dir(&root).unwrap();
        build(&root);
        self.states.set(state);
        self.show(state);
    }
}
