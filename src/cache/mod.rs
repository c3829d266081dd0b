//! The response cache: what RFC 9111 says about an answer, where answers are kept, and how one fetch serves many. It
//! knows nothing of routes and backends: `proxy/cached` runs the action and asks here.
//!
//! | file | owns |
//! | --- | --- |
//! | `directives` | `Cache-Control` and its like, parsed once |
//! | `judge` | whether an answer is kept, and on what terms |
//! | `key`, `cookies`, `codings` | what it is kept under |
//! | `conditions` | 304 and ranges |
//! | `stored` | an answer that is kept, and what is made of it for a client |
//! | `opening`, `fill` | an answer on its way, for all that wait for it: its head, its body |
//! | `account` | what a body takes of the memory |
//! | `memory`, `partition` | the budget of all, and what one route keeps of it |
//! | `marks` | what was purged or changed since |
//! | `status` | `Cache-Status` |

mod account;
mod codings;
mod conditions;
mod cookies;
mod directives;
mod fill;
mod judge;
pub mod key;
mod marks;
mod memory;
mod opening;
#[cfg(test)]
mod oracle_tests;
mod partition;
mod status;
mod stored;
#[cfg(test)]
pub mod tests;

use std::hash::BuildHasher as _;
use std::sync::LazyLock;

pub use conditions::{is_of_all, opaque};
pub use cookies::is_ambiguous;
pub use directives::Wish;
pub use fill::{Fill, Heard, Pump, Pumped, Reader};
pub use judge::{Asked, Head, Refusal, Terms, judge};
pub use key::{Forwarders, Keying};
pub use marks::{Place, Purge};
pub use memory::Memory;
pub use opening::Opening;
pub use partition::{Join, Lead, Partition, vary};
pub use status::{CACHE_STATUS, Forwarded, Told};
pub use stored::{Segments, Stored, TAGS, Use, as_a_part, is_for_sites, is_tagged, kept_headers, tags};

type Hasher = foldhash::fast::RandomState;

/// One seed for the life of the process: what is hashed here never leaves it.
fn hash(bytes: &[u8]) -> u64 {
    static SEED: LazyLock<Hasher> = LazyLock::new(Hasher::default);
    SEED.hash_one(bytes)
}
