//! Asks a running replica to ask its listener. Nothing but the application knows what became of its
//! local transaction, so this is the one command that needs it.

use std::time::Duration;

use halfmsg_producer::TransactionId;
use serde_json::{Value, json};

use super::Done;
use super::failure::{Exit, Failure};
use super::halves::WhoAndWhy;
use super::output::{Output, json as print_json, printable};

/// From the request to its answer.
const DEADLINE: Duration = Duration::from_secs(30);

/// `halfmsg check`.
#[derive(clap::Args)]
pub(crate) struct CheckArgs {
    /// The transaction id
    id: TransactionId,
    /// A running replica of the service, such as http://127.0.0.1:8080
    #[arg(long)]
    url: Option<String>,
    /// The operators' token of the service
    #[arg(
        long,
        env = "HALFMSG_ADMIN_TOKEN",
        default_value = "",
        hide_default_value = true,
        hide_env_values = true
    )]
    admin_token: String,
    #[command(flatten)]
    why: WhoAndWhy,
    /// How results are printed
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) output: Output,
}

impl CheckArgs {
    pub(crate) async fn run(self) -> Done {
        let Some(url) = &self.url else {
            return Err(Failure::usage(
                "check needs a running replica, because only the application can tell what became \
                 of its local transaction: give --url http://host:port and HALFMSG_ADMIN_TOKEN; if \
                 the service is down, commit or rollback with --force",
            ));
        };
        let client =
            reqwest::Client::builder().timeout(DEADLINE).build().map_err(Failure::failed)?;
        let address = format!("{}/halves/{}/check", url.trim_end_matches('/'), self.id);
        let body = json!({ "reason": self.why.reason, "operator": self.why.operator });
        let request = client.post(&address).bearer_auth(&self.admin_token).json(&body);
        let answer = request.send().await.map_err(|error| {
            Failure::failed(format!("{address} does not answer: {}", chain(&error)))
        })?;
        let status = answer.status().as_u16();
        let body: Value = answer.json().await.unwrap_or_default();
        let text = |name: &str| body[name].as_str().unwrap_or_default().to_owned();
        match status {
            200..300 if self.output == Output::Json => print_json(&body),
            200..300 => {
                let (state, last) = (text("state"), text("last_outcome"));
                println!("{} is {} ({})", self.id, printable(&state), printable(&last));
                Ok(())
            }
            _ => {
                let detail = [text("detail"), text("title"), format!("answer {status}")];
                let detail = detail.into_iter().find(|text| !text.is_empty()).unwrap_or_default();
                Err(Failure::new(exit(status, &text("code")), text("code"), printable(&detail)))
            }
        }
    }
}

fn exit(status: u16, code: &str) -> Exit {
    match (status, code) {
        (404, _) => Exit::NotFound,
        (409, _) => Exit::Refused,
        (422, _) => Exit::Usage,
        (_, "kafka_unavailable") => Exit::KafkaAway,
        (_, "incomplete") => Exit::Incomplete,
        (_, "effect_unseen") => Exit::Unseen,
        _ => Exit::Failed,
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_the_exit_code_that_the_same_has_without_a_replica() {
        for (status, code, expected) in [
            (404, "not_found", Exit::NotFound),
            (409, "contradiction", Exit::Refused),
            (422, "invalid", Exit::Usage),
            (503, "kafka_unavailable", Exit::KafkaAway),
            (503, "incomplete", Exit::Incomplete),
            (503, "effect_unseen", Exit::Unseen),
            (401, "unauthorized", Exit::Failed),
        ] {
            assert_eq!(exit(status, code), expected, "{status} {code}");
        }
    }
}
