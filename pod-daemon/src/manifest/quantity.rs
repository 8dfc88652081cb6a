//! Kubernetes quantities: `100m`, `1.5`, `64Mi`, `1e3`.
//!
//! Exact: no floating point. As in Kubernetes, what is finer than the unit asked for is rounded up,
//! and what is larger than a signed 64-bit number is capped there.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

const MAX: u128 = i64::MAX.unsigned_abs() as u128;

/// Digits kept of a number; the rest only decides about rounding up. Results have at most 19.
const SIGNIFICANT: usize = 20;

/// A text is not a quantity that can be used here.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("`{text}` {problem}")]
pub struct Error {
    text: String,
    problem: &'static str,
}

/// An amount of CPU in thousandths of a core.
pub fn millicores(quantity: &Quantity) -> Result<u64, Error> {
    scaled(&quantity.0, 3)
}

/// An amount of memory in bytes; counts, like `podscope.dev/pids`, are read by it too.
pub fn bytes(quantity: &Quantity) -> Result<u64, Error> {
    scaled(&quantity.0, 0)
}

/// The number times ten to the power of `decimals`, rounded up.
fn scaled(text: &str, decimals: i64) -> Result<u64, Error> {
    let error = |problem| Error { text: text.to_owned(), problem };
    let (negative, unsigned) = match text.strip_prefix(['+', '-']) {
        Some(rest) => (text.starts_with('-'), rest),
        None => (false, text),
    };
    let split = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(split);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return Err(error("is not a quantity (like 100m, 1.5, 64Mi)"));
    }
    let Some((shift, exponent)) = multiplier(suffix) else {
        return Err(error("has an unknown unit (known are n u m k M G T P E, Ki to Ei, e3)"));
    };

    let digits = format!("{whole}{fraction}");
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return Ok(0);
    }
    if negative {
        return Err(error("is negative"));
    }
    let (kept, dropped) = digits.split_at(digits.len().min(SIGNIFICANT));
    let exponent = exponent + decimals + length(dropped) - length(fraction);
    let mantissa = kept.bytes().fold(0, |value, digit| value * 10 + u128::from(digit - b'0'));
    let inexact = dropped.bytes().any(|digit| digit != b'0');
    let value = shift_decimal(mantissa << shift, exponent, inexact);
    Ok(u64::try_from(value.min(MAX)).unwrap_or(u64::MAX))
}

/// The unit's power of two and power of ten.
fn multiplier(suffix: &str) -> Option<(u32, i64)> {
    Some(match suffix {
        "" => (0, 0),
        "n" => (0, -9),
        "u" => (0, -6),
        "m" => (0, -3),
        "k" => (0, 3),
        "M" => (0, 6),
        "G" => (0, 9),
        "T" => (0, 12),
        "P" => (0, 15),
        "E" => (0, 18),
        "Ki" => (10, 0),
        "Mi" => (20, 0),
        "Gi" => (30, 0),
        "Ti" => (40, 0),
        "Pi" => (50, 0),
        "Ei" => (60, 0),
        _ => (0, suffix.strip_prefix(['e', 'E'])?.parse::<i32>().ok()?.into()),
    })
}

/// `value` times ten to the power of `exponent`, rounded up; saturates.
fn shift_decimal(value: u128, exponent: i64, inexact: bool) -> u128 {
    let power = |exponent: i64| {
        u32::try_from(exponent).ok().and_then(|exponent| 10_u128.checked_pow(exponent))
    };
    if exponent >= 0 {
        let value = power(exponent).and_then(|power| value.checked_mul(power));
        return value.map_or(u128::MAX, |value| value.saturating_add(inexact.into()));
    }
    match power(-exponent) {
        Some(power) if value.is_multiple_of(power) => value / power + u128::from(inexact),
        Some(power) => value / power + 1,
        None => 1,
    }
}

fn length(digits: &str) -> i64 {
    i64::try_from(digits.len()).unwrap_or(i64::MAX / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_as_kubernetes_reads_them() {
        const MAX: u64 = i64::MAX.unsigned_abs();
        for (text, as_bytes, as_millicores) in [
            ("0", 0, 0),
            ("-0", 0, 0),
            ("1", 1, 1000),
            ("+1", 1, 1000),
            ("007", 7, 7000),
            ("100m", 1, 100),
            ("0.1", 1, 100),
            (".5", 1, 500),
            ("5.", 5, 5000),
            ("1.5", 2, 1500),
            ("1500m", 2, 1500),
            ("0.0001", 1, 1),
            ("1n", 1, 1),
            ("1u", 1, 1),
            ("1000u", 1, 1),
            ("1001u", 1, 2),
            ("2000000u", 2, 2000),
            ("1k", 1000, 1_000_000),
            ("1e3", 1000, 1_000_000),
            ("1E3", 1000, 1_000_000),
            ("1e+3", 1000, 1_000_000),
            ("1e-3", 1, 1),
            ("1.5e3", 1500, 1_500_000),
            ("1E", 1_000_000_000_000_000_000, MAX),
            ("1Ki", 1024, 1_024_000),
            ("0.5Ki", 512, 512_000),
            ("64Mi", 67_108_864, 67_108_864_000),
            ("1.5Gi", 1_610_612_736, 1_610_612_736_000),
            ("1Ti", 1 << 40, 1_099_511_627_776_000),
            ("7Ei", 7 << 60, MAX),
            ("8Ei", MAX, MAX),
            ("9223372036854775807", MAX, MAX),
            ("9223372036854775808", MAX, MAX),
            ("1e30000", MAX, MAX),
            ("1e-30000", 1, 1),
            ("0e30000", 0, 0),
            ("1.00000000000000000000000000001", 2, 1001),
            ("1.00000000000000000000000000000", 1, 1000),
            ("100000000000000000000000000000000000000000000000000", MAX, MAX),
        ] {
            let quantity = Quantity(text.to_owned());
            assert_eq!(bytes(&quantity), Ok(as_bytes), "{text}");
            assert_eq!(millicores(&quantity), Ok(as_millicores), "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in [
            "",
            " ",
            "1 ",
            "-",
            "+",
            ".",
            "1.2.3",
            "Mi",
            "m",
            "1mi",
            "1KI",
            "1K",
            "1kb",
            "1MB",
            "1e",
            "1e1.5",
            "1e99999999999",
            "0x10",
            "1_000",
            "--1",
            "-1",
            "-100m",
            "1Kii",
            "½",
            "1é",
        ] {
            assert!(bytes(&Quantity(text.to_owned())).is_err(), "{text}");
        }
    }

    #[test]
    fn an_error_names_the_text() {
        let error = bytes(&Quantity("1MB".to_owned())).unwrap_err();
        assert!(error.to_string().starts_with("`1MB` has an unknown unit"), "{error}");
    }
}
