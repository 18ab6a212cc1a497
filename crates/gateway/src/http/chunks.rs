//! The framing of a chunked body (RFC 9112 section 7.1), byte by byte.
//!
//! Picture a tape with marks on it: between two marks lies data, which passes unlooked at; each byte of a mark has one
//! meaning or none. Both sides read by it: the gate what a client sends, as strictly as can be, and `wire.rs` what
//! comes after the gate or from an upstream.

/// A byte that has no meaning where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadChunk;

/// Where in a chunked body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chunk {
    Size {
        digits: u8,
        size: u64,
    },
    /// After a size, in white space that some servers write there.
    Padding {
        size: u64,
    },
    Extension {
        size: u64,
        bytes: u16,
        cr: bool,
    },
    Data {
        left: u64,
    },
    DataEnd {
        cr: bool,
    },
    /// In the trailer section: bytes of the present line, bytes in all.
    Trailer {
        line: u16,
        total: u16,
        cr: bool,
        name: bool,
    },
}

impl Chunk {
    /// Before the first.
    pub(crate) const BEGIN: Self = Self::Size { digits: 0, size: 0 };

    /// After so many bytes of data of it.
    pub(crate) fn after_data(left: u64) -> Self {
        if left == 0 { Self::DataEnd { cr: false } } else { Self::Data { left } }
    }

    /// What follows a byte of framing; `None` after the last of the body. `is_strict` for what a client says.
    ///
    /// # Errors
    /// If the byte has no meaning there.
    pub(crate) fn after(self, byte: u8, is_strict: bool) -> Result<Option<Self>, BadChunk> {
        Ok(Some(match (self, byte) {
            (Self::Size { digits, size }, _) if byte.is_ascii_hexdigit() && digits < 15 => {
                let digit = u64::from((byte as char).to_digit(16).unwrap_or(0));
                Self::Size { digits: digits + 1, size: size * 16 + digit }
            }
            (Self::Size { digits: 1.., size } | Self::Padding { size }, b'\r') => {
                Self::Extension { size, bytes: 0, cr: true }
            }
            (Self::Size { digits: 1.., size } | Self::Padding { size }, b';') => {
                Self::Extension { size, bytes: 0, cr: false }
            }
            (Self::Size { digits: 1.., size } | Self::Padding { size }, b' ' | b'\t') if !is_strict => {
                Self::Padding { size }
            }
            (Self::Extension { size: 0, cr: true, .. }, b'\n') => {
                Self::Trailer { line: 0, total: 0, cr: false, name: true }
            }
            (Self::Extension { size, cr: true, .. }, b'\n') => Self::Data { left: size },
            (Self::Extension { cr: true, .. }, _) => return Err(BadChunk),
            (Self::Extension { size, bytes, .. }, b'\r') => Self::Extension { size, bytes, cr: true },
            (Self::Extension { size, bytes, .. }, _) if bytes < 256 && is_field_byte(byte) => {
                Self::Extension { size, bytes: bytes + 1, cr: false }
            }
            (Self::DataEnd { cr: false }, b'\r') => Self::DataEnd { cr: true },
            (Self::DataEnd { cr: true }, b'\n') => Self::BEGIN,
            (Self::Trailer { line: 0, cr: true, .. }, b'\n') => return Ok(None),
            (Self::Trailer { total, cr: true, .. }, b'\n') => Self::Trailer { line: 0, total, cr: false, name: true },
            (Self::Trailer { cr: true, .. }, _) => return Err(BadChunk),
            (Self::Trailer { line, total, name, .. }, b'\r') if line == 0 || !name => {
                Self::Trailer { line, total, cr: true, name }
            }
            (Self::Trailer { line, total, name: true, .. }, b':') if line > 0 => {
                Self::Trailer { line: line + 1, total: total + 1, cr: false, name: false }
            }
            (Self::Trailer { line, total, name, .. }, _) if trailer_byte(byte, name) && total < 8_192 => {
                Self::Trailer { line: line + 1, total: total + 1, cr: false, name }
            }
            _ => return Err(BadChunk),
        }))
    }
}

pub(crate) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Visible, space, tab or beyond ASCII (RFC 9110 section 5.5); no control character.
pub(crate) fn is_field_byte(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

fn trailer_byte(byte: u8, name: bool) -> bool {
    if name { is_token_byte(byte) } else { is_field_byte(byte) }
}
