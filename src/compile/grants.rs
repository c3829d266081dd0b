//! ReferenceGrant: who may refer into a namespace (Gateway API, `ReferenceGrant`).

use super::question::Reference;
use crate::api::GROUP;
use crate::snapshot::Snapshot;
use crate::values::ObjectName;

/// Whether a grant in the target's namespace allows the reference. Does not ask whether the target exists.
pub(super) fn allows(world: &Snapshot, reference: &Reference) -> bool {
    let namespace = &reference.to.namespace;
    world
        .grants
        .range(ObjectName::new(namespace.clone(), "")..)
        .take_while(|(name, _)| name.namespace == *namespace)
        .any(|(_, grant)| {
            let from = grant.from.iter().any(|from| {
                *from.group == *GROUP && *from.kind == *reference.by && from.namespace == reference.from
            });
            from && grant.to.iter().any(|to| {
                *to.group == *reference.group
                    && *to.kind == *reference.kind
                    && to.name.as_ref().is_none_or(|name| *name == reference.to.name)
            })
        })
}
