//! What the runs gave: medians, spread, ratios, as a table or JSON, and whether anything was lost.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::bail;
use serde::{Deserialize, Serialize};

use super::Mode;

/// From the commit's call to the message at a read-committed reader.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Latency {
    /// Transactions per second while it was taken.
    pub(crate) rate: u64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

impl Latency {
    /// From sorted times.
    pub(crate) fn of(rate: u64, sorted: &[Duration]) -> Self {
        let at = |share: f64| {
            let index = (sorted.len().saturating_sub(1) as f64 * share) as usize;
            sorted.get(index).copied().unwrap_or_default().as_secs_f64() * 1e3
        };
        Self { rate, p50_ms: at(0.5), p99_ms: at(0.99) }
    }
}

/// One run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Figures {
    pub(crate) mode: Mode,
    /// Of the machine, when the run began.
    pub(crate) load_average: Option<f64>,
    /// At full speed.
    pub(crate) transactions: u64,
    pub(crate) per_second: f64,
    /// At low load.
    pub(crate) low: Option<Latency>,
    /// At 70 % of `per_second`.
    pub(crate) high: Option<Latency>,
    /// Of the process, callers and reader included, at full speed.
    pub(crate) cpu_seconds: Option<f64>,
    /// The same, by the name of the thread.
    pub(crate) cpu_by_thread: BTreeMap<String, f64>,
    /// Of the process, up to the end of full speed.
    pub(crate) peak_rss_bytes: Option<u64>,
    pub(crate) lost: u64,
    pub(crate) duplicates: u64,
    /// Checks that a listener answered.
    pub(crate) asked: Option<u64>,
    /// Of a replay: what a consumer that only polls makes of the same log.
    pub(crate) bare_per_second: Option<f64>,
}

impl Figures {
    /// So many in so long; nothing else is known.
    pub(crate) fn of(mode: Mode, transactions: u64, took: Duration) -> Self {
        Self {
            mode,
            load_average: None,
            transactions,
            per_second: transactions as f64 / took.as_secs_f64().max(1e-3),
            low: None,
            high: None,
            cpu_seconds: None,
            cpu_by_thread: BTreeMap::new(),
            peak_rss_bytes: None,
            lost: 0,
            duplicates: 0,
            asked: None,
            bare_per_second: None,
        }
    }

    fn cpu_micros(&self) -> Option<f64> {
        self.cpu_seconds.map(|seconds| seconds * 1e6 / self.transactions as f64)
    }

    fn rss_mib(&self) -> Option<f64> {
        self.peak_rss_bytes.map(|bytes| bytes as f64 / (1_024.0 * 1_024.0))
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {:.0}/s", self.mode.name(), self.per_second)?;
        for latency in [self.low, self.high].into_iter().flatten() {
            let Latency { rate, p50_ms, p99_ms } = latency;
            write!(f, ", at {rate}/s p50 {p50_ms:.1} ms p99 {p99_ms:.1} ms")?;
        }
        if let (Some(seconds), Some(mib)) = (self.cpu_seconds, self.rss_mib()) {
            write!(f, ", CPU {seconds:.1} s, {mib:.0} MiB")?;
        }
        if let Some(asked) = self.asked {
            write!(f, ", {asked} checks")?;
        }
        if let Some(bare) = self.bare_per_second {
            write!(f, ", a bare consumer {bare:.0}/s")?;
        }
        write!(f, ", lost {}, duplicates {}", self.lost, self.duplicates)?;
        match self.load_average {
            Some(load) => write!(f, ", load average {load:.1}"),
            None => Ok(()),
        }
    }
}

/// The middle of several runs, and their ends.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    median: f64,
    min: f64,
    max: f64,
}

impl Spread {
    pub(crate) fn of(values: impl Iterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let (min, max) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len().is_multiple_of(2) {
            (values[middle - 1] + values[middle]) / 2.0
        } else {
            values[middle]
        };
        Some(Self { median, min, max })
    }

    pub(crate) fn text(spread: Option<Self>, digits: usize) -> String {
        spread.map_or_else(
            || "-".to_owned(),
            |Self { median, min, max }| {
                format!("{median:.digits$} ({min:.digits$}..{max:.digits$})")
            },
        )
    }
}

/// All runs of one kind.
#[derive(Debug, Serialize)]
pub(crate) struct Kind {
    mode: Mode,
    runs: usize,
    per_second: Option<Spread>,
    low_p50_ms: Option<Spread>,
    low_p99_ms: Option<Spread>,
    high_p50_ms: Option<Spread>,
    high_p99_ms: Option<Spread>,
    cpu_seconds: Option<Spread>,
    cpu_micros_per_transaction: Option<Spread>,
    peak_rss_mib: Option<Spread>,
    /// Checks that a listener answered.
    asked: Option<Spread>,
    bare_consumer_per_second: Option<Spread>,
    lost: u64,
    duplicates: u64,
    each: Vec<Figures>,
}

/// What `--output json` prints.
#[derive(Debug, Serialize)]
pub(crate) struct Summary {
    kinds: Vec<Kind>,
    /// The engine by the bare loop of the same round.
    ratio_at_least_once: Option<Spread>,
    ratio_exactly_once: Option<Spread>,
    /// The same by the bare loop with the client's own linger.
    reference_ratio_at_least_once: Option<Spread>,
    reference_ratio_exactly_once: Option<Spread>,
}

/// Every run of an invocation.
#[derive(Debug, Default)]
pub(crate) struct Report {
    order: Vec<Mode>,
    figures: BTreeMap<&'static str, Vec<Figures>>,
}

impl Report {
    pub(crate) fn add(&mut self, figures: Figures) {
        if !self.order.contains(&figures.mode) {
            self.order.push(figures.mode);
        }
        self.figures.entry(figures.mode.name()).or_default().push(figures);
    }

    fn of(&self, mode: Mode) -> &[Figures] {
        self.figures.get(mode.name()).map_or(&[], Vec::as_slice)
    }

    fn ratio(&self, engine: Mode, bare: Mode) -> Option<Spread> {
        let pairs = self.of(engine).iter().zip(self.of(bare));
        Spread::of(pairs.map(|(engine, bare)| engine.per_second / bare.per_second))
    }

    pub(crate) fn summary(&self) -> Summary {
        Summary {
            kinds: self.order.iter().map(|mode| kind(*mode, self.of(*mode))).collect(),
            ratio_at_least_once: self.ratio(Mode::EngineAlo, Mode::BareAlo),
            ratio_exactly_once: self.ratio(Mode::EngineEos, Mode::BareEos),
            reference_ratio_at_least_once: self.ratio(Mode::EngineAlo, Mode::ReferenceAlo),
            reference_ratio_exactly_once: self.ratio(Mode::EngineEos, Mode::ReferenceEos),
        }
    }

    /// Nothing may be lost, and nothing seen twice except where emission is at-least-once; nobody
    /// died here, so duplicates are shown there and forgiven.
    ///
    /// # Errors
    /// What was lost or seen twice.
    pub(crate) fn verdict(&self) -> anyhow::Result<()> {
        for (name, figures) in &self.figures {
            let lost: u64 = figures.iter().map(|run| run.lost).sum();
            let duplicates: u64 = figures.iter().map(|run| run.duplicates).sum();
            let forgiven = matches!(*name, "reference-alo" | "bare-alo" | "engine-alo");
            if lost > 0 || (duplicates > 0 && !forgiven) {
                bail!("{name}: {lost} messages lost, {duplicates} seen twice");
            }
        }
        Ok(())
    }
}

fn kind(mode: Mode, runs: &[Figures]) -> Kind {
    let spread =
        |value: &dyn Fn(&Figures) -> Option<f64>| Spread::of(runs.iter().filter_map(value));
    Kind {
        mode,
        runs: runs.len(),
        per_second: spread(&|run| Some(run.per_second)),
        low_p50_ms: spread(&|run| run.low.map(|low| low.p50_ms)),
        low_p99_ms: spread(&|run| run.low.map(|low| low.p99_ms)),
        high_p50_ms: spread(&|run| run.high.map(|high| high.p50_ms)),
        high_p99_ms: spread(&|run| run.high.map(|high| high.p99_ms)),
        cpu_seconds: spread(&|run| run.cpu_seconds),
        cpu_micros_per_transaction: spread(&Figures::cpu_micros),
        peak_rss_mib: spread(&Figures::rss_mib),
        asked: spread(&|run| run.asked.map(|asked| asked as f64)),
        bare_consumer_per_second: spread(&|run| run.bare_per_second),
        lost: runs.iter().map(|run| run.lost).sum(),
        duplicates: runs.iter().map(|run| run.duplicates).sum(),
        each: runs.to_vec(),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let summary = self.summary();
        writeln!(f, "median (least..most) of the runs; ms from the commit's call to the reader")?;
        for kind in &summary.kinds {
            let Kind { mode, runs, lost, duplicates, .. } = kind;
            writeln!(f, "\n{} ({runs} runs, lost {lost}, duplicates {duplicates})", mode.name())?;
            for (name, spread, digits) in [
                ("transactions/s", kind.per_second, 0),
                ("low load p50 ms", kind.low_p50_ms, 2),
                ("low load p99 ms", kind.low_p99_ms, 2),
                ("70 % load p50 ms", kind.high_p50_ms, 2),
                ("70 % load p99 ms", kind.high_p99_ms, 2),
                ("CPU seconds", kind.cpu_seconds, 1),
                ("CPU us/transaction", kind.cpu_micros_per_transaction, 1),
                ("peak RSS MiB", kind.peak_rss_mib, 0),
                ("checks", kind.asked, 0),
                ("bare consumer/s", kind.bare_consumer_per_second, 0),
            ] {
                if spread.is_some() {
                    writeln!(f, "  {name:<20}{}", Spread::text(spread, digits))?;
                }
            }
        }
        writeln!(f)?;
        for (name, ratio) in [
            ("reference, at-least-once", summary.reference_ratio_at_least_once),
            ("reference, exactly-once", summary.reference_ratio_exactly_once),
            ("bare, at-least-once", summary.ratio_at_least_once),
            ("bare, exactly-once", summary.ratio_exactly_once),
        ] {
            if ratio.is_some() {
                writeln!(f, "engine / {name}: {}", Spread::text(ratio, 2))?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(mode: Mode, per_second: f64) -> Figures {
        Figures {
            mode,
            load_average: None,
            transactions: 1,
            per_second,
            low: None,
            high: None,
            cpu_seconds: None,
            cpu_by_thread: BTreeMap::new(),
            peak_rss_bytes: None,
            lost: 0,
            duplicates: 0,
            asked: None,
            bare_per_second: None,
        }
    }

    #[test]
    fn the_ratio_is_taken_within_each_round() {
        let mut report = Report::default();
        for (bare, engine) in [(100.0, 80.0), (10.0, 9.0), (50.0, 35.0)] {
            report.add(figures(Mode::ReferenceAlo, bare / 2.0));
            report.add(figures(Mode::BareAlo, bare));
            report.add(figures(Mode::EngineAlo, engine));
        }
        let summary = report.summary();
        let ratio = summary.ratio_at_least_once;
        assert_eq!(ratio, Some(Spread { median: 0.8, min: 0.7, max: 0.9 }));
        let ratio = summary.reference_ratio_at_least_once;
        assert_eq!(ratio, Some(Spread { median: 1.6, min: 1.4, max: 1.8 }));
        assert_eq!(summary.reference_ratio_exactly_once, None);
    }

    #[test]
    fn what_is_lost_fails_the_benchmark_and_so_does_a_duplicate_of_exactly_once() {
        let verdict = |mode, lost, duplicates| {
            let mut report = Report::default();
            report.add(Figures { lost, duplicates, ..figures(mode, 1.0) });
            report.verdict()
        };
        assert!(verdict(Mode::EngineEos, 0, 0).is_ok());
        assert!(verdict(Mode::EngineAlo, 0, 1).is_ok());
        assert!(verdict(Mode::EngineAlo, 1, 0).is_err());
        assert!(verdict(Mode::EngineEos, 0, 1).is_err());
        assert!(verdict(Mode::CheckBack, 0, 1).is_err());
    }

    #[test]
    fn percentiles_are_those_of_the_sorted_times() {
        let times: Vec<Duration> = (1..=100).map(Duration::from_millis).collect();
        let latency = Latency::of(50, &times);
        assert_eq!((latency.p50_ms, latency.p99_ms), (50.0, 99.0));
    }
}
