//! Quantities: `500m`, `1.5Gi`, `1e3`, as Kubernetes reads, compares, rounds and prints them.
//!
//! Source: Kubernetes `apimachinery/pkg/api/resource/quantity.go`. Values finer than a nano are
//! rounded away from zero, binary ones are capped at 2^63-1, and nothing is ever a float.

use std::cmp::Ordering;
use std::fmt;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// The text is no quantity, or not one that can be used for the purpose.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    /// The text does not have the form of a quantity.
    #[error("{0:?} is no quantity: a number with an optional suffix (m, k, M, G, Ki, Mi, Gi, ...)")]
    Format(String),
    /// The quantity is below zero.
    #[error("{0:?} is below zero")]
    Negative(String),
}

/// How a quantity was written, and is printed again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// `1500m`, `2k`, `3`.
    Decimal,
    /// `1Ki`.
    Binary,
    /// `1e3`.
    Exponent,
}

/// A quantity's exact value: `mantissa * 10^exponent`.
#[derive(Debug, Clone, Copy)]
pub struct Amount {
    mantissa: i128,
    exponent: i32,
    form: Form,
}

const NANO: i32 = -9;

/// CPU in thousandths of a core, rounded up.
///
/// # Errors
/// When the text is no quantity, or below zero.
pub fn cpu_millis(quantity: &Quantity) -> Result<u64, QuantityError> {
    non_negative(quantity, -3)
}

/// A size in bytes (or any count), rounded up.
///
/// # Errors
/// When the text is no quantity, or below zero.
pub fn bytes(quantity: &Quantity) -> Result<u64, QuantityError> {
    non_negative(quantity, 0)
}

fn non_negative(quantity: &Quantity, scale: i32) -> Result<u64, QuantityError> {
    let value = Amount::parse(&quantity.0)?.scaled(scale);
    if value < 0 {
        return Err(QuantityError::Negative(quantity.0.clone()));
    }
    // What exceeds 64 bits is as good as unlimited.
    Ok(u64::try_from(value).unwrap_or(u64::MAX))
}

impl Amount {
    /// Nothing at all.
    pub const ZERO: Self = Self { mantissa: 0, exponent: 0, form: Form::Decimal };

    /// Reads a quantity; spaces around it are allowed, as in JSON and YAML manifests.
    ///
    /// # Errors
    /// When the text is no quantity.
    pub fn parse(text: &str) -> Result<Self, QuantityError> {
        let wrong = || QuantityError::Format(text.to_owned());
        let body = text.trim();
        if body.is_empty() {
            return Err(wrong());
        }
        let (negative, body) = match body.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, body.strip_prefix('+').unwrap_or(body)),
        };
        let (whole, rest) = split_digits(body);
        let (fraction, suffix) = match rest.strip_prefix('.') {
            Some(rest) => split_digits(rest),
            None => ("", rest),
        };
        let suffix = Suffix::parse(suffix).ok_or_else(wrong)?;

        let mut mantissa: i128 = 0;
        let mut exponent: i32 = 0;
        for (digit, is_fraction) in digits(whole, false).chain(digits(fraction, true)) {
            match mantissa.checked_mul(10).and_then(|m| m.checked_add(digit)) {
                Some(larger) if larger < i128::MAX >> 62 => {
                    mantissa = larger;
                    exponent = exponent.saturating_sub(i32::from(is_fraction));
                }
                // More than 19 significant digits: keep the magnitude, round up at the end.
                _ => exponent = exponent.saturating_add(i32::from(!is_fraction)),
            }
        }
        let form = match suffix {
            Suffix::Decimal(power) => {
                exponent = exponent.saturating_add(power);
                Form::Decimal
            }
            Suffix::Exponent(power) => {
                exponent = exponent.saturating_add(power);
                Form::Exponent
            }
            Suffix::Binary(power) => {
                mantissa = mantissa.saturating_mul(1_i128 << power);
                Form::Binary
            }
        };
        if mantissa == 0 {
            return Ok(Self { form, ..Self::ZERO });
        }
        let mut amount = Self { mantissa, exponent, form };
        if amount.exponent < NANO {
            amount = amount.rounded_up(NANO);
        }
        if form == Form::Binary {
            let largest = i128::from(i64::MAX);
            if amount.compare_magnitude(largest) == Ordering::Greater {
                amount.mantissa = largest;
                amount.exponent = 0;
            }
            if amount.compare_magnitude(1) == Ordering::Less {
                amount.form = Form::Decimal;
            }
        }
        if negative {
            amount.mantissa = -amount.mantissa;
        }
        Ok(amount)
    }

    /// The value in units of `10^scale`, rounded away from zero, at most what 128 bits hold.
    #[must_use]
    pub fn scaled(self, scale: i32) -> i128 {
        let shift = self.exponent.saturating_sub(scale);
        if self.mantissa == 0 {
            0
        } else if shift >= 0 {
            let factor = u32::try_from(shift).ok().and_then(|shift| 10_i128.checked_pow(shift));
            factor.and_then(|factor| self.mantissa.checked_mul(factor)).unwrap_or(if self.mantissa < 0 {
                i128::MIN
            } else {
                i128::MAX
            })
        } else {
            let divisor = 10_i128.checked_pow(shift.unsigned_abs());
            match divisor {
                Some(divisor) => {
                    let whole = self.mantissa / divisor;
                    if self.mantissa % divisor == 0 { whole } else { whole + self.mantissa.signum() }
                }
                None => self.mantissa.signum(),
            }
        }
    }

    /// The value in billionths.
    #[must_use]
    pub fn nanos(self) -> i128 {
        self.scaled(NANO)
    }

    /// Whether the value is a multiple of `10^scale`.
    #[must_use]
    pub fn is_whole(self, scale: i32) -> bool {
        let whole = Self { mantissa: self.scaled(scale), exponent: scale, form: self.form };
        self == whole
    }

    /// Whether the API server takes the value for a whole number: it looks at thousandths in 64
    /// bits, and a binary value beyond them wraps.
    pub(crate) fn is_whole_for_the_server(self) -> bool {
        let milli = self.scaled(-3);
        match i64::try_from(milli) {
            Ok(milli) => milli % 1000 == 0,
            Err(_) if self.form == Form::Binary => {
                let low = milli & i128::from(u64::MAX);
                let wrapped = u64::try_from(low).unwrap_or_default().cast_signed();
                wrapped % 1000 == 0
            }
            Err(_) => true,
        }
    }

    /// The value rounded away from zero to a multiple of `10^scale`, in the same form.
    #[must_use]
    pub fn rounded_up(self, scale: i32) -> Self {
        if self.exponent >= scale {
            return self;
        }
        Self { mantissa: self.scaled(scale), exponent: scale, form: self.form }
    }

    /// Whether the value is below zero.
    #[must_use]
    pub fn is_negative(self) -> bool {
        self.mantissa < 0
    }

    /// Whether the value is zero.
    #[must_use]
    pub fn is_zero(self) -> bool {
        self.mantissa == 0
    }

    /// The sum of two amounts, in the form of the first (of the second when the first is zero).
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        if self.mantissa == 0 {
            return other;
        }
        let scale = self.exponent.min(other.exponent);
        Self { mantissa: self.scaled(scale).saturating_add(other.scaled(scale)), exponent: scale, form: self.form }
    }

    fn compare_magnitude(self, other: i128) -> Ordering {
        let magnitude = Self { mantissa: self.mantissa.saturating_abs(), ..self };
        magnitude.cmp(&Self { mantissa: other, ..Self::ZERO })
    }

    /// `mantissa * 10^exponent` with an exponent that is a multiple of 3 and as large as possible.
    fn canonical(self) -> (i128, i32) {
        let (mut mantissa, mut exponent) = (self.mantissa, self.exponent);
        while mantissa != 0 && mantissa % 10 == 0 {
            mantissa /= 10;
            exponent = exponent.saturating_add(1);
        }
        while exponent.rem_euclid(3) != 0 {
            mantissa = mantissa.saturating_mul(10);
            exponent = exponent.saturating_sub(1);
        }
        (mantissa, exponent)
    }
}

impl PartialEq for Amount {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Amount {}

impl PartialOrd for Amount {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Amount {
    fn cmp(&self, other: &Self) -> Ordering {
        match self.mantissa.signum().cmp(&other.mantissa.signum()) {
            Ordering::Equal => {}
            unequal => return unequal,
        }
        if self.mantissa == 0 {
            return Ordering::Equal;
        }
        // The scale of both is the finer one; what does not fit is larger than all that fits.
        let scale = self.exponent.min(other.exponent);
        self.scaled(scale).cmp(&other.scaled(scale))
    }
}

impl fmt::Display for Amount {
    /// The canonical form, as the API server prints it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.mantissa == 0 {
            return f.write_str("0");
        }
        if self.form == Form::Binary && self.compare_magnitude(1024) != Ordering::Less && self.is_whole(0) {
            let mut value = self.scaled(0);
            let mut suffix = 0;
            while value % 1024 == 0 && suffix < BINARY.len() {
                value /= 1024;
                suffix += 1;
            }
            let name = suffix.checked_sub(1).and_then(|at| BINARY.get(at));
            return write!(f, "{value}{}", name.unwrap_or(&""));
        }
        let (mantissa, exponent) = self.canonical();
        let name = DECIMAL.iter().find(|(_, power)| *power == exponent);
        match name {
            _ if exponent == 0 => write!(f, "{mantissa}"),
            Some((name, _)) if self.form != Form::Exponent => write!(f, "{mantissa}{name}"),
            _ => write!(f, "{mantissa}e{exponent}"),
        }
    }
}

const BINARY: [&str; 6] = ["Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
const DECIMAL: [(&str, i32); 10] =
    [("n", -9), ("u", -6), ("m", -3), ("", 0), ("k", 3), ("M", 6), ("G", 9), ("T", 12), ("P", 15), ("E", 18)];

enum Suffix {
    Decimal(i32),
    Exponent(i32),
    Binary(u32),
}

impl Suffix {
    fn parse(text: &str) -> Option<Self> {
        if let Some((_, power)) = DECIMAL.iter().find(|(name, _)| *name == text) {
            return Some(Self::Decimal(*power));
        }
        if let Some(place) = (1_u32..).zip(BINARY).find(|(_, name)| *name == text) {
            return Some(Self::Binary(place.0 * 10));
        }
        let power = text.strip_prefix(['e', 'E'])?;
        let digits = power.strip_prefix(['+', '-']).unwrap_or(power);
        if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        // An exponent beyond all reason is cut to one that is.
        let power: i64 = power.parse().ok()?;
        let power = power.clamp(-1_000_000, 1_000_000);
        Some(Self::Exponent(i32::try_from(power).ok()?))
    }
}

fn split_digits(text: &str) -> (&str, &str) {
    let end = text.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    text.split_at(end)
}

fn digits(text: &str, is_fraction: bool) -> impl Iterator<Item = (i128, bool)> + '_ {
    text.bytes().map(move |byte| (i128::from(byte.saturating_sub(b'0')), is_fraction))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        Amount::parse(text).map_or_else(|_| "error".to_owned(), |amount| amount.to_string())
    }

    #[test]
    fn quantities_are_printed_in_canonical_form() {
        for (text, canonical) in [
            ("0.5", "500m"),
            ("1000m", "1"),
            ("1024Ki", "1Mi"),
            ("1.5Gi", "1536Mi"),
            ("1000", "1k"),
            ("1e3", "1e3"),
            ("1E", "1E"),
            ("0", "0"),
            ("-1", "-1"),
            ("100", "100"),
            ("0.1n", "1n"),
            ("1.0", "1"),
            ("+5", "5"),
            (" 7 ", "7"),
            ("1023Ki", "1023Ki"),
            ("0.5Ki", "512"),
            ("abc", "error"),
            ("", "error"),
            ("1ki", "error"),
            ("1e", "error"),
            ("1 Gi", "error"),
            ("100000Ei", "9223372036854775807"),
        ] {
            assert_eq!(shown(text), canonical, "{text:?}");
        }
    }

    #[test]
    fn parts_of_a_unit_are_rounded_up() {
        let millis = |text: &str| cpu_millis(&Quantity(text.to_owned()));
        assert_eq!(millis("0.0001"), Ok(1));
        assert_eq!(millis("1500u"), Ok(2));
        assert_eq!(millis("2"), Ok(2000));
        assert_eq!(bytes(&Quantity("1500m".into())), Ok(2));
        assert_eq!(bytes(&Quantity("1Gi".into())), Ok(1 << 30));
        assert_eq!(bytes(&Quantity("1e400".into())), Ok(u64::MAX));
        assert!(bytes(&Quantity("-1".into())).is_err());
    }

    #[test]
    fn quantities_compare_by_value() {
        let amount = |text: &str| Amount::parse(text).unwrap();
        assert!(amount("1Gi") > amount("1G"));
        assert!(amount("1000m") == amount("1"));
        assert!(amount("-1") < amount("1n"));
        assert!(amount("1e400") > amount("1Ei"));
        assert!(amount("1e400") == amount("10e399"));
    }
}
