//! Shell completions, generated from the table of commands.

use crate::cli::arguments::{COMMANDS, CommandSpec, OperandSpec, PROGRAM, ValueKind, ValueSpec};

const HELP: &str = "show the help";
const VERSION: &str = "show the version";

/// Words that the shell suggests, each with its meaning.
type Words<'a> = Vec<(&'a str, &'a str)>;

/// Suggestions after the words that match a pattern.
struct Suggestion<'a> {
    /// Pattern for the words after the program name, as in a `case` statement of the shells.
    pattern: String,
    words: Words<'a>,
    folders: bool,
}

/// The completion script for `bash`, `zsh` or `fish`.
#[must_use]
pub fn script(shell: &str) -> String {
    match shell {
        "fish" => fish(),
        "zsh" => zsh(),
        _ => bash(),
    }
}

/// All suggestions; the shell uses the first pattern that matches, so specific patterns come first.
fn suggestions() -> Vec<Suggestion<'static>> {
    let mut suggestions = Vec::new();
    for spec in COMMANDS {
        for option in spec.options {
            if let Some(value) = &option.value {
                let (words, folders) = allowed(value);
                suggestions.push(Suggestion { pattern: format!("\" {} \"*\"{} \"", spec.words, option.name), words, folders });
            }
        }
        let first_operand = spec.operands.first().map(OperandSpec::value);
        let (mut words, folders) = first_operand.map_or((Vec::new(), false), allowed);
        words.extend(spec.options.iter().map(|option| (option.name, option.about)));
        words.push(("--help", HELP));
        suggestions.push(Suggestion { pattern: format!("\" {} \"*", spec.words), words, folders });
        if let Some((first, second)) = spec.words.split_once(' ') {
            suggestions.push(Suggestion { pattern: format!("\" {first} \""), words: vec![(second, spec.about)], folders: false });
        }
    }
    let mut words: Words = COMMANDS.iter().map(|spec| (first_word(spec), spec.about)).collect();
    words.extend([("--help", HELP), ("--version", VERSION)]);
    suggestions.push(Suggestion { pattern: "\"  \"".to_owned(), words, folders: false });
    suggestions
}

/// The allowed words of a value, and whether it is a folder.
fn allowed(value: &'static ValueSpec) -> (Words<'static>, bool) {
    match value.kind {
        ValueKind::Text | ValueKind::Number => (Vec::new(), false),
        ValueKind::Folder => (Vec::new(), true),
        ValueKind::OneOf(words) => (words.iter().map(|word| (*word, "")).collect(), false),
    }
}

fn first_word(spec: &CommandSpec) -> &'static str {
    spec.words.split(' ').next().unwrap_or_default()
}

fn bash() -> String {
    let mut cases = String::new();
    for suggestion in suggestions() {
        let words: Vec<&str> = suggestion.words.iter().map(|(word, _)| *word).collect();
        let folders = if suggestion.folders { " COMPREPLY=($(compgen -d -- \"$cur\"));" } else { "" };
        cases.push_str(&format!("    {}){folders} words='{}' ;;\n", suggestion.pattern, words.join(" ")));
    }
    format!(
        "# bash completion of {PROGRAM}\n_silvasonic_controller() {{\n    local cur=${{COMP_WORDS[COMP_CWORD]}} words=\n    COMPREPLY=()\n    \
         case \" ${{COMP_WORDS[*]:1:COMP_CWORD-1}} \" in\n{cases}    esac\n    COMPREPLY+=($(compgen -W \"$words\" -- \"$cur\"))\n}}\n\
         complete -F _silvasonic_controller {PROGRAM}\n"
    )
}

fn zsh() -> String {
    let mut cases = String::new();
    for suggestion in suggestions() {
        let words: Vec<String> = suggestion.words.iter().map(|(word, about)| quoted(&format!("{word}:{about}"))).collect();
        let folders = if suggestion.folders { " _files -/;" } else { "" };
        cases.push_str(&format!("    {}){folders} found=({}) ;;\n", suggestion.pattern, words.join(" ")));
    }
    // Works as a file in $fpath and when it is sourced.
    format!(
        "#compdef {PROGRAM}\n_{PROGRAM}() {{\n    local -a found\n    case \" ${{words[2,CURRENT-1]}} \" in\n{cases}    esac\n    \
         _describe '' found\n}}\nif [ \"$funcstack[1]\" = _{PROGRAM} ]; then _{PROGRAM} \"$@\"; else compdef _{PROGRAM} {PROGRAM}; fi\n"
    )
}

fn fish() -> String {
    let mut lines = format!("# fish completion of {PROGRAM}\ncomplete -c {PROGRAM} -f\n");
    let mut line = |when: &str, what: &str, about: &str| {
        lines.push_str(&format!("complete -c {PROGRAM} -n {} {what} -d {}\n", quoted(when), quoted(about)));
    };
    line("__fish_use_subcommand", "-l version", VERSION);
    line("true", "-l help", HELP);
    for spec in COMMANDS {
        let mut words = spec.words.split(' ');
        line("__fish_use_subcommand", &format!("-a {}", words.next().unwrap_or_default()), spec.about);
        if let Some((first, second)) = spec.words.split_once(' ') {
            let when = format!("__fish_seen_subcommand_from {first}; and not __fish_seen_subcommand_from {second}");
            line(&when, &format!("-a {second}"), spec.about);
        }
        // `check` is a command, and also the second word of `profiles check`.
        let longer = COMMANDS.iter().filter_map(|other| other.words.split_once(' ')).find(|(_, second)| *second == spec.words);
        let seen = |word: &str| format!("__fish_seen_subcommand_from {word}");
        let when = match (spec.words.split_once(' '), longer) {
            (Some((first, second)), _) => format!("{}; and {}", seen(first), seen(second)),
            (None, Some((first, _))) => format!("{}; and not {}", seen(spec.words), seen(first)),
            (None, None) => seen(spec.words),
        };
        let words = |value: &'static ValueSpec| match allowed(value) {
            (_, true) => "-a '(__fish_complete_directories)'".to_owned(),
            (words, _) => format!("-a '{}'", words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(" ")),
        };
        for option in spec.options {
            let value = option.value.as_ref().map_or_else(String::new, |value| format!(" -r {}", words(value)));
            line(&when, &format!("-l {}{value}", option.name.trim_start_matches('-')), option.about);
        }
        for value in spec.operands.iter().map(OperandSpec::value) {
            line(&when, &words(value), value.name);
        }
    }
    lines
}

/// Text in single quotes, valid in all three shells.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}
