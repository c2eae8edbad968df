//! Bytes for people.

/// Bytes with a decimal unit and three digits at most, as image sizes are given: `41.5MB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
    for (unit, name) in UNITS {
        if bytes >= unit {
            let tenths = bytes / (unit / 10);
            return if tenths < 1000 {
                format!("{}.{}{name}", tenths / 10, tenths % 10)
            } else {
                format!("{}{name}", bytes / unit)
            };
        }
    }
    format!("{bytes}B")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_three_digits_at_most() {
        for (bytes, text) in
            [(999, "999B"), (1_000, "1.0kB"), (99_950, "99.9kB"), (123_456, "123kB"), (1_250_000_000, "1.2GB")]
        {
            assert_eq!(size(bytes), text);
        }
    }
}
