//! Ctrl-C and SIGTERM, for the commands that they end, and the end of the terminal.

use std::future::pending;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Somebody's wish that the command ends.
pub(super) struct End {
    interrupt: Signal,
    terminate: Signal,
    /// For those that end with their terminal.
    hangup: Option<Signal>,
}

impl End {
    /// Listens from now on.
    ///
    /// # Errors
    /// The process may not.
    pub(super) fn new() -> io::Result<Self> {
        let (interrupt, terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        Ok(Self { interrupt, terminate, hangup: None })
    }

    /// The same, and SIGHUP means it too: for a command that leaves nothing behind when its terminal closes.
    ///
    /// # Errors
    /// The process may not.
    pub(super) fn with_terminal() -> io::Result<Self> {
        Ok(Self { hangup: Some(signal(SignalKind::hangup())?), ..Self::new()? })
    }

    /// Waits for it.
    pub(super) async fn asked_for(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            () = async {
                match &mut self.hangup {
                    Some(hangup) => { hangup.recv().await; }
                    None => pending().await,
                }
            } => {}
        }
    }
}
