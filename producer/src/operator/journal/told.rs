//! What the journal tells: the newest acts, read from the parked topic. What stands under its keys may be
//! anybody's: nothing of it is believed to be of our form or size.

use std::collections::BTreeMap;

use chrono::DateTime;
use halfmsg_kafka::KafkaConfig;
use halfmsg_protocol::TransactionId;
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{BEGUN, KEY};
use crate::admin::view::rfc3339;
use crate::admin::{AdminError, Page};
use crate::scan::{Patience, Unread, scan};

/// Of a text so many characters are shown. Ours have 1,000 bytes, and those of errors are not much longer.
const TEXT_CHARACTERS: usize = 2_000;

/// Which acts are to be listed.
#[derive(Debug, Clone, Default)]
pub struct JournalFilter {
    /// Only what was done about this message; all acts if unset.
    pub id: Option<TransactionId>,
    /// At most so many, up to [`MAX_PAGE`](crate::admin::MAX_PAGE).
    pub limit: usize,
    /// Where the last page ended.
    pub cursor: Option<String>,
}

/// What an operator did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ActView {
    /// When it was begun, RFC 3339.
    pub began_at: String,
    /// When it ended, RFC 3339; `None` if that is not written down.
    pub ended_at: Option<String>,
    /// Who did it.
    pub operator: String,
    /// `commit`, `rollback`, `check`, `resume`, `redeliver`, `skip` or `reset-progress`.
    pub action: String,
    /// The message that it was done about, if it was one.
    pub transaction_id: Option<String>,
    /// The store's partition.
    pub partition: i32,
    /// Of `skip`, the offset of the record; of `reset-progress`, where the replay begins.
    pub offset: Option<i64>,
    /// Why.
    pub reason: String,
    /// Whether by force, if that is written down: a `check`, `resume` or `skip` needs none.
    pub forced: Option<bool>,
    /// `done`, or the error that it ended with. `begun` if its end is not written down: it is being done
    /// right now, or nobody knows, and the message or partition tells.
    pub outcome: String,
}

/// A page of the journal.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct JournalPage {
    /// The acts, newest first. It may have fewer than were asked for, and another page behind it.
    #[serde(flatten)]
    pub page: Page<ActView>,
    /// So many records under the journal's keys could not be read: they are not of its form. They may
    /// be about any message.
    pub unreadable: u64,
}

/// An act's place in the list: its id, whose order is that of time, and the partition that it stands in.
pub(crate) type Place = (Uuid, i32);

/// The cursor that begins with the act at this place.
fn cursor((id, partition): Place) -> String {
    format!("{id}-{partition}")
}

fn parse_cursor(cursor: &str) -> Option<Place> {
    let (id, partition) = cursor.rsplit_once('-')?;
    Some((parse_id(id.as_bytes())?, partition.parse().ok()?))
}

/// Only as it is written: two texts of one id would be two acts.
fn parse_id(text: &[u8]) -> Option<Uuid> {
    let text = std::str::from_utf8(text).ok()?;
    let id: Uuid = text.parse().ok()?;
    (id.get_version_num() == 7 && id.to_string() == text).then_some(id)
}

/// The newest acts of those that were taken in.
#[derive(Debug)]
pub(crate) struct Acts {
    id: Option<TransactionId>,
    /// It, and what is older.
    from: Option<Place>,
    limit: usize,
    /// The newest of them, one more than are listed. What is deleted keeps its place: an older one was
    /// perhaps dropped for it.
    found: BTreeMap<Place, Option<ActView>>,
    unreadable: u64,
}

impl Acts {
    /// # Errors
    /// [`AdminError::Invalid`] for a cursor that is none.
    pub(crate) fn new(filter: &JournalFilter, limit: usize) -> Result<Self, AdminError> {
        let from = filter.cursor.as_deref().map(|cursor| {
            let wrong = AdminError::Invalid("the cursor is none that the journal has given");
            parse_cursor(cursor).ok_or(wrong)
        });
        let (id, from) = (filter.id, from.transpose()?);
        Ok(Self { id, from, limit, found: BTreeMap::new(), unreadable: 0 })
    }

    /// Reads the journal of these partitions, and which of them could not be read. Blocks, as long as
    /// patience lasts.
    pub(crate) fn read(
        mut self,
        kafka: &KafkaConfig,
        topic: &str,
        partitions: &[i32],
        patience: Patience,
    ) -> Result<(Self, Unread), KafkaError> {
        let unread = scan(kafka, topic, partitions, patience, |message| {
            let key = message.key().unwrap_or_default();
            self.take_in(message.partition(), key, message.payload());
        })?;
        self.leave_out(&unread);
        Ok((self, unread))
    }

    /// What is known of these is not all: an act may have ended behind that.
    fn leave_out(&mut self, unread: &Unread) {
        for ((_, partition), act) in &mut self.found {
            if unread.contains_key(partition) {
                *act = None;
            }
        }
    }

    fn take_in(&mut self, partition: i32, key: &[u8], payload: Option<&[u8]>) {
        let Some(id) = key.strip_prefix(KEY.as_bytes()) else { return };
        let place = parse_id(id).map(|id| (id, partition));
        let act = payload.map(|payload| act(place?, payload));
        if matches!(act, Some(None)) {
            self.unreadable += 1;
        }
        let Some(place) = place else { return };
        if self.from.is_some_and(|from| place > from) {
            return;
        }
        let id = self.id.map(|id| id.to_string());
        match act.flatten().filter(|act| id.is_none() || act.transaction_id == id) {
            Some(act) => drop(self.found.insert(place, Some(act))),
            None => {
                if let Some(known) = self.found.get_mut(&place) {
                    *known = None;
                }
            }
        }
        if self.found.len() > self.limit + 1 {
            self.found.pop_first();
        }
    }

    /// Newest first, without the partitions that are missing.
    pub(crate) fn page(mut self) -> JournalPage {
        let more = self.found.len() > self.limit;
        let next = if more { self.found.pop_first() } else { None };
        let page = Page {
            items: self.found.into_values().rev().flatten().collect(),
            next_cursor: next.map(|(place, _)| cursor(place)),
            missing_partitions: Vec::new(),
        };
        JournalPage { page, unreadable: self.unreadable }
    }
}

/// An entry as it is read, of what it has.
#[derive(Debug, Deserialize)]
struct Told {
    action: String,
    operator: String,
    reason: String,
    at: String,
    detail: Detail,
    outcome: String,
}

#[derive(Debug, Deserialize)]
struct Detail {
    transaction_id: Option<String>,
    offset: Option<i64>,
    to: Option<i64>,
    forced: Option<bool>,
}

/// `None` if this is not what is written under such a key.
fn act((id, partition): Place, payload: &[u8]) -> Option<ActView> {
    let told: Told = serde_json::from_slice(payload).ok()?;
    let at = rfc3339(DateTime::parse_from_rfc3339(&told.at).ok()?.timestamp_millis());
    let began_ms = i64::try_from(id.as_u128() >> 80).ok()?;
    let about = told.detail.transaction_id.map(|id| id.parse::<TransactionId>());
    let about = about.transpose().ok()?;
    let text = |text: String| text.chars().take(TEXT_CHARACTERS).collect();
    Some(ActView {
        began_at: rfc3339(began_ms),
        ended_at: (told.outcome != BEGUN).then_some(at),
        operator: text(told.operator),
        action: text(told.action),
        transaction_id: about.map(|id| id.to_string()),
        partition,
        offset: told.detail.offset.or(told.detail.to),
        reason: text(told.reason),
        forced: told.detail.forced,
        outcome: text(told.outcome),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::{DONE, Entry};
    use super::*;

    /// Of the act with this number: the higher, the later.
    fn key(number: u64) -> Vec<u8> {
        let id = uuid::Builder::from_unix_timestamp_millis(number, &[7; 10]).into_uuid();
        format!("{KEY}{id}").into_bytes()
    }

    /// As it is written.
    fn entry(detail: &serde_json::Value, outcome: &str) -> Vec<u8> {
        let (action, operator, reason) = ("commit", "olga", "it is paid");
        let entry =
            Entry { action, operator, reason, at: rfc3339(1_700_000_000_123), detail, outcome };
        serde_json::to_vec(&entry).expect("text")
    }

    fn acts(id: Option<TransactionId>, cursor: Option<String>, limit: usize) -> Acts {
        Acts::new(&JournalFilter { id, limit, cursor }, limit).expect("a cursor")
    }

    fn numbers(page: &JournalPage) -> Vec<i64> {
        page.page.items.iter().filter_map(|act| act.offset).collect()
    }

    #[test]
    fn an_act_is_read_as_it_was_written() {
        let id = TransactionId::from_uuid(Uuid::now_v7());
        let detail = json!({ "transaction_id": id.to_string(), "forced": true });
        let mut begun = acts(None, None, 10);
        begun.take_in(3, &key(1_699_999_999_000), Some(&entry(&detail, BEGUN)));
        let act = begun.found.values().next().cloned().flatten().expect("an act");
        let expected = ActView {
            began_at: "2023-11-14T22:13:19.000Z".into(),
            ended_at: None,
            operator: "olga".into(),
            action: "commit".into(),
            transaction_id: Some(id.to_string()),
            partition: 3,
            offset: None,
            reason: "it is paid".into(),
            forced: Some(true),
            outcome: "begun".into(),
        };
        assert_eq!(act, expected);
        begun.take_in(3, &key(1_699_999_999_000), Some(&entry(&detail, DONE)));
        let page = begun.page();
        let ended_at = Some("2023-11-14T22:13:20.123Z".into());
        let ended = ActView { ended_at, outcome: "done".into(), ..expected };
        assert_eq!((page.page.items, page.unreadable), (vec![ended], 0));

        let mut places = acts(None, None, 10);
        places.take_in(3, &key(1), Some(&entry(&json!({ "partition": 3, "offset": 17 }), DONE)));
        places.take_in(3, &key(2), Some(&entry(&json!({ "partition": 3, "to": 5 }), DONE)));
        assert_eq!(numbers(&places.page()), [5, 17]);
    }

    #[test]
    fn garbage_is_counted_and_nothing_else() {
        let mut acts = acts(None, None, 10);
        let good = entry(&json!({}), DONE);
        let with = |name: &str, value: serde_json::Value| {
            let mut changed: serde_json::Value = serde_json::from_slice(&good).expect("JSON");
            changed[name] = value;
            serde_json::to_vec(&changed).expect("text")
        };
        let deep = [&b"["[..]; 10_000].concat();
        let wrong = [
            b"".to_vec(),
            b"null".to_vec(),
            b"\xFF\xFE".to_vec(),
            b"{}".to_vec(),
            deep.clone(),
            good[..good.len() - 1].to_vec(),
            with("at", json!("yesterday")),
            with("at", json!(5)),
            with("operator", json!(null)),
            with("detail", json!("x")),
            with("detail", json!({ "transaction_id": "x" })),
            with("detail", json!({ "offset": 1e300 })),
            with("detail", json!({ "forced": "yes" })),
        ];
        for payload in &wrong {
            acts.take_in(0, &key(1), Some(payload));
        }
        let keys = ["", "x", "\u{7f}", "01985F2E-0000-7000-8000-000000000000"];
        let others = [Uuid::nil(), Uuid::max(), Uuid::from_u128(4 << 76)];
        let others = others.map(|id| id.to_string());
        for wrong in keys.into_iter().chain(others.iter().map(String::as_str)) {
            acts.take_in(0, format!("{KEY}{wrong}").as_bytes(), Some(&good));
        }
        acts.take_in(0, &[KEY.as_bytes(), b"\xFF"].concat(), Some(&good));
        let expected = u64::try_from(wrong.len() + keys.len() + others.len() + 1).expect("few");
        // None of ours, and none at all.
        acts.take_in(0, b"", Some(b""));
        acts.take_in(0, b"halfmsg.skip-3-17", Some(&good));
        acts.take_in(0, format!("{KEY}x").as_bytes(), None);
        let page = acts.page();
        assert_eq!((page.page.items.len(), page.unreadable), (0, expected));
    }

    #[test]
    fn what_is_somebody_elses_is_bounded() {
        let text = "ü".repeat(2 * TEXT_CHARACTERS);
        let detail = json!({});
        let at = "9999-12-31T23:59:59.999999999+23:59".into();
        let large = Entry {
            action: &text,
            operator: &text,
            reason: &text,
            at,
            detail: &detail,
            outcome: &text,
        };
        let mut acts = acts(None, None, 10);
        // The last moment that an id can have.
        let key = key((1 << 48) - 1);
        acts.take_in(i32::MAX, &key, Some(&serde_json::to_vec(&large).expect("text")));
        let page = acts.page();
        let [act] = &page.page.items[..] else { panic!("{page:?}") };
        for text in [&act.action, &act.operator, &act.reason, &act.outcome] {
            assert_eq!(text.chars().count(), TEXT_CHARACTERS);
        }
        assert!(act.ended_at.is_some(), "{act:?}");
    }

    #[test]
    fn a_list_is_of_the_newest_and_goes_on_with_the_older_ones() {
        let shown = |cursor: Option<String>| {
            let mut acts = acts(None, cursor, 2);
            // Not in their order: of several partitions.
            for number in [3, 1, 5, 2, 4_u64] {
                let partition = i32::from(number % 2 == 1);
                let payload = entry(&json!({ "offset": number }), BEGUN);
                acts.take_in(partition, &key(number), Some(&payload));
                assert!(acts.found.len() <= 3, "one more than are listed");
            }
            let page = acts.page();
            (numbers(&page), page.page.next_cursor)
        };
        let (first, next) = shown(None);
        assert_eq!(first, [5, 4]);
        let (second, next) = shown(Some(next.expect("there are more")));
        assert_eq!(second, [3, 2]);
        assert_eq!(shown(Some(next.expect("there is one more"))), (vec![1], None));
    }

    #[test]
    fn a_deleted_act_hides_no_older_one() {
        let mut acts = acts(None, None, 2);
        for number in [1, 2, 3, 4_u64] {
            acts.take_in(0, &key(number), Some(&entry(&json!({ "offset": number }), DONE)));
        }
        acts.take_in(0, &key(4), None);
        acts.take_in(0, &key(9), None);
        let page = acts.page();
        assert_eq!(numbers(&page), [3]);
        let next = page.page.next_cursor.expect("1 and 2 are on the next page");
        assert_eq!(
            parse_cursor(&next).map(|(id, _)| format!("{KEY}{id}").into_bytes()),
            Some(key(2))
        );
    }

    #[test]
    fn a_partition_that_is_not_read_to_its_end_shows_nothing() {
        let mut acts = acts(None, None, 10);
        for (number, partition) in [(1, 0), (2, 1)] {
            let payload = entry(&json!({ "offset": number }), BEGUN);
            acts.take_in(partition, &key(number), Some(&payload));
        }
        acts.leave_out(&Unread::from([(1, KafkaError::NoMessageReceived)]));
        assert_eq!(numbers(&acts.page()), [1]);
    }

    #[test]
    fn acts_of_one_message_are_chosen_before_they_are_counted() {
        let [id, other] =
            [TransactionId::from_uuid(Uuid::now_v7()), TransactionId::from_uuid(Uuid::now_v7())];
        let mut acts = acts(Some(id), None, 1);
        for (number, of) in [(1, id), (2, other), (3, other), (4, other)] {
            let detail = json!({ "transaction_id": of.to_string(), "offset": number });
            acts.take_in(0, &key(number), Some(&entry(&detail, DONE)));
        }
        acts.take_in(0, &key(5), Some(&entry(&json!({ "offset": 5 }), DONE)));
        let page = acts.page();
        assert_eq!((numbers(&page), page.page.next_cursor), (vec![1], None));
    }

    #[test]
    fn a_cursor_names_a_place_and_nothing_else_does() {
        let id = Uuid::now_v7();
        assert_eq!(parse_cursor(&cursor((id, 3))), Some((id, 3)));
        for wrong in
            ["", "3-17", "-", "x-3", &id.to_string(), &format!("{id}-"), &format!("{id}-x")]
        {
            assert_eq!(parse_cursor(wrong), None, "{wrong}");
            let filter = JournalFilter { cursor: Some(wrong.into()), ..JournalFilter::default() };
            assert!(matches!(Acts::new(&filter, 1), Err(AdminError::Invalid(_))), "{wrong}");
        }
    }
}
