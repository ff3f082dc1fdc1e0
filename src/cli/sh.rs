//! The program under the name `sh`: what is put around the command of a health check.
//!
//! podman-compose before 1.5, as in Debian 13, gives the health check `["CMD", "curl", …]` to `/bin/sh -c`, and Podman
//! gives that to `sh -c` again. The image holds no shell; a link of that name leads here. Invariant: nothing is
//! executed but a command of this program, or its answer under the name `curl`.

/// A command as it was typed: the name of the program, and the words after it.
#[derive(Debug, PartialEq, Eq)]
pub struct Typed {
    /// Name of the program, perhaps with a path.
    pub program: String,
    /// The words after it.
    pub words: Vec<String>,
    /// The exit code that replaces a failure: `|| exit 1`.
    pub failure: Option<u8>,
}

/// `sh -c` in `sh -c` is a health check; more is not.
const DEPTH: usize = 4;

/// The command in `sh -c '…'`; one of another program is returned as it is.
///
/// # Errors
/// A command line that needs a shell.
pub fn unwrapped(program: String, words: Vec<String>) -> Result<Typed, String> {
    let mut typed = Typed { program, words, failure: None };
    for _ in 0..DEPTH {
        if name(&typed.program) != "sh" {
            return Ok(typed);
        }
        let [option, line] = &typed.words[..] else { return Err(refusal(&typed.words.join(" "))) };
        let mut words = split(line).filter(|_| option == "-c").ok_or_else(|| refusal(line))?;
        let failure = match &words[..] {
            [.., or, exit, code] if or == "||" && exit == "exit" => {
                let code = code.parse().map_err(|_| refusal(line))?;
                words.truncate(words.len() - 3);
                Some(code)
            }
            _ => None,
        };
        if words.is_empty() || words.iter().any(|word| word == "||") {
            return Err(refusal(line));
        }
        let program = words.remove(0);
        if !["sh", "curl", "silvasonic-controller"].contains(&name(&program)) {
            return Err(refusal(line));
        }
        typed = Typed { program, words, failure: typed.failure.or(failure) };
    }
    Err(refusal("sh"))
}

fn name(program: &str) -> &str {
    program.rsplit('/').next().unwrap_or_default()
}

fn refusal(line: &str) -> String {
    format!("this is silvasonic-controller, not a shell: expected sh -c 'curl …' or sh -c '/silvasonic-controller …', got {line:?}")
}

/// The words of a command line with quotes; `None` if it needs more of a shell than that.
fn split(line: &str) -> Option<Vec<String>> {
    let (mut words, mut word): (Vec<String>, Option<String>) = (Vec::new(), None);
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\'' | '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        end if end == c => break,
                        '\\' | '$' | '`' if c == '"' => return None,
                        c => word.push(c),
                    }
                }
            }
            '\\' => word.get_or_insert_default().push(chars.next()?),
            '|' if word.as_deref().is_none_or(|word| word == "|") => word.get_or_insert_default().push('|'),
            c if c.is_alphanumeric() || "/.:_-=,@%+[]".contains(c) => word.get_or_insert_default().push(c),
            _ => return None,
        }
    }
    words.extend(word);
    (!words.iter().any(|word| word == "|")).then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(program: &str, words: &[&str]) -> Result<String, String> {
        let words = words.iter().map(|word| (*word).to_owned()).collect();
        unwrapped(program.to_owned(), words).map(|typed| {
            let failure = typed.failure.map_or_else(String::new, |code| format!(" || {code}"));
            format!("{} {:?}{failure}", typed.program, typed.words)
        })
    }

    #[test]
    fn the_command_of_a_health_check_is_found() {
        let url = "http://localhost:9100/healthy";
        let expected = format!("curl [\"-f\", {url:?}]");
        for line in [
            // podman-compose before 1.5
            format!("/bin/sh -c curl' '-f' '{url}"),
            format!("curl -f {url}"),
            format!("curl  -f\t\"{url}\""),
            "curl -f http:\\//localhost:9100/healthy".to_owned(),
        ] {
            assert_eq!(typed("sh", &["-c", &line]).as_ref(), Ok(&expected), "{line}");
        }
        assert_eq!(typed("/bin/sh", &["-c", &format!("curl -f {url} || exit 1")]), Ok(format!("{expected} || 1")));
        assert_eq!(typed("sh", &["-c", &format!("/bin/sh -c 'curl -f {url} || exit 3'")]), Ok(format!("{expected} || 3")));
        assert_eq!(
            typed("sh", &["-c", "/bin/sh -c /silvasonic-controller' 'health"]),
            Ok("/silvasonic-controller [\"health\"]".to_owned())
        );
        assert_eq!(typed("/silvasonic-controller", &["-c", "x"]), Ok("/silvasonic-controller [\"-c\", \"x\"]".to_owned()));
    }

    #[test]
    fn what_needs_a_shell_is_refused_in_one_line() {
        for words in [
            &[][..],
            &["-i"],
            &["-c"],
            &["-c", ""],
            &["-c", "ls"],
            &["-c", "curl -f http://localhost:9100/healthy; ls"],
            &["-c", "curl -f http://localhost:9100/healthy && ls"],
            &["-c", "curl -f http://localhost:9100/healthy | cat"],
            &["-c", "curl -f http://localhost:9100/healthy || ls"],
            &["-c", "curl -f http://localhost:9100/healthy || exit"],
            &["-c", "curl -f http://localhost:9100/healthy || exit 300"],
            &["-c", "curl $URL"],
            &["-c", "curl \"$URL\""],
            &["-c", "curl `cat x`"],
            &["-c", "curl 'http://localhost:9100/healthy"],
            &["-c", "curl x > y"],
            &["-c", "curl x\\"],
            &["-c", "|| exit 1"],
            &["-c", "curl x\n\u{1b}"],
            &["-c", "sh -c 'sh -c \"sh -c sh\"'"],
        ] {
            let error = typed("sh", words).unwrap_err();
            assert!(error.starts_with("this is silvasonic-controller, not a shell: ") && !error.contains(['\n', '\u{1b}']), "{error:?}");
        }
    }
}
