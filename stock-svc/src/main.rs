//! The program stock-svc.

use halfmsg_service_kit::settings;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    stock_svc::main(settings::parse()).await
}
