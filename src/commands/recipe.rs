//! `portcullis recipe`: prints a proxy's configuration file for a configuration of Portcullis. The files in `deploy/` are
//! what it prints for `deploy/portcullis.yaml`.
//!
//! Each proxy has a module and a template with everything that does not depend on the configuration. Nothing from the
//! configuration may break out of the proxy's syntax: a value that cannot be written safely is an error or a warning.

mod caddy;
mod door;
mod envoy;
mod facts;
mod haproxy;
mod ingress_nginx;
mod nginx;
mod template;
mod traefik;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, ValueEnum};

use self::facts::Facts;
use super::output;
use crate::config::Config;

/// Print the configuration file of a proxy for this configuration of Portcullis
///
/// It removes and sets the claim headers, removes tokens with `forward_token: false`, and waits as long as a refresh of
/// keys may take. Two addresses in it have to be changed: that of the proxy's listener and that of the upstream. What the
/// proxy cannot do for this configuration is a warning on standard error.
#[derive(Args, Debug)]
#[command(after_help = "Example:\n  portcullis recipe nginx --config portcullis.yaml > nginx.conf")]
pub struct RecipeArgs {
    /// The proxy
    #[arg(value_enum)]
    proxy: Proxy,
    /// The configuration file
    #[arg(long, value_name = "FILE", env = "PORTCULLIS_CONFIG")]
    config: PathBuf,
}

/// A proxy whose file can be printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Proxy {
    /// NGINX, with auth_request
    Nginx,
    /// The Ingress controller ingress-nginx, with its annotations
    IngressNginx,
    /// Caddy, with forward_auth: a Caddyfile
    Caddy,
    /// HAProxy, with the Lua action of deploy/haproxy/portcullis.lua
    Haproxy,
    /// Traefik, with ForwardAuth: a file of its file provider
    Traefik,
    /// Envoy, with ext_authz over gRPC
    Envoy,
    /// Envoy, with ext_authz over HTTP
    EnvoyHttp,
    /// Envoy, with Portcullis in its own process: not supported yet
    EnvoyModule,
}

/// What was printed for a configuration.
#[derive(Debug)]
struct Recipe {
    /// The file.
    text: String,
    /// What the proxy cannot do, and what else to change.
    warnings: Vec<String>,
}

/// Prints the file. Exits with 1 if the configuration is not valid, or has no door for the proxy.
pub fn run(args: RecipeArgs) -> ExitCode {
    let config = match Config::load(&args.config) {
        Ok(config) => config,
        Err(errors) => {
            output::print_error(&errors.to_string());
            return ExitCode::FAILURE;
        }
    };
    match recipe(args.proxy, &config) {
        Ok(Recipe { text, warnings }) => {
            for warning in warnings {
                output::print_error(&format!("warning: {warning}"));
            }
            output::print_result(&text, ExitCode::SUCCESS)
        }
        Err(error) => {
            output::print_error(&format!("{}: {error}", args.config.display()));
            ExitCode::FAILURE
        }
    }
}

/// The file for Envoy with ext_authz over gRPC.
///
/// # Errors
/// As for `recipe envoy`.
pub(super) fn envoy_file(config: &Config) -> Result<String, String> {
    recipe(Proxy::Envoy, config).map(|recipe| recipe.text)
}

/// The file of this proxy.
///
/// # Errors
/// The configuration has no door for it, or one that the proxy cannot use; the text says what to write instead.
fn recipe(proxy: Proxy, config: &Config) -> Result<Recipe, String> {
    let facts = Facts::new(config);
    match proxy {
        Proxy::Nginx => nginx::recipe(&facts),
        Proxy::IngressNginx => ingress_nginx::recipe(&facts),
        Proxy::Caddy => caddy::recipe(&facts),
        Proxy::Haproxy => haproxy::recipe(&facts),
        Proxy::Traefik => traefik::recipe(&facts),
        Proxy::Envoy => envoy::over_grpc(&facts),
        Proxy::EnvoyHttp => envoy::over_http(&facts),
        Proxy::EnvoyModule => {
            Err("Portcullis inside Envoy is not supported yet: use `envoy` (ext_authz over gRPC)".to_owned())
        }
    }
}
