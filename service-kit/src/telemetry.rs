//! The log: quiet, one line per event, with the service's name in front.

use std::fmt;
use std::io::IsTerminal;

use chrono::{SecondsFormat, Utc};
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormattedFields};
use tracing_subscriber::registry::LookupSpan;

/// The target of the lines that tell the life of a half message. They are written for people:
/// neither level nor target is printed with them.
pub const LIFE: &str = "halfmsg::life";

/// The target of the lines that tell what operators did by HTTP. They are logged by default.
pub const AUDIT: &str = "halfmsg::audit";

/// What is logged unless `HALFMSG_LOG` says otherwise: start, takeover and stop, and what somebody
/// must know of. The lives of half messages would be some lines for each: of them only what is
/// parked.
pub const DEFAULT_FILTER: &str =
    "warn,halfmsg=info,order_svc=info,stock_svc=info,halfmsg::life=warn";

/// What the demonstration shows: the lives too.
pub const LIFE_FILTER: &str = "warn,halfmsg=info,order_svc=info,stock_svc=info";

/// What lines call the ordering key of a message, and what it is in both services: JSON says both.
const KEY: (&str, &str) = ("key", "order_id");

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line, for collectors.
    Json,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// A filter as in `RUST_LOG`, such as `info,halfmsg::life=off`.
    pub filter: String,
    /// How lines look.
    pub format: LogFormat,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { filter: DEFAULT_FILTER.into(), format: LogFormat::Text }
    }
}

/// Checks a filter without starting anything.
///
/// # Errors
/// What is wrong with it, in words.
pub fn check_filter(filter: &str) -> Result<(), String> {
    EnvFilter::try_new(filter).map(|_| ()).map_err(|error| error.to_string())
}

/// Starts the log of this process on standard output; a later call changes nothing.
///
/// # Errors
/// A filter that cannot be read, in words.
pub fn init(service: &'static str, settings: &LogSettings) -> Result<(), String> {
    let filter = EnvFilter::try_new(&settings.filter).map_err(|error| error.to_string())?;
    let started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(settings.format == LogFormat::Text && std::io::stdout().is_terminal())
        // Otherwise a closed pipe on standard error would turn a failed log line into a panic.
        .log_internal_errors(false)
        .event_format(Line { service, format: settings.format })
        .try_init();
    if started.is_err() {
        tracing::debug!("the log was started before");
    }
    Ok(())
}

struct Line {
    service: &'static str,
    format: LogFormat,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        match self.format {
            LogFormat::Text => self.text(context, writer.by_ref(), event)?,
            LogFormat::Json => write!(writer, "{}", self.json(context, event))?,
        }
        writeln!(writer)
    }
}

impl Line {
    fn text<S, N>(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
        N: for<'a> FormatFields<'a> + 'static,
    {
        let (service, time) = (self.service, Utc::now().format("%H:%M:%S%.3f"));
        if writer.has_ansi_escapes() {
            write!(writer, "\x1b[36m{service}\x1b[0m \x1b[2m{time}\x1b[0m ")?;
        } else {
            write!(writer, "{service} {time} ")?;
        }
        let metadata = event.metadata();
        if metadata.target() != LIFE {
            write!(writer, "{} ", level(*metadata.level(), writer.has_ansi_escapes()))?;
            for span in context.event_scope().into_iter().flat_map(|scope| scope.from_root()) {
                let extensions = span.extensions();
                let fields = extensions.get::<FormattedFields<N>>().map(|fields| &fields.fields);
                write!(writer, "{}{{{}}}: ", span.name(), fields.map_or("", String::as_str))?;
            }
        }
        context.format_fields(writer, event)
    }

    fn json<S, N>(&self, context: &FmtContext<'_, S, N>, event: &Event<'_>) -> Value
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
        N: for<'a> FormatFields<'a> + 'static,
    {
        let metadata = event.metadata();
        let mut fields = Fields(Map::new());
        event.record(&mut fields);
        let mut line = fields.0;
        if let Some(key) = line.get(KEY.0).cloned() {
            line.entry(KEY.1).or_insert(key);
        }
        let spans: Vec<Value> = context
            .event_scope()
            .into_iter()
            .flat_map(|scope| scope.from_root())
            .map(|span| Value::from(span.name()))
            .collect();
        if !spans.is_empty() {
            line.insert("spans".into(), Value::Array(spans));
        }
        let time = Utc::now().to_rfc3339_opts(SecondsFormat::Millis, true);
        line.insert("timestamp".into(), time.into());
        line.insert("level".into(), metadata.level().as_str().into());
        line.insert("service".into(), self.service.into());
        line.insert("target".into(), metadata.target().into());
        Value::Object(line)
    }
}

fn level(level: Level, colours: bool) -> String {
    let colour = match level {
        Level::ERROR => 31,
        Level::WARN => 33,
        Level::INFO => 32,
        _ => 34,
    };
    if colours { format!("\x1b[{colour}m{level}\x1b[0m") } else { level.to_string() }
}

struct Fields(Map<String, Value>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().into(), format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().into(), value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.0.insert(field.name().into(), value.into());
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, log: impl FnOnce()) -> String {
        logged_with(LIFE_FILTER, format, log)
    }

    fn logged_with(filter: &str, format: LogFormat, log: impl FnOnce()) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new(filter))
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .event_format(Line { service: "x-svc", format })
            .finish();
        tracing::subscriber::with_default(subscriber, log);
        let bytes = buffer.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn life_lines_carry_no_level() {
        let line = logged(LogFormat::Text, || tracing::info!(target: LIFE, "half 1 stored"));
        assert!(line.starts_with("x-svc ") && line.ends_with(" half 1 stored\n"), "{line}");
        assert!(!line.contains("INFO"), "{line}");
    }

    #[test]
    fn others_are_quiet_below_warnings() {
        let line = logged(LogFormat::Text, || {
            tracing::info!(target: "sqlx::query", "noise");
            tracing::warn!(target: "sqlx::query", n = 1, "signal");
        });
        assert!(line.contains("WARN signal n=1") && !line.contains("noise"), "{line}");
    }

    #[test]
    fn json_is_one_object_per_line() {
        let line = logged(LogFormat::Json, || tracing::info!(target: LIFE, n = 1, "a \"b\""));
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["message"], "a \"b\"");
        assert_eq!((&value["n"], &value["service"]), (&Value::from(1), &Value::from("x-svc")));
    }

    #[test]
    fn json_names_the_order_of_a_message() {
        let line = logged(LogFormat::Json, || tracing::info!(target: LIFE, key = "7", "stored"));
        let value: Value = serde_json::from_str(&line).unwrap();
        assert_eq!((&value["key"], &value["order_id"]), (&"7".into(), &"7".into()));
    }

    #[test]
    fn by_default_only_what_is_parked_is_told_of_lives() {
        let lines = logged_with(DEFAULT_FILTER, LogFormat::Text, || {
            tracing::info!(target: LIFE, "half message stored");
            tracing::warn!(target: LIFE, "parked");
            tracing::info!(target: "halfmsg_producer::resolver", "taken over");
        });
        assert!(!lines.contains("stored"), "{lines}");
        assert!(lines.contains("parked") && lines.contains("taken over"), "{lines}");
    }

    #[test]
    fn names_a_filter_that_cannot_be_read() {
        assert!(check_filter("info,=,x=loud").is_err());
        assert!(check_filter(DEFAULT_FILTER).is_ok());
    }
}
