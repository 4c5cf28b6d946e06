//! Counting what libtest reports.

use std::fmt;
use std::iter::Sum;
use std::ops::Add;

/// What `timeout` exits with when it had to end a program.
const OUT_OF_TIME: i32 = 124;

/// How many tests passed and failed, and which.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    /// Passed tests.
    pub(crate) passed: usize,
    /// Failed tests.
    pub(crate) failed: usize,
    /// The names of the failed ones.
    pub(crate) names: Vec<String>,
}

impl Summary {
    /// Adds up every summary line in the output of one or several test programs.
    pub(crate) fn of_output<'a>(lines: impl Iterator<Item = &'a str>) -> Self {
        let mut summary = Self::default();
        for line in lines {
            if let Some((passed, failed)) = parse_result(line) {
                summary.passed += passed;
                summary.failed += failed;
            } else if let Some(name) = parse_failure(line) {
                summary.names.push(name.to_owned());
            }
        }
        summary
    }

    /// The output and the exit code of one test program. One without libtest's summary counts as one
    /// test; one that died before its summary, or ends badly without a failed test, as a failure.
    pub(crate) fn of_job(lines: &[String], exit: Option<i32>) -> Self {
        let mut summary = Self::of_output(lines.iter().map(String::as_str));
        let silent = !lines.iter().any(|line| parse_result(line).is_some());
        match exit {
            Some(0) if silent => summary.passed += 1,
            Some(0) => {}
            _ if summary.failed > 0 => {}
            Some(OUT_OF_TIME) => {
                summary.fail("the test program as a whole (it hangs and was ended)".to_owned());
            }
            Some(code) => summary.fail(format!("the test program as a whole (exit code {code})")),
            None => summary.fail("the test program as a whole (it did not come to an end)".to_owned()),
        }
        summary
    }

    /// Counts one more failure.
    pub(crate) fn fail(&mut self, name: String) {
        self.failed += 1;
        self.names.push(name);
    }

    /// Says where the failed tests ran.
    pub(crate) fn within(mut self, place: &str) -> Self {
        for name in &mut self.names {
            *name = format!("{place}: {name}");
        }
        self
    }
}

/// `test result: FAILED. 3 passed; 1 failed; 0 ignored; ...`
fn parse_result(line: &str) -> Option<(usize, usize)> {
    let (_, counts) = line.split_once("test result: ")?.1.split_once(". ")?;
    let count = |unit: &str| {
        let words: Vec<&str> =
            counts.split(';').find(|part| part.trim().ends_with(unit))?.split_whitespace().collect();
        words.first()?.parse().ok()
    };
    Some((count("passed")?, count("failed")?))
}

/// `test a::b ... FAILED`
fn parse_failure(line: &str) -> Option<&str> {
    line.strip_prefix("test ")?.strip_suffix(" ... FAILED")
}

impl Add for Summary {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self.passed += other.passed;
        self.failed += other.failed;
        self.names.extend(other.names);
        self
    }
}

impl Sum for Summary {
    fn sum<I: Iterator<Item = Self>>(summaries: I) -> Self {
        summaries.fold(Self::default(), Add::add)
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<String> {
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn passed_and_failed_tests_are_counted_and_named() {
        let output = lines(
            "running 3 tests\ntest a ... ok\ntest b::c ... FAILED\ntest d ... ok\n\n\
             test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.1s\n",
        );
        let summary = Summary::of_job(&output, Some(101));
        assert_eq!(summary, Summary { passed: 2, failed: 1, names: vec!["b::c".into()] });
        assert_eq!(summary.to_string(), "2 passed, 1 failed");
    }

    #[test]
    fn a_program_that_dies_before_its_summary_is_a_failure() {
        assert_eq!(Summary::of_job(&lines("running 3 tests\ntest a ... ok\n"), Some(139)).failed, 1);
        assert_eq!(Summary::of_job(&lines("running 3 tests\n"), None).failed, 1);
    }

    #[test]
    fn a_program_that_ends_badly_after_good_tests_is_a_failure() {
        let output = lines("test result: ok. 2 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
        assert_eq!(Summary::of_job(&output, Some(1)).failed, 1);
    }

    #[test]
    fn a_program_without_libtest_counts_as_one_test() {
        assert_eq!(Summary::of_job(&lines("all fine"), Some(0)).passed, 1);
    }
}
