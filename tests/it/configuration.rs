//! docs/configuration.md is what the flags say. To write it anew:
//! `AQUATINT_BLESS=1 cargo test --test it configuration`

use std::fmt::Write;
use std::path::Path;

use aquatint::settings::Cli;
use clap::{Arg, ArgAction, Command, CommandFactory};

/// How the part of a command begins.
const FIRST: &str = "\n## `";

/// Commands, flags and variables as the page has them below its hand-written introduction.
fn reference() -> String {
    let mut page = String::new();
    let mut command = Cli::command();
    command.build();
    for child in command.get_subcommands().filter(|child| child.get_name() != "help") {
        section(&mut page, "aquatint", child);
    }
    page
}

/// A command, its flags by heading, and the commands below it.
fn section(page: &mut String, parent: &str, command: &Command) {
    let name = format!("{parent} {}", command.get_name());
    let about = command.get_about().map(ToString::to_string).unwrap_or_default();
    writeln!(page, "{FIRST}{name}`\n\n{}.", about.trim_end_matches('.')).unwrap();
    let mut headings: Vec<Option<&str>> = Vec::new();
    for argument in shown(command) {
        if !headings.contains(&argument.get_help_heading()) {
            headings.push(argument.get_help_heading());
        }
    }
    for heading in headings {
        if let Some(heading) = heading {
            writeln!(page, "\n### {heading}").unwrap();
        }
        page.push_str("\n| flag | variable | default | meaning |\n|---|---|---|---|\n");
        for argument in shown(command).filter(|argument| argument.get_help_heading() == heading) {
            row(page, argument);
        }
    }
    for child in command.get_subcommands().filter(|child| child.get_name() != "help") {
        section(page, &name, child);
    }
}

/// Arguments of which the reference speaks: what --help shows, and what is set by a variable alone.
fn shown(command: &Command) -> impl Iterator<Item = &Arg> {
    let arguments = command.get_arguments().filter(|argument| argument.get_id() != "help");
    arguments.filter(|argument| !argument.is_hide_set() || argument.get_env().is_some())
}

fn row(page: &mut String, argument: &Arg) {
    let mut flag = match argument.get_long() {
        // Hidden flags exist for the sake of their variables.
        Some(_) if argument.is_hide_set() => String::new(),
        Some(long) => format!("--{long}"),
        None => String::new(),
    };
    let values: Vec<_> =
        argument.get_value_names().unwrap_or_default().iter().map(ToString::to_string).collect();
    if matches!(argument.get_action(), ArgAction::Set | ArgAction::Append) && !argument.is_hide_set() {
        write!(flag, " {}", values.join(" ")).unwrap();
    }
    let variable = argument.get_env().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut meaning = argument.get_help().map(|help| one_line(&help.to_string())).unwrap_or_default();
    // A default that is no fixed value is part of the help text.
    let mut default: Vec<_> =
        argument.get_default_values().iter().map(|value| code(&value.to_string_lossy())).collect();
    if !matches!(argument.get_action(), ArgAction::Set | ArgAction::Append) {
        default = vec!["off".to_owned()];
    } else if let Some((text, of)) = meaning.clone().split_once(" [default: ") {
        let (of, rest) = of.split_once(']').unwrap();
        default = vec![of.to_owned()];
        meaning = format!("{text}{rest}");
    }
    let possible: Vec<_> = argument
        .get_possible_values()
        .iter()
        .filter(|value| !value.is_hide_set())
        .map(|value| code(value.get_name()))
        .collect();
    if !possible.is_empty() && matches!(argument.get_action(), ArgAction::Set | ArgAction::Append) {
        write!(meaning, ": {}", possible.join(", ")).unwrap();
    }
    let cells = [code(flag.trim()), code(&variable), default.join(", "), meaning.replace('|', "\\|")];
    writeln!(page, "| {} |", cells.join(" | ")).unwrap();
}

fn code(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("`{text}`") }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_reference_is_what_the_flags_say() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/configuration.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (introduction, stored) = page.split_at(page.find(FIRST).unwrap_or(page.len()));
    let reference = reference();
    if std::env::var_os("AQUATINT_BLESS").is_some() {
        std::fs::write(&path, format!("{introduction}{reference}")).unwrap();
        return;
    }
    assert!(
        stored == reference,
        "docs/configuration.md is not what the flags say: AQUATINT_BLESS=1 cargo test --test it configuration"
    );
}

#[test]
fn the_reference_has_what_is_set_by_a_variable_alone() {
    let reference = reference();
    for name in ["SD_MODEL_ID", "PORT", "ALLOW_ORIGINS", "AQUATINT_API_KEYS", "RUNPOD_AI_API_KEY"] {
        assert!(reference.contains(&format!("| `{name}` |")), "{name}");
    }
    // Its flag is hidden, as arguments are for all to see.
    assert!(!reference.contains("--runpod-ai-api-key"));
    assert!(!reference.contains("--help"));
    assert!(reference.contains("| `--port PORT` | `PORT` | `7860` |"), "{reference}");
}
