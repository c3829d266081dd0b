//! The members of `policy`: one file each, one row each in [`REGISTRY`]. CRD, docs and the order of work follow from
//! the rows.

mod chain;
mod contract;
mod registry;

mod timeouts;

pub use chain::run;
pub use contract::{
    AnyPlan, Applies, Combine, Decision, Filter, FilterKind, Keep, Member, Outcome, Ring, Row, Scope, filter,
    setting,
};
pub use registry::REGISTRY;
pub use timeouts::{Timeouts, TimeoutsPlan};
