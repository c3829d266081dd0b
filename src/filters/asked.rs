//! What a filter asks a server while requests wait: it says what to ask and reads what is answered; `background/` owns
//! the connections, the deadline and that equal questions are asked once.

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use http::HeaderValue;
use tokio::sync::{mpsc, oneshot};

use super::fetched::{Fetched, Place};
use crate::telemetry::HitCount;
use crate::values::Redacted;

/// So many questions wait to be looked at; one more is not taken.
const MOST_WAITING: usize = 1024;

/// Whom to ask, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct AskPlan {
    pub place: Place,
    pub authorization: Redacted<HeaderValue>,
    /// From the question to the end of its answer.
    pub patience: Duration,
}

/// What a question is about: questions about the same are the same.
pub type About = [u8; 32];

/// What a filter made of an answer; who asked knows its type.
pub type Answer = Arc<dyn Any + Send + Sync>;

/// A question on its way, as a form to be posted.
pub struct Question {
    pub about: About,
    pub form: Redacted<String>,
    reply: Reply,
}

/// Takes the answer.
pub type Reply = oneshot::Sender<Result<Answer, NoAnswer>>;

/// Why no answer came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// The server cannot be reached, or says nothing that helps.
    Failed,
    /// As much is asked as may be at once. It says nothing of the server.
    TooMany,
}

/// Reads answers.
pub trait Answers: Send + Sync {
    /// What is known already. It is asked before a question goes out: the answer to an equal one may just have come.
    fn known(&self, about: &About) -> Option<Answer>;

    /// Reads the body of a good answer. Also gives a word for the metric.
    ///
    /// # Errors
    /// One sentence for the log.
    fn read(&self, about: &About, body: &[u8]) -> Result<(Answer, &'static str), String>;
}

/// For who asks the server: what is to be asked, and who reads it. It ends with the last [`Asked`].
pub struct Inquiry {
    pub plan: AskPlan,
    pub answers: Arc<dyn Answers>,
    pub questions: mpsc::Receiver<Question>,
    /// Counts what was known without a question.
    pub hits: Arc<HitCount>,
}

/// What is done for filters beside the requests.
#[derive(Debug)]
pub enum Wanted {
    Fetched(Weak<Fetched>),
    Asked(Inquiry),
}

/// For filters: the way to ask.
#[derive(Debug)]
pub struct Asked(mpsc::Sender<Question>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotAsked {
    /// Too many questions are waiting.
    TooMany,
    /// Nobody asks any more.
    Over,
}

impl Asked {
    /// Both ends of the way.
    pub fn new(plan: AskPlan, answers: Arc<dyn Answers>, hits: Arc<HitCount>) -> (Self, Inquiry) {
        let (sender, questions) = mpsc::channel(MOST_WAITING);
        (Self(sender), Inquiry { plan, answers, questions, hits })
    }

    /// The receiver gets nothing where nobody asks any more.
    ///
    /// # Errors
    /// Why it is not asked.
    pub fn ask(
        &self,
        about: About,
        form: Redacted<String>,
    ) -> Result<oneshot::Receiver<Result<Answer, NoAnswer>>, NotAsked> {
        let (reply, answer) = oneshot::channel();
        match self.0.try_send(Question { about, form, reply }) {
            Ok(()) => Ok(answer),
            Err(mpsc::error::TrySendError::Full(_)) => Err(NotAsked::TooMany),
            Err(mpsc::error::TrySendError::Closed(_)) => Err(NotAsked::Over),
        }
    }
}

impl Question {
    /// What to ask, and whom to tell.
    pub fn split(self) -> (Redacted<String>, Reply) {
        (self.form, self.reply)
    }
}

impl fmt::Debug for Inquiry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inquiry").field("plan", &self.plan).finish_non_exhaustive()
    }
}
