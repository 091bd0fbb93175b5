//! The signals that end a command: SIGINT, SIGTERM and those of its terminal.

use std::future::pending;
use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Receives the signals that end a command.
pub(super) struct ShutdownSignal {
    interrupt: Signal,
    terminate: Signal,
    /// SIGHUP and SIGQUIT, for commands that end with their terminal.
    terminal: Option<(Signal, Signal)>,
}

impl ShutdownSignal {
    /// Starts to listen.
    ///
    /// # Errors
    /// The signal handlers cannot be registered.
    pub(super) fn new() -> io::Result<Self> {
        let (interrupt, terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        Ok(Self { interrupt, terminate, terminal: None })
    }

    /// Also listens for SIGHUP and SIGQUIT, for a command that cleans up when its terminal closes.
    ///
    /// # Errors
    /// The signal handlers cannot be registered.
    pub(super) fn with_terminal() -> io::Result<Self> {
        let terminal = (signal(SignalKind::hangup())?, signal(SignalKind::quit())?);
        Ok(Self { terminal: Some(terminal), ..Self::new()? })
    }

    /// Waits for a signal.
    pub(super) async fn recv(&mut self) {
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
