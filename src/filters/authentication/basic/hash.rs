//! The hashes of an htpasswd file: read once, those that are too weak or too slow refused.

use std::fmt;

use sha_crypt::{PasswordHashRef, PasswordVerifier as _, ShaCrypt};

/// bcrypt's cost: each one more doubles it. 14 is about a second of a CPU.
const BCRYPT_MOST: u32 = 14;
const BCRYPT_FEW: u32 = 10;
/// Rounds of SHA-crypt: 5,000 where none stand there.
const ROUNDS_MOST: u32 = 500_000;
const ROUNDS_LEAST: u32 = 1_000;
const ROUNDS: u32 = 5_000;
const MAX_SALT: usize = 16;
/// bcrypt looks at so many bytes of a password and no further: whatever follows would be right.
const BCRYPT_PASSWORD: usize = 72;

#[derive(Clone, PartialEq, Eq)]
pub enum Hash {
    Bcrypt(Box<str>),
    /// SHA-256 or SHA-512.
    ShaCrypt(Box<str>),
}

impl Hash {
    /// Reads the hash of a line, and says what is to be said of it though it can be used.
    ///
    /// # Errors
    /// What is wrong with it and what to do, without a piece of it.
    pub fn read(text: &str) -> Result<(Self, Option<&'static str>), String> {
        let scheme = text.strip_prefix('$').and_then(|rest| rest.split_once('$'));
        match scheme {
            Some(("2y" | "2b" | "2a", _)) => bcrypt(text),
            Some(("5", rest)) => sha_crypt(text, rest, 43),
            Some(("6", rest)) => sha_crypt(text, rest, 86),
            Some(("apr1" | "1", _)) => Err(weak("an MD5 hash")),
            Some(_) => Err(weak("a hash of a kind that is not known here")),
            None if text.starts_with("{SHA}") => Err(weak("a SHA-1 hash without a salt")),
            None => Err(weak("a DES hash or the password itself")),
        }
    }

    pub(super) fn text(&self) -> &str {
        match self {
            Self::Bcrypt(text) | Self::ShaCrypt(text) => text,
        }
    }

    /// Slow: not for workers.
    pub fn verify(&self, password: &[u8]) -> bool {
        match self {
            Self::Bcrypt(hash) => {
                password.len() <= BCRYPT_PASSWORD && bcrypt::verify(password, hash).unwrap_or(false)
            }
            Self::ShaCrypt(hash) => PasswordHashRef::new(hash)
                .is_ok_and(|hash| ShaCrypt::default().verify_password(password, hash).is_ok()),
        }
    }
}

fn weak(what: &str) -> String {
    format!("has {what}, which is not taken; write the line again with htpasswd -nB -C 12 NAME")
}

fn bcrypt(text: &str) -> Result<(Hash, Option<&'static str>), String> {
    let parts: bcrypt::HashParts = text
        .parse()
        .map_err(|_| "has a bcrypt hash that is not complete; write the line again".to_owned())?;
    let cost = parts.get_cost();
    if cost > BCRYPT_MOST {
        return Err(format!(
            "has a bcrypt hash of cost {cost}, which takes seconds of a CPU; write it again with a cost of at most {BCRYPT_MOST}"
        ));
    }
    if cost < 4 {
        return Err(format!("has a bcrypt hash of cost {cost}; write it again with htpasswd -nB -C 12 NAME"));
    }
    let note = (cost < BCRYPT_FEW)
        .then_some("has a bcrypt hash of a cost below 10, which is quick to guess at; write it again with htpasswd -nB -C 12 NAME");
    Ok((Hash::Bcrypt(text.into()), note))
}

/// `[rounds=N$]salt$hash`
fn sha_crypt(text: &str, rest: &str, length: usize) -> Result<(Hash, Option<&'static str>), String> {
    let refuse = || "has a SHA-crypt hash that is not complete; write the line again".to_owned();
    let (rounds, rest) = match rest.strip_prefix("rounds=") {
        Some(rest) => {
            let (rounds, rest) = rest.split_once('$').ok_or_else(refuse)?;
            (rounds.parse().map_err(|_| refuse())?, rest)
        }
        None => (ROUNDS, rest),
    };
    if !(ROUNDS_LEAST..=ROUNDS_MOST).contains(&rounds) {
        return Err(format!(
            "has a SHA-crypt hash of {rounds} rounds; write it again with {ROUNDS_LEAST} to {ROUNDS_MOST}"
        ));
    }
    let (salt, hash) = rest.split_once('$').ok_or_else(refuse)?;
    let is_plain =
        |text: &str| text.bytes().all(|sign| sign.is_ascii_alphanumeric() || matches!(sign, b'.' | b'/'));
    let fits = !salt.is_empty() && salt.len() <= MAX_SALT && hash.len() == length;
    // The last sign has bits to spare.
    let last = if length == 43 { "./0123456789ABCD" } else { "./01" };
    let is_read = PasswordHashRef::new(text).is_ok() && hash.ends_with(|sign| last.contains(sign));
    (fits && is_plain(salt) && is_plain(hash) && is_read)
        .then(|| (Hash::ShaCrypt(text.into()), None))
        .ok_or_else(refuse)
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By openssl passwd, htpasswd and the specification of SHA-crypt.
    const GOOD: &[(&str, &str)] = &[
        ("U*U", "$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"),
        ("U*U", "$2y$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"),
        ("Hello world!", "$5$saltstring$5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5"),
        (
            "Hello world!",
            "$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1",
        ),
        ("Hello world!", "$5$rounds=10000$saltstringsaltst$3xv.VbSHBb41AL9AvLeujZkZRBAwqFMz2.opqey6IcA"),
    ];

    #[test]
    fn hashes_of_others_are_verified() {
        for (password, text) in GOOD {
            let (hash, _) = Hash::read(text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert!(hash.verify(password.as_bytes()), "{text}");
            for wrong in ["", "hello world!", "U*U*", "Hello world! "] {
                assert!(!hash.verify(wrong.as_bytes()), "{text} {wrong}");
            }
            assert_eq!(format!("{hash:?}"), "[redacted]");
        }
    }

    /// bcrypt would take whatever follows.
    #[test]
    fn nothing_of_a_password_is_cut_off() {
        let long = "x".repeat(72);
        let text = bcrypt::hash(&long, 4).expect("a hash");
        let (hash, _) = Hash::read(&text).expect("taken");
        assert!(hash.verify(long.as_bytes()));
        assert!(bcrypt::verify(format!("{long}y"), &text).expect("a hash"), "the library cuts");
        assert!(!hash.verify(format!("{long}y").as_bytes()) && !hash.verify("x".repeat(71).as_bytes()));
    }

    #[test]
    fn what_is_weak_or_too_slow_or_broken_is_refused_with_a_remedy() {
        let bcrypt = |cost: &str| format!("$2y${cost}$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW");
        let sha = "5B8vYYiY.CVt1RlTTf8KbXBH3hsxY/GNooZaBBGWEc5";
        for (text, words) in [
            ("$apr1$abc$x", "MD5"),
            ("$1$abc$x", "MD5"),
            ("{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "SHA-1"),
            ("{SSHA}x", "the password itself"),
            ("password", "the password itself"),
            ("rqXexS6ZhobKA", "DES"),
            ("", "the password itself"),
            ("$argon2id$v=19$x", "not known"),
            ("$2x$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW", "not known"),
            (&bcrypt("15"), "cost of at most 14"),
            (&bcrypt("31"), "cost of at most 14"),
            (&bcrypt("03"), "cost 3"),
            (&bcrypt("05")[..59], "not complete"),
            ("$2y$05$ä", "not complete"),
            (&format!("$5$rounds=999${}${sha}", "salt"), "999 rounds"),
            (&format!("$5$rounds=500001${}${sha}", "salt"), "500001 rounds"),
            (&format!("$5$rounds=x$salt${sha}"), "not complete"),
            (&format!("$5$${sha}"), "not complete"),
            (&format!("$5$saltsaltsaltsalts${sha}"), "not complete"),
            (&format!("$5$sä${sha}"), "not complete"),
            (&format!("$5$salt${sha}x"), "not complete"),
            (&format!("$6$salt${sha}"), "not complete"),
            (&format!("$5$salt${sha}$"), "not complete"),
            (&format!("$5$salt${}z", &sha[..42]), "not complete"),
            ("$5$", "not complete"),
        ] {
            let error = Hash::read(text).err().unwrap_or_else(|| panic!("{text} is taken"));
            assert!(error.contains(words), "{text}: {error}");
            assert!(error.contains("write"), "{text}: {error}");
        }
        assert!(Hash::read(&bcrypt("09")).expect("taken").1.is_some());
        assert!(Hash::read(&bcrypt("10")).expect("taken").1.is_none());
    }
}
