//! Numbers by value: `5`, `5.0` and `50e-1` are one number, and integers beyond 2^53 stay exact.
//!
//! A number is digits times a power of ten. Comparing never rounds. Calculating works on numbers of at
//! most 38 digits and fails beyond, so that a result is either exact or absent.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

/// Most digits that a `u128` surely holds.
const FEW_DIGITS: usize = 38;

/// A decimal number. Two numbers are equal exactly if their values are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Number {
    is_negative: bool,
    digits: Digits,
    /// The power of ten that the digits are multiplied with.
    exponent: i64,
}

/// Decimal digits without zeros at either end. Zero is `Few(0)`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Digits {
    Few(u128),
    /// More than [`FEW_DIGITS`].
    Many(Arc<str>),
}

impl Number {
    /// Reads a number as JSON writes it. Returns `None` for other texts and for exponents beyond 64 bits.
    pub fn parse(text: &str) -> Option<Self> {
        let (is_negative, text) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let (mantissa, exponent) = text.split_once(['e', 'E']).unwrap_or((text, "0"));
        let exponent: i64 = exponent.parse().ok()?;
        let (whole, fraction) = match mantissa.split_once('.') {
            Some((_, "")) => return None,
            Some((whole, fraction)) => (whole, fraction),
            None => (mantissa, ""),
        };
        let is_digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
        if whole.is_empty() || !is_digits(whole) || !is_digits(fraction) {
            return None;
        }
        let joined = format!("{whole}{fraction}");
        let digits = joined.trim_end_matches('0');
        let cut = i64::try_from(joined.len() - digits.len()).ok()?;
        let exponent = exponent.checked_sub(i64::try_from(fraction.len()).ok()?)?;
        let exponent = exponent.checked_add(cut)?;
        let digits = digits.trim_start_matches('0');
        if digits.is_empty() {
            return Some(Self::zero());
        }
        let digits = if digits.len() <= FEW_DIGITS {
            Digits::Few(digits.parse().ok()?)
        } else {
            Digits::Many(digits.into())
        };
        Some(Self { is_negative, digits, exponent })
    }

    /// `value` times ten to the power of `exponent`.
    fn new(value: i128, mut exponent: i64) -> Option<Self> {
        if value == 0 {
            return Some(Self::zero());
        }
        let mut digits = value.unsigned_abs();
        while digits.is_multiple_of(10) {
            digits /= 10;
            exponent = exponent.checked_add(1)?;
        }
        let number = Self { is_negative: value < 0, digits: Digits::Few(digits), exponent };
        (number.len() <= FEW_DIGITS).then_some(number)
    }

    fn zero() -> Self {
        Self { is_negative: false, digits: Digits::Few(0), exponent: 0 }
    }

    fn is_zero(&self) -> bool {
        self.digits == Digits::Few(0)
    }

    /// How many digits there are.
    pub fn len(&self) -> usize {
        match &self.digits {
            Digits::Few(digits) => digits.checked_ilog10().map_or(1, |log| log as usize + 1),
            Digits::Many(digits) => digits.len(),
        }
    }

    /// The sum; `None` when it has too many digits.
    pub fn plus(&self, other: &Self) -> Option<Self> {
        let exponent = self.exponent.min(other.exponent);
        Self::new(self.scaled(exponent)?.checked_add(other.scaled(exponent)?)?, exponent)
    }

    /// The difference; `None` when it has too many digits.
    pub fn minus(&self, other: &Self) -> Option<Self> {
        self.plus(&other.negated())
    }

    /// The product; `None` when it has too many digits.
    pub fn times(&self, other: &Self) -> Option<Self> {
        let product = self.scaled(self.exponent)?.checked_mul(other.scaled(other.exponent)?)?;
        Self::new(product, self.exponent.checked_add(other.exponent)?)
    }

    /// The number with the other sign.
    pub fn negated(&self) -> Self {
        Self { is_negative: !self.is_negative && !self.is_zero(), ..self.clone() }
    }

    /// The number without its digits after the point; `None` when it has too many digits.
    pub fn truncated(&self) -> Option<Self> {
        if self.exponent >= 0 {
            return Some(self.clone());
        }
        let value = self.scaled(self.exponent)?;
        let divisor = u32::try_from(self.exponent.unsigned_abs()).ok();
        match divisor.and_then(|power| 10_i128.checked_pow(power)) {
            Some(divisor) => Self::new(value.checked_div(divisor)?, 0),
            None => Some(Self::zero()),
        }
    }

    /// The number as a position in a list; `None` when it is negative, broken or too large.
    pub fn as_position(&self) -> Option<usize> {
        if self.exponent < 0 {
            return None;
        }
        usize::try_from(self.scaled(0)?).ok()
    }

    /// The number divided by ten to the power of `exponent`, which must be its own exponent or less.
    fn scaled(&self, exponent: i64) -> Option<i128> {
        let Digits::Few(digits) = self.digits else { return None };
        if digits == 0 {
            return Some(0);
        }
        let power = u32::try_from(self.exponent.checked_sub(exponent)?).ok()?;
        let value = i128::try_from(digits).ok()?.checked_mul(10_i128.checked_pow(power)?)?;
        Some(if self.is_negative { -value } else { value })
    }

    fn compare_sizes(&self, other: &Self) -> Ordering {
        if self.exponent == other.exponent
            && let (Digits::Few(digits), Digits::Few(others)) = (&self.digits, &other.digits)
        {
            return digits.cmp(others);
        }
        // Where the first digit stands. Lengths fit 64 bits, so the sum fits 128.
        let place = |number: &Self| i128::from(number.exponent) + number.len() as i128;
        // No zeros at either end, so the texts compare as the fractions 0.…
        place(self).cmp(&place(other)).then_with(|| self.digits.text().cmp(&other.digits.text()))
    }
}

impl Digits {
    fn text(&self) -> Arc<str> {
        match self {
            Self::Few(digits) => digits.to_string().into(),
            Self::Many(digits) => Arc::clone(digits),
        }
    }
}

impl From<usize> for Number {
    fn from(count: usize) -> Self {
        i128::try_from(count).ok().and_then(|count| Self::new(count, 0)).unwrap_or_else(Self::zero)
    }
}

impl Ord for Number {
    fn cmp(&self, other: &Self) -> Ordering {
        let sign = |number: &Self| match (number.is_zero(), number.is_negative) {
            (true, _) => 0,
            (false, true) => -1,
            (false, false) => 1,
        };
        sign(self).cmp(&sign(other)).then_with(|| match sign(self) {
            0 => Ordering::Equal,
            -1 => other.compare_sizes(self),
            _ => self.compare_sizes(other),
        })
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The plain decimal form; for numbers with many zeros the form with an exponent.
impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.is_negative { "-" } else { "" };
        let digits = self.digits.text();
        let Ok(exponent @ -40..=40) = i32::try_from(self.exponent) else {
            return write!(f, "{sign}{digits}e{}", self.exponent);
        };
        let zeros = exponent.unsigned_abs() as usize;
        if exponent >= 0 {
            return write!(f, "{sign}{digits}{}", "0".repeat(zeros));
        }
        let padded = format!("{}{digits}", "0".repeat((zeros + 1).saturating_sub(digits.len())));
        let (whole, fraction) = padded.split_at_checked(padded.len() - zeros).unwrap_or_default();
        write!(f, "{sign}{whole}.{fraction}")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn number(text: &str) -> Number {
        Number::parse(text).unwrap()
    }

    #[test]
    fn spelling_does_not_matter() {
        for (one, other) in [
            ("5", "5.0"),
            ("5", "50e-1"),
            ("0", "-0"),
            ("0", "0.000e7"),
            ("-12.50", "-1.25E+1"),
            ("9007199254740993", "9007199254740993.0"),
            ("1e400", "10e399"),
            ("007", "7"),
        ] {
            assert_eq!(number(one), number(other), "{one} {other}");
            assert_eq!(number(one).cmp(&number(other)), Ordering::Equal);
        }
        assert_ne!(number("9007199254740993"), number("9007199254740992"));
        for text in
            ["", "-", "1.", ".5", "1e", "0x10", "1e99999999999999999999", " 1", "1_0", "+1", "NaN"]
        {
            assert_eq!(Number::parse(text), None, "{text:?}");
        }
    }

    #[test]
    fn numbers_of_any_length_compare() {
        let many = "9".repeat(100);
        let ordered = [
            "-1e9223372036854775000",
            "-1e40",
            "-2",
            "-1.5",
            "-1e-400",
            "0",
            "1e-9223372036854775000",
            "0.1",
            "0.10000000000000000000000000000000000000000000001",
            "9007199254740992",
            "9007199254740993",
            &many,
            "1e100",
            "1e101",
            "1e9223372036854775000",
        ];
        for (at, one) in ordered.iter().enumerate() {
            for (other_at, other) in ordered.iter().enumerate() {
                assert_eq!(number(one).cmp(&number(other)), at.cmp(&other_at), "{one} {other}");
            }
        }
    }

    #[test]
    fn a_calculation_is_exact_or_fails() {
        assert_eq!(number("0.1").plus(&number("0.2")), Some(number("0.3")));
        assert_eq!(number("1").minus(&number("1.0")), Some(number("0")));
        assert_eq!(number("1.5").times(&number("-4")), Some(number("-6")));
        assert_eq!(number("0").plus(&number("1e-60")), Some(number("1e-60")));
        assert_eq!(number("1e40").plus(&number("1")), None);
        assert_eq!(number("1e9223372036854775807").times(&number("1e5")), None);
        assert_eq!(number(&"9".repeat(30)).times(&number(&"9".repeat(30))), None);
        assert_eq!(number(&"9".repeat(39)).plus(&number("1")), None);
        assert_eq!(number("0").negated(), number("0"));
    }

    #[test]
    fn a_number_is_cut_at_its_point() {
        let cut = |text| number(text).truncated();
        assert_eq!(cut("2.9"), Some(number("2")));
        assert_eq!(cut("-2.9"), Some(number("-2")));
        assert_eq!(cut("1e-100"), Some(number("0")));
        assert_eq!(cut("1e400"), Some(number("1e400")));
        assert_eq!(cut(&format!("{}.5", "9".repeat(40))), None);
        let position = |text| number(text).as_position();
        assert_eq!((position("2.0"), position("30")), (Some(2), Some(30)));
        assert_eq!((position("2.5"), position("-1"), position("1e30")), (None, None, None));
    }

    #[test]
    fn numbers_are_written_plainly() {
        for (written, shown) in [
            ("5.0", "5"),
            ("-0.05", "-0.05"),
            ("12.50", "12.5"),
            ("1e3", "1000"),
            ("1e41", "1e41"),
            ("-15e-42", "-15e-42"),
        ] {
            assert_eq!(number(written).to_string(), shown);
        }
    }

    proptest! {
        #[test]
        fn integers_behave_as_integers(a in any::<i32>(), b in any::<i32>(), zeros in 0_usize..4) {
            let (a, b) = (i64::from(a), i64::from(b));
            let spelled = |value: i64| number(&format!("{value}.{}", "0".repeat(zeros + 1)));
            prop_assert_eq!(spelled(a).cmp(&number(&b.to_string())), a.cmp(&b));
            prop_assert_eq!(spelled(a).plus(&spelled(b)), Some(number(&(a + b).to_string())));
            prop_assert_eq!(spelled(a).minus(&spelled(b)), Some(number(&(a - b).to_string())));
            prop_assert_eq!(spelled(a).times(&spelled(b)), Some(number(&(a * b).to_string())));
            prop_assert_eq!(spelled(a).to_string(), a.to_string());
        }

        #[test]
        fn decimals_compare_as_their_scaled_integers(
            a in -9_999_999_i64..9_999_999, b in -9_999_999_i64..9_999_999,
            a_places in 0_u32..6, b_places in 0_u32..6,
        ) {
            let scaled = |value: i64, places: u32| value * 10_i64.pow(6 - places);
            let written = |value: i64, places: u32| number(&format!("{value}e-{places}"));
            prop_assert_eq!(
                written(a, a_places).cmp(&written(b, b_places)),
                scaled(a, a_places).cmp(&scaled(b, b_places))
            );
            let shown = written(a, a_places).to_string();
            prop_assert_eq!(number(&shown), written(a, a_places), "{}", shown);
        }
    }
}
