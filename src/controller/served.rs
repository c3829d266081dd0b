//! Who serves what: the words of `POST /peer/served`, a replica's answer, and the leader's verdict. No sockets here.
//!
//! A replica that starts is not waited for: it might never come up. It answers that it is starting, remembers what it was
//! asked for, and becomes ready only once it serves that. So whatever became `Programmed` without it, it has when the first
//! request comes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;

use super::status::{Verdict, cut};
use crate::compile::Published;

/// Objects in one question.
pub const MOST_ASKED: usize = 1_000;
/// So long a replica waits until it serves what it is asked for.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// So long after its first route map a starting replica waits for what it was asked for. Longer would be for objects that
/// are gone or were changed meanwhile.
const OWED_FOR: Duration = Duration::from_secs(5);
/// A starting replica remembers so many objects; of further ones it answers as if it were not starting.
const MOST_OWED: usize = 100_000;
/// Replicas that a message names; the others are counted.
const MOST_NAMED: usize = 3;

/// An object at a generation, and the fingerprint of what it resolves to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked(pub Arc<str>, pub i64, pub u64);

/// Who answers, and what of the question it does not serve.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    pub replica: String,
    pub lacks: Vec<Lacks>,
    /// It is not ready, and will not be before it serves what it lacks here.
    #[serde(default)]
    pub starting: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Lacks {
    pub uid: Arc<str>,
    /// What it serves of the object; none: nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<i64>,
}

/// What this process serves.
#[derive(Clone, Debug)]
pub struct Served {
    replica: Arc<str>,
    published: watch::Receiver<Option<Arc<Published>>>,
    index: Arc<Mutex<Index>>,
    /// What was asked for since the start: uid → generation and fingerprint. None: it was ready once.
    owed: Arc<Mutex<Option<Objects>>>,
}

/// By uid: generation and fingerprint.
type Objects = HashMap<Arc<str>, (i64, u64)>;

/// Those of one publication.
#[derive(Debug, Default)]
struct Index {
    sequence: u64,
    objects: Arc<Objects>,
}

impl Served {
    /// Of a replica that starts.
    pub fn new(replica: &str, published: watch::Receiver<Option<Arc<Published>>>) -> Self {
        let owed = Arc::new(Mutex::new(Some(HashMap::new())));
        Self { replica: replica.into(), published, index: Arc::default(), owed }
    }

    /// Until this replica may become ready: its first map is installed and holds what it was asked for meanwhile.
    pub async fn ready(&self) {
        let mut published = self.published.clone();
        // An error: the process ends.
        if published.wait_for(Option::is_some).await.is_err() {
            return;
        }
        let deadline = Instant::now() + OWED_FOR;
        while !self.pay(&self.objects(&mut published)) {
            if !matches!(tokio::time::timeout_at(deadline, published.changed()).await, Ok(Ok(()))) {
                let owed = lock(&self.owed).take().map_or(0, |owed| owed.len());
                tracing::info!(
                    owed,
                    "ready without objects that the other replicas serve: gone or changed meanwhile"
                );
                return;
            }
        }
    }

    /// Whether nothing is owed any more; from then on nothing will be.
    fn pay(&self, objects: &Objects) -> bool {
        let mut guard = lock(&self.owed);
        let Some(owed) = guard.as_mut() else { return true };
        // A later generation is better than the one that was asked for.
        owed.retain(|uid, owed| objects.get(uid).is_none_or(|served| served.0 <= owed.0 && served != owed));
        let paid = owed.is_empty();
        if paid {
            *guard = None;
        }
        paid
    }

    /// Whether it will serve these before it is ready.
    fn owe(&self, asked: &[Asked]) -> bool {
        let mut guard = lock(&self.owed);
        let Some(owed) = guard.as_mut() else { return false };
        if owed.len() + asked.len() > MOST_OWED {
            return false;
        }
        owed.extend(
            asked.iter().map(|Asked(uid, generation, resolved)| (uid.clone(), (*generation, *resolved))),
        );
        true
    }

    /// Answers as soon as the installed map holds all that is asked for, at the latest after [`PATIENCE`]; at once while
    /// it starts.
    pub async fn answer(&self, asked: &[Asked]) -> Answer {
        let starting = self.owe(asked);
        let deadline = Instant::now() + PATIENCE;
        let mut published = self.published.clone();
        loop {
            let objects = self.objects(&mut published);
            let lacks: Vec<Lacks> = asked.iter().filter_map(|asked| lacks(&objects, asked)).collect();
            let again = !lacks.is_empty()
                && !starting
                && matches!(tokio::time::timeout_at(deadline, published.changed()).await, Ok(Ok(())));
            if !again {
                return Answer { replica: self.replica.to_string(), lacks, starting };
            }
        }
    }

    fn objects(&self, published: &mut watch::Receiver<Option<Arc<Published>>>) -> Arc<Objects> {
        let Some(newest) = published.borrow_and_update().clone() else { return Arc::default() };
        let mut index = lock(&self.index);
        if index.sequence != newest.sequence {
            let reports = newest.compiled.reports.iter();
            let objects = reports
                .map(|report| (Arc::clone(&report.object.uid), (report.object.generation, report.resolved)));
            *index = Index { sequence: newest.sequence, objects: Arc::new(objects.collect()) };
        }
        Arc::clone(&index.objects)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lacks(objects: &Objects, Asked(uid, generation, resolved): &Asked) -> Option<Lacks> {
    match objects.get(uid) {
        Some(served) if *served == (*generation, *resolved) => None,
        served => Some(Lacks { uid: Arc::clone(uid), generation: served.map(|served| served.0) }),
    }
}

/// How asking one replica ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The Pod, or the address where the slice names none.
    pub replica: String,
    /// None: no answer in time. Only replicas that should have answered are in here.
    pub lacks: Option<Vec<Lacks>>,
}

/// All yes → served; else who does not serve it, by name.
pub fn verdict(Asked(uid, generation, _): &Asked, heard: &[Heard]) -> Verdict {
    let missing: Vec<String> = heard
        .iter()
        .filter_map(|heard| {
            let replica = cut(&heard.replica, 253);
            let Some(lacks) = &heard.lacks else { return Some(format!("{replica} does not answer")) };
            let lack = lacks.iter().find(|lack| lack.uid == *uid)?;
            Some(match lack.generation {
                Some(other) if other == *generation => {
                    format!("{replica} serves generation {generation} with other Secrets or backends")
                }
                Some(other) => format!("{replica} serves generation {other}"),
                None => format!("{replica} does not serve it yet"),
            })
        })
        .collect();
    if missing.is_empty() {
        return Verdict::Served;
    }
    let mut message = format!("{} of {}", heard.len() - missing.len(), heard.len());
    for who in missing.iter().take(MOST_NAMED) {
        message.push_str("; ");
        message.push_str(who);
    }
    if missing.len() > MOST_NAMED {
        message.push_str(&format!("; and {} more", missing.len() - MOST_NAMED));
    }
    Verdict::Pending(message)
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::compile::{Compiled, ObjectRef, Report};
    use crate::snapshot::Kind;
    use crate::values::ObjectName;

    pub fn published(sequence: u64, objects: &[(&str, i64, u64)]) -> Option<Arc<Published>> {
        let reports = objects.iter().map(|(uid, generation, resolved)| {
            let object = ObjectRef {
                kind: Kind::GatewayRoute,
                name: ObjectName::new("shop", *uid),
                uid: (*uid).into(),
                generation: *generation,
            };
            Arc::new(Report {
                object,
                origin: None,
                problems: Vec::new(),
                conditions: Vec::new(),
                rules: Vec::new(),
                resolved: *resolved,
            })
        });
        let compiled = Compiled { map: Arc::default(), reports: reports.collect() };
        Some(Arc::new(Published { sequence, compiled, world: Arc::default() }))
    }

    fn asked(uid: &str, generation: i64, resolved: u64) -> Asked {
        Asked(uid.into(), generation, resolved)
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_that_serves_it_answers_at_once() {
        let (_sender, receiver) = watch::channel(published(1, &[("a", 2, 7)]));
        let start = Instant::now();
        let served = Served::new("one", receiver);
        served.ready().await;
        let answer = served.answer(&[asked("a", 2, 7)]).await;
        assert_eq!(answer, Answer { replica: "one".into(), lacks: Vec::new(), starting: false });
        assert_eq!(start.elapsed(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_lags_answers_when_it_has_caught_up() {
        let (sender, receiver) = watch::channel(published(0, &[]));
        let served = Served::new("one", receiver);
        served.ready().await;
        let start = Instant::now();
        let lagging = tokio::spawn(async move { served.answer(&[asked("a", 2, 7)]).await });
        tokio::time::sleep(Duration::from_millis(300)).await;
        sender.send_replace(published(1, &[("a", 1, 7)]));
        tokio::time::sleep(Duration::from_millis(300)).await;
        sender.send_replace(published(2, &[("a", 2, 7)]));
        assert_eq!(lagging.await.unwrap().lacks, []);
        assert_eq!(start.elapsed(), Duration::from_millis(600));
    }

    #[tokio::test(start_paused = true)]
    async fn after_its_patience_it_says_what_it_lacks_and_what_it_has() {
        let (_sender, receiver) = watch::channel(published(1, &[("a", 1, 7), ("b", 3, 8)]));
        let start = Instant::now();
        let question = [asked("a", 2, 7), asked("b", 3, 9), asked("c", 1, 1)];
        let served = Served::new("one", receiver);
        served.ready().await;
        let answer = served.answer(&question).await;
        let lacks = |uid: &str, generation| Lacks { uid: uid.into(), generation };
        assert_eq!(answer.lacks, [lacks("a", Some(1)), lacks("b", Some(3)), lacks("c", None)]);
        assert_eq!(start.elapsed(), PATIENCE);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_starts_answers_at_once_and_is_ready_when_it_serves_what_it_was_asked_for() {
        let (sender, receiver) = watch::channel(None);
        let served = Served::new("one", receiver);
        let start = Instant::now();
        for generation in [1, 2] {
            let answer = served.answer(&[asked("a", generation, 7), asked("b", 1, 7)]).await;
            assert_eq!((answer.starting, answer.lacks.len()), (true, 2));
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        let waiting = served.clone();
        let mut ready = tokio::spawn(async move { waiting.ready().await });
        for (sequence, objects) in [(1, vec![("a", 1, 7)]), (2, vec![("a", 2, 7), ("b", 1, 8)])] {
            sender.send_replace(published(sequence, &objects));
            let early = tokio::time::timeout(Duration::from_millis(100), &mut ready).await;
            assert!(early.is_err(), "ready without what it owes: {objects:?}");
        }
        // Another generation of it is as good: whoever changed it will be asked about that one.
        sender.send_replace(published(3, &[("a", 2, 7), ("b", 2, 9)]));
        ready.await.unwrap();
        assert!(start.elapsed() < OWED_FOR);
        let late = served.answer(&[asked("c", 1, 1)]).await;
        assert_eq!(
            (late.starting, late.lacks.len()),
            (false, 1),
            "what is asked of a ready replica is waited for"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_gone_again_does_not_keep_it_from_getting_ready() {
        let (_sender, receiver) = watch::channel(published(1, &[]));
        let served = Served::new("one", receiver);
        served.answer(&[asked("gone", 1, 7)]).await;
        let start = Instant::now();
        served.ready().await;
        assert_eq!(start.elapsed(), OWED_FOR);
        assert!(!served.answer(&[]).await.starting);
    }

    #[test]
    fn all_yes_is_served_and_everybody_else_is_named() {
        let yes = |replica: &str| Heard { replica: replica.into(), lacks: Some(Vec::new()) };
        let no = |replica: &str, generation| Heard {
            replica: replica.into(),
            lacks: Some(vec![Lacks { uid: "a".into(), generation }]),
        };
        let silent = |replica: &str| Heard { replica: replica.into(), lacks: None };
        let a = asked("a", 7, 1);
        assert_eq!(verdict(&a, &[yes("x"), yes("y")]), Verdict::Served);
        assert_eq!(verdict(&asked("other", 1, 1), &[no("x", None)]), Verdict::Served);
        for (heard, message) in [
            (
                vec![yes("x"), yes("y"), no("portcullis-7d4", Some(6))],
                "2 of 3; portcullis-7d4 serves generation 6",
            ),
            (vec![yes("x"), silent("y")], "1 of 2; y does not answer"),
            (vec![no("x", None)], "0 of 1; x does not serve it yet"),
            (vec![no("x", Some(7))], "0 of 1; x serves generation 7 with other Secrets or backends"),
            (
                ["q", "r", "s", "t", "u"].map(silent).to_vec(),
                "0 of 5; q does not answer; r does not answer; s does not answer; and 2 more",
            ),
        ] {
            assert_eq!(verdict(&a, &heard), Verdict::Pending(message.into()));
        }
    }
}
