//! The effective policy of a rule: each member compiled by its row, inherited ones once for all rules that share them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::api::PolicyMember as Written;
use crate::filters::{AnyPlan, REGISTRY, Scope, TimeoutsPlan};
use crate::route_map::{PolicyMember, PolicyOrigin};
use crate::values::{FieldPath, Problem, SecretRef};

/// Members of `spec.policy` that were compiled already, by their place in memory.
pub(super) type Inherited = BTreeMap<usize, (Arc<Written>, Result<AnyPlan, Vec<Problem>>)>;

#[derive(Default)]
pub(super) struct Effective {
    pub filters: Vec<(usize, AnyPlan)>,
    pub policy: Vec<PolicyMember>,
    pub timeouts: TimeoutsPlan,
    pub problems: Vec<Problem>,
}

pub(super) fn effective(members: &[Arc<Written>], inherited: &mut Inherited) -> Effective {
    let mut effective = Effective::default();
    for member in members {
        let Some(row) = REGISTRY.get(member.row) else { continue };
        let key = Arc::as_ptr(member).addr();
        let (_, result) = inherited.entry(key).or_insert_with(|| {
            let result = (row.compile)(&member.value, &mut Nothing);
            let below =
                |problems: Vec<Problem>| problems.into_iter().map(|p| p.under(&member.path)).collect();
            (Arc::clone(member), result.map_err(below))
        });
        let plan = match result {
            Ok(plan) => plan.clone(),
            Err(problems) => {
                effective.problems.extend(problems.iter().cloned());
                continue;
            }
        };
        let is_route_wide = member.path.as_str().starts_with("spec.policy");
        let origin = if is_route_wide { PolicyOrigin::Route } else { PolicyOrigin::Rule };
        effective.policy.push(PolicyMember { row: member.row, origin });
        if let Some(timeouts) = plan.get::<TimeoutsPlan>() {
            effective.timeouts = timeouts.clone();
        }
        if row.link.is_some() {
            effective.filters.push((member.row, plan));
        }
    }
    effective.filters.sort_by_key(|(row, _)| (REGISTRY[*row].ring, *row));
    effective.policy.sort_by_key(|member| member.row);
    effective
}

/// No member asks for anything yet.
struct Nothing;

impl Scope for Nothing {
    fn secret(&mut self, _: FieldPath, _: &SecretRef) -> Option<Arc<BTreeMap<String, Vec<u8>>>> {
        None
    }
}
