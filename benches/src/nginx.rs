//! Configurations of NGINX: that of `deploy/nginx` with the addresses of this run, with and without authorization.

use std::error::Error;
use std::net::SocketAddr;
use std::path::Path;

use crate::files::Text;

type Failure = Box<dyn Error + Send + Sync>;

/// `nginx.conf`, without an access log; temporary files are in this folder.
///
/// # Errors
/// The file has changed, so that the addresses are not found.
pub fn auth_request(
    proxy: SocketAddr,
    forward_auth: SocketAddr,
    upstream: SocketAddr,
    folder: &Path,
) -> Result<Text, Failure> {
    let folder = folder.display();
    let own: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("    {kind}_temp_path {folder}/{kind};\n"))
        .concat();
    Text::of("nginx/nginx.conf")?
        .with("listen 10000;", &format!("listen {proxy};"))?
        .with("server 127.0.0.1:9192;", &format!("server {forward_auth};"))?
        .with("server 127.0.0.1:8080;", &format!("server {upstream};"))?
        .after("\nhttp {\n", &format!("    access_log off;\n{own}"))
}

/// The same file without `auth_request`: nothing is authorized.
///
/// # Errors
/// As [`auth_request`].
pub fn alone(shipped: Text) -> Result<Text, Failure> {
    shipped.with("            auth_request /_portcullis;\n", "")
}

/// The same file with fewer idle connections to Portcullis and to the app than there are clients.
///
/// # Errors
/// As [`auth_request`].
pub fn few_idle_connections(shipped: Text) -> Result<Text, Failure> {
    shipped.with_all("keepalive 128;", "keepalive 32;")
}
