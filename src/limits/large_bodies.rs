//! Limits large bodies to one per person at a time. Checking and storing a large body takes long: a
//! few of them at once would delay the calls of other people.

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::too_many::{Limit, TooMany};
use crate::domain::approver::Caller;
use crate::domain::ids::{TenantId, UserId};

/// A body of more bytes is large.
pub const LARGE_BODY_BYTES: usize = 64 * 1024;
/// Large bodies of one person that may wait for their turn.
const MAX_WAITING: usize = 8;
/// Longest time that a large body waits for the earlier ones of the same person. After it is
/// received, it waits as long again for the bodies of all people.
const TURN_TIMEOUT: Duration = Duration::from_secs(5);

/// Gives large bodies their turns. One person's bodies are read and handled one after the other. Of
/// all callers' bodies, fewer are handled at once than there are HTTP workers. Cheap to clone;
/// clones share the state.
#[derive(Clone, Debug)]
pub struct LargeBodies(Arc<Queues>);

#[derive(Debug)]
struct Queues {
    /// The queues of the people who send a large body or wait to send one. An empty queue is
    /// removed.
    people: Mutex<HashMap<Person, Queue>>,
    /// One permit for each received body that may be handled at the same time.
    handled: Arc<Semaphore>,
}

type Person = (TenantId, UserId);

#[derive(Debug)]
struct Queue {
    /// One permit for the body whose turn it is, and one for each body that may wait.
    places: Arc<Semaphore>,
    /// The permit of the body whose turn it is.
    turn: Arc<Semaphore>,
}

/// The turn of a large body, until it is dropped.
#[derive(Debug)]
pub struct LargeBodyTurn {
    _turn: OwnedSemaphorePermit,
    _handled: Option<OwnedSemaphorePermit>,
    // Fields are dropped in order. The place comes last, because dropping it may remove the queue.
    place: Place,
}

/// A place in a person's queue, until it is dropped.
#[derive(Debug)]
struct Place {
    queues: Arc<Queues>,
    person: Person,
    permit: Option<OwnedSemaphorePermit>,
}

impl Default for LargeBodies {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let handled = Arc::new(Semaphore::new((threads - 1).max(1)));
        Self(Arc::new(Queues { people: Mutex::default(), handled }))
    }
}

impl LargeBodies {
    /// Waits until this person's large bodies before this one have been handled.
    ///
    /// # Errors
    /// [`TooMany`] when `MAX_WAITING` bodies of this person wait already, or this body has waited
    /// for `TURN_TIMEOUT`.
    pub async fn wait(&self, caller: &Caller) -> Result<LargeBodyTurn, TooMany> {
        let (place, turn) = self.0.take_place(caller)?;
        match timeout(TURN_TIMEOUT, turn.acquire_owned()).await {
            Ok(Ok(turn)) => Ok(LargeBodyTurn { _turn: turn, _handled: None, place }),
            _elapsed_or_closed => Err(too_many(Limit::LargeBodiesOfPerson(MAX_WAITING))),
        }
    }
}

impl LargeBodyTurn {
    /// Waits until this body, which has been received, may be handled. The limit counts only
    /// received bodies, so that a client that sends slowly delays no other person.
    ///
    /// # Errors
    /// [`TooMany`] when this body has waited for `TURN_TIMEOUT`.
    pub async fn received(self) -> Result<Self, TooMany> {
        let handled = Arc::clone(&self.place.queues.handled);
        match timeout(TURN_TIMEOUT, handled.acquire_owned()).await {
            Ok(Ok(handled)) => Ok(Self { _handled: Some(handled), ..self }),
            _elapsed_or_closed => Err(too_many(Limit::LargeBodies)),
        }
    }
}

impl Queues {
    fn take_place(self: &Arc<Self>, caller: &Caller) -> Result<(Place, Arc<Semaphore>), TooMany> {
        let person = (caller.tenant.clone(), caller.user.clone());
        let mut people = self.people.lock().unwrap_or_else(PoisonError::into_inner);
        let queue = people.entry(person.clone()).or_insert_with(|| Queue {
            places: Arc::new(Semaphore::new(1 + MAX_WAITING)),
            turn: Arc::new(Semaphore::new(1)),
        });
        let permit = Arc::clone(&queue.places).try_acquire_owned();
        let permit = permit.map_err(|_full| too_many(Limit::LargeBodiesOfPerson(MAX_WAITING)))?;
        let place = Place { queues: Arc::clone(self), person, permit: Some(permit) };
        Ok((place, Arc::clone(&queue.turn)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut people = self.queues.people.lock().unwrap_or_else(PoisonError::into_inner);
        // The permit is returned while the map is locked, so that no caller takes a place in a
        // queue that is about to be removed.
        self.permit = None;
        let is_empty = |queue: &Queue| queue.places.available_permits() > MAX_WAITING;
        if people.get(&self.person).is_some_and(is_empty) {
            people.remove(&self.person);
        }
    }
}

fn too_many(limit: Limit) -> TooMany {
    TooMany { limit, retry_after_seconds: 1 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that is surprised should fail loudly")]

    use futures_util::FutureExt as _;

    use super::*;
    use crate::domain::approver::{Role, Via};

    fn person(user: &str) -> Caller {
        Caller {
            user: UserId::parse(user).unwrap(),
            tenant: TenantId::parse("tenant1").unwrap(),
            role: Role::User,
            memberships: std::sync::Arc::default(),
            token_id: None,
            via: Via::default(),
        }
    }

    #[tokio::test]
    async fn large_bodies_of_one_person_take_turns() {
        let bodies = LargeBodies::default();
        let (alice, bob) = (person("alice"), person("bob"));
        let first = bodies.wait(&alice).await.unwrap();
        let mut waiting: Vec<_> = (0..MAX_WAITING).map(|_| Box::pin(bodies.wait(&alice))).collect();
        for turn in &mut waiting {
            assert!(turn.now_or_never().is_none());
        }
        let refused = bodies.wait(&alice).await.unwrap_err();
        assert_eq!(refused.limit, Limit::LargeBodiesOfPerson(MAX_WAITING));
        drop(bodies.wait(&bob).await.unwrap());
        drop(first);
        for turn in waiting {
            drop(turn.await.unwrap());
        }
        assert!(bodies.0.people.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_queue_is_there_as_long_as_somebody_is_in_it() {
        let bodies = LargeBodies::default();
        let alice = person("alice");
        let first = bodies.wait(&alice).await.unwrap();
        let mut gone = Box::pin(bodies.wait(&alice));
        assert!((&mut gone).now_or_never().is_none());
        drop(gone);
        assert_eq!(bodies.0.people.lock().unwrap().len(), 1);
        let mut second = Box::pin(bodies.wait(&alice));
        assert!((&mut second).now_or_never().is_none());
        drop(first);
        drop(second.await.unwrap());
        assert!(bodies.0.people.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn who_sends_slowly_keeps_no_other_person_waiting() {
        let bodies = LargeBodies::default();
        let slow = bodies.wait(&person("alice")).await.unwrap();
        let most = bodies.0.handled.available_permits();
        let mut handled = Vec::new();
        for number in 0..most {
            let turn = bodies.wait(&person(&format!("bob{number}"))).await.unwrap();
            handled.push(turn.received().await.unwrap());
        }
        let mut slow = Box::pin(slow.received());
        assert!((&mut slow).now_or_never().is_none());
        handled.pop();
        slow.await.unwrap();
    }
}
