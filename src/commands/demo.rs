//! stub
#[derive(clap::Args, Debug)]
pub struct DemoArgs {}
pub async fn run(_: DemoArgs) -> std::process::ExitCode {
    std::process::ExitCode::FAILURE
}
