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

/// Messages of the request, and the fields that the service reads of them.
const READ_FIELDS: [(&str, &[&str]); 3] = [
    ("AttributeContext", &["request"]),
    ("Request", &["http"]),
    ("HttpRequest", &["headers", "path", "header_map"]),
];

/// Maps of strings that are read as lists of byte pairs.
const ENTRY_LISTS: [&str; 1] = ["HeadersEntry"];

/// Strings that are read as bytes.
const BYTE_FIELDS: [(&str, &str); 1] = [("HttpRequest", "path")];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let descriptors = protox::compile(["envoy/service/auth/v3/external_auth.proto"], ["proto"])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;

    tonic_prost_build::configure()
        .bytes(".envoy.service.auth.v3.AttributeContext")
        .bytes(".envoy.config.core.v3.HeaderValue")
        .compile_fds(lean(descriptors))?;
    Ok(())
}

fn lean(mut descriptors: FileDescriptorSet) -> FileDescriptorSet {
    for file in &mut descriptors.file {
        // Comments are found by position, and positions are about to change.
        file.source_code_info = None;
        if file.package() == "envoy.service.auth.v3" {
            file.message_type.iter_mut().for_each(lean_message);
        }
    }
    descriptors
}

fn lean_message(message: &mut DescriptorProto) {
    if let Some((_, read)) = READ_FIELDS.iter().find(|(name, _)| *name == message.name()) {
        message.field.retain(|field| read.contains(&field.name()));
    }
    let name = message.name().to_owned();
    let is_entry = ENTRY_LISTS.contains(&name.as_str());
    if is_entry {
        message.options = None;
    }
    for field in &mut message.field {
        if is_entry || BYTE_FIELDS.contains(&(name.as_str(), field.name())) {
            field.set_type(Type::Bytes);
        }
    }
    message.nested_type.iter_mut().for_each(lean_message);
    // What nothing refers to any more need not be generated.
    if name == "AttributeContext" {
        message
            .nested_type
            .retain(|nested| READ_FIELDS.iter().any(|(read, _)| *read == nested.name()));
    }
}
