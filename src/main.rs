//! The process: parses the command line, runs the command and sets the exit code.

use std::env;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Parser, Subcommand};
use portcullis::commands::{demo, drill, explain, output, recipe, rules, serve, test, validate};
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
    Explain(Box<explain::ExplainArgs>),
    Test(test::TestArgs),
    Rules(rules::RulesArgs),
    Recipe(recipe::RecipeArgs),
    Demo(demo::DemoArgs),
    Drill(drill::DrillArgs),
}

/// How long pending file writes may take at exit, so that a disk, a pipe or a resolver that does not respond cannot
/// block it.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// How long writing the last log lines may take.
const LOG_FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    // Done first, so that SIGHUP does not end the process before `serve` listens for it.
    if env::args_os().nth(1).is_some_and(|command| command == "serve") {
        // The command itself reports an error.
        let _ignored = signal_hook::flag::register(signal_hook::consts::SIGHUP, Arc::default());
    }
    telemetry::log_panics();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            output::print_error(&format!("the runtime cannot be started: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let code = runtime.block_on(run());
    runtime.shutdown_timeout(SHUTDOWN_TIMEOUT);
    telemetry::flush_log(LOG_FLUSH_TIMEOUT);
    code
}

async fn run() -> ExitCode {
    let command_line = match CommandLine::try_parse() {
        Ok(command_line) => command_line,
        Err(error) => {
            let args: Vec<String> = env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
            return output::print_usage_error(&error, &args);
        }
    };
    match command_line.command {
        Command::Serve(args) => serve::run(args).await,
        Command::Validate(args) => validate::run(args).await,
        Command::Explain(args) => explain::run(*args).await,
        Command::Test(args) => test::run(args),
        Command::Rules(args) => rules::run(args),
        Command::Recipe(args) => recipe::run(args),
        Command::Demo(args) => demo::run(args).await,
        Command::Drill(args) => drill::run(args).await,
    }
}
