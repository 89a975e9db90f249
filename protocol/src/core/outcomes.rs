//! What a record that is not replayed leads to, as commands.

use super::{Command, ResolverCore};
use crate::ids::{HalfOffset, TransactionId};
use crate::ledger::Outcome;
use crate::record::{HalfRef, Origin};

impl ResolverCore {
    pub(super) fn carry_out(
        &mut self,
        at: i64,
        id: TransactionId,
        outcome: Outcome,
        decided: Option<(Origin, String)>,
        commands: &mut Vec<Command>,
    ) {
        match outcome {
            Outcome::Deliver { half, settles } => {
                let settled = settles.then(|| self.settled(at, id, half.offset));
                commands.push(Command::Deliver { at, half, settled });
            }
            Outcome::Dropped { half, settles } => {
                if settles {
                    let settled = self.settled(at, id, half.offset);
                    commands.push(Command::Settle { at, settled });
                }
                let (origin, reason) = decided.unwrap_or((Origin::Producer, String::new()));
                commands.push(Command::Dropped { half, origin, reason });
            }
            Outcome::Parked(parked) => commands.push(Command::WriteParked { at, parked }),
            Outcome::Ignored(why) => commands.push(Command::Note { id, at, why }),
            Outcome::Opened
            | Outcome::Reopened { .. }
            | Outcome::Attempted { .. }
            | Outcome::CheckFailed { .. } => {}
        }
    }

    fn settled(&self, at: i64, id: TransactionId, half: HalfOffset) -> HalfRef {
        let epoch = self.ledger.pending_epoch(at).unwrap_or_default();
        HalfRef { id, half, epoch }
    }

    pub(super) fn foreign(&mut self, offset: i64, commands: &mut Vec<Command>) {
        if offset < self.carried_out_below {
            self.ledger.pass(offset + 1);
        } else {
            self.ledger.hold_foreign(offset);
            commands.push(Command::CopyForeign { at: offset });
        }
    }
}
