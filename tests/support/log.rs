//! What is logged on this thread while a test looks.

use std::io;
use std::sync::{Arc, Mutex};

use tracing::subscriber::DefaultGuard;
use tracing_subscriber::fmt::MakeWriter;

/// The log of this thread, kept instead of written until it is dropped.
pub struct Captured {
    bytes: Bytes,
    _guard: DefaultGuard,
}

#[derive(Clone, Default)]
struct Bytes(Arc<Mutex<Vec<u8>>>);

impl io::Write for Bytes {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().expect("nobody panics").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Bytes {
    type Writer = Bytes;

    fn make_writer(&self) -> Bytes {
        self.clone()
    }
}

impl Captured {
    pub fn start() -> Self {
        let bytes = Bytes::default();
        let log = tracing_subscriber::fmt().with_ansi(false).with_writer(bytes.clone()).finish();
        Self { bytes, _guard: tracing::subscriber::set_default(log) }
    }

    /// The lines with this text in them.
    pub fn lines(&self, text: &str) -> Vec<String> {
        let bytes = self.bytes.0.lock().expect("nobody panics").clone();
        let all = String::from_utf8(bytes).expect("text");
        all.lines().filter(|line| line.contains(text)).map(str::to_owned).collect()
    }
}
