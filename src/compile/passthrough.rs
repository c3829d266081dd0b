//! Routes that pass TLS through: what of the policies that apply to them they keep, and which backends they can have.

use super::policies::Effective;
use crate::api::ON_CONNECTIONS;
use crate::filters::{Combine, REGISTRY};
use crate::route_map::{BackendPlan, BackendProtocol, HostHeader, Question};
use crate::values::{BackendId, FieldPath, Problem, Reason};

/// Keeps of what is effective what works on connections. A gate that comes from elsewhere must not be passed by unseen:
/// the problem that it is.
pub(super) fn keep(effective: &mut Effective, at: &FieldPath) -> Option<Problem> {
    let name = |row: usize| REGISTRY[row].name;
    let is_gate = |row: usize| REGISTRY[row].combine == Combine::Both || name(row) == "authentication";
    let gates = effective.policy.iter().map(|member| member.row);
    let gate = gates.into_iter().find(|row| is_gate(*row) && !ON_CONNECTIONS.contains(&name(*row)));
    effective.policy.retain(|member| ON_CONNECTIONS.contains(&name(member.row)));
    effective.filters.retain(|(row, _)| ON_CONNECTIONS.contains(&name(*row)));
    effective.asked.clear();
    (effective.retry, effective.mirror, effective.sessions) = (None, None, None);
    let gate = name(gate?);
    let message = format!(
        "{gate} applies here and cannot work on what is passed through; write it into policy.disable, have it imposed on \
         others only, or terminate TLS"
    );
    Some(Problem::error(at.clone(), Reason::PolicyInvalid, message))
}

/// What of a GatewayBackend works on requests alone, so that it does nothing here. A Service has none of it.
pub(super) fn ignored(plan: &BackendPlan) -> Option<String> {
    let traffic = &plan.traffic;
    let fields = [
        ("host", matches!(plan.host_header, HostHeader::Name(_))),
        ("protocol", plan.protocol == BackendProtocol::Http2),
        ("healthCheck.passive", traffic.ejection.is_some()),
        ("loadBalancer.consistentHash", traffic.key.is_some()),
    ];
    let fields: Vec<_> =
        fields.into_iter().filter_map(|(field, is_given)| is_given.then_some(field)).collect();
    let is_written = matches!(plan.id, BackendId::GatewayBackend(_)) && !fields.is_empty();
    is_written.then(|| {
        let fields = fields.join(", ");
        format!("{} has {fields}, which work on requests, and what is passed through has none that we see; leave them out, or name another backend", plan.id)
    })
}

/// Why connections cannot be passed on to this backend.
pub(super) fn unfit(plan: &BackendPlan) -> Option<String> {
    let asks = plan.traffic.check.as_ref().is_some_and(|check| check.question != Question::Connect);
    let what = match (&plan.tls, &plan.credential) {
        (Some(_), _) => "tls, and what is passed through is TLS already",
        (None, Some(_)) => "credentials, and what is passed through is not ours to add to",
        (None, None) if plan.traffic.rate.is_some() => {
            "a rateLimit, which counts requests, and what is passed through has none that we see"
        }
        (None, None) if asks => {
            "an active check that asks it without TLS (one without path or grpc connects)"
        }
        (None, None) => return None,
    };
    Some(format!("{} has {what}; name a backend without", plan.id))
}
