//! How far a look at the store has come, shown while it takes long: on standard error, and only on a
//! terminal. It must never write to standard output, which is the result's.

use std::time::{Duration, Instant};

use halfmsg_producer::SnapshotProgress;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressFinish, ProgressStyle};

/// A command that takes longer shows how far it has come.
const SHOWN_AFTER: Duration = Duration::from_millis(500);

/// Shows what it is told, from [`SHOWN_AFTER`] on.
pub(super) fn on_stderr() -> impl Fn(SnapshotProgress) + Send + Sync + 'static {
    // Draws nothing where standard error is no terminal.
    shown_on(ProgressDrawTarget::stderr(), SHOWN_AFTER)
}

fn shown_on(
    target: ProgressDrawTarget,
    after: Duration,
) -> impl Fn(SnapshotProgress) + Send + Sync + 'static {
    let bar = ProgressBar::with_draw_target(None, target);
    let style = ProgressStyle::with_template("reading the store {bar:30} {pos}/{len} {eta}");
    let bar = bar.with_finish(ProgressFinish::AndClear);
    let bar = match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    };
    let began = Instant::now();
    move |SnapshotProgress { read, of }| {
        if read >= of {
            // Before anything is printed where it stood.
            return bar.finish_and_clear();
        }
        if began.elapsed() < after {
            return;
        }
        if bar.is_finished() {
            // A command may look twice.
            bar.reset();
        }
        bar.set_length(of);
        bar.set_position(read);
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex, MutexGuard};

    use indicatif::TermLike;

    use super::*;

    const NEVER: Duration = Duration::MAX;

    /// A terminal of one line, and what stood in it.
    #[derive(Debug, Clone, Default)]
    struct Terminal {
        line: Arc<Mutex<String>>,
        seen: Arc<Mutex<Vec<String>>>,
    }

    impl Terminal {
        fn target(&self) -> ProgressDrawTarget {
            ProgressDrawTarget::term_like(Box::new(self.clone()))
        }

        fn line(&self) -> MutexGuard<'_, String> {
            self.line.lock().expect("nobody panics with it")
        }

        fn seen(&self) -> MutexGuard<'_, Vec<String>> {
            self.seen.lock().expect("nobody panics with it")
        }
    }

    impl TermLike for Terminal {
        fn width(&self) -> u16 {
            100
        }

        fn move_cursor_up(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_down(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_right(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn move_cursor_left(&self, _: usize) -> io::Result<()> {
            Ok(())
        }

        fn write_line(&self, text: &str) -> io::Result<()> {
            self.write_str(text)
        }

        fn write_str(&self, text: &str) -> io::Result<()> {
            self.line().push_str(text);
            Ok(())
        }

        fn clear_line(&self) -> io::Result<()> {
            self.line().clear();
            Ok(())
        }

        fn flush(&self) -> io::Result<()> {
            let line = self.line().trim().to_owned();
            if !line.is_empty() {
                self.seen().push(line);
            }
            Ok(())
        }
    }

    fn of_ten(read: u64) -> SnapshotProgress {
        SnapshotProgress { read, of: 10 }
    }

    #[test]
    fn a_long_look_is_shown_and_leaves_nothing_behind() {
        let terminal = Terminal::default();
        let show = shown_on(terminal.target(), Duration::ZERO);
        show(of_ten(5));
        let seen = terminal.seen().last().cloned().unwrap_or_default();
        assert!(seen.starts_with("reading the store") && seen.contains(" 5/10"), "{seen}");
        show(of_ten(10));
        assert_eq!(terminal.line().trim(), "", "before what the command says");
        show(of_ten(7));
        let seen = terminal.seen().last().cloned().unwrap_or_default();
        assert!(seen.contains(" 7/10"), "a second look is shown too: {seen}");
        drop(show);
        assert_eq!(terminal.line().trim(), "", "one that was given up");
    }

    #[test]
    fn a_short_look_is_not_shown() {
        let terminal = Terminal::default();
        let show = shown_on(terminal.target(), NEVER);
        show(of_ten(5));
        show(of_ten(10));
        assert_eq!(terminal.seen()[..], [] as [&str; 0]);
    }
}
