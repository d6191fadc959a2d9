//! Carries on every open incoming transfer, each in a task of its own, for as long as its record is open.

mod session;

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use lockbox_authz::AuthorizationId;
use lockbox_core::report::Role;
use tokio::sync::{Notify, Semaphore};
use tokio::task::{self, JoinSet};

use crate::backoff::Backoff;
use crate::node::{Node, lock};
use session::{PullError, Verdict};

/// Sessions at once. Each has a connection and a few chunks in memory.
const SESSIONS: usize = 16;

/// A session that lasted longer has got somewhere, and what ended it is no sign that the next one fails at once.
const LONG_SESSION: Duration = Duration::from_secs(30);

/// What the puller is to do, and what it has to tell.
#[derive(Default)]
pub(crate) struct Pulls {
    asked: Mutex<Asked>,
    wake: Notify,
    /// Why open transfers do not go on now, for people.
    troubles: Mutex<HashMap<AuthorizationId, String>>,
}

#[derive(Default)]
struct Asked {
    all: bool,
    these: HashSet<AuthorizationId>,
}

/// A transfer that has a task.
struct Pulling {
    task: task::Id,
    try_now: Arc<Notify>,
    /// Asked for since its task began: the task may have looked before there was something to do.
    asked_again: bool,
}

impl Pulls {
    /// Tries one transfer at once.
    pub(crate) fn ask_for(&self, id: AuthorizationId) {
        lock(&self.asked).these.insert(id);
        self.wake.notify_one();
    }

    /// Tries all open transfers at once.
    pub(crate) fn ask_for_all(&self) {
        lock(&self.asked).all = true;
        self.wake.notify_one();
    }

    /// Why an open transfer does not go on now.
    pub(crate) fn trouble(&self, id: AuthorizationId) -> Option<String> {
        lock(&self.troubles).get(&id).cloned()
    }

    pub(crate) fn clear(&self) {
        *lock(&self.asked) = Asked::default();
        lock(&self.troubles).clear();
    }
}

/// Runs until it is dropped, which ends every session.
pub(crate) async fn run(node: Arc<Node>) {
    let places = Arc::new(Semaphore::new(SESSIONS));
    let mut tasks: JoinSet<()> = JoinSet::new();
    let mut pulling: HashMap<AuthorizationId, Pulling> = HashMap::new();
    node.pulls.ask_for_all();
    loop {
        tokio::select! {
            () = node.pulls.wake.notified() => {
                for id in wanted(&node).await {
                    start(&node, &places, &mut tasks, &mut pulling, id);
                }
            }
            Some(ended) = tasks.join_next_with_id() => {
                let (task, failed) = match ended {
                    Ok((task, ())) => (task, false),
                    Err(error) => (error.id(), true),
                };
                let Some(id) = pulling.iter().find(|(_, pulling)| pulling.task == task).map(|(id, _)| *id) else {
                    continue;
                };
                lock(&node.pulls.troubles).remove(&id);
                // A task that panicked has not seen its transfer to the end.
                if pulling.remove(&id).is_some_and(|pulling| pulling.asked_again) || failed {
                    start(&node, &places, &mut tasks, &mut pulling, id);
                }
            }
        }
    }
}

async fn wanted(node: &Arc<Node>) -> HashSet<AuthorizationId> {
    let asked = std::mem::take(&mut *lock(&node.pulls.asked));
    let mut wanted = asked.these;
    if asked.all {
        match node.engine.read(|lockbox| lockbox.open_incoming()).await {
            Ok(Ok(open)) => wanted.extend(open.into_iter().map(|open| open.authorization_id)),
            Ok(Err(error)) => tracing::error!(%error, "the open transfers can't be read"),
            Err(_sealed) => {}
        }
    }
    wanted
}

fn start(
    node: &Arc<Node>,
    places: &Arc<Semaphore>,
    tasks: &mut JoinSet<()>,
    pulling: &mut HashMap<AuthorizationId, Pulling>,
    id: AuthorizationId,
) {
    if let Some(pulling) = pulling.get_mut(&id) {
        pulling.asked_again = true;
        pulling.try_now.notify_one();
        return;
    }
    let try_now = Arc::new(Notify::new());
    let task = tasks
        .spawn(pull(Arc::clone(node), Arc::clone(places), Arc::clone(&try_now), id))
        .id();
    let asked_again = false;
    pulling.insert(
        id,
        Pulling {
            task,
            try_now,
            asked_again,
        },
    );
}

/// Tries until the transfer's record is no longer open.
async fn pull(node: Arc<Node>, places: Arc<Semaphore>, try_now: Arc<Notify>, id: AuthorizationId) {
    let mut backoff = Backoff::default();
    loop {
        let place = places.acquire().await;
        let began = Instant::now();
        let outcome = session::run(&node, id).await;
        drop(place);
        if began.elapsed() > LONG_SESSION {
            backoff.reset();
        }
        let error = match outcome {
            Ok(()) => return,
            Err(error) => error,
        };
        match conclude(&node, id, &error).await {
            Ok(Verdict::End) => return,
            Ok(Verdict::Decline) => continue,
            Ok(Verdict::TryAgain) => {}
            Err(error) => tracing::error!(authorization = %id, error, "what became of a transfer can't be recorded"),
        }
        let pause = backoff.next();
        let pause_ms = pause.as_millis();
        let told = error.requester_text();
        let error = crate::chain(&error);
        tracing::warn!(target: "transfer", authorization = %id, role = "target", error, pause_ms, "it is tried again");
        lock(&node.pulls.troubles).insert(id, error);
        node.refusals.waits(id, Role::Target, told);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = try_now.notified() => {}
        }
    }
}

/// Records what follows from a session that ended before its transfer did.
async fn conclude(node: &Arc<Node>, id: AuthorizationId, error: &PullError) -> Result<Verdict, String> {
    let verdict = error.verdict();
    let because = error.to_string();
    match verdict {
        Verdict::TryAgain => {}
        Verdict::Decline => {
            tracing::warn!(target: "transfer", authorization = %id, step = "declined", role = "target", %error);
            let step = node
                .engine
                .step(move |lockbox, _, rng| lockbox.decline_incoming(id, &because, rng));
            step.await.map_err(|error| error.to_string())?;
        }
        Verdict::End => {
            tracing::warn!(target: "transfer", authorization = %id, step = "ended", role = "target", %error);
            let refused = matches!(error, PullError::Refused);
            let step = node.engine.step(move |lockbox, now_ms, rng| {
                // Refused is what never began: of a transfer that did, some keys are here.
                let status = lockbox.transfer_status(id)?;
                let never_began = status.is_none_or(|status| status.chunk_count == 0);
                lockbox.end_incoming(id, refused && never_began, &because, now_ms, rng)
            });
            step.await.map_err(|error| error.to_string())?;
        }
    }
    Ok(verdict)
}
