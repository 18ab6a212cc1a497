//! The bytes of what is kept: little-endian numbers, length-prefixed strings, one way to write each value.
//!
//! Reading never panics and never allocates more than what is there: a length is checked against the bytes that are
//! left before anything is made of it. What is left over at the end is an error, so that a value has one spelling and
//! `encode(decode(bytes)) == bytes`.

/// Why bytes were not understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end in the middle of a value.
    #[error("the bytes end in the middle of a value")]
    Truncated,
    /// Written by another version.
    #[error("written in version {found}, this program knows version {known}")]
    Version {
        /// As written.
        found: u8,
        /// Ours.
        known: u8,
    },
    /// A value that cannot be.
    #[error("{0}")]
    Invalid(&'static str),
    /// Something follows the last value.
    #[error("{0} bytes follow the last value")]
    Trailing(usize),
}

/// Writes values to the end of a buffer.
#[derive(Debug)]
pub struct Writer<'a>(&'a mut Vec<u8>);

impl<'a> Writer<'a> {
    /// Appends to `out`.
    pub fn new(out: &'a mut Vec<u8>) -> Self {
        Self(out)
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    /// Two bytes.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.raw(&value.to_le_bytes())
    }

    /// The bytes alone, without their length.
    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// The length in four bytes, then the bytes.
    ///
    /// # Panics
    /// Beyond 4 GiB: every writer has a limit far below.
    pub fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        let length = u32::try_from(bytes.len()).expect("a value of more than 4 GiB");
        self.u32(length).raw(bytes)
    }

    /// As [`Self::bytes`], in UTF-8.
    pub fn str(&mut self, text: &str) -> &mut Self {
        self.bytes(text.as_bytes())
    }

    /// A byte that says whether the value follows, then the value.
    pub fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) -> &mut Self {
        self.u8(u8::from(value.is_some()));
        if let Some(value) = value {
            write(self, value);
        }
        self
    }
}

/// Reads values from the front of some bytes.
#[derive(Clone, Debug)]
pub struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Reads from the first byte on.
    #[must_use]
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// What was not read yet.
    #[must_use]
    pub const fn rest(&self) -> &'a [u8] {
        self.0
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, tail) = self.0.split_first_chunk::<N>().ok_or(DecodeError::Truncated)?;
        self.0 = tail;
        Ok(*head)
    }

    /// One byte.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`], as for all of these.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    /// Two bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    /// Four bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A fixed number of bytes, without a length.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn raw<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        self.array()
    }

    /// A length in four bytes, then the bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`].
    pub fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = self.u32()? as usize;
        let (head, tail) = self.0.split_at_checked(length).ok_or(DecodeError::Truncated)?;
        self.0 = tail;
        Ok(head)
    }

    /// As [`Self::bytes`], in UTF-8.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`], [`DecodeError::Invalid`].
    pub fn str(&mut self) -> Result<&'a str, DecodeError> {
        str::from_utf8(self.bytes()?).map_err(|_| DecodeError::Invalid("a text is not UTF-8"))
    }

    /// A byte that says whether the value follows, then the value.
    ///
    /// # Errors
    /// [`DecodeError::Invalid`] for another byte than 0 and 1, and whatever `read` returns.
    pub fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, DecodeError> {
        match self.u8()? {
            0 => Ok(None),
            1 => read(self).map(Some),
            _ => Err(DecodeError::Invalid("neither there nor absent")),
        }
    }

    /// The first byte, which says how the rest is written.
    ///
    /// # Errors
    /// [`DecodeError::Version`] if it is not `known`.
    pub fn version(&mut self, known: u8) -> Result<(), DecodeError> {
        let found = self.u8()?;
        if found == known { Ok(()) } else { Err(DecodeError::Version { found, known }) }
    }

    /// Everything was read.
    ///
    /// # Errors
    /// [`DecodeError::Trailing`].
    pub const fn finish(self) -> Result<(), DecodeError> {
        if self.0.is_empty() { Ok(()) } else { Err(DecodeError::Trailing(self.0.len())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_in_order() {
        let mut out = Vec::new();
        Writer::new(&mut out)
            .u8(1)
            .u16(2)
            .u32(3)
            .u64(4)
            .str("five")
            .option(Some(6), |w, six| {
                w.u8(six);
            })
            .option(None::<u8>, |_, _| {})
            .raw(&[7; 3]);
        let mut reader = Reader::new(&out);
        assert_eq!(reader.version(1), Ok(()));
        assert_eq!(reader.u16(), Ok(2));
        assert_eq!(reader.u32(), Ok(3));
        assert_eq!(reader.u64(), Ok(4));
        assert_eq!(reader.str(), Ok("five"));
        assert_eq!(reader.option(Reader::u8), Ok(Some(6)));
        assert_eq!(reader.option(Reader::u8), Ok(None));
        assert_eq!(reader.clone().finish(), Err(DecodeError::Trailing(3)));
        assert_eq!(reader.raw(), Ok([7; 3]));
        assert!(reader.rest().is_empty());
        assert_eq!(reader.clone().u8(), Err(DecodeError::Truncated));
        assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn what_cannot_be_is_told() {
        assert_eq!(Reader::new(&[2]).version(1), Err(DecodeError::Version { found: 2, known: 1 }));
        assert_eq!(Reader::new(&[255, 255, 255, 255, 0]).bytes(), Err(DecodeError::Truncated));
        assert!(matches!(Reader::new(&[1, 0, 0, 0, 0xff]).str(), Err(DecodeError::Invalid(_))));
        assert!(matches!(Reader::new(&[2]).option(Reader::u8), Err(DecodeError::Invalid(_))));
        let texts = [
            DecodeError::Truncated.to_string(),
            DecodeError::Version { found: 2, known: 1 }.to_string(),
            DecodeError::Trailing(3).to_string(),
        ];
        assert_eq!(
            texts,
            [
                "the bytes end in the middle of a value",
                "written in version 2, this program knows version 1",
                "3 bytes follow the last value"
            ]
        );
    }
}
