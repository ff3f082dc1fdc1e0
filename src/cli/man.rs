//! The manual page, generated from the table of commands.

use crate::cli::arguments::{ABOUT, COMMANDS, PROGRAM, details, usage};
use crate::config::VARIABLES;

/// The page in roff, with the macros of man(7).
#[must_use]
pub fn page(version: &str) -> String {
    let mut page = format!(
        ".TH {} 8 \"\" \"{PROGRAM} {version}\" \"System administration\"\n.SH NAME\n{} \\- finds USB microphones and keeps a Recorder running for each\n",
        PROGRAM.to_ascii_uppercase(),
        roff(PROGRAM)
    );
    page.push_str(&format!(".SH SYNOPSIS\n.B {}\n[COMMAND] [OPTIONS]\n.SH DESCRIPTION\n{ABOUT}\n", roff(PROGRAM)));
    page.push_str(".SH COMMANDS\n");
    for spec in COMMANDS {
        page.push_str(&format!(".TP\n.B {}\n{}.\n", roff(&usage(spec)), roff(&capitalised(spec.about))));
        if !spec.more.is_empty() {
            page.push_str(&format!(".br\n{}\n", roff(spec.more)));
        }
        for (syntax, meaning) in details(spec) {
            page.push_str(&format!(".RS\n.TP\n.B {}\n{}\n.RE\n", roff(&syntax), roff(&meaning)));
        }
    }
    page.push_str(".SH ENVIRONMENT\nAn empty variable counts as unset.\n");
    for (name, default, meaning) in VARIABLES {
        page.push_str(&format!(".TP\n.B {}\n{} [{}]\n", roff(name), roff(meaning), roff(default)));
    }
    page.push_str(".SH EXIT STATUS\n.TP\n.B 0\nstopped on request, or success\n.TP\n.B 1\nfailure\n.TP\n.B 2\nwrong usage or settings\n");
    page
}

fn capitalised(text: &str) -> String {
    let (first, rest) = text.split_at(1);
    first.to_ascii_uppercase() + rest
}

/// Text with roff requests and escapes masked, and with dashes that can be copied from the page.
fn roff(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('`', "\\(ga").replace('"', "\\(dq");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}
