//! Induced failures, for demonstrations and tests: the header `X-Fault`, only while faults are on.

use std::time::Duration;

use axum::http::{HeaderMap, StatusCode};
use halfmsg_service_kit::ApiError;

/// The header that asks for one.
pub const HEADER: &str = "x-fault";

/// How long an answer that is to be lost is held back.
pub const STALL: Duration = Duration::from_secs(30);

/// A failure that a client may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// `GET /products` fails.
    PriceLookup,
    /// `POST /deductions` refuses.
    DeductRefused,
    /// `POST /deductions` deducts, and answers only after [`STALL`].
    DeductTimeout,
}

impl Fault {
    /// Its name in the header.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PriceLookup => "price-lookup",
            Self::DeductRefused => "deduct-refused",
            Self::DeductTimeout => "deduct-timeout",
        }
    }

    /// The failure that a request asks for, out of those that its route knows.
    ///
    /// # Errors
    /// 403 `faults_disabled` if faults are off, 422 `unknown_fault`.
    pub fn asked(
        headers: &HeaderMap,
        enabled: bool,
        known: &[Self],
    ) -> Result<Option<Self>, ApiError> {
        let Some(asked) = headers.get(HEADER) else { return Ok(None) };
        if !enabled {
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "faults_disabled",
                "induced failures are switched off",
            )
            .detail("start the service with HALFMSG_FAULTS=on to allow X-Fault"));
        }
        let found = known.iter().find(|fault| asked.as_bytes() == fault.as_str().as_bytes());
        found.copied().map(Some).ok_or_else(|| {
            let names: Vec<_> = known.iter().map(|fault| fault.as_str()).collect();
            ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "unknown_fault", "no such X-Fault")
                .detail(format!("known here are: {}", names.join(", ")))
        })
    }
}
