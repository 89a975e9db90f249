//! What the demonstration prints: where things are, and what to try.

use std::net::SocketAddr;

/// Where the demonstration listens.
pub(crate) struct Places {
    pub(crate) order: SocketAddr,
    pub(crate) stock: SocketAddr,
    pub(crate) kafka: String,
    pub(crate) token: String,
}

/// The text.
pub(crate) fn banner(places: &Places) -> String {
    let Places { order, stock, kafka, token } = places;
    let order_line = |fault: &str| {
        format!(
            "curl -i http://{order}/orders -H 'Content-Type: application/json'{fault} \
             -d '{{\"user_id\":\"ann\",\"items\":[{{\"sku\":\"apple\",\"quantity\":1}}]}}'"
        )
    };
    format!(
        "
halfmsg is ready. Nothing is kept after it ends: the broker is in this process, the databases are
in a temporary directory.

  Open http://{order}/ in a browser: place orders there, let them fail, watch what becomes of them.

  orders  http://{order}    stock  http://{stock}    Kafka (in-process)  {kafka}
  operator's token (HALFMSG_ADMIN_TOKEN)  {token}

1. An order that succeeds; its half message is dropped:

{ok}

2. An order that fails after the stock was deducted; the committed half message brings it back:

{fails}

3. order-svc dies after the stock was deducted, is started again, and the check-back brings it back
   (within some ten seconds):

{dies}

Stock:         curl http://{stock}/stock/apple
Half messages: curl http://{order}/halves

Ctrl-C ends it. The life of each half message:
",
        ok = order_line(""),
        fails = order_line(" -H 'X-Fault: after-deduct'"),
        dies = order_line(" -H 'X-Fault: crash-after-deduct'"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_three_lines_to_paste() {
        let address = "127.0.0.1:8080".parse().expect("an address");
        let places = Places {
            order: address,
            stock: address,
            kafka: "127.0.0.1:1".into(),
            token: "t".into(),
        };
        let text = banner(&places);
        let curls: Vec<_> = text.lines().filter(|line| line.starts_with("curl -i")).collect();
        assert_eq!(curls.len(), 3, "{text}");
        assert!(curls[2].contains("-H 'X-Fault: crash-after-deduct'"));
        assert!(curls.iter().all(|line| line.ends_with("\"quantity\":1}]}'")), "{text}");
    }
}
