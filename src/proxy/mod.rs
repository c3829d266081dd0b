//! The way of a request. Newcomers start in `service`.
//!
//! ```text
//! plane      start, install, drain          worker     a thread with its runtime      live    route map ⇄ state
//!   listener ─► connection ─► (tls | sniff) ─► transport ─► hyper, h2 ─► service ─► filters ─► action ─► answer
//!                    │                            │           │                              │
//!                    └── watch: all deadlines                │      forward · aggregate · redirect · respond_with · tunnel
//!                                                             └── request_head · forwarded · observed · account
//! ```
//!
//! | file | owns |
//! | --- | --- |
//! | `settings` | what the data plane is told, and the hardening defaults |
//! | `plane` | the handle: bind, start, install, endpoints, join |
//! | `worker` | a thread: its runtime, newest map, phase of the drain |
//! | `listener` | sockets, accepting, handing over to a less busy worker |
//! | `connection` | one connection: TLS or plain, HTTP/1.1 or HTTP/2, goodbye |
//! | `connection_http2` | the streams of HTTP/2, a task each; `date` writes their field |
//! | `proxy_header` | what a load balancer says at the start of a connection |
//! | `tls`, `certificates` | handshakes and certificates by server name |
//! | `client_certificates` | certificates that clients show: who vouches, for how long |
//! | `transport` | a connection's bytes, and its budget of HTTP/2 control frames |
//! | `gather` | what an HTTP/2 connection says, sent once a poll |
//! | `watch` | deadlines without timers: one sweep a worker |
//! | `live`, `keep`, `spread` | the linked route map, state that outlives it, shares by weight |
//! | `service` | one request: from head to answer |
//! | `admission` | whether a request may come over its connection |
//! | `request_head`, `refusal` | hardening and normal form of a head; the answer to one that cannot be read |
//! | `forwarded` | what backends are told about the client; loops |
//! | `forward`, `aggregate`, `redirect`, `respond_with`, `tunnel` | the actions |
//! | `websocket` | WebSockets over a stream of HTTP/2 |
//! | `frames` | where a WebSocket's frames end, for the last one of ours |
//! | `observed`, `account` | bodies on their way; what a request leaves in metrics and log |
//! | `cached/` | the cache around the action, which it can run again without a client |
//! | `grpc` | failures, deadlines and streams of gRPC |
//! | `outbound` | sub-requests |
//! | `offload` | threads for what would hold a worker |
//! | `respond` | what each failure answers: the only place with status codes |

mod account;
mod admission;
mod aggregate;
mod aim;
mod bearer;
mod cached;
mod certificates;
mod client_certificates;
mod connection;
mod connection_http2;
mod crowd;
mod date;
mod forward;
mod forwarded;
mod frames;
mod gather;
mod grpc;
mod hello;
mod keep;
mod listener;
mod live;
mod mirror;
mod observed;
mod offload;
mod outbound;
mod passthrough;
mod plane;
pub mod proxy_header;
mod redirect;
mod refusal;
pub mod request_head;
pub mod respond;
mod respond_with;
mod service;
mod session;
mod settings;
mod spread;
mod tls;
mod together;
mod trailers;
mod transport;
mod tunnel;
mod visit;
mod watch;
mod websocket;
mod worker;

pub use plane::DataPlane;
pub use settings::{Addresses, Limits, ProxyProtocol, Settings};
