//! Any bytes as the answers of calls, cut at each NUL: what is taken for JSON stands in the merged object as it came, and
//! only there.
#![cfg_attr(not(test), no_main)]

use portcullis::message::{Piece, PieceKind, RawJson};
use serde_json::value::RawValue;

const NAMES: [&str; 8] = ["a", "b", "c", "d", "e", "f", "g", "h"];

#[cfg(not(test))]
libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    check(input);
});

/// Whether any of them is JSON.
pub fn check(input: &[u8]) -> bool {
    let parts: Vec<RawJson> = input
        .split(|byte| *byte == 0)
        .take(NAMES.len())
        .filter_map(|part| {
            let taken = RawJson::new(part.to_vec()).ok();
            let is_json = serde_json::from_slice::<&RawValue>(part).is_ok();
            assert_eq!(taken.is_some(), is_json, "judged otherwise than by a parser");
            taken
        })
        .collect();
    let merged = RawJson::object(NAMES.into_iter().zip(parts.iter().map(RawJson::as_str)));
    let whole = RawJson::new(merged).expect("documents in an object are a document");
    let found: Vec<_> = whole.root().parts().into_iter().flatten().collect();
    // Too large to be looked into: nothing to compare.
    if whole.root().parts().is_err() {
        return true;
    }
    assert_eq!(found.len(), parts.len() * 2, "a member more or less");
    for (both, (name, part)) in found.chunks(2).zip(NAMES.into_iter().zip(&parts)) {
        assert_eq!(both[0].text(), format!("\"{name}\""));
        assert_eq!(both[1].text(), part.as_str());
        walk(both[1]);
    }
    !parts.is_empty()
}

/// Every piece is a document of its own.
fn walk(piece: Piece<'_>) {
    let own = RawJson::new(piece.text().to_owned()).expect("a piece is JSON");
    assert_eq!((own.as_str(), own.root().kind()), (piece.text(), piece.kind()));
    if matches!(piece.kind(), PieceKind::List | PieceKind::Object) {
        piece.parts().into_iter().flatten().for_each(walk);
    }
}
