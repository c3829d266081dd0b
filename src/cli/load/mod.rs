//! `portcullis load`: the loss counter. Open loop: requests are sent when they are due, whatever became of those
//! before, and none is ever sent twice. One JSON line at the end says how many were sent, answered and lost, and how.
//!
//! A kept connection that its server announced to close (`Connection: close`, GOAWAY) is replaced and nothing is lost.
//! One that closes unannounced and takes a request with it counts.

mod connections;
mod tally;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration as StdDuration;

use anyhow::{Context as _, bail};
use clap::Args;
use http::Uri;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use self::connections::{Connections, Target};
use self::tally::{Lost, Tally};
use crate::lifecycle::terminated;
use crate::values::Duration;

/// A request that has no answer by then is lost.
const PATIENCE: StdDuration = StdDuration::from_secs(10);

#[derive(Args, Debug)]
pub struct Load {
    #[arg(long)]
    url: Uri,
    /// Requests a second
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    rate: u32,
    /// How long to send
    #[arg(long, value_name = "DURATION", conflicts_with = "until_signal")]
    duration: Option<Duration>,
    /// Send until SIGTERM or SIGINT
    #[arg(long)]
    until_signal: bool,
    /// Connections at once
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    connections: u16,
    /// A new connection for each request
    #[arg(long)]
    fresh: bool,
    #[arg(long)]
    http2: bool,
    /// Trust the certificates in this PEM file
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Connect there, whatever the URL's host
    #[arg(long, value_name = "ADDR:PORT")]
    connect: Option<SocketAddr>,
    /// The status that an answer must have
    #[arg(long, default_value_t = 200)]
    status: u16,
}

pub fn run(args: &Load) -> anyhow::Result<()> {
    if args.duration.is_none() && !args.until_signal {
        bail!("say how long: --duration or --until-signal");
    }
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tally = runtime.block_on(tokio::task::LocalSet::new().run_until(send_all(args)))?;
    super::say(&format!("{}\n", tally.into_json()))
}

async fn send_all(args: &Load) -> anyhow::Result<Tally> {
    let target = Target::new(&args.url, args.connect, args.ca.as_deref(), args.http2).await?;
    let connections = Rc::new(Connections::new(target, args.connections.into(), args.fresh));
    let tally = Rc::new(std::cell::RefCell::new(Tally::default()));
    let tasks = TaskTracker::new();
    let mut signals = terminated().context("cannot listen to signals")?;
    let started = Instant::now();
    let until = args.duration.map(|duration| started + duration.std());
    let mut ticks = tokio::time::interval(StdDuration::from_millis(1));
    let mut sent = 0u64;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = signals.recv() => break,
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            break;
        }
        loop {
            let due = started + StdDuration::from_nanos(sent * 1_000_000_000 / u64::from(args.rate));
            if due > Instant::now() {
                break;
            }
            sent += 1;
            let (connections, tally, expected) = (Rc::clone(&connections), Rc::clone(&tally), args.status);
            tasks.spawn_local(async move {
                let outcome = tokio::time::timeout_at(due + PATIENCE, connections.request()).await;
                let outcome = match outcome {
                    Ok(Ok(status)) if status.as_u16() == expected => Ok(due.elapsed()),
                    Ok(Ok(_)) => Err(Lost::Status),
                    Ok(Err(lost)) => Err(lost),
                    Err(_) => Err(Lost::Timeout),
                };
                tally.borrow_mut().count(outcome);
            });
        }
    }
    tasks.close();
    tasks.wait().await;
    drop(connections);
    Ok(tally.take())
}
