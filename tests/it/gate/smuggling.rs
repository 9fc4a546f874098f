//! What a gate writes into a request, as a server receives it: threat 4. Nothing becomes a second request.

use std::{net::SocketAddr, sync::Arc};

use sluice::model::trial::{Report, Scheme};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::Mutex,
};

use super::{Asks, candidate, heard, host, run, text};

/// Records everything that comes, connection by connection.
async fn recording() -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let recorded = Arc::<Mutex<Vec<String>>>::default();
    let keep = Arc::clone(&recorded);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = vec![0; 16 << 10];
            let mut text = String::new();
            while !text.contains("\r\n\r\n") {
                match stream.read(&mut bytes).await {
                    Ok(0) | Err(_) => break,
                    Ok(read) => text.push_str(&String::from_utf8_lossy(&bytes[..read])),
                }
            }
            keep.lock().await.push(text);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
        }
    });
    (address, recorded)
}

async fn ask(address: SocketAddr, asks: Asks<'_>) -> Report {
    run(&host(), asks.gate(), |trial| {
        trial.settings = text("candidate/proxy");
        trial.targets = vec![candidate(Scheme::Http, &[address])];
    })
    .await
}

#[tokio::test]
async fn threat_04_what_might_be_a_second_request_is_not_sent() {
    let (address, recorded) = recording().await;
    for header in [
        ("Content-Length", "0"),
        ("Content-Length", "+5"),
        ("Transfer-Encoding", "chunked"),
        ("transfer-encoding", "xchunked"),
        ("Transfer-Encoding ", "chunked"),
        ("Connection", "keep-alive, x-a"),
        ("Upgrade", "h2c"),
        ("HTTP2-Settings", "AAMAAABkAAQAAP__"),
        ("Expect", "100-continue"),
        ("TE", "trailers"),
        ("Trailer", "x-a"),
        ("Proxy-Authorization", "Basic YTpi"),
        ("Proxy-Connection", "keep-alive"),
        ("Keep-Alive", "timeout=5"),
        ("Host", "169.254.169.254"),
        ("X-Gate-Host", "169.254.169.254"),
        ("x-a", "b\r\nx-c: d"),
        ("x-a", "b\r\n\r\nGET /admin HTTP/1.1\r\nhost: a\r\n\r\n"),
        ("x-a", "b\n c"),
        ("x-a", "b\r\n\tfolded"),
        ("x-a", "b\0c"),
        ("x\r\ny", "z"),
        ("x-a: b\r\nx-c", "d"),
        (" x-a", "b"),
    ] {
        assert_eq!(heard(&ask(address, Asks { header, ..Asks::default() }).await), "invalid", "{header:?}");
    }
    for method in ["CONNECT", "TRACE", "PRI", "get", "GET ", "GET / HTTP/1.1\r\n\r\nGET", "\0"] {
        assert_eq!(heard(&ask(address, Asks { method, ..Asks::default() }).await), "invalid", "{method:?}");
    }
    for path in [
        "",
        "*",
        "a",
        "http://169.254.169.254/",
        "//169.254.169.254\r\n",
        "/ HTTP/1.1\r\nx-a: b",
        "/a b",
        "/\t",
        "/\u{e4}",
        "/#a",
        "169.254.169.254:443",
    ] {
        assert_eq!(heard(&ask(address, Asks { path, ..Asks::default() }).await), "invalid", "{path:?}");
    }
    for host in ["a@b", "a b", "a\r\nx-c: d", "a/b", "", "a:b:c"] {
        let asks = Asks { option: ("host", host), ..Asks::default() };
        assert_eq!(heard(&ask(address, asks).await), "invalid", "{host:?}");
    }
    assert!(recorded.lock().await.is_empty(), "{:?}", recorded.lock().await);
}

#[tokio::test]
async fn threat_04_what_is_sent_is_one_request_in_origin_form_that_closes() {
    let (address, recorded) = recording().await;
    let asks = Asks {
        method: "POST",
        path: "//169.254.169.254/a?b=http://c",
        header: ("X-Trace", "a\tb"),
        option: ("host", "api.example.com:8443"),
    };
    assert_eq!(heard(&ask(address, asks).await), "ok");
    let recorded = recorded.lock().await;
    let [request] = recorded.as_slice() else { panic!("{recorded:?}") };
    let (head, rest) = request.split_once("\r\n\r\n").unwrap();
    let mut lines: Vec<_> = head.split("\r\n").map(str::to_ascii_lowercase).collect();
    lines[1..].sort_unstable();
    let wanted = [
        "post //169.254.169.254/a?b=http://c http/1.1",
        "connection: close",
        "host: api.example.com:8443",
        "x-trace: a\tb",
    ];
    assert_eq!((lines.as_slice(), rest), (wanted.map(str::to_owned).as_slice(), ""));
}
