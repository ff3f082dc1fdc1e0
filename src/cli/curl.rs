//! The program under the name `curl`: one GET request to this machine, for health checks that are written for curl.
//!
//! A Compose file that was made for another image runs `curl -f http://localhost:9100/healthy` in the container. The
//! image holds no curl; a link of that name leads here. Exit codes are those of curl. Invariant: nothing but a health
//! check of this machine is understood.

use std::io::{self, ErrorKind};
use std::time::Duration;

use crate::cli::health;

const WRONG_USAGE: u8 = 2;
const REFUSED: u8 = 7;
const HTTP_ERROR: u8 = 22;
const TIMED_OUT: u8 = 28;
const NO_REPLY: u8 = 52;
const BROKEN: u8 = 56;

/// Time limit without `--max-time`. The server closes a connection after 2 s.
const TIMEOUT: Duration = Duration::from_secs(3);
const TIMEOUT_MAX_S: f64 = 3600.0;

/// What the program prints, and its exit code.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// For standard output.
    pub body: String,
    /// For standard error, without a line feed; empty if there is nothing to report.
    pub error: String,
    /// Exit code.
    pub code: u8,
}

/// A request as it was typed.
#[derive(Debug, PartialEq)]
struct Request {
    port: u16,
    path: String,
    fails: bool,
    is_silent: bool,
    shows_errors: bool,
    discards: bool,
    limit: Duration,
}

/// Whether the program was started under the name `curl`.
#[must_use]
pub fn is_called(program: &str) -> bool {
    program.rsplit('/').next() == Some("curl")
}

/// Executes the request. `port` is that of the settings: where the server is if nobody listens on the port that was
/// typed, as the `.env` file of a station can change the one without the other.
#[must_use]
pub fn execute(words: &[String], port: Option<u16>) -> Output {
    let request = match parse(words) {
        Ok(request) => request,
        Err(word) => {
            let error = format!(
                "this is silvasonic-controller, not curl: expected [-f] [-s] [-S] [-o /dev/null] [-m SECONDS] http://localhost:PORT/PATH, \
                 got {word:?}"
            );
            return Output { error, code: WRONG_USAGE, ..Output::default() };
        }
    };
    let get = |port| health::get(port, &request.path, request.limit);
    let response = get(request.port).or_else(|error| match port {
        Some(port) if code(&error) == REFUSED && ![0, request.port].contains(&port) => get(port),
        _ => Err(error),
    });
    let outcome = response.map(|response| split(&response));
    let mut output = match outcome {
        Ok(Some((status, _))) if request.fails && status >= 400 => {
            Output { error: format!("curl: ({HTTP_ERROR}) the server answered {status}"), code: HTTP_ERROR, ..Output::default() }
        }
        Ok(Some((_, body))) => Output { body, ..Output::default() },
        Ok(None) => failed(NO_REPLY, "no HTTP answer"),
        Err(error) => failed(code(&error), &error.to_string()),
    };
    if request.discards {
        output.body.clear();
    }
    if request.is_silent && !request.shows_errors {
        output.error.clear();
    }
    output
}

fn failed(code: u8, why: &str) -> Output {
    Output { error: format!("curl: ({code}) {why}"), code, ..Output::default() }
}

fn code(error: &io::Error) -> u8 {
    match error.kind() {
        ErrorKind::ConnectionRefused => REFUSED,
        ErrorKind::WouldBlock | ErrorKind::TimedOut => TIMED_OUT,
        _ => BROKEN,
    }
}

/// Status and body of a response.
fn split(response: &[u8]) -> Option<(u16, String)> {
    let response = String::from_utf8_lossy(response);
    let (head, body) = response.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/")?.split(' ').nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

/// Reads the words after the program name; the error is the first one that is not understood.
fn parse(words: &[String]) -> Result<Request, String> {
    let mut request =
        Request { port: 0, path: String::new(), fails: false, is_silent: false, shows_errors: false, discards: false, limit: TIMEOUT };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let letters = match word.as_str() {
            "--fail" => "f",
            "--silent" => "s",
            "--show-error" => "S",
            "--output" => "o",
            "--max-time" => "m",
            word => match word.strip_prefix('-') {
                Some(letters) if !letters.is_empty() => letters,
                _ => {
                    let url = address(word).filter(|_| request.port == 0);
                    (request.port, request.path) = url.ok_or_else(|| word.to_owned())?;
                    continue;
                }
            },
        };
        for (at, letter) in letters.char_indices() {
            let is_last = at + letter.len_utf8() == letters.len();
            match letter {
                'f' => request.fails = true,
                's' => request.is_silent = true,
                'S' => request.shows_errors = true,
                'o' if is_last => match words.next().map(String::as_str) {
                    Some("/dev/null") => request.discards = true,
                    other => return Err(other.unwrap_or(word).to_owned()),
                },
                'm' if is_last => {
                    let value = words.next().unwrap_or(word);
                    request.limit = seconds(value).ok_or_else(|| value.clone())?;
                }
                _ => return Err(word.clone()),
            }
        }
    }
    if request.port == 0 { Err("no URL".to_owned()) } else { Ok(request) }
}

fn seconds(text: &str) -> Option<Duration> {
    text.parse().ok().filter(|seconds| *seconds > 0.0 && *seconds <= TIMEOUT_MAX_S).map(Duration::from_secs_f64)
}

/// Port and path of a URL of this machine.
fn address(url: &str) -> Option<(u16, String)> {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let (host, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let port = ["localhost:", "127.0.0.1:", "[::1]:"].iter().find_map(|own| host.strip_prefix(own))?;
    let is_plain = path.chars().all(|c| c.is_ascii_graphic());
    port.parse().ok().filter(|port| *port > 0 && is_plain).map(|port| (port, path.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    fn curl(line: &str) -> Output {
        execute(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>(), None)
    }

    /// A server that answers one request, and its port.
    fn server(answer: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                request.extend(byte);
            }
            assert!(request.starts_with(b"GET /healthy HTTP/1.0\r\n"));
            stream.write_all(answer.as_bytes()).unwrap();
        });
        port
    }

    const GOOD: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}";
    const BAD: &str = "HTTP/1.1 503 Service Unavailable\r\n\r\n{\"status\":\"error\"}";

    #[test]
    fn only_the_last_part_of_the_name_counts() {
        for (program, expected) in [
            ("curl", true),
            ("/curl", true),
            ("/usr/local/bin/curl", true),
            ("/silvasonic-controller", false),
            ("mycurl", false),
            ("", false),
        ] {
            assert_eq!(is_called(program), expected, "{program}");
        }
    }

    #[test]
    fn an_answer_is_printed_and_an_error_status_fails_if_requested() {
        let table = [
            ("-f http://localhost:PORT/healthy", GOOD, "{}", "", 0),
            ("http://127.0.0.1:PORT/healthy -fsS", GOOD, "{}", "", 0),
            ("--fail --silent --show-error -m 2.5 -o /dev/null localhost:PORT/healthy", GOOD, "", "", 0),
            ("http://localhost:PORT/healthy", BAD, "{\"status\":\"error\"}", "", 0),
            ("-f http://localhost:PORT/healthy", BAD, "", "curl: (22) the server answered 503", 22),
            ("-fs http://localhost:PORT/healthy", BAD, "", "", 22),
            ("-fsS http://localhost:PORT/healthy", BAD, "", "curl: (22) the server answered 503", 22),
            ("-fsSo /dev/null --max-time 1 http://localhost:PORT/healthy", BAD, "", "curl: (22) the server answered 503", 22),
            ("-f http://localhost:PORT/healthy", "what?", "", "curl: (52) no HTTP answer", 52),
        ];
        for (line, answer, body, error, code) in table {
            let output = curl(&line.replace("PORT", &server(answer).to_string()));
            assert_eq!(output, Output { body: body.to_owned(), error: error.to_owned(), code }, "{line}");
        }
    }

    #[test]
    fn a_server_that_is_absent_or_silent_has_the_code_of_curl() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(curl(&format!("-f -m 0.1 http://localhost:{port}/healthy")).code, TIMED_OUT);
        drop(listener);
        assert_eq!(curl(&format!("-f http://localhost:{port}/healthy")).code, REFUSED);
    }

    #[test]
    fn the_port_of_the_settings_is_asked_if_nobody_listens_on_the_other() {
        let words = |port: u16| ["-f".to_owned(), format!("http://localhost:{port}/healthy")];
        let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        assert_eq!(execute(&words(closed), Some(server(GOOD))).code, 0);
        assert_eq!(execute(&words(server(BAD)), Some(server(GOOD))).code, HTTP_ERROR);
        assert_eq!(execute(&words(closed), Some(closed)).code, REFUSED);
        assert_eq!(execute(&words(closed), Some(0)).code, REFUSED);
    }

    #[test]
    fn everything_else_is_wrong_usage_in_one_line() {
        for line in [
            "",
            "-f",
            "https://localhost:9100/healthy",
            "http://example.org/healthy",
            "http://localhost/healthy",
            "http://localhost:0/healthy",
            "http://localhost.example:9100/healthy",
            "-X POST http://localhost:9100/healthy",
            "-fo file http://localhost:9100/healthy",
            "-of /dev/null http://localhost:9100/healthy",
            "-m 0 http://localhost:9100/healthy",
            "-m",
            "-",
            "--version",
            "-fü http://localhost:9100/healthy",
            "http://localhost:9100/healthy http://localhost:9100/healthy",
        ] {
            let output = curl(line);
            assert_eq!((output.code, output.body.as_str()), (WRONG_USAGE, ""), "{line}");
            assert!(output.error.starts_with("this is silvasonic-controller, not curl: ") && !output.error.contains('\n'), "{output:?}");
        }
    }
}
