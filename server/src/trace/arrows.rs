//! Where a request went on, from chip to chip.

use std::sync::Arc;
use std::time::Duration;

use tensact::telemetry::{Activity, Doing};
use tensact::topology::ChipId;

/// An arrow between two slices on the tracks of chips. It begins not later than it ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arrow {
    /// A chip, and when its slice began.
    pub(super) from: (ChipId, Duration),
    /// The same of the other end.
    pub(super) to: (ChipId, Duration),
}

/// Arrows between the activities of an attempt: from each send to the receive of the same bytes; where nobody received, to
/// the first thing that the other chip did.
pub(super) fn arrows(activities: &[Arc<Activity>]) -> Vec<Arrow> {
    let mut arrows = Vec::new();
    for (send, receive) in transfers(activities) {
        let Doing::Send { to, .. } = send.doing else { continue };
        let begin = if lasts(send) { Some(send) } else { last_on(activities, send) };
        let Some(begin) = begin else { continue };
        let next = receive.filter(|receive| lasts(receive));
        let Some(end) = next.or_else(|| first_on(activities, to, begin)) else { continue };
        // Who takes a parcel from a full queue may be done before its sender has accounted for it.
        if begin.began <= end.began
            && let (Some(from), true) = (begin.chips.first(), end.chips.contains(&to))
        {
            arrows.push(Arrow { from: (*from, begin.began), to: (to, end.began) });
        }
    }
    arrows
}

type Transfer<'a> = (&'a Arc<Activity>, Option<&'a Arc<Activity>>);

/// Every send with its receive, if there is one. A receive names one chip of the slice that sent; where others of that slice
/// have sent as well, theirs are those that are left.
fn transfers(activities: &[Arc<Activity>]) -> Vec<Transfer<'_>> {
    let sends = activities.iter().filter(|activity| matches!(activity.doing, Doing::Send { .. }));
    let mut transfers: Vec<Transfer<'_>> = sends.map(|send| (send, None)).collect();
    let mut received = vec![false; activities.len()];
    for by_name in [true, false] {
        for (send, receive) in transfers.iter_mut().filter(|(_, receive)| receive.is_none()) {
            let Doing::Send { to, bytes: sent, .. } = send.doing else { continue };
            let matching = activities.iter().zip(&mut received).find(|(activity, received)| {
                let Doing::Receive { from, bytes, .. } = activity.doing else { return false };
                let named = !by_name || send.chips.contains(&from);
                !**received && named && bytes == sent && activity.chips.contains(&to)
            });
            if let Some((activity, received)) = matching {
                *received = true;
                *receive = Some(activity);
            }
        }
    }
    transfers
}

/// Whether it is long enough to be seen, and to hold an arrow.
fn lasts(activity: &Activity) -> bool {
    activity.ended > activity.began && !activity.chips.is_empty()
}

/// The last thing that the sender's chips did before a send that took no time.
fn last_on<'a>(activities: &'a [Arc<Activity>], send: &Activity) -> Option<&'a Arc<Activity>> {
    activities
        .iter()
        .filter(|activity| lasts(activity) && activity.chips == send.chips && activity.ended <= send.ended)
        .max_by_key(|activity| activity.ended)
}

/// The first thing that a chip did after something on another.
fn first_on<'a>(
    activities: &'a [Arc<Activity>],
    chip: ChipId,
    after: &Activity,
) -> Option<&'a Arc<Activity>> {
    activities
        .iter()
        .filter(|activity| lasts(activity) && activity.chips.contains(&chip) && activity.began >= after.began)
        .min_by_key(|activity| activity.began)
}
