//! docs/cli.md has every command and flag, and no other.

use std::collections::BTreeSet;

use clap::{Command, CommandFactory as _};

use super::Arguments;

const PAGE: &str = include_str!("../../docs/cli.md");
/// Of other programs, in examples.
const OTHERS: &[&str] = &["--help", "--cacert", "--show-error"];

/// What stands below `## name`.
fn section<'p>(page: &'p str, name: &str) -> Option<&'p str> {
    let rest = page.split_once(&format!("\n## {name}\n"))?.1;
    Some(rest.split("\n## ").next().unwrap_or(rest))
}

/// The flags of a text, as `--flag`.
fn flags(text: &str) -> BTreeSet<&str> {
    let is_part = |sign: char| sign.is_ascii_alphanumeric() || sign == '-';
    let words = text.split(|sign: char| !is_part(sign));
    words.filter(|word| word.len() > 2 && word.starts_with("--") && word.as_bytes()[2] != b'-').collect()
}

/// What the page lacks, and what it has beyond.
fn differences(page: &str, program: &Command) -> Vec<String> {
    let mut found = Vec::new();
    let mut known: BTreeSet<String> = OTHERS.iter().map(|flag| (*flag).to_owned()).collect();
    for command in program.get_subcommands().filter(|command| !command.is_hide_set()) {
        let name = command.get_name();
        let Some(section) = section(page, name) else {
            found.push(format!("no section {name}"));
            continue;
        };
        let written = flags(section);
        for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
            let Some(long) = argument.get_long() else { continue };
            let long = format!("--{long}");
            // A single dash is written as `-H`.
            let short = argument.get_short().is_some_and(|short| section.contains(&format!("-{short} ")));
            if !written.contains(&*long) && !short {
                found.push(format!("{name} {long}"));
            }
            if let Some(variable) = argument.get_env().filter(|_| name == "run")
                && !section.contains(&format!("`{}`", variable.to_string_lossy()))
            {
                found.push(format!("{name} {}", variable.to_string_lossy()));
            }
            known.insert(long);
        }
    }
    found.extend(
        flags(page).into_iter().filter(|flag| !known.contains(*flag)).map(|flag| format!("no {flag}")),
    );
    found
}

#[test]
fn the_page_has_every_command_and_flag_and_no_other() {
    assert_eq!(differences(PAGE, &Arguments::command()), Vec::<String>::new());
}

#[test]
fn what_the_page_lacks_or_makes_up_is_seen() {
    let lacking = PAGE.replace("--redis-timeout", "").replace("\n## purge\n", "\n## purr\n");
    let made_up = lacking + "`--fast`";
    let found = differences(&made_up, &Arguments::command());
    for what in ["run --redis-timeout", "no section purge", "no --fast"] {
        assert!(found.iter().any(|found| found == what), "{what}: {found:?}");
    }
}
