//! Serializes a [`Duration`] as an integer number of ns.
//!
//! Use it with `#[serde(rename = "wait_ns", with = "ebpfmetrics::snapshot::duration_ns")]`,
//! and [`option`] for an `Option<Duration>`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

fn ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// Writes the number of ns.
///
/// # Errors
/// If the serializer fails.
pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    ns(*duration).serialize(serializer)
}

/// Reads the number of ns.
///
/// # Errors
/// If there is no integer.
pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    u64::deserialize(deserializer).map(Duration::from_nanos)
}

/// The same for a duration that may not be known.
pub mod option {
    use super::{Deserialize, Deserializer, Duration, Serialize, Serializer, ns};

    /// Writes the number of ns or null.
    ///
    /// # Errors
    /// If the serializer fails.
    pub fn serialize<S: Serializer>(
        duration: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        duration.map(ns).serialize(serializer)
    }

    /// Reads the number of ns or null.
    ///
    /// # Errors
    /// If there is neither an integer nor null.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<u64>::deserialize(deserializer)?.map(Duration::from_nanos))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Times {
        #[serde(rename = "wait_ns", with = "super")]
        wait: Duration,
        #[serde(rename = "idle_ns", with = "super::option", default)]
        idle: Option<Duration>,
    }

    #[test]
    fn durations_are_integers() {
        let times = Times { wait: Duration::from_micros(2), idle: None };
        let json = serde_json::to_string(&times).unwrap();
        assert_eq!(json, r#"{"wait_ns":2000,"idle_ns":null}"#);
        assert_eq!(serde_json::from_str::<Times>(&json).unwrap(), times);
        let read: Times = serde_json::from_str(r#"{"wait_ns":1,"idle_ns":7}"#).unwrap();
        assert_eq!(read.idle, Some(Duration::from_nanos(7)));
    }
}
