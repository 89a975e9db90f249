//! Bodies for the operator's side: read again if memory had no room for them.

use std::sync::Arc;

use halfmsg_protocol::Half;

use super::AdminError;
use super::desk::Desk;
use crate::resolver::query::{Seen, What};

impl Desk {
    /// The same with its whole body.
    pub(super) async fn with_body(&self, seen: Seen) -> Result<Seen, AdminError> {
        let Seen { partition, what, .. } = seen;
        let what = match what {
            What::Open(mut open, until) => {
                open.half = self.whole(partition, open.half, false).await?;
                What::Open(open, until)
            }
            What::Parked(mut parked, durable) => {
                // Until the parked topic has it, the store does.
                parked.half = self.whole(partition, parked.half, durable).await?;
                What::Parked(parked, durable)
            }
            closed @ What::Closed(_) => closed,
        };
        Ok(Seen { what, ..seen })
    }

    async fn whole(
        &self,
        partition: i32,
        half: Arc<Half>,
        is_parked: bool,
    ) -> Result<Arc<Half>, AdminError> {
        if !half.is_stub {
            return Ok(half);
        }
        let bodies = Arc::clone(&self.bodies);
        let read = tokio::task::spawn_blocking(move || {
            if is_parked {
                return bodies
                    .parked(partition, half.meta.id)
                    .map(|body| Arc::new(half.with(body)));
            }
            let mut whole = bodies.open(partition, &[&half]).map_err(|unread| unread.error)?;
            Ok(whole.remove(&half.stored_at).unwrap_or(half))
        });
        match read.await {
            Ok(Ok(half)) => Ok(half),
            Ok(Err(error)) => Err(AdminError::Unavailable(error.to_string())),
            Err(error) => Err(AdminError::Unavailable(error.to_string())),
        }
    }
}
