/// What is wrong with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    Prefix,
    Length,
    TokenCharset,
    Checksum,
}

const BASE62: &str = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// Whether a text has the form of a token with this prefix and a body of so many characters.
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
        return Err(Misfit::TokenCharset);
    };
    // As a number, which may be above all that 32 bits can hold.
    let number = digits[body..].iter().fold(0_u64, |number, digit| number * 62 + *digit as u64);
    let covered: String = characters[..lead.len() + body].iter().collect();
    if number == u64::from(checksum(&covered)) { Ok(()) } else { Err(Misfit::Checksum) }
}

/// CRC-32 of ISO-HDLC, bit by bit, of a text of one character a byte.
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

/// The checksum as it stands behind a token.
pub fn checksum_text(text: &str) -> String {
    let mut rest = checksum(text) as usize;
    let mut digits = Vec::new();
    while digits.len() < 6 {
        digits.push(BASE62.chars().nth(rest % 62).expect("one of 62"));
        rest /= 62;
    }
    digits.iter().rev().collect()
}
