//! The process: command line to function, and exit codes. It does nothing else.

use std::env;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand};
use portcullis::commands::{demo, drill, explain, output, serve, validate};
use portcullis::telemetry;

/// External authorization for Envoy and other proxies: validates bearer JWTs and stays right while
/// signing keys rotate
#[derive(Parser)]
#[command(name = "portcullis", version, after_help = "Start here:\n  portcullis demo")]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Serve(serve::ServeArgs),
    Validate(validate::ValidateArgs),
    Explain(explain::ExplainArgs),
    Demo(demo::DemoArgs),
    Drill(drill::DrillArgs),
}

/// How long files that are still being written have at the end. A disk, a pipe or a resolver that does not answer keeps
/// nobody from leaving.
const LAST_WRITES: Duration = Duration::from_secs(2);

/// How long the last log lines have, whatever becomes of standard error.
const LAST_LINES: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    // First of all, so that SIGHUP does not end the process before `serve` listens for it.
    if env::args_os().nth(1).is_some_and(|command| command == "serve") {
        // Where it may not, the command itself says so.
        let _ignored = signal_hook::flag::register(signal_hook::consts::SIGHUP, Arc::default());
    }
    telemetry::log_panics();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::complain(&format!("no threads can be started: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(run());
    runtime.shutdown_timeout(LAST_WRITES);
    telemetry::flush_log(LAST_LINES);
    code
}

async fn run() -> ExitCode {
    let command_line = match CommandLine::try_parse() {
        Ok(command_line) => command_line,
        Err(error) => {
            let line: Vec<String> = env::args_os().map(|one| one.to_string_lossy().into_owned()).collect();
            return output::mistaken(&error, &line);
        }
    };
    match command_line.command {
        Command::Serve(args) => serve::run(args).await,
        Command::Validate(args) => validate::run(args),
        Command::Explain(args) => explain::run(args).await,
        Command::Demo(args) => demo::run(args).await,
        Command::Drill(args) => drill::run(args).await,
    }
}
