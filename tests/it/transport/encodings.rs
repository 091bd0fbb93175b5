//! G14: gzip is decoded with a limit on the decoded size; no other encoding is requested or decoded.

use std::io::Write as _;

use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use portcullis::commands::issuer::SigningKey;

use super::answer::{Answer, Gate, Step, set_of};
use super::env::{IMMEDIATE_REFRESH, Table, TestEnv, key, token};

fn gzip(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes.as_ref()).expect("writing to memory succeeds");
    encoder.finish().expect("writing to memory succeeds")
}

/// A 200 with this `content-encoding`.
fn encoded(encoding: &str, body: impl Into<Vec<u8>>) -> Answer {
    Answer::status(200).header("content-encoding", encoding).body(body)
}

#[tokio::test]
async fn gzip_is_requested_and_decoded() {
    let env = TestEnv::start(IMMEDIATE_REFRESH).await;
    assert_eq!(env.server.request(1).await.header("accept-encoding"), Some("gzip"));
    let mut table = Table::default();
    table.accepts("gzip", |new| encoded("gzip", gzip(set_of(&[new])))).await;
    table.accepts("gzip, a byte at a time", |new| encoded("gzip", gzip(set_of(&[new]))).chunked(1, "")).await;
    table.accepts("identity", |new| encoded("identity", set_of(&[new]))).await;
    table.assert_ok();
}

#[tokio::test]
async fn a_bomb_is_aborted_at_the_limit_of_the_decoded_size() {
    let mut table = Table::default();
    // 64 MiB in 64 KiB, and an endless stream.
    let bomb = gzip(vec![b' '; 64 << 20]);
    assert!(bomb.len() < 1 << 17);
    let expected = "longer than 1048576 bytes";
    table.rejects(IMMEDIATE_REFRESH, "64 MiB", expected, |_| encoded("gzip", bomb.clone())).await;
    // The head of a stream, and then stored blocks, none of which is the last (RFC 1951 §3.2.4).
    let head = gzip("")[..10].to_vec();
    let block = [&[0, 0, 0x80, 0xff, 0x7f][..], &[b' '; 0x8000]].concat();
    let endless = |_: &SigningKey| encoded("gzip", head).without_length().then(Step::Repeat(block));
    table.rejects(IMMEDIATE_REFRESH, "block after block", expected, endless).await;
    let member = gzip(vec![b' '; 1 << 16]);
    let endless = |_: &SigningKey| encoded("gzip", "").without_length().then(Step::Repeat(member));
    table.rejects(IMMEDIATE_REFRESH, "member after member", "", endless).await;
    let inside = |new: &SigningKey| {
        let set = set_of(&[new]);
        encoded("gzip", gzip(format!("{}{set}", " ".repeat((1 << 20) + 1 - set.len()))))
    };
    table.rejects(IMMEDIATE_REFRESH, "a set that is one byte too long", expected, inside).await;
    table.assert_ok();
}

#[tokio::test]
async fn a_bomb_does_not_delay_other_requests() {
    let env = TestEnv::start(IMMEDIATE_REFRESH).await;
    let (new, gate) = (key("new"), Gate::new());
    let bomb = gzip(vec![b' '; 64 << 20]);
    env.server.respond_with(encoded("gzip", bomb).gated_by(&gate));
    let (bombed, ()) = tokio::join!(env.faults(&new, "keys_unavailable"), async {
        env.server.request(2).await;
        gate.open();
        for _ in 0..50 {
            env.expect_reason(&env.key, "ok").await;
        }
    });
    assert_eq!(bombed, Vec::<String>::new());
}

#[tokio::test]
async fn incomplete_gzip_or_another_encoding_is_an_error() {
    let mut table = Table::default();
    let mut rejects = async |what: &str, answer: &dyn Fn(&SigningKey) -> Answer| {
        table.rejects(IMMEDIATE_REFRESH, what, "", answer).await;
    };
    let packed = |new: &SigningKey| gzip(set_of(&[new]));
    let cut = |new: &SigningKey, bytes: usize| {
        let mut packed = packed(new);
        packed.truncate(packed.len() - bytes);
        encoded("gzip", packed)
    };
    rejects("the last byte is missing", &|new| cut(new, 1)).await;
    rejects("checksum and length are missing", &|new| cut(new, 8)).await;
    rejects("half of it", &|new| cut(new, packed(new).len() / 2)).await;
    rejects("the head alone", &|new| cut(new, packed(new).len() - 10)).await;
    rejects("nothing", &|_| encoded("gzip", "")).await;
    rejects("a wrong checksum", &|new| {
        let mut packed = packed(new);
        let at = packed.len() - 8;
        packed[at] ^= 1;
        encoded("gzip", packed)
    })
    .await;
    rejects("a wrong length", &|new| {
        let mut packed = packed(new);
        let at = packed.len() - 1;
        packed[at] ^= 1;
        encoded("gzip", packed)
    })
    .await;
    rejects("zlib", &|new| {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(set_of(&[new]).as_bytes()).expect("writing to memory succeeds");
        encoded("gzip", encoder.finish().expect("writing to memory succeeds"))
    })
    .await;
    rejects("plain text that is called gzip", &|new| encoded("gzip", set_of(&[new]))).await;
    rejects("gzip that is not called so", &|new| Answer::status(200).body(packed(new))).await;
    rejects("gzip that is called deflate", &|new| encoded("deflate", packed(new))).await;
    rejects("twice", &|new| encoded("gzip, gzip", gzip(packed(new)))).await;
    rejects("twice, called so once", &|new| encoded("gzip", gzip(packed(new)))).await;
    rejects("twice, in two lines", &|new| {
        encoded("gzip", gzip(packed(new))).header("content-encoding", "gzip")
    })
    .await;
    rejects("gzip within br", &|new| encoded("gzip, br", packed(new))).await;
    // A stream of brotli that is one stored block, and a frame of zstd that is one raw block.
    rejects("br", &|new| encoded("br", stored_brotli(set_of(&[new]).as_bytes()))).await;
    rejects("zstd", &|new| encoded("zstd", raw_zstd(set_of(&[new]).as_bytes()))).await;
    table.assert_ok();
}

#[tokio::test]
async fn bytes_after_the_end_of_a_gzip_stream_add_no_key() {
    let packed: fn(String) -> Vec<u8> = |set| gzip(set);
    for trailing in [packed, String::into_bytes] {
        let env = TestEnv::start(IMMEDIATE_REFRESH).await;
        let (new, smuggled) = (key("new"), key("smuggled"));
        env.server
            .respond_with(encoded("gzip", [gzip(set_of(&[&new])), trailing(set_of(&[&smuggled]))].concat()));
        let answer = env.service.bearer(&token(&smuggled)).await;
        assert!(!answer.is_allowed(), "{}", answer.reason());
        env.server.respond_with(Answer::keys(&[&new]));
        env.wait_until_known(&new).await;
    }
}

/// RFC 7932 §9.2: a window of 16 bits, one metablock without compression, and an empty one that is the last.
fn stored_brotli(bytes: &[u8]) -> Vec<u8> {
    // WBITS 0; ISLAST 0; MNIBBLES 4, as 00; MLEN-1 in 16 bits; ISUNCOMPRESSED 1; up to a whole byte.
    let length = u32::try_from(bytes.len() - 1).expect("short");
    let head = (length << 4) | (1 << 20);
    let head = head.to_le_bytes();
    [&head[..3], bytes, &[3]].concat()
}

/// RFC 8878 §3.1.1: the magic number, a frame of one segment with its size in a byte, a raw block.
fn raw_zstd(bytes: &[u8]) -> Vec<u8> {
    let size = u8::try_from(bytes.len()).expect("short");
    let block = u32::from(size) << 3 | 1;
    [&[0x28, 0xb5, 0x2f, 0xfd, 0x20, size][..], &block.to_le_bytes()[..3], bytes].concat()
}
