//! Who listens to the log lines: the question to Redis, its answer, and when it is asked again.
//!
//! Redis does not report that a client subscribes, so it is asked once a second. The moment of the last question that
//! was answered with "nobody" is kept: whoever listens later subscribed after it, and gets all lines since then.
//!
//! A server that refuses the question, or closes the connection at it as some proxies do, is taken for one with
//! listeners, and asked again once a minute.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use redis::Value;

use crate::clock::seconds;

/// Time between two questions.
pub const NEXT_QUESTION: Duration = Duration::from_secs(1);
/// Who asks in passing does not come by exactly once a second.
const EARLY: Duration = Duration::from_millis(100);
/// The same after a refusal.
const REFUSED: Duration = Duration::from_secs(60);
/// So many connections that end at the question are a refusal.
const BREAKS: u32 = 3;

/// Whether somebody listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// Nobody does, or Redis cannot be reached.
    Nobody,
    /// Somebody does, or Redis does not tell.
    Somebody,
}

/// A moment, by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    wall: SystemTime,
    at: Instant,
}

impl Moment {
    /// This one.
    #[must_use]
    pub fn now() -> Self {
        Self { wall: SystemTime::now(), at: Instant::now() }
    }

    /// The earliest second since 1970 that the wall clock may have shown from this moment to `now`, also if it was set
    /// back in between.
    #[must_use]
    pub fn earliest_second(&self, now: &Self) -> u64 {
        let elapsed = now.at.saturating_duration_since(self.at);
        let earliest = now.wall.checked_sub(elapsed).map_or(UNIX_EPOCH, |begin| begin.min(self.wall));
        seconds(earliest)
    }
}

/// What is known, and when it is asked again.
#[derive(Debug)]
pub(super) struct Inquiry {
    /// `None` until it is known.
    pub(super) audience: Option<Audience>,
    /// Since this moment, nobody was there at least for an instant.
    pub(super) nobody_at: Option<Moment>,
    /// When the next question is due.
    pub(super) due: Instant,
    /// Number of the last question that was sent, and of the last one that was answered.
    pub(super) sent: u64,
    pub(super) answered: u64,
    /// Connections that ended at the question, one after the other.
    breaks: u32,
    pub(super) is_refused: bool,
}

impl Inquiry {
    pub(super) fn new() -> Self {
        Self { audience: None, nobody_at: None, due: Instant::now(), sent: 0, answered: 0, breaks: 0, is_refused: false }
    }

    /// Whether somebody who comes by may ask now.
    pub(super) fn is_almost_due(&self) -> bool {
        self.due.saturating_duration_since(Instant::now()) <= EARLY
    }

    /// A question is sent now.
    pub(super) fn asked(&mut self) {
        self.sent += 1;
        self.due = Instant::now() + NEXT_QUESTION;
    }

    /// The answer to the last question, which was sent at `moment`, or its refusal.
    pub(super) fn answer(&mut self, answer: Option<Audience>, moment: Moment) {
        self.breaks = 0;
        self.answered = self.sent;
        self.is_refused = answer.is_none();
        if self.is_refused {
            self.due = Instant::now() + REFUSED;
        }
        self.learn(answer.unwrap_or(Audience::Somebody), moment);
    }

    /// The connection ended at the question. Whether that counts as a refusal from now on.
    pub(super) fn broke(&mut self, moment: Moment) -> bool {
        self.breaks += 1;
        if self.breaks < BREAKS {
            return false;
        }
        let breaks = self.breaks;
        self.answer(None, moment);
        self.breaks = breaks;
        breaks == BREAKS
    }

    /// Something else showed at this moment who listens.
    pub(super) fn learn(&mut self, audience: Audience, moment: Moment) {
        self.audience = Some(audience);
        if audience == Audience::Nobody {
            self.nobody_at = Some(moment);
        }
    }

    /// So many clients received a line that was sent at `moment`.
    pub(super) fn received(&mut self, clients: i64, moment: Moment) {
        // A server that does not answer the question could not say later that somebody listens again.
        if !self.is_refused {
            self.due = Instant::now() + NEXT_QUESTION;
            self.learn(if clients > 0 { Audience::Somebody } else { Audience::Nobody }, moment);
        }
    }

    /// Redis could not be reached at this moment; after that it may answer the question.
    pub(super) fn unreachable(&mut self, moment: Moment) {
        self.learn(Audience::Nobody, moment);
        self.answered = self.sent;
        self.is_refused = false;
    }
}

/// The question: how many clients subscribe to `silvasonic:logs`, and how many patterns are subscribed to, which may match
/// it.
pub(super) const QUESTION: &[u8] =
    b"*3\r\n$6\r\nPUBSUB\r\n$6\r\nNUMSUB\r\n$15\r\nsilvasonic:logs\r\n*2\r\n$6\r\nPUBSUB\r\n$6\r\nNUMPAT\r\n";
/// So many replies are its answer, and so many lines if it is not refused.
pub(super) const REPLIES: usize = 2;
pub(super) const LINES: usize = 5;

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asker {
    /// The thread of the publisher, which wakes up for that.
    Publisher,
    /// The main loop, which is awake at each tick. While PostgreSQL works, Redis answers; the thread that waits for
    /// PostgreSQL reads both answers.
    MainLoop,
}

/// The answer to one half of the question; `None`: the server does not understand it.
pub(super) fn parse(reply: &Value) -> Option<Audience> {
    let count = match reply {
        Value::Array(pair) => match pair.as_slice() {
            [_, Value::Int(count)] => *count,
            _ => return None,
        },
        Value::Int(count) => *count,
        _ => return None,
    };
    Some(if count > 0 { Audience::Somebody } else { Audience::Nobody })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_question_is_two_commands() {
        let mut pipe = redis::pipe();
        pipe.cmd("PUBSUB").arg("NUMSUB").arg("silvasonic:logs").cmd("PUBSUB").arg("NUMPAT");
        assert_eq!((pipe.get_packed_pipeline().as_slice(), pipe.len()), (QUESTION, REPLIES));
    }

    #[test]
    fn the_answer_is_a_count_of_subscribers_or_of_patterns() {
        let numsub = |count| Value::Array(vec![Value::BulkString(b"silvasonic:logs".to_vec()), Value::Int(count)]);
        let table = [
            (numsub(0), Some(Audience::Nobody)),
            (numsub(2), Some(Audience::Somebody)),
            (Value::Int(0), Some(Audience::Nobody)),
            (Value::Int(1), Some(Audience::Somebody)),
            (Value::Array(vec![]), None),
            (Value::Okay, None),
            (Value::Nil, None),
        ];
        for (reply, expected) in table {
            assert_eq!(parse(&reply), expected, "{reply:?}");
        }
    }

    #[test]
    fn a_refusal_counts_as_somebody_until_redis_was_unreachable() {
        let (mut inquiry, moment) = (Inquiry::new(), Moment::now());
        inquiry.answer(Some(Audience::Nobody), moment);
        assert_eq!((inquiry.audience, inquiry.is_refused), (Some(Audience::Nobody), false));
        assert!(!inquiry.broke(moment) && !inquiry.broke(moment));
        assert_eq!(inquiry.audience, Some(Audience::Nobody));
        assert!(inquiry.broke(moment));
        // Told once only.
        assert!(!inquiry.broke(moment));
        assert_eq!((inquiry.audience, inquiry.is_refused), (Some(Audience::Somebody), true));
        inquiry.received(0, moment);
        assert_eq!(inquiry.audience, Some(Audience::Somebody));
        inquiry.unreachable(moment);
        assert_eq!(inquiry.audience, Some(Audience::Nobody));
        inquiry.received(1, moment);
        assert_eq!(inquiry.audience, Some(Audience::Somebody));
    }

    #[test]
    fn the_earliest_second_since_a_moment_allows_for_a_clock_that_was_set_back() {
        let at = Instant::now();
        let moment =
            |second: u64, elapsed: u64| Moment { wall: UNIX_EPOCH + Duration::from_secs(second), at: at + Duration::from_secs(elapsed) };
        let begin = moment(1000, 0);
        for (now, expected) in [(moment(1005, 5), 1000), (moment(9000, 5), 1000), (moment(500, 5), 495), (moment(3, 5), 0)] {
            assert_eq!(begin.earliest_second(&now), expected);
        }
    }
}
