//! Whether a topic has replicas enough for what is promised: an acknowledged record is not lost.
//! Pure: it only judges figures.

use crate::topic_error::TopicError;
use crate::topics::TopicSpec;

/// The replication factor from which on one broker may be lost while another is down for a restart.
const REPLICAS: usize = 3;
/// Replicas that an acknowledged record is on at least.
const IN_SYNC: usize = 2;

/// A topic's replication.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Replication {
    /// Brokers of the cluster.
    pub brokers: usize,
    /// The fewest replicas that one of its partitions has.
    pub replicas: usize,
    /// `min.insync.replicas`.
    pub min_in_sync: usize,
}

/// Refuses a topic that cannot be written, or that has less than was explicitly configured; returns
/// what to warn of, with the command that changes it. On fewer than three brokers nothing is warned
/// of: there is nothing better to be had.
///
/// # Errors
/// [`TopicError::Unwritable`], [`TopicError::TooFewReplicas`], [`TopicError::WrongSetting`].
pub fn judge(spec: &TopicSpec, found: Replication) -> Result<Vec<String>, TopicError> {
    let Replication { brokers, replicas, min_in_sync } = found;
    let topic = || spec.name.clone();
    if min_in_sync > replicas {
        return Err(TopicError::Unwritable { topic: topic(), min_in_sync, replicas });
    }
    if let Some(needed) = configured(spec.replication_factor).filter(|needed| replicas < *needed) {
        return Err(TopicError::TooFewReplicas { topic: topic(), found: replicas, needed });
    }
    if let Some(needed) = configured(spec.min_insync_replicas).filter(|least| min_in_sync < *least)
    {
        return Err(TopicError::WrongSetting {
            topic: topic(),
            setting: "min.insync.replicas".into(),
            found: min_in_sync.to_string(),
            needed: needed.to_string(),
        });
    }
    Ok(if brokers < REPLICAS { Vec::new() } else { warnings(&spec.name, found) })
}

/// -1 is the broker's default: nothing that was asked for.
fn configured(setting: i32) -> Option<usize> {
    usize::try_from(setting).ok()
}

fn warnings(topic: &str, found: Replication) -> Vec<String> {
    let mut warnings = Vec::new();
    if found.replicas < REPLICAS {
        warnings.push(format!(
            "topic '{topic}' has replication factor {}: acknowledged messages can be lost with {} \
             of {} brokers; give it {REPLICAS} with kafka-reassign-partitions.sh",
            found.replicas, found.replicas, found.brokers
        ));
    }
    if found.min_in_sync < IN_SYNC {
        warnings.push(format!(
            "topic '{topic}' has min.insync.replicas={}: a message can be acknowledged by a single \
             broker and lost with it; change it with kafka-configs.sh --alter --topic {topic} \
             --add-config min.insync.replicas={IN_SYNC}{}",
            found.min_in_sync,
            if found.replicas < REPLICAS { ", after giving it three replicas" } else { "" }
        ));
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(replication_factor: i32, min_insync_replicas: i32) -> TopicSpec {
        TopicSpec {
            name: "t".into(),
            partitions: 1,
            replication_factor,
            min_insync_replicas,
            settings: Default::default(),
            required: Vec::new(),
            at_least: Vec::new(),
            advised: Vec::new(),
        }
    }

    fn found(brokers: usize, replicas: usize, min_in_sync: usize) -> Replication {
        Replication { brokers, replicas, min_in_sync }
    }

    #[test]
    fn what_is_recommended_is_silent_and_so_is_a_small_cluster() {
        let default = spec(-1, -1);
        for fine in [found(3, 3, 2), found(5, 3, 3), found(9, 5, 2), found(1, 1, 1), found(2, 1, 1)]
        {
            assert_eq!(judge(&default, fine).unwrap(), Vec::<String>::new(), "{fine:?}");
        }
    }

    #[test]
    fn a_large_cluster_with_fewer_replicas_is_warned_of_each() {
        let two = judge(&spec(-1, -1), found(3, 1, 1)).unwrap();
        assert_eq!(two.len(), 2);
        assert!(two[0].contains("'t'") && two[0].contains("factor 1") && two[0].contains(".sh"));
        let one = judge(&spec(-1, -1), found(3, 3, 1)).unwrap();
        assert_eq!(one.len(), 1);
        assert!(one[0].contains("--add-config min.insync.replicas=2"), "{one:?}");
        assert_eq!(judge(&spec(-1, -1), found(4, 2, 2)).unwrap().len(), 1);
    }

    #[test]
    fn a_topic_that_cannot_be_written_is_refused() {
        for brokers in [1, 3] {
            let refused = judge(&spec(-1, -1), found(brokers, 1, 2)).unwrap_err();
            assert!(matches!(refused, TopicError::Unwritable { min_in_sync: 2, .. }));
            assert!(refused.to_string().contains("min.insync.replicas=1"), "{refused}");
        }
    }

    #[test]
    fn less_than_was_configured_is_refused_and_more_is_not() {
        let refused = judge(&spec(3, -1), found(1, 1, 1)).unwrap_err();
        assert!(matches!(refused, TopicError::TooFewReplicas { found: 1, needed: 3, .. }));
        let refused = judge(&spec(-1, 2), found(3, 3, 1)).unwrap_err();
        assert!(refused.to_string().contains("--add-config min.insync.replicas=2"), "{refused}");
        assert!(judge(&spec(2, 1), found(3, 3, 2)).is_ok());
        assert!(judge(&spec(3, 2), found(3, 3, 2)).is_ok());
    }
}
