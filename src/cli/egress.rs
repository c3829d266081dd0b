//! What the commands are told of where backends may be.

use std::net::IpAddr;

use clap::Args;
use ipnet::IpNet;

use crate::compile::LoopbackHosts;
use crate::values::{Egress, PrivateHosts};

#[derive(Args, Debug)]
pub struct EgressArgs {
    /// Networks in which no backend, key set or authorizer that a route names may be
    #[arg(
        long,
        value_name = "NETWORK",
        env = "PORTCULLIS_EGRESS_DENY",
        value_delimiter = ',',
        value_parser = network
    )]
    egress_deny: Vec<IpNet>,
    /// Networks in which hosts and URLs that a route names may be though they are private or of the cluster; with
    /// --manifests all private ones are
    #[arg(
        long,
        value_name = "NETWORK",
        env = "PORTCULLIS_EGRESS_ALLOW",
        value_delimiter = ',',
        value_parser = network
    )]
    egress_allow: Vec<IpNet>,
    /// Networks of Pods, Services and nodes beside the private ones: hosts and URLs that a route names may not be there,
    /// endpoints of Services may
    #[arg(
        long,
        value_name = "NETWORK",
        env = "PORTCULLIS_EGRESS_CLUSTER",
        value_delimiter = ',',
        value_parser = network
    )]
    egress_cluster: Vec<IpNet>,
}

impl EgressArgs {
    /// Where hosts may be on loopback, they may be in private networks too: whoever writes routes runs the gateway.
    pub fn beside(&self, loopback: LoopbackHosts) -> Egress {
        Egress {
            private: match loopback {
                LoopbackHosts::Allowed => PrivateHosts::Allowed,
                LoopbackHosts::Refused => PrivateHosts::Refused,
            },
            cluster: self.egress_cluster.clone(),
            allow: self.egress_allow.clone(),
            deny: self.egress_deny.clone(),
        }
    }
}

/// An address is the network of itself; one with bits behind the network's could mean either.
pub fn network(text: &str) -> Result<IpNet, String> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.into());
    }
    let network: IpNet =
        text.parse().map_err(|_| "expected an address or a network like 10.0.0.0/8".to_owned())?;
    match network.trunc() == network {
        true => Ok(network),
        false => Err(format!("a network is written with its first address, {}", network.trunc())),
    }
}
