//! One connection between a target and a source, as the lockboxes' drivers run it.

use std::collections::VecDeque;

use lockbox_core::transfer::source::{AwaitPresent, AwaitReceipt, AwaitResume, Next, SourceError};
use lockbox_core::transfer::target::{AwaitChunk, AwaitOffer, TargetError};
use lockbox_core::transfer::{Chunk, Offer, Present, Resume, Settlement};

use super::{Outcome, World};
use crate::digest::{self, Digest};

#[derive(Clone)]
pub(crate) enum ToSource {
    Present(Present),
    Resume(Resume),
    Receipt(Vec<u8>),
}

#[derive(Clone)]
pub(crate) enum ToTarget {
    Offer(Offer),
    Chunk(Chunk),
    Settlement(Settlement),
    Finished,
    /// The source ended the session, for good or for now.
    Closed {
        refused: bool,
    },
}

pub(crate) enum SourceEnd {
    Present(AwaitPresent),
    Resume(AwaitResume),
    Receipt(AwaitReceipt),
    /// A step waits to become durable.
    Busy,
    Closed,
}

pub(crate) enum TargetEnd {
    Offer(AwaitOffer),
    Chunk(AwaitChunk),
    Busy,
}

pub(crate) struct Session {
    pub(crate) authorization: usize,
    pub(crate) source_end: SourceEnd,
    pub(crate) target_end: TargetEnd,
    /// What each end has taken so far, and what its ledger said then.
    pub(crate) taken: [Digest; 2],
    pub(crate) to_source: VecDeque<ToSource>,
    pub(crate) to_target: VecDeque<ToTarget>,
    /// Whether a message was lost. A stream loses none, so its connection is gone, and somebody will notice.
    pub(crate) is_broken: bool,
}

impl World {
    pub(super) fn dial(&mut self, authorization: usize) {
        let issued = &self.issued[authorization];
        let (id, target) = (issued.statement.authorization_id, issued.target);
        self.sessions
            .retain(|_, session| session.authorization != authorization);
        match self.nodes[target].lockbox.begin_session(id) {
            Ok((present, state)) => {
                let session = Session {
                    authorization,
                    source_end: SourceEnd::Present(AwaitPresent::new(self.nodes[target].key())),
                    target_end: TargetEnd::Offer(state),
                    taken: [0; 2],
                    to_source: VecDeque::from([ToSource::Present(present)]),
                    to_target: VecDeque::new(),
                    is_broken: false,
                };
                self.sessions.insert(self.next_session, session);
                self.next_session += 1;
            }
            Err(TargetError::SourceNotAdmitted) => self.end_incoming(authorization, false),
            Err(_) => {}
        }
    }

    pub(super) fn deliver(&mut self, number: u64, to_source: bool) {
        let Some(mut session) = self.sessions.remove(&number) else {
            return;
        };
        let goes_on = if to_source {
            self.at_source(number, &mut session)
        } else {
            self.at_target(number, &mut session)
        };
        if goes_on {
            self.sessions.insert(number, session);
        }
    }

    pub(super) fn at_source(&mut self, number: u64, session: &mut Session) -> bool {
        if matches!(session.source_end, SourceEnd::Busy) {
            return true;
        }
        let Some(message) = session.to_source.pop_front() else {
            return true;
        };
        let node = self.issued[session.authorization].source;
        let presents = matches!(message, ToSource::Present(_));
        self.note(session, 1, node, digest::of_message(&message));
        let now_ms = self.time_at(node);
        let lockbox = &mut self.nodes[node].lockbox;
        let rng = &mut self.rng;
        let number = Some(number);
        let outcome = match (std::mem::replace(&mut session.source_end, SourceEnd::Busy), message) {
            (SourceEnd::Present(state), ToSource::Present(present)) => state
                .present(lockbox, &present, now_ms, rng)
                .map(|step| self.nodes[node].submit(step, number, |(offer, next)| Outcome::Offered(offer, next))),
            (SourceEnd::Resume(state), ToSource::Resume(resume)) => state
                .resume(lockbox, &resume, now_ms, rng)
                .map(|step| self.nodes[node].submit(step, number, |(said, next)| Outcome::Settled(said, next))),
            (SourceEnd::Receipt(state), ToSource::Receipt(receipt)) => {
                state.receipt(lockbox, &receipt, now_ms, rng).map(|step| {
                    self.nodes[node].submit(step, number, |(said, next)| Outcome::Settled(said, next));
                })
            }
            // What is not due ends the session, as a stream with a broken message does.
            _ => {
                close(session, false);
                return true;
            }
        };
        match outcome {
            Ok(()) if presents => self.check_stranger(session.authorization, "a session was opened for"),
            Ok(()) => {}
            Err(error) => close(session, error.is_final()),
        }
        true
    }

    pub(super) fn at_target(&mut self, number: u64, session: &mut Session) -> bool {
        if matches!(session.target_end, TargetEnd::Busy) {
            return true;
        }
        let Some(message) = session.to_target.pop_front() else {
            return true;
        };
        let authorization = session.authorization;
        let node = self.issued[authorization].target;
        self.note(session, 0, node, digest::of_answer(&message));
        let now_ms = self.time_at(node);
        let lockbox = &mut self.nodes[node].lockbox;
        let rng = &mut self.rng;
        let number = Some(number);
        let outcome = match (std::mem::replace(&mut session.target_end, TargetEnd::Busy), message) {
            (TargetEnd::Offer(state), ToTarget::Offer(offer)) => state
                .offer(lockbox, &offer, rng)
                .map(|step| self.nodes[node].submit(step, number, |(said, next)| Outcome::Verified(said, next))),
            (TargetEnd::Chunk(state), ToTarget::Chunk(chunk)) => state
                .chunk(lockbox, &chunk, now_ms, rng)
                .map(|step| self.nodes[node].submit(step, number, |(said, next)| Outcome::Stored(said, next))),
            (TargetEnd::Chunk(state), ToTarget::Settlement(settlement)) => state
                .settled(lockbox, &settlement, rng)
                .map(|step| self.nodes[node].submit(step, number, Outcome::Recorded)),
            (TargetEnd::Chunk(state), ToTarget::Finished) => {
                let finished = state.finished(lockbox, now_ms, rng);
                return match finished {
                    Ok(step) => {
                        self.nodes[node].submit(step, None, |()| Outcome::Nothing);
                        false
                    }
                    Err(_) => false,
                };
            }
            (_, ToTarget::Closed { refused }) => {
                if refused {
                    self.end_incoming(authorization, true);
                }
                return false;
            }
            _ => return false,
        };
        match outcome {
            Ok(()) => true,
            Err(error) => {
                self.target_failed(authorization, &error);
                false
            }
        }
    }

    /// What the target's driver does about an error: decline, end, or come again.
    pub(super) fn target_failed(&mut self, authorization: usize, error: &TargetError) {
        let issued = &self.issued[authorization];
        let (id, node) = (issued.statement.authorization_id, issued.target);
        if error.declines() {
            let because = error.to_string();
            let declined = self.nodes[node].lockbox.decline_incoming(id, &because, &mut self.rng);
            if let Ok(step) = declined {
                self.nodes[node].submit(step, None, |()| Outcome::Nothing);
            }
        } else if error.is_final() {
            self.end_incoming(authorization, false);
        }
    }

    pub(super) fn end_incoming(&mut self, authorization: usize, refused: bool) {
        let issued = &self.issued[authorization];
        let (id, node) = (issued.statement.authorization_id, issued.target);
        let now_ms = self.time_at(node);
        let ended = self.nodes[node]
            .lockbox
            .end_incoming(id, refused, "it ended", now_ms, &mut self.rng);
        if let Ok(step) = ended {
            self.nodes[node].submit(step, None, |()| Outcome::Nothing);
        }
    }

    /// A step of a session is durable: what it says is sent, and its end goes on.
    pub(super) fn resolve(&mut self, number: u64, outcome: Outcome) {
        let Some(mut session) = self.sessions.remove(&number) else {
            return;
        };
        self.check_promise(session.authorization, &outcome);
        match outcome {
            Outcome::Nothing => {}
            Outcome::Offered(offer, next) => {
                session.to_target.push_back(ToTarget::Offer(offer));
                session.source_end = SourceEnd::Resume(next);
            }
            Outcome::Settled(said, next) => {
                session.to_target.extend(said.into_iter().map(ToTarget::Settlement));
                self.go_on(&mut session, next);
            }
            Outcome::Verified(said, next) => {
                session.to_source.extend(said.into_iter().map(ToSource::Resume));
                session.target_end = TargetEnd::Chunk(next);
            }
            Outcome::Stored(receipt, next) => {
                let target = self.issued[session.authorization].target;
                self.receipts.push((target, receipt.clone()));
                session.to_source.push_back(ToSource::Receipt(receipt));
                session.target_end = TargetEnd::Chunk(next);
            }
            Outcome::Recorded(next) => session.target_end = TargetEnd::Chunk(next),
        }
        self.sessions.insert(number, session);
    }

    pub(super) fn go_on(&mut self, session: &mut Session, next: Next) {
        match next {
            Next::Resume(state) => session.source_end = SourceEnd::Resume(state),
            Next::Receipt(state) => self.send_window(session, state),
            Next::Finished => {
                session.to_target.push_back(ToTarget::Finished);
                session.source_end = SourceEnd::Closed;
            }
            Next::Ended => close(session, true),
        }
    }

    pub(super) fn send_window(&mut self, session: &mut Session, mut state: AwaitReceipt) {
        let node = self.issued[session.authorization].source;
        loop {
            match state.next_chunk(&self.nodes[node].lockbox) {
                Ok(Some(chunk)) => {
                    self.check_chunk(session.authorization, chunk.chunk);
                    session.to_target.push_back(ToTarget::Chunk(chunk));
                }
                Ok(None) if state.awaits_receipts() => {
                    session.source_end = SourceEnd::Receipt(state);
                    return;
                }
                // Nothing is on its way and nothing may be sent: the target has to come again.
                Ok(None) => return close(session, false),
                Err(error) => return close(session, SourceError::is_final(&error)),
            }
        }
    }
}

impl Session {
    /// How many messages are on their way, to the target and to the source.
    pub(crate) fn queued(&self) -> [usize; 2] {
        [self.to_target.len(), self.to_source.len()]
    }

    /// The same, for ends that would take one now.
    pub(crate) fn waiting(&self) -> [usize; 2] {
        let takes = [
            !matches!(self.target_end, TargetEnd::Busy),
            !matches!(self.source_end, SourceEnd::Busy),
        ];
        let queued = self.queued();
        [0, 1].map(|end| if takes[end] { queued[end] } else { 0 })
    }
}

fn close(session: &mut Session, refused: bool) {
    session.source_end = SourceEnd::Closed;
    session.to_source.clear();
    session.to_target.push_back(ToTarget::Closed { refused });
}
