//! Files that change while the service runs, in process with a paused clock and with the built binary: partially written,
//! replaced, missing for a while, or not regular files.

mod configuration;
mod keys;
mod process;
