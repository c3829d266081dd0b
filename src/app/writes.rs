//! What clients write through this replica is old on the others too: they are told over their port, as of a purge.
//!
//! Invariants: best effort, and bounded: addresses that wait, those of one message, and its bytes. Nobody is told twice of
//! what was written once in a while.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::purge::{MAX_BODY, MAX_NAMES, Named, place};
use crate::cache::key::parts_of;
use crate::controller::Purging;

/// Writes of so long go in one message.
const TOGETHER: Duration = Duration::from_millis(50);

/// Tells the others until nobody writes any more.
pub async fn tell(mut writes: mpsc::Receiver<Box<[u8]>>, others: Arc<dyn Purging>) {
    let mut failed = false;
    while let Some(first) = writes.recv().await {
        tokio::time::sleep(TOGETHER).await;
        let (mut urls, mut bytes) = (BTreeSet::new(), 0);
        let mut next = Some(first);
        while let Some(address) = next {
            if let Some(url) = url(&address) {
                bytes += url.len() + 3;
                urls.insert(url);
            }
            next = if urls.len() < MAX_NAMES && bytes < MAX_BODY / 2 { writes.try_recv().ok() } else { None };
        }
        if urls.is_empty() {
            continue;
        }
        let named = Named { urls: urls.into_iter().collect(), ..Named::default() };
        let Ok(body) = serde_json::to_vec(&named) else { continue };
        let told = others.tell(Bytes::from(body)).await;
        // Once, not for every write.
        match &told {
            Ok(lost) if lost.is_empty() => failed = false,
            Ok(lost) if !failed => {
                failed = true;
                tracing::warn!(
                    ?lost,
                    "other replicas are not told of what was written; they use what they keep until its time is over"
                );
            }
            Err(error) if !failed => {
                failed = true;
                tracing::warn!(
                    error,
                    "other replicas are not told of what was written; they use what they keep until its time is over"
                );
            }
            _ => {}
        }
    }
}

/// As a purge names it: both schemes are meant.
fn url(address: &[u8]) -> Option<String> {
    let [_, host, target] = parts_of(address)?;
    let url = format!("https://{host}{target}");
    // One that cannot be read would have the whole message refused.
    (url.len() < MAX_BODY / 2 && place(&url).is_ok()).then_some(url)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;
    use crate::cache::key::address_of;
    use crate::controller::Telling;

    #[derive(Default)]
    struct Others(Mutex<Vec<Vec<String>>>);

    impl Purging for Others {
        fn purge(&self, _: Bytes) -> Telling<'_> {
            panic!("nobody asked for a purge")
        }

        fn tell(&self, body: Bytes) -> Telling<'_> {
            let named: Named = serde_json::from_slice(&body).expect("what a replica understands");
            assert_eq!(named.purges().map(|purges| purges.len()), Ok(named.urls.len()));
            self.0.lock().expect("whole").push(named.urls);
            Box::pin(async { Ok(Vec::new()) })
        }
    }

    fn address(host: &str, path: &str, query: Option<&str>) -> Box<[u8]> {
        let mut bytes = Vec::new();
        address_of(&mut bytes, "http", host.as_bytes(), path, query);
        bytes.into()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_written_together_is_told_together_and_once() {
        let (written, writes) = mpsc::channel(4_096);
        let others = Arc::new(Others::default());
        let telling = tokio::spawn(tell(writes, Arc::clone(&others) as Arc<dyn Purging>));
        for path in ["/a", "/b", "/a", "/a"] {
            written.send(address("shop.example:81", path, Some("c=d"))).await.expect("room");
        }
        // Not what no purge could name.
        written.send(address("sh op", "/x", None)).await.expect("room");
        tokio::time::sleep(TOGETHER * 2).await;
        written.send(address("shop.example", "/c", None)).await.expect("room");
        tokio::time::sleep(TOGETHER * 2).await;
        for number in 0..MAX_NAMES + 1 {
            written.send(address("shop.example", &format!("/{number}"), None)).await.expect("room");
        }
        drop(written);
        telling.await.expect("it ends");
        let told = others.0.lock().expect("whole");
        let first = ["https://shop.example:81/a?c=d", "https://shop.example:81/b?c=d"].map(String::from);
        assert_eq!(told[..2], [first.to_vec(), vec!["https://shop.example/c".to_owned()]]);
        assert_eq!(
            told[2..].iter().map(Vec::len).collect::<Vec<_>>(),
            [MAX_NAMES, 1],
            "each message is bounded"
        );
    }
}
