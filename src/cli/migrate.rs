//! The schemas of the services, for those who do not let a service change its own.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::ValueEnum;
use halfmsg_migrations::{
    Applying, LOCK_TIMEOUT, Migrated, OrderMigrator, StockMigrator, migrate_telling,
};
use halfmsg_service_kit::db::{DbOptions, connect};
use serde_json::json;

use super::Done;
use super::failure::Failure;
use super::output::{self, Output};

/// A database that has let nothing begin for so long is said to be waited for.
const SILENT_FOR: Duration = Duration::from_secs(1);

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
    /// How results are printed
    #[arg(long, value_enum, default_value = "text")]
    pub(crate) output: Output,
}

impl MigrateArgs {
    pub(crate) async fn run(self) -> Done {
        let output = self.output;
        let begun = Arc::new(AtomicBool::new(false));
        let migrated = said_if_it_waits(self.migrate(Arc::clone(&begun)), output, &begun).await?;
        let Migrated { applied, present } = migrated;
        if output == Output::Json {
            let service = self.service.to_possible_value();
            let service = service.as_ref().map(|value| value.get_name());
            return output::json(
                &json!({ "service": service, "applied": applied, "present": present }),
            );
        }
        println!(
            "the schema is up to date: {} applied, {} were there",
            applied.len(),
            present.len()
        );
        Ok(())
    }

    async fn migrate(&self, begun: Arc<AtomicBool>) -> Result<Migrated, Failure> {
        // Another one that migrates is waited for as long as on PostgreSQL.
        let options = DbOptions {
            application: "halfmsg-migrate".into(),
            sqlite_busy_timeout: LOCK_TIMEOUT,
            ..DbOptions::default()
        };
        let database = connect(&self.database_url, &options).await.map_err(Failure::failed)?;
        let output = self.output;
        let tell = move |applying: Applying<'_>| {
            begun.store(true, Ordering::Relaxed);
            say(output, applying);
        };
        let migrated = match self.service {
            Service::OrderSvc => migrate_telling::<OrderMigrator>(&database, tell).await,
            Service::StockSvc => migrate_telling::<StockMigrator>(&database, tell).await,
        };
        migrated.map_err(Failure::failed)
    }
}

/// A line on standard error if nothing has begun for a while.
async fn said_if_it_waits<T>(
    migrating: impl Future<Output = T>,
    output: Output,
    begun: &AtomicBool,
) -> T {
    let mut migrating = pin!(migrating);
    if let Ok(migrated) = tokio::time::timeout(SILENT_FOR, &mut migrating).await {
        return migrated;
    }
    if !begun.load(Ordering::Relaxed) {
        let what = "waiting for the database, or for another one that migrates it";
        match output {
            Output::Text => eprintln!("halfmsg: {what}"),
            Output::Json => eprintln!("{}", json!({ "waiting": what })),
        }
    }
    migrating.await
}

fn say(output: Output, Applying { name, number, of }: Applying<'_>) {
    match output {
        Output::Text => eprintln!("halfmsg: applying {name} ({number} of {of})"),
        Output::Json => eprintln!("{}", json!({ "applying": name, "number": number, "of": of })),
    }
}
