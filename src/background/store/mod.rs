//! The store in which replicas count together: Redis, spoken to over one connection a server that carries all questions
//! at once.
//!
//! Invariants: a question is one round trip to one server; while a server is away it is tried once a second, and every
//! question to it is let go at once, so that nobody waits for what cannot come; the same while a server takes no writes;
//! what is on its way is bounded.

mod nodes;
mod place;

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::Either;
use futures_util::stream::FuturesUnordered;
use redis::aio::MultiplexedConnection;
use redis::{Cmd, ErrorKind, Pipeline, RedisError, Script, ServerErrorKind, Value};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, timeout};

use self::nodes::{Link, Nodes};
pub use self::place::StoreUrl;
use crate::filters::{Charged, Charges, Count, SCRIPT};
use crate::telemetry::Telemetry;

/// A connection, and an answer, are there within this time or the server is away.
const PATIENCE: Duration = Duration::from_secs(1);
const TRIED_EVERY: Duration = Duration::from_secs(1);
/// So many questions are on their way at once.
const MOST_AT_ONCE: usize = 4_096;
/// A cluster sends a question on so often.
const MOST_HOPS: u8 = 3;

/// Answers questions until nobody asks any more.
pub async fn keep_counting(mut questions: mpsc::Receiver<Charges>, url: StoreUrl, telemetry: Telemetry) {
    let script = Script::new(SCRIPT);
    let (mut nodes, mut state) = (Nodes::default(), State::Unknown);
    let mut search: Option<Pin<Box<dyn Future<Output = _> + Send>>> = None;
    let mut asked = FuturesUnordered::new();
    // So that a loss is seen when nobody asks, too.
    let mut beat = tokio::time::interval(TRIED_EVERY);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = beat.tick() => {
                asked.extend(nodes.links().into_iter().map(|link| Either::Left(ping(link))));
                let refusing = nodes.refusing().into_iter();
                asked.extend(refusing.map(|(link, key)| Either::Right(Either::Left(probe(link, &script, key)))));
                if !nodes.are_up_to_date() && search.is_none() {
                    let (url, links) = (url.clone(), nodes.links());
                    search = Some(Box::pin(async move { Nodes::search(&url, links).await }));
                }
            }
            (found, trouble) = async { search.as_mut().expect("there is one").await }, if search.is_some() => {
                search = None;
                nodes = found.knowing_what(nodes);
                state.tell(&nodes, &url, trouble, &telemetry);
            }
            question = questions.recv(), if asked.len() < MOST_AT_ONCE => match question {
                Some(question) if nodes.are_apart(&question.counts) => say_apart(question),
                Some(question) => match nodes.link_of(key_of(&question)) {
                    Some(link) => {
                        asked.push(Either::Right(Either::Right(ask(link, &script, Turn::first(question)))));
                    }
                    None => let_go(question, &nodes),
                },
                None => return,
            },
            Some(outcome) = asked.next() => match outcome {
                Outcome::Done => {}
                Outcome::Refused { name, question, error } => {
                    telemetry.control().store_failed();
                    tracing::debug!(error, "the store refuses a question");
                    // It may be this question, or all that are written.
                    if let Some((link, key)) = nodes.suspect(&name, key_of(&question)) {
                        asked.push(Either::Right(Either::Left(probe(link, &script, key))));
                    }
                    let_go(question, &nodes);
                }
                Outcome::Probed { name, error } => {
                    nodes.probed(&name, error);
                    state.tell(&nodes, &url, None, &telemetry);
                }
                Outcome::Lost { name, question, error } => {
                    telemetry.control().store_failed();
                    nodes.lose(&name);
                    state.tell(&nodes, &url, Some(error), &telemetry);
                    question.into_iter().for_each(|question| let_go(question, &nodes));
                    if nodes.links().is_empty() {
                        asked.clear();
                    }
                }
                Outcome::Apart(question) => say_apart(question),
                Outcome::Unsettled(question) => {
                    nodes.changed();
                    let_go(question, &nodes);
                }
                Outcome::Elsewhere { slot, to, turn } => {
                    match turn.is_guest {
                        // Only this one question: the slot is on its way.
                        true => nodes.changed(),
                        false => nodes.slot_moved(slot, &to),
                    }
                    match nodes.link_to(&to) {
                        Some(link) => asked.push(Either::Right(Either::Right(ask(link, &script, turn)))),
                        None => let_go(turn.question, &nodes),
                    }
                }
            },
        }
    }
}

/// What was told last.
#[derive(PartialEq)]
enum State {
    Unknown,
    Whole,
    Partly(Vec<String>),
    /// All are there, and these take no writes, for this reason.
    Refuses(Vec<String>, String),
    Away,
}

impl State {
    fn tell(&mut self, nodes: &Nodes, url: &StoreUrl, error: Option<String>, telemetry: &Telemetry) {
        let now = match (nodes.are_whole(), nodes.links().is_empty(), nodes.refusal()) {
            (true, _, None) => Self::Whole,
            (true, _, Some((names, why))) => Self::Refuses(names, why),
            (_, true, _) => Self::Away,
            _ => Self::Partly(nodes.missing().into_iter().map(String::from).collect()),
        };
        telemetry.control().store_is_up(now == Self::Whole);
        if now == *self {
            return;
        }
        let error = error.unwrap_or_default();
        match &now {
            Self::Whole => tracing::info!(store = ?url, "the store is there; replicas count together"),
            Self::Partly(missing) => {
                tracing::warn!(store = ?url, missing = missing.join(", "), error, "a part of the store is away; limits that are counted there do what onStoreFailure says, it is tried once a second")
            }
            Self::Refuses(names, error) => {
                tracing::warn!(store = ?url, servers = names.join(", "), error, "the store takes no writes (OOM: it is full); limits that are counted there do what onStoreFailure says, it is tried once a second")
            }
            _ => {
                tracing::warn!(store = ?url, error, "the store is away; limits do what onStoreFailure says, it is tried once a second")
            }
        }
        *self = now;
    }
}

/// All of a question are in one slot, or in one server that has them all.
fn key_of(question: &Charges) -> &str {
    question.counts.first().map_or("", |count| &count.key)
}

/// It is asked again in parts.
fn say_apart(question: Charges) {
    if let Some(reply) = question.reply {
        let _ = reply.send(Some(Charged::Apart(question.counts)));
    }
}

/// Who counts this is away. As long as others count, that says nothing about the next question.
fn let_go(question: Charges, nodes: &Nodes) {
    if let Some(reply) = question.reply.filter(|_| nodes.count()) {
        let _ = reply.send(None);
    }
}

/// A question on its way.
struct Turn {
    question: Charges,
    hops: u8,
    /// Whoever it goes to now does not have the slot yet.
    is_guest: bool,
}

impl Turn {
    fn first(question: Charges) -> Self {
        Self { question, hops: 0, is_guest: false }
    }
}

/// What became of it.
enum Outcome {
    Done,
    Refused {
        name: Arc<str>,
        question: Charges,
        error: String,
    },
    /// Whether a server that refused a question takes others.
    Probed {
        name: Arc<str>,
        error: Option<String>,
    },
    /// The connection is of no more use.
    Lost {
        name: Arc<str>,
        question: Option<Charges>,
        error: String,
    },
    /// Another node of the cluster has the slot.
    Elsewhere {
        slot: u16,
        to: String,
        turn: Turn,
    },
    /// The cluster is being changed.
    Unsettled(Charges),
    /// Its buckets are not in one slot, which a cluster behind one address says.
    Apart(Charges),
}

async fn ping(mut link: Link) -> Outcome {
    match sent(&mut link.connection, Cmd::new().arg("PING")).await {
        Err(error) if is_lost(&error) => {
            Outcome::Lost { name: link.name, question: None, error: told(error) }
        }
        _ => Outcome::Done,
    }
}

/// Charges nothing to a bucket of nobody, which is as much of a write as any question.
async fn probe(link: Link, script: &Script, key: Arc<str>) -> Outcome {
    let name = Arc::clone(&link.name);
    let count = Count { key: String::from(&*key), interval: 1.0, burst: 1, cost: 0, enforced: false };
    let question = Charges { counts: vec![count], reply: None };
    match ask(link, script, Turn::first(question)).await {
        Outcome::Refused { error, .. } => Outcome::Probed { name, error: Some(error) },
        Outcome::Lost { name, error, .. } => Outcome::Lost { name, question: None, error },
        // Whoever has the slot now is asked by the next question.
        _ => Outcome::Probed { name, error: None },
    }
}

async fn sent(connection: &mut MultiplexedConnection, command: &Cmd) -> Result<Value, RedisError> {
    let answer = timeout(PATIENCE, connection.send_packed_command(command)).await;
    answer.map_err(late)??.extract_error()
}

/// By a node that does not have the slot yet.
async fn sent_as_guest(connection: &mut MultiplexedConnection, command: &Cmd) -> Result<Value, RedisError> {
    let mut both = Pipeline::new();
    both.cmd("ASKING").add_command(command.clone());
    let answers = timeout(PATIENCE, connection.send_packed_commands(&both, 1, 1)).await;
    answers.map_err(late)??.pop().unwrap_or(Value::Nil).extract_error()
}

fn late(_: tokio::time::error::Elapsed) -> RedisError {
    std::io::Error::from(std::io::ErrorKind::TimedOut).into()
}

async fn ask(mut link: Link, script: &Script, turn: Turn) -> Outcome {
    let counts = &turn.question.counts;
    let command = |script: [&str; 2]| {
        let mut command = Cmd::new();
        command.arg(&script[..]).arg(counts.len());
        for count in counts {
            command.arg(&count.key);
        }
        for count in counts {
            let numbers = [count.interval.to_string(), count.burst.to_string(), count.cost.to_string()];
            command.arg(&numbers[..]).arg(u8::from(count.enforced));
        }
        command
    };
    let connection = &mut link.connection;
    let known = command(["EVALSHA", script.get_hash()]);
    let mut answer = match turn.is_guest {
        true => sent_as_guest(connection, &known).await,
        false => sent(connection, &known).await,
    };
    if matches!(&answer, Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)) {
        // A replica that has been promoted, or a server that was told to forget. It knows it from now on.
        let whole = command(["EVAL", SCRIPT]);
        answer = match turn.is_guest {
            true => sent_as_guest(connection, &whole).await,
            false => sent(connection, &whole).await,
        };
    }
    match answer {
        Ok(answer) => {
            let charged = read(answer, counts.len());
            if let (Some(reply), Some(charged)) = (turn.question.reply, charged) {
                // Who has gone needs no answer.
                let _ = reply.send(Some(charged));
            }
            Outcome::Done
        }
        Err(error) => failed(error, link.name, turn),
    }
}

fn failed(error: RedisError, name: Arc<str>, turn: Turn) -> Outcome {
    match error.kind() {
        ErrorKind::Server(kind @ (ServerErrorKind::Moved | ServerErrorKind::Ask)) => {
            let Some((to, slot)) = error.redirect_node().filter(|_| turn.hops < MOST_HOPS) else {
                return Outcome::Unsettled(turn.question);
            };
            // Without a name it is another port of the same host.
            let host = name.rsplit_once(':').map_or("", |(host, _)| host);
            let to = if to.starts_with(':') { format!("{host}{to}") } else { to.to_owned() };
            let is_guest = kind == ServerErrorKind::Ask;
            Outcome::Elsewhere { slot, to, turn: Turn { hops: turn.hops + 1, is_guest, ..turn } }
        }
        ErrorKind::Server(ServerErrorKind::TryAgain | ServerErrorKind::ClusterDown) => {
            Outcome::Unsettled(turn.question)
        }
        ErrorKind::Server(ServerErrorKind::CrossSlot) => Outcome::Apart(turn.question),
        _ if is_lost(&error) => Outcome::Lost { name, question: Some(turn.question), error: told(error) },
        _ => Outcome::Refused { name, question: turn.question, error: told(error) },
    }
}

/// As the script says it.
fn read(answer: Value, count: usize) -> Option<Charged> {
    let Value::Array(values) = answer else { return None };
    let numbers: Option<Vec<i64>> = values.iter().map(number).collect();
    match numbers?.as_slice() {
        [0, told @ ..] if told.len() == count => {
            Some(Charged::All(told.iter().map(|micros| u64::try_from(*micros).ok()).collect()))
        }
        [place, wait] => {
            let place = usize::try_from(*place).ok()?.checked_sub(1)?;
            Some(Charged::Full { place, wait: u64::try_from(*wait).ok() })
        }
        _ => None,
    }
}

fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        Value::BulkString(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        _ => None,
    }
}

/// The connection is of no more use, or its server is no primary any more.
fn is_lost(error: &RedisError) -> bool {
    let is_demoted = matches!(
        error.kind(),
        ErrorKind::Server(
            ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown | ServerErrorKind::BusyLoading
        )
    );
    is_demoted || error.is_io_error() || error.is_timeout() || error.is_unrecoverable_error()
}

/// Its kind and the server's words, which hold no secret; addresses and passwords stay out.
fn told(error: RedisError) -> String {
    match error.code() {
        Some(code) => code.to_owned(),
        None => format!("{:?}", error.kind()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_script_says_is_read() {
        let text = |text: &str| Value::BulkString(text.into());
        let cases = [
            (vec![Value::Int(0), text("7"), text("-1")], 2, Some(Charged::All(vec![Some(7), None]))),
            (vec![Value::Int(2), text("1000")], 2, Some(Charged::Full { place: 1, wait: Some(1_000) })),
            (vec![Value::Int(1), text("-1")], 1, Some(Charged::Full { place: 0, wait: None })),
            (vec![Value::Int(0), text("7")], 2, None),
            (vec![text("x")], 0, None),
            (vec![], 0, None),
        ];
        for (answer, count, expected) in cases {
            assert_eq!(read(Value::Array(answer), count), expected);
        }
        assert_eq!(read(Value::Nil, 0), None);
    }
}
