//! Where the store is: one server, what Sentinels call the primary, or a Cluster; read from one URL.

use std::fmt;
use std::str::FromStr;

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _};

/// Where the store is. It may hold passwords: never printed.
#[derive(Clone)]
pub struct StoreUrl {
    pub(super) kind: Kind,
    /// Servers that are asked first: the one there is, or those that know the others.
    pub(super) hosts: Vec<ConnectionInfo>,
}

#[derive(Clone)]
pub(super) enum Kind {
    One,
    /// The hosts are Sentinels.
    Sentinels {
        /// How they call it.
        primary: String,
        /// How it is spoken to; its address is theirs to say.
        server: Box<ConnectionInfo>,
    },
    /// The hosts are some of its nodes; the others are spoken to in the same way.
    Cluster,
}

const EXPECTED: &str = "not a URL like redis://HOST:6379/0, rediss://USER:PASSWORD@HOST for TLS, \
    redis+sentinel://HOST,HOST,HOST/PRIMARY/0 or redis+cluster://HOST,HOST,HOST";
const MAX_HOSTS: usize = 64;

impl FromStr for StoreUrl {
    type Err = &'static str;

    fn from_str(url: &str) -> Result<Self, Self::Err> {
        read(url).ok_or(EXPECTED)
    }
}

impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::One => {}
            Kind::Sentinels { primary, .. } => write!(f, "{primary} of the sentinels ")?,
            Kind::Cluster => f.write_str("the cluster of ")?,
        }
        let hosts: Vec<_> = self.hosts.iter().map(|host| host.addr().to_string()).collect();
        f.write_str(&hosts.join(", "))
    }
}

fn read(url: &str) -> Option<StoreUrl> {
    let (scheme, rest) = url.split_once("://")?;
    match scheme.split_once('+') {
        Some((scheme @ ("redis" | "rediss"), "sentinel")) => sentinels(scheme, rest),
        Some((scheme @ ("redis" | "rediss"), "cluster")) => cluster(scheme, rest),
        _ => Some(StoreUrl { kind: Kind::One, hosts: vec![url.into_connection_info().ok()?] }),
    }
}

fn cluster(scheme: &str, rest: &str) -> Option<StoreUrl> {
    let (login, hosts) = authority(rest.strip_suffix('/').unwrap_or(rest));
    Some(StoreUrl { kind: Kind::Cluster, hosts: infos(scheme, login, hosts, 6_379)? })
}

/// `[USER:PASSWORD@]HOST[:PORT],…/PRIMARY[/DB][?sentinelUser=…&sentinelPassword=…]`
fn sentinels(scheme: &str, rest: &str) -> Option<StoreUrl> {
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (rest, path) = rest.split_once('/')?;
    let (primary, database) = path.split_once('/').unwrap_or((path, "0"));
    let (login, hosts) = authority(rest);
    let (mut user, mut password) = ("", "");
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=')? {
            ("sentinelUser", given) => user = given,
            ("sentinelPassword", given) => password = given,
            _ => return None,
        }
    }
    let own = match (user, password) {
        ("", "") => String::new(),
        _ => format!("{user}:{password}@"),
    };
    // Its address comes later.
    let server = format!("{scheme}://{login}primary/{database}").into_connection_info().ok()?;
    let kind = Kind::Sentinels { primary: primary.into(), server: Box::new(server) };
    (!primary.is_empty()).then_some(())?;
    Some(StoreUrl { kind, hosts: infos(scheme, &own, hosts, 26_379)? })
}

/// The login with its `@`, and the hosts.
fn authority(text: &str) -> (&str, &str) {
    text.split_at(text.rfind('@').map_or(0, |at| at + 1))
}

fn infos(scheme: &str, login: &str, hosts: &str, port: u16) -> Option<Vec<ConnectionInfo>> {
    if hosts.split(',').count() > MAX_HOSTS || hosts.contains(['/', '?', '#']) {
        return None;
    }
    let info = |host: &str| {
        let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.ends_with(']'));
        let port = if has_port { String::new() } else { format!(":{port}") };
        format!("{scheme}://{login}{host}{port}").into_connection_info().ok()
    };
    hosts.split(',').map(info).collect()
}

/// The same way of speaking, to another address.
pub(super) fn at(info: &ConnectionInfo, host: &str, port: u16) -> ConnectionInfo {
    let address = match info.addr() {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => ConnectionAddr::TcpTls {
            host: host.into(),
            port,
            insecure: *insecure,
            tls_params: tls_params.clone(),
        },
        _ => ConnectionAddr::Tcp(host.into(), port),
    };
    info.clone().set_addr(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(url: &str) -> StoreUrl {
        url.parse().expect(url)
    }

    #[test]
    fn each_form_says_where_the_store_is() {
        let cases = [
            ("redis://store.example", "store.example:6379"),
            ("rediss://gateway:canary@store.example:6380/1", "store.example:6380"),
            ("redis+unix:///run/redis", "/run/redis"),
            ("redis+sentinel://a,b:1,[::1]/shop", "shop of the sentinels a:26379, b:1, ::1:26379"),
            ("rediss+sentinel://u:canary@a/shop/3?sentinelPassword=canary", "shop of the sentinels a:26379"),
            ("redis+cluster://:canary@a:7000,b", "the cluster of a:7000, b:6379"),
            ("rediss+cluster://a/", "the cluster of a:6379"),
        ];
        for (url, expected) in cases {
            assert_eq!(format!("{:?}", store(url)), expected, "{url}");
        }
    }

    #[test]
    fn each_kind_of_server_is_shown_its_own_password() {
        let login = |info: &ConnectionInfo| {
            let settings = info.redis_settings();
            (settings.username().map(String::from), settings.password().map(String::from), settings.db())
        };
        let text = |text: &str| Some(text.to_owned());
        let url = "rediss+sentinel://app:a%40b@s1,s2/shop/3?sentinelUser=watch&sentinelPassword=c%2Fd";
        let StoreUrl { kind: Kind::Sentinels { primary, server }, hosts } = store(url) else {
            panic!("sentinels")
        };
        assert_eq!((primary.as_str(), login(&server)), ("shop", (text("app"), text("a@b"), 3)));
        assert!(hosts.iter().all(|host| login(host) == (text("watch"), text("c/d"), 0)));
        let at = at(&server, "192.0.2.1", 6_379);
        assert!(matches!(at.addr(), ConnectionAddr::TcpTls { host, .. } if host == "192.0.2.1"));
        assert_eq!(login(&at), login(&server));
        let hosts = store("redis+cluster://:canary@a,b").hosts;
        assert!(hosts.iter().all(|host| login(host) == (None, text("canary"), 0)));
        let open = store("redis+sentinel://:canary@a/shop");
        assert_eq!(login(&open.hosts[0]), (None, None, 0), "the password is the primary's alone");
    }

    #[test]
    fn what_is_no_such_url_is_refused_without_being_told() {
        let cases = [
            "store.example",
            "http://canary@a",
            "redis+sentinel://canary@a",
            "redis+sentinel://canary@a/",
            "redis+sentinel://a/shop/canary",
            "redis+sentinel://a/shop?canary=1",
            "redis+sentinel:///shop",
            "redis+cluster://a,,b",
            "redis+cluster://a/1",
            "redis+cluster://a#canary",
            "redis+ring://a",
        ];
        for url in cases {
            let error = url.parse::<StoreUrl>().expect_err(url);
            assert!(error.starts_with("not a URL") && !error.contains("canary"), "{error}");
        }
        assert!(format!("redis+cluster://{}a", "a,".repeat(MAX_HOSTS)).parse::<StoreUrl>().is_err());
    }
}
