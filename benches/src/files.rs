//! The files of `deploy/`, with addresses of this run and one thing changed at a time.

use std::error::Error;

type Failure = Box<dyn Error + Send + Sync>;

/// A configuration file as it is changed.
#[derive(Clone)]
pub struct Text(String);

impl Text {
    /// A file of `deploy/`.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of(file: &str) -> Result<Self, Failure> {
        let path = format!("{}/../deploy/{file}", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))?;
        Ok(Self(text))
    }

    /// With this text instead of another.
    ///
    /// # Errors
    /// The other does not occur, or more than once.
    pub fn with(self, from: &str, to: &str) -> Result<Self, Failure> {
        let found = self.0.matches(from).count();
        if found != 1 {
            return Err(format!("occurs {found} times, not once: {from}").into());
        }
        Ok(Self(self.0.replace(from, to)))
    }

    /// With this text in every place of another.
    ///
    /// # Errors
    /// The other does not occur.
    pub fn with_all(self, from: &str, to: &str) -> Result<Self, Failure> {
        if !self.0.contains(from) {
            return Err(format!("does not occur: {from}").into());
        }
        Ok(Self(self.0.replace(from, to)))
    }

    /// Without what is between these: from the first one, up to the second one.
    ///
    /// # Errors
    /// One of them does not occur.
    pub fn without(self, from: &str, to: &str) -> Result<Self, Failure> {
        let cut = self.0.find(from).and_then(|start| Some((start, start + self.0[start..].find(to)?)));
        let (start, end) = cut.ok_or_else(|| format!("does not occur: {from} ... {to}"))?;
        Ok(Self(format!("{}{}", &self.0[..start], &self.0[end..])))
    }

    /// With this text before another.
    ///
    /// # Errors
    /// The other does not occur, or more than once.
    pub fn before(self, other: &str, text: &str) -> Result<Self, Failure> {
        self.with(other, &format!("{text}{other}"))
    }

    /// With this text behind another.
    ///
    /// # Errors
    /// The other does not occur, or more than once.
    pub fn after(self, other: &str, text: &str) -> Result<Self, Failure> {
        self.with(other, &format!("{other}{text}"))
    }

    /// The whole text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
