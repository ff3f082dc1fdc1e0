//! Authorises a USB device again, as if it had been connected anew. The device may hang, so no thread waits for the
//! thread that does it.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use log::{info, warn};

use crate::decide::device::Usb;
use crate::fs::read_short;
use crate::text::shown;

/// The files have one short line.
const LIMIT: u64 = 256;
/// Attempts to authorise a device that was deauthorised: it must not remain so.
const ATTEMPTS: u32 = 5;

/// Authorises the device of a microphone again, on a thread of its own, and logs the result.
pub fn reset(root: &Path, device: &str, usb: &Usb) {
    let (root, name, usb) = (root.to_owned(), shown(device).to_string(), usb.clone());
    let run = move || match reauthorize(&root, &usb) {
        Ok(()) => info!("microphone {name}: its USB device at port {} was authorised again", shown(&usb.bus_path)),
        Err(why) => warn!("microphone {name}: its USB device cannot be authorised again: {why}"),
    };
    if let Err(why) = thread::Builder::new().name("reset".to_owned()).stack_size(64 << 10).spawn(run) {
        warn!("cannot start a thread for the USB device of microphone {}: {why}", shown(device));
    }
}

fn folder(root: &Path, usb: &Usb) -> PathBuf {
    root.join("sys/bus/usb/devices").join(&usb.bus_path)
}

fn reauthorize(root: &Path, usb: &Usb) -> Result<(), String> {
    let folder = folder(root, usb);
    let number = |name: &str| read_short(&folder.join(name), LIMIT).and_then(|text| text.parse::<u32>().ok());
    // Another device may have been connected there meanwhile.
    let found = number("busnum").zip(number("devnum")).map(|(bus, device)| format!("{bus:03}/{device:03}"));
    if found.as_ref() != Some(&usb.address) {
        let found = found.unwrap_or_else(|| "none".to_owned());
        return Err(format!("{}: expected device {}, found {found}", folder.display(), shown(&usb.address)));
    }
    let file = folder.join("authorized");
    let write = |text: &str| {
        fs::OpenOptions::new().write(true).open(&file).and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
    };
    write("0").map_err(|error| format!("{}: {error}", file.display()))?;
    let mut attempts = (0..ATTEMPTS).map(|_| write("1"));
    match attempts.find(Result::is_ok) {
        Some(_) => Ok(()),
        None => Err(format!("{}: it stays deauthorised, because 1 cannot be written; connect it again", file.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_device_is_authorised_again() {
        let root = std::env::temp_dir().join(format!("silvasonic-usb-{}", std::process::id()));
        let usb = Usb {
            vendor: "0869".to_owned(),
            product: "0389".to_owned(),
            serial: None,
            bus_path: "1-1.4".to_owned(),
            port_path: None,
            address: "001/005".to_owned(),
        };
        let folder = folder(&root, &usb);
        fs::create_dir_all(&folder).unwrap();
        let write = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
        write("busnum", "1\n");
        write("devnum", "6\n");
        write("authorized", "x");
        let why = reauthorize(&root, &usb).unwrap_err();
        assert!(why.ends_with("1-1.4: expected device 001/005, found 001/006"), "{why}");
        assert_eq!(read_short(&folder.join("authorized"), LIMIT).as_deref(), Some("x"));
        write("devnum", "5\n");
        assert_eq!(reauthorize(&root, &usb), Ok(()));
        assert_eq!(read_short(&folder.join("authorized"), LIMIT).as_deref(), Some("1"));
        fs::remove_file(folder.join("authorized")).unwrap();
        assert!(reauthorize(&root, &usb).unwrap_err().contains("authorized: No such file"));
        fs::remove_dir_all(&root).unwrap();
    }
}
