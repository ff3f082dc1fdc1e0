//! A real browser without a screen: Debian's Chromium, steered by WebDriver, which is JSON over HTTP.
//!
//! It resolves no name, and its network log shows each request, so a page that asks another host is found out.

use super::process::Ended;
use super::{Station, eventually, free_port};
use serde_json::{Value, json};
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const SOON: Duration = Duration::from_secs(60);

/// A browser with one window.
pub(crate) struct Browser {
    _driver: Ended,
    port: u16,
    session: String,
}

impl Browser {
    /// Starts it below the directory of a station, which ends it whatever happens.
    pub(crate) fn start(station: &Station) -> Browser {
        let (port, home) = (free_port(), station.dir().join("browser"));
        fs::create_dir(&home).unwrap();
        let mut command = Command::new("chromedriver");
        command.arg(format!("--port={port}")).current_dir(&home).env("HOME", &home).env("TMPDIR", &home);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let driver = Ended::spawn(command);
        let mut browser = Browser { _driver: driver, port, session: String::new() };
        eventually(SOON, "chromedriver is ready", || browser.try_call("GET", "/status", &Value::Null).filter(|is| is["ready"] == true));
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--hide-scrollbars",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1",
        ];
        let options = json!({"capabilities": {"alwaysMatch": {"browserName": "chrome",
            "goog:chromeOptions": {"args": arguments}, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}}});
        let session = browser.call("POST", "/session", &options);
        browser.session = format!("/session/{}", session["sessionId"].as_str().unwrap());
        browser
    }

    /// Opens a page.
    pub(crate) fn open(&self, url: &str) {
        self.command("/url", &json!({"url": url}));
    }

    /// What a script returns.
    pub(crate) fn script(&self, script: &str) -> Value {
        self.command("/execute/sync", &json!({"script": script, "args": []}))
    }

    /// The text of an element, as it is shown.
    pub(crate) fn text(&self, selector: &str) -> String {
        let script = format!("const found = document.querySelector({}); return found ? found.innerText : ''", json!(selector));
        self.script(&script).as_str().unwrap_or_default().to_owned()
    }

    /// Waits until an element contains this text; its whole text.
    pub(crate) fn wait_text(&self, selector: &str, text: &str) -> String {
        let found = || Some(self.text(selector)).filter(|found| found.contains(text));
        eventually(SOON, &format!("{selector} with {text:?}"), found)
    }

    /// The size of the window, and whether its user prefers dark colours.
    pub(crate) fn set_screen(&self, (width, height): (u32, u32), theme: &str) {
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            &json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": false}),
        );
        self.devtools("Emulation.setEmulatedMedia", &json!({"features": [{"name": "prefers-color-scheme", "value": theme}]}));
    }

    /// Saves a picture of the window, as WebP.
    pub(crate) fn picture(&self, path: &Path) {
        let picture = self.devtools("Page.captureScreenshot", &json!({"format": "webp", "quality": 80}));
        fs::write(path, decode(picture["data"].as_str().unwrap())).unwrap();
    }

    /// The messages on the console since the last call.
    pub(crate) fn console(&self) -> Vec<String> {
        let log = self.command("/se/log", &json!({"type": "browser"}));
        log.as_array().unwrap().iter().map(|entry| entry["message"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// The addresses that were asked for since the last call.
    pub(crate) fn requests(&self) -> Vec<String> {
        let log = self.command("/se/log", &json!({"type": "performance"}));
        let entries = log.as_array().unwrap().iter();
        let messages = entries.map(|entry| serde_json::from_str::<Value>(entry["message"].as_str().unwrap()).unwrap()["message"].clone());
        let asked = messages.filter(|message| message["method"] == "Network.requestWillBeSent");
        asked.map(|message| message["params"]["request"]["url"].as_str().unwrap().to_owned()).collect()
    }

    fn devtools(&self, method: &str, params: &Value) -> Value {
        self.command("/goog/cdp/execute", &json!({"cmd": method, "params": params}))
    }

    fn command(&self, path: &str, body: &Value) -> Value {
        self.call("POST", &format!("{}{path}", self.session), body)
    }

    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        self.try_call(method, path, body).unwrap_or_else(|| panic!("chromedriver does not answer {method} {path}"))
    }

    fn try_call(&self, method: &str, path: &str, body: &Value) -> Option<Value> {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let (status, answer) = self.exchange(method, path, &body).ok()?;
        let value = serde_json::from_slice::<Value>(&answer).unwrap()["value"].clone();
        assert!(status.contains(" 200 "), "{method} {path}: {value}");
        Some(value)
    }

    /// One request. Chromedriver speaks HTTP/1.1 only, and leaves the connection open.
    fn exchange(&self, method: &str, path: &str, body: &str) -> io::Result<(String, Vec<u8>)> {
        let mut stream = BufReader::new(TcpStream::connect(("127.0.0.1", self.port))?);
        stream.get_ref().set_read_timeout(Some(SOON))?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.get_mut().write_all((head + body).as_bytes())?;
        let (mut status, mut length) = (String::new(), 0);
        stream.read_line(&mut status)?;
        loop {
            let mut line = String::new();
            stream.read_line(&mut line)?;
            match line.trim_end().split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.trim().parse().unwrap_or(0),
                Some(_) => {}
                None => break,
            }
        }
        let mut answer = vec![0; length];
        stream.read_exact(&mut answer)?;
        Ok((status, answer))
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !std::thread::panicking() && !self.session.is_empty() {
            let _ = self.try_call("DELETE", &self.session, &Value::Null);
        }
    }
}

/// Base64.
fn decode(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for digit in text.bytes().filter_map(|byte| DIGITS.iter().position(|digit| *digit == byte)) {
        (bits, count) = (bits << 6 | u32::try_from(digit).unwrap(), count + 6);
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}
