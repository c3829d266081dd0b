//! Any text as a path: one normal form, which is its own, or none.
#![cfg_attr(not(test), no_main)]

use portcullis::route_map::path::normal_form;

#[cfg(not(test))]
libfuzzer_sys::fuzz_target!(|path: &str| {
    check(path);
});

/// Whether it has one.
pub fn check(path: &str) -> bool {
    let Ok(form) = normal_form(path) else { return false };
    assert_eq!(normal_form(&form).as_deref(), Ok(&*form), "another form of the normal form");
    assert!(form.is_ascii() && form.starts_with('/') && !form.contains("//"));
    assert!(!form.split('/').any(|segment| matches!(segment, "." | "..")));
    let lower = form.to_ascii_lowercase();
    assert!(!["%2e", "%2f", "%5c", "%00", "\\", "?", "#"].iter().any(|part| lower.contains(part)));
    true
}
