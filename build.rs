//! Compiles `proto/` without `protoc`, twice: upstream's shape for reflection, and a leaner one for the
//! generated code.
//!
//! The leaner shape is the same bytes on the wire. A map of strings is a repeated message of key and
//! value; taken as that, with `bytes` that share the request's buffer, no header is copied, hashed or
//! checked to be UTF-8. Fields of the request that the service does not read are left out, so that
//! decoding skips them.

use std::env;
use std::error::Error;
use std::fs;
use std::path::PathBuf;

use prost::Message as _;
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet};

/// How the generated code has a message of the request; messages not listed stay as they are.
struct Lean {
    message: &'static str,
    /// The fields that the service reads, in upstream's type.
    kept: &'static [&'static str],
    /// The fields that it reads as bytes, whatever they hold.
    as_bytes: &'static [&'static str],
    /// The maps of strings that it reads as lists of byte pairs.
    entry_lists: &'static [&'static str],
    /// Nested messages and enums that nothing refers to any more.
    unused: &'static [&'static str],
}

const LEAN: [Lean; 6] = [
    Lean {
        message: "envoy.service.auth.v3.AttributeContext",
        kept: &["source", "request", "context_extensions"],
        as_bytes: &[],
        entry_lists: &["ContextExtensionsEntry"],
        unused: &["TLSSession"],
    },
    Lean {
        message: "envoy.service.auth.v3.AttributeContext.Peer",
        kept: &["address"],
        as_bytes: &["principal"],
        entry_lists: &[],
        unused: &["LabelsEntry"],
    },
    Lean {
        message: "envoy.service.auth.v3.AttributeContext.Request",
        kept: &["http"],
        as_bytes: &[],
        entry_lists: &[],
        unused: &[],
    },
    Lean {
        message: "envoy.service.auth.v3.AttributeContext.HttpRequest",
        kept: &["headers", "header_map"],
        as_bytes: &["id", "method", "path", "host", "scheme", "protocol", "body", "raw_body"],
        entry_lists: &["HeadersEntry"],
        unused: &[],
    },
    Lean {
        message: "envoy.config.core.v3.Address",
        kept: &["socket_address"],
        as_bytes: &[],
        entry_lists: &[],
        unused: &[],
    },
    Lean {
        message: "envoy.config.core.v3.SocketAddress",
        kept: &["port_value"],
        as_bytes: &["address"],
        entry_lists: &[],
        unused: &["Protocol"],
    },
];

/// Top-level messages that nothing refers to any more.
const UNUSED: [&str; 1] = ["envoy.config.core.v3.Pipe"];

/// The time of the build, in seconds since the Unix epoch, or what reproducible builds say instead of it: a clock that
/// stands before that is wrong.
fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["envoy/service/auth/v3/external_auth.proto"], ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    tonic_prost_build::configure()
        .bytes(".envoy.service.auth.v3.AttributeContext")
        .bytes(".envoy.config.core.v3.HeaderValue")
        .bytes(".envoy.config.core.v3.SocketAddress")
        .compile_fds(lean(descriptors)?)?;
    Ok(())
}

fn lean(mut descriptors: FileDescriptorSet) -> Result<FileDescriptorSet, String> {
    let mut met = 0;
    for file in &mut descriptors.file {
        // Comments are found by position, and positions are about to change.
        file.source_code_info = None;
        let package = file.package().to_owned();
        file.message_type.retain(|message| {
            let unused = UNUSED.contains(&format!("{package}.{}", message.name()).as_str());
            met += usize::from(unused);
            !unused
        });
        for message in &mut file.message_type {
            met += lean_message(&package, message)?;
        }
    }
    if met == LEAN.len() + UNUSED.len() {
        Ok(descriptors)
    } else {
        Err("build.rs names a message that proto/ does not have".to_owned())
    }
}

/// Leans a message and those inside it; answers how many of [`LEAN`] it met.
fn lean_message(scope: &str, message: &mut DescriptorProto) -> Result<usize, String> {
    let name = format!("{scope}.{}", message.name());
    let mut met = 0;
    if let Some(lean) = LEAN.iter().find(|lean| lean.message == name) {
        met += 1;
        message.field.retain(|field| [lean.kept, lean.as_bytes].concat().contains(&field.name()));
        if message.field.len() != lean.kept.len() + lean.as_bytes.len() {
            return Err(format!("build.rs names a field that {name} does not have"));
        }
        for field in &mut message.field {
            if lean.as_bytes.contains(&field.name()) {
                field.set_type(Type::Bytes);
            }
        }
        message.enum_type.retain(|nested| !lean.unused.contains(&nested.name()));
        message.nested_type.retain(|nested| !lean.unused.contains(&nested.name()));
        for entry in &mut message.nested_type {
            if lean.entry_lists.contains(&entry.name()) {
                entry.options = None;
                entry.field.iter_mut().for_each(|field| field.set_type(Type::Bytes));
            }
        }
    }
    for nested in &mut message.nested_type {
        met += lean_message(&name, nested)?;
    }
    Ok(met)
}
