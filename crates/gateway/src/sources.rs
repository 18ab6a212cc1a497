//! How many connections each client has: nobody takes all there are.
//!
//! An IPv6 client is counted by its /64, because it can choose any address of it.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// Open connections by source.
#[derive(Debug, Default)]
pub(crate) struct Sources(Mutex<HashMap<IpAddr, u32>>);

/// One of a source's; given back when dropped.
#[derive(Debug)]
pub(crate) struct OfSource {
    sources: Arc<Sources>,
    source: IpAddr,
}

impl Sources {
    /// One more, if the source may have so many.
    pub(crate) fn take(self: &Arc<Self>, address: IpAddr, most: u32) -> Option<OfSource> {
        let source = source(address);
        let mut open = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = open.entry(source).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(OfSource { sources: Arc::clone(self), source })
    }
}

impl Drop for OfSource {
    fn drop(&mut self) {
        let mut open = self.sources.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.source);
            }
        }
    }
}

fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (u128::MAX << 64))),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_source_has_its_own_and_gives_it_back() {
        let sources = Arc::new(Sources::default());
        let take = |text: &str| sources.take(text.parse().unwrap(), 2);
        let held =
            [take("10.0.0.1"), take("::ffff:10.0.0.1"), take("10.0.0.2"), take("2001:db8::1"), take("2001:db8::2")];
        assert!(held.iter().all(Option::is_some));
        assert!(take("10.0.0.1").is_none() && take("2001:db8::3").is_none());
        assert!(take("10.0.0.2").is_some(), "given back at once");
        drop(held);
        assert!(sources.0.lock().unwrap().is_empty(), "nothing is kept of those who have gone");
    }
}
