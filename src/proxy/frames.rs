//! Where the frames of a WebSocket begin and end (RFC 6455 section 5.2), so that one more can be put between two of them.
//! Only headers are read; what is in a frame is skipped by its length.

/// A Close frame of a server with status 1001, going away (RFC 6455 sections 5.5.1 and 7.4.1).
pub const GOING_AWAY: [u8; 4] = [0x88, 2, 0x03, 0xe9];

/// Two bytes and a length of eight. A mask counts as part of what follows.
const HEADER: usize = 10;
const LONGEST_CONTROL: u64 = 125;
const CLOSE: u8 = 8;

/// How far one direction of a WebSocket is.
#[derive(Debug, Default)]
pub struct Frames {
    /// Of the frame's content, what has not come yet.
    left: u64,
    header: [u8; HEADER],
    /// Bytes of the header that have come; none between frames and within contents.
    have: usize,
    /// No frame may follow any more: the other end's Close frame has begun, or what came cannot be counted.
    over: bool,
}

impl Frames {
    /// Whether a frame may be put in here.
    pub fn at_boundary(&self) -> bool {
        !self.over && self.left == 0 && self.have == 0
    }

    /// Counts what passes.
    pub fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = &bytes[self.pass_one(bytes)..];
        }
    }

    /// Counts what passes up to the end of the frame that it is in, and says how much that is. All of it where no frame
    /// may follow.
    pub fn pass_one(&mut self, bytes: &[u8]) -> usize {
        if self.over {
            return bytes.len();
        }
        let mut at = 0;
        while self.left == 0 && at < bytes.len() {
            self.header[self.have] = bytes[at];
            self.have += 1;
            at += 1;
            if let Some(header) = Header::read(&self.header[..self.have]) {
                self.have = 0;
                self.left = header.follows;
                self.over = header.ends;
                if self.over {
                    return bytes.len();
                }
                if header.follows == 0 {
                    return at;
                }
            }
        }
        let skipped = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len() - at);
        self.left -= skipped as u64;
        at + skipped
    }
}

struct Header {
    /// Bytes of the mask and of the content.
    follows: u64,
    ends: bool,
}

impl Header {
    /// None: there is more of it to come.
    fn read(bytes: &[u8]) -> Option<Self> {
        let (&[first, second], length) = bytes.split_first_chunk()?;
        let length = match second & 0x7f {
            126 => u64::from(u16::from_be_bytes(*length.first_chunk()?)),
            127 => u64::from_be_bytes(*length.first_chunk()?),
            short => u64::from(short),
        };
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        let (is_last, opcode) = (first & 0x80 != 0, first & 0x0f);
        let is_control = opcode >= CLOSE;
        // The top bit of a length is 0; a control frame is short and whole.
        let is_none = length > i64::MAX as u64 || is_control && (length > LONGEST_CONTROL || !is_last);
        Some(Self { follows: length.saturating_add(mask), ends: is_none || opcode == CLOSE })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame with so much content, which looks like headers.
    fn frame(first: u8, length: usize, masked: bool) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut frame = vec![first];
        match length {
            0..=125 => frame.push(mask | length as u8),
            126..=0xffff => {
                frame.push(mask | 126);
                frame.extend((length as u16).to_be_bytes());
            }
            _ => {
                frame.push(mask | 127);
                frame.extend((length as u64).to_be_bytes());
            }
        }
        frame.extend(if masked { &[0x88; 4][..] } else { &[] });
        frame.extend(std::iter::repeat_n(0x88, length));
        frame
    }

    /// Text in two fragments with a ping between them, masked ones, empty ones, lengths of all three kinds.
    fn several() -> (Vec<u8>, Vec<usize>) {
        let frames = [
            frame(0x01, 5, false),
            frame(0x89, 125, false),
            frame(0x80, 0, false),
            frame(0x82, 126, true),
            frame(0x8a, 0, true),
            frame(0xc1, 300, false),
            frame(0x82, 0, false),
        ];
        let ends = frames.iter().scan(0, |end, frame| {
            *end += frame.len();
            Some(*end)
        });
        let ends = std::iter::once(0).chain(ends).collect();
        (frames.concat(), ends)
    }

    #[test]
    fn boundaries_are_found_however_the_bytes_come() {
        let (bytes, ends) = several();
        for first in 0..=bytes.len() {
            for second in first..=bytes.len() {
                let mut frames = Frames::default();
                let (mut at, stops) = (0, [first, second, bytes.len()]);
                for stop in stops {
                    frames.pass(&bytes[at..stop]);
                    at = stop;
                    assert_eq!(frames.at_boundary(), ends.contains(&at), "{first} {second}: at {at}");
                }
            }
        }
        for piece in 1..20 {
            let mut frames = Frames::default();
            for (number, bytes) in bytes.chunks(piece).enumerate() {
                frames.pass(bytes);
                let at = number * piece + bytes.len();
                assert_eq!(frames.at_boundary(), ends.contains(&at), "pieces of {piece}: at {at}");
            }
        }
    }

    #[test]
    fn one_frame_is_passed_up_to_its_end() {
        let (bytes, ends) = several();
        for start in 0..bytes.len() {
            let mut frames = Frames::default();
            frames.pass(&bytes[..start]);
            let passed = start + frames.pass_one(&bytes[start..]);
            assert_eq!(Some(&passed), ends.iter().find(|end| **end > start), "from {start}");
            assert!(frames.at_boundary());
        }
    }

    #[test]
    fn large_frames_are_skipped_by_their_length() {
        for length in [0xffff, 0x1_0000, 0x12_3456] {
            let bytes = frame(0x82, length, false);
            for piece in [1 << 14, bytes.len() - 1, 9, 3] {
                let mut frames = Frames::default();
                let (head, last) = bytes.split_at(bytes.len() - 1);
                head.chunks(piece).for_each(|bytes| frames.pass(bytes));
                assert!(!frames.at_boundary(), "{length} in pieces of {piece}");
                frames.pass(last);
                assert!(frames.at_boundary(), "{length} in pieces of {piece}");
            }
        }
        // Longer than anything that comes.
        let mut frames = Frames::default();
        frames.pass(&[0x82, 127]);
        frames.pass(&i64::MAX.to_be_bytes());
        frames.pass(&[0; 1 << 14]);
        assert!(!frames.at_boundary());
    }

    #[test]
    fn nothing_follows_a_close_frame_nor_what_is_no_frame() {
        for (what, bytes) in [
            ("a Close frame", frame(0x88, 2, false)),
            ("one that is masked", frame(0x88, 2, true)),
            ("the half of one", vec![0x88, 2, 3]),
            ("a length with its top bit set", [&[0x82, 127, 0x80][..], &[0; 7]].concat()),
            ("a ping that is too long", frame(0x89, 126, false)),
            ("a ping that is not whole", frame(0x09, 0, false)),
        ] {
            let mut frames = Frames::default();
            frames.pass(&frame(0x81, 3, false));
            assert!(frames.at_boundary());
            frames.pass(&bytes);
            assert!(!frames.at_boundary(), "{what}");
            assert_eq!(frames.pass_one(&frame(0x81, 3, false)), 5, "{what}: all passes");
            assert!(!frames.at_boundary(), "{what}");
        }
    }

    #[test]
    fn going_away_is_one_frame_and_the_last() {
        let mut frames = Frames::default();
        assert_eq!(frames.pass_one(&GOING_AWAY), GOING_AWAY.len());
        assert!(frames.over && !frames.at_boundary());
        assert_eq!(u16::from_be_bytes([GOING_AWAY[2], GOING_AWAY[3]]), 1001);
    }
}
