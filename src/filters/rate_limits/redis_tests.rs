//! The script in a real Redis decides as the formula here does.

use std::cell::{Cell, RefCell};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::filters::store::SCRIPT;
use crate::values::{Full, Rate};

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "needs redis-server: tests/run redis"]
fn script_and_formula_decide_the_same() {
    let folder = tempfile::tempdir().expect("a folder");
    let socket = folder.path().join("socket");
    let mut command = Command::new("redis-server");
    command.args(["--port", "0", "--save", ""]).arg("--unixsocket").arg(&socket).stdout(Stdio::null());
    let _server = Server(command.spawn().expect("redis-server starts"));
    let client = redis::Client::open(format!("redis+unix://{}", socket.display())).expect("a URL");
    let mut tries = std::iter::repeat_with(|| {
        std::thread::park_timeout(Duration::from_millis(5));
        client.get_connection().ok()
    });
    let connection = tries.by_ref().take(2_000).flatten().next().expect("redis-server answers");
    let connection = RefCell::new(connection);
    let script = redis::Script::new(SCRIPT);
    let series = Cell::new(0);
    let steps = proptest::collection::vec((0_u64..3_000_000, -1_i64..5), 1..60);
    let given = (1_u64..2_000, 1_u64..100, 1_u64..50, 1_u64..2_000, steps);
    let mut runner = TestRunner::new(Config { cases: 64, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&given, |(requests, seconds, burst, other, steps)| {
        series.set(series.get() + 1);
        let key = format!("bucket {}", series.get());
        let rate = |requests| Rate::new(requests, Duration::from_secs(seconds), burst).expect("in range");
        // Half of the way under other numbers.
        let rates = [rate(requests), rate(other)];
        let (mut until, mut now, half) = (0_u64, 1_000_000_000_u64, steps.len() / 2);
        for (turn, (step, cost)) in steps.into_iter().enumerate() {
            let rate = rates[usize::from(turn > half)];
            now += step;
            let nanos = now * 1_000;
            let (interval, burst) = rate.micros();
            let mut call = script.key(&key);
            call.arg(interval).arg(burst).arg(cost).arg(1).arg(now);
            let said: Vec<i64> = call.invoke(&mut connection.borrow_mut()).expect("the script runs");
            until = until.min(rate.latest(nanos));
            if cost < 0 {
                until = rate.refunded(until.max(nanos), 1);
                prop_assert_eq!(said[0], 0);
                continue;
            }
            match rate.charged(until, nanos, cost as u64) {
                Ok(after) => {
                    until = after;
                    let left = (after - nanos) / 1_000;
                    prop_assert!(said[0] == 0 && said[1].abs_diff(left as i64) <= 1, "{:?}, {}", said, left);
                }
                Err(Full::Forever) => prop_assert_eq!(said, [1, -1]),
                Err(Full::For(wait)) => {
                    let wait = wait / 1_000;
                    prop_assert!(said[0] == 1 && said[1].abs_diff(wait as i64) <= 2, "{:?}, {}", said, wait);
                }
            }
        }
        Ok(())
    });
    outcome.expect("the same");
}
