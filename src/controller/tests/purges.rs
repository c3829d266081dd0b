//! Purges over all replicas: real peer ports, found through the fake API server.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::fake_api::FakeApi;
use crate::controller::peer_port::{Purges, TokenFile, serve};
use crate::controller::replicas::Peers;
use crate::controller::served::{Served, tests::published};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

type Told = Arc<Mutex<Vec<Bytes>>>;

/// A replica's peer port, and what it was told to purge.
async fn replica(token: &TokenFile) -> (SocketAddr, Told) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, told) = (listener.local_addr().unwrap(), Told::default());
    let taken = Arc::clone(&told);
    let purges: Purges = Arc::new(move |body| {
        taken.lock().unwrap().push(Bytes::copy_from_slice(body));
        Ok(())
    });
    let (_, receiver) = watch::channel(published(1, &[]));
    tokio::spawn(serve(listener, token.clone(), Served::new("one", receiver), purges));
    (address, told)
}

fn token(folder: &Path, text: &str) -> TokenFile {
    let file = folder.join(text);
    std::fs::write(&file, text).unwrap();
    TokenFile::new(file)
}

fn put(fake: &FakeApi, name: &str, address: SocketAddr, is_serving: bool) {
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": name, "namespace": "gateway", "labels": {"kubernetes.io/service-name": "peers"}},
        "ports": [{"name": "peer", "port": address.port()}],
        "endpoints": [{"addresses": ["127.0.0.1"], "targetRef": {"name": name}, "conditions": {"serving": is_serving}}],
    });
    fake.put("endpointslices", slice);
}

#[tokio::test]
async fn a_purge_reaches_every_other_replica_and_names_those_that_did_not_take_it() {
    let (folder, fake) = (tempfile::tempdir().unwrap(), FakeApi::start().await);
    let ours = token(folder.path(), TOKEN);
    let (own, here) = replica(&ours).await;
    let (one, first) = replica(&ours).await;
    let (two, second) = replica(&ours).await;
    let (stranger, refused) = replica(&token(folder.path(), "fedcba9876543210")).await;
    // Nobody is there any more.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (name, address, is_serving) in
        [("own", own, true), ("one", one, true), ("two", two, true), ("ended", gone, false)]
    {
        put(&fake, name, address, is_serving);
    }
    let peers = Peers {
        client: fake.client(),
        namespace: "gateway".into(),
        service: "peers".into(),
        token: ours,
        own: Some(own),
        lately: Arc::default(),
    };
    let told = |told: &Told| std::mem::take(&mut *told.lock().unwrap());
    assert_eq!(
        peers.purge(Bytes::from_static(b"shoes")).await,
        Ok(Vec::new()),
        "all that serve have done it"
    );
    assert_eq!((told(&first), told(&second)), (vec!["shoes".into()], vec!["shoes".into()]));
    assert!(told(&here).is_empty(), "this one does it without being told");

    put(&fake, "lost", gone, true);
    put(&fake, "stranger", stranger, true);
    let mut failed = peers.purge(Bytes::from_static(b"hats")).await.unwrap();
    failed.sort();
    let names: Vec<_> = failed.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["lost", "stranger"]);
    assert!(failed[1].1.contains("401"), "{failed:?}");
    assert_eq!((told(&first), told(&second)), (vec!["hats".into()], vec!["hats".into()]), "all the same");
    assert!(told(&refused).is_empty());

    // What was written is told to who was there lately, without a question each time.
    let lists = fake.count("LIST endpointslices");
    for body in ["one", "two", "three"] {
        peers.tell(Bytes::from_static(body.as_bytes())).await.unwrap();
    }
    assert_eq!(
        (told(&first), told(&second)),
        (vec!["one".into(), "two".into(), "three".into()], vec!["one".into(), "two".into(), "three".into()])
    );
    assert_eq!(fake.count("LIST endpointslices") - lists, 1);

    fake.refuse("endpointslices", Some(503));
    let error = peers.purge(Bytes::from_static(b"hats")).await.unwrap_err();
    assert!(error.contains("cannot read the replicas' addresses"), "{error}");
}
