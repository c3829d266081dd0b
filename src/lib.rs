//! Portcullis: a Kubernetes gateway. Manifests become a snapshot, `compile` turns a snapshot into a route map and
//! reports, the proxy serves from the newest route map. The modules stand in floor order: each imports only from above.
#![forbid(unsafe_code)]

pub mod values;

pub mod http1;

pub mod http2;

pub mod message;

pub mod expression;

pub mod filters;

pub mod cache;

pub mod route_map;

pub mod lifecycle;

pub mod api;

pub mod snapshot;

pub mod compile;

pub mod standalone;

pub mod telemetry;

pub mod upstream;

pub mod background;

pub mod proxy;

pub mod app;

pub mod cli;

pub mod controller;
