//! What a person types: one file a subcommand.

// They panic where nobody reads; here are `say` and `warn`.
#![warn(clippy::print_stdout, clippy::print_stderr)]

mod certificate;
mod check;
mod crds;
mod echo;
mod egress;
mod explain;
mod findings;
mod load;
mod logging;
mod purge;
mod run;
mod websocket;

use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

/// A Kubernetes gateway: routes declared as resources, served over HTTP and TLS.
#[derive(Parser, Debug)]
#[command(name = "portcullis", version, propagate_version = true, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Run the gateway: in a cluster, or with --manifests from files
    Run(Box<run::Run>),
    /// Compile manifests without serving them, and show what is wrong with them
    Check(check::Check),
    /// Follow a request through the compiled routes without sending it
    Explain(explain::Explain),
    /// Tell a running gateway not to use kept answers any more
    Purge(purge::Purge),
    /// Print the CustomResourceDefinitions
    Crds(crds::Crds),
    /// A small backend that answers with what it was asked
    Echo(echo::Echo),
    /// Make a certificate for trials, as a Secret manifest
    Certificate(certificate::Certificate),
    /// Send requests at a constant rate and count every one that is lost
    #[command(hide = true)]
    Load(load::Load),
}

pub fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let result = match arguments.command {
        Command::Run(args) => run::run(*args),
        Command::Check(args) => check::run(&args),
        Command::Explain(args) => explain::run(&args),
        Command::Purge(args) => purge::run(args),
        Command::Crds(args) => crds::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Echo(args) => echo::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Certificate(args) => certificate::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Load(args) => load::run(&args).map(|()| ExitCode::SUCCESS),
    };
    result.unwrap_or_else(|error| {
        if error.is::<Unread>() {
            return ExitCode::from(UNREAD);
        }
        // The whole chain on one line: what failed, then why.
        warn(format_args!("{error:#}"));
        ExitCode::FAILURE
    })
}

/// What a shell shows of a program that SIGPIPE has ended.
const UNREAD: u8 = 128 + 13;

/// Whoever read our stdout has gone (`portcullis check … | head`): there is nothing more to do or to say.
#[derive(Debug, thiserror::Error)]
#[error("nobody reads stdout any more")]
struct Unread;

/// Writes what a command was asked for to stdout.
fn say(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Unread.into()),
        written => written.context("cannot write to stdout"),
    }
}

/// A line on stderr; whoever does not read it does not want it.
fn warn(what: impl std::fmt::Display) {
    let _ = writeln!(std::io::stderr(), "portcullis: {what}");
}

#[cfg(test)]
mod tests;
