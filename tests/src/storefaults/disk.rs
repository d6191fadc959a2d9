//! A folder as it may be after a power cut.
//!
//! Each file is what was synced, and the changes since, in order. Names (files, folders, renames, removals) are kept alike.
//! A power cut keeps what was synced; of the rest it may keep nothing, a part of it in order, or any part in any order, with
//! writes torn at sectors of 512 or 4,096 bytes. `sync_file_range` counts for nothing.
//!
//! | names | what makes a change of a name durable |
//! |---|---|
//! | journalled | any sync that begins after it, as on ext4, XFS and btrfs; what is lost is lost from the end |
//! | strict | a sync of its folder, or of the file itself for where that was made; anything else may be lost by itself |

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use super::random::Random;
use super::recording::Event;

/// The folder while a recording is played back.
#[derive(Clone)]
pub struct Disk {
    root: PathBuf,
    names: Policy,
    files: Vec<File>,
    inodes: HashMap<u64, Inode>,
    /// As the process sees them.
    current: Names,
    durable: Names,
    /// Not durable yet.
    pending: Vec<(u64, NameChange)>,
    syncs: HashMap<u64, Sync>,
    clock: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    Journalled,
    Strict,
}

/// What a power cut does to what was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// All of it is gone.
    All,
    /// The last of it is gone, and the write at the cut is torn.
    Tail,
    /// Whole writes are gone, here and there.
    Writes,
    /// Sectors are gone, here and there.
    Sectors,
}

type Names = BTreeMap<PathBuf, Node>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Node {
    Folder,
    File(usize),
}

#[derive(Clone, Debug)]
enum Inode {
    Folder(PathBuf),
    File(usize),
}

#[derive(Clone, Default)]
struct File {
    durable: Vec<u8>,
    pending: Vec<(u64, Change)>,
}

#[derive(Clone)]
enum Change {
    Write(usize, Vec<u8>),
    SetLength(usize),
}

#[derive(Clone)]
enum NameChange {
    Make(PathBuf, Node),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
}

#[derive(Clone)]
struct Sync {
    of: Inode,
    begun: u64,
}

impl Disk {
    /// The folder at the beginning of a recording, all of it durable. `root` is where it was then.
    pub fn new(root: &Path, content: &Path, names: Policy) -> Self {
        let mut disk = Self {
            root: root.to_owned(),
            names,
            files: Vec::new(),
            inodes: HashMap::new(),
            current: Names::from([(root.to_owned(), Node::Folder)]),
            durable: Names::new(),
            pending: Vec::new(),
            syncs: HashMap::new(),
            clock: 0,
        };
        disk.take_in(content, root);
        disk.durable = disk.current.clone();
        disk
    }

    fn take_in(&mut self, from: &Path, to: &Path) {
        for entry in fs::read_dir(from).expect("lists") {
            let entry = entry.expect("lists");
            let path = to.join(entry.file_name());
            if entry.file_type().expect("a type").is_dir() {
                self.current.insert(path.clone(), Node::Folder);
                self.take_in(&entry.path(), &path);
            } else {
                self.files.push(File {
                    durable: fs::read(entry.path()).expect("reads"),
                    pending: Vec::new(),
                });
                self.current.insert(path, Node::File(self.files.len() - 1));
            }
        }
    }

    /// Plays one event.
    pub fn play(&mut self, event: &Event) {
        self.clock += 1;
        match event {
            Event::Create { inode, path } => {
                self.files.push(File::default());
                let file = self.files.len() - 1;
                self.inodes.insert(*inode, Inode::File(file));
                self.change_name(NameChange::Make(path.clone(), Node::File(file)));
            }
            Event::MakeFolder { inode, path } => {
                self.inodes.insert(*inode, Inode::Folder(path.clone()));
                self.change_name(NameChange::Make(path.clone(), Node::Folder));
            }
            Event::Open { inode, path } => {
                let known = match self.current.get(path) {
                    Some(Node::File(file)) => Inode::File(*file),
                    Some(Node::Folder) => Inode::Folder(path.clone()),
                    // The acknowledgements, which are not on this disk.
                    None => return,
                };
                self.inodes.insert(*inode, known);
            }
            Event::Write { inode, offset, data } => self.change(*inode, Change::Write(*offset as usize, data.clone())),
            Event::SetLength { inode, length } => self.change(*inode, Change::SetLength(*length as usize)),
            Event::Rename { from, to } => self.change_name(NameChange::Rename(from.clone(), to.clone())),
            Event::Remove { path } => self.change_name(NameChange::Remove(path.clone())),
            Event::SyncBegins { inode, id } => {
                let of = self.inodes.get(inode).expect("it was opened").clone();
                self.syncs.insert(*id, Sync { of, begun: self.clock });
            }
            Event::SyncEnded { id } => {
                let sync = self.syncs.remove(id).expect("it began");
                self.make_durable(&sync);
            }
            Event::SyncFailed { inode } => {
                if let Some(Inode::File(file)) = self.inodes.get(inode) {
                    self.files[*file].pending.clear();
                }
            }
            Event::WriteBack { .. } | Event::Acknowledged(_) => {}
        }
    }

    /// Writes to `to` what may be there after a power cut now.
    pub fn cut(&self, loss: Loss, random: &mut Random, to: &Path) {
        let names = self.names_after(loss, random);
        let sector = random.pick(&[512, 4096]);
        for (path, node) in &names {
            let path = to.join(path.strip_prefix(&self.root).expect("below the root"));
            match node {
                Node::Folder => fs::create_dir_all(&path).expect("makes a folder"),
                // A file whose folder is gone can't be reached.
                Node::File(file) if path.parent().is_some_and(Path::exists) => {
                    fs::write(&path, self.files[*file].after(loss, sector, random)).expect("writes");
                }
                Node::File(_) => {}
            }
        }
    }

    /// Whether what was recorded is everything that happened: the files as they are in `folder`.
    pub fn is_now(&self, folder: &Path) -> Result<(), String> {
        for (path, node) in &self.current {
            let there = folder.join(path.strip_prefix(&self.root).expect("below the root"));
            match node {
                Node::Folder if there.is_dir() => {}
                Node::File(file) if fs::read(&there).is_ok_and(|bytes| bytes == self.files[*file].whole()) => {}
                _ => return Err(format!("{} is not as it was recorded", path.display())),
            }
        }
        Ok(())
    }

    fn change(&mut self, inode: u64, change: Change) {
        let Some(Inode::File(file)) = self.inodes.get(&inode) else {
            panic!("a write to no known file")
        };
        self.files[*file].pending.push((self.clock, change));
    }

    fn change_name(&mut self, change: NameChange) {
        change.apply(&mut self.current);
        self.pending.push((self.clock, change));
    }

    fn make_durable(&mut self, sync: &Sync) {
        if let Inode::File(file) = sync.of {
            self.files[file].sync(sync.begun);
        }
        let covers = |when: u64, change: &NameChange| {
            when < sync.begun && (self.names == Policy::Journalled || change.is_synced_with(&sync.of))
        };
        let (done, pending) = std::mem::take(&mut self.pending)
            .into_iter()
            .partition(|(when, change)| covers(*when, change));
        self.pending = pending;
        let done: Vec<(u64, NameChange)> = done;
        for (_, change) in &done {
            change.apply(&mut self.durable);
        }
    }

    fn names_after(&self, loss: Loss, random: &mut Random) -> Names {
        let mut names = self.durable.clone();
        let kept = match loss {
            Loss::All => 0,
            _ => random.below(self.pending.len() + 1),
        };
        for (index, (_, change)) in self.pending.iter().enumerate() {
            let keep = match self.names {
                Policy::Journalled => index < kept,
                Policy::Strict => loss != Loss::All && random.flip(),
            };
            if keep {
                change.apply(&mut names);
            }
        }
        names
    }
}

impl File {
    fn sync(&mut self, before: u64) {
        let synced = self.pending.iter().take_while(|(when, _)| *when < before).count();
        for (_, change) in self.pending.drain(..synced) {
            change.apply(&mut self.durable);
        }
    }

    fn whole(&self) -> Vec<u8> {
        let mut content = self.durable.clone();
        for (_, change) in &self.pending {
            change.apply(&mut content);
        }
        content
    }

    fn after(&self, loss: Loss, sector: usize, random: &mut Random) -> Vec<u8> {
        let mut content = self.durable.clone();
        let kept = random.below(self.pending.len() + 1);
        for (index, (_, change)) in self.pending.iter().enumerate() {
            match (loss, change) {
                (Loss::All, _) => {}
                (Loss::Tail, _) if index < kept => change.apply(&mut content),
                (Loss::Tail, Change::Write(offset, data)) if index == kept => {
                    let sectors = random.below(data.len() / sector + 1);
                    put(&mut content, *offset, &data[..sectors * sector]);
                }
                (Loss::Tail, _) => {}
                (Loss::Writes, _) | (Loss::Sectors, Change::SetLength(_)) => {
                    if random.flip() {
                        change.apply(&mut content);
                    }
                }
                (Loss::Sectors, Change::Write(offset, data)) => {
                    for (at, part) in sectors(*offset, data, sector) {
                        if random.flip() {
                            put(&mut content, at, part);
                        }
                    }
                }
            }
        }
        content
    }
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write(offset, data) => put(content, *offset, data),
            Self::SetLength(length) => content.resize(*length, 0),
        }
    }
}

impl NameChange {
    fn apply(&self, names: &mut Names) {
        match self {
            Self::Make(path, node) => drop(names.insert(path.clone(), *node)),
            Self::Rename(from, to) => {
                if let Some(node) = names.remove(from) {
                    names.insert(to.clone(), node);
                }
            }
            Self::Remove(path) => drop(names.remove(path)),
        }
    }

    fn is_synced_with(&self, synced: &Inode) -> bool {
        let within = |folder: &Path, path: &Path| path.parent() == Some(folder);
        match (self, synced) {
            (Self::Make(path, _) | Self::Remove(path), Inode::Folder(folder)) => within(folder, path),
            (Self::Rename(from, to), Inode::Folder(folder)) => within(folder, from) || within(folder, to),
            (Self::Make(_, Node::File(made)), Inode::File(file)) => made == file,
            (_, Inode::File(_)) => false,
        }
    }
}

fn put(content: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    let end = offset + data.len();
    if content.len() < end {
        content.resize(end, 0);
    }
    content[offset..end].copy_from_slice(data);
}

/// A write as the sectors that it touches.
fn sectors(offset: usize, data: &[u8], sector: usize) -> impl Iterator<Item = (usize, &[u8])> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = offset + done;
        let length = (sector - at % sector).min(data.len() - done);
        let part = (length > 0).then(|| (at, &data[done..done + length]));
        done += length;
        part
    })
}
