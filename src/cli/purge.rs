//! `portcullis purge`: what is kept is not used any more, on every replica.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;

use crate::app::Named;

/// Each of the replicas is asked at the same time.
const PATIENCE: Duration = Duration::from_secs(10);
const MAX_ANSWER: u64 = 1 << 20;

#[derive(Args, Debug)]
pub struct Purge {
    /// Where the gateway answers /purge: any replica, which tells the others
    #[arg(long, value_name = "ADDR:PORT", env = "PORTCULLIS_ADMIN", default_value = "127.0.0.1:9090")]
    admin: String,
    /// The token that the gateway wants to see
    #[arg(long, value_name = "FILE", env = "PORTCULLIS_ADMIN_TOKEN_FILE")]
    token_file: PathBuf,
    /// An address, https://shop.example/a?b
    #[arg(long = "url", value_name = "URL")]
    urls: Vec<String>,
    /// Everything that begins so, https://shop.example/images/
    #[arg(long = "prefix", value_name = "URL")]
    prefixes: Vec<String>,
    /// What the origin marked with Surrogate-Key or Cache-Tag
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Everything of a GatewayRoute
    #[arg(long = "route", value_name = "NAMESPACE/NAME")]
    routes: Vec<String>,
    /// Everything
    #[arg(long)]
    everything: bool,
}

pub fn run(args: Purge) -> anyhow::Result<ExitCode> {
    let Purge { admin, token_file, urls, prefixes, tags, routes, everything } = args;
    let named = Named { urls, prefixes, tags, routes, everything };
    if let Err(wrong) = named.purges() {
        bail!("{wrong}");
    }
    let token = std::fs::read_to_string(&token_file)
        .with_context(|| format!("cannot read the token from {}", token_file.display()))?;
    let addresses: Vec<SocketAddr> =
        admin.to_socket_addrs().with_context(|| format!("{admin} is no address"))?.collect();
    let mut stream =
        TcpStream::connect(&*addresses).with_context(|| format!("cannot reach the gateway at {admin}"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let body = serde_json::to_string(&named)?;
    let token = token.trim();
    if !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        bail!("{} holds no token", token_file.display());
    }
    let head = format!(
        "POST /purge HTTP/1.1\r\nHost: {admin}\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).context("the gateway does not answer")?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, told) = answer.split_once("\r\n\r\n").context("the gateway does not answer in HTTP")?;
    super::say(told)?;
    Ok(if head.starts_with("HTTP/1.1 200") { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
