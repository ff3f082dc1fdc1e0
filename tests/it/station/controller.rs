//! The Controller under test: the real program, with its log lines collected.

use super::process::Ended;
use super::{eventually, http};
use rustix::process::Signal;
use serde_json::Value;
use std::cell::RefCell;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

type Lines = Arc<Mutex<Vec<String>>>;

thread_local! {
    /// Logs of the Controllers that this test started, for `eventually` to show when it gives up.
    static LOGS: RefCell<Vec<Weak<Mutex<Vec<String>>>>> = const { RefCell::new(Vec::new()) };
}

/// The last lines of each Controller that this thread started and still holds.
pub(super) fn log_tail() -> String {
    const LINES: usize = 40;
    let mut text = String::new();
    LOGS.with_borrow(|logs| {
        for log in logs.iter().filter_map(Weak::upgrade) {
            let lines = log.lock().unwrap();
            text.push_str("\n--- the Controller's last lines:\n");
            text.push_str(&lines[lines.len().saturating_sub(LINES)..].join("\n"));
        }
    });
    text
}

/// A running Controller; killed when dropped.
pub(crate) struct Controller {
    process: Ended,
    lines: Lines,
}

impl Controller {
    /// Runs a command of the program other than the daemon; its output is the log.
    pub(crate) fn run(command: Command) -> Controller {
        Controller::spawn(command)
    }

    pub(super) fn spawn(mut command: Command) -> Controller {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = Ended::spawn(command);
        let lines = Lines::default();
        collect(process.child().stderr.take().expect("piped"), &lines);
        collect(process.child().stdout.take().expect("piped"), &lines);
        LOGS.with_borrow_mut(|logs| {
            logs.retain(|log| log.strong_count() > 0);
            logs.push(Arc::downgrade(&lines));
        });
        Controller { process, lines }
    }

    /// Its log goes to `stderr`, and is not collected.
    pub(crate) fn logging_to(mut command: Command, stderr: OwnedFd) -> Controller {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        Controller { process: Ended::spawn(command), lines: Lines::default() }
    }

    /// At the terminal: its log goes where our output goes, and is not collected.
    pub(crate) fn foreground(mut command: Command) -> Controller {
        command.stdin(Stdio::null());
        Controller { process: Ended::spawn(command), lines: Lines::default() }
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// All lines so far, of standard error and standard output.
    pub(crate) fn log(&self) -> String {
        self.lines.lock().unwrap().join("\n")
    }

    /// Waits for a line that contains `text`, earlier ones included; the line.
    pub(crate) fn wait_log(&self, text: &str, deadline: Duration) -> String {
        eventually(deadline, &format!("the Controller logs {text:?}"), || {
            self.lines.lock().unwrap().iter().find(|line| line.contains(text)).cloned()
        })
    }

    /// How many lines contain `text`.
    pub(crate) fn count_log(&self, text: &str) -> usize {
        self.lines.lock().unwrap().iter().filter(|line| line.contains(text)).count()
    }

    pub(crate) fn signal(&mut self, signal: Signal) {
        self.process.signal(signal);
    }

    /// SIGKILL, and waits for the end.
    pub(crate) fn kill(&mut self) {
        self.process.signal(Signal::KILL);
        self.process.wait(Duration::from_secs(5));
    }

    /// Its exit code (128 + signal), None while it runs.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        self.process.exit_code()
    }

    pub(crate) fn wait_exit(&mut self, deadline: Duration) -> i32 {
        eventually(deadline, "the Controller ends", || self.process.exit_code())
    }

    /// A number of `/proc/PID/status` by its name, such as `VmHWM:`, the most memory it ever had, in KiB.
    pub(crate) fn status(&self, field: &str) -> i64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).expect("it runs");
        let number = status.lines().find_map(|line| line.strip_prefix(field)?.split_whitespace().next()?.parse().ok());
        number.unwrap_or_else(|| panic!("{field} in {status}"))
    }

    /// The TCP port it listens on, as the kernel tells it.
    pub(crate) fn port(&self) -> Option<u16> {
        let process = format!("/proc/{}", self.process.id());
        let sockets: Vec<String> = fs::read_dir(format!("{process}/fd"))
            .ok()?
            .filter_map(|fd| fs::read_link(fd.ok()?.path()).ok()?.to_str()?.strip_prefix("socket:[")?.strip_suffix(']').map(str::to_owned))
            .collect();
        let tables = ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("{process}/net/{table}")).unwrap_or_default());
        tables.iter().flat_map(|table| table.lines()).find_map(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (local, state, inode) = (fields.get(1)?, fields.get(3)?, fields.get(9)?);
            // state 0A = LISTEN
            (*state == "0A" && sockets.iter().any(|socket| socket == inode)).then_some(())?;
            u16::from_str_radix(local.rsplit(':').next()?, 16).ok()
        })
    }

    /// One request to its HTTP port, once it listens; None if it did not answer.
    pub(crate) fn get(&self, path: &str) -> Option<(u16, Value)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port()?)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        let (status, body) = http::request(&mut stream, "GET", path, "text/plain", b"").ok()?;
        Some((status, http::json(&body)))
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        // `eventually` shows the log itself; this is for failed assertions
        if std::thread::panicking() {
            eprintln!("--- the Controller's log:\n{}", self.log());
        }
    }
}

fn collect(stream: impl Read + Send + 'static, lines: &Lines) {
    let lines = Arc::clone(lines);
    std::thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        while stream.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            lines.lock().unwrap().push(String::from_utf8_lossy(&line).trim_end_matches('\n').to_owned());
            line.clear();
        }
    });
}
