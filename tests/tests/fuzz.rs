//! A real agent's HTTP port under requests that nobody meant to send.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use redmesh_tests::MeshBuilder;
use redmesh_tests::fuzz::fuzz;

/// What a page of one agent may have, bytes.
const PAGE_BYTES_MAX: u64 = 4 * 1024 * 1024;

#[test]
fn fuzz_http() {
    let mesh = MeshBuilder::new(1).ready();
    let at = format!("{}:7380", mesh.ip(0));
    fuzz("http", vec![], |bytes| {
        let mut stream = TcpStream::connect(&at).expect("the agent accepts");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a timeout");
        // It may hang up as soon as it has seen enough.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut page = Vec::new();
        let read = stream.take(PAGE_BYTES_MAX).read_to_end(&mut page);
        let late = read.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
        assert!(!late, "no answer and no end");
    });
    let mut stream = TcpStream::connect(&at).expect("the agent accepts");
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").expect("asked");
    let mut page = String::new();
    stream.read_to_string(&mut page).expect("an answer");
    assert!(page.starts_with("HTTP/1.1 200"), "{page}");
    assert!(!mesh.log(0).contains("panicked"), "a request made the agent panic");
}
