//! Shell completions, made from the table of commands. [p]

use crate::cli::arguments::{COMMANDS, Entry, PROGRAM, Placeholder, ValueKind};

/// Words that can stand in a place, each with its meaning.
type Words<'a> = Vec<(&'a str, &'a str)>;

/// What can stand behind the words typed so far.
struct Place<'a> {
    /// The words from the command on, as a pattern of the shells' `case`.
    behind: String,
    words: Words<'a>,
    folders: bool,
}

/// The completions for `bash`, `zsh` or `fish`.
#[must_use]
pub fn script(shell: &str) -> String {
    match shell {
        "fish" => fish(),
        "zsh" => zsh(),
        _ => bash(),
    }
}

/// Every place, the more special ones first.
fn places() -> Vec<Place<'static>> {
    let mut places = Vec::new();
    for entry in COMMANDS {
        for choice in entry.options {
            if let Some(value) = &choice.value {
                let (words, folders) = choices(value);
                places.push(Place { behind: format!("\" {} \"*\"{} \"", entry.words, choice.name), words, folders });
            }
        }
        let (mut words, folders) = entry.operands.first().map_or((Vec::new(), false), |(value, _)| choices(value));
        words.extend(entry.options.iter().map(|choice| (choice.name, choice.about)));
        words.push(("--help", "show how it is used"));
        places.push(Place { behind: format!("\" {} \"*", entry.words), words, folders });
        if let Some((first, second)) = entry.words.split_once(' ') {
            places.push(Place { behind: format!("\" {first} \""), words: vec![(second, entry.about)], folders: false });
        }
    }
    let mut words: Words = COMMANDS.iter().map(|entry| (first_word(entry), entry.about)).collect();
    words.extend([("--help", "show how it is used"), ("--version", "show the version")]);
    places.push(Place { behind: "\"  \"".to_owned(), words, folders: false });
    places
}

fn choices(value: &'static Placeholder) -> (Words<'static>, bool) {
    match value.kind {
        ValueKind::Text | ValueKind::Number => (Vec::new(), false),
        ValueKind::Folder => (Vec::new(), true),
        ValueKind::Word(words) => (words.iter().map(|word| (*word, "")).collect(), false),
    }
}

fn first_word(entry: &Entry) -> &'static str {
    entry.words.split(' ').next().unwrap_or_default()
}

fn bash() -> String {
    let mut cases = String::new();
    for place in places() {
        let words: Vec<&str> = place.words.iter().map(|(word, _)| *word).collect();
        let folders = if place.folders { " COMPREPLY=($(compgen -d -- \"$cur\"));" } else { "" };
        cases.push_str(&format!("    {}){folders} words='{}' ;;\n", place.behind, words.join(" ")));
    }
    format!(
        "# bash completion of {PROGRAM}\n_silvasonic_controller() {{\n    local cur=${{COMP_WORDS[COMP_CWORD]}} words=\n    COMPREPLY=()\n    \
         case \" ${{COMP_WORDS[*]:1:COMP_CWORD-1}} \" in\n{cases}    esac\n    COMPREPLY+=($(compgen -W \"$words\" -- \"$cur\"))\n}}\n\
         complete -F _silvasonic_controller {PROGRAM}\n"
    )
}

fn zsh() -> String {
    let mut cases = String::new();
    for place in places() {
        let words: Vec<String> = place.words.iter().map(|(word, about)| quoted(&format!("{word}:{about}"))).collect();
        let folders = if place.folders { " _files -/;" } else { "" };
        cases.push_str(&format!("    {}){folders} found=({}) ;;\n", place.behind, words.join(" ")));
    }
    // Serves as a file in $fpath and as one that is sourced.
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
    line("__fish_use_subcommand", "-l version", "show the version");
    line("true", "-l help", "show how it is used");
    for entry in COMMANDS {
        let mut words = entry.words.split(' ');
        line("__fish_use_subcommand", &format!("-a {}", words.next().unwrap_or_default()), entry.about);
        if let Some((first, second)) = entry.words.split_once(' ') {
            let when = format!("__fish_seen_subcommand_from {first}; and not __fish_seen_subcommand_from {second}");
            line(&when, &format!("-a {second}"), entry.about);
        }
        // `check` is a command of its own, and one behind `profiles`.
        let longer = COMMANDS.iter().filter_map(|other| other.words.split_once(' ')).find(|(_, second)| *second == entry.words);
        let seen = |word: &str| format!("__fish_seen_subcommand_from {word}");
        let when = match (entry.words.split_once(' '), longer) {
            (Some((first, second)), _) => format!("{}; and {}", seen(first), seen(second)),
            (None, Some((first, _))) => format!("{}; and not {}", seen(entry.words), seen(first)),
            (None, None) => seen(entry.words),
        };
        let words = |value: &'static Placeholder| match choices(value) {
            (_, true) => "-a '(__fish_complete_directories)'".to_owned(),
            (words, _) => format!("-a '{}'", words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(" ")),
        };
        for choice in entry.options {
            let value = choice.value.as_ref().map_or_else(String::new, |value| format!(" -r {}", words(value)));
            line(&when, &format!("-l {}{value}", choice.name.trim_start_matches('-')), choice.about);
        }
        for (value, _) in entry.operands {
            line(&when, &words(value), value.name);
        }
    }
    lines
}

/// In single quotes; right for all three shells.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}
