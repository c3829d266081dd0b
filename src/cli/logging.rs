//! Logs on stderr: readable on a terminal, JSON otherwise.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

/// Which events are logged: like `info` or `portcullis=debug,info`.
const FILTER: &str = "PORTCULLIS_LOG";
/// rustls warns of every strange server name, h2 of every PING that answers nothing: hostile clients would fill the log.
/// kube calls every try of a lost API server an error, of which we tell once in a while.
const DEFAULT: &str = "info,rustls=error,h2=error,kube_client=off";

pub fn start() {
    let filter = EnvFilter::try_from_env(FILTER).unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let log = fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Set once a process; a second one (tests in one process) keeps the first.
    let _ = if std::io::stderr().is_terminal() {
        log.compact().with_target(false).try_init()
    } else {
        log.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
    };
}
