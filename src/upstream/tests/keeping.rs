//! Which connections are kept, for how long, and for whom.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join;
use tokio::time::{Instant, sleep, timeout};

use super::bounding::{self, Counting, all_is_given_back, ask, bounded, workers};
use super::scripted::{OK, Scripted, Step, backend, get, local, local_paused, pools, set, together, whole};
use crate::route_map::HostHeader;
use crate::upstream::SendLimits;

#[test]
fn as_many_connections_stay_as_were_in_use_at_once_of_late() {
    local_paused(async {
        let server = Scripted::answering().await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        together(&pools, &backend, 50).await;
        assert_eq!(server.connections(), 50);
        for second in 0..20 {
            together(&pools, &backend, 3).await;
            if second < 9 {
                assert_eq!(*server.open.borrow(), 50, "after {second} s");
            }
            sleep(Duration::from_secs(1)).await;
        }
        server.has_open(3).await;
        assert_eq!(server.connections(), 50, "none was made anew");
        assert_eq!(backend.stats.totals().expect("counted").idle, 3);
        sleep(Duration::from_secs(12)).await;
        assert_eq!(*server.open.borrow(), 0, "nobody asks any more");
    });
}

#[test]
fn an_idle_connection_is_closed_below_a_minute_however_busy_the_endpoint_was() {
    local_paused(async {
        // The first four connections answer and are then idle for ever; every later one never answers. Four requests
        // at a time wait on those, so that the endpoint is always busy.
        let server = Scripted::start(|_| vec![Step::Answer(OK), Step::Silence]).await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        together(&pools, &backend, 4).await;
        let waiting = (0..2).map(|_| pools.send(&backend, get(), None, SendLimits::default()));
        let waiting = futures_util::future::join_all(waiting);
        assert!(timeout(Duration::from_secs(50), waiting).await.is_err());
        server.has_open(2).await;
        let waiting = pools.send(&backend, get(), None, SendLimits::default());
        assert!(timeout(Duration::from_secs(8), waiting).await.is_err());
        server.has_open(0).await;
    });
}

#[test]
fn an_old_connection_gets_no_new_requests_whether_it_rests_or_not() {
    local_paused(async {
        // Asked so often that it is never closed because nobody needs it: with answers that are read at once, and at last
        // with one under way whenever the pools look, so that it grows old as it is used.
        let mut closed_at_rest = 0;
        // An age that ends as a request begins, or just before, is seen to when that one is over: who rests at another
        // time then is closed at rest.
        for shift in [Some(0), Some(1500), Some(3000), Some(4500), Some(6000), None] {
            if closed_at_rest > 0 && shift.is_some() {
                continue;
            }
            let server = Scripted::answering().await;
            let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
            sleep(Duration::from_millis(500)).await;
            let begun = Instant::now();
            while server.connections() < 2 {
                assert!(begun.elapsed() < Duration::from_secs(70 * 60), "{shift:?}");
                let answer = pools.send(&backend, get(), None, SendLimits::default()).await;
                let Some(shift) = shift else {
                    sleep(Duration::from_secs(9)).await;
                    whole(answer).await;
                    continue;
                };
                whole(answer).await;
                if server.requests() == 1 {
                    sleep(Duration::from_millis(shift)).await;
                }
                sleep(Duration::from_millis(100)).await;
                let is_kept = *server.open.borrow() == 1;
                sleep(Duration::from_millis(8900)).await;
                closed_at_rest += u32::from(is_kept && *server.open.borrow() == 0);
            }
            let age = begun.elapsed().as_secs();
            assert!((54 * 60..=66 * 60 + 18).contains(&age), "{age} s, {shift:?}");
            assert!(server.requests() < 1000, "the control: it was not their number");
        }
        assert!(closed_at_rest > 0);
    });
}

#[test]
fn a_connection_that_had_as_many_requests_as_it_may_is_not_kept() {
    local(async {
        let server = Scripted::answering().await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        ask(&pools, &backend, 999).await;
        server.has_open(1).await;
        assert_eq!(backend.stats.totals().expect("counted").idle, 1);
        ask(&pools, &backend, 1).await;
        server.has_open(0).await;
        assert_eq!((server.connections(), backend.stats.totals().expect("counted").idle), (1, 0));
        ask(&pools, &backend, 1).await;
        server.has_open(1).await;
        assert_eq!((server.connections(), server.requests()), (2, 1001));
    });
}

#[test]
fn who_waits_gets_the_place_of_a_connection_that_is_not_kept() {
    local_paused(async {
        let (address, counts) = Counting::start().await;
        let (workers, backend) = (workers(1), bounding::backend(1, &[address], bounded(1, 1000)));
        join(ask(&workers[0], &backend, 1250), ask(&workers[0], &backend, 1250)).await;
        assert_eq!((counts.answered.get(), counts.connections.get(), counts.most.get()), (2500, 3, 1));
        all_is_given_back(&backend).await;
    });
}

#[test]
fn an_endpoint_that_left_takes_no_requests_and_its_connections_close() {
    local_paused(async {
        let (old, new) = (Scripted::answering().await, Scripted::answering().await);
        let (pools, backend) = (pools(), backend(&[old.address], HostHeader::Preserve));
        let under_way = pools.send(&backend, get(), None, SendLimits::default()).await;
        together(&pools, &backend, 2).await;
        backend.set_endpoints(set(&[new.address]));
        together(&pools, &backend, 2).await;
        assert_eq!(new.requests(), 2);
        old.has_open(1).await;
        assert_eq!(whole(under_way).await, "ok", "what was begun is finished");
        old.has_open(0).await;
        backend.set_endpoints(set(&[]));
        sleep(Duration::from_secs(2)).await;
        assert_eq!(*new.open.borrow(), 0, "idle ones close without a request");
    });
}

#[test]
fn a_slot_given_again_starts_anew() {
    local_paused(async {
        let (one, two) = (Scripted::answering().await, Scripted::answering().await);
        let pools = pools();
        let first = backend(&[one.address], HostHeader::Preserve);
        let second = backend(&[two.address], HostHeader::Name("other.test".into()));
        together(&pools, &first, 1).await;
        drop(first);
        together(&pools, &second, 1).await;
        assert_eq!((one.requests(), two.requests()), (1, 1));
        assert!(two.seen.borrow()[0][0].contains("host: other.test"));
        one.has_open(0).await;
        drop(second);
        sleep(Duration::from_secs(2)).await;
        assert_eq!(*two.open.borrow(), 0, "a backend that is gone keeps nothing open");
    });
}

#[test]
fn an_unused_pool_is_forgotten() {
    local_paused(async {
        let server = Scripted::answering().await;
        let (pools, backend) = (pools(), backend(&[server.address], HostHeader::Preserve));
        together(&pools, &backend, 2).await;
        assert_eq!(pools.known(), 1);
        sleep(Duration::from_secs(15)).await;
        assert_eq!(pools.known(), 0);
        assert_eq!(Arc::strong_count(&backend), 1);
    });
}
