//! What happens when the process may open no more files: it waits without burning CPU, serves what is open, says so, and
//! recovers by itself.

use std::io::{Read as _, Write as _};
use std::process::Command;
use std::time::Instant;

use crate::harness::{Gateway, connect, program, responds, until};

const WARNING: &str = "cannot accept connections";

#[test]
fn without_descriptors_it_waits_serves_what_is_open_and_recovers() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("a.yaml"), responds("a", "a.example", "here")).expect("written");
    let mut command = Command::new("sh");
    command.args(["-c", "ulimit -n 80; exec \"$0\" \"$@\""]).arg(program().get_program());
    let gateway = Gateway::launched(command, folder, &[]);
    let mut kept = connect(gateway.http);
    let mut ask = || {
        kept.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\n\r\n").expect("it stays open");
        let mut answer = Vec::new();
        while !answer.ends_with(b"here") {
            let mut part = [0; 512];
            let read = kept.read(&mut part).expect("an answer");
            assert_ne!(read, 0, "closed");
            answer.extend_from_slice(&part[..read]);
        }
    };
    ask();
    let crowd: Vec<_> =
        (0..150).map(|_| std::net::TcpStream::connect(gateway.http).expect("queued")).collect();
    let warnings = || gateway.process.log().lines().filter(|line| line.contains(WARNING)).count();
    until("the warning", || (warnings() > 0).then_some(()));
    assert!(gateway.process.log().contains("raise the limit of open files"));
    let (began, cpu) = (Instant::now(), gateway.process.cpu());
    let seen = warnings();
    until("two seconds of warnings", || {
        ask();
        (began.elapsed().as_secs() >= 2 && warnings() > seen).then_some(())
    });
    // Its own share of this is what the kept connection asks for; a loop around accept would take all there is.
    let (share, told) = ((gateway.process.cpu() - cpu) / began.elapsed().as_secs_f64(), warnings() - seen);
    assert!(share < 0.5, "{share} of a CPU");
    // Two workers, one line a second each.
    assert!(told as u64 <= 2 * (began.elapsed().as_secs() + 1), "{told} lines");
    drop(crowd);
    until("new connections to be served", || {
        let mut stream = std::net::TcpStream::connect(gateway.http).ok()?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a.example\r\nConnection: close\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        answer.ends_with("here").then_some(())
    });
    ask();
}
