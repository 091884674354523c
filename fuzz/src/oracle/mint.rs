//! The check of minted tokens.

/// The error in a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    Prefix,
    Length,
    Charset,
    Checksum,
}

const BASE62: &str = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Checks that a text is a token with this prefix and a body of this length.
pub fn minted(text: &str, prefix: &str, body: usize) -> Result<(), Misfit> {
    let characters: Vec<char> = text.chars().collect();
    let lead: Vec<char> = prefix.chars().chain(['_']).collect();
    if characters.len() < lead.len() || characters[..lead.len()] != lead[..] {
        return Err(Misfit::Prefix);
    }
    if characters.len() != lead.len() + body + 6 {
        return Err(Misfit::Length);
    }
    let value = |character: &char| BASE62.chars().position(|digit| digit == *character);
    let Some(digits) = characters[lead.len()..].iter().map(value).collect::<Option<Vec<usize>>>() else {
        return Err(Misfit::Charset);
    };
    // A number that may exceed 32 bits.
    let number = digits[body..].iter().fold(0_u64, |number, digit| number * 62 + *digit as u64);
    let covered: String = characters[..lead.len() + body].iter().collect();
    if number == u64::from(checksum(&covered)) { Ok(()) } else { Err(Misfit::Checksum) }
}

/// Returns the CRC-32 (ISO-HDLC) of a text of one character per byte, computed bit by bit.
pub fn checksum(text: &str) -> u32 {
    let mut crc = u32::MAX;
    for character in text.chars() {
        crc ^= u32::from(character);
        for _ in 0..8 {
            let bit = crc & 1;
            crc >>= 1;
            if bit == 1 {
                crc ^= 0xedb8_8320;
            }
        }
    }
    !crc
}

/// Returns the checksum as written at the end of a token.
pub fn checksum_text(text: &str) -> String {
    let mut rest = checksum(text) as usize;
    let mut digits = Vec::new();
    while digits.len() < 6 {
        digits.push(BASE62.chars().nth(rest % 62).expect("one of 62"));
        rest /= 62;
    }
    digits.iter().rev().collect()
}
