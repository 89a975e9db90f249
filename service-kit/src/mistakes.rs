//! Collects all mistakes in a program's settings, so that one start tells them all.

use std::fmt::{self, Display};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

/// All mistakes in the settings, one line each.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mistakes(Vec<String>);

impl Mistakes {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one. Say the setting's name, what is wrong and what would be right.
    pub fn add(&mut self, mistake: impl Into<String>) {
        self.0.push(mistake.into());
    }

    /// The lines.
    pub fn lines(&self) -> &[String] {
        &self.0
    }

    /// `Ok` if there are none.
    ///
    /// # Errors
    /// Itself.
    pub fn finish(self) -> Result<(), Self> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }

    /// Reads a value; `expected` says what would be right.
    pub fn parse<T: FromStr>(&mut self, name: &str, raw: &str, expected: &str) -> Option<T> {
        let value = raw.trim().parse().ok();
        if value.is_none() {
            self.add(format!("{name} is '{raw}': it must be {expected}"));
        }
        value
    }

    /// Reads a number within bounds.
    pub fn number<T>(&mut self, name: &str, raw: &str, bounds: RangeInclusive<T>) -> Option<T>
    where
        T: FromStr + PartialOrd + Display,
    {
        let value = raw.trim().parse().ok().filter(|value| bounds.contains(value));
        if value.is_none() {
            let (low, high) = bounds.into_inner();
            self.add(format!("{name} is '{raw}': it must be a number from {low} to {high}"));
        }
        value
    }

    /// Reads milliseconds within bounds.
    pub fn millis(
        &mut self,
        name: &str,
        raw: &str,
        bounds: RangeInclusive<u64>,
    ) -> Option<Duration> {
        self.number(name, raw, bounds).map(Duration::from_millis)
    }

    /// Reads milliseconds within bounds, or 0 for never.
    pub fn millis_or_never(
        &mut self,
        name: &str,
        raw: &str,
        bounds: RangeInclusive<u64>,
    ) -> Option<Option<Duration>> {
        if raw.trim() == "0" {
            return Some(None);
        }
        let millis = raw.trim().parse().ok().filter(|millis| bounds.contains(millis));
        if millis.is_none() {
            let (low, high) = (bounds.start(), bounds.end());
            self.add(format!("{name} is '{raw}': it must be 0 or a number from {low} to {high}"));
        }
        millis.map(|millis| Some(Duration::from_millis(millis)))
    }

    /// Reads `on` or `off`.
    pub fn switch(&mut self, name: &str, raw: &str) -> Option<bool> {
        match raw.trim() {
            "on" => Some(true),
            "off" => Some(false),
            _ => {
                self.add(format!("{name} is '{raw}': it must be on or off"));
                None
            }
        }
    }

    /// Checks a name that becomes part of a topic's or a group's name.
    pub fn name(&mut self, name: &str, raw: &str) {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if raw.is_empty() || raw.len() > 100 || !raw.chars().all(allowed) {
            self.add(format!(
                "{name} is '{raw}': it must be 1 to 100 characters out of A-Z a-z 0-9 . _ -"
            ));
        }
    }

    /// Checks names of topics that must not be the same.
    pub fn different_topics(&mut self, named: &[(&str, &String)]) {
        for (at, (name, topic)) in named.iter().enumerate() {
            self.name(name, topic);
            if let Some((other, _)) = named[..at].iter().find(|(_, other)| other == topic) {
                self.add(format!(
                    "{name} is '{topic}', as {other} is: each needs a topic of its own"
                ));
            }
        }
    }
}

impl Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.0.len() == 1 { "mistake" } else { "mistakes" };
        write!(f, "{} {plural} in the settings:", self.0.len())?;
        self.0.iter().try_for_each(|line| write!(f, "\n  - {line}"))
    }
}

impl std::error::Error for Mistakes {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_belong_to_what_is_allowed() {
        let mut mistakes = Mistakes::new();
        assert_eq!(mistakes.number("N", " 1 ", 1..=3), Some(1));
        assert_eq!(mistakes.millis("M", "3", 1..=3), Some(Duration::from_millis(3)));
        assert_eq!(mistakes.clone().finish(), Ok(()));
        for wrong in ["0", "4", "", "x", "1.5", "-1"] {
            assert_eq!(mistakes.number("N", wrong, 1..=3_u32), None, "{wrong}");
        }
        assert_eq!(mistakes.lines().len(), 6);
        assert!(mistakes.lines()[0].contains("from 1 to 3"));
        assert!(mistakes.finish().unwrap_err().to_string().starts_with("6 mistakes"));
    }

    #[test]
    fn names_fit_into_a_topic() {
        let mut mistakes = Mistakes::new();
        mistakes.name("N", &"a".repeat(100));
        assert_eq!(mistakes.lines().len(), 0);
        for wrong in ["", "a b", "a/b", &"a".repeat(101)] {
            mistakes.name("N", wrong);
        }
        assert_eq!(mistakes.lines().len(), 4);
    }
}
