//! Byte sizes and offsets on the command line.

/// Reads a number of bytes: decimal or `0x` hexadecimal, with a binary suffix (`K M G T`, `KiB MiB GiB TiB`, or `B`).
///
/// `kB` and `MB` are refused: some mean powers of 1000 by them, some of 1024.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let examples = "examples: 512, 4KiB, 64MiB, 1G, 0x1000";
    let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    if let Some(digits) = hex {
        // `from_str_radix` would take a sign.
        if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(format!("not a hexadecimal number; {examples}"));
        }
        return u64::from_str_radix(digits, 16).map_err(|_| "more than 64 bits".to_owned());
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, suffix) = text.split_at(digits);
    if number.is_empty() {
        return Err(format!("not a number of bytes; {examples}"));
    }
    let power = match suffix.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 1,
        "m" | "mib" => 2,
        "g" | "gib" => 3,
        "t" | "tib" => 4,
        "kb" | "mb" | "gb" | "tb" => {
            return Err(format!("{suffix} may mean 1000s or 1024s; write KiB, MiB, GiB or TiB (1024s)"));
        }
        _ => return Err(format!("unknown unit {suffix:?}; {examples}")),
    };
    let number: u64 = number.parse().map_err(|_| "more than 64 bits".to_owned())?;
    number.checked_mul(1 << (10 * power)).ok_or_else(|| "more than 64 bits".to_owned())
}

/// [`parse_size`], but not zero.
pub(crate) fn parse_length(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        0 => Err("must be at least 1".to_owned()),
        size => Ok(size),
    }
}

/// [`parse_length`], at most 4 GiB less one byte.
pub(crate) fn parse_length32(text: &str) -> Result<u32, String> {
    u32::try_from(parse_length(text)?).map_err(|_| "must be less than 4GiB".to_owned())
}

/// A number that is no size: decimal or `0x` hexadecimal, below 2^`BITS`.
fn parse_number<const BITS: u32>(text: &str) -> Result<u64, String> {
    if !text.starts_with("0x") && !text.starts_with("0X") && !text.bytes().all(|digit| digit.is_ascii_digit())
    {
        return Err("not a number; examples: 12, 0xffff".to_owned());
    }
    match parse_size(text)? {
        number if number >> (BITS - 1) > 1 => Err(format!("more than {BITS} bits")),
        number => Ok(number),
    }
}

/// A number of 64 bits, e.g. `0xffff`.
pub(crate) fn parse_u64(text: &str) -> Result<u64, String> {
    parse_number::<64>(text)
}

/// A number of 16 bits, e.g. `0xffff`.
pub(crate) fn parse_u16(text: &str) -> Result<u16, String> {
    parse_number::<16>(text).map(|number| number as u16)
}

/// A number of 4 bits, e.g. `0xf`.
pub(crate) fn parse_u4(text: &str) -> Result<u8, String> {
    parse_number::<4>(text).map(|number| number as u8)
}

/// A time in seconds, with a fraction if need be; more than zero.
pub(crate) fn parse_seconds(text: &str) -> Result<std::time::Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds; examples: 5, 0.5".to_owned())?;
    match std::time::Duration::try_from_secs_f64(seconds) {
        // Deadlines are computed by adding; a century is for ever enough.
        Ok(time) if !time.is_zero() && seconds <= 3.2e9 => Ok(time),
        _ => Err("must be more than 0 seconds".to_owned()),
    }
}

/// As [`parse_seconds`], but zero is allowed.
pub(crate) fn parse_seconds_or_none(text: &str) -> Result<std::time::Duration, String> {
    if text.parse() == Ok(0.0) { Ok(std::time::Duration::ZERO) } else { parse_seconds(text) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn numbers_are_no_sizes() {
        assert_eq!((parse_u64("0xffffffffffffffff"), parse_u64("12")), (Ok(u64::MAX), Ok(12)));
        assert_eq!((parse_u16("65535"), parse_u4("0xf")), (Ok(u16::MAX), Ok(15)));
        for wrong in ["", "x", "4K", "-1", "0x", "1 "] {
            assert!(parse_u64(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_u16("65536"), Err("more than 16 bits".to_owned()));
        assert_eq!(parse_u4("16"), Err("more than 4 bits".to_owned()));
    }

    #[test]
    fn sizes() {
        let cases = [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("4K", 4096),
            ("4k", 4096),
            ("4KiB", 4096),
            ("4 KiB", 4096),
            ("1MiB", 1 << 20),
            ("64M", 64 << 20),
            ("1GiB", 1 << 30),
            ("2g", 2 << 30),
            ("1T", 1 << 40),
            ("0x1000", 4096),
            ("0XfF", 255),
            ("18446744073709551615", u64::MAX),
            ("16777215TiB", 16_777_215 << 40),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_size(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn nonsense_is_named() {
        let cases = [
            ("", "not a number of bytes"),
            ("K", "not a number of bytes"),
            ("-1", "not a number of bytes"),
            ("+1", "not a number of bytes"),
            ("1.5G", "unknown unit \".5G\""),
            ("1X", "unknown unit \"X\""),
            ("1kB", "may mean 1000s or 1024s"),
            ("1MB", "write KiB, MiB"),
            ("0x", "not a hexadecimal number"),
            ("0x+1", "not a hexadecimal number"),
            ("0x10000000000000000", "more than 64 bits"),
            ("18446744073709551616", "more than 64 bits"),
            ("16777216TiB", "more than 64 bits"),
            ("1µ", "unknown unit"),
        ];
        for (text, expected) in cases {
            let error = parse_size(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert!(parse_length("0").unwrap_err().contains("at least 1"));
        assert!(parse_length32("4GiB").unwrap_err().contains("less than 4GiB"));
    }

    #[test]
    fn seconds() {
        assert_eq!(parse_seconds("0.25"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_seconds_or_none("0"), Ok(Duration::ZERO));
        for text in ["0", "-1", "inf", "NaN", "1e300", "soon", ""] {
            assert!(parse_seconds(text).is_err(), "{text}");
        }
    }
}
