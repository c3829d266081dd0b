//! The effective policy of a rule: each member compiled by its row, inherited ones once for all rules that share them.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::gateway_route::not_permitted;
use super::question::Asker;
use crate::api::PolicyMember as Written;
use crate::filters::{AnyPlan, REGISTRY, Scope, TimeoutsPlan};
use crate::route_map::{PolicyMember, PolicyOrigin};
use crate::values::{FieldPath, ObjectName, Problem, Reason, SecretRef};

/// Members of `spec.policy` that were compiled already, by their place in memory.
pub(super) type Inherited = BTreeMap<usize, (Arc<Written>, Result<AnyPlan, Vec<Problem>>)>;

#[derive(Default)]
pub(super) struct Effective {
    pub filters: Vec<(usize, AnyPlan)>,
    pub policy: Vec<PolicyMember>,
    pub timeouts: TimeoutsPlan,
    pub problems: Vec<Problem>,
}

pub(super) fn effective(
    members: &[Arc<Written>],
    inherited: &mut Inherited,
    namespace: &Arc<str>,
    asker: &mut Asker<'_>,
) -> Effective {
    let mut effective = Effective::default();
    for member in members {
        let Some(row) = REGISTRY.get(member.row) else { continue };
        let key = Arc::as_ptr(member).addr();
        let (_, result) = inherited.entry(key).or_insert_with(|| {
            let mut asking = Asking { asker: &mut *asker, namespace, problems: Vec::new() };
            let result = (row.compile)(&member.value, &mut asking);
            let result = match (result, asking.problems) {
                (Ok(plan), problems) if problems.is_empty() => Ok(plan),
                (Ok(_), problems) => Err(problems),
                (Err(mut own), problems) => {
                    own.extend(problems);
                    Err(own)
                }
            };
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

/// What a member asks is asked of the world, in the namespace of the object that holds it.
struct Asking<'a, 'w> {
    asker: &'a mut Asker<'w>,
    namespace: &'a Arc<str>,
    problems: Vec<Problem>,
}

impl Scope for Asking<'_, '_> {
    fn secret(&mut self, at: FieldPath, secret: &SecretRef) -> Option<Arc<BTreeMap<String, Vec<u8>>>> {
        let namespace = secret.namespace.as_deref().map_or_else(|| Arc::clone(self.namespace), Into::into);
        let name = ObjectName::new(namespace, secret.name.as_str());
        if !self.asker.may_refer(self.namespace, "", "Secret", &name) {
            self.problems.push(not_permitted(at, "Secret", &name));
            return None;
        }
        let Some(found) = self.asker.secret(&name) else {
            let message = format!("there is no Secret {name}; create it or correct the name");
            self.problems.push(Problem::error(at, Reason::SecretNotFound, message));
            return None;
        };
        Some(Arc::new(found.data.iter().map(|(key, value)| (key.clone(), value.expose().clone())).collect()))
    }
}
