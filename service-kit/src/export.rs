//! Sends spans to a collector: OTLP over HTTP, switched on by OpenTelemetry's own environment
//! variables, and nothing at all without them. It must never hold anything up: what the collector
//! does not take is dropped.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
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
/// Milliseconds, and numbers of spans.
const NUMBERS: [&str; 5] = [
    "OTEL_EXPORTER_OTLP_TIMEOUT",
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
];
const HEADERS: [&str; 2] = ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"];

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
    match variable("OTEL_SDK_DISABLED") {
        Some(value) if value.eq_ignore_ascii_case("true") => return Ok(None),
        Some(value) if !value.eq_ignore_ascii_case("false") => {
            return Err(format!("OTEL_SDK_DISABLED is '{value}': use true or false"));
        }
        _ => {}
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
                "{name} is '{}': only http:// is supported; a collector beside the service \
                 can go on with TLS",
                without_login(&endpoint)
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
    sampler(variable)?;
    numbers(variable)?;
    pairs(variable)?;
    Ok(Some(endpoint))
}

/// The SDK takes what it cannot read for the default, which for a share is all of it.
fn sampler(variable: &impl Fn(&str) -> Option<String>) -> Result<(), String> {
    let (name, argument) = ("OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG");
    if let Some(sampler) = variable(name).filter(|found| !SAMPLERS.contains(&found.as_str())) {
        return Err(format!("{name} is '{sampler}': use {}", SAMPLERS.join(", ")));
    }
    let Some(share) = variable(argument) else { return Ok(()) };
    if share.parse().is_ok_and(|share: f64| (0.0..=1.0).contains(&share)) {
        return Ok(());
    }
    Err(format!("{argument} is '{share}': use a number from 0 to 1, such as 0.1 for a tenth"))
}

/// Milliseconds and counts; what is no number would count as not set.
fn numbers(variable: &impl Fn(&str) -> Option<String>) -> Result<(), String> {
    for name in NUMBERS {
        let Some(value) = variable(name) else { continue };
        if !value.parse().is_ok_and(|number: u32| number > 0) {
            return Err(format!("{name} is '{value}': use a whole number from 1 to {}", u32::MAX));
        }
    }
    Ok(())
}

/// `name=value,…`; what is no such pair would be left out. Of headers the value may be a secret.
fn pairs(variable: &impl Fn(&str) -> Option<String>) -> Result<(), String> {
    let fits = |name: &str, value: &str| !name.trim().is_empty() && !value.trim().is_empty();
    let is_header = |name: &str, value: &str| {
        let is_value = HeaderValue::from_str(value.trim()).is_ok();
        HeaderName::try_from(name.trim()).is_ok() && is_value
    };
    for (variables, are_headers) in [(&HEADERS[..], true), (&["OTEL_RESOURCE_ATTRIBUTES"], false)] {
        for name in variables {
            let Some(list) = variable(name) else { continue };
            for (at, pair) in list.split_terminator(',').enumerate() {
                let pair = pair.split_once('=').filter(|(key, value)| fits(key, value));
                if pair.is_none_or(|(key, value)| are_headers && !is_header(key, value)) {
                    let at = at + 1;
                    return Err(format!("{name}: entry {at} is no name=value; use name=value,…"));
                }
            }
        }
    }
    Ok(())
}

/// An endpoint as it may be told, without a login and a query: either may be a secret.
fn without_login(endpoint: &str) -> String {
    let (scheme, rest) = endpoint.split_once("://").unwrap_or(("", endpoint));
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    match rest.rfind('@') {
        // A password that is not encoded as it should be: where it ends is anybody's guess.
        Some(at) if at >= authority.len() => format!("{scheme}://…"),
        _ if scheme.is_empty() => format!("{host}{path}"),
        _ => format!("{scheme}://{host}{path}"),
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
    tracing::info!("traces go to {}", without_login(&endpoint));
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
    fn a_login_in_an_endpoint_is_not_told() {
        for (endpoint, told) in [
            ("http://collector:4318/v1", "http://collector:4318/v1"),
            ("http://olga:pa@ss@collector:4318/v1", "http://collector:4318/v1"),
            ("http://token@collector?key=secret", "http://collector"),
            ("http://olga:pa/ss@collector:4318/v1", "http://…"),
            ("http://olga:pa?ss@collector:4318/v1", "http://…"),
            ("olga:secret@collector", "collector"),
        ] {
            assert_eq!(without_login(endpoint), told);
        }
        let variable = ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://olga:secret@collector");
        let refused = with(&[variable]).expect_err("https");
        assert!(refused.contains("https://collector") && !refused.contains("secret"), "{refused}");
    }

    #[test]
    fn what_cannot_be_is_named() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://collector"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_TRACES_SAMPLER", "sometimes"),
            ("OTEL_TRACES_SAMPLER_ARG", "10%"),
            ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
            ("OTEL_TRACES_SAMPLER_ARG", "NaN"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "-1"),
            ("OTEL_BSP_SCHEDULE_DELAY", "5s"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "many"),
            ("OTEL_SDK_DISABLED", "yes"),
        ] {
            let refused = with(&[(name, value), ENDPOINT]).expect_err(name);
            assert!(refused.contains(name) && refused.contains(value), "{refused}");
        }
        // What follows a name may be a secret.
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=1,api-key:s3cret"),
            ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a=1,api key=s3cret"),
            ("OTEL_RESOURCE_ATTRIBUTES", "team=a,s3cret"),
        ] {
            let refused = with(&[(name, value), ENDPOINT]).expect_err(name);
            assert!(refused.contains(name) && refused.contains("entry 2"), "{refused}");
            assert!(!refused.contains("s3cret"), "{refused}");
        }
    }

    #[test]
    fn what_the_specification_allows_is_taken() {
        for (name, value) in [
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.1"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10000"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "api-key=a%20b, authorization=Basic dTpw==,"),
            ("OTEL_BSP_SCHEDULE_DELAY", "50"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=shop, deployment=a"),
            ("OTEL_SDK_DISABLED", "False"),
        ] {
            let taken = with(&[(name, value), ENDPOINT]);
            assert_eq!(taken, Ok(Some(ENDPOINT.1.to_owned())), "{name}");
        }
    }
}
