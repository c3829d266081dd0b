//! Any bytes at the start of a connection: judged within bounds, and in one way however they are torn.
#![cfg_attr(not(test), no_main)]

use portcullis::proxy::proxy_header::{Look, look};

const MOST: usize = 4096;

#[cfg(not(test))]
libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    check(input);
});

/// Whether it is a header.
pub fn check(input: &[u8]) -> bool {
    let Some((step, wire)) = input.split_first() else { return false };
    let (torn, taken) = read(wire, usize::from(*step).max(1));
    let (whole, all) = read(wire, usize::MAX);
    assert!(taken <= MOST && all <= MOST, "too much was read");
    match (torn, whole) {
        // How many bytes are still wanted depends on how they come.
        (Look::More(_), Look::More(_)) => {}
        // So does which of its faults is seen first.
        (Look::Missing | Look::Malformed, Look::Missing | Look::Malformed) => {}
        _ => assert_eq!((torn, taken), (whole, all)),
    }
    !matches!(whole, Look::More(_) | Look::Missing | Look::Malformed)
}

/// As from a socket that has `step` bytes at a time; also how many bytes were taken.
fn read(mut wire: &[u8], step: usize) -> (Look, usize) {
    let mut read = Vec::new();
    loop {
        match look(&read) {
            Look::More(more) if !wire.is_empty() => {
                assert!(more > 0, "nothing more is wanted");
                let taken = more.min(step).min(wire.len());
                read.extend_from_slice(&wire[..taken]);
                wire = &wire[taken..];
            }
            seen => return (seen, read.len()),
        }
    }
}
