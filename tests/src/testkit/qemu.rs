//! Encrypted disk images of QEMU.
//!
//! Needs qemu-img, qemu-io and cryptsetup, which `tests/run` installs.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::NamedTempFile;

use super::luks;
use super::process::{Output, run};

/// What the header of LUKS1 takes with a key of 64 bytes.
const LUKS1_HEADER_BYTES: usize = 2 << 20;

/// How often a command may say that the machine can't be measured.
const TRIES: usize = 20;

#[derive(Clone, Copy, Debug)]
enum Format {
    /// qcow2 with a LUKS header inside.
    Qcow2,
    /// LUKS, as cryptsetup and the kernel know it.
    Luks,
}

/// An encrypted image, and the images that it lies on.
///
/// Where keys are asked for they are the image's own first, then that of the image below it, and so on.
#[derive(Clone, Debug)]
pub struct Image {
    path: PathBuf,
    format: Format,
    bytes: usize,
    below: Option<Box<Image>>,
}

impl Image {
    /// An image that may not be there yet. Its name ends as its format does: `.qcow2` or `.luks`.
    pub fn at(folder: &Path, name: &str, bytes: usize) -> Self {
        Self {
            path: folder.join(name),
            format: match name.ends_with(".qcow2") {
                true => Format::Qcow2,
                false => Format::Luks,
            },
            bytes,
            below: None,
        }
    }

    /// A new image under a key.
    pub fn create(folder: &Path, name: &str, bytes: usize, key: &[u8]) -> Self {
        let image = Self::at(folder, name, bytes);
        image.make(key);
        image
    }

    /// A new overlay: what is written goes into it, and the rest is read from this image.
    pub fn overlay(&self, name: &str, key: &[u8]) -> Self {
        let mut image = self.clone();
        image.path.set_file_name(name);
        image.below = Some(Box::new(self.clone()));
        image.make(key);
        image
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How QEMU's tools are told to open it with these secrets.
    pub fn options(&self, secrets: &[impl AsRef<str>]) -> String {
        let mut options = Vec::new();
        let mut prefix = String::new();
        let mut image = Some(self);
        for secret in secrets {
            let Image {
                path, format, below, ..
            } = image.expect("a secret for each image");
            let (driver, name) = match format {
                Format::Qcow2 => ("qcow2", "encrypt.key-secret"),
                Format::Luks => ("luks", "key-secret"),
            };
            options.push(format!("{prefix}driver={driver}"));
            options.push(format!("{prefix}{name}={}", secret.as_ref()));
            options.push(format!("{prefix}file.filename={}", path.display()));
            prefix += "backing.";
            image = below.as_deref();
        }
        options.join(",")
    }

    /// Writes one value into all of these bytes.
    pub fn fill(&self, keys: &[&[u8]], range: Range<usize>, pattern: u8) {
        let write = format!("write -P {pattern} {} {}", range.start, range.len());
        self.io(keys, &write).expect_success("qemu-io");
    }

    /// Whether all of these bytes have this value.
    ///
    /// # Panics
    ///
    /// If it does not open with these keys.
    pub fn shows(&self, keys: &[&[u8]], range: Range<usize>, pattern: u8) -> bool {
        let output = self.io(keys, &format!("read -P {pattern} {} {}", range.start, range.len()));
        if output.text().contains("Pattern verification failed") {
            return false;
        }
        output.expect_success("qemu-io");
        true
    }

    /// Whether it opens with these keys.
    ///
    /// # Panics
    ///
    /// If that can't be told.
    pub fn opens(&self, keys: &[&[u8]]) -> bool {
        let output = self.io(keys, "read 0 512");
        let said = output.stderr.clone() + &output.text();
        if said.contains("Invalid password, cannot unlock any keyslot") {
            return false;
        }
        output.expect_success("qemu-io");
        true
    }

    /// Keeps what it has under a name, in the image itself.
    pub fn snapshot(&self, key: &[u8], name: &str) {
        let secrets = Secrets::new(&[key]);
        let mut command = secrets.command("qemu-img", &["snapshot"]);
        command.args(["-c", name, "--image-opts", &self.options(&secrets.names())]);
        run(&mut command, b"").expect_success("qemu-img snapshot");
    }

    /// What a snapshot in it has.
    pub fn read_snapshot(&self, key: &[u8], name: &str) -> Vec<u8> {
        let secrets = Secrets::new(&[key]);
        let plain = NamedTempFile::new().expect("there is room for it");
        let mut command = secrets.command("qemu-img", &["convert", "-O", "raw"]);
        command.args(["-l", &format!("snapshot.name={name}")]);
        command.args(["--image-opts", &self.options(&secrets.names())]);
        run(command.arg(plain.path()), b"").expect_success("qemu-img convert");
        fs::read(plain.path()).expect("it was written")
    }

    fn make(&self, key: &[u8]) {
        match self.format {
            Format::Qcow2 => self.make_qcow2(key),
            Format::Luks => self.make_luks(key),
        }
    }

    fn make_qcow2(&self, key: &[u8]) {
        let secrets = Secrets::new(&[key]);
        let mut command = secrets.command("qemu-img", &["create", "-q", "-f", "qcow2"]);
        let name = &secrets.names()[0];
        let options = format!("encrypt.format=luks,encrypt.key-secret={name},encrypt.iter-time=10");
        command.args(["-o", &options]);
        if let Some(below) = &self.below {
            // Not opened, since its key can't be said here.
            command.args(["-u", "-F", "qcow2", "-b"]).arg(&below.path);
        }
        command.arg(&self.path).arg(self.bytes.to_string());
        until_measured(|| run(&mut command, b"")).expect_success("qemu-img create");
    }

    /// By cryptsetup, which need not measure for a second how fast the machine is. QEMU knows the first version only.
    fn make_luks(&self, key: &[u8]) {
        let file = File::create(&self.path).expect("the folder is ours");
        let bytes = LUKS1_HEADER_BYTES + self.bytes;
        file.set_len(bytes as u64).expect("there is room for it");
        let mut format = vec!["luksFormat", "--batch-mode", "--type=luks1", "--key-size=512"];
        format.extend(["--pbkdf-force-iterations=1000", "--key-file=-"]);
        luks::cryptsetup(&format, &self.path, hex(key).as_bytes()).expect_success("luksFormat");
    }

    fn io(&self, keys: &[&[u8]], what: &str) -> Output {
        let secrets = Secrets::new(keys);
        let mut command = secrets.command("qemu-io", &[]);
        command.args(["--image-opts", &self.options(&secrets.names()), "-c", what]);
        run(&mut command, b"")
    }
}

/// Runs something again for as long as QEMU can't measure how fast it derives keys: it gives up where the clock of its
/// processor time is too coarse. That says nothing of the image.
pub fn until_measured(mut run: impl FnMut() -> Output) -> Output {
    let unmeasured = |output: &Output| output.stderr.contains("accurate CPU usage");
    for _ in 1..TRIES {
        let output = run();
        if !unmeasured(&output) {
            return output;
        }
    }
    run()
}

/// Keys in hexadecimal, since QEMU takes text only; in files, since there are several at once.
pub struct Secrets(Vec<NamedTempFile>);

impl Secrets {
    pub fn new(keys: &[&[u8]]) -> Self {
        let file = |key: &&[u8]| {
            let mut file = NamedTempFile::new().expect("there is room for it");
            file.write_all(hex(key).as_bytes()).expect("there is room for it");
            file
        };
        Self(keys.iter().map(file).collect())
    }

    /// A command of QEMU's that knows the keys by [`Self::names`].
    pub fn command(&self, program: impl AsRef<OsStr>, verb: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(verb);
        for (name, file) in self.names().iter().zip(&self.0) {
            let object = format!("secret,id={name},file={}", file.path().display());
            command.args(["--object", &object]);
        }
        command
    }

    pub fn names(&self) -> Vec<String> {
        (0..self.0.len()).map(|number| format!("key{number}")).collect()
    }
}

fn hex(key: &[u8]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}
