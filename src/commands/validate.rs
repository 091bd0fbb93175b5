//! stub
#[derive(clap::Args, Debug)]
pub struct ValidateArgs {}
pub fn run(_: ValidateArgs) -> std::process::ExitCode {
    std::process::ExitCode::FAILURE
}
