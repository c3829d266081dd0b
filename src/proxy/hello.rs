//! The first message of a TLS client, read and kept: where names are passed through, what was read has to go on to the
//! backend byte for byte.
//!
//! Invariants: what is kept is what came, no more and no less; no more than a bound is kept; rustls judges the message,
//! with the same outcome as where nothing is passed through.

use std::io;

use bytes::BufMut as _;
use rustls::server::{Accepted, Acceptor};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest message that rustls takes, with room for the records that it may come in.
const MAX_HELLO: usize = 68 << 10;
/// Read at once; what rustls has room for at any time.
const PIECE: usize = 4 << 10;

/// A client's wish for a connection.
pub struct Hello {
    pub accepted: Accepted,
    /// All that came.
    pub bytes: Vec<u8>,
}

/// Reads until the message is whole. What is none is told so by an alert. The caller bounds the time.
///
/// # Errors
/// What came is no message that rustls reads, or not a whole one.
pub async fn read(socket: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> io::Result<Hello> {
    let mut acceptor = Acceptor::default();
    let mut bytes = Vec::with_capacity(PIECE);
    loop {
        let from = bytes.len();
        let room = PIECE.min(MAX_HELLO - from);
        if room == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
        if socket.read_buf(&mut (&mut bytes).limit(room)).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut new = &bytes[from..];
        while !new.is_empty() {
            if acceptor.read_tls(&mut new)? == 0 {
                return Err(io::ErrorKind::InvalidData.into());
            }
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => return Ok(Hello { accepted, bytes }),
            Ok(None) => {}
            Err((error, mut alert)) => {
                let mut told = Vec::new();
                alert.write_all(&mut told)?;
                // Who is gone need not be told.
                let _ = socket.write_all(&told).await;
                let _ = socket.shutdown().await;
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};
    use tokio::io::DuplexStream;

    use super::*;

    /// What a client says who asks for this name.
    fn said(name: Option<&str>) -> Vec<u8> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("known versions")
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.enable_sni = name.is_some();
        let name = name.unwrap_or("unsaid.example").to_owned().try_into().expect("a name");
        let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).expect("written");
        bytes
    }

    /// The same message in records of so many bytes.
    fn in_records(said: &[u8], size: usize) -> Vec<u8> {
        let (head, message) = said.split_at(5);
        let record = |part: &[u8]| {
            let length = u16::try_from(part.len()).expect("short").to_be_bytes();
            [&head[..3], &length, part].concat()
        };
        message.chunks(size).flat_map(record).collect()
    }

    /// Reads what comes in pieces of so many bytes; also what is left unread then.
    fn read_of(sent: &[u8], piece: usize) -> (io::Result<Hello>, Vec<u8>) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        let (mut near, far) = tokio::io::duplex(piece);
        runtime.block_on(async {
            // The other side's end is open until all of it is written, and takes what it is told.
            let (mut hears, mut says) = tokio::io::split(far);
            let saying = async {
                let _ = says.write_all(sent).await;
                let _ = says.shutdown().await;
                std::future::pending::<()>().await;
            };
            let hearing = async { while hears.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {} };
            let reading = async {
                let hello = read(&mut near).await;
                (hello, rest(&mut near).await)
            };
            tokio::select! {
                read = reading => read,
                _ = async { tokio::join!(saying, hearing) } => unreachable!("it says nothing forever"),
            }
        })
    }

    async fn rest(near: &mut DuplexStream) -> Vec<u8> {
        let mut rest = Vec::new();
        let _ = near.read_to_end(&mut rest).await;
        rest
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn however_it_comes_the_name_is_read_and_every_byte_kept(
            record in 1_usize..3000, piece in 1_usize..3000, more in 0_usize..200, named in any::<bool>(),
        ) {
            let name = named.then_some("db.shop.example");
            let mut sent = in_records(&said(name), record);
            let whole = sent.len();
            // What a client sends behind it, without waiting.
            sent.extend([20_u8, 3, 3, 0, 1, 1].iter().cycle().take(more / 6 * 6));
            let (hello, rest) = read_of(&sent, piece);
            let hello = hello.expect("a hello");
            let asked = hello.accepted.client_hello();
            prop_assert_eq!(asked.server_name(), name);
            prop_assert!(hello.bytes.len() >= whole);
            // What is left unread is still there for whoever copies on.
            prop_assert_eq!([hello.bytes, rest].concat(), sent);
        }

        #[test]
        fn nonsense_is_refused_within_the_bound(
            bytes in proptest::collection::vec(any::<u8>(), 0..400), tls in any::<bool>(), cut in 0_usize..600,
        ) {
            // Either noise, or a hello that noise was written into.
            let sent = if tls {
                let mut hello = said(Some("db.shop.example"));
                let at = cut % hello.len();
                for (place, byte) in hello[at..].iter_mut().zip(&bytes) {
                    *place ^= byte;
                }
                hello
            } else {
                bytes
            };
            // Whatever comes of it, it comes to an end.
            let (outcome, rest) = read_of(&sent, 1 << 10);
            if let Ok(hello) = outcome {
                prop_assert_eq!([hello.bytes, rest].concat(), sent);
            }
        }
    }

    #[test]
    fn a_message_that_never_ends_is_read_no_further_than_the_bound() {
        // Handshake records of a hello that says that it has 16 MiB.
        let mut sent = vec![22, 3, 1, 0x10, 0, 1, 0xff, 0xff, 0xff];
        sent.extend(vec![0; (1 << 12) - 4]);
        let more = [&[22, 3, 1, 0x10, 0][..], &vec![0; 1 << 12]].concat();
        for _ in 0..40 {
            sent.extend(&more);
        }
        let (outcome, rest) = read_of(&sent, 1 << 12);
        assert!(outcome.is_err());
        assert!(rest.len() >= sent.len() - MAX_HELLO, "{} of {}", rest.len(), sent.len());
    }

    #[test]
    fn a_hello_that_is_cut_is_none() {
        let whole = said(Some("db.shop.example"));
        for cut in [1, 5, 6, whole.len() - 1] {
            let error = read_of(&whole[..cut], 100).0.map(|_| ()).expect_err("cut");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{cut}");
        }
        assert!(read_of(&whole, 100).0.is_ok(), "the control");
    }
}
