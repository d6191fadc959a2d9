//! A key whose bytes are looked for everywhere.

use std::fs;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

use super::attacker::random;

/// How much of a key is enough to be found. Shorter parts of random bytes could turn up by chance in text forms.
const PART: usize = 16;

/// A key that was never anywhere else, and the forms in which its bytes might turn up.
pub struct Canary {
    pub material: Vec<u8>,
    forms: Vec<(&'static str, Vec<u8>)>,
}

impl Canary {
    pub fn new() -> Self {
        let material = random::<64>().to_vec();
        let mut forms = Vec::new();
        for part in material.chunks(PART) {
            let lower: String = part.iter().map(|byte| format!("{byte:02x}")).collect();
            forms.push(("raw", part.to_vec()));
            forms.push(("upper-case hexadecimal", lower.to_uppercase().into_bytes()));
            forms.push(("lower-case hexadecimal", lower.into_bytes()));
        }
        // Three bytes are four characters, so the text depends on where in a group of three the key begins.
        for shift in 0..3 {
            let middle = &material[shift..shift + PART / 3 * 3];
            forms.push(("base64", STANDARD_NO_PAD.encode(middle).into_bytes()));
            forms.push(("base64 for URLs", URL_SAFE_NO_PAD.encode(middle).into_bytes()));
        }
        Self { material, forms }
    }

    /// The form in which some of the key is in these bytes, if it is.
    pub fn find(&self, bytes: &[u8]) -> Option<&'static str> {
        // Most places are told by their first byte to begin none of the forms.
        let mut begins = [false; 256];
        for (_, form) in &self.forms {
            begins[usize::from(form[0])] = true;
        }
        let places = bytes.iter().enumerate().filter(|(_, byte)| begins[usize::from(**byte)]);
        let mut found = places.filter_map(|(at, _)| self.forms.iter().find(|(_, form)| bytes[at..].starts_with(form)));
        found.next().map(|(name, _)| *name)
    }

    /// # Panics
    ///
    /// If some of the key is in these bytes.
    pub fn assert_not_in(&self, what: &str, bytes: &[u8]) {
        if let Some(form) = self.find(bytes) {
            panic!("the canary is in {what}, {form}");
        }
    }

    /// # Panics
    ///
    /// If some of the key is in a file of the folder, or the folder has no file.
    pub fn assert_not_in_folder(&self, folder: &Path) {
        assert!(self.search(folder) > 0, "{} has no file", folder.display());
    }

    fn search(&self, folder: &Path) -> usize {
        let mut files = 0;
        for entry in fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
            let path = entry.expect("it can be read").path();
            if path.is_dir() {
                files += self.search(&path);
            } else if path.is_file() {
                // A daemon at work may replace a file meanwhile.
                let Ok(bytes) = fs::read(&path) else { continue };
                self.assert_not_in(&path.display().to_string(), &bytes);
                files += 1;
            }
        }
        files
    }
}

impl Default for Canary {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    /// A search that finds nothing proves nothing.
    #[test]
    fn it_is_found_in_every_form_and_place() {
        let canary = Canary::new();
        let hex: String = canary.material.iter().map(|byte| format!("{byte:02x}")).collect();
        for before in 0..4 {
            let padding = vec![0x61; before];
            let bytes = [&padding, &canary.material].map(Vec::as_slice).concat();
            assert_eq!(canary.find(&bytes), Some("raw"));
            assert_eq!(canary.find(STANDARD.encode(&bytes).as_bytes()), Some("base64"));
        }
        assert_eq!(canary.find(hex.as_bytes()), Some("lower-case hexadecimal"));
        assert_eq!(
            canary.find(hex.to_uppercase().as_bytes()),
            Some("upper-case hexadecimal")
        );
        assert_eq!(canary.find(&canary.material[10..50]), Some("raw"), "a part is enough");
        assert_eq!(canary.find(&Canary::new().material), None);
    }
}
