//! The token that operators' calls need.

use std::fmt;
use std::hint::black_box;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};

use crate::problem::ApiError;

/// `HALFMSG_ADMIN_TOKEN`, or none. It shows itself nowhere.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct AdminToken(Option<String>);

impl AdminToken {
    /// A token; an empty one is none.
    pub fn new(token: Option<String>) -> Self {
        Self(token.filter(|token| !token.is_empty()))
    }

    /// Whether one is configured.
    pub fn is_set(&self) -> bool {
        self.0.is_some()
    }

    /// Lets the request pass if it carries `Authorization: Bearer <token>`.
    ///
    /// # Errors
    /// 403 `admin_disabled` if no token is configured, 401 `unauthorized` if the request carries
    /// none or another.
    pub fn require(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(expected) = &self.0 else {
            return Err(ApiError::new(
                StatusCode::FORBIDDEN,
                "admin_disabled",
                "operators' calls are switched off",
            )
            .detail("start the service with HALFMSG_ADMIN_TOKEN to allow them"));
        };
        match bearer(headers) {
            Some(given) if equal_in_constant_time(given.as_bytes(), expected.as_bytes()) => Ok(()),
            _ => Err(ApiError::new(
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "the operator's token is missing or wrong",
            )
            .header(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"))),
        }
    }
}

impl fmt::Debug for AdminToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_set() { "AdminToken(set)" } else { "AdminToken(none)" })
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Takes as long for a wrong token as for the right one of the same length, so that the answer's
/// time does not tell how many characters were right.
fn equal_in_constant_time(a: &[u8], b: &[u8]) -> bool {
    let difference = a.iter().zip(b).fold(0_u8, |all, (x, y)| black_box(all | (x ^ y)));
    a.len() == b.len() && difference == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(token: Option<&str>, given: Option<&str>) -> u16 {
        let headers = given.map(|given| (header::AUTHORIZATION, given.parse().unwrap()));
        AdminToken::new(token.map(Into::into))
            .require(&HeaderMap::from_iter(headers))
            .map_or_else(|error| error.status().as_u16(), |()| 200)
    }

    #[test]
    fn lets_only_the_token_pass() {
        assert_eq!(status(Some("s3cret"), Some("Bearer s3cret")), 200);
        assert_eq!(status(Some("s3cret"), Some("bearer s3cret")), 200);
        for wrong in ["Bearer s3cre", "Bearer s3cret!", "Bearer ", "Basic s3cret", "s3cret"] {
            assert_eq!(status(Some("s3cret"), Some(wrong)), 401, "{wrong}");
        }
        assert_eq!(status(Some("s3cret"), None), 401);
    }

    #[test]
    fn without_a_token_nothing_passes() {
        assert_eq!(status(None, Some("Bearer ")), 403);
        assert_eq!(status(Some(""), Some("Bearer ")), 403);
    }

    #[test]
    fn does_not_show_itself() {
        assert!(!format!("{:?}", AdminToken::new(Some("s3cret".into()))).contains("s3cret"));
    }
}
