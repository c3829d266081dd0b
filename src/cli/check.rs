//! `portcullis check`: compiles manifests without serving them and shows what is wrong.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use annotate_snippets::Renderer;
use anyhow::Context as _;
use clap::{Args, ValueEnum};
use serde_json::json;

use super::egress::EgressArgs;
use super::run::Hostnames;
use super::{findings, say};
use crate::compile::{LoopbackHosts, Memo, Options, compile};
use crate::standalone;
use crate::values::LabelSelector;

#[derive(Args, Debug)]
pub struct Check {
    /// Folders and files of manifests (*.yaml, *.yml, *.json)
    #[arg(required = true, value_name = "DIR|FILE")]
    manifests: Vec<PathBuf>,
    #[arg(long, value_name = "text|json", default_value = "text")]
    output: Output,
    /// Which routes are ours: their `spec.className`
    #[arg(long, value_name = "NAME", default_value = "portcullis")]
    class_name: String,
    /// Who may claim a hostname
    #[arg(long, value_name = "FirstCome|Listed", default_value = "FirstCome")]
    hostnames: Hostnames,
    /// Objects of namespaces with these labels only, and of the installation's own [default: all]
    #[arg(long, value_name = "LABELS")]
    namespace_selector: Option<LabelSelector>,
    /// Namespace of the installation: policies there may apply to everything
    #[arg(long, value_name = "NAME", default_value = "default")]
    namespace: String,
    /// Judge as in a cluster: hosts on loopback and in private networks are refused, and there is no Redis unless --redis says so
    #[arg(long)]
    cluster: bool,
    /// With --cluster: the installation has a Redis
    #[arg(long, requires = "cluster")]
    redis: bool,
    #[command(flatten)]
    egress: EgressArgs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Success without errors; warnings are no errors.
pub fn run(args: &Check) -> anyhow::Result<ExitCode> {
    for path in &args.manifests {
        let files = standalone::files(path).with_context(|| format!("cannot read {}", path.display()))?;
        if files.is_empty() {
            let what = "no manifests (*.yaml, *.yml, *.json); folders in it are not read";
            anyhow::bail!("{} has {what}", path.display());
        }
    }
    let world = standalone::read(args.manifests.clone());
    let loopback = if args.cluster { LoopbackHosts::Refused } else { LoopbackHosts::Allowed };
    let options = Options {
        class_name: args.class_name.as_str().into(),
        hostnames: args.hostnames.into(),
        loopback,
        egress: args.egress.beside(loopback),
        has_store: !args.cluster || args.redis,
        namespace: args.namespace.as_str().into(),
        served: args.namespace_selector.clone(),
    };
    let (compiled, _) = compile(&world, &options, Memo::default());
    let findings = findings::all(&world, &compiled, jiff::Timestamp::now().as_second());
    let errors = findings.iter().filter(|finding| finding.is_error()).count();
    let warnings = findings.len() - errors;
    let (routes, backends, policies) = (world.routes.len(), world.backends.len(), world.policies.len());
    let report = match args.output {
        Output::Json => {
            let summary = json!({
                "errors": errors, "warnings": warnings, "routes": routes, "backends": backends, "policies": policies
            });
            serde_json::to_string_pretty(&json!({"findings": findings, "summary": summary}))? + "\n"
        }
        Output::Text => {
            let renderer =
                if std::io::stdout().is_terminal() { Renderer::styled() } else { Renderer::plain() };
            let mut report = String::new();
            for finding in &findings {
                let _ = write!(report, "{}\n\n", finding.render(&renderer));
            }
            let _ = writeln!(
                report,
                "{errors} errors, {warnings} warnings in {routes} GatewayRoutes, {backends} GatewayBackends and {policies} GatewayPolicies"
            );
            report
        }
    };
    say(&report)?;
    Ok(if errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
