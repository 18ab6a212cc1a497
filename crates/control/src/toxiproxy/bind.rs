//! From values to fields, by the rules and with the messages of Go's `encoding/json`: keys match whatever their case,
//! unknown ones are ignored, `null` changes nothing, whole numbers are strict. All fields are read; the first that does
//! not fit is told.

use super::json::Value;

/// Where values are put, and what did not fit.
#[derive(Debug, Default)]
pub(super) struct Binder {
    wrong: Option<String>,
}

/// A field as Go's messages name it: `LatencyToxic` and `attributes.latency`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place<'a> {
    pub(super) of: &'a str,
    pub(super) field: &'a str,
}

impl Binder {
    /// # Errors
    /// The first that did not fit.
    pub(super) fn finish(self) -> Result<(), String> {
        self.wrong.map_or(Ok(()), Err)
    }

    /// The members of an object that are among these fields, as their index and value. `wanted` says what Go expected
    /// here: the field it was to be, or nothing for the whole body, and the type.
    pub(super) fn members<'v>(
        &mut self,
        value: &'v Value,
        fields: &[&str],
        wanted: (Option<Place<'_>>, &str),
    ) -> Vec<(usize, &'v Value)> {
        match value {
            Value::Object(members) => {
                let known = |(key, value): &'v (String, Value)| Some((position(fields, key)?, value));
                members.iter().filter_map(known).collect()
            }
            Value::Null => Vec::new(),
            other => {
                self.misfit(other.kind(), wanted.0, wanted.1);
                Vec::new()
            }
        }
    }

    pub(super) fn text(&mut self, place: Place<'_>, value: &Value, target: &mut String) {
        match value {
            Value::Text(text) => target.clone_from(text),
            Value::Null => {}
            other => self.misfit(other.kind(), Some(place), "string"),
        }
    }

    pub(super) fn bool(&mut self, place: Place<'_>, value: &Value, target: &mut bool) {
        match value {
            Value::True => *target = true,
            Value::False => *target = false,
            Value::Null => {}
            other => self.misfit(other.kind(), Some(place), "bool"),
        }
    }

    /// What Go reads through a pointer: `null` takes the choice back.
    pub(super) fn choice<T: Copy + Default>(
        &mut self,
        value: &Value,
        target: &mut Option<T>,
        read: impl FnOnce(&mut Self, &Value, &mut T),
    ) {
        match value {
            Value::Null => *target = None,
            value => read(self, value, target.get_or_insert_default()),
        }
    }

    /// `kind` is Go's type, `int` or `int64`; both have 64 bits.
    pub(super) fn int(&mut self, place: Place<'_>, value: &Value, kind: &str, target: &mut i64) {
        match value {
            Value::Number(text) => match text.parse() {
                Ok(number) => *target = number,
                Err(_) => self.misfit(&format!("number {text}"), Some(place), kind),
            },
            Value::Null => {}
            other => self.misfit(other.kind(), Some(place), kind),
        }
    }

    pub(super) fn float(&mut self, place: Place<'_>, value: &Value, target: &mut f32) {
        match value {
            Value::Number(text) => match text.parse::<f32>() {
                Ok(number) if number.is_finite() => *target = number,
                _ => self.misfit(&format!("number {text}"), Some(place), "float32"),
            },
            Value::Null => {}
            other => self.misfit(other.kind(), Some(place), "float32"),
        }
    }

    pub(super) fn misfit(&mut self, what: &str, place: Option<Place<'_>>, kind: &str) {
        let told = match place {
            Some(Place { of, field }) => {
                format!("json: cannot unmarshal {what} into Go struct field {of}.{field} of type {kind}")
            }
            None => format!("json: cannot unmarshal {what} into Go value of type {kind}"),
        };
        self.wrong.get_or_insert(told);
    }
}

/// A field written exactly so, or else one that differs in case only.
fn position(fields: &[&str], key: &str) -> Option<usize> {
    let exact = fields.iter().position(|field| *field == key);
    exact.or_else(|| fields.iter().position(|field| folded(field).eq(folded(key))))
}

/// Letters that Unicode folds to the same: two of ASCII's have relatives outside it.
fn folded(text: &str) -> impl Iterator<Item = char> {
    text.chars().map(|letter| match letter {
        '\u{17f}' => 's',
        '\u{212a}' => 'k',
        other => other.to_ascii_lowercase(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_match_whatever_their_case() {
        assert_eq!(position(&["name", "Name"], "Name"), Some(1));
        assert_eq!(position(&["name"], "NAME"), Some(0));
        assert_eq!(position(&["upstream"], "up\u{17f}tream"), Some(0));
        assert_eq!(position(&["k"], "\u{212a}"), Some(0));
        assert_eq!(position(&["name"], "names"), None);
    }

    #[test]
    fn the_first_misfit_is_told_and_the_rest_is_read() {
        let mut binder = Binder::default();
        let place = |field| Place { of: "T", field };
        let (mut text, mut flag, mut int, mut float) = (String::new(), true, 1, 1.0);
        binder.int(place("a"), &Value::Number("1e3".into()), "int", &mut int);
        binder.int(place("a"), &Value::Null, "int", &mut int);
        binder.float(place("b"), &Value::Number("1e99".into()), &mut float);
        binder.float(place("b"), &Value::False, &mut float);
        binder.float(place("b"), &Value::Null, &mut float);
        binder.bool(place("c"), &Value::Text(String::new()), &mut flag);
        binder.bool(place("c"), &Value::Null, &mut flag);
        binder.text(place("d"), &Value::Text("x".into()), &mut text);
        binder.text(place("d"), &Value::Null, &mut text);
        assert_eq!((text.as_str(), flag, int, float), ("x", true, 1, 1.0));
        assert_eq!(
            binder.finish(),
            Err("json: cannot unmarshal number 1e3 into Go struct field T.a of type int".into())
        );
        let mut binder = Binder::default();
        assert!(binder.members(&Value::Array(vec![]), &["a"], (None, "pack.T")).is_empty());
        assert_eq!(binder.finish(), Err("json: cannot unmarshal array into Go value of type pack.T".into()));
    }
}
