//! `portcullis crds`: the CustomResourceDefinitions as YAML, printed or written.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use crate::api;

#[derive(Args, Debug)]
pub struct Crds {
    /// Write a file a kind into this folder instead of printing them
    #[arg(long, value_name = "DIR")]
    output: Option<PathBuf>,
}

pub fn run(args: &Crds) -> anyhow::Result<()> {
    let Some(folder) = &args.output else {
        let all: String = api::crds().into_iter().map(|(_, crd)| format!("---\n{crd}")).collect();
        return super::say(&all);
    };
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for (name, crd) in api::crds() {
        let path = folder.join(name);
        std::fs::write(&path, crd).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}
