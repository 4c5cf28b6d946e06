//! The class image: a new inner map filled through mmap, then one slot swapped; or cells of the one in force, where a
//! change only adds.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use aya::maps::{ArrayOfMaps, MapData, MapError};
use aya_obj::generated::{BPF_F_MMAPABLE, bpf_map_type};
use ghostwire_ebpf_abi::image::{self, flags, header};
use ipnet::IpNet;

use super::{Acl, AclError, net4, net6, nets, short_cut};
use crate::bpf::kernel::Mapping;

/// Slot 0 holds the image in force.
pub(super) type Images = ArrayOfMaps<MapData, MapData>;

/// A compiled policy, ready for the kernel. The policy crate makes it; see [`ghostwire_ebpf_abi::image`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// The used part of the image.
    pub words: Vec<u64>,
    /// Networks behind peers, with packed remote classes.
    pub remote_nets: Vec<(IpNet, u32)>,
    /// Networks that this node routes, with packed local classes.
    pub local_nets: Vec<(IpNet, u32)>,
}

/// How long the steps of [`Acl::install`] took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InstallTimings {
    /// Filling the tries of the slot that was not in use.
    pub nets: Duration,
    /// Creating and filling the new image.
    pub build: Duration,
    /// The swap, after which no packet sees the old image.
    pub swap: Duration,
}

impl InstallTimings {
    /// All steps.
    pub fn total(&self) -> Duration {
        self.nets + self.build + self.swap
    }
}

impl Acl {
    /// Puts a policy in force. Until the swap the old one is; after it, no packet sees the old one. The loader
    /// chooses the network slot and sets the flags about networks and sampling; everything else is taken as
    /// it is. On an error the old policy stays.
    ///
    /// What the old policy admitted is judged again because the generation differs. A caller that has another policy
    /// under the same generation loses the fragments on their way.
    pub fn install(&mut self, image: &Image) -> Result<InstallTimings, AclError> {
        check(image)?;
        let started = Instant::now();
        let (slot, replaced) = match self.live() {
            Ok(live) => (1 - (live.word(header::NET_SLOT) & 1), live.word(header::GENERATION)),
            Err(AclError::NoImage) => (0, 0),
            Err(error) => return Err(error),
        };
        nets::fill(&mut self.ebpf, slot, image)?;
        let filled = Instant::now();
        let sampling = self.config()?.accept_sample != 0;
        let inner = build(image, slot, sampling)?;
        let built = Instant::now();
        self.images.set(0, &inner, 0)?;
        let timings = InstallTimings { nets: filled - started, build: built - filled, swap: built.elapsed() };
        if image.words.get(header::GENERATION as usize) == Some(&replaced) {
            // They are admitted by their generation alone.
            self.forget_fragments()?;
        }
        Ok(timings)
    }

    /// Changes the image in force without a new one: words of the tables of remotes, then the generation, each
    /// atomically. The caller answers for it that they take nothing away (the policy crate's
    /// `ClassImage::additions_to`, asked about [`Acl::in_force`]); a packet sees the old or the new word.
    ///
    /// The generation comes last: whoever reads it knows that all of its policy is in force. A process that ends in
    /// between leaves the old generation with some of the additions, which the next one finds by comparing.
    pub fn add_in_place(&mut self, cells: &[(u32, u64)], generation: u32) -> Result<(), AclError> {
        if generation == 0 {
            return Err(AclError::Image("its generation is 0".to_owned()));
        }
        if let Some((index, _)) =
            cells.iter().find(|(index, _)| !(image::REMOTE4..image::MATRICES).contains(index))
        {
            return Err(AclError::Image(format!("word {index} is not in a table of remotes")));
        }
        let live = self.live()?;
        for (index, word) in cells {
            live.mapping.word(*index).store(*word, Ordering::Relaxed);
        }
        live.mapping.word(header::GENERATION).store(u64::from(generation), Ordering::Release);
        Ok(())
    }

    /// The policy in force, read back from the kernel as it was given to [`Acl::install`] and changed since. The
    /// networks are in order. `None`: nothing is installed.
    pub fn in_force(&self) -> Result<Option<Image>, AclError> {
        let live = match self.live() {
            Ok(live) => live,
            Err(AclError::NoImage) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut words = live.used();
        for (index, word) in (0..).zip(&mut words).take(header::WORDS as usize) {
            match index {
                header::FLAGS => *word &= !flags::SAMPLE_ACCEPTS,
                header::NET_SLOT => *word = 0,
                _ => {}
            }
        }
        let (remote_nets, local_nets) = nets::read(&self.ebpf, live.word(header::NET_SLOT))?;
        Ok(Some(Image { words, remote_nets, local_nets }))
    }

    /// The kernel's number of the image in force, another one after each swap.
    pub fn image_id(&self) -> Result<Option<u32>, AclError> {
        match self.images.get(&0, 0) {
            Ok(inner) => Ok(Some(inner.info()?.id())),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Generation of the policy in force; `None`: nothing is installed, and everything is dropped.
    pub fn generation(&self) -> Result<Option<u32>, AclError> {
        match self.live() {
            Ok(live) => Ok(u32::try_from(live.word(header::GENERATION)).ok()),
            Err(AclError::NoImage) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Switches shadow mode of the image in force. The next image brings its own flag.
    pub fn set_shadow(&mut self, on: bool) -> Result<(), AclError> {
        self.live()?.set_flag(flags::SHADOW, on);
        Ok(())
    }

    /// Whether shadow mode is on.
    pub fn shadow(&self) -> Result<bool, AclError> {
        Ok(self.live()?.word(header::FLAGS) & flags::SHADOW != 0)
    }

    /// A copy of the image in force, without its networks and without what the loader derives from it.
    pub fn image_words(&self) -> Result<Vec<u64>, AclError> {
        Ok(self.live()?.used())
    }

    fn live(&self) -> Result<Live, AclError> {
        Live::open(&self.images)
    }
}

/// Sets or clears the flag that accepted packets are sampled; without an image there is nothing to do.
pub(super) fn set_sampling(images: &Images, on: bool) -> Result<(), AclError> {
    match Live::open(images) {
        Ok(live) => {
            live.set_flag(flags::SAMPLE_ACCEPTS, on);
            for (index, word) in short_cut::doors(|index| live.word(index), on) {
                live.mapping.word(index).store(word, Ordering::Relaxed);
            }
            Ok(())
        }
        Err(AclError::NoImage) => Ok(()),
        Err(error) => Err(error),
    }
}

fn check(image: &Image) -> Result<(), AclError> {
    let refuse = |why: &str| Err(AclError::Image(why.to_owned()));
    let words = &image.words;
    if words.len() > image::WORDS as usize {
        return Err(AclError::Image(format!("{} words, at most {} fit", words.len(), image::WORDS)));
    }
    let word = |index: u32| words.get(index as usize).copied().unwrap_or(0);
    if word(header::MAGIC) != image::MAGIC {
        return refuse("its magic number is another version's");
    }
    if word(header::GENERATION) == 0 || word(header::GENERATION) > u64::from(u32::MAX) {
        return refuse("its generation is not a number from 1 to 2^32 - 1");
    }
    for (base, stride, locals) in [
        (header::IN_BASE, header::IN_STRIDE, header::IN_LOCALS),
        (header::OUT_BASE, header::OUT_STRIDE, header::OUT_LOCALS),
    ] {
        let (base, stride, locals) = (word(base), word(stride), word(locals));
        if base < u64::from(image::MATRICES) || base > u64::from(image::WORDS) || stride == 0 || locals == 0 {
            return refuse("a verdict matrix lies outside its place");
        }
    }
    Ok(())
}

fn build(image: &Image, slot: u64, sampling: bool) -> Result<MapData, AclError> {
    let array = bpf_map_type::BPF_MAP_TYPE_ARRAY as u32;
    let shape = aya_obj::Map::new_from_params(array, 4, image::BYTES, 1, BPF_F_MMAPABLE);
    let inner = MapData::create(shape, "gw_image", None)?;
    let mapping = Mapping::new(inner.fd().as_fd(), image::BYTES as usize)?;
    let loaders = flags::REMOTE_NETS | flags::LOCAL_NETS | flags::SAMPLE_ACCEPTS;
    let set = |on: bool, flag: u64| if on { flag } else { 0 };
    for (index, word) in (0..).zip(&image.words) {
        let word = match index {
            header::FLAGS => {
                word & !loaders
                    | set(!image.remote_nets.is_empty(), flags::REMOTE_NETS)
                    | set(!image.local_nets.is_empty(), flags::LOCAL_NETS)
                    | set(sampling, flags::SAMPLE_ACCEPTS)
            }
            header::NET_SLOT => slot,
            _ => *word,
        };
        mapping.word(index).store(word, Ordering::Relaxed);
    }
    for (index, word) in short_cut::words(|index| mapping.word(index).load(Ordering::Relaxed), sampling) {
        mapping.word(index).store(word, Ordering::Relaxed);
    }
    let mut free = u32::try_from(image.words.len()).unwrap_or(image::WORDS);
    for (header, nets, build) in [
        (header::REMOTE_NET4, &image.remote_nets, net4::build as TableBuilder),
        (header::LOCAL_NET4, &image.local_nets, net4::build),
        (header::REMOTE_NET6, &image.remote_nets, net6::build),
        (header::LOCAL_NET6, &image.local_nets, net6::build),
    ] {
        // Without room for the table the trie answers.
        let table = build(nets, free, image::WORDS).unwrap_or_default();
        let at = if table.is_empty() { 0 } else { u64::from(free) };
        mapping.word(header).store(at, Ordering::Relaxed);
        for entry in table {
            mapping.word(free).store(entry, Ordering::Relaxed);
            free += 1;
        }
    }
    Ok(inner)
}

/// Makes the words of a table of networks that will lie at a word of the image and must end before another.
type TableBuilder = fn(&[(IpNet, u32)], u32, u32) -> Option<Vec<u64>>;

/// The image in force, mapped.
struct Live {
    mapping: Mapping,
}

impl Live {
    fn open(images: &Images) -> Result<Self, AclError> {
        let inner = match images.get(&0, 0) {
            Ok(inner) => inner,
            Err(MapError::KeyNotFound) => return Err(AclError::NoImage),
            Err(error) => return Err(error.into()),
        };
        Ok(Self { mapping: Mapping::new(inner.fd().as_fd(), image::BYTES as usize)? })
    }

    fn word(&self, index: u32) -> u64 {
        self.mapping.word(index).load(Ordering::Relaxed)
    }

    /// What the compiler set, with 0 for what the loader derives from it.
    fn used(&self) -> Vec<u64> {
        let used = u32::try_from(self.word(header::USED)).unwrap_or(image::WORDS).min(image::WORDS);
        let derived = header::REMOTE_NET4..header::WORDS;
        (0..used).map(|index| if derived.contains(&index) { 0 } else { self.word(index) }).collect()
    }

    fn set_flag(&self, flag: u64, on: bool) {
        let word = self.mapping.word(header::FLAGS);
        if on {
            word.fetch_or(flag, Ordering::Relaxed);
        } else {
            word.fetch_and(!flag, Ordering::Relaxed);
        }
    }
}
