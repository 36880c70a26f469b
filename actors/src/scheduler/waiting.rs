//! Requests that wait for a pipeline.
//!
//! Invariants: *bounded* (no more new requests wait than the deployment allows), *newest-only* (of a robot's waiting
//! observations only the newest is kept), *earliest-first* (who is due first leaves first).

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::clock::Moment;
use crate::ticket::RequestId;

/// When a request is due, then its age.
type Key = (Moment, RequestId);

/// The waiting room.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    order: BTreeMap<Key, Option<Arc<str>>>,
    robots: BTreeMap<Arc<str>, Key>,
}

/// What [`Waiting::enter`] found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entered {
    /// It waits; nobody had to leave.
    Alone,
    /// It waits; this older observation of the same robot has left.
    Replaced(RequestId),
    /// A newer observation of the same robot waits already.
    Outdated,
}

impl Waiting {
    pub(super) fn len(&self) -> usize {
        self.order.len()
    }

    /// How many leave before a request with this deadline that comes now.
    pub(super) fn ahead(&self, due: Moment) -> usize {
        self.order.range(..=(due, RequestId(u64::MAX))).count()
    }

    /// Whether an older observation of the robot waits, whose place a new one would take.
    pub(super) fn has(&self, robot: &str) -> bool {
        self.robots.contains_key(robot)
    }

    pub(super) fn enter(&mut self, id: RequestId, due: Moment, robot: Option<Arc<str>>) -> Entered {
        let key = (due, id);
        let mut entered = Entered::Alone;
        if let Some(robot) = &robot {
            match self.robots.get(robot).copied() {
                Some((_, other)) if other > id => return Entered::Outdated,
                Some(older) => {
                    self.order.remove(&older);
                    entered = Entered::Replaced(older.1);
                }
                None => {}
            }
            self.robots.insert(Arc::clone(robot), key);
        }
        self.order.insert(key, robot);
        entered
    }

    /// Who waits, in the order in which they leave.
    pub(super) fn in_order(&self) -> impl Iterator<Item = RequestId> {
        self.order.keys().map(|(_, id)| *id)
    }

    pub(super) fn leave(&mut self, id: RequestId, due: Moment) -> bool {
        let key = (due, id);
        let Some(robot) = self.order.remove(&key) else { return false };
        if let Some(robot) = robot {
            self.robots.remove(&robot);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// *earliest-first* and *newest-only* against a list that is searched.
        #[test]
        fn leaves_in_order_of_deadlines_and_keeps_the_newest_of_a_robot(
            arrivals in prop::collection::vec((0u64..5, prop::option::of(0u8..3)), 0..30)
        ) {
            let mut waiting = Waiting::default();
            let mut list: Vec<(u64, u64, Option<u8>)> = Vec::new();
            for (id, (due, robot)) in arrivals.into_iter().enumerate() {
                let id = id as u64;
                let older = list.iter().position(|(_, _, other)| robot.is_some() && *other == robot);
                let expected = older.map_or(Entered::Alone, |at| Entered::Replaced(RequestId(list.remove(at).0)));
                let name = robot.map(|robot| robot.to_string().into());
                prop_assert_eq!(waiting.enter(RequestId(id), Moment::from_secs(due), name), expected);
                list.push((id, due, robot));
                prop_assert_eq!(waiting.len(), list.len());
            }
            list.sort_by_key(|(id, due, _)| (*due, *id));
            for (id, due, _) in list {
                prop_assert_eq!(waiting.in_order().next(), Some(RequestId(id)));
                prop_assert!(waiting.leave(RequestId(id), Moment::from_secs(due)));
            }
            prop_assert!(waiting.len() == 0 && waiting.robots.is_empty());
        }
    }

    #[test]
    fn an_older_observation_does_not_replace_a_newer_one() {
        let mut waiting = Waiting::default();
        let robot: Arc<str> = "arm".into();
        waiting.enter(RequestId(5), Moment::ZERO, Some(Arc::clone(&robot)));
        assert_eq!(waiting.enter(RequestId(3), Moment::ZERO, Some(robot)), Entered::Outdated);
        assert_eq!(waiting.in_order().collect::<Vec<_>>(), [RequestId(5)]);
    }
}
