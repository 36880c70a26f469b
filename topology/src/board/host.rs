//! The host's processor as a board of one chip.

use super::{Board, Pcie};
use crate::ChipSpec;

/// One "chip": the measuring machine of the host figures.
pub(super) fn host() -> Board {
    Board::mesh("host", (1, 1), 0, ChipSpec::host(), |_| Some(Pcie { generation: 5, lanes: 0 }))
}
