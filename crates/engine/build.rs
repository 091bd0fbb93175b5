//! Sets the time of the build for the program.

use std::env;
use std::error::Error;
use std::time::SystemTime;

fn built_at() -> Result<u64, Box<dyn Error>> {
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");
    match env::var("SOURCE_DATE_EPOCH") {
        Ok(seconds) => Ok(seconds.parse()?),
        #[allow(clippy::disallowed_methods, reason = "a build has no clock argument")]
        Err(_) => Ok(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()),
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rustc-env=PORTCULLIS_BUILT_AT={}", built_at()?);
    Ok(())
}
