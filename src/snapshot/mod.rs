//! The world as one value: the objects at one instant, raw, with look-ups and no judgement.
//!
//! Both sources (the API server's watches, a folder of files) speak to it in [`Change`]s. What does not parse is in it
//! too, as a [`Failure`] with its name and message.

mod convert;
mod documents;
mod object;
mod place;
mod read;
mod update;
mod world;

pub use convert::{RawObject, TLS_SECRET};
pub use documents::{Document, documents};
pub use object::{
    Change, EndpointAddress, EndpointSliceData, Failure, Grant, GrantFrom, GrantTo, Kind, Manifest,
    NamespaceData, Object, Origin, ServiceData, ServicePort, SlicePort, Unreadable,
};
pub use place::{Place, find};
pub use read::read;
pub use update::Update;
pub use world::Snapshot;

pub use crate::values::{ConfigMapData, SecretData};
