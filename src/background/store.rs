//! The store in which replicas count together: Redis, spoken to over one connection that carries all questions at once.
//!
//! Invariants: while it is away it is tried once a second, and every question is let go at once, so that nobody waits
//! for what cannot come; what is on its way is bounded.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::Either;
use futures_util::stream::FuturesUnordered;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, RedisError, Script, Value};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};

use crate::filters::{Charged, Charges, SCRIPT};
use crate::telemetry::Telemetry;

/// A connection, and an answer, are there within this time or the store is away.
const PATIENCE: Duration = Duration::from_secs(1);
const TRIED_EVERY: Duration = Duration::from_secs(1);
/// So many questions are on their way at once.
const MOST_AT_ONCE: usize = 4_096;

/// Where the store is. It may hold a password: never printed.
#[derive(Clone)]
pub struct StoreUrl(redis::Client);

impl FromStr for StoreUrl {
    type Err = String;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        let client = redis::Client::open(url);
        client
            .map(Self)
            .map_err(|_| "not a URL like redis://host:6379/0 or rediss://user:password@host".into())
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self.0.get_connection_info().addr(), f)
    }
}

/// Why the connection is given up.
enum Lost {
    /// Nobody asks any more.
    Unwanted,
    Failed(String),
}

/// Answers questions until nobody asks any more.
pub async fn keep_counting(mut questions: mpsc::Receiver<Charges>, url: StoreUrl, telemetry: Telemetry) {
    let script = Script::new(SCRIPT);
    let mut is_failing = false;
    loop {
        let lost = match connect(&url, &script).await {
            Ok(connection) => {
                tracing::info!(store = ?url, "the store is there; replicas count together");
                is_failing = false;
                telemetry.control().store_is_up(true);
                serve(&connection, &script, &mut questions, &telemetry).await
            }
            Err(error) => Lost::Failed(error),
        };
        telemetry.control().store_is_up(false);
        match lost {
            Lost::Unwanted => return,
            Lost::Failed(error) if !is_failing => {
                tracing::warn!(store = ?url, error, "the store is away; limits do what onStoreFailure says, it is tried once a second");
                is_failing = true;
            }
            Lost::Failed(_) => {}
        }
        let again = Instant::now() + TRIED_EVERY;
        loop {
            tokio::select! {
                () = sleep_until(again) => break,
                question = questions.recv() => match question {
                    Some(question) => drop(question),
                    None => return,
                },
            }
        }
    }
}

async fn connect(url: &StoreUrl, script: &Script) -> Result<MultiplexedConnection, String> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(PATIENCE))
        .set_response_timeout(Some(PATIENCE));
    let mut connection = url.0.get_multiplexed_async_connection_with_config(&config).await.map_err(told)?;
    script.load_async(&mut connection).await.map_err(told)?;
    Ok(connection)
}

async fn serve(
    connection: &MultiplexedConnection,
    script: &Script,
    questions: &mut mpsc::Receiver<Charges>,
    telemetry: &Telemetry,
) -> Lost {
    let mut asked = FuturesUnordered::new();
    // So that its loss is seen when nobody asks.
    let mut beat = tokio::time::interval(TRIED_EVERY);
    loop {
        tokio::select! {
            _ = beat.tick() => asked.push(Either::Left(ping(connection.clone()))),
            question = questions.recv(), if asked.len() < MOST_AT_ONCE => match question {
                Some(question) => asked.push(Either::Right(ask(connection.clone(), script, question))),
                None => return Lost::Unwanted,
            },
            Some(outcome) = asked.next() => if let Err(error) = outcome {
                telemetry.control().store_failed();
                if is_lost(&error) {
                    return Lost::Failed(told(error));
                }
                tracing::debug!(error = told(error), "the store refuses a question");
            },
        }
    }
}

async fn ping(mut connection: MultiplexedConnection) -> Result<(), RedisError> {
    sent(&mut connection, Cmd::new().arg("PING")).await.map(drop)
}

async fn sent(connection: &mut MultiplexedConnection, command: &Cmd) -> Result<Value, RedisError> {
    let answer = timeout(PATIENCE, connection.send_packed_command(command)).await;
    let late = |_| RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
    answer.map_err(late)??.extract_error()
}

async fn ask(
    mut connection: MultiplexedConnection,
    script: &Script,
    question: Charges,
) -> Result<(), RedisError> {
    let Charges { counts, reply } = question;
    let mut command = Cmd::new();
    command.arg("EVALSHA").arg(script.get_hash()).arg(counts.len());
    for count in &counts {
        command.arg(&count.key);
    }
    for count in &counts {
        let numbers = [count.interval.to_string(), count.burst.to_string(), count.cost.to_string()];
        command.arg(&numbers[..]).arg(u8::from(count.enforced));
    }
    let answer = sent(&mut connection, &command).await?;
    if let (Some(reply), Some(charged)) = (reply, read(answer, counts.len())) {
        // Who has gone needs no answer.
        let _ = reply.send(charged);
    }
    Ok(())
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

/// The connection is of no more use, or the server has forgotten the script.
fn is_lost(error: &RedisError) -> bool {
    error.is_io_error()
        || error.is_timeout()
        || error.is_unrecoverable_error()
        || error.code() == Some("NOSCRIPT")
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

    #[test]
    fn a_url_never_tells_its_password() {
        let url: StoreUrl = "rediss://gateway:canary@store.example:6380/1".parse().expect("a URL");
        assert_eq!(format!("{url:?}").matches("canary").count(), 0);
        assert!(format!("{url:?}").contains("store.example:6380"), "{url:?}");
        assert!("store.example".parse::<StoreUrl>().is_err());
    }
}
