//! Portcullis: a Kubernetes gateway. Manifests become a snapshot, `compile` turns a snapshot into a route map and
//! reports, the proxy serves from the newest route map. The modules stand in floor order: each imports only from above.
#![forbid(unsafe_code)]
