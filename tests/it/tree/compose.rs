//! Writes a tree from a list of cards, file for file like the recorded ones as far as a daemon reads them.

use super::Card;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// The PCI device of the USB controller, as in the recordings.
pub(super) const PCI: &str = "0000:00:07.0";
const VERSION: &str = "Advanced Linux Sound Architecture Driver Version k6.1.0-56-amd64.\n";

/// Writes `proc/asound`, `sys` and `dev/snd` below `root`.
pub(super) fn write(root: &Path, cards: &[Card]) {
    let mut tree = Writer {
        root: root.to_path_buf(),
        usb: BTreeSet::new(),
        controllers: BTreeMap::from([(1, PCI.to_owned())]),
        next_device: 1,
        next_minor: 2,
        pcms: String::new(),
        devices: String::new(),
    };
    for dir in [
        "proc/asound",
        "sys/class/sound",
        "sys/bus/usb/devices",
        "sys/bus/usb/drivers/usb",
        "sys/bus/usb/drivers/snd-usb-audio",
        "sys/bus/usb/drivers/hub",
    ] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    tree.controllers.extend(cards.iter().filter_map(|card| Some((bus(card.bus_path.as_ref()?), card.controller.clone()))));
    for (bus, controller) in tree.controllers.clone() {
        let (hub, serial) = (format!("usb{bus}"), controller.as_bytes());
        tree.usb_device(&hub, "1d6b", "0002", b"Linux 6.1.0-56-amd64 xhci-hcd", b"xHCI Host Controller", Some(serial));
    }
    tree.node("devices/virtual/sound/timer", "timer", 33, None);
    let mut list = Vec::new();
    for card in cards {
        list.extend(tree.card(card));
    }
    if cards.is_empty() {
        list.extend(b"--- no soundcards ---\n");
    }
    tree.devices.push_str(" 33:        : timer\n");
    tree.file("proc/asound/cards", list);
    tree.file("proc/asound/pcm", tree.pcms.clone());
    tree.file("proc/asound/devices", tree.devices.clone());
    tree.file("proc/asound/modules", cards.iter().map(|card| format!("{:2} snd_usb_audio\n", card.index)).collect::<String>());
    tree.file("proc/asound/version", VERSION);
    device_nodes(root);
}

/// `dev/snd` for what `sys/class/sound` lists; the recordings have none.
pub(super) fn device_nodes(root: &Path) {
    fs::create_dir_all(root.join("dev/snd")).unwrap();
    for entry in fs::read_dir(root.join("sys/class/sound")).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if !name.to_string_lossy().starts_with("card") {
            fs::write(root.join("dev/snd").join(name), "").unwrap();
        }
    }
}

struct Writer {
    root: PathBuf,
    /// USB devices that are there already: hubs are shared.
    usb: BTreeSet<String>,
    /// The PCI device of the host controller of each bus.
    controllers: BTreeMap<u32, String>,
    next_device: u32,
    next_minor: u32,
    pcms: String,
    devices: String,
}

impl Writer {
    /// One card's part of the tree; its lines for `cards`.
    fn card(&mut self, card: &Card) -> Vec<u8> {
        let (index, usb) = (card.index, card.bus_path.is_some());
        let (parent, place) = match &card.bus_path {
            Some(port) => {
                let device = self.plug(card, port);
                let place = format!("usb-{}-{}, full speed", card.controller, port.split_once('-').expect("bus-port").1);
                (format!("{device}/{port}:1.0"), place)
            }
            None => ("devices/platform/soc/soc:sound".to_owned(), "soc:sound".to_owned()),
        };
        let long = [&card.manufacturer[..], b" ", &card.name, b" at ", place.as_bytes()].concat();
        let proc = format!("proc/asound/card{index}");
        self.file(&format!("{proc}/id"), format!("{}\n", card.id));
        if let Some(number) = usb.then_some(self.next_device - 1) {
            self.file(&format!("{proc}/usbid"), format!("{}:{}\n", card.vid, card.pid));
            let bus = card.bus_path.as_deref().map_or(1, bus);
            self.file(&format!("{proc}/usbbus"), format!("{bus:03}/{number:03}\n"));
            self.file(&format!("{proc}/stream0"), stream(card, &long));
        }
        symlink(format!("card{index}"), self.root.join("proc/asound").join(&card.id)).unwrap();

        let sound = format!("{parent}/sound/card{index}");
        self.file(&format!("sys/{sound}/id"), format!("{}\n", card.id));
        self.file(&format!("sys/{sound}/number"), format!("{index}\n"));
        self.file(&format!("sys/{sound}/uevent"), "");
        self.subsystem(&sound, "class/sound");
        symlink(format!("../../../{}", parent.rsplit('/').next().unwrap()), self.root.join(format!("sys/{sound}/device"))).unwrap();
        self.class_link(&sound, &format!("card{index}"));
        if card.playback {
            self.pcm(card, &sound, 0, 'p');
        }
        for pcm in 0..card.captures {
            self.pcm(card, &sound, pcm, 'c');
        }
        let mut pcm_line = format!("{index:02}-00: USB Audio : USB Audio");
        if card.playback {
            pcm_line.push_str(" : playback 1");
        }
        if card.captures > 0 {
            pcm_line.push_str(" : capture 1");
        }
        self.pcms.push_str(&(pcm_line + "\n"));
        for pcm in 1..card.captures {
            self.pcms.push_str(&format!("{index:02}-{pcm:02}: USB Audio : USB Audio #{pcm} : capture 1\n"));
        }
        let minor = self.minor();
        self.devices.push_str(&format!("{minor:3}: [{index:2}]   : control\n"));
        self.node(&format!("{sound}/controlC{index}"), &format!("controlC{index}"), minor, None);

        let driver = if usb { "USB-Audio" } else { "simple-card" };
        let head = format!("{index:2} [{:<15}]: {driver} - ", card.id);
        [head.as_bytes(), &card.name, b"\n", &[b' '; 22], &long, b"\n"].concat()
    }

    /// A PCM's information file and device.
    fn pcm(&mut self, card: &Card, sound: &str, pcm: u32, way: char) {
        let index = card.index;
        let (stream, kind) = if way == 'c' { ("CAPTURE", "capture") } else { ("PLAYBACK", "playback") };
        let number = if pcm == 0 { String::new() } else { format!(" #{pcm}") };
        let info = format!(
            "card: {index}\ndevice: {pcm}\nsubdevice: 0\nstream: {stream}\nid: USB Audio\nname: USB Audio{number}\n\
             subname: subdevice #0\nclass: 0\nsubclass: 0\nsubdevices_count: 1\nsubdevices_avail: 1\n"
        );
        let proc = format!("proc/asound/card{index}/pcm{pcm}{way}");
        self.file(&format!("{proc}/info"), info.clone());
        self.file(&format!("{proc}/sub0/info"), info);
        for name in ["hw_params", "sw_params", "status"] {
            self.file(&format!("{proc}/sub0/{name}"), "closed\n");
        }
        let minor = self.minor();
        self.devices.push_str(&format!("{minor:3}: [{index:2}-{pcm:2}]: digital audio {kind}\n"));
        let name = format!("pcmC{index}D{pcm}{way}");
        self.node(&format!("{sound}/{name}"), &name, minor, Some("pcm"));
        self.file(&format!("sys/{sound}/{name}/pcm_class"), "generic\n");
    }

    /// A device of the class sound.
    fn node(&mut self, path: &str, name: &str, minor: u32, kind: Option<&str>) {
        let kind = kind.map(|kind| format!("DEVTYPE={kind}\n")).unwrap_or_default();
        self.file(&format!("sys/{path}/dev"), format!("116:{minor}\n"));
        self.file(&format!("sys/{path}/uevent"), format!("MAJOR=116\nMINOR={minor}\nDEVNAME=snd/{name}\n{kind}"));
        self.subsystem(path, "class/sound");
        if let Some((card, _)) = path.rsplit_once('/').filter(|(card, _)| card.contains("/sound/card")) {
            symlink(format!("../../{}", card.rsplit('/').next().unwrap()), self.root.join(format!("sys/{path}/device"))).unwrap();
        }
        self.class_link(path, name);
    }

    /// The card's USB device, with the hubs before it and its interfaces; its path below `sys`.
    fn plug(&mut self, card: &Card, port: &str) -> String {
        let mut at = port.find('.');
        while let Some(dot) = at {
            let hub = &port[..dot];
            if !self.usb.contains(hub) {
                let serial = format!("314159-{PCI}-{}", hub.split_once('-').expect("bus-port").1);
                let path = self.usb_device(hub, "0409", "55aa", b"QEMU", b"QEMU USB Hub", Some(serial.as_bytes()));
                self.interface(&path, &format!("{hub}:1.0"), "hub", "409/55aa/101");
            }
            at = port[dot + 1..].find('.').map(|next| dot + 1 + next);
        }
        self.next_device = card.number.unwrap_or(self.next_device);
        let path = self.usb_device(port, &card.vid, &card.pid, &card.manufacturer, &card.name, card.serial.as_deref());
        let product = product(&card.vid, &card.pid);
        for number in 0..=card.captures + u32::from(card.playback) {
            self.interface(&path, &format!("{port}:1.{number}"), "snd-usb-audio", &product);
        }
        path
    }

    fn usb_device(&mut self, name: &str, vid: &str, pid: &str, manufacturer: &[u8], product_name: &[u8], serial: Option<&[u8]>) -> String {
        assert!(self.usb.insert(name.to_owned()), "two devices at {name}");
        let number = self.next_device;
        self.next_device += 1;
        let bus = bus(name);
        let path = usb_path(&self.controllers[&bus], name);
        let sys = format!("sys/{path}");
        let class = if vid == "1d6b" || pid == "55aa" { "9/0/0" } else { "0/0/0" };
        self.file(
            &format!("{sys}/uevent"),
            format!(
                "MAJOR=189\nMINOR={}\nDEVNAME=bus/usb/{bus:03}/{number:03}\nDEVTYPE=usb_device\nDRIVER=usb\nPRODUCT={}\nTYPE={class}\nBUSNUM={bus:03}\nDEVNUM={number:03}\n",
                number - 1,
                product(vid, pid)
            ),
        );
        let devpath = name.split_once('-').map_or("0", |(_, port)| port);
        let busnum = bus.to_string();
        for (file, text) in
            [("idVendor", vid), ("idProduct", pid), ("busnum", &busnum), ("devpath", devpath), ("bcdDevice", "0100"), ("speed", "12")]
        {
            self.file(&format!("{sys}/{file}"), format!("{text}\n"));
        }
        self.file(&format!("{sys}/devnum"), format!("{number}\n"));
        for (file, bytes) in [("manufacturer", Some(manufacturer)), ("product", Some(product_name)), ("serial", serial)] {
            // an empty string descriptor gives no file
            if let Some(bytes) = bytes.filter(|bytes| !bytes.is_empty()) {
                self.file(&format!("{sys}/{file}"), [bytes, b"\n"].concat());
            }
        }
        self.subsystem(&path, "bus/usb");
        self.driver(&path, "usb");
        self.bus_link(&path, name);
        path
    }

    fn interface(&mut self, device: &str, name: &str, driver: &str, product: &str) {
        let path = format!("{device}/{name}");
        let number = name.rsplit('.').next().unwrap();
        self.file(
            &format!("sys/{path}/uevent"),
            format!("DEVTYPE=usb_interface\nDRIVER={driver}\nPRODUCT={product}\nTYPE=0/0/0\nINTERFACE=1/1/0\n"),
        );
        self.file(&format!("sys/{path}/bInterfaceNumber"), format!("{number:0>2}\n"));
        self.file(&format!("sys/{path}/bInterfaceClass"), if driver == "hub" { "09\n" } else { "01\n" });
        self.subsystem(&path, "bus/usb");
        self.driver(&path, driver);
        self.bus_link(&path, name);
    }

    fn minor(&mut self) -> u32 {
        self.next_minor += 1;
        self.next_minor - 1
    }

    fn file(&self, path: &str, content: impl AsRef<[u8]>) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    /// `subsystem`, relative as in a real sysfs, so that it stays inside the tree.
    fn subsystem(&self, path: &str, target: &str) {
        symlink(format!("{}{target}", up(path)), self.root.join(format!("sys/{path}/subsystem"))).unwrap();
    }

    fn driver(&self, path: &str, name: &str) {
        symlink(format!("{}bus/usb/drivers/{name}", up(path)), self.root.join(format!("sys/{path}/driver"))).unwrap();
    }

    fn class_link(&self, path: &str, name: &str) {
        symlink(format!("../../{path}"), self.root.join("sys/class/sound").join(name)).unwrap();
    }

    fn bus_link(&self, path: &str, name: &str) {
        symlink(format!("../../../{path}"), self.root.join("sys/bus/usb/devices").join(name)).unwrap();
    }
}

/// As many `../` as lead from this path below `sys` to `sys`.
fn up(path: &str) -> String {
    "../".repeat(path.split('/').count())
}

/// The number of the bus of `1-4.2` or `usb1`.
fn bus(name: &str) -> u32 {
    name.strip_prefix("usb").or_else(|| Some(name.split_once('-')?.0)).and_then(|bus| bus.parse().ok()).expect("bus-port")
}

/// `1-4.2` lies in `…/usb1/1-4/1-4.2`.
fn usb_path(controller: &str, name: &str) -> String {
    let mut path = format!("devices/pci0000:00/{controller}/usb{}", bus(name));
    if name.starts_with("usb") {
        return path;
    }
    for (dot, _) in name.match_indices('.') {
        path = format!("{path}/{}", &name[..dot]);
    }
    format!("{path}/{name}")
}

/// The kernel writes ids without leading zeros there.
fn product(vid: &str, pid: &str) -> String {
    let short = |id: &str| id.trim_start_matches('0').to_owned();
    format!("{}/{}/100", short(vid), short(pid))
}

fn stream(card: &Card, long: &[u8]) -> Vec<u8> {
    let mut text = [long, b" : USB Audio\n"].concat();
    let mut part = |way: &str, interface: u32, endpoint: &str| {
        let head = format!("\n{way}:\n  Status: Stop\n");
        text.extend_from_slice(head.as_bytes());
        // Whatever a profile of a test asks for.
        for channels in 1..=2 {
            let lines = format!(
                "  Interface {interface}\n    Altset {channels}\n    Format: S16_LE\n    Channels: {channels}\n    Endpoint: {endpoint}\n    \
                 Rates: 1 - 10000000 (continuous)\n    Bits: 16\n"
            );
            text.extend_from_slice(lines.as_bytes());
        }
    };
    if card.playback {
        part("Playback", 2, "0x02 (2 OUT) (ADAPTIVE)");
    }
    if card.captures > 0 {
        part("Capture", 1, "0x81 (1 IN) (ASYNC)");
    }
    text
}
