//! `silvasonic-controller health`: asks the running Controller how it is; the health check of containers.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::text::shown;

const PATIENCE: Duration = Duration::from_secs(3);
/// Much more than all components need.
const ANSWER_LIMIT: usize = 256 << 10;

/// Asks at this port of this machine: whether the Controller is well, and a line for each component.
///
/// # Errors
/// Why there is no answer.
pub fn ask(port: u16) -> Result<(bool, String), String> {
    if port == 0 {
        return Err("SILVASONIC_CONTROLLER_PORT is 0, so nobody but the log knows the port".to_owned());
    }
    let answer = request(port).map_err(|error| {
        // What a time limit on a socket is called.
        let late = error.kind() == ErrorKind::WouldBlock;
        format!("no answer at port {port}: {}", if late { format!("nothing within {} s", PATIENCE.as_secs()) } else { error.to_string() })
    })?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let health: Value = serde_json::from_str(body).unwrap_or_default();
    let components = health["components"].as_object().ok_or_else(|| format!("whoever answers at port {port} is no Controller"))?;
    let mut lines = String::new();
    for (name, component) in components {
        let state = match (component["healthy"] == true, component["required"] == true) {
            (true, _) => "ok",
            (false, true) => "failed",
            (false, false) => "warning",
        };
        let details = component["details"].as_str().unwrap_or_default();
        lines.push_str(&format!("{:12} {state:8} {}\n", shown(name), shown(details)));
    }
    Ok((head.split(' ').nth(1) == Some("200"), lines))
}

fn request(port: u16) -> io::Result<Vec<u8>> {
    let deadline = Instant::now() + PATIENCE;
    let left = || deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()).ok_or(ErrorKind::WouldBlock);
    let mut stream = TcpStream::connect_timeout(&(Ipv4Addr::LOCALHOST, port).into(), PATIENCE)?;
    stream.set_write_timeout(Some(left()?))?;
    stream.write_all(b"GET /healthy HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    let mut piece = [0; 4096];
    loop {
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(&mut piece)? {
            0 => return Ok(answer),
            count => answer.extend_from_slice(&piece[..count]),
        }
        if answer.len() > ANSWER_LIMIT {
            return Err(io::Error::new(ErrorKind::InvalidData, "more than any Controller says"));
        }
    }
}
