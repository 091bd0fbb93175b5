//! Wire compatibility of our trimmed ext_authz definitions with upstream's complete ones (`envoy-types`), in both
//! directions, and of the descriptors that reflection serves. Does not test decisions.

#![allow(deprecated, reason = "what upstream deprecates, peers still send")]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Mutex;

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3 as up_core;
use envoy_types::pb::envoy::service::auth::v3 as up;
use envoy_types::pb::envoy::r#type::v3 as up_type;
use envoy_types::pb::google::{protobuf as up_google, rpc as up_rpc};
use portcullis::proto::FILE_DESCRIPTOR_SET;
use portcullis::proto::envoy::config::core::v3 as core;
use portcullis::proto::envoy::service::auth::v3::attribute_context::http_request::HeadersEntry;
use portcullis::proto::envoy::service::auth::v3::attribute_context::{
    ContextExtensionsEntry, HttpRequest, Peer, Request,
};
use portcullis::proto::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use portcullis::proto::envoy::service::auth::v3::authorization_server::{Authorization, AuthorizationServer};
use portcullis::proto::envoy::service::auth::v3::check_response::HttpResponse;
use portcullis::proto::envoy::service::auth::v3::{
    AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, OkHttpResponse,
};
use portcullis::proto::envoy::r#type::v3::HttpStatus;
use portcullis::proto::google::rpc;
use proptest::prelude::*;
use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};
use tokio_stream::wrappers::TcpListenerStream;

const CHECK_REQUEST: &str = ".envoy.service.auth.v3.CheckRequest";
const CHECK_RESPONSE: &str = ".envoy.service.auth.v3.CheckResponse";

// ---- We decode what upstream encodes.

#[test]
fn a_complete_upstream_request_is_decoded_with_every_defined_field() {
    let request = CheckRequest::decode(full_upstream_request().encode_to_vec().as_slice()).unwrap();
    let attributes = request.attributes.unwrap();

    let source = attributes.source.unwrap();
    assert_eq!(source.principal, "spiffe://cluster.local/ns/web/sa/shop");
    let address = source.address.unwrap().address.unwrap();
    let core::address::Address::SocketAddress(socket) = address;
    assert_eq!(socket.address, "2001:db8::7");
    assert_eq!(socket.port_specifier, Some(core::socket_address::PortSpecifier::PortValue(65_535)));

    assert_eq!(
        pairs(&attributes.context_extensions, |entry| (&entry.key, &entry.value)),
        [("portcullis_rule", "admin"), ("virtual_host", "shop")]
    );

    let http = attributes.request.unwrap().http.unwrap();
    assert_eq!(http.id, "1234567890123456789");
    assert_eq!(http.method, "POST");
    assert_eq!(http.path, "/orders?id=7");
    assert_eq!(http.host, "shop.example:8443");
    assert_eq!(http.scheme, "https");
    assert_eq!(http.protocol, "HTTP/2");
    assert_eq!(
        pairs(&http.headers, |entry| (&entry.key, &entry.value)),
        [(":method", "POST"), ("authorization", "Bearer aaa.bbb.ccc"), ("x-empty", "")]
    );
    let listed = http.header_map.unwrap().headers;
    assert_eq!(
        listed,
        [
            core::HeaderValue { key: "x-raw".into(), raw_value: "\u{e9}".into(), value: "".into() },
            core::HeaderValue { key: "x-text".into(), raw_value: Bytes::new(), value: "t".into() },
        ]
    );
}

#[test]
fn an_address_other_than_a_socket_address_is_decoded_as_none() {
    for address in [
        up_core::address::Address::Pipe(up_core::Pipe { path: "/run/envoy".into(), mode: 0o600 }),
        up_core::address::Address::EnvoyInternalAddress(up_core::EnvoyInternalAddress::default()),
    ] {
        let mut request = full_upstream_request();
        let source = request.attributes.as_mut().unwrap().source.as_mut().unwrap();
        source.address = Some(up_core::Address { address: Some(address) });
        let ours = CheckRequest::decode(request.encode_to_vec().as_slice()).unwrap();
        let address = ours.attributes.unwrap().source.unwrap().address;
        assert_eq!(address, Some(core::Address { address: None }));
    }
}

#[test]
fn bytes_that_are_not_utf8_are_decoded_unchanged() {
    const NOT_UTF8: &[u8] = b"a\xff\xfe\x80";
    let not_utf8 = || Bytes::from_static(NOT_UTF8);
    let entry = || HeadersEntry { key: not_utf8(), value: not_utf8() };
    let request = CheckRequest {
        attributes: Some(AttributeContext {
            source: Some(Peer {
                principal: not_utf8(),
                address: Some(core::Address {
                    address: Some(core::address::Address::SocketAddress(core::SocketAddress {
                        address: not_utf8(),
                        port_specifier: None,
                    })),
                }),
            }),
            request: Some(Request {
                http: Some(HttpRequest {
                    id: not_utf8(),
                    method: not_utf8(),
                    headers: vec![entry()],
                    path: not_utf8(),
                    host: not_utf8(),
                    scheme: not_utf8(),
                    protocol: not_utf8(),
                    header_map: Some(core::HeaderMap {
                        headers: vec![core::HeaderValue { raw_value: not_utf8(), ..Default::default() }],
                    }),
                    body: not_utf8(),
                    raw_body: not_utf8(),
                }),
            }),
            context_extensions: vec![ContextExtensionsEntry { key: not_utf8(), value: not_utf8() }],
        }),
    };
    let mut wire = request.encode_to_vec();
    assert!(up::CheckRequest::decode(wire.as_slice()).is_err(), "upstream's types refuse it");
    assert_eq!(CheckRequest::decode(wire.as_slice()).unwrap(), request);

    // Fields that we omit may have any bytes too: a second `attributes` merges into the first.
    // attributes { request { http { query, fragment: NOT_UTF8 } }, tls_session { sni: NOT_UTF8 } }
    let http: Vec<u8> = [7, 8].iter().flat_map(|field| delimited(*field, NOT_UTF8)).collect();
    let attributes = [delimited(4, &delimited(2, &http)), delimited(12, &delimited(1, NOT_UTF8))].concat();
    wire.extend(delimited(1, &attributes));
    assert_eq!(CheckRequest::decode(wire.as_slice()).unwrap(), request);
}

#[test]
fn of_map_entries_with_one_key_upstream_keeps_the_last_and_we_keep_all() {
    let entry = |value: &str| ContextExtensionsEntry { key: "rule".into(), value: value.to_owned().into() };
    let request = CheckRequest {
        attributes: Some(AttributeContext {
            context_extensions: vec![entry("first"), entry("last")],
            ..Default::default()
        }),
    };
    let wire = request.encode_to_vec();
    let theirs = up::CheckRequest::decode(wire.as_slice()).unwrap().attributes.unwrap();
    assert_eq!(theirs.context_extensions, string_map(&[("rule", "last")]));
    assert_eq!(CheckRequest::decode(wire.as_slice()).unwrap(), request);
}

#[test]
fn a_map_entry_without_key_or_value_has_an_empty_key_or_value() {
    let headers = [delimited(3, &delimited(2, b"v")), delimited(3, &delimited(1, b"k"))].concat();
    let wire = delimited(1, &delimited(4, &delimited(2, &headers)));
    let theirs = up::CheckRequest::decode(wire.as_slice()).unwrap();
    let theirs = theirs.attributes.unwrap().request.unwrap().http.unwrap().headers;
    assert_eq!(theirs, string_map(&[("", "v"), ("k", "")]));
    let ours = CheckRequest::decode(wire.as_slice()).unwrap();
    let ours = ours.attributes.unwrap().request.unwrap().http.unwrap().headers;
    assert_eq!(pairs(&ours, |entry| (&entry.key, &entry.value)), [("", "v"), ("k", "")]);
}

#[test]
fn decoding_a_request_copies_no_bytes() {
    let wire = Bytes::from(full_upstream_request().encode_to_vec());
    let input = wire.as_ptr_range();
    let attributes = CheckRequest::decode(wire.clone()).unwrap().attributes.unwrap();
    let source = attributes.source.unwrap();
    let core::address::Address::SocketAddress(socket) = source.address.unwrap().address.unwrap();
    let http = attributes.request.unwrap().http.unwrap();
    let mut decoded = vec![
        socket.address,
        source.principal,
        http.id,
        http.method,
        http.path,
        http.host,
        http.scheme,
        http.protocol,
    ];
    decoded.extend(http.headers.into_iter().flat_map(|entry| [entry.key, entry.value]));
    decoded.extend(attributes.context_extensions.into_iter().flat_map(|e| [e.key, e.value]));
    decoded.extend(http.header_map.unwrap().headers.into_iter().map(|header| header.raw_value));
    decoded.retain(|bytes| !bytes.is_empty());
    assert_eq!(decoded.len(), 18);
    for bytes in decoded {
        let range = bytes.as_ptr_range();
        assert!(input.start <= range.start && range.end <= input.end, "{bytes:?} was copied");
    }
}

// ---- Upstream decodes what we encode.

#[test]
fn upstream_decodes_our_request() {
    let ours = to_ours(&full_upstream_request());
    let theirs = up::CheckRequest::decode(ours.encode_to_vec().as_slice()).unwrap();
    assert_eq!(theirs, without_omitted_fields(full_upstream_request()));
}

#[test]
fn upstream_decodes_our_response() {
    let header = |key: &str, value: &str| core::HeaderValueOption {
        header: Some(core::HeaderValue { key: key.into(), value: value.into(), raw_value: Bytes::new() }),
        append: None,
        append_action: core::header_value_option::HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
        keep_empty_value: false,
    };
    let allowed = CheckResponse {
        status: Some(rpc::Status::default()),
        http_response: Some(HttpResponse::OkResponse(OkHttpResponse {
            headers: vec![header("x-tenant", "7")],
            headers_to_remove: vec!["x_tenant".into()],
            query_parameters_to_remove: vec!["access_token".into()],
            ..Default::default()
        })),
        dynamic_metadata: None,
    };
    let theirs = up::CheckResponse::decode(allowed.encode_to_vec().as_slice()).unwrap();
    assert_eq!(theirs.status.unwrap().code, up_rpc::Code::Ok as i32);
    let Some(up::check_response::HttpResponse::OkResponse(ok)) = theirs.http_response else {
        panic!("no ok_response")
    };
    let set = ok.headers[0].clone();
    assert_eq!(set.append, None);
    assert_eq!(set.append_action(), up_core::header_value_option::HeaderAppendAction::OverwriteIfExistsOrAdd);
    assert_eq!(set.header.unwrap().key, "x-tenant");
    assert_eq!(ok.headers_to_remove, ["x_tenant"]);
    assert_eq!(ok.query_parameters_to_remove, ["access_token"]);

    for (code, status) in [(16, 401), (7, 403), (3, 400), (14, 503)] {
        let denied = CheckResponse {
            status: Some(rpc::Status { code, message: "why".into(), details: Vec::new() }),
            http_response: Some(HttpResponse::DeniedResponse(DeniedHttpResponse {
                status: Some(HttpStatus { code: status }),
                headers: vec![header("www-authenticate", "Bearer realm=\"r\"")],
                body: "{}".into(),
            })),
            dynamic_metadata: Some(prost_types::Struct {
                fields: [("reason".to_owned(), text("expired"))].into(),
            }),
        };
        let theirs = up::CheckResponse::decode(denied.encode_to_vec().as_slice()).unwrap();
        let Some(up::check_response::HttpResponse::DeniedResponse(answer)) = &theirs.http_response else {
            panic!("no denied_response")
        };
        assert_eq!(theirs.status.as_ref().unwrap().code, code);
        assert_eq!(theirs.status.as_ref().unwrap().message, "why");
        assert_eq!(answer.status.unwrap().code, status);
        assert_eq!(answer.headers[0].header.as_ref().unwrap().value, "Bearer realm=\"r\"");
        assert_eq!(answer.body, "{}");
        assert_eq!(
            theirs.dynamic_metadata.unwrap().fields["reason"].kind,
            Some(up_google::value::Kind::StringValue("expired".into()))
        );
    }
}

#[test]
fn omitted_fields_of_an_upstream_response_are_skipped() {
    let status = up_rpc::Status { code: 14, message: "down".into(), details: Vec::new() };
    let failed = up::CheckResponse {
        status: Some(status.clone()),
        http_response: Some(up::check_response::HttpResponse::ErrorResponse(up::DeniedHttpResponse {
            status: Some(up_type::HttpStatus { code: 503 }),
            headers: Vec::new(),
            body: "down".into(),
        })),
        dynamic_metadata: None,
    };
    let ours = CheckResponse::decode(failed.encode_to_vec().as_slice()).unwrap();
    assert_eq!(ours.status.unwrap().code, 14);
    assert_eq!(ours.http_response, None);

    let mut ok = up::OkHttpResponse {
        headers_to_remove: vec!["x-user".into()],
        dynamic_metadata: Some(up_google::Struct {
            fields: HashMap::from([("k".to_owned(), up_google::Value::default())]),
        }),
        ..Default::default()
    };
    let answer = |ok: &up::OkHttpResponse| up::CheckResponse {
        status: Some(status.clone()),
        http_response: Some(up::check_response::HttpResponse::OkResponse(ok.clone())),
        dynamic_metadata: None,
    };
    let with = answer(&ok).encode_to_vec();
    ok.dynamic_metadata = None;
    let without = answer(&ok).encode_to_vec();
    assert_ne!(with, without);
    let ours = CheckResponse::decode(with.as_slice()).unwrap();
    assert_eq!(ours.encode_to_vec(), without);
}

// ---- The same with generated messages.

proptest! {
    #[test]
    fn we_decode_any_upstream_request(theirs in upstream_request()) {
        let mut ours = CheckRequest::decode(theirs.encode_to_vec().as_slice()).unwrap();
        sort_entries(&mut ours);
        prop_assert_eq!(&ours, &to_ours(&theirs));
        let back = up::CheckRequest::decode(ours.encode_to_vec().as_slice()).unwrap();
        prop_assert_eq!(back, without_omitted_fields(theirs));
    }

    #[test]
    fn upstream_decodes_any_request_of_ours(theirs in upstream_request()) {
        let ours = to_ours(&theirs);
        let read = up::CheckRequest::decode(ours.encode_to_vec().as_slice()).unwrap();
        prop_assert_eq!(&read, &without_omitted_fields(theirs));
        prop_assert_eq!(to_ours(&read), ours);
    }

    #[test]
    fn upstream_decodes_any_response_of_ours(ours in our_response()) {
        let theirs = up::CheckResponse::decode(ours.encode_to_vec().as_slice()).unwrap();
        prop_assert_eq!(theirs, to_upstream(&ours));
    }

    #[test]
    fn we_decode_any_upstream_response(ours in our_response(), metadata in any::<bool>()) {
        let mut theirs = to_upstream(&ours);
        if let Some(up::check_response::HttpResponse::OkResponse(ok)) = &mut theirs.http_response {
            ok.dynamic_metadata = metadata.then(up_google::Struct::default);
        }
        prop_assert_eq!(CheckResponse::decode(theirs.encode_to_vec().as_slice()).unwrap(), ours);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(
        mut wire in upstream_request().prop_map(|request| request.encode_to_vec()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
        end in any::<prop::sample::Index>(),
    ) {
        for (position, byte) in changes {
            if !wire.is_empty() {
                let position = position.index(wire.len());
                wire[position] = byte;
            }
        }
        wire.truncate(end.index(wire.len() + 1));
        // A decoded message survives encoding and decoding.
        if let Ok(request) = CheckRequest::decode(wire.as_slice()) {
            prop_assert_eq!(CheckRequest::decode(request.encode_to_vec().as_slice()), Ok(request));
        }
    }
}

// ---- The same over a real connection, with the generated clients and servers.

#[tokio::test]
async fn upstreams_client_calls_our_server_and_the_headers_share_the_receive_buffer() {
    struct Server(Mutex<Option<CheckRequest>>);
    #[tonic::async_trait]
    impl Authorization for &'static Server {
        async fn check(
            &self,
            request: tonic::Request<CheckRequest>,
        ) -> Result<tonic::Response<CheckResponse>, tonic::Status> {
            *self.0.lock().unwrap() = Some(request.into_inner());
            let status = rpc::Status { code: 7, message: "no".into(), details: Vec::new() };
            Ok(tonic::Response::new(CheckResponse { status: Some(status), ..Default::default() }))
        }
    }
    let server: &'static Server = Box::leak(Box::new(Server(Mutex::default())));
    let address = serve(AuthorizationServer::new(server)).await;
    let mut client =
        up::authorization_client::AuthorizationClient::connect(format!("http://{address}")).await.unwrap();
    let answer = client.check(full_upstream_request()).await.unwrap().into_inner();
    assert_eq!(answer.status.unwrap().code, 7);

    let mut received = server.0.lock().unwrap().take().unwrap();
    // On the wire, two bytes (tag and length) are between a key and its value. Copies would be elsewhere.
    let http = received.attributes.as_ref().unwrap().request.as_ref().unwrap().http.as_ref();
    for entry in http.unwrap().headers.iter().filter(|entry| !entry.value.is_empty()) {
        assert_eq!(entry.key.as_ptr() as usize + entry.key.len() + 2, entry.value.as_ptr() as usize);
    }
    sort_entries(&mut received);
    assert_eq!(received, to_ours(&full_upstream_request()));
}

#[tokio::test]
async fn our_client_calls_upstreams_server() {
    struct Server;
    #[tonic::async_trait]
    impl up::authorization_server::Authorization for Server {
        async fn check(
            &self,
            request: tonic::Request<up::CheckRequest>,
        ) -> Result<tonic::Response<up::CheckResponse>, tonic::Status> {
            assert_eq!(request.into_inner(), without_omitted_fields(full_upstream_request()));
            let status = up_rpc::Status { code: 16, message: "no".into(), details: Vec::new() };
            let status = Some(status);
            Ok(tonic::Response::new(up::CheckResponse { status, ..Default::default() }))
        }
    }
    let address = serve(up::authorization_server::AuthorizationServer::new(Server)).await;
    let mut client = AuthorizationClient::connect(format!("http://{address}")).await.unwrap();
    let answer = client.check(to_ours(&full_upstream_request())).await.unwrap().into_inner();
    assert_eq!(answer.status.unwrap().code, 16);
}

// ---- What reflection serves.

#[test]
fn reflection_serves_upstreams_names_numbers_and_types() {
    let descriptors = Descriptors::read();
    let served: BTreeSet<String> = descriptors
        .messages
        .iter()
        .filter(|(name, _)| !name.starts_with(".google.protobuf."))
        .flat_map(|(name, message)| message.field.iter().map(move |field| describe(name, message, field)))
        .collect();
    let upstream: BTreeSet<String> =
        UPSTREAM.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect();
    let differences: Vec<_> = served.symmetric_difference(&upstream).collect();
    assert!(differences.is_empty(), "{differences:#?}");

    let services: Vec<_> = descriptors.files.file.iter().flat_map(|file| &file.service).collect();
    assert_eq!(services.len(), 1);
    assert_eq!(services[0].name(), "Authorization");
    assert_eq!(services[0].method.len(), 1);
    assert_eq!(services[0].method[0].name(), "Check");
    assert_eq!(services[0].method[0].input_type(), CHECK_REQUEST);
    assert_eq!(services[0].method[0].output_type(), CHECK_RESPONSE);
}

#[test]
fn reflection_serves_maps_as_maps() {
    let descriptors = Descriptors::read();
    let entries: Vec<_> = descriptors
        .messages
        .iter()
        .filter(|(name, _)| name.ends_with("Entry"))
        .map(|(name, message)| (name.as_str(), message.options.as_ref().and_then(|o| o.map_entry)))
        .collect();
    assert_eq!(
        entries,
        [
            (".envoy.service.auth.v3.AttributeContext.ContextExtensionsEntry", Some(true)),
            (".envoy.service.auth.v3.AttributeContext.HttpRequest.HeadersEntry", Some(true)),
            (".envoy.service.auth.v3.AttributeContext.Peer.LabelsEntry", Some(true)),
            (".google.protobuf.Struct.FieldsEntry", Some(true)),
        ]
    );
}

#[test]
fn reflection_serves_upstreams_enums() {
    let descriptors = Descriptors::read();
    let served = |name: &str| -> Vec<(i32, String)> {
        descriptors.enums[name].value.iter().map(|v| (v.number(), v.name().to_owned())).collect()
    };
    let upstream = |name_of: &dyn Fn(i32) -> Option<&'static str>| -> Vec<(i32, String)> {
        (-1..1000).filter_map(|number| Some((number, name_of(number)?.to_owned()))).collect()
    };
    assert_eq!(
        served(".envoy.type.v3.StatusCode"),
        upstream(&|number| Some(up_type::StatusCode::try_from(number).ok()?.as_str_name()))
    );
    assert_eq!(
        served(".envoy.config.core.v3.HeaderValueOption.HeaderAppendAction"),
        upstream(&|number| {
            let action = up_core::header_value_option::HeaderAppendAction::try_from(number);
            Some(action.ok()?.as_str_name())
        })
    );
    assert_eq!(
        served(".envoy.config.core.v3.SocketAddress.Protocol"),
        upstream(&|number| { Some(up_core::socket_address::Protocol::try_from(number).ok()?.as_str_name()) })
    );
}

#[test]
fn reflection_serves_every_imported_file() {
    let files = Descriptors::read().files.file;
    let names: BTreeSet<&str> = files.iter().map(|file| file.name()).collect();
    let missing: Vec<_> = files
        .iter()
        .flat_map(|file| &file.dependency)
        .filter(|import| !names.contains(import.as_str()))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
    assert!(names.contains("envoy/service/auth/v3/external_auth.proto"));
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .build_v1()
        .unwrap();
}

#[test]
fn upstream_decodes_and_encodes_every_field_that_reflection_serves() {
    let descriptors = Descriptors::read();
    let mut values = BTreeSet::new();
    for variant in 0..SAMPLES {
        let request = descriptors.sample(CHECK_REQUEST, variant);
        let theirs = up::CheckRequest::decode(request.as_slice()).unwrap().encode_to_vec();
        let request = descriptors.leaves(CHECK_REQUEST, &request);
        assert_eq!(descriptors.leaves(CHECK_REQUEST, &theirs), request);

        let response = descriptors.sample(CHECK_RESPONSE, variant);
        let theirs = up::CheckResponse::decode(response.as_slice()).unwrap().encode_to_vec();
        let response = descriptors.leaves(CHECK_RESPONSE, &response);
        assert_eq!(descriptors.leaves(CHECK_RESPONSE, &theirs), response);
        values.extend(request.into_iter().chain(response).map(|(_, value)| value));
    }
    for (name, message) in &descriptors.messages {
        for field in message.field.iter().filter(|f| f.r#type() != Type::Message) {
            let field = format!("{name}.{} ", field.name());
            assert!(values.iter().any(|value| value.starts_with(&field)), "{field}was not sampled");
        }
    }
}

#[test]
fn the_generated_code_has_every_field_that_reflection_serves_except_the_omitted_ones() {
    const OMITTED: [&str; 12] = [
        "attributes.source.address.pipe.",
        "attributes.source.address.socket_address.protocol",
        "attributes.source.address.socket_address.named_port",
        "attributes.source.service",
        "attributes.source.labels.",
        "attributes.source.certificate",
        "attributes.destination.",
        "attributes.request.time.",
        "attributes.request.http.query",
        "attributes.request.http.fragment",
        "attributes.request.http.size",
        "attributes.tls_session.",
    ];
    let descriptors = Descriptors::read();
    let mut skipped: BTreeSet<&str> = BTreeSet::new();
    for variant in 0..SAMPLES {
        let wire = descriptors.sample(CHECK_REQUEST, variant);
        let ours = CheckRequest::decode(wire.as_slice()).unwrap().encode_to_vec();
        let mut expected = descriptors.leaves(CHECK_REQUEST, &wire);
        expected.retain(|(path, _)| {
            let omitted = OMITTED.into_iter().find(|prefix| path.starts_with(prefix));
            skipped.extend(omitted);
            omitted.is_none()
        });
        assert_eq!(descriptors.leaves(CHECK_REQUEST, &ours), expected);

        let wire = descriptors.sample(CHECK_RESPONSE, variant);
        let ours = CheckResponse::decode(wire.as_slice()).unwrap().encode_to_vec();
        assert_eq!(descriptors.leaves(CHECK_RESPONSE, &ours), descriptors.leaves(CHECK_RESPONSE, &wire));
    }
    assert_eq!(skipped.len(), OMITTED.len(), "only {skipped:?} were sampled");
}

/// The fields of `proto/` according to upstream's definitions: name, number, type.
const UPSTREAM: &str = "
    .envoy.service.auth.v3.CheckRequest.attributes 1 .envoy.service.auth.v3.AttributeContext

    .envoy.service.auth.v3.AttributeContext.source 1 .envoy.service.auth.v3.AttributeContext.Peer
    .envoy.service.auth.v3.AttributeContext.destination 2 .envoy.service.auth.v3.AttributeContext.Peer
    .envoy.service.auth.v3.AttributeContext.request 4 .envoy.service.auth.v3.AttributeContext.Request
    .envoy.service.auth.v3.AttributeContext.context_extensions 10 repeated .envoy.service.auth.v3.AttributeContext.ContextExtensionsEntry
    .envoy.service.auth.v3.AttributeContext.ContextExtensionsEntry.key 1 string
    .envoy.service.auth.v3.AttributeContext.ContextExtensionsEntry.value 2 string
    .envoy.service.auth.v3.AttributeContext.tls_session 12 .envoy.service.auth.v3.AttributeContext.TLSSession
    .envoy.service.auth.v3.AttributeContext.TLSSession.sni 1 string

    .envoy.service.auth.v3.AttributeContext.Peer.address 1 .envoy.config.core.v3.Address
    .envoy.service.auth.v3.AttributeContext.Peer.service 2 string
    .envoy.service.auth.v3.AttributeContext.Peer.labels 3 repeated .envoy.service.auth.v3.AttributeContext.Peer.LabelsEntry
    .envoy.service.auth.v3.AttributeContext.Peer.LabelsEntry.key 1 string
    .envoy.service.auth.v3.AttributeContext.Peer.LabelsEntry.value 2 string
    .envoy.service.auth.v3.AttributeContext.Peer.principal 4 string
    .envoy.service.auth.v3.AttributeContext.Peer.certificate 5 string

    .envoy.service.auth.v3.AttributeContext.Request.time 1 .google.protobuf.Timestamp
    .envoy.service.auth.v3.AttributeContext.Request.http 2 .envoy.service.auth.v3.AttributeContext.HttpRequest
    .envoy.service.auth.v3.AttributeContext.HttpRequest.id 1 string
    .envoy.service.auth.v3.AttributeContext.HttpRequest.method 2 string
    .envoy.service.auth.v3.AttributeContext.HttpRequest.headers 3 repeated .envoy.service.auth.v3.AttributeContext.HttpRequest.HeadersEntry
    .envoy.service.auth.v3.AttributeContext.HttpRequest.HeadersEntry.key 1 string
    .envoy.service.auth.v3.AttributeContext.HttpRequest.HeadersEntry.value 2 string
    .envoy.service.auth.v3.AttributeContext.HttpRequest.path 4 string
    .envoy.service.auth.v3.AttributeContext.HttpRequest.host 5 string
    .envoy.service.auth.v3.AttributeContext.HttpRequest.scheme 6 string
    .envoy.service.auth.v3.AttributeContext.HttpRequest.query 7 string
    .envoy.service.auth.v3.AttributeContext.HttpRequest.fragment 8 string
    .envoy.service.auth.v3.AttributeContext.HttpRequest.size 9 int64
    .envoy.service.auth.v3.AttributeContext.HttpRequest.protocol 10 string
    .envoy.service.auth.v3.AttributeContext.HttpRequest.body 11 string
    .envoy.service.auth.v3.AttributeContext.HttpRequest.raw_body 12 bytes
    .envoy.service.auth.v3.AttributeContext.HttpRequest.header_map 13 .envoy.config.core.v3.HeaderMap

    .envoy.service.auth.v3.CheckResponse.status 1 .google.rpc.Status
    .envoy.service.auth.v3.CheckResponse.denied_response 2 http_response: .envoy.service.auth.v3.DeniedHttpResponse
    .envoy.service.auth.v3.CheckResponse.ok_response 3 http_response: .envoy.service.auth.v3.OkHttpResponse
    .envoy.service.auth.v3.CheckResponse.dynamic_metadata 4 .google.protobuf.Struct
    .envoy.service.auth.v3.DeniedHttpResponse.status 1 .envoy.type.v3.HttpStatus
    .envoy.service.auth.v3.DeniedHttpResponse.headers 2 repeated .envoy.config.core.v3.HeaderValueOption
    .envoy.service.auth.v3.DeniedHttpResponse.body 3 string
    .envoy.service.auth.v3.OkHttpResponse.headers 2 repeated .envoy.config.core.v3.HeaderValueOption
    .envoy.service.auth.v3.OkHttpResponse.headers_to_remove 5 repeated string
    .envoy.service.auth.v3.OkHttpResponse.response_headers_to_add 6 repeated .envoy.config.core.v3.HeaderValueOption
    .envoy.service.auth.v3.OkHttpResponse.query_parameters_to_set 7 repeated .envoy.config.core.v3.QueryParameter
    .envoy.service.auth.v3.OkHttpResponse.query_parameters_to_remove 8 repeated string

    .envoy.config.core.v3.Address.socket_address 1 address: .envoy.config.core.v3.SocketAddress
    .envoy.config.core.v3.Address.pipe 2 address: .envoy.config.core.v3.Pipe
    .envoy.config.core.v3.Pipe.path 1 string
    .envoy.config.core.v3.Pipe.mode 2 uint32
    .envoy.config.core.v3.SocketAddress.protocol 1 .envoy.config.core.v3.SocketAddress.Protocol
    .envoy.config.core.v3.SocketAddress.address 2 string
    .envoy.config.core.v3.SocketAddress.port_value 3 port_specifier: uint32
    .envoy.config.core.v3.SocketAddress.named_port 4 port_specifier: string

    .envoy.config.core.v3.HeaderMap.headers 1 repeated .envoy.config.core.v3.HeaderValue
    .envoy.config.core.v3.HeaderValue.key 1 string
    .envoy.config.core.v3.HeaderValue.value 2 string
    .envoy.config.core.v3.HeaderValue.raw_value 3 bytes
    .envoy.config.core.v3.HeaderValueOption.header 1 .envoy.config.core.v3.HeaderValue
    .envoy.config.core.v3.HeaderValueOption.append 2 .google.protobuf.BoolValue
    .envoy.config.core.v3.HeaderValueOption.append_action 3 .envoy.config.core.v3.HeaderValueOption.HeaderAppendAction
    .envoy.config.core.v3.HeaderValueOption.keep_empty_value 4 bool
    .envoy.config.core.v3.QueryParameter.key 1 string
    .envoy.config.core.v3.QueryParameter.value 2 string

    .envoy.type.v3.HttpStatus.code 1 .envoy.type.v3.StatusCode
    .google.rpc.Status.code 1 int32
    .google.rpc.Status.message 2 string
    .google.rpc.Status.details 3 repeated .google.protobuf.Any
";

fn describe(name: &str, message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let repeated = if field.label() == Label::Repeated { "repeated " } else { "" };
    let choice = field.oneof_index.map_or_else(String::new, |index| {
        format!("{}: ", message.oneof_decl[usize::try_from(index).unwrap()].name())
    });
    let kind = match field.r#type() {
        Type::Message | Type::Enum => field.type_name().to_owned(),
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    };
    format!("{name}.{} {} {choice}{repeated}{kind}", field.name(), field.number())
}

/// The number of samples that covers each choice of each `oneof`, including nested ones.
const SAMPLES: usize = 24;

/// The served descriptors, which encode sample messages and decode messages dynamically.
struct Descriptors {
    files: FileDescriptorSet,
    messages: BTreeMap<String, DescriptorProto>,
    enums: BTreeMap<String, EnumDescriptorProto>,
}

impl Descriptors {
    fn read() -> Self {
        let files = FileDescriptorSet::decode(FILE_DESCRIPTOR_SET).unwrap();
        let mut descriptors = Self { files, messages: BTreeMap::new(), enums: BTreeMap::new() };
        for file in descriptors.files.file.clone() {
            let package = format!(".{}", file.package());
            file.message_type.into_iter().for_each(|message| descriptors.add(&package, message));
            for r#enum in file.enum_type {
                descriptors.enums.insert(format!("{package}.{}", r#enum.name()), r#enum);
            }
        }
        // Imported files contain messages that are not used.
        let used = descriptors.used();
        descriptors.messages.retain(|name, _| used.contains(name));
        descriptors
    }

    fn add(&mut self, scope: &str, message: DescriptorProto) {
        let name = format!("{scope}.{}", message.name());
        for nested in message.nested_type.clone() {
            self.add(&name, nested);
        }
        for r#enum in message.enum_type.clone() {
            self.enums.insert(format!("{name}.{}", r#enum.name()), r#enum);
        }
        self.messages.insert(name, message);
    }

    /// All messages outside `google.protobuf`, and the messages that they refer to.
    fn used(&self) -> BTreeSet<String> {
        let mut used: BTreeSet<String> =
            self.messages.keys().filter(|n| !n.starts_with(".google.protobuf.")).cloned().collect();
        loop {
            let referenced: BTreeSet<String> = used
                .iter()
                .flat_map(|name| &self.messages[name].field)
                .filter(|field| field.r#type() == Type::Message)
                .map(|field| field.type_name().to_owned())
                .collect();
            let before = used.len();
            used.extend(referenced);
            if used.len() == before {
                return used;
            }
        }
    }

    /// An encoded message with every field set to a value that only its type can represent.
    fn sample(&self, message: &str, variant: usize) -> Vec<u8> {
        self.sample_nested(message, variant, 6)
    }

    fn sample_nested(&self, message: &str, variant: usize, depth: usize) -> Vec<u8> {
        let descriptor = &self.messages[message];
        let choices = |index| -> Vec<i32> {
            descriptor
                .field
                .iter()
                .filter(|f| f.oneof_index == Some(index))
                .map(FieldDescriptorProto::number)
                .collect()
        };
        let inner = descriptor
            .oneof_decl
            .iter()
            .enumerate()
            .fold(variant, |variant, (index, _)| variant / choices(i32::try_from(index).unwrap()).len());
        let mut wire = Vec::new();
        for field in &descriptor.field {
            if let Some(index) = field.oneof_index {
                let choices = choices(index);
                if choices[variant % choices.len()] != field.number() {
                    continue;
                }
            }
            let copies = if field.label() == Label::Repeated { 2 } else { 1 };
            for copy in 0..copies {
                let number = usize::try_from(field.number()).unwrap();
                match field.r#type() {
                    Type::Message if depth == 0 => {}
                    Type::Message => {
                        let value = self.sample_nested(field.type_name(), inner, depth - 1);
                        wire.extend(delimited(number, &value));
                    }
                    Type::String => {
                        let text = format!("{} é {copy}", field.name());
                        wire.extend(delimited(number, text.as_bytes()));
                    }
                    Type::Bytes => wire.extend(delimited(number, &[0xff, 0x80, copy])),
                    Type::Double => {
                        wire.extend(varint(number << 3 | 1));
                        wire.extend((-1.5_f64).to_le_bytes());
                    }
                    scalar => {
                        wire.extend(varint(number << 3));
                        wire.extend(varint(match scalar {
                            Type::Bool => 1,
                            Type::Uint32 => u32::MAX as usize,
                            Type::Int32 => usize::MAX,
                            Type::Int64 => i64::MIN.unsigned_abs() as usize,
                            Type::Enum => {
                                let last = self.enums[field.type_name()].value.last().unwrap();
                                usize::try_from(last.number()).unwrap()
                            }
                            other => panic!("{message}.{}: no sample of {other:?}", field.name()),
                        }));
                    }
                }
            }
        }
        wire
    }

    /// Each value in an encoded message: its path, and its field with the value. Panics on a field that is not served.
    fn leaves(&self, message: &str, wire: &[u8]) -> BTreeSet<(String, String)> {
        let mut leaves = BTreeSet::new();
        self.collect(message, "", wire, &mut leaves);
        leaves
    }

    fn collect(&self, message: &str, path: &str, mut wire: &[u8], leaves: &mut BTreeSet<(String, String)>) {
        while !wire.is_empty() {
            let tag = prost::decode_length_delimiter(&mut wire).unwrap();
            let number = i32::try_from(tag >> 3).unwrap();
            let field = self.messages[message].field.iter().find(|f| f.number() == number);
            let field = field.unwrap_or_else(|| panic!("{message} has no field {number}"));
            let dot = if path.is_empty() { "" } else { "." };
            let path = format!("{path}{dot}{}", field.name());
            let value = match tag & 7 {
                0 => {
                    let value = prost::decode_length_delimiter(&mut wire).unwrap();
                    value.to_string()
                }
                1 => {
                    let (value, rest) = wire.split_at(8);
                    wire = rest;
                    format!("{value:?}")
                }
                2 => {
                    let length = prost::decode_length_delimiter(&mut wire).unwrap();
                    let (value, rest) = wire.split_at(length);
                    wire = rest;
                    if field.r#type() == Type::Message {
                        self.collect(field.type_name(), &path, value, leaves);
                        continue;
                    }
                    value.escape_ascii().to_string()
                }
                other => panic!("{path}: wire type {other}"),
            };
            leaves.insert((path, format!("{message}.{} {value}", field.name())));
        }
    }
}

fn varint(value: usize) -> Vec<u8> {
    let mut wire = Vec::new();
    prost::encode_length_delimiter(value, &mut wire).unwrap();
    wire
}

/// An encoded length-delimited field.
fn delimited(number: usize, value: &[u8]) -> Vec<u8> {
    [varint(number << 3 | 2), varint(value.len()), value.to_vec()].concat()
}

// ---- Requests.

fn full_upstream_request() -> up::CheckRequest {
    let peer = |principal: &str, address: &str| up::attribute_context::Peer {
        address: Some(up_core::Address {
            address: Some(up_core::address::Address::SocketAddress(up_core::SocketAddress {
                protocol: up_core::socket_address::Protocol::Udp.into(),
                address: address.into(),
                resolver_name: "resolver".into(),
                ipv4_compat: true,
                network_namespace_filepath: "/run/netns/a".into(),
                port_specifier: Some(up_core::socket_address::PortSpecifier::PortValue(65_535)),
            })),
        }),
        service: "cluster".into(),
        labels: string_map(&[("app", "shop")]),
        principal: principal.into(),
        certificate: "-----BEGIN%20CERTIFICATE-----".into(),
    };
    let metadata = || up_core::Metadata {
        filter_metadata: HashMap::from([("envoy.lb".to_owned(), up_google::Struct::default())]),
        typed_filter_metadata: HashMap::from([("any".to_owned(), up_google::Any::default())]),
    };
    let header = |key: &str, value: &str, raw_value: &str| up_core::HeaderValue {
        key: key.into(),
        value: value.into(),
        raw_value: raw_value.into(),
    };
    up::CheckRequest {
        attributes: Some(up::AttributeContext {
            source: Some(peer("spiffe://cluster.local/ns/web/sa/shop", "2001:db8::7")),
            destination: Some(peer("destination", "10.0.0.1")),
            request: Some(up::attribute_context::Request {
                time: Some(up_google::Timestamp { seconds: 1_800_000_000, nanos: 5 }),
                http: Some(up::attribute_context::HttpRequest {
                    id: "1234567890123456789".into(),
                    method: "POST".into(),
                    headers: string_map(&[
                        (":method", "POST"),
                        ("authorization", "Bearer aaa.bbb.ccc"),
                        ("x-empty", ""),
                    ]),
                    header_map: Some(up_core::HeaderMap {
                        headers: vec![header("x-raw", "", "\u{e9}"), header("x-text", "t", "")],
                    }),
                    path: "/orders?id=7".into(),
                    host: "shop.example:8443".into(),
                    scheme: "https".into(),
                    query: "id=7".into(),
                    fragment: "top".into(),
                    size: 9_000_000_000,
                    protocol: "HTTP/2".into(),
                    body: "body".into(),
                    raw_body: vec![0, 255],
                }),
            }),
            context_extensions: string_map(&[("portcullis_rule", "admin"), ("virtual_host", "shop")]),
            metadata_context: Some(metadata()),
            route_metadata_context: Some(metadata()),
            tls_session: Some(up::attribute_context::TlsSession { sni: "shop.example".into() }),
        }),
    }
}

/// Converts a request to our types, with sorted entries.
fn to_ours(theirs: &up::CheckRequest) -> CheckRequest {
    let bytes = |text: &str| Bytes::copy_from_slice(text.as_bytes());
    let peer = |peer: &up::attribute_context::Peer| Peer {
        address: peer.address.as_ref().map(|address| core::Address {
            address: match &address.address {
                Some(up_core::address::Address::SocketAddress(socket)) => {
                    let port = match socket.port_specifier {
                        Some(up_core::socket_address::PortSpecifier::PortValue(port)) => {
                            Some(core::socket_address::PortSpecifier::PortValue(port))
                        }
                        _ => None,
                    };
                    Some(core::address::Address::SocketAddress(core::SocketAddress {
                        address: bytes(&socket.address),
                        port_specifier: port,
                    }))
                }
                _ => None,
            },
        }),
        principal: bytes(&peer.principal),
    };
    let http = |http: &up::attribute_context::HttpRequest| HttpRequest {
        id: bytes(&http.id),
        method: bytes(&http.method),
        headers: http
            .headers
            .iter()
            .map(|(key, value)| HeadersEntry { key: bytes(key), value: bytes(value) })
            .collect(),
        path: bytes(&http.path),
        host: bytes(&http.host),
        scheme: bytes(&http.scheme),
        protocol: bytes(&http.protocol),
        header_map: http.header_map.as_ref().map(|map| core::HeaderMap {
            headers: map
                .headers
                .iter()
                .map(|header| core::HeaderValue {
                    key: header.key.clone(),
                    value: header.value.clone(),
                    raw_value: header.raw_value.clone().into(),
                })
                .collect(),
        }),
        body: bytes(&http.body),
        raw_body: http.raw_body.clone().into(),
    };
    let mut ours = CheckRequest {
        attributes: theirs.attributes.as_ref().map(|attributes| AttributeContext {
            source: attributes.source.as_ref().map(peer),
            request: attributes
                .request
                .as_ref()
                .map(|request| Request { http: request.http.as_ref().map(http) }),
            context_extensions: attributes
                .context_extensions
                .iter()
                .map(|(key, value)| ContextExtensionsEntry { key: bytes(key), value: bytes(value) })
                .collect(),
        }),
    };
    sort_entries(&mut ours);
    ours
}

fn sort_entries(request: &mut CheckRequest) {
    let Some(attributes) = &mut request.attributes else { return };
    attributes.context_extensions.sort_by(|a, b| a.key.cmp(&b.key));
    if let Some(http) = attributes.request.as_mut().and_then(|request| request.http.as_mut()) {
        http.headers.sort_by(|a, b| a.key.cmp(&b.key));
    }
}

fn without_omitted_fields(mut theirs: up::CheckRequest) -> up::CheckRequest {
    let Some(attributes) = &mut theirs.attributes else { return theirs };
    attributes.destination = None;
    attributes.metadata_context = None;
    attributes.route_metadata_context = None;
    attributes.tls_session = None;
    if let Some(source) = &mut attributes.source {
        source.service.clear();
        source.labels.clear();
        source.certificate.clear();
        if let Some(address) = &mut source.address {
            if let Some(up_core::address::Address::SocketAddress(socket)) = &mut address.address {
                socket.protocol = 0;
                socket.resolver_name.clear();
                socket.ipv4_compat = false;
                socket.network_namespace_filepath.clear();
                if let Some(up_core::socket_address::PortSpecifier::NamedPort(_)) = socket.port_specifier {
                    socket.port_specifier = None;
                }
            } else {
                address.address = None;
            }
        }
    }
    if let Some(request) = &mut attributes.request {
        request.time = None;
        if let Some(http) = &mut request.http {
            http.query.clear();
            http.fragment.clear();
            http.size = 0;
        }
    }
    theirs
}

fn string_map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// Entries as text, sorted.
fn pairs<T>(entries: &[T], of: impl Fn(&T) -> (&Bytes, &Bytes)) -> Vec<(&str, &str)> {
    let mut pairs: Vec<_> = entries
        .iter()
        .map(|entry| {
            let (key, value) = of(entry);
            (std::str::from_utf8(key).unwrap(), std::str::from_utf8(value).unwrap())
        })
        .collect();
    pairs.sort_unstable();
    pairs
}

fn text(text: &str) -> prost_types::Value {
    prost_types::Value { kind: Some(prost_types::value::Kind::StringValue(text.to_owned())) }
}

prop_compose! {
    fn socket_address()(
        protocol in 0..2,
        address in any::<String>(),
        port in prop_oneof![
            Just(None),
            any::<u32>().prop_map(|p| Some(up_core::socket_address::PortSpecifier::PortValue(p))),
            any::<String>().prop_map(|p| Some(up_core::socket_address::PortSpecifier::NamedPort(p))),
        ],
    ) -> up_core::SocketAddress {
        up_core::SocketAddress { protocol, address, port_specifier: port, ..Default::default() }
    }
}

fn address() -> impl Strategy<Value = up_core::Address> {
    let pipe = (any::<String>(), any::<u32>()).prop_map(|(path, mode)| up_core::Pipe { path, mode });
    prop_oneof![
        Just(None),
        socket_address().prop_map(|socket| Some(up_core::address::Address::SocketAddress(socket))),
        pipe.prop_map(|pipe| Some(up_core::address::Address::Pipe(pipe))),
    ]
    .prop_map(|address| up_core::Address { address })
}

prop_compose! {
    fn peer()(
        address in prop::option::of(address()),
        texts in any::<[String; 3]>(),
        labels in strings(),
    ) -> up::attribute_context::Peer {
        let [service, principal, certificate] = texts;
        up::attribute_context::Peer { address, service, labels, principal, certificate }
    }
}

fn strings() -> impl Strategy<Value = HashMap<String, String>> {
    prop::collection::hash_map(any::<String>(), any::<String>(), 0..4)
}

prop_compose! {
    fn header_value()(
        key in any::<String>(),
        value in any::<String>(),
        raw_value in any::<Vec<u8>>(),
    ) -> up_core::HeaderValue {
        up_core::HeaderValue { key, value, raw_value }
    }
}

prop_compose! {
    fn http_request()(
        texts in any::<[String; 9]>(),
        headers in strings(),
        list in prop::option::of(prop::collection::vec(header_value(), 0..3)),
        size in any::<i64>(),
        raw_body in any::<Vec<u8>>(),
    ) -> up::attribute_context::HttpRequest {
        let [id, method, path, host, scheme, query, fragment, protocol, body] = texts;
        let header_map = list.map(|headers| up_core::HeaderMap { headers });
        up::attribute_context::HttpRequest {
            id, method, headers, header_map, path, host, scheme, query, fragment, size, protocol,
            body, raw_body,
        }
    }
}

prop_compose! {
    fn upstream_request()(
        peers in [prop::option::of(peer()), prop::option::of(peer())],
        http in prop::option::of(prop::option::of(http_request())),
        seconds in prop::option::of(any::<i64>()),
        context_extensions in strings(),
        sni in prop::option::of(any::<String>()),
        metadata in prop::option::of(any::<String>()),
        has_attributes in prop::bool::weighted(0.95),
    ) -> up::CheckRequest {
        let [source, destination] = peers;
        let time = seconds.map(|seconds| up_google::Timestamp { seconds, nanos: 1 });
        let filter_metadata =
            |name| HashMap::from([(name, up_google::Struct::default())]);
        let metadata = metadata.map(|name| up_core::Metadata {
            filter_metadata: filter_metadata(name),
            ..Default::default()
        });
        let attributes = up::AttributeContext {
            source,
            destination,
            request: http.map(|http| up::attribute_context::Request { time, http }),
            context_extensions,
            metadata_context: metadata.clone(),
            route_metadata_context: metadata,
            tls_session: sni.map(|sni| up::attribute_context::TlsSession { sni }),
        };
        up::CheckRequest { attributes: has_attributes.then_some(attributes) }
    }
}

// ---- Responses.

prop_compose! {
    fn header_value_option()(
        header in prop::option::of(header_value()),
        append in prop::option::of(any::<bool>()),
        append_action in any::<i32>(),
        keep_empty_value in any::<bool>(),
    ) -> core::HeaderValueOption {
        let header = header.map(|header| core::HeaderValue {
            key: header.key,
            value: header.value,
            raw_value: header.raw_value.into(),
        });
        core::HeaderValueOption { header, append, append_action, keep_empty_value }
    }
}

fn header_options() -> impl Strategy<Value = Vec<core::HeaderValueOption>> {
    prop::collection::vec(header_value_option(), 0..3)
}

prop_compose! {
    fn denied()(
        code in prop::option::of(any::<i32>()),
        headers in header_options(),
        body in any::<String>(),
    ) -> HttpResponse {
        let status = code.map(|code| HttpStatus { code });
        HttpResponse::DeniedResponse(DeniedHttpResponse { status, headers, body })
    }
}

prop_compose! {
    fn ok()(
        headers in header_options(),
        headers_to_remove in any::<Vec<String>>(),
        response_headers_to_add in header_options(),
        parameters in prop::collection::vec(any::<(String, String)>(), 0..3),
        query_parameters_to_remove in any::<Vec<String>>(),
    ) -> HttpResponse {
        let query_parameters_to_set =
            parameters.into_iter().map(|(key, value)| core::QueryParameter { key, value }).collect();
        HttpResponse::OkResponse(OkHttpResponse {
            headers, headers_to_remove, response_headers_to_add, query_parameters_to_set,
            query_parameters_to_remove,
        })
    }
}

fn structure() -> impl Strategy<Value = prost_types::Struct> {
    use prost_types::value::Kind;
    let value = |kind| prost_types::Value { kind: Some(kind) };
    let leaf = prop_oneof![
        Just(Kind::NullValue(0)),
        any::<f64>().prop_map(Kind::NumberValue),
        any::<String>().prop_map(Kind::StringValue),
        any::<bool>().prop_map(Kind::BoolValue),
    ];
    let fields = |of: BoxedStrategy<prost_types::Value>| {
        prop::collection::btree_map(any::<String>(), of, 0..3)
            .prop_map(|fields| prost_types::Struct { fields })
    };
    let values = leaf.prop_map(value).prop_recursive(3, 12, 3, move |of| {
        prop_oneof![
            prop::collection::vec(of.clone(), 0..3)
                .prop_map(move |values| value(Kind::ListValue(prost_types::ListValue { values }))),
            fields(of).prop_map(move |fields| value(Kind::StructValue(fields))),
        ]
    });
    fields(values.boxed())
}

prop_compose! {
    fn our_response()(
        status in prop::option::of((any::<i32>(), any::<String>(), any::<Option<(String, Vec<u8>)>>())),
        http_response in prop::option::of(prop_oneof![denied(), ok()]),
        dynamic_metadata in prop::option::of(structure()),
    ) -> CheckResponse {
        let status = status.map(|(code, message, detail)| {
            let detail = detail.map(|(type_url, value)| prost_types::Any { type_url, value });
            rpc::Status { code, message, details: detail.into_iter().collect() }
        });
        CheckResponse { status, http_response, dynamic_metadata }
    }
}

/// Converts a response to upstream's types.
fn to_upstream(ours: &CheckResponse) -> up::CheckResponse {
    let option = |option: &core::HeaderValueOption| up_core::HeaderValueOption {
        header: option.header.as_ref().map(|header| up_core::HeaderValue {
            key: header.key.clone(),
            value: header.value.clone(),
            raw_value: header.raw_value.to_vec(),
        }),
        append: option.append.map(|value| up_google::BoolValue { value }),
        append_action: option.append_action,
        keep_empty_value: option.keep_empty_value,
    };
    let options = |of: &[core::HeaderValueOption]| of.iter().map(option).collect::<Vec<_>>();
    up::CheckResponse {
        status: ours.status.as_ref().map(|status| up_rpc::Status {
            code: status.code,
            message: status.message.clone(),
            details: status
                .details
                .iter()
                .map(|any| up_google::Any { type_url: any.type_url.clone(), value: any.value.clone() })
                .collect(),
        }),
        http_response: ours.http_response.as_ref().map(|response| match response {
            HttpResponse::DeniedResponse(denied) => {
                up::check_response::HttpResponse::DeniedResponse(up::DeniedHttpResponse {
                    status: denied.status.map(|status| up_type::HttpStatus { code: status.code }),
                    headers: options(&denied.headers),
                    body: denied.body.clone(),
                })
            }
            HttpResponse::OkResponse(ok) => {
                up::check_response::HttpResponse::OkResponse(up::OkHttpResponse {
                    headers: options(&ok.headers),
                    headers_to_remove: ok.headers_to_remove.clone(),
                    dynamic_metadata: None,
                    response_headers_to_add: options(&ok.response_headers_to_add),
                    query_parameters_to_set: ok
                        .query_parameters_to_set
                        .iter()
                        .map(|parameter| up_core::QueryParameter {
                            key: parameter.key.clone(),
                            value: parameter.value.clone(),
                        })
                        .collect(),
                    query_parameters_to_remove: ok.query_parameters_to_remove.clone(),
                })
            }
        }),
        dynamic_metadata: ours.dynamic_metadata.as_ref().map(upstream_struct),
    }
}

fn upstream_struct(ours: &prost_types::Struct) -> up_google::Struct {
    let fields = ours.fields.iter();
    up_google::Struct { fields: fields.map(|(k, v)| (k.clone(), upstream_value(v))).collect() }
}

fn upstream_value(ours: &prost_types::Value) -> up_google::Value {
    use prost_types::value::Kind;
    use up_google::value::Kind as Theirs;
    let kind = ours.kind.as_ref().map(|kind| match kind {
        Kind::NullValue(null) => Theirs::NullValue(*null),
        Kind::NumberValue(number) => Theirs::NumberValue(*number),
        Kind::StringValue(text) => Theirs::StringValue(text.clone()),
        Kind::BoolValue(bool) => Theirs::BoolValue(*bool),
        Kind::StructValue(fields) => Theirs::StructValue(upstream_struct(fields)),
        Kind::ListValue(list) => Theirs::ListValue(up_google::ListValue {
            values: list.values.iter().map(upstream_value).collect(),
        }),
    });
    up_google::Value { kind }
}

/// Serves one gRPC service until the test ends.
async fn serve<S>(service: S) -> SocketAddr
where
    S: tower::Service<
            tonic::codegen::http::Request<tonic::body::Body>,
            Response = tonic::codegen::http::Response<tonic::body::Body>,
            Error = std::convert::Infallible,
        > + tonic::server::NamedService
        + Clone
        + Send
        + Sync
        + 'static,
    S::Future: Send + 'static,
{
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}
