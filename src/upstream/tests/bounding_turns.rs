//! Whose turn it is, of those that wait for a bounded number of connections.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{join, join_all};
use futures_util::poll;
use tokio::time::Instant;

use super::bounding::{Counting, SOON, all_is_given_back, ask, backend, bounded, pending, upgrade, workers};
use super::scripted::{Scripted, Step, get, is_so, local_paused, settle, whole};
use crate::route_map::{EjectionPlan, TrafficPlan};
use crate::upstream::balance::BackendPool;
use crate::upstream::{Aim, Backend, Guard, Loopback, SendLimits};

/// A number that leads to this endpoint.
fn seat_at(backend: &Arc<Backend>, address: SocketAddr) -> u64 {
    let pool = BackendPool::new(backend, (0, None), 7, &Guard::new(Loopback::Allowed));
    let leads = |seat: &u64| pool.next(&[], &[], Aim::Seat(*seat)).is_some_and(|one| one.address == address);
    (0..).find(leads).expect("one of so many")
}

fn seated(seat: u64) -> SendLimits<'static> {
    SendLimits { aim: Aim::Seat(seat), ..SendLimits::default() }
}

#[test]
fn who_came_first_is_served_first_and_a_newcomer_goes_behind() {
    local_paused(async {
        let (address, _) = Counting::start().await;
        let backend = backend(1, &[address], bounded(1, 100));
        let workers = workers(1);
        let served = RefCell::new(Vec::new());
        let client = async |name: usize, count: usize| {
            for _ in 0..count {
                ask(&workers[0], &backend, 1).await;
                served.borrow_mut().push(name);
            }
        };
        // The first comes again and again, at once.
        join_all([client(0, 4), client(1, 1), client(2, 1), client(3, 1), client(4, 1)]).await;
        assert_eq!(*served.borrow(), [0, 1, 2, 3, 4, 0, 0, 0]);
    });
}

#[test]
fn a_waiter_that_leaves_passes_its_wake_on() {
    local_paused(async {
        let (address, _) = Counting::start().await;
        let backend = backend(1, &[address], bounded(1, 10));
        let workers = workers(1);
        let send = || Box::pin(workers[0].send(&backend, get(), None, SendLimits::default()));
        let (mut first, mut gone, mut next) = (send(), send(), send());
        assert!(
            poll!(&mut first).is_pending() && poll!(&mut gone).is_pending() && poll!(&mut next).is_pending()
        );
        whole(first.await).await;
        let begun = Instant::now();
        // It was woken, and never looks.
        drop(gone);
        whole(next.await).await;
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        // The same of one whose time is over just then, and of a permit in place of a connection.
        let (mut first, mut gone, mut next) = (send(), send(), send());
        assert!(
            poll!(&mut first).is_pending() && poll!(&mut gone).is_pending() && poll!(&mut next).is_pending()
        );
        drop(first);
        settle().await;
        let begun = Instant::now();
        drop(gone);
        whole(next.await).await;
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        all_is_given_back(&backend).await;
    });
}

#[test]
fn who_waits_goes_to_no_endpoint_that_was_ejected_meanwhile() {
    local_paused(async {
        let ((bad, failing), (good, fine)) = (Counting::start().await, Counting::start().await);
        let ejection = EjectionPlan {
            consecutive_errors: 3,
            least_success: None,
            eject_for: Duration::from_secs(600),
            max_percent: 50,
        };
        let traffic = TrafficPlan { ejection: Some(ejection.clone()), ..bounded(2, 100) };
        let backend = backend(1, &[bad, good], traffic);
        let workers = workers(1);
        let clients = join_all((0..20).map(|_| ask(&workers[0], &backend, 10)));
        let ejects = async {
            is_so("all are asked and the rest waits", || {
                pending(&backend) == 18 && failing.answered.get() > 0 && fine.answered.get() > 0
            })
            .await;
            let endpoints = backend.endpoints();
            let health = endpoints.healths.iter().find(|health| health.address == bad).expect("known");
            health.eject(&ejection);
            failing.answered.get()
        };
        let (_, before) = join(clients, ejects).await;
        assert!(before > 0 && failing.answered.get() <= before + 2, "but what was under way");
        assert_eq!(failing.answered.get() + fine.answered.get(), 200);
        assert_eq!(fine.most.get(), 2, "its connection was closed for one that is of use");
        all_is_given_back(&backend).await;
    });
}

#[test]
fn an_upgrade_that_waits_is_passed_by_nobody() {
    local_paused(async {
        let (address, _) = Counting::start().await;
        let backend = backend(1, &[address], bounded(1, 10));
        let workers = workers(1);
        let served = RefCell::new(Vec::new());
        let plain = async {
            for _ in 0..4 {
                ask(&workers[0], &backend, 1).await;
                served.borrow_mut().push("plain");
            }
        };
        let upgrade = async {
            whole(workers[0].send(&backend, upgrade(), None, SendLimits::default()).await).await;
            served.borrow_mut().push("upgrade");
        };
        join(plain, upgrade).await;
        assert_eq!(*served.borrow(), ["plain", "upgrade", "plain", "plain", "plain"]);
    });
}

#[test]
fn who_waits_for_another_endpoint_is_passed_sixteen_times_in_a_row_at_most() {
    local_paused(async {
        let ((one, _), (other, _)) = (Counting::start().await, Counting::start().await);
        let backend = backend(1, &[one, other], bounded(1, 10));
        let workers = workers(1);
        let (here, there) = (seat_at(&backend, one), seat_at(&backend, other));
        let served = Cell::new(0);
        let many = async {
            for _ in 0..100 {
                whole(workers[0].send(&backend, get(), None, seated(here)).await).await;
                served.set(served.get() + 1);
            }
        };
        let single = async {
            whole(workers[0].send(&backend, get(), None, seated(there)).await).await;
            served.get()
        };
        let (_, before) = join(many, single).await;
        // What is there goes before what has to be made; not for ever.
        assert!((2..=17).contains(&before), "{before}");
        all_is_given_back(&backend).await;
    });
}

#[test]
fn what_was_kept_for_another_worker_that_went_serves_who_waits_here() {
    // One after sixteen requests is for the other worker, which leaves just then.
    for leaves_after in 1..=16 {
        local_paused(async move {
            let silent = Scripted::start(|_| vec![Step::Silence]).await;
            let (address, _) = Counting::start().await;
            let backend = backend(2, &[silent.address, address], bounded(4, 10));
            let workers = workers(2);
            let (long, short) = (seat_at(&backend, silent.address), seat_at(&backend, address));
            let send =
                |worker: usize, seat| Box::pin(workers[worker].send(&backend, get(), None, seated(seat)));
            // This worker has three, of which two are in use for long; the other has its one.
            let mut held = [send(0, long), send(0, long), send(1, long)];
            for request in &mut held {
                assert!(poll!(request).is_pending());
            }
            let (done, waiting) = (Cell::new(0), RefCell::new(None));
            let client = async || {
                for _ in 0..15 {
                    let begun = Instant::now();
                    whole(send(0, short).await).await;
                    assert!(begun.elapsed() < SOON, "{leaves_after}: {:?}", begun.elapsed());
                    done.set(done.get() + 1);
                    if done.get() == 2 {
                        let mut other = send(1, long);
                        assert!(poll!(&mut other).is_pending());
                        waiting.replace(Some(other));
                    } else if done.get() == 2 + leaves_after {
                        drop(waiting.take());
                    }
                }
            };
            join(client(), client()).await;
            assert_eq!((done.get(), pending(&backend)), (30, 0));
            drop(held);
            all_is_given_back(&backend).await;
        });
    }
}
