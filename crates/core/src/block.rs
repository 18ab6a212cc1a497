//! Blocks of IP addresses: who is meant by `10.0.0.0/8`.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// Addresses that begin with the same bits.
///
/// ```
/// use seawall_core::block::Block;
///
/// let block: Block = "10.0.0.0/8".parse().unwrap();
/// assert!(block.contains("10.1.2.3".parse().unwrap()));
/// // An IPv4 address in IPv6's clothes is the same address.
/// assert!(block.contains("::ffff:10.1.2.3".parse().unwrap()));
/// assert!(!block.contains("11.0.0.1".parse().unwrap()));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    first: IpAddr,
    bits: u8,
}

/// A text that names no block.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// There is no address in it.
    #[error("`{0}` is no address, and no block of them such as `10.0.0.0/8`")]
    Address(String),
    /// There are not so many bits.
    #[error("`{text}`: a block has 0 to {most} bits")]
    Bits {
        /// As written.
        text: String,
        /// 32 or 128.
        most: u8,
    },
    /// The address lies in the block, and is not its beginning.
    #[error("`{text}` is not where a block begins; it begins at `{first}`")]
    Inside {
        /// As written.
        text: String,
        /// What may be meant.
        first: Block,
    },
}

impl Block {
    /// True if the address lies in it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        first_of(address.to_canonical(), self.bits) == Some(self.first)
    }
}

impl Block {
    /// True if an address lies in both.
    #[must_use]
    pub fn meets(self, other: Self) -> bool {
        self.contains(other.first) || other.contains(self.first)
    }
}

/// The first address of the block of so many bits that an address lies in.
fn first_of(address: IpAddr, bits: u8) -> Option<IpAddr> {
    match address {
        IpAddr::V4(v4) if bits <= 32 => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            Some(IpAddr::from((v4.to_bits() & mask).to_be_bytes()))
        }
        IpAddr::V6(v6) if bits <= 128 => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            Some(IpAddr::from((v6.to_bits() & mask).to_be_bytes()))
        }
        _ => None,
    }
}

impl FromStr for Block {
    type Err = BlockError;

    fn from_str(text: &str) -> Result<Self, BlockError> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| BlockError::Address(text.into()))?;
        let address = address.to_canonical();
        let most = if address.is_ipv4() { 32 } else { 128 };
        let digits = |bits: &&str| !bits.is_empty() && bits.bytes().all(|byte| byte.is_ascii_digit());
        let bits = match bits {
            None => Some(most),
            Some(bits) => Some(bits).filter(digits).and_then(|bits| bits.parse().ok()).filter(|bits| *bits <= most),
        };
        let wrong = || BlockError::Bits { text: text.into(), most };
        let (bits, first) = bits.and_then(|bits| Some((bits, first_of(address, bits)?))).ok_or_else(wrong)?;
        let block = Self { first, bits };
        if first == address { Ok(block) } else { Err(BlockError::Inside { text: text.into(), first: block }) }
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.bits)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn block(text: &str) -> Block {
        text.parse().unwrap()
    }

    #[test]
    fn blocks_meet_where_one_lies_in_the_other() {
        for (one, other, meet) in [
            ("10.0.0.0/8", "10.1.0.0/16", true),
            ("10.1.0.0/16", "10.2.0.0/16", false),
            ("0.0.0.0/0", "10.0.0.1", true),
            ("::/0", "10.0.0.1", false),
        ] {
            let (one, other) = (block(one), block(other));
            assert_eq!((one.meets(other), other.meets(one)), (meet, meet), "{one} {other}");
        }
    }

    #[test]
    fn who_is_meant() {
        for (text, inside, outside) in [
            ("10.0.0.0/8", "10.255.255.255", "11.0.0.0"),
            ("192.168.7.9", "192.168.7.9", "192.168.7.8"),
            ("0.0.0.0/0", "255.1.2.3", "::1"),
            ("::/0", "2001:db8::1", "1.2.3.4"),
            ("2001:db8::/32", "2001:db8:ffff::1", "2001:db9::"),
            ("::1", "::1", "::2"),
            ("::ffff:10.0.0.0", "10.0.0.0", "10.0.0.1"),
        ] {
            let block = block(text);
            assert!(block.contains(inside.parse().unwrap()), "{inside} in {block}");
            assert!(!block.contains(outside.parse().unwrap()), "{outside} in {block}");
        }
    }

    #[test]
    fn what_names_no_block() {
        for (text, words) in [
            ("", "`` is no address, and no block of them such as `10.0.0.0/8`"),
            ("host", "`host` is no address"),
            ("10.0.0.0/33", "`10.0.0.0/33`: a block has 0 to 32 bits"),
            ("10.0.0.0/", "0 to 32 bits"),
            ("10.0.0.0/+8", "0 to 32 bits"),
            ("::/129", "0 to 128 bits"),
            ("10.0.0.1/8", "`10.0.0.1/8` is not where a block begins; it begins at `10.0.0.0/8`"),
        ] {
            let told = text.parse::<Block>().unwrap_err().to_string();
            assert!(told.contains(words), "{text}: {told}");
        }
    }

    proptest! {
        #[test]
        fn a_block_holds_its_own_and_reads_as_it_is_written(address: u32, bits in 0_u8..=32) {
            let address = IpAddr::from(address.to_be_bytes());
            let block = Block { first: first_of(address, bits).unwrap(), bits };
            prop_assert!(block.contains(address));
            prop_assert_eq!(block.to_string().parse::<Block>(), Ok(block));
        }
    }
}
