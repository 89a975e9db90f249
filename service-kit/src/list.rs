//! Lists as they are shown: a page and where the next one begins.

use serde::Serialize;

use crate::problem::ApiError;

/// A list, as it is shown.
#[derive(Debug, Serialize, utoipa::ToSchema)]
pub struct List<T> {
    /// The entries.
    pub items: Vec<T>,
    /// For the query parameter `cursor` of the next page; null on the last.
    #[schema(required)]
    pub next_cursor: Option<String>,
}

impl<T> List<T> {
    /// A page out of up to `limit` + 1 entries; the one too many says that there is a next page.
    pub fn page(mut items: Vec<T>, limit: u64, cursor: impl Fn(&T) -> String) -> Self {
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = items.len() > limit;
        items.truncate(limit);
        let next_cursor = if more { items.last().map(cursor) } else { None };
        Self { items, next_cursor }
    }
}

/// The number of entries of a page: `default` if unset.
///
/// # Errors
/// 422 `invalid_request`, if it is not 1 to `max`.
pub fn limit(asked: Option<u64>, default: u64, max: u64) -> Result<u64, ApiError> {
    match asked {
        None => Ok(default),
        Some(limit) if (1..=max).contains(&limit) => Ok(limit),
        Some(limit) => Err(ApiError::invalid(format!("limit must be 1 to {max}, not {limit}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_page_has_no_cursor() {
        let page = |count: u64| List::page((0..count).collect(), 3, u64::to_string);
        assert_eq!(page(3).next_cursor, None);
        let page = page(4);
        assert_eq!((page.items.len(), page.next_cursor.as_deref()), (3, Some("2")));
    }

    #[test]
    fn limits_have_bounds() {
        assert_eq!(limit(None, 50, 500).unwrap(), 50);
        assert_eq!(limit(Some(500), 50, 500).unwrap(), 500);
        assert!(limit(Some(0), 50, 500).is_err() && limit(Some(501), 50, 500).is_err());
    }
}
