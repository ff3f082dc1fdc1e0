//! `silvasonic-controller health`: shows the health of the running Controller. Containers use it as their health check.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use crate::json;
use crate::text::shown;

const TIMEOUT: Duration = Duration::from_secs(3);
/// In bytes; much more than all components need.
const RESPONSE_LIMIT: usize = 256 << 10;

/// Requests `/healthy` from this port of this machine. Returns whether the Controller is healthy, and one line for each
/// component.
///
/// # Errors
/// Why there is no valid response.
pub fn show(port: u16) -> Result<(bool, String), String> {
    let (is_healthy, components) = read(port)?;
    let mut lines = String::new();
    for (name, component) in &components {
        let state = match (component["healthy"] == true, component["required"] == true) {
            (true, _) => "ok",
            (false, true) => "failed",
            (false, false) => "warning",
        };
        let details = component["details"].as_str().unwrap_or_default();
        lines.push_str(&format!("{:12} {state:8} {}\n", shown(name), shown(details)));
    }
    Ok((is_healthy, lines))
}

/// Whether the Controller on this port is healthy, and its components.
pub(super) fn read(port: u16) -> Result<(bool, Map<String, Value>), String> {
    if port == 0 {
        return Err("SILVASONIC_CONTROLLER_PORT is 0, so the port is unknown; set a fixed port".to_owned());
    }
    let response = get(port, "/healthy", TIMEOUT).map_err(|error| {
        // The error kind of a socket timeout.
        let timed_out = error.kind() == ErrorKind::WouldBlock;
        format!(
            "no response on port {port}: {}",
            if timed_out { format!("timeout after {} s", TIMEOUT.as_secs()) } else { error.to_string() }
        )
    })?;
    let response = String::from_utf8_lossy(&response);
    let (head, body) = response.split_once("\r\n\r\n").unwrap_or_default();
    let mut health: Value = json::from_str(body).unwrap_or_default();
    let Value::Object(components) = health["components"].take() else {
        return Err(format!("the program that responds on port {port} is not a Controller"));
    };
    Ok((head.split(' ').nth(1) == Some("200"), components))
}

/// The response to a GET request to this machine. The error kind of a timeout is [`ErrorKind::WouldBlock`].
pub(super) fn get(port: u16, path: &str, limit: Duration) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + limit;
    let left = || deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()).ok_or(ErrorKind::WouldBlock);
    let mut stream = TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), limit)?;
    stream.set_write_timeout(Some(left()?))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes())?;
    let mut response = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(&mut buffer)? {
            0 => return Ok(response),
            count => response.extend_from_slice(&buffer[..count]),
        }
        if response.len() > RESPONSE_LIMIT {
            return Err(io::Error::new(ErrorKind::InvalidData, "the response is too long"));
        }
    }
}
