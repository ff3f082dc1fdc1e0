//! What the host says about power and heat when a microphone is disconnected, for the log.
//!
//! These files belong to drivers that may hang, so no thread waits for the thread that reads them.

use std::fs;
use std::path::Path;
use std::thread;

use log::info;

use crate::collect::sort;
use crate::fs::read_short;
use crate::text::shown;

/// The files have one short line.
const LIMIT: u64 = 64;

/// Logs what can be read, on a thread of its own. `port` is where the microphone was connected.
pub fn report(root: &Path, device: &str, port: Option<&str>) {
    let (root, device, port) = (root.to_owned(), shown(device).to_string(), port.map(str::to_owned));
    let run = move || {
        let facts = read(&root, port.as_deref());
        if !facts.is_empty() {
            info!("microphone {device} was disconnected; the host reports: {}", facts.join(", "));
        }
    };
    // Without a thread, there is no such line.
    let _ = thread::Builder::new().name("power".to_owned()).stack_size(64 << 10).spawn(run);
}

fn read(root: &Path, port: Option<&str>) -> Vec<String> {
    let mut facts = Vec::new();
    for sensor in fs::read_dir(root.join("sys/class/hwmon")).into_iter().flatten().flatten() {
        let name = read_short(&sensor.path().join("name"), LIMIT).unwrap_or_default();
        let number = |file: &str| read_short(&sensor.path().join(file), LIMIT)?.parse::<i64>().ok();
        match number("in0_lcrit_alarm") {
            Some(0) => facts.push(format!("no under-voltage ({})", shown(&name))),
            Some(_) => facts.push(format!("under-voltage ({})", shown(&name))),
            None => {}
        }
        if let Some(millidegrees) = number("temp1_input").filter(|_| name == "cpu_thermal") {
            facts.push(format!("processor at {} °C", millidegrees / 1000));
        }
    }
    let count = port
        .and_then(port_folder)
        .and_then(|folder| read_short(&root.join("sys/bus/usb/devices").join(folder).join("over_current_count"), LIMIT));
    facts.extend(count.map(|count| format!("{} over-current events at its port since the start", shown(&count))));
    sort(&mut facts);
    facts
}

/// Where the hub describes a port: `1-4/1-4:1.0/1-4-port2` for `1-4.2`, `usb1/1-0:1.0/usb1-port4` for `1-4`.
fn port_folder(bus_path: &str) -> Option<String> {
    if let Some((hub, port)) = bus_path.rsplit_once('.') {
        return Some(format!("{hub}/{hub}:1.0/{hub}-port{port}"));
    }
    let (bus, port) = bus_path.split_once('-')?;
    Some(format!("usb{bus}/{bus}-0:1.0/usb{bus}-port{port}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_read_is_told() {
        let root = std::env::temp_dir().join(format!("silvasonic-power-{}", std::process::id()));
        assert_eq!(read(&root, Some("1-4.2")), Vec::<String>::new());
        let write = |path: &str, text: &str| {
            let path = root.join("sys").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("class/hwmon/hwmon0/name", "cpu_thermal\n");
        write("class/hwmon/hwmon0/temp1_input", "61750\n");
        write("class/hwmon/hwmon1/name", "rpi_volt\n");
        write("class/hwmon/hwmon1/in0_lcrit_alarm", "1\n");
        write("bus/usb/devices/1-4/1-4:1.0/1-4-port2/over_current_count", "3\n");
        write("bus/usb/devices/usb1/1-0:1.0/usb1-port4/over_current_count", "0\n");
        let known = ["processor at 61 °C".to_owned(), "under-voltage (rpi_volt)".to_owned()];
        assert_eq!(read(&root, None), known);
        assert!(read(&root, Some("1-4.2")).contains(&"3 over-current events at its port since the start".to_owned()));
        assert!(read(&root, Some("1-4")).contains(&"0 over-current events at its port since the start".to_owned()));
        fs::remove_dir_all(&root).unwrap();
    }
}
