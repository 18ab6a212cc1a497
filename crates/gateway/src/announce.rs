//! The PROXY protocol, both ways: whoever passes a connection on says whose it was.
//!
//! Picture a visitor who is announced at the door. From sources that are listed the announcement is wanted, and without
//! one they are not let in; from all others it is not heard, and to say it is to speak no protocol of ours. It comes before
//! everything else, TLS included.
//! Source: "The PROXY protocol, versions 1 & 2" (HAProxy, 2020), sections 2.1 and 2.2.
//! Not here: who is listed (the policy), what is done with the address (`listener.rs`, `tcp.rs`).

use std::net::{IpAddr, SocketAddr};

use seawall_core::policy::Announce;
use tokio::io::{AsyncRead, AsyncReadExt as _};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// A line of version 1 with its end.
const LINE_MAX: usize = 107;
/// Bytes after the fixed part of version 2: addresses, and whatever else is said.
const REST_MAX: usize = 4 << 10;
/// What is said beyond addresses has a type and a length.
const TLV_HEAD: usize = 3;
const TLV_CRC32C: u8 = 3;

/// An announcement that is none, or that says something false.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Reads an announcement and not one byte more. Tells whose connection it is; `None` for the announcer's own.
///
/// # Errors
/// [`Malformed`], also if the connection ends in it.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Option<SocketAddr>, Malformed> {
    let mut head = [0; 16];
    stream.read_exact(&mut head[..12]).await.map_err(|_| Malformed)?;
    if head[..12] == SIGNATURE {
        stream.read_exact(&mut head[12..]).await.map_err(|_| Malformed)?;
        let length = usize::from(u16::from_be_bytes([head[14], head[15]]));
        if length > REST_MAX {
            return Err(Malformed);
        }
        let mut rest = vec![0; length];
        stream.read_exact(&mut rest).await.map_err(|_| Malformed)?;
        return frame(&head, &rest);
    }
    let mut text = head[..12].to_vec();
    if !text.starts_with(b"PROXY ") {
        return Err(Malformed);
    }
    // Byte by byte, because what follows belongs to somebody else.
    while !text.ends_with(b"\r\n") {
        if text.len() >= LINE_MAX {
            return Err(Malformed);
        }
        text.push(stream.read_u8().await.map_err(|_| Malformed)?);
    }
    line(&text)
}

/// Version 1, with its end.
fn line(text: &[u8]) -> Result<Option<SocketAddr>, Malformed> {
    let text = std::str::from_utf8(text).ok().and_then(|text| text.strip_suffix("\r\n")).ok_or(Malformed)?;
    let mut words = text.split(' ');
    let (_, protocol) = (words.next(), words.next());
    if protocol == Some("UNKNOWN") {
        return Ok(None);
    }
    let (Some(source), Some(destination), Some(port), Some(to), None) =
        (words.next(), words.next(), words.next(), words.next(), words.next())
    else {
        return Err(Malformed);
    };
    let address = |text: &str| -> Result<IpAddr, Malformed> {
        let address: IpAddr = text.parse().map_err(|_| Malformed)?;
        let fits = matches!((protocol, address), (Some("TCP4"), IpAddr::V4(_)) | (Some("TCP6"), IpAddr::V6(_)));
        if fits { Ok(address) } else { Err(Malformed) }
    };
    let number = |text: &str| -> Result<u16, Malformed> {
        let is_plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
        if is_plain { text.parse().map_err(|_| Malformed) } else { Err(Malformed) }
    };
    address(destination)?;
    number(to)?;
    Ok(Some(SocketAddr::new(address(source)?, number(port)?)))
}

/// Version 2.
fn frame(head: &[u8; 16], rest: &[u8]) -> Result<Option<SocketAddr>, Malformed> {
    const LOCAL: u8 = 0x20;
    const PROXY: u8 = 0x21;
    let port = |at: usize| u16::from_be_bytes([rest[at], rest[at + 1]]);
    let (source, addresses) = match (head[12], head[13]) {
        // The announcer's own, a health check perhaps: whatever it says beside that means nothing.
        (LOCAL, _) => return Ok(None),
        (PROXY, 0x11) if rest.len() >= 12 => {
            let ip: [u8; 4] = rest[..4].try_into().map_err(|_| Malformed)?;
            (Some(SocketAddr::from((ip, port(8)))), 12)
        }
        (PROXY, 0x21) if rest.len() >= 36 => {
            let ip: [u8; 16] = rest[..16].try_into().map_err(|_| Malformed)?;
            (Some(SocketAddr::from((ip, port(32)))), 36)
        }
        // A socket of a file, or something we do not carry: whose it is cannot be said by an address.
        (PROXY, 0x31) if rest.len() >= 216 => (None, 216),
        (PROXY, 0x00) => (None, 0),
        _ => return Err(Malformed),
    };
    check_sum(head, rest, addresses)?;
    Ok(source)
}

/// What is said beyond the addresses is well formed, and the checksum right if there is one.
fn check_sum(head: &[u8; 16], rest: &[u8], mut at: usize) -> Result<(), Malformed> {
    while at < rest.len() {
        let said = rest.get(at..at + TLV_HEAD).ok_or(Malformed)?;
        let (kind, length) = (said[0], usize::from(u16::from_be_bytes([said[1], said[2]])));
        let value = at + TLV_HEAD..at + TLV_HEAD + length;
        let bytes = rest.get(value.clone()).ok_or(Malformed)?;
        if kind == TLV_CRC32C {
            let told = u32::from_be_bytes(bytes.try_into().map_err(|_| Malformed)?);
            let mut whole = [&head[..], rest].concat();
            whole[head.len() + value.start..head.len() + value.end].fill(0);
            if crc32c(&whole) != told {
                return Err(Malformed);
            }
        }
        at = value.end;
    }
    Ok(())
}

/// The checksum of RFC 3720, section 12.1 (Castagnoli's polynomial, reflected).
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
    })
}

/// Announces a connection of `source` that came in at `destination`.
#[must_use]
pub fn write(announce: Announce, source: SocketAddr, destination: SocketAddr) -> Vec<u8> {
    let (from, to) = (canonical(source), canonical(destination));
    let fits = from.is_ipv4() == to.is_ipv4();
    match (announce, fits) {
        (Announce::Line, false) => b"PROXY UNKNOWN\r\n".to_vec(),
        (Announce::Line, true) => {
            let protocol = if from.is_ipv4() { "TCP4" } else { "TCP6" };
            format!("PROXY {protocol} {} {} {} {}\r\n", from.ip(), to.ip(), from.port(), to.port()).into_bytes()
        }
        (Announce::Frame, _) => {
            let mut frame = SIGNATURE.to_vec();
            let addresses = match (from.ip(), to.ip()) {
                (IpAddr::V4(from), IpAddr::V4(to)) => [&from.octets()[..], &to.octets()].concat(),
                (IpAddr::V6(from), IpAddr::V6(to)) => [&from.octets()[..], &to.octets()].concat(),
                _ => Vec::new(),
            };
            let kind = match addresses.len() {
                8 => 0x11,
                32 => 0x21,
                _ => 0x00,
            };
            frame.extend([0x21, kind]);
            let ports =
                if kind == 0 { Vec::new() } else { [from.port().to_be_bytes(), to.port().to_be_bytes()].concat() };
            let length = u16::try_from(addresses.len() + ports.len()).unwrap_or(0);
            frame.extend(length.to_be_bytes());
            frame.extend(addresses);
            frame.extend(ports);
            frame
        }
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn heard(mut bytes: &[u8]) -> (Result<Option<SocketAddr>, Malformed>, usize) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let heard = runtime.block_on(read(&mut bytes));
        (heard, bytes.len())
    }

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn lines() {
        for (text, source) in [
            ("PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n", Some("192.0.2.1:56324")),
            ("PROXY TCP6 2001:db8::1 ::1 1 65535\r\n", Some("[2001:db8::1]:1")),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", None),
        ] {
            let with_more = format!("{text}GET / HTTP/1.1\r\n");
            assert_eq!(heard(with_more.as_bytes()), (Ok(source.map(address)), 16), "{text}");
        }
        for text in [
            "GET / HTTP/1.1\r\n\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 56324\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 56324 443 9\r\n",
            "PROXY TCP4 2001:db8::1 ::1 1 2\r\n",
            "PROXY TCP6 192.0.2.1 198.51.100.1 1 2\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 65536 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 +1 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 01 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 1 443\n\n",
            "PROXY TCP5 192.0.2.1 198.51.100.1 1 443\r\n",
            "PROXY  TCP4 192.0.2.1 198.51.100.1 1 443\r\n",
            "PROXY TCP4 \u{661}92.0.2.1 198.51.100.1 1 443\r\n",
            "PROXY TCP4 192.0.2.1",
        ] {
            assert_eq!(heard(text.as_bytes()).0, Err(Malformed), "{text:?}");
        }
        let endless = format!("PROXY UNKNOWN {}\r\n", "x".repeat(200));
        assert_eq!(heard(endless.as_bytes()).0, Err(Malformed));
    }

    /// Version 2 with these beyond its addresses.
    fn announced(kind: u8, addresses: &[u8], beyond: &[u8]) -> Vec<u8> {
        let length = ((addresses.len() + beyond.len()) as u16).to_be_bytes();
        [&SIGNATURE[..], &[0x21, kind], &length, addresses, beyond].concat()
    }

    #[test]
    fn frames() {
        let v4 = [192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 4, 1, 0xbb];
        let source = Ok(Some(address("192.0.2.1:56324")));
        assert_eq!(heard(&announced(0x11, &v4, b"")).0, source);
        assert_eq!(heard(&announced(0x11, &v4, &[4, 0, 2, 1, 1])).0, source, "what else is said is passed over");
        assert_eq!(heard(&[&announced(0x11, &v4, b"")[..], b"rest"].concat()).1, 4);
        assert_eq!(heard(&announced(0x31, &[0; 216], b"")).0, Ok(None));
        assert_eq!(heard(&announced(0x00, b"", b"")).0, Ok(None));
        let mut local = announced(0x11, &v4, b"");
        local[12] = 0x20;
        assert_eq!(heard(&local).0, Ok(None));
        // A checksum over all of it, with zeros in its own place.
        let mut summed = announced(0x11, &v4, &[TLV_CRC32C, 0, 4, 0, 0, 0, 0]);
        let sum = crc32c(&summed).to_be_bytes();
        let at = summed.len() - 4;
        summed[at..].copy_from_slice(&sum);
        assert_eq!(heard(&summed).0, source);
        summed[16] ^= 1;
        assert_eq!(heard(&summed).0, Err(Malformed), "one bit");

        let mut other_version = announced(0x11, &v4, b"");
        other_version[12] = 0x11;
        for wrong in [
            announced(0x11, &v4[..11], b""),
            announced(0x12, &v4, b""),
            announced(0x21, &[0; 35], b""),
            announced(0x31, &[0; 215], b""),
            announced(0x11, &v4, &[4, 0, 9, 1]),
            announced(0x11, &v4, &[4, 0]),
            announced(0x11, &v4, &[TLV_CRC32C, 0, 1, 0]),
            announced(0x11, &v4, &[0; 5_000]),
            other_version,
            SIGNATURE.to_vec(),
        ] {
            assert_eq!(heard(&wrong).0, Err(Malformed), "{wrong:?}");
        }
        // The check value of RFC 3720's algorithm.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    proptest! {
        #[test]
        fn what_is_written_is_heard(source: SocketAddr, destination: SocketAddr, is_line: bool) {
            let announce = if is_line { Announce::Line } else { Announce::Frame };
            let (from, to) = (canonical(source), canonical(destination));
            let expected = (from.is_ipv4() == to.is_ipv4()).then_some(from);
            prop_assert_eq!(heard(&write(announce, source, destination)), (Ok(expected), 0));
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), is_frame: bool) {
            let bytes = if is_frame { [&SIGNATURE[..], &bytes].concat() } else { bytes };
            let _ = heard(&bytes);
        }
    }
}
