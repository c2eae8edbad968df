//! What a layer may cost.

/// Bounds on one layer; whatever goes beyond them fails the layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Entries in the archive.
    pub entries: u64,
    /// Bytes of file content, holes of sparse files included.
    pub unpacked_bytes: u64,
    /// A layer may always unpack to this many bytes, whatever its compressed size; what all layers of an image have
    /// beyond `ratio` is not more either.
    pub ratio_floor_bytes: u64,
    /// Beyond the floor: unpacked bytes per compressed byte.
    pub ratio: u64,
    /// Bytes of one path.
    pub path_bytes: usize,
    /// Bytes of the headers that describe one entry: long names, PAX records, extended attributes.
    pub header_bytes: usize,
    /// Bytes of the names of all directories, which are remembered until their times are set.
    pub directory_bytes: usize,
    /// Bytes of the names of directories without an entry of their own, which are remembered for good, and of
    /// the links that lead to them.
    pub implied_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            entries: 4_000_000,
            unpacked_bytes: 256 << 30,
            ratio_floor_bytes: 4 << 30,
            ratio: 200,
            path_bytes: 4095,
            header_bytes: 1 << 20,
            directory_bytes: 64 << 20,
            implied_bytes: 4 << 20,
        }
    }
}
