//! Layers of a pass, put together.

use std::collections::HashMap;
use std::sync::Arc;

use tensact_topology::LayerRange;

use super::{Activity, Doing, Member};
use crate::clock::Moment;

/// Which pass a layer belongs to.
type Key<'a> = (usize, usize, &'a [Member]);

impl Activity {
    /// The same activities, in the order in which they begin, with the layers of a pass as one. Layers that are further apart than
    /// `gap` stay by themselves, so that what their chip did in between is not covered.
    pub fn passes(activities: &[Arc<Activity>], gap: Moment) -> Vec<Activity> {
        let mut all: Vec<Activity> = Vec::with_capacity(activities.len());
        let mut open: HashMap<Key<'_>, usize> = HashMap::new();
        for activity in activities {
            let Doing::Layer { cameras, last } = activity.doing else {
                all.push((**activity).clone());
                continue;
            };
            let key = (activity.pipeline, activity.slice, &*activity.members);
            let begun = open.remove(&key).filter(|begun| {
                let begun = &all[*begun];
                begun.layers.end() == activity.layers.start()
                    && activity.began.saturating_sub(begun.ended) <= gap
            });
            let place = begun.unwrap_or(all.len());
            match begun {
                Some(begun) => {
                    let begun = &mut all[begun];
                    begun.ended = activity.ended;
                    begun.layers =
                        LayerRange::new(begun.layers.start(), activity.layers.end()).unwrap_or(begun.layers);
                }
                None => all.push(Activity { doing: Doing::Pass { cameras }, ..(**activity).clone() }),
            }
            if !last {
                open.insert(key, place);
            }
        }
        all.sort_by_key(|activity| activity.began);
        all
    }
}
