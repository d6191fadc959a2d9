//! One vector and its text.

use std::fmt::Write as _;

/// Bytes in one line of hexadecimal digits.
const LINE_BYTES: usize = 48;

/// What a reader must say about a vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    Accepted,
    /// With the class of the reason.
    Refused(String),
}

/// One vector: what is under test (the body), and what a reader has to know about it (the headers).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vector {
    pub name: String,
    /// What the body is.
    pub kind: String,
    /// For people: what is special about it.
    pub about: String,
    pub expect: Expect,
    /// In their order; a name may stand several times.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Vector {
    /// A vector that must be accepted.
    pub(super) fn accepted(kind: &str, name: &str, about: &str, body: Vec<u8>) -> Self {
        Self {
            name: name.to_owned(),
            kind: kind.to_owned(),
            about: about.to_owned(),
            expect: Expect::Accepted,
            headers: Vec::new(),
            body,
        }
    }

    pub(super) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(super) fn with_hex(self, name: &str, bytes: &[u8]) -> Self {
        self.with(name, hex(bytes))
    }

    /// The same, spoiled in one way: it must be refused. What only an accepted vector yields is left out.
    pub(super) fn spoiled(&self, suffix: &str, reason: &str, about: &str, spoil: impl FnOnce(&mut Self)) -> Self {
        let mut vector = self.clone();
        vector.name = format!("{}-{suffix}", self.name);
        vector.about = about.to_owned();
        vector.expect = Expect::Refused(reason.to_owned());
        vector.headers.retain(|(name, _)| !name.starts_with(YIELDS));
        spoil(&mut vector);
        vector
    }

    pub(super) fn set(&mut self, name: &str, value: impl Into<String>) {
        let header = self.headers.iter_mut().find(|(header, _)| header == name);
        header.expect("only what is there is changed").1 = value.into();
    }

    /// The values of a header, in their order.
    pub fn all<'v>(&'v self, name: &str) -> impl Iterator<Item = &'v str> {
        let values = self.headers.iter().filter(move |(header, _)| *header == name);
        values.map(|(_, value)| value.as_str())
    }

    /// # Panics
    ///
    /// If the vector has no such header.
    pub fn value(&self, name: &str) -> &str {
        let first = self.all(name).next();
        first.unwrap_or_else(|| panic!("{} has no header {name}", self.name))
    }

    /// # Panics
    ///
    /// If the vector has no such header, or it is not hexadecimal.
    pub fn bytes(&self, name: &str) -> Vec<u8> {
        unhex(self.value(name)).unwrap_or_else(|| panic!("header {name} of {} is not hexadecimal", self.name))
    }

    /// # Panics
    ///
    /// If the vector has no such header, or it is no number.
    pub fn number(&self, name: &str) -> u64 {
        let value = self.value(name).parse();
        value.unwrap_or_else(|_| panic!("header {name} of {} is no number", self.name))
    }

    /// The text of the file.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let mut line = |name: &str, value: &str| writeln!(text, "{name}: {value}").expect("a string takes all");
        line("kind", &self.kind);
        line("about", &self.about);
        match &self.expect {
            Expect::Accepted => line("expect", "accepted"),
            Expect::Refused(reason) => {
                line("expect", "refused");
                line("reason", reason);
            }
        }
        for (name, value) in &self.headers {
            line(name, value);
        }
        text.push('\n');
        for bytes in self.body.chunks(LINE_BYTES) {
            text.push_str(&hex(bytes));
            text.push('\n');
        }
        text
    }

    /// Reads the text of a file. The error says what is wrong with it.
    pub fn parse(name: &str, text: &str) -> Result<Self, String> {
        let (head, body) = text.split_once("\n\n").ok_or("has no empty line after its headers")?;
        let mut headers = Vec::new();
        for line in head.lines() {
            let (name, value) = line
                .split_once(": ")
                .ok_or_else(|| format!("has a line without a colon: {line}"))?;
            headers.push((name.to_owned(), value.to_owned()));
        }
        let mut take = |wanted: &str| {
            let place = headers.iter().position(|(name, _)| name == wanted);
            place.map(|place| headers.remove(place).1)
        };
        let expect = match (take("expect").as_deref(), take("reason")) {
            (Some("accepted"), None) => Expect::Accepted,
            (Some("refused"), Some(reason)) => Expect::Refused(reason),
            _ => return Err("expects neither `accepted` nor `refused` with a reason".to_owned()),
        };
        Ok(Self {
            name: name.to_owned(),
            kind: take("kind").ok_or("has no kind")?,
            about: take("about").ok_or("does not say what it is about")?,
            expect,
            headers,
            body: unhex(&body.replace('\n', "")).ok_or("has a body that is not hexadecimal")?,
        })
    }
}

/// What a header begins with that says what an accepted vector yields.
const YIELDS: &str = "yields-";

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            write!(text, "{byte:02x}").expect("a string takes all");
            text
        })
}

pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let bytes = pairs.iter().map(|[high, low]| Some(digit(*high)? << 4 | digit(*low)?));
    rest.is_empty().then(|| bytes.collect())?
}

#[cfg(test)]
mod tests {
    use super::{Expect, Vector};

    #[test]
    fn a_vector_is_read_as_it_was_written() {
        let accepted = Vector::accepted("envelope", "one", "A thing.", (0..100).collect())
            .with("trusted", "aa")
            .with("trusted", "bb");
        let refused = accepted.spoiled("less", "malformed", "It is empty.", |vector| vector.body.clear());
        assert_eq!(refused.expect, Expect::Refused("malformed".to_owned()));
        for vector in [accepted, refused] {
            assert_eq!(Vector::parse(&vector.name, &vector.render()), Ok(vector));
        }
    }

    #[test]
    fn rejects_a_file_that_expects_nothing() {
        assert!(Vector::parse("one", "kind: a\nabout: b\n\n00\n").is_err());
        assert!(Vector::parse("one", "kind: a\nabout: b\nexpect: refused\n\n00\n").is_err());
        assert!(Vector::parse("one", "kind: a\nabout: b\nexpect: accepted\n\n0\n").is_err());
    }
}
