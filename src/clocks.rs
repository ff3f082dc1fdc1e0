//! Times since the boot of the host, which outlive a Controller, and whether its wall clock can be trusted.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant, SystemTime};

use rustix::time::{ClockId, clock_gettime};

use crate::clock::micros;
use crate::decide::sessions::Now;
use crate::decide::timeline::Boot;

/// Converts times of the monotonic clock, which have no beginning, to times since the boot of the host.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    instant: Instant,
    since_boot: Duration,
    synchronised: Option<bool>,
}

/// Identifies the boot of the host.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The present boot of the host; its id is empty if it is unknown.
#[must_use]
pub fn boot() -> Boot {
    let id = fs::read_to_string(BOOT_ID).unwrap_or_default().trim().to_owned();
    Boot { id, offset: Clocks::read().now().offset() }
}

/// The folder of systemd-timesyncd, which exists while that runs, and its file, which exists once the clock is synchronised.
const TIME_SYNC: &str = "run/systemd/timesync";
const SYNCHRONISED: &str = "synchronized";

impl Clocks {
    /// Compares the clocks.
    #[must_use]
    pub fn read() -> Self {
        let time = clock_gettime(ClockId::Monotonic);
        let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
        let since_boot = Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default());
        Self { instant: Instant::now(), since_boot, synchronised: None }
    }

    /// The time from the boot of the host until then.
    #[must_use]
    pub fn since_boot(&self, instant: Instant) -> Duration {
        match instant.checked_duration_since(self.instant) {
            Some(later) => self.since_boot + later,
            None => self.since_boot.saturating_sub(self.instant - instant),
        }
    }

    /// Reads below the host root whether the wall clock is synchronised. With another program than systemd-timesyncd, and
    /// where its folder is not mounted, that is unknown.
    pub fn read_synchronised(&mut self, root: &Path) {
        let folder = root.join(TIME_SYNC);
        self.synchronised = match folder.join(SYNCHRONISED).try_exists() {
            Ok(false) => folder.is_dir().then_some(false),
            found => found.ok(),
        };
    }

    /// Both clocks.
    #[must_use]
    pub fn now(&self) -> Now {
        Now { at: self.since_boot(Instant::now()), wall: micros(SystemTime::now()), synchronised: self.synchronised }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_is_synchronised_or_not_or_nobody_knows() {
        let root = std::env::temp_dir().join(format!("silvasonic-clocks-{}", std::process::id()));
        let read = || {
            let mut clocks = Clocks::read();
            clocks.read_synchronised(&root);
            clocks.now().synchronised
        };
        assert_eq!(read(), None);
        fs::create_dir_all(root.join(TIME_SYNC)).unwrap();
        assert_eq!(read(), Some(false));
        fs::write(root.join(TIME_SYNC).join(SYNCHRONISED), "").unwrap();
        assert_eq!(read(), Some(true));
        fs::remove_dir_all(&root).unwrap();
        // Not a folder: it cannot be searched.
        fs::create_dir_all(root.join("run/systemd")).unwrap();
        fs::write(root.join(TIME_SYNC), "").unwrap();
        assert_eq!(read(), None);
        fs::remove_dir_all(&root).unwrap();
    }
}
