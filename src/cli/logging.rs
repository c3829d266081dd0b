//! Logs on stderr: readable on a terminal, JSON otherwise.

use std::io::IsTerminal as _;

use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::{self, MakeWriter};

/// Which events are logged: like `info` or `portcullis=debug,info`.
const FILTER: &str = "PORTCULLIS_LOG";
/// rustls warns of every strange server name, h2 of every PING that answers nothing: hostile clients would fill the log.
/// kube calls every try of a lost API server an error, of which we tell once in a while.
const DEFAULT: &str = "info,rustls=error,h2=error,kube_client=off";

pub fn start() {
    let filter = EnvFilter::try_from_env(FILTER).unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let log = subscriber(std::io::stderr().is_terminal(), filter, std::io::stderr);
    // Set once a process; a second one (tests in one process) keeps the first.
    let _ = tracing::subscriber::set_global_default(log);
}

fn subscriber<W>(terminal: bool, filter: EnvFilter, writer: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let log = fmt::fmt().with_env_filter(filter).with_writer(writer);
    if terminal {
        Box::new(log.compact().with_target(false).finish())
    } else {
        Box::new(log.json().flatten_event(true).with_current_span(false).with_span_list(false).finish())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};
    use std::sync::Mutex;

    use super::*;

    fn said(terminal: bool) -> String {
        let mut file = tempfile::tempfile().expect("a file");
        let log =
            subscriber(terminal, EnvFilter::new("info"), Mutex::new(file.try_clone().expect("the same")));
        tracing::subscriber::with_default(log, || tracing::warn!(place = "a.yaml:3", "no rule"));
        let mut text = String::new();
        file.rewind().expect("to the start");
        file.read_to_string(&mut text).expect("UTF-8");
        text
    }

    #[test]
    fn people_read_lines_and_programs_json() {
        let line = said(true);
        assert!(line.contains("WARN") && line.contains("no rule") && line.contains("a.yaml:3"), "{line}");
        assert!(serde_json::from_str::<serde_json::Value>(&line).is_err(), "{line}");
        let json: serde_json::Value = serde_json::from_str(&said(false)).expect("JSON");
        assert_eq!(
            (&json["level"], &json["message"], &json["place"]),
            (&"WARN".into(), &"no rule".into(), &"a.yaml:3".into())
        );
    }
}
