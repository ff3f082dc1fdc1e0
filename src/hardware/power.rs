//! What the host says about power and heat: for the log when a microphone is disconnected, and for metrics.
//!
//! These files belong to drivers that may hang, so no thread waits for the thread that reads them. They are read only
//! when somebody asks.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use log::info;

use crate::collect::sort;
use crate::fs::read_short;
use crate::probe::{Answer, Prober, Question, State};
use crate::text::shown;

/// The files have one short line.
const LIMIT: u64 = 64;

/// A read takes a millisecond. After this time, other reads do not wait for it any more.
const PATIENCE: Duration = Duration::from_millis(250);
/// After this time, the files are read again.
const AGAIN: Duration = Duration::from_secs(60);
/// Number of readings that may hang at the same time.
const STUCK: usize = 2;

/// What the sensors of the host show; `None` = there is no such sensor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Power {
    /// Whether the supply voltage is or was too low.
    pub under_voltage: Option<bool>,
    /// Temperature of the processor, in thousandths of a degree Celsius.
    pub millidegrees: Option<i64>,
}

impl Power {
    /// Reads the sensors below the host root.
    fn read(root: &Path) -> Self {
        let mut power = Self::default();
        for sensor in sensors(root) {
            power.under_voltage = sensor.under_voltage.map(|is| is || power.under_voltage == Some(true)).or(power.under_voltage);
            power.millidegrees = sensor.millidegrees.or(power.millidegrees);
        }
        power
    }
}

/// The last reading of the sensors.
pub struct Monitor {
    root: PathBuf,
    question: Question<()>,
    outbox: Sender<(u64, Power)>,
    answers: Receiver<(u64, Power)>,
    last: Power,
}

impl Monitor {
    /// Requests the first reading.
    #[must_use]
    pub fn new(root: &Path, prober: &Prober) -> Self {
        let (outbox, answers) = channel();
        let question = Question::new(prober, PATIENCE, AGAIN, STUCK);
        let mut monitor = Self { root: root.to_owned(), question, outbox, answers, last: Power::default() };
        monitor.ask(Instant::now());
        monitor
    }

    fn ask(&mut self, now: Instant) {
        let (root, outbox) = (self.root.clone(), self.outbox.clone());
        self.question.ask(
            now,
            move |_| Power::read(&root),
            move |number, power| {
                // The receiver is gone when the program ends.
                let _ = outbox.send((number, power));
            },
        );
    }

    /// The last reading; requests the next one.
    pub fn latest(&mut self, now: Instant) -> Power {
        while let Ok((number, power)) = self.answers.try_recv() {
            if self.question.answered(number) == Answer::Current {
                self.last = power;
            }
        }
        match self.question.check(now) {
            State::Idle => self.ask(now),
            State::Late(_) => {
                self.last = Power::default();
                self.ask(now);
            }
            State::Pending => {}
            State::Exhausted(_) => self.last = Power::default(),
        }
        self.last
    }
}

/// A sensor that shows something of interest.
struct Sensor {
    name: String,
    under_voltage: Option<bool>,
    millidegrees: Option<i64>,
}

fn sensors(root: &Path) -> impl Iterator<Item = Sensor> {
    fs::read_dir(root.join("sys/class/hwmon")).into_iter().flatten().flatten().map(|sensor| {
        let name = read_short(&sensor.path().join("name"), LIMIT).unwrap_or_default();
        let number = |file: &str| read_short(&sensor.path().join(file), LIMIT)?.parse::<i64>().ok();
        let millidegrees = if name == "cpu_thermal" { number("temp1_input") } else { None };
        Sensor { under_voltage: number("in0_lcrit_alarm").map(|alarm| alarm != 0), millidegrees, name }
    })
}

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
    for Sensor { name, under_voltage, millidegrees } in sensors(root) {
        facts.extend(under_voltage.map(|is| format!("{}under-voltage ({})", if is { "" } else { "no " }, shown(&name))));
        facts.extend(millidegrees.map(|millidegrees| format!("processor at {} °C", millidegrees / 1000)));
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
        assert_eq!(Power::read(&root), Power::default());
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
        assert_eq!(Power::read(&root), Power { under_voltage: Some(true), millidegrees: Some(61_750) });
        assert!(read(&root, Some("1-4.2")).contains(&"3 over-current events at its port since the start".to_owned()));
        assert!(read(&root, Some("1-4")).contains(&"0 over-current events at its port since the start".to_owned()));
        fs::remove_dir_all(&root).unwrap();
    }
}
