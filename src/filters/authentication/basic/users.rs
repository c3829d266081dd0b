//! An htpasswd file → who may come, and by which hash.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest;
use foldhash::fast::FixedState;

use super::super::entry::keyed;
use super::MAX_NAME;
use super::hash::Hash;
use crate::message::{Identity, IdentityKind, KnownIdentity};
use crate::values::SecretData;

/// The keys of a Secret that the file may have: nginx's, traefik's, and its own name.
const KEYS: [&str; 3] = ["auth", "users", ".htpasswd"];
const MOST_NOTES: usize = 8;
/// Kubernetes' bound on a Secret's size allows no more.
const MOST_USERS: usize = 20_000;

pub struct Users {
    /// Whose these are, in this entry.
    pub name: String,
    users: HashMap<Box<str>, User, FixedState>,
    /// Hashes for names that nobody has, so that those cost the same.
    hashes: Vec<Hash>,
    /// What is wrong with single lines.
    pub notes: Vec<String>,
}

#[derive(PartialEq)]
struct User {
    hash: Hash,
    /// Digest of the line.
    line: [u8; 32],
    identity: Identity,
}

impl Users {
    /// # Errors
    /// Why nobody could come.
    pub fn read(entry: &Arc<str>, secret: &SecretData) -> Result<Self, String> {
        let mut found = KEYS.iter().filter_map(|key| Some((*key, secret.data.get(*key)?)));
        let name = &secret.name;
        let (key, file) = found.next().ok_or_else(|| {
            format!("Secret {name} has none of auth, users and .htpasswd; put the htpasswd file into auth")
        })?;
        if let Some((other, _)) = found.next() {
            return Err(format!("Secret {name} has both {key} and {other}; leave one of them out"));
        }
        let file = std::str::from_utf8(file.expose())
            .map_err(|_| format!("{key} of Secret {name} is not text in UTF-8; write it with htpasswd -B"))?;
        let mut users = Self {
            name: format!("{name} {entry}"),
            users: HashMap::with_hasher(FixedState::with_seed(0)),
            hashes: Vec::new(),
            notes: Vec::new(),
        };
        let issuer: Arc<str> = name.to_string().into();
        for (index, line) in file.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            if let Err(message) = users.add(line, entry, &issuer) {
                users.note(format!("line {} of {key} in Secret {name} {message}", index + 1));
            }
        }
        if users.users.is_empty() {
            let why = users.notes.first().cloned();
            return Err(why
                .unwrap_or_else(|| format!("{key} of Secret {name} has no user; add one with htpasswd -B")));
        }
        users.hashes = users.users.values().map(|user| user.hash.clone()).collect();
        // In no order of the names.
        users.hashes.sort_by_cached_key(|hash| keyed(hash.text().as_bytes()));
        Ok(users)
    }

    fn add(&mut self, line: &str, entry: &Arc<str>, issuer: &Arc<str>) -> Result<(), String> {
        let Some((name, hash)) = line.split_once(':') else {
            return Err("is not NAME:HASH; write it again with htpasswd -nB -C 12 NAME".into());
        };
        if name.is_empty() || name.len() > MAX_NAME || name.chars().any(char::is_control) {
            return Err("has a name that is empty, longer than 256 bytes or not plain; write another".into());
        }
        if self.users.contains_key(name) {
            return Err("has a name that stands further up already; that line counts, remove one".into());
        }
        if self.users.len() == MOST_USERS {
            return Err("is one of more than 20000; move it to another Secret".into());
        }
        let (hash, note) = Hash::read(hash)?;
        let identity = KnownIdentity {
            kind: IdentityKind::Basic,
            entry: Arc::clone(entry),
            issuer: Arc::clone(issuer),
            id: name.into(),
            scopes: Arc::default(),
            claims: Arc::default(),
        };
        let digest = digest::digest(&digest::SHA256, line.as_bytes());
        let line = digest.as_ref().try_into().expect("SHA-256 has 32 bytes");
        self.users.insert(name.into(), User { hash, line, identity: Identity::new(Arc::new(identity)) });
        match note {
            Some(note) => Err(note.to_owned()),
            None => Ok(()),
        }
    }

    fn note(&mut self, note: String) {
        match self.notes.len() {
            MOST_NOTES => self.notes.push("there is more of the kind".to_owned()),
            0..MOST_NOTES => self.notes.push(note),
            _ => {}
        }
    }

    /// Slow, whether anybody has the name or not.
    pub fn verify(&self, name: &str, password: &[u8]) -> bool {
        match self.users.get(name) {
            Some(user) => user.hash.verify(password),
            None => {
                // The same one for the same name: who asks twice sees nothing else than of a user.
                let digest = keyed(name.as_bytes());
                let number = u64::from_le_bytes(*digest.first_chunk().expect("of 32 bytes 8 are the first"));
                let place = usize::try_from(number % self.hashes.len().max(1) as u64).unwrap_or(0);
                let _ = self.hashes.get(place).is_some_and(|hash| hash.verify(password));
                false
            }
        }
    }

    pub fn identity(&self, name: &str) -> Option<&Identity> {
        self.users.get(name).map(|user| &user.identity)
    }

    /// By what a name is judged; of a name that nobody has, by nothing.
    pub fn line_of(&self, name: &str) -> [u8; 32] {
        self.users.get(name).map_or([0; 32], |user| user.line)
    }
}

impl PartialEq for Users {
    fn eq(&self, other: &Self) -> bool {
        (&self.name, &self.users) == (&other.name, &other.users)
    }
}

impl fmt::Debug for Users {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Users({} of {})", self.users.len(), self.name)
    }
}
