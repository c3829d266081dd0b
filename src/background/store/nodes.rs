//! The servers that make up the store, as they are reached now, and which of them counts what.
//!
//! Invariants: a search ends in bounded time; a connection that works is kept; what most servers say is believed, so that
//! one that has been cut off from the others misleads nobody.

use std::sync::Arc;

use futures_util::StreamExt as _;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use redis::aio::MultiplexedConnection;
use redis::{AsyncConnectionConfig, Cmd, ConnectionInfo, Script, Value};

use super::place::{Kind, StoreUrl, at};
use super::{PATIENCE, sent, told};
use crate::filters::{Count, SCRIPT};

/// A connection to a server, which is called by its address.
#[derive(Clone)]
pub(super) struct Link {
    pub name: Arc<str>,
    pub connection: MultiplexedConnection,
}

/// All of them.
#[derive(Default)]
pub(super) struct Nodes {
    known: Vec<Node>,
    /// Which node has each slot of a cluster; empty where one server has everything.
    owners: Vec<u16>,
    /// The cluster has been changed since.
    is_stale: bool,
}

struct Node {
    name: Arc<str>,
    connection: Option<MultiplexedConnection>,
    /// It refused a question.
    doubt: Option<Doubt>,
}

/// Whether a server takes writes at all.
#[derive(Clone)]
struct Doubt {
    /// A bucket of nobody, in a slot of this server.
    probe: Arc<str>,
    /// Why it does not; `None`: it is being asked.
    error: Option<String>,
}

/// Which slots are where.
type Map = Vec<(u16, u16, String)>;

const SLOTS: u16 = 16_384;
const NOBODY: u16 = u16::MAX;
/// So many nodes are more than a cluster can have.
const MAX_NODES: usize = 1_024;

impl Nodes {
    /// Looks for the servers. Those to which there are links already are not called again. If one is missing, why.
    pub async fn search(place: &StoreUrl, links: Vec<Link>) -> (Self, Option<String>) {
        let found = match &place.kind {
            Kind::One => one(place.hosts.first()).await,
            Kind::Sentinels { primary, server } => match ask_sentinels(&place.hosts, primary).await {
                Ok((host, port)) => primary_of(at(server, &host, port)).await,
                Err(error) => Err(error),
            },
            Kind::Cluster => return cluster(&place.hosts, links).await,
        };
        match found {
            Ok(link) => {
                let node = Node { name: link.name, connection: Some(link.connection), doubt: None };
                (Self { known: vec![node], ..Self::default() }, None)
            }
            Err(error) => (Self::default(), Some(error)),
        }
    }

    pub fn links(&self) -> Vec<Link> {
        self.known.iter().filter_map(Node::link).collect()
    }

    /// To who counts this; none to a server that takes no writes.
    pub fn link_of(&self, key: &str) -> Option<Link> {
        let owner = match self.owners.get(usize::from(slot(key))) {
            Some(owner) => usize::from(*owner),
            None => 0,
        };
        self.known.get(owner).filter(|node| !node.refuses())?.link()
    }

    /// Several of them are not counted together.
    pub fn are_apart(&self, counts: &[Count]) -> bool {
        match counts.split_first() {
            Some((first, others)) if !self.owners.is_empty() => {
                others.iter().any(|other| slot(&other.key) != slot(&first.key))
            }
            _ => false,
        }
    }

    pub fn link_to(&self, name: &str) -> Option<Link> {
        self.known.iter().find(|node| &*node.name == name)?.link()
    }

    /// All that is counted can be counted.
    pub fn are_whole(&self) -> bool {
        !self.known.is_empty()
            && self.known.iter().all(|node| node.connection.is_some())
            && !self.owners.contains(&NOBODY)
    }

    pub fn are_up_to_date(&self) -> bool {
        self.are_whole() && !self.is_stale
    }

    /// Those that are away.
    pub fn missing(&self) -> Vec<&str> {
        let away = self.known.iter().filter(|node| node.connection.is_none());
        away.map(|node| &*node.name).collect()
    }

    /// Whether any counts.
    pub fn count(&self) -> bool {
        self.known.iter().any(|node| node.connection.is_some() && !node.refuses())
    }

    /// This server refused a question of this key: by what to find out whether it refuses all, unless that is on its way.
    pub fn suspect(&mut self, name: &Arc<str>, key: &str) -> Option<(Link, Arc<str>)> {
        let node =
            self.known.iter_mut().find(|node| node.name == *name).filter(|node| node.doubt.is_none())?;
        // A limit's name stands in place of it, and never before nothing.
        let slot = key.find("}:").map_or(key, |end| &key[..end + 2]);
        let probe: Arc<str> = format!("{slot}probe").into();
        node.doubt = Some(Doubt { probe: Arc::clone(&probe), error: None });
        Some((node.link()?, probe))
    }

    /// Why it takes no writes; `None`: it does.
    pub fn probed(&mut self, name: &Arc<str>, error: Option<String>) {
        let Some(node) = self.known.iter_mut().find(|node| node.name == *name) else { return };
        match (&mut node.doubt, error) {
            (Some(doubt), Some(error)) => doubt.error = Some(error),
            (doubt, _) => *doubt = None,
        }
    }

    /// Those that take no writes, each with the key to find out by.
    pub fn refusing(&self) -> Vec<(Link, Arc<str>)> {
        let refusing = self.known.iter().filter(|node| node.refuses());
        refusing.filter_map(|node| Some((node.link()?, Arc::clone(&node.doubt.as_ref()?.probe)))).collect()
    }

    /// The names of those, and what the first says.
    pub fn refusal(&self) -> Option<(Vec<String>, String)> {
        let mut refusing = self.known.iter().filter(|node| node.refuses()).peekable();
        let error = refusing.peek()?.doubt.as_ref()?.error.clone()?;
        Some((refusing.map(|node| String::from(&*node.name)).collect(), error))
    }

    /// With what is known of the same servers from before.
    pub fn knowing_what(mut self, before: Self) -> Self {
        for node in before.known.into_iter().filter(Node::refuses) {
            if let Some(same) = self.known.iter_mut().find(|known| known.name == node.name) {
                same.doubt = node.doubt;
            }
        }
        self
    }

    /// This very connection is of no more use.
    pub fn lose(&mut self, name: &Arc<str>) {
        let lost = self.known.iter_mut().find(|node| Arc::ptr_eq(&node.name, name));
        if let Some(node) = lost {
            node.connection = None;
            node.doubt = node.doubt.take().filter(|doubt| doubt.error.is_some());
        }
    }

    /// The cluster says that a slot is elsewhere.
    pub fn slot_moved(&mut self, slot: u16, to: &str) {
        self.is_stale = true;
        let owner = self.known.iter().position(|node| &*node.name == to);
        if let (Some(known), Some(owner)) = (self.owners.get_mut(usize::from(slot)), owner) {
            *known = u16::try_from(owner).unwrap_or(NOBODY);
        }
    }

    pub fn changed(&mut self) {
        self.is_stale = true;
    }
}

impl Node {
    fn link(&self) -> Option<Link> {
        let connection = self.connection.clone()?;
        Some(Link { name: Arc::clone(&self.name), connection })
    }

    fn refuses(&self) -> bool {
        self.doubt.as_ref().is_some_and(|doubt| doubt.error.is_some())
    }
}

async fn one(info: Option<&ConnectionInfo>) -> Result<Link, String> {
    let info = info.ok_or("no server is named")?;
    let mut link = open(info.clone()).await?;
    Script::new(SCRIPT).load_async(&mut link.connection).await.map_err(told)?;
    Ok(link)
}

async fn open(info: ConnectionInfo) -> Result<Link, String> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(PATIENCE))
        .set_response_timeout(Some(PATIENCE));
    let name = info.addr().to_string().into();
    let client = redis::Client::open(info).map_err(told)?;
    let connection = client.get_multiplexed_async_connection_with_config(&config).await.map_err(told)?;
    Ok(Link { name, connection })
}

/// What most of them call the primary: one that is cut off may still name an old one.
async fn ask_sentinels(hosts: &[ConnectionInfo], primary: &str) -> Result<(String, u16), String> {
    let mut answers: FuturesUnordered<_> = hosts.iter().map(|host| ask_sentinel(host, primary)).collect();
    let mut named: Vec<((String, u16), usize)> = Vec::new();
    let mut trouble = None;
    while let Some(answer) = answers.next().await {
        let address = match answer {
            Ok(address) => address,
            Err(error) => {
                trouble = Some(error);
                continue;
            }
        };
        let at = named.iter().position(|(known, _)| *known == address).unwrap_or(named.len());
        if at == named.len() {
            named.push((address, 0));
        }
        named[at].1 += 1;
        if named[at].1 * 2 > hosts.len() {
            break;
        }
    }
    let most = named.into_iter().max_by_key(|(_, count)| *count).map(|(address, _)| address);
    most.ok_or_else(|| {
        format!("no sentinel names a primary: {}", trouble.unwrap_or_else(|| "none is given".into()))
    })
}

async fn ask_sentinel(host: &ConnectionInfo, primary: &str) -> Result<(String, u16), String> {
    let mut link = open(host.clone()).await?;
    let mut question = Cmd::new();
    question.arg("SENTINEL").arg("GET-MASTER-ADDR-BY-NAME").arg(primary);
    let answer = sent(&mut link.connection, &question).await.map_err(told)?;
    address_of(&answer).ok_or_else(|| format!("it knows no primary called {primary}"))
}

fn address_of(answer: &Value) -> Option<(String, u16)> {
    let Value::Array(address) = answer else { return None };
    let [host, port] = address.as_slice() else { return None };
    Some((text(host)?.to_owned(), text(port)?.parse().ok()?))
}

/// A server that has just been demoted is none.
async fn primary_of(info: ConnectionInfo) -> Result<Link, String> {
    let mut link = one(Some(&info)).await?;
    let role = sent(&mut link.connection, Cmd::new().arg("ROLE")).await;
    match role {
        Ok(Value::Array(role)) if role.first().and_then(text).is_some_and(|role| role != "master") => {
            Err("what the sentinels name is not the primary".into())
        }
        // Whoever may not ask for it finds out with the first question.
        _ => Ok(link),
    }
}

async fn cluster(hosts: &[ConnectionInfo], mut links: Vec<Link>) -> (Nodes, Option<String>) {
    let Some(template) = hosts.first() else { return (Nodes::default(), None) };
    let mut trouble = None;
    let mut keep = |found: Vec<Result<Link, String>>, links: &mut Vec<Link>| {
        for link in found {
            match link {
                Ok(link) => links.push(link),
                Err(error) => trouble = Some(error),
            }
        }
    };
    let is_new = |info: &ConnectionInfo, links: &[Link]| {
        let name = info.addr().to_string();
        links.iter().all(|link| *link.name != *name)
    };
    let others = hosts.iter().filter(|host| is_new(host, &links));
    let found = join_all(others.map(|host| one(Some(host)))).await;
    keep(found, &mut links);

    let mut maps: Vec<_> = join_all(links.iter().map(map_of)).await.into_iter().flatten().collect();
    maps.sort_unstable();
    let Some(map) = maps.chunk_by(|one, other| one == other).max_by_key(|equal| equal.len()) else {
        return (
            Nodes::default(),
            Some(trouble.unwrap_or_else(|| "no server says what the cluster is".into())),
        );
    };
    let mut nodes = Nodes { owners: vec![NOBODY; usize::from(SLOTS)], ..Nodes::default() };
    for (first, last, name) in map.first().into_iter().flatten() {
        let known = nodes.known.iter().position(|node| *node.name == **name);
        let place = known.unwrap_or(nodes.known.len());
        if place == nodes.known.len() {
            if place == MAX_NODES {
                continue;
            }
            nodes.known.push(Node { name: name.as_str().into(), connection: None, doubt: None });
        }
        let owner = u16::try_from(place).unwrap_or(NOBODY);
        nodes.owners[usize::from(*first)..=usize::from(*last)].fill(owner);
    }
    let infos = nodes.known.iter().filter_map(|node| {
        let (host, port) = node.name.rsplit_once(':')?;
        Some(at(template, host, port.parse().ok()?))
    });
    let missing: Vec<_> = infos.filter(|info| is_new(info, &links)).collect();
    let found = join_all(missing.iter().map(|info| one(Some(info)))).await;
    keep(found, &mut links);
    for node in &mut nodes.known {
        if let Some(link) = links.iter().find(|link| link.name == node.name) {
            *node =
                Node { name: Arc::clone(&link.name), connection: Some(link.connection.clone()), doubt: None };
        }
    }
    if nodes.owners.contains(&NOBODY) {
        trouble = Some("some slots of the cluster have no node".into());
    }
    (nodes, trouble)
}

async fn map_of(link: &Link) -> Option<Map> {
    let mut connection = link.connection.clone();
    let answer = sent(&mut connection, Cmd::new().arg("CLUSTER").arg("SLOTS")).await.ok()?;
    let Value::Array(ranges) = answer else { return None };
    let (asked, _) = link.name.rsplit_once(':')?;
    let map: Option<Map> = ranges.iter().map(|range| range_of(range, asked)).collect();
    // In whatever order they come.
    map.filter(|map| !map.is_empty()).map(|mut map| {
        map.sort_unstable();
        map
    })
}

/// `[first, last, [host, port, …], …]`; a node that has no name of its own is where it was asked.
fn range_of(range: &Value, asked: &str) -> Option<(u16, u16, String)> {
    let Value::Array(range) = range else { return None };
    let [Value::Int(first), Value::Int(last), Value::Array(node), ..] = range.as_slice() else { return None };
    let [host, Value::Int(port), ..] = node.as_slice() else { return None };
    let slot = |number: i64| u16::try_from(number).ok().filter(|slot| *slot < SLOTS);
    let (first, last, port) = (slot(*first)?, slot(*last)?, u16::try_from(*port).ok()?);
    let host = text(host).filter(|host| !host.is_empty()).unwrap_or(asked);
    (first <= last).then(|| (first, last, format!("{host}:{port}")))
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

/// Of what stands in braces, if anything does: <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/>
fn slot(key: &str) -> u16 {
    let tag = key.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map(|(tag, _)| tag);
    let tag = tag.filter(|tag| !tag.is_empty()).unwrap_or(key);
    let crc = tag.bytes().fold(0, |crc: u16, byte| {
        (0..8).fold(
            crc ^ u16::from(byte) << 8,
            |crc, _| if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 },
        )
    });
    crc % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_in_the_slot_that_redis_says() {
        // As CLUSTER KEYSLOT answers.
        let cases = [
            ("123456789", 0x31c3),
            ("foo", 12_182),
            ("{foo}bar", 12_182),
            ("portcullis:limit:{foo}:a:{b}", 12_182),
            ("foo{}{bar}", 8_363),
            ("foo{{bar}}zap", 4_015),
        ];
        for (key, expected) in cases {
            assert_eq!(slot(key), expected, "{key}");
        }
    }

    #[test]
    fn what_a_node_says_of_the_cluster_is_read() {
        let bulk = |text: &str| Value::BulkString(text.into());
        let node =
            |host: Value, port| Value::Array(vec![host, Value::Int(port), bulk("id"), Value::Array(vec![])]);
        let range = |first, last, node| Value::Array(vec![Value::Int(first), Value::Int(last), node]);
        let told = |first, last, name: &str| Some((first, last, name.to_owned()));
        let cases = [
            (range(0, 5, node(bulk("192.0.2.1"), 7_000)), told(0, 5, "192.0.2.1:7000")),
            (range(5, 16_383, node(Value::Nil, 7_000)), told(5, 16_383, "seed:7000")),
            (range(5, 5, node(bulk(""), 7_000)), told(5, 5, "seed:7000")),
            (range(5, 16_384, node(bulk("a"), 7_000)), None),
            (range(6, 5, node(bulk("a"), 7_000)), None),
            (range(-1, 5, node(bulk("a"), 7_000)), None),
            (range(0, 5, node(bulk("a"), 70_000)), None),
            (Value::Nil, None),
        ];
        for (range, expected) in cases {
            assert_eq!(range_of(&range, "seed"), expected, "{range:?}");
        }
    }
}
