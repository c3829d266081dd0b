//! `portcullis crds`: the CustomResourceDefinitions as YAML.

use clap::Args;
use kube::CustomResourceExt as _;

use crate::api::{GatewayBackend, GatewayRoute};

#[derive(Args, Debug)]
pub struct Crds {}

pub fn run(_: &Crds) -> anyhow::Result<()> {
    for crd in [GatewayRoute::crd(), GatewayBackend::crd()] {
        print!("---\n{}", serde_saphyr::to_string(&crd)?);
    }
    Ok(())
}
