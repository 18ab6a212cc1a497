//! Header fields, in the order they came.
//!
//! A message has a dozen fields, and a proxy asks for a few of them: looking along a row is cheaper than a table that
//! is built for every message. Fields of one name keep their order, and leave where they stood. The row is as long as
//! the gate lets a head be, so that no look takes long.

use http::header::{HeaderMap, HeaderName, HeaderValue};

/// The header fields of a message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fields(Vec<(HeaderName, HeaderValue)>);

/// What a field can be asked for by. Case does not matter.
pub(crate) trait Name {
    fn is(&self, name: &HeaderName) -> bool;
}

impl Name for HeaderName {
    fn is(&self, name: &HeaderName) -> bool {
        self == name
    }
}

impl Name for str {
    fn is(&self, name: &HeaderName) -> bool {
        name == self
    }
}

impl<N: Name + ?Sized> Name for &N {
    fn is(&self, name: &HeaderName) -> bool {
        (**self).is(name)
    }
}

/// Anything that has header fields: a message's head, or what stands behind its body.
pub(crate) trait Named {
    /// The first value of this name.
    fn value(&self, name: &HeaderName) -> Option<&HeaderValue>;
}

impl Named for Fields {
    fn value(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.get(name)
    }
}

impl Named for HeaderMap {
    fn value(&self, name: &HeaderName) -> Option<&HeaderValue> {
        self.get(name)
    }
}

impl Fields {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    /// With room for so many.
    pub(crate) fn with_capacity(fields: usize) -> Self {
        Self(Vec::with_capacity(fields))
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The first value of this name.
    pub(crate) fn get(&self, name: impl Name) -> Option<&HeaderValue> {
        self.0.iter().find(|(there, _)| name.is(there)).map(|(_, value)| value)
    }

    /// All values of this name, in their order.
    pub(crate) fn get_all(&self, name: impl Name) -> impl DoubleEndedIterator<Item = &HeaderValue> {
        self.0.iter().filter(move |(there, _)| name.is(there)).map(|(_, value)| value)
    }

    pub(crate) fn has(&self, name: impl Name) -> bool {
        self.get(name).is_some()
    }

    pub(crate) fn names(&self) -> impl Iterator<Item = &HeaderName> {
        self.0.iter().map(|(name, _)| name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&HeaderName, &HeaderValue)> {
        self.0.iter().map(|(name, value)| (name, value))
    }

    /// Adds a field behind all others, whether there is one of its name or not.
    pub(crate) fn append(&mut self, name: HeaderName, value: HeaderValue) {
        self.0.push((name, value));
    }

    /// Makes this the one value of its name.
    pub(crate) fn insert(&mut self, name: HeaderName, value: HeaderValue) {
        match self.0.iter().position(|(there, _)| *there == name) {
            Some(at) => {
                self.0[at].1 = value;
                let mut nth = 0;
                self.0.retain(|(there, _)| {
                    nth += 1;
                    nth <= at + 1 || *there != name
                });
            }
            None => self.append(name, value),
        }
    }

    /// Adds a field if there is none of its name.
    pub(crate) fn insert_if_absent(&mut self, name: HeaderName, value: impl FnOnce() -> HeaderValue) {
        if !self.has(&name) {
            self.append(name, value());
        }
    }

    /// Takes away all fields of this name, and gives the first one's value.
    pub(crate) fn remove(&mut self, name: impl Name) -> Option<HeaderValue> {
        let at = self.0.iter().position(|(there, _)| name.is(there))?;
        let (_, value) = self.0.remove(at);
        self.0.retain(|(there, _)| !name.is(there));
        Some(value)
    }

    /// Takes away all whose name is so.
    pub(crate) fn remove_all(&mut self, is_so: impl Fn(&HeaderName) -> bool) {
        self.0.retain(|(name, _)| !is_so(name));
    }
}

impl<'a> IntoIterator for &'a Fields {
    type Item = (&'a HeaderName, &'a HeaderValue);
    type IntoIter = std::iter::Map<
        std::slice::Iter<'a, (HeaderName, HeaderValue)>,
        fn(&'a (HeaderName, HeaderValue)) -> (&'a HeaderName, &'a HeaderValue),
    >;

    fn into_iter(self) -> Self::IntoIter {
        self.0.iter().map(|(name, value)| (name, value))
    }
}

impl Extend<(HeaderName, HeaderValue)> for Fields {
    /// Each becomes the one value of its name.
    fn extend<T: IntoIterator<Item = (HeaderName, HeaderValue)>>(&mut self, fields: T) {
        fields.into_iter().for_each(|(name, value)| self.insert(name, value));
    }
}

impl FromIterator<(HeaderName, HeaderValue)> for Fields {
    fn from_iter<T: IntoIterator<Item = (HeaderName, HeaderValue)>>(fields: T) -> Self {
        Self(fields.into_iter().collect())
    }
}

impl From<HeaderMap> for Fields {
    fn from(map: HeaderMap) -> Self {
        let mut fields = Self::with_capacity(map.len() + 8);
        let mut last = None;
        for (name, value) in map {
            // It names only the first of several.
            last = name.or(last);
            if let Some(name) = &last {
                fields.append(name.clone(), value);
            }
        }
        fields
    }
}

impl From<Fields> for HeaderMap {
    fn from(fields: Fields) -> Self {
        let mut map = Self::with_capacity(fields.len());
        for (name, value) in fields.0 {
            map.append(name, value);
        }
        map
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(lines: &[(&'static str, &'static str)]) -> Fields {
        lines.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    fn written(fields: &Fields) -> String {
        fields.iter().map(|(name, value)| format!("{name}={} ", value.to_str().unwrap())).collect()
    }

    const A: HeaderName = HeaderName::from_static("a");

    #[test]
    fn one_value_takes_the_place_of_all_of_its_name() {
        let mut several = fields(&[("x", "0"), ("a", "1"), ("b", "2"), ("a", "3"), ("host", "h"), ("a", "4")]);
        assert_eq!(several.get("A").unwrap(), "1");
        assert_eq!(several.get_all(A).collect::<Vec<_>>(), ["1", "3", "4"]);
        several.insert(A, HeaderValue::from_static("5"));
        assert_eq!(written(&several), "x=0 a=5 b=2 host=h ");
        several.insert(HeaderName::from_static("c"), HeaderValue::from_static("6"));
        several.extend([(A, HeaderValue::from_static("7"))]);
        assert_eq!((written(&several), several.len()), ("x=0 a=7 b=2 host=h c=6 ".into(), 5));
    }

    #[test]
    fn what_is_there_stays_and_what_is_not_is_added() {
        let mut some = fields(&[("a", "1")]);
        some.insert_if_absent(A, || unreachable!("it is there"));
        some.insert_if_absent(HeaderName::from_static("b"), || HeaderValue::from_static("2"));
        some.append(A, HeaderValue::from_static("3"));
        assert_eq!(written(&some), "a=1 b=2 a=3 ");
    }

    #[test]
    fn all_of_a_name_go_together_and_nothing_else_goes() {
        let mut several = fields(&[("a", "1"), ("b", "2"), ("a", "3"), ("ab", "4")]);
        assert_eq!((several.remove(A).unwrap(), several.remove(A)), (HeaderValue::from_static("1"), None));
        assert_eq!(written(&several), "b=2 ab=4 ");
        several.remove_all(|name| name.as_str().starts_with('a'));
        assert_eq!((written(&several), several.has("b"), several.has("ab")), ("b=2 ".into(), true, false));
    }

    #[test]
    fn a_table_and_back() {
        let row = fields(&[("b", "1"), ("a", "2"), ("b", "3"), ("host", "h")]);
        let table = HeaderMap::from(row.clone());
        assert_eq!((table.len(), table.value(&A).unwrap().as_bytes()), (4, &b"2"[..]));
        let back = Fields::from(table);
        assert_eq!((back.len(), back.value(&A).unwrap().as_bytes()), (4, &b"2"[..]));
        assert_eq!(back.get_all("b").collect::<Vec<_>>(), row.get_all("b").collect::<Vec<_>>());
        assert_eq!(back.names().filter(|name| *name == http::header::HOST).count(), 1);
    }
}
