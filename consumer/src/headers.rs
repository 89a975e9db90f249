//! Headers as JSON: a value may be any bytes, so it is written as text where it is, else as hex.

use std::fmt::Write;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
struct Header {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    hex: Option<String>,
}

pub(crate) fn write(headers: &[(String, Option<Bytes>)]) -> String {
    let headers: Vec<Header> = headers
        .iter()
        .map(|(name, value)| {
            let text = value.as_ref().map(|value| std::str::from_utf8(value));
            let hex = match (&text, value) {
                (Some(Err(_)), Some(value)) => Some(hex(value)),
                _ => None,
            };
            let text = text.and_then(Result::ok).map(str::to_owned);
            Header { name: name.clone(), text, hex }
        })
        .collect();
    serde_json::to_string(&headers).expect("strings can be written as JSON")
}

pub(crate) fn read(json: &str) -> Result<Vec<(String, Option<Bytes>)>, serde_json::Error> {
    let headers: Vec<Header> = serde_json::from_str(json)?;
    let value = |header: &Header| match (&header.text, &header.hex) {
        (Some(text), _) => Some(Bytes::copy_from_slice(text.as_bytes())),
        (None, Some(hex)) => Some(bytes(hex)),
        (None, None) => None,
    };
    Ok(headers.iter().map(|header| (header.name.clone(), value(header))).collect())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
        write!(hex, "{byte:02x}").expect("a string takes everything");
        hex
    })
}

/// Digits that are none count as 0: only this module writes them.
fn bytes(hex: &str) -> Bytes {
    let digit = |c: &u8| char::from(*c).to_digit(16).unwrap_or_default();
    hex.as_bytes()
        .chunks(2)
        .map(|pair| pair.iter().fold(0, |all, c| all * 16 + digit(c)))
        .map(|byte| u8::try_from(byte).unwrap_or_default())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn come_back_as_they_were() {
        let headers = vec![
            ("text".to_owned(), Some(Bytes::from_static(b"a\0b"))),
            ("bytes".to_owned(), Some(Bytes::from_static(&[0, 255, 0x7f]))),
            ("empty".to_owned(), Some(Bytes::new())),
            ("null".to_owned(), None),
        ];
        assert_eq!(read(&write(&headers)).unwrap(), headers);
    }
}
