//! Sends spans to a collector: OTLP over HTTP, switched on by OpenTelemetry's own environment
//! variables, and nothing at all without them. It must never hold anything up: what the collector
//! does not take is dropped.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};

/// How long the last spans may take when the process ends.
const END_DEADLINE: Duration = Duration::from_secs(2);
/// What `OTEL_TRACES_SAMPLER` may be.
const SAMPLERS: [&str; 6] = [
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
];

/// The running export.
#[derive(Debug)]
pub struct Export {
    provider: SdkTracerProvider,
}

/// Where spans go, by the environment; `None` if nowhere.
///
/// # Errors
/// A variable that asks for what cannot be, in words.
fn endpoint(variable: &impl Fn(&str) -> Option<String>) -> Result<Option<String>, String> {
    let is_true = |value: String| value.eq_ignore_ascii_case("true");
    if variable("OTEL_SDK_DISABLED").is_some_and(is_true) {
        return Ok(None);
    }
    let asked = match variable("OTEL_TRACES_EXPORTER").as_deref() {
        None => false,
        Some("otlp") => true,
        Some("none") => return Ok(None),
        Some(other) => return Err(format!("OTEL_TRACES_EXPORTER is '{other}': use otlp or none")),
    };
    let endpoint = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"]
        .into_iter()
        .find_map(|name| Some((name, variable(name)?)));
    let endpoint = match endpoint {
        Some((_, endpoint)) if endpoint.starts_with("http://") => endpoint,
        Some((name, endpoint)) => {
            return Err(format!(
                "{name} is '{endpoint}': only http:// is supported; a collector beside the service \
                 can go on with TLS"
            ));
        }
        None if asked => "http://localhost:4318".to_owned(),
        None => return Ok(None),
    };
    let protocol = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"]
        .into_iter()
        .find_map(|name| Some((name, variable(name)?)));
    if let Some((name, protocol)) = protocol.filter(|(_, protocol)| protocol != "http/protobuf") {
        return Err(format!("{name} is '{protocol}': use http/protobuf (port 4318)"));
    }
    match variable("OTEL_TRACES_SAMPLER") {
        Some(sampler) if !SAMPLERS.contains(&sampler.as_str()) => {
            Err(format!("OTEL_TRACES_SAMPLER is '{sampler}': use {}", SAMPLERS.join(", ")))
        }
        _ => Ok(Some(endpoint)),
    }
}

/// Starts the export if the environment asks for one, and switches spans on.
///
/// # Errors
/// A variable that asks for what cannot be, in words.
pub fn start(service: &'static str) -> Result<Option<Export>, String> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let Some(endpoint) = endpoint(&variable)? else { return Ok(None) };
    // The variables themselves are read by the exporter and the SDK.
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_http().build();
    let exporter = exporter.map_err(|error| format!("traces cannot be exported: {error}"))?;
    let exporter = Told { exporter, fails: AtomicBool::new(false) };
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource(service, &variable))
        .build();
    halfmsg_traces::opentelemetry::global::set_tracer_provider(provider.clone());
    halfmsg_traces::switch_on();
    tracing::info!("traces go to {endpoint}");
    Ok(Some(Export { provider }))
}

/// The service's own name, unless the environment gives it one.
fn resource(service: &'static str, variable: &impl Fn(&str) -> Option<String>) -> Resource {
    let attributes = variable("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let is_named = variable("OTEL_SERVICE_NAME").is_some()
        || attributes.split(',').any(|pair| pair.trim_start().starts_with("service.name="));
    let resource = Resource::builder();
    if is_named { resource.build() } else { resource.with_service_name(service).build() }
}

impl Export {
    /// Sends what is left, within a bound.
    pub async fn end(self) {
        let ended =
            tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(END_DEADLINE));
        if let Ok(Err(error)) = ended.await {
            tracing::warn!(%error, "the last spans may not be exported");
        }
    }
}

/// Says when the collector stops taking spans, and when it takes them again: one line each.
#[derive(Debug)]
struct Told<E> {
    exporter: E,
    fails: AtomicBool,
}

impl<E: SpanExporter> SpanExporter for Told<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let exported = self.exporter.export(batch).await;
        let failed_before = self.fails.swap(exported.is_err(), Ordering::Relaxed);
        match &exported {
            Err(error) if !failed_before => {
                tracing::warn!(%error, "the collector does not take spans; they are dropped");
            }
            Ok(()) if failed_before => tracing::info!("the collector takes spans again"),
            _ => {}
        }
        exported
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(variables: &[(&str, &str)]) -> Result<Option<String>, String> {
        endpoint(&|name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    const ENDPOINT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318");

    #[test]
    fn an_endpoint_switches_it_on_and_two_variables_switch_it_off() {
        assert_eq!(with(&[]), Ok(None));
        assert_eq!(with(&[ENDPOINT]), Ok(Some(ENDPOINT.1.into())));
        assert_eq!(with(&[ENDPOINT, ("OTEL_TRACES_EXPORTER", "none")]), Ok(None));
        assert_eq!(with(&[ENDPOINT, ("OTEL_SDK_DISABLED", "true")]), Ok(None));
        let by_default = with(&[("OTEL_TRACES_EXPORTER", "otlp")]);
        assert_eq!(by_default, Ok(Some("http://localhost:4318".into())));
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://collector"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_TRACES_SAMPLER", "sometimes"),
        ] {
            let refused = with(&[(name, value), ENDPOINT]).expect_err(name);
            assert!(refused.contains(name) && refused.contains(value), "{refused}");
        }
    }
}
