//! Run-time knobs that are not policy, in a one-element array map.

/// The one value of the configuration map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config {
    /// Drop events per second and CPU; 0: none.
    pub drop_events_per_second: u32,
    /// Report one of this many accepted packets; 0: none.
    pub accept_sample: u32,
    /// New connection entries per second and source.
    pub states_per_second: u32,
    /// New connection entries that a source may create at once after a pause.
    pub states_burst: u32,
}

impl Config {
    /// What a node runs with unless told otherwise.
    pub const DEFAULT: Self = Self {
        drop_events_per_second: 100,
        accept_sample: 0,
        states_per_second: 20_000,
        states_burst: 40_000,
    };
}

const _: () = assert!(size_of::<Config>() == 16);
