//! Secrets → the table that an API key is looked up in, by its SHA-256.
//!
//! Invariants: a key is in the table for one consumer alone; a key whose expiry cannot be read is not in it; what is said
//! about a Secret never holds a piece of a key.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use foldhash::fast::FixedState;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::entry::{Fingerprint, fingerprint};
use crate::message::{IdentityKind, KnownIdentity};
use crate::values::{Attributes, SecretData};

/// So many sentences about the Secrets of one table.
const MOST_NOTES: usize = 8;
/// Keys in one Secret; Kubernetes' bound on its size allows no more than about as many.
const MOST_KEYS: usize = 20_000;
const MAX_CONSUMER: usize = 256;
/// As `printf '' | sha256sum` makes it.
const OF_NOTHING: &str = "the hash of an empty key; hash one of at least 128 random bits";
/// What guessing cannot get at.
const ENOUGH_BITS: f64 = 128.0;

/// The keys of an entry.
pub struct KeyTable {
    /// By their hashes: one more key costs its part anew, not the whole.
    parts: Box<[Arc<Part>; PARTS]>,
    /// What is wrong with the Secrets, though the others can be used.
    pub notes: Vec<String>,
    secrets: Vec<Arc<SecretKeys>>,
}

const PARTS: usize = 64;

const fn part(hash: &Fingerprint) -> usize {
    hash[0] as usize % PARTS
}

#[derive(Default)]
struct Part {
    keys: HashMap<Fingerprint, ApiKey, FixedState>,
    /// Keys that several have.
    notes: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ApiKey {
    pub identity: Arc<KnownIdentity>,
    /// Seconds since the epoch.
    pub expires: Option<i64>,
}

/// What one Secret gives.
struct SecretKeys {
    secret: Arc<SecretData>,
    keys: Vec<(Fingerprint, ApiKey)>,
    notes: Vec<String>,
}

impl KeyTable {
    /// `before` is a table of the same entry: what it made of a Secret that is still the same is taken over.
    pub fn new(entry: &Arc<str>, secrets: &[Arc<SecretData>], before: Option<&Self>) -> Self {
        let (secrets, changed) = secrets_of(entry, secrets, before);
        let parts = match before {
            Some(before) => parts_of(&secrets, &changed, &before.parts),
            None => {
                let none = Arc::<Part>::default();
                parts_of(&secrets, &changed, &std::array::from_fn(|_| Arc::clone(&none)))
            }
        };
        let of_parts = parts.iter().flat_map(|part| &part.notes);
        let of_secrets = secrets.iter().flat_map(|secret| &secret.notes);
        let mut notes: Vec<_> =
            of_parts.take(MOST_NOTES).chain(of_secrets).take(MOST_NOTES + 1).cloned().collect();
        if notes.len() > MOST_NOTES {
            notes.truncate(MOST_NOTES);
            notes.push("there is more of the kind".to_owned());
        }
        Self { parts, notes, secrets }
    }

    pub fn find(&self, key: &Fingerprint) -> Option<&ApiKey> {
        self.parts[part(key)].keys.get(key)
    }

    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }

    fn count(&self) -> usize {
        self.parts.iter().map(|part| part.keys.len()).sum()
    }

    /// What [`crate::filters::Scope::derived`] made, as what it is.
    pub fn of(made: Arc<dyn Any + Send + Sync>) -> Option<Arc<Self>> {
        made.downcast().ok()
    }
}

/// What the Secrets give, and in which parts that differs from before. Both come in the order of their names, so that
/// one walk beside the other finds what is the same.
fn secrets_of(
    entry: &Arc<str>,
    secrets: &[Arc<SecretData>],
    before: Option<&KeyTable>,
) -> (Vec<Arc<SecretKeys>>, [bool; PARTS]) {
    let mut changed = [false; PARTS];
    let mut touch = |keys: &SecretKeys| keys.keys.iter().for_each(|(hash, _)| changed[part(hash)] = true);
    let mut known = before.map_or(&[][..], |table| &table.secrets).iter().peekable();
    let mut read = Vec::with_capacity(secrets.len());
    for secret in secrets {
        while let Some(gone) =
            known.next_if(|known| !Arc::ptr_eq(&known.secret, secret) && known.secret.name <= secret.name)
        {
            touch(gone);
        }
        let keys = match known.next_if(|known| Arc::ptr_eq(&known.secret, secret)) {
            Some(known) => Arc::clone(known),
            None => {
                let keys = Arc::new(SecretKeys::read(entry, secret));
                touch(&keys);
                keys
            }
        };
        read.push(keys);
    }
    known.for_each(|gone| touch(gone));
    (read, changed)
}

/// Makes the parts that changed anew.
fn parts_of(
    secrets: &[Arc<SecretKeys>],
    changed: &[bool; PARTS],
    before: &[Arc<Part>; PARTS],
) -> Box<[Arc<Part>; PARTS]> {
    let mut places: Vec<HashMap<Fingerprint, (&ApiKey, &SecretKeys), FixedState>> = Vec::new();
    places.resize_with(PARTS, || HashMap::with_hasher(FixedState::with_seed(0)));
    let mut shared: Vec<Fingerprint> = Vec::new();
    let mut notes: Vec<Vec<String>> = vec![Vec::new(); PARTS];
    for secret in secrets {
        for (hash, key) in secret.keys.iter().filter(|(hash, _)| changed[part(hash)]) {
            let part = part(hash);
            let Some((first, of)) = places[part].get(hash) else {
                places[part].insert(*hash, (key, secret));
                continue;
            };
            if first.identity.id == key.identity.id {
                continue;
            }
            shared.push(*hash);
            if notes[part].len() < MOST_NOTES {
                notes[part].push(format!(
                    "the consumers {} (Secret {}) and {} (Secret {}) have the same key, so it is valid for neither; give one of them another",
                    first.identity.id, of.secret.name, key.identity.id, secret.secret.name
                ));
            }
        }
    }
    for hash in shared {
        places[part(&hash)].remove(&hash);
    }
    let mut parts = Box::new(before.clone());
    for (((part, places), notes), _) in
        parts.iter_mut().zip(places).zip(notes).zip(changed).filter(|(_, changed)| **changed)
    {
        let keys = places.into_iter().map(|(hash, (key, _))| (hash, key.clone())).collect();
        *part = Arc::new(Part { keys, notes });
    }
    parts
}

impl PartialEq for KeyTable {
    fn eq(&self, other: &Self) -> bool {
        let same = |(one, other): (&Arc<Part>, &Arc<Part>)| Arc::ptr_eq(one, other) || one.keys == other.keys;
        self.parts.iter().zip(other.parts.iter()).all(same)
    }
}

impl fmt::Debug for KeyTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyTable({} keys)", self.count())
    }
}

/// An item of `data.keys`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    hash: String,
    #[serde(default)]
    consumer: Option<String>,
    #[serde(default)]
    scopes: Scopes,
    #[serde(default)]
    tier: Option<String>,
    #[serde(default)]
    expires: Option<String>,
    #[serde(default)]
    metadata: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Scopes {
    Text(String),
    List(Vec<String>),
}

impl Default for Scopes {
    fn default() -> Self {
        Self::Text(String::new())
    }
}

impl SecretKeys {
    fn read(entry: &Arc<str>, secret: &Arc<SecretData>) -> Self {
        let mut keys = Self { secret: Arc::clone(secret), keys: Vec::new(), notes: Vec::new() };
        let (clear, hash, list) =
            (secret.data.get("key"), secret.data.get("keyHash"), secret.data.get("keys"));
        if clear.is_none() && hash.is_none() && list.is_none() {
            keys.note("has none of key, keyHash and keys; add one");
        }
        if let Some(clear) = clear {
            let clear = clear.expose().trim_ascii();
            if clear.is_empty() {
                keys.note("has an empty key; write one of at least 128 random bits");
            } else {
                if bits(clear) < ENOUGH_BITS {
                    keys.note("has a key of less than 128 bits, which can be guessed; take 32 random hexadecimal digits or more");
                }
                keys.annotated(entry, fingerprint(clear));
            }
        }
        if let Some(hash) = hash {
            match hex(hash.expose().trim_ascii()) {
                Some(hash) if hash == fingerprint(b"") => keys.note(&format!("has as keyHash {OF_NOTHING}")),
                Some(hash) => keys.annotated(entry, hash),
                None => keys.note("has a keyHash that is no SHA-256 in 64 hexadecimal digits"),
            }
        }
        if let Some(list) = list {
            keys.list(entry, list.expose());
        }
        keys
    }

    fn note(&mut self, what: &str) {
        if self.notes.len() < MOST_NOTES {
            self.notes.push(format!("Secret {} {what}", self.secret.name));
        }
    }

    /// The key that the annotations are about.
    fn annotated(&mut self, entry: &Arc<str>, hash: Fingerprint) {
        let secret = Arc::clone(&self.secret);
        let known = |name: &str| secret.annotations.get(name);
        let scopes = known("portcullis.dev/scopes").unwrap_or_default();
        let key = Described {
            hash,
            consumer: known("portcullis.dev/consumer"),
            scopes: scopes.split_ascii_whitespace().map(Into::into).collect(),
            expires: known("portcullis.dev/expires"),
            metadata: metadata(&secret.annotations),
        };
        self.add(entry, key, "");
    }

    fn list(&mut self, entry: &Arc<str>, yaml: &[u8]) {
        // The parser's words would quote what stands there.
        let Ok(items) = serde_saphyr::from_slice::<Vec<Listed>>(yaml) else {
            self.note("has keys that are no YAML list of {hash, consumer, scopes, tier, expires, metadata}");
            return;
        };
        if items.len() > MOST_KEYS {
            self.note("lists more than 20000 keys; the others are not valid, move them to another Secret");
        }
        for (place, item) in items.into_iter().take(MOST_KEYS).enumerate() {
            let Some(hash) = hex(item.hash.trim().as_bytes()) else {
                self.note(&format!(
                    "has in keys[{place}] a hash that is no SHA-256 in 64 hexadecimal digits"
                ));
                continue;
            };
            if hash == fingerprint(b"") {
                self.note(&format!("has in keys[{place}] {OF_NOTHING}"));
                continue;
            }
            let mut metadata = item.metadata;
            if let Some(tier) = item.tier {
                metadata.insert("tier".to_owned(), tier.into());
            }
            let scopes = match &item.scopes {
                Scopes::Text(text) => text.split_ascii_whitespace().map(Into::into).collect(),
                Scopes::List(list) => list.iter().map(|scope| scope.as_str().into()).collect(),
            };
            let (consumer, expires) = (item.consumer.as_deref(), item.expires.as_deref());
            let key = Described { hash, consumer, scopes, expires, metadata };
            self.add(entry, key, &format!(" in keys[{place}]"));
        }
    }

    fn add(&mut self, entry: &Arc<str>, key: Described<'_>, place: &str) {
        let consumer = key.consumer.map(str::trim).filter(|consumer| !consumer.is_empty());
        if consumer.is_some_and(|consumer| consumer.len() > MAX_CONSUMER) {
            self.note(&format!("has a consumer of more than 256 bytes{place}; its key is not valid"));
            return;
        }
        let expires = match key.expires.map(|text| text.trim().parse::<jiff::Timestamp>()) {
            None => None,
            Some(Ok(time)) => Some(time.as_second()),
            Some(Err(_)) => {
                self.note(&format!(
                    "has an expiry{place} that is no time like 2027-01-31T12:00:00Z (RFC 3339); its key is not valid"
                ));
                return;
            }
        };
        let identity = KnownIdentity {
            kind: IdentityKind::ApiKey,
            entry: Arc::clone(entry),
            issuer: Arc::clone(&self.secret.name.namespace),
            id: consumer.map_or_else(|| Arc::clone(&self.secret.name.name), Into::into),
            scopes: key.scopes,
            claims: Arc::new(key.metadata),
        };
        self.keys.push((key.hash, ApiKey { identity: Arc::new(identity), expires }));
    }
}

struct Described<'a> {
    hash: Fingerprint,
    consumer: Option<&'a str>,
    scopes: Arc<[Box<str>]>,
    expires: Option<&'a str>,
    metadata: Map<String, Value>,
}

/// All annotations of ours but those that mean something else here.
fn metadata(annotations: &Attributes) -> Map<String, Value> {
    let ours =
        annotations.iter().filter_map(|(name, value)| Some((name.strip_prefix("portcullis.dev/")?, value)));
    let rest = ours.filter(|(name, _)| !matches!(*name, "consumer" | "scopes" | "expires"));
    rest.map(|(name, value)| (name.to_owned(), value.into())).collect()
}

fn hex(text: &[u8]) -> Option<Fingerprint> {
    let mut bytes = [0; 32];
    if text.len() != 2 * bytes.len() {
        return None;
    }
    let digit = |sign: u8| char::from(sign).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    for (byte, pair) in bytes.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// At most so much chance is in a key, by the signs that it is made of.
fn bits(key: &[u8]) -> f64 {
    let has = |class: fn(&u8) -> bool| key.iter().any(class);
    let mut different = [false; 256];
    key.iter().for_each(|sign| different[usize::from(*sign)] = true);
    if different.iter().filter(|seen| **seen).count() < 8 {
        return 0.0;
    }
    let signs = if !has(|sign| !sign.is_ascii_digit()) {
        10.0
    } else if !has(|sign| !matches!(sign, b'0'..=b'9' | b'a'..=b'f'))
        || !has(|sign| !matches!(sign, b'0'..=b'9' | b'A'..=b'F'))
    {
        16.0
    } else if !has(|sign| !matches!(sign, b'0'..=b'9' | b'a'..=b'z'))
        || !has(|sign| !matches!(sign, b'0'..=b'9' | b'A'..=b'Z'))
    {
        36.0
    } else {
        64.0
    };
    let length = u32::try_from(key.len()).unwrap_or(u32::MAX);
    f64::from(length) * f64::log2(signs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::values::{ObjectName, Redacted};

    const STRONG: &str = "0f8a3c5e7d9b1a2c4e6f8091a3b5c7d9";

    fn secret(name: &str, data: &[(&str, &str)], annotations: &[(&str, &str)]) -> Arc<SecretData> {
        let annotation =
            |(name, value): &(&str, &str)| (format!("portcullis.dev/{name}"), (*value).to_owned());
        let data =
            data.iter().map(|(key, value)| ((*key).to_owned(), Redacted::new(value.as_bytes().to_vec())));
        Arc::new(SecretData {
            name: ObjectName::new("shop", name),
            kind: "Opaque".into(),
            labels: Attributes::default(),
            annotations: annotations.iter().map(annotation).collect(),
            data: Arc::new(data.collect()),
        })
    }

    fn table(secrets: &[Arc<SecretData>]) -> KeyTable {
        KeyTable::new(&"partners".into(), secrets, None)
    }

    fn consumer(table: &KeyTable, key: &str) -> Option<String> {
        table.find(&fingerprint(key.as_bytes())).map(|key| key.identity.id.to_string())
    }

    fn hash(key: &str) -> String {
        fingerprint(key.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn clear_and_hashed_keys_are_found_by_their_hash() {
        let hashed = hash("other");
        let table = table(&[
            secret(
                "a",
                &[("key", "0f8a3c5e7d9b1a2c4e6f8091a3b5c7d9\n")],
                &[("consumer", "acme"), ("scopes", "r w"), ("tier", "gold"), ("plan", "x")],
            ),
            secret("b", &[("keyHash", &hashed.to_uppercase())], &[]),
        ]);
        assert_eq!(table.notes, [""; 0]);
        assert_eq!(consumer(&table, STRONG).as_deref(), Some("acme"));
        assert_eq!(consumer(&table, "other").as_deref(), Some("b"), "the Secret's name");
        assert_eq!(consumer(&table, &hashed), None, "a hash is no key");
        let key = table.find(&fingerprint(STRONG.as_bytes())).expect("there");
        assert_eq!((&*key.identity.scopes, key.expires), (&["r".into(), "w".into()][..], None));
        assert_eq!(
            Value::Object((*key.identity.claims).clone()),
            serde_json::json!({"tier": "gold", "plan": "x"})
        );
    }

    #[test]
    fn a_list_holds_many_keys() {
        let yaml = format!(
            "- {{hash: {}, consumer: one, scopes: a b, tier: gold, expires: 2027-01-01T00:00:00Z, metadata: {{n: 1}}}}\n- {{hash: {}, scopes: [c]}}\n- {{hash: xyz}}\n- {{hash: {}, expires: soon}}\n",
            hash("1"),
            hash("2"),
            hash("3")
        );
        let table = table(&[secret("list", &[("keys", &yaml)], &[])]);
        assert_eq!(
            (consumer(&table, "1").as_deref(), consumer(&table, "2").as_deref()),
            (Some("one"), Some("list"))
        );
        assert_eq!(consumer(&table, "3"), None, "an expiry that cannot be read is none that is far away");
        let one = table.find(&fingerprint(b"1")).expect("there");
        assert_eq!(one.expires, Some(1_798_761_600));
        assert_eq!(
            Value::Object((*one.identity.claims).clone()),
            serde_json::json!({"tier": "gold", "n": 1})
        );
        assert_eq!(table.notes.len(), 2, "{:?}", table.notes);
    }

    #[test]
    fn a_key_of_two_consumers_is_valid_for_none_of_any_number() {
        let with = |name: &str, consumer: &str| secret(name, &[("key", STRONG)], &[("consumer", consumer)]);
        let same = table(&[with("a", "acme"), with("b", "acme")]);
        assert_eq!(consumer(&same, STRONG).as_deref(), Some("acme"));
        for others in [vec!["other"], vec!["other", "third"], vec!["acme", "other"]] {
            let mut secrets = vec![with("a", "acme")];
            secrets.extend(others.iter().enumerate().map(|(place, one)| with(&format!("b{place}"), one)));
            let table = table(&secrets);
            assert_eq!(consumer(&table, STRONG), None, "{others:?}");
            assert!(
                table.notes[0].contains("Secret shop/a") && table.notes[0].contains("Secret shop/b"),
                "{:?}",
                table.notes
            );
        }
    }

    #[test]
    fn what_is_wrong_is_said_without_the_key() {
        for (data, part) in [
            (vec![("token", STRONG)], "none of key"),
            (vec![("key", " ")], "empty"),
            (vec![("key", "4711471147")], "128 bits"),
            (vec![("key", "4444444444444444444444444444444444444444444444")], "128 bits"),
            (vec![("keyHash", "4711")], "SHA-256"),
            (vec![("keys", "4711")], "YAML list"),
            (vec![("keys", "[{hash: 4711}]")], "SHA-256"),
            (vec![("keys", "[{hash: a, 4711: b}]")], "YAML list"),
            (vec![("key", "\n")], "empty"),
            (vec![("keyHash", &*hash(""))], "empty key"),
            (vec![("keyHash", &*hash("").to_uppercase())], "empty key"),
            (vec![("keys", &*format!("[{{hash: {}}}]", hash("")))], "keys[0] the hash of an empty key"),
        ] {
            let table = table(&[secret("s", &data, &[])]);
            assert_eq!(table.notes.len(), 1, "{data:?}");
            let said = format!("{:?} {table:?}", table.notes);
            assert!(
                said.contains(part) && said.contains("Secret shop/s") && !said.contains("4711"),
                "{said}"
            );
        }
        let unreadable = table(&[secret("s", &[("key", STRONG)], &[("expires", "tomorrow")])]);
        assert!(unreadable.is_empty() && unreadable.notes[0].contains("RFC 3339"));
    }

    #[test]
    fn keys_that_generators_make_are_strong_enough() {
        for key in [
            STRONG,
            "Zm9vYmFyYmF6cXV4MTIzNA",
            "550e8400-e29b-41d4-a716-446655440000",
            "sk_live_4eC39HqLyjWDarjtT1zdp7dc",
        ] {
            assert!(bits(key.as_bytes()) >= ENOUGH_BITS, "{key}: {}", bits(key.as_bytes()));
        }
    }

    #[test]
    fn what_did_not_change_is_not_read_again() {
        let (one, two) = (
            secret("a", &[("key", STRONG)], &[]),
            secret("b", &[("key", "0123456789abcdef0123456789abcdef")], &[]),
        );
        let first = table(std::slice::from_ref(&one));
        let second = KeyTable::new(&"partners".into(), &[one, two], Some(&first));
        assert!(Arc::ptr_eq(&first.secrets[0], &second.secrets[0]));
        assert_eq!(second.count(), 2);
    }

    /// Keys that Secrets take from each other, come and go: what is made of a table is what is made of nothing.
    #[test]
    fn a_table_made_of_the_one_before_is_the_one_made_of_nothing() {
        let clear = |number: usize| format!("{number:032x}");
        let secret_of = |name: usize, key: usize| {
            secret(
                &format!("s{name:02}"),
                &[("key", &clear(key))],
                &[("consumer", &format!("c{}", name % 3))],
            )
        };
        let mut world: std::collections::BTreeMap<usize, Arc<SecretData>> = Default::default();
        let (mut before, mut random) = (table(&[]), 1_u32);
        for step in 0..400 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let [_, a, b, c] = random.to_le_bytes().map(usize::from);
            if c % 3 == 0 {
                world.remove(&(a % 12));
            } else {
                world.insert(a % 12, secret_of(a % 12, b % 9));
            }
            let secrets: Vec<_> = world.values().cloned().collect();
            let (made, anew) = (KeyTable::new(&"partners".into(), &secrets, Some(&before)), table(&secrets));
            assert!(made == anew, "step {step}");
            assert_eq!(made.notes, anew.notes, "step {step}");
            before = made;
        }
    }
}
