//! Ctrl-C and SIGTERM, for the commands that they end, and the end of the terminal.

use std::future::pending;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Somebody's wish that the command ends.
pub(super) struct End {
    interrupt: Signal,
    terminate: Signal,
    /// For those that end with their terminal: it closes, or somebody types Ctrl-\\ there.
    terminal: Option<(Signal, Signal)>,
}

impl End {
    /// Listens from now on.
    ///
    /// # Errors
    /// The process may not.
    pub(super) fn new() -> io::Result<Self> {
        let (interrupt, terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        Ok(Self { interrupt, terminate, terminal: None })
    }

    /// The same, and SIGHUP and SIGQUIT mean it too: for a command that leaves nothing behind.
    ///
    /// # Errors
    /// The process may not.
    pub(super) fn with_terminal() -> io::Result<Self> {
        let terminal = (signal(SignalKind::hangup())?, signal(SignalKind::quit())?);
        Ok(Self { terminal: Some(terminal), ..Self::new()? })
    }

    /// Waits for it.
    pub(super) async fn asked_for(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            () = async {
                let Some((hangup, quit)) = &mut self.terminal else { return pending().await };
                tokio::select! {
                    _ = hangup.recv() => {}
                    _ = quit.recv() => {}
                }
            } => {}
        }
    }
}
