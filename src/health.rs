//! The probe for containers: an image without curl can tell whether its service is healthy.

use std::process::ExitCode;
use std::time::Duration;

/// `halfmsg health`.
#[derive(clap::Args)]
pub(crate) struct HealthArgs {
    /// For instance http://127.0.0.1:8080/health/ready
    url: String,
    /// Give up after so many milliseconds
    #[arg(long, default_value_t = 3_000)]
    timeout_ms: u64,
}

/// Success only for an answer of the 200s; says why not on standard error.
pub(crate) async fn probe(args: &HealthArgs) -> ExitCode {
    match ask(&args.url, Duration::from_millis(args.timeout_ms)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("{}: {problem}", args.url);
            ExitCode::FAILURE
        }
    }
}

/// Asks once.
///
/// # Errors
/// What is wrong, in words, the answer's text included.
pub(crate) async fn ask(url: &str, timeout: Duration) -> Result<(), String> {
    let client =
        reqwest::Client::builder().timeout(timeout).build().map_err(|error| error.to_string())?;
    let answer = client.get(url).send().await.map_err(|error| format!("{error}"))?;
    let status = answer.status();
    if status.is_success() {
        return Ok(());
    }
    Err(format!("{status}: {}", answer.text().await.unwrap_or_default()))
}
