//! The program order-svc.

use halfmsg_service_kit::settings;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    order_svc::main(settings::parse()).await
}
