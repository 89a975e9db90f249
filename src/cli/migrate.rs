//! The schemas of the services, for those who do not let a service change its own.

use clap::ValueEnum;
use halfmsg_migrations::{OrderMigrator, StockMigrator, migrate};
use halfmsg_service_kit::db::{DbOptions, connect};

use super::Done;
use super::failure::Failure;

/// A service with a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Service {
    OrderSvc,
    StockSvc,
}

/// `halfmsg migrate`.
#[derive(clap::Args)]
pub(crate) struct MigrateArgs {
    /// Whose database it is
    #[arg(value_enum)]
    service: Service,
    /// postgres://user:password@host:5432/name or sqlite:///path/file.db
    #[arg(long, env = "DATABASE_URL", hide_env_values = true)]
    database_url: String,
}

impl MigrateArgs {
    pub(crate) async fn run(self) -> Done {
        let options = DbOptions { application: "halfmsg-migrate".into(), ..DbOptions::default() };
        let database = connect(&self.database_url, &options).await.map_err(Failure::failed)?;
        let migrated = match self.service {
            Service::OrderSvc => migrate::<OrderMigrator>(&database).await,
            Service::StockSvc => migrate::<StockMigrator>(&database).await,
        };
        migrated.map_err(Failure::failed)?;
        println!("the schema is up to date");
        Ok(())
    }
}
