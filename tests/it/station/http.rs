//! The smallest HTTP client that can talk to Podman and to `/healthy`: one request, HTTP/1.0, read to the end.
//!
//! Deliberately not the daemon's own client: a test must not share its subject's misunderstandings. With HTTP/1.0 both
//! servers answer without chunks and close the connection.

use serde_json::Value;
use std::io::{self, Read, Write};

/// One request; the answer's status and body. The caller connects and sets time limits.
pub(crate) fn request(
    stream: &mut (impl Read + Write),
    method: &str,
    path: &str,
    content_type: &str,
    body: &[u8],
) -> io::Result<(u16, Vec<u8>)> {
    let head =
        format!("{method} {path} HTTP/1.0\r\nHost: station\r\nContent-Type: {content_type}\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let broken = || io::Error::new(io::ErrorKind::InvalidData, format!("no HTTP answer: {:?}", String::from_utf8_lossy(&answer)));
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n").ok_or_else(broken)?;
    let status = std::str::from_utf8(&answer[..end])
        .ok()
        .and_then(|head| head.split(' ').nth(1))
        .and_then(|status| status.parse().ok())
        .ok_or_else(broken)?;
    Ok((status, answer[end + 4..].to_vec()))
}

/// The body as JSON; null when it is empty, and a string when it is some other text.
pub(crate) fn json(body: &[u8]) -> Value {
    if body.is_empty() {
        return Value::Null;
    }
    serde_json::from_slice(body).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(body).into_owned()))
}

/// Percent-encodes a query value or a path segment.
pub(crate) fn encode(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
