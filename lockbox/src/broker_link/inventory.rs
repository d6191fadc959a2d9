//! The inventory: what the broker is told of the keys, so that it can answer what a stolen one opens. SPEC section 13.6.
//!
//! Nothing here has to be remembered: on each connection everything is told once, as soon as a scan of the store has shown
//! that no key is missing, and after that what has changed.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use lockbox_authz::KeyId;
use lockbox_core::lifecycle::inventory::{InventoryRange, InventoryWatch};
use lockbox_core::lockbox::Lockbox;
use lockbox_rpc::api::node::ReportInventoryRequest;
use lockbox_rpc::api::node::inventory_service_client::InventoryServiceClient;
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::LinkError;
use crate::clock::now_ms;
use crate::engine::StepError;
use crate::node::Node;

/// Least time between two rounds.
const BETWEEN_ROUNDS: Duration = Duration::from_secs(1);

/// Between a round that was refused and the next one: at first, and at most after it was doubled.
const AFTER_REFUSAL: Duration = Duration::from_secs(5);
const AFTER_REFUSAL_AT_MOST: Duration = Duration::from_secs(600);

/// Rounds that tell everything may take this part of the time: with a million keys one takes seconds.
const FULL_SHARE: u32 = 50;

/// Changed keys that are told one by one. If there are more, telling everything costs less.
const MAX_CHANGED: usize = 4_096;

/// What one connection knows.
struct Teller<'a> {
    node: &'a Arc<Node>,
    client: InventoryServiceClient<Channel>,
    /// Notes what changes; `None` before the first round, and after the lockbox was sealed.
    watch: Option<Arc<InventoryWatch>>,
    /// When everything is to be told; `None` if it was.
    full_from: Option<Instant>,
    /// Before this a round that tells everything would take more than its share of the time.
    not_before: Instant,
    /// How the broker has first refused a range in this round for want of room: the room of a key, or of all of them.
    no_room: Option<Status>,
}

/// Runs for as long as the connection lasts. A broker that does not take inventories is left in peace.
pub(super) async fn run(node: &Arc<Node>, channel: Channel) -> Result<Infallible, LinkError> {
    let mut activity = node.engine.watch_activity();
    let mut teller = Teller {
        node,
        client: InventoryServiceClient::new(channel),
        watch: None,
        full_from: Some(Instant::now()),
        not_before: Instant::now(),
        no_room: None,
    };
    let mut after_refusal = AFTER_REFUSAL;
    loop {
        activity.borrow_and_update();
        let mut pause = BETWEEN_ROUNDS;
        match teller.round().await {
            Ok(()) => after_refusal = AFTER_REFUSAL,
            Err(LinkError::Status(status)) if status.code() == Code::Unimplemented => {
                tracing::info!("the broker takes no inventory");
                return std::future::pending().await;
            }
            // Refused by the broker; or this store can't be read, which must not keep transfers from going on.
            Err(error @ (LinkError::Status(_) | LinkError::Step(StepError::Refused(_)))) => {
                tracing::warn!(
                    error = crate::chain(&error),
                    "the inventory was not told; it is tried again"
                );
                teller.full_from = Some(teller.not_before.max(Instant::now() + after_refusal));
                // A broker that has no room has none for what changes meanwhile; all of it is told then.
                if let LinkError::Status(status) = &error
                    && status.code() == Code::ResourceExhausted
                {
                    pause = after_refusal;
                }
                after_refusal = AFTER_REFUSAL_AT_MOST.min(after_refusal * 2);
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(pause).await;
        tokio::select! {
            changed = activity.changed() => changed.map_err(|_| LinkError::Closed)?,
            () = teller.full_is_due() => {}
        }
    }
}

impl Teller<'_> {
    /// Tells what has changed; and everything if that is due, which covers what was too much to be told by itself.
    async fn round(&mut self) -> Result<(), LinkError> {
        self.no_room = None;
        if let Some(watch) = self.watch.clone() {
            let noted = Arc::clone(&watch);
            let changed = self.node.engine.read(move |lockbox| lockbox.changed_keys(&noted));
            match changed.await? {
                Some(changed) if changed.len() <= MAX_CHANGED => self.tell_changed(changed).await?,
                Some(_) => self.full_from = self.full_from.or(Some(self.not_before)),
                None => {
                    self.full_from = self.full_from.or(Some(self.not_before));
                    self.begin_watch().await?;
                }
            }
        }
        if self.full_from.is_some_and(|from| from <= Instant::now()) {
            self.tell_everything_known().await?;
        }
        self.no_room.take().map_or(Ok(()), |status| Err(status.into()))
    }

    async fn full_is_due(&self) {
        match self.full_from {
            Some(from) => tokio::time::sleep_until(from).await,
            None => std::future::pending().await,
        }
    }

    /// Everything, or nothing before a scan has shown that the keys that are not found are gone. Until then, and for as long as
    /// keys are missing, the broker keeps what it knew, and what changes is told key by key.
    async fn tell_everything_known(&mut self) -> Result<(), LinkError> {
        if self.node.engine.read(Lockbox::knows_every_key).await? {
            return self.tell_everything().await;
        }
        if self.watch.is_none() {
            self.begin_watch().await?;
        }
        self.full_from = Some(Instant::now() + BETWEEN_ROUNDS);
        Ok(())
    }

    async fn begin_watch(&mut self) -> Result<(), LinkError> {
        let watch = self.node.engine.read(Lockbox::watch_inventory);
        self.watch = Some(Arc::new(watch.await?));
        Ok(())
    }

    async fn tell_changed(&mut self, mut changed: BTreeSet<KeyId>) -> Result<(), LinkError> {
        let with_names = self.node.config().inventory_names;
        loop {
            // What a power cut could take back would be told again as it is then.
            let read = self.node.engine.read(move |lockbox| {
                let range = lockbox.inventory_report_of(&changed, with_names, now_ms());
                (changed, range)
            });
            let (asked, range) = read.await?;
            let Some(range) = range.map_err(StepError::Refused)? else {
                return Ok(());
            };
            self.tell(&range).await?;
            changed = match range.next {
                Some(next) => asked.into_iter().filter(|key_id| *key_id > next).collect(),
                None => return Ok(()),
            };
        }
    }

    /// Tells every range. What changes meanwhile is noted, and told after it.
    async fn tell_everything(&mut self) -> Result<(), LinkError> {
        let began = Instant::now();
        self.begin_watch().await?;
        let mut after = None;
        let mut damaged_count = 0;
        let with_names = self.node.config().inventory_names;
        loop {
            let range = self.node.engine.read(move |lockbox| {
                let range = || lockbox.inventory_report(after, with_names, now_ms());
                lockbox.knows_every_key().then(range).transpose()
            });
            let Some(range) = range.await?.map_err(StepError::Refused)? else {
                // The store was read anew meanwhile.
                return Ok(());
            };
            self.tell(&range).await?;
            damaged_count += range.damaged_count;
            after = range.next;
            if after.is_none() {
                break;
            }
        }
        if damaged_count > 0 {
            tracing::error!(
                damaged_count,
                "keys that can't be read are left out of the inventory: of them the broker knows what it was told before"
            );
        }
        self.not_before = Instant::now() + began.elapsed() * FULL_SHARE;
        self.full_from = None;
        Ok(())
    }

    /// A range that there is no room for is told again in a later round. The next ones may be taken: what the broker knows of them
    /// would else grow old.
    async fn tell(&mut self, range: &InventoryRange) -> Result<(), LinkError> {
        let Some(report) = &range.report else { return Ok(()) };
        let report = report.envelope().to_bytes();
        match self.client.report_inventory(ReportInventoryRequest { report }).await {
            Err(status) if status.code() == Code::ResourceExhausted => {
                self.no_room.get_or_insert(status);
                Ok(())
            }
            told => Ok(told.map(drop)?),
        }
    }
}
