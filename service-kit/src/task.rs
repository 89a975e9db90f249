//! Runs work to its end even if the client hangs up.

use std::future::Future;

use halfmsg_traces::context::carried;

use crate::problem::ApiError;

/// Runs `work` in a task of its own and waits for it.
///
/// Dropping the returned future (the client hung up) does not stop the work: a database
/// transaction or a half message is never left in the middle by a client. A panic becomes a 500.
///
/// # Errors
/// The work's own, or `internal_error` if it panicked.
pub async fn run_to_end<T, F>(work: F) -> Result<T, ApiError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, ApiError>> + Send + 'static,
{
    match tokio::spawn(carried(work)).await {
        Ok(result) => result,
        Err(error) => Err(ApiError::internal(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn goes_on_without_its_waiter() {
        let (go, wait) = tokio::sync::oneshot::channel::<()>();
        let (done, finished) = tokio::sync::oneshot::channel::<()>();
        let mut work = Box::pin(run_to_end(async move {
            wait.await.map_err(ApiError::internal)?;
            done.send(()).map_err(|()| ApiError::internal("nobody waits"))
        }));
        assert!(futures::poll!(&mut work).is_pending());
        drop(work);
        go.send(()).unwrap();
        finished.await.unwrap();
    }

    #[tokio::test]
    async fn a_panic_is_an_internal_error() {
        let error = run_to_end::<(), _>(async { panic!("secret") }).await.unwrap_err();
        assert_eq!(error.code(), "internal_error");
        assert!(!error.body().to_string().contains("secret"));
    }
}
