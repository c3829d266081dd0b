//! The time of a request and clients that take long to send it, in the whole program.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use crate::harness::{Answer, Backend, Gateway, PATIENCE, connect, read_answer, route};

const SHORT: &str = "{hostnames: [short.test], rules: [{name: all, policy: {timeouts: {request: 300ms}}, backendRefs: [{kind: GatewayBackend, name: echo}]}]}";

/// A request whose body comes in chunks.
struct Upload(TcpStream);

impl Upload {
    fn begin(gateway: &Gateway, path: &str) -> Self {
        let mut stream = connect(gateway.http);
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: short.test\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).expect("sent");
        Self(stream)
    }

    fn send(&mut self, size: usize) {
        write!(self.0, "{size:x}\r\n{}\r\n", "x".repeat(size)).expect("sent");
    }

    /// Whether nothing comes for so long.
    fn is_silent_for(&mut self, time: Duration) -> bool {
        self.0.set_read_timeout(Some(time)).expect("a time-out");
        let looked = self.0.peek(&mut [0]);
        self.0.set_read_timeout(Some(PATIENCE)).expect("a time-out");
        matches!(looked, Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut))
    }

    fn end(mut self) -> Answer {
        self.0.write_all(b"0\r\n\r\n").expect("sent");
        self.answer()
    }

    fn answer(mut self) -> Answer {
        let mut first = [0];
        self.0.read_exact(&mut first).expect("an answer");
        read_answer(&mut first.chain(&mut self.0)).expect("an answer")
    }
}

fn before_echo() -> (Gateway, Backend) {
    let echo = Backend::start("echo");
    let files = [echo.manifest("echo"), route("short", SHORT)].concat();
    (Gateway::start(&[("all.yaml", &files)]), echo)
}

#[test]
fn an_upload_that_goes_on_is_not_cut_and_the_time_begins_at_its_end() {
    let (gateway, _echo) = before_echo();
    let mut upload = Upload::begin(&gateway, "/");
    for _ in 0..15 {
        upload.send(1024);
        assert!(upload.is_silent_for(Duration::from_millis(100)), "it goes on");
    }
    let answer = upload.end();
    assert_eq!((answer.status, &answer.json()["bytes"]), (200, &(15 * 1024).into()));

    // The controls: what has been sent is waited for so long and no longer, whether it took long or not.
    let mut upload = Upload::begin(&gateway, "/delay/30s");
    for _ in 0..6 {
        upload.send(1024);
        assert!(upload.is_silent_for(Duration::from_millis(100)), "it goes on");
    }
    let answer = upload.end();
    assert_eq!((answer.status, &answer.json()["reason"]), (504, &"BackendTimeout".into()));
    let answer = gateway.get("short.test", "/delay/30s");
    assert_eq!((answer.status, &answer.json()["reason"]), (504, &"BackendTimeout".into()));
}

#[test]
fn an_upload_that_drips_past_the_time_of_its_request_is_408() {
    let (gateway, _echo) = before_echo();
    let mut upload = Upload::begin(&gateway, "/");
    upload.send(1);
    let answer = upload.answer();
    assert_eq!((answer.status, &answer.json()["reason"]), (408, &"RequestTimeout".into()));
}
