//! What the CRD's rules refuse in an aggregation, for files, which have no API server.

use super::aggregate::{AggregateSpec, CALL_TIMEOUT, CallSpec, METHOD, METHODS, RESERVED, RESERVED_NAME};
use crate::values::{Duration, FieldPath};

const LONGEST_CALL: Duration = Duration::from_secs(30);

/// Fields below `at`, each with what is wrong with it.
pub(super) fn mistakes(spec: &AggregateSpec, at: &FieldPath) -> Vec<(FieldPath, String)> {
    let mut found = Vec::new();
    let has_body = spec.response.as_ref().is_some_and(|response| response.body.is_some());
    if spec.errors_member && has_body {
        let message =
            "errorsMember goes with the object of all calls; response.body says itself what the body is";
        found.push((at.field("errorsMember"), message.to_owned()));
    }
    for (index, call) in spec.calls.iter().enumerate() {
        of_call(call, &at.field("calls").index(index), &mut found);
    }
    found
}

fn of_call(call: &CallSpec, at: &FieldPath, found: &mut Vec<(FieldPath, String)>) {
    let mut refuse = |path: FieldPath, message: &str| found.push((path, message.to_owned()));
    if RESERVED.contains(&call.name.as_str()) {
        refuse(at.field("name"), RESERVED_NAME);
    }
    if let Some((field, message)) = call.backend_ref.mistake() {
        refuse(at.field("backendRef").field(field), message);
    }
    if call.depends_on.contains(&call.name) {
        refuse(at.field("dependsOn"), "a call cannot wait for itself");
    }
    if call.method.as_deref().is_some_and(|method| !METHODS.contains(&method) && !method.contains("${")) {
        refuse(at.field("method"), METHOD);
    }
    if call.body.is_some() && matches!(call.method.as_deref(), None | Some("GET")) {
        refuse(at.field("body"), "a GET has no body; set method");
    }
    if call.timeout.is_some_and(|timeout| timeout.is_zero() || timeout > LONGEST_CALL) {
        refuse(at.field("timeout"), CALL_TIMEOUT);
    }
    if let Some(on_error) = &call.on_error {
        let given = usize::from(on_error.value.is_some())
            + usize::from(on_error.omit.is_some())
            + usize::from(on_error.status.is_some());
        if given != 1 {
            refuse(at.field("onError"), "onError has exactly one of value, omit and status");
        }
        if on_error.omit == Some(false) {
            refuse(at.field("onError").field("omit"), "omit is true or left out");
        }
    }
}
