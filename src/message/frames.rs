//! A budget of HTTP/2 control frames. h2 cuts floods of resets, CONTINUATION and empty DATA itself; PING, SETTINGS,
//! PRIORITY, WINDOW_UPDATE and unknown frames it answers for ever, and a server's interim answers it takes without end.
//! Only frame heads are looked at (RFC 9113 section 4.1), on the bytes that h2 is about to read.

use std::io;

use tokio::time::Instant;

const PREFACE: u32 = 24;
const HEAD: usize = 9;
/// So many control frames at once, and so many a second for ever.
const BURST: i64 = 1_000;
const PER_SECOND: i64 = 100;
/// Servers that open windows for each little message are known; none is paid for by a single client.
const PER_SECOND_OF_SERVERS: i64 = 1_000;
/// What honest clients send with a request (priority, windows), and for what they are sent.
const PER_REQUEST: i64 = 8;
/// Interim answers, the answer's head and its trailers count against what a server may send.
const PER_ANSWER: i64 = 40;
const BYTES_PER_FRAME: usize = 1024;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const LAST_KNOWN: u8 = 9;
const ACK: u8 = 1;

#[derive(Debug)]
pub struct FrameBudget {
    from: From,
    /// SETTINGS that came as a whole, acknowledgements included.
    settings: u64,
    /// Of one of them the payload is being passed over.
    in_settings: bool,
    going_away: bool,
    /// Bytes of preface or payload still to be passed over.
    skip: u32,
    head: [u8; HEAD],
    filled: usize,
    left: i64,
    refilled: Instant,
    written: usize,
}

/// Whose frames are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    Client,
    Server,
}

impl FrameBudget {
    pub fn of_client() -> Self {
        Self::new(From::Client, PREFACE)
    }

    pub fn of_server() -> Self {
        Self::new(From::Server, 0)
    }

    fn new(from: From, skip: u32) -> Self {
        Self {
            from,
            settings: 0,
            in_settings: false,
            going_away: false,
            skip,
            head: [0; HEAD],
            filled: 0,
            left: BURST,
            refilled: Instant::now(),
            written: 0,
        }
    }

    /// How often the other side said what it permits.
    pub fn settings(&self) -> u64 {
        self.settings
    }

    /// The other side takes no new requests.
    pub fn is_going_away(&self) -> bool {
        self.going_away
    }

    /// A request goes to the server, which may send frames for it.
    pub fn asked(&mut self) {
        self.earn(PER_ANSWER);
    }

    /// Accounts for what was read.
    ///
    /// # Errors
    /// More control frames came than anybody honest sends.
    pub fn take(&mut self, mut read: &[u8]) -> io::Result<()> {
        while !read.is_empty() {
            if self.skip > 0 {
                let passed = read.len().min(self.skip as usize);
                self.skip -= u32::try_from(passed).unwrap_or(self.skip);
                read = &read[passed..];
                self.note_settings();
                continue;
            }
            let part = read.len().min(HEAD - self.filled);
            self.head[self.filled..self.filled + part].copy_from_slice(&read[..part]);
            self.filled += part;
            read = &read[part..];
            if self.filled == HEAD {
                self.filled = 0;
                self.skip = u32::from_be_bytes([0, self.head[0], self.head[1], self.head[2]]);
                self.in_settings = self.head[3] == SETTINGS;
                self.note_settings();
                self.going_away |= self.head[3] == GOAWAY;
                self.count(self.head[3], self.head[4])?;
            }
        }
        Ok(())
    }

    /// Answers earn the windows that are opened for them.
    pub fn wrote(&mut self, bytes: usize) {
        self.written += bytes;
        self.earn(i64::try_from(self.written / BYTES_PER_FRAME).unwrap_or(BURST));
        self.written %= BYTES_PER_FRAME;
    }

    fn count(&mut self, kind: u8, flags: u8) -> io::Result<()> {
        match (self.from, kind) {
            (From::Client, HEADERS) => self.earn(PER_REQUEST),
            // Not for nothing: it comes out of the window that the reader opens.
            (From::Server, DATA) if self.skip > 0 => self.earn(1),
            (From::Server, HEADERS | RST_STREAM | GOAWAY) => self.left -= 1,
            _ => {}
        }
        match kind {
            PING | SETTINGS if flags & ACK != 0 => {}
            PING | SETTINGS | PRIORITY | WINDOW_UPDATE => self.left -= 1,
            known if known <= LAST_KNOWN => {}
            _ => self.left -= 1,
        }
        if self.left >= 0 {
            return Ok(());
        }
        let now = Instant::now();
        let seconds = now.duration_since(self.refilled).as_secs_f64().min(60.0);
        self.refilled = now;
        #[expect(clippy::cast_possible_truncation, reason = "at most a minute's worth")]
        self.earn((seconds * self.per_second() as f64) as i64);
        if self.left >= 0 { Ok(()) } else { Err(io::Error::other("flood of HTTP/2 control frames")) }
    }

    fn note_settings(&mut self) {
        if self.in_settings && self.skip == 0 {
            self.in_settings = false;
            self.settings += 1;
        }
    }

    fn per_second(&self) -> i64 {
        match self.from {
            From::Client => PER_SECOND,
            From::Server => PER_SECOND_OF_SERVERS,
        }
    }

    fn earn(&mut self, frames: i64) {
        self.left = (self.left + frames).min(BURST);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).expect("small").to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 0];
        bytes.resize(HEAD + payload, 0);
        bytes
    }

    fn started() -> FrameBudget {
        let mut budget = FrameBudget::of_client();
        budget.take(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("preface");
        budget
    }

    #[tokio::test(start_paused = true)]
    async fn each_kind_of_control_frame_runs_out() {
        for kind in [PING, SETTINGS, PRIORITY, WINDOW_UPDATE, 0xbe] {
            let mut budget = started();
            let sent = (0..5_000).take_while(|_| budget.take(&frame(kind, 0, 8)).is_ok()).count();
            assert_eq!(sent, 1_000, "{kind}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_hundred_a_second_may_come_for_ever() {
        let mut budget = started();
        for _ in 0..100 {
            budget.take(&vec![frame(PING, 0, 8); 100].concat()).expect("honest");
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn windows_for_what_was_sent_are_earned() {
        let mut budget = started();
        for _ in 0..10_000 {
            budget.wrote(16 << 10);
            budget.take(&vec![frame(WINDOW_UPDATE, 0, 4); 4].concat()).expect("honest");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_s_interim_answers_and_resets_run_out_too() {
        for kind in [HEADERS, RST_STREAM, PING, SETTINGS, GOAWAY] {
            let mut budget = FrameBudget::of_server();
            budget.asked();
            let sent = (0..5_000).take_while(|_| budget.take(&frame(kind, 0, 8)).is_ok()).count();
            assert_eq!(sent, 1_000, "{kind}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn answers_to_requests_may_come_for_ever() {
        let mut budget = FrameBudget::of_server();
        let hello = frame(SETTINGS, 0, 6);
        budget.take(&hello[..HEAD + 5]).expect("the start of a hello");
        assert_eq!(budget.settings(), 0);
        budget.take(&hello[HEAD + 5..]).expect("its end");
        assert_eq!(budget.settings(), 1);
        for _ in 0..100_000 {
            budget.asked();
            let answer = [frame(HEADERS, 4, 20), frame(DATA, 0, 900), frame(HEADERS, 5, 20)].concat();
            budget.take(&answer).expect("honest");
        }
        assert!(!budget.is_going_away());
        budget.take(&frame(GOAWAY, 0, 8)).expect("a farewell");
        assert!(budget.is_going_away());
    }

    #[tokio::test(start_paused = true)]
    async fn payload_is_never_taken_for_a_frame_however_it_is_cut() {
        let stream = [frame(0, 0, 5_000), frame(PING, ACK, 8), frame(0, 0, 5_000)].concat().repeat(50);
        for size in [1, 7, 9, 4_096] {
            let mut budget = started();
            stream.chunks(size).for_each(|part| budget.take(part).expect("only data"));
            assert_eq!(budget.left, BURST);
        }
    }
}
