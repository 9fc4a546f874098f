//! PURE. Facts -> phase: one exhaustive match, and the table of all its rows as its test.

use super::facts::{Candidate, Facts, Judgement, Traffic, Upgrade, Wanted};
use crate::model::{Phase, Strategy};

/// Where the upgrade stands.
#[must_use]
pub fn of(facts: &Facts) -> Phase {
    match facts.traffic {
        Traffic::Moved => match (facts.stopped, facts.gates) {
            // It begins its way back with the next pass, when that is on record.
            (true, _) | (false, Judgement::Failed | Judgement::Held) => Phase::Switching,
            (false, Judgement::Undecided) => Phase::Verifying,
            (false, Judgement::Passed) => Phase::Draining,
        },
        Traffic::Moving | Traffic::Returning | Traffic::Returned => Phase::Switching,
        // Until the first Service is switched everything is asked once more: whatever broke voids the commit.
        Traffic::Armed | Traffic::Stable => at_rest_or_staged(facts),
    }
}

fn at_rest_or_staged(facts: &Facts) -> Phase {
    match (facts.founded, facts.strategy, facts.wanted, facts.upgrade) {
        (false, ..) => Phase::Founding,
        (true, Strategy::InPlace, Wanted::New, _) if facts.gated || facts.paused => Phase::Ungated,
        (true, Strategy::InPlace, ..) => Phase::InPlace,
        (true, Strategy::BlueGreen, Wanted::Live, _) => Phase::Settled,
        (true, Strategy::BlueGreen, Wanted::Refused, Upgrade::Absent | Upgrade::Rejected) => Phase::Settled,
        (true, Strategy::BlueGreen, Wanted::New, Upgrade::Rejected) => Phase::Rejected,
        (true, Strategy::BlueGreen, Wanted::New, Upgrade::Absent | Upgrade::Open)
        | (true, Strategy::BlueGreen, Wanted::Refused, Upgrade::Open) => staged(facts),
    }
}

fn staged(facts: &Facts) -> Phase {
    match (facts.candidate, facts.governed, facts.gates) {
        (Candidate::NotReady, ..) => Phase::Staging,
        (_, true, Judgement::Failed | Judgement::Held) => Phase::Refused,
        (Candidate::Silent, true, _) | (_, true, Judgement::Undecided) => Phase::Judging,
        // Evidence stands while a fresh operator asks the Service again, but nothing moves on a guess.
        (Candidate::Unknown, true, Judgement::Passed) => Phase::Waiting,
        (Candidate::Answers, true, Judgement::Passed) | (_, false, _) => {
            if facts.approved && !facts.paused {
                Phase::Switching
            } else {
                Phase::Waiting
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTLED: Facts = Facts {
        strategy: Strategy::BlueGreen,
        founded: true,
        wanted: Wanted::Live,
        governed: true,
        gated: true,
        paused: false,
        upgrade: Upgrade::Absent,
        candidate: Candidate::NotReady,
        gates: Judgement::Undecided,
        approved: false,
        stopped: false,
        traffic: Traffic::Stable,
    };
    const STAGED: Facts = Facts { wanted: Wanted::New, upgrade: Upgrade::Open, ..SETTLED };
    const JUDGED: Facts = Facts { candidate: Candidate::Answers, gates: Judgement::Passed, ..STAGED };
    const FREE: Facts = Facts { governed: false, gated: false, gates: Judgement::Passed, ..STAGED };

    /// Every phase and every transition of the design, a row each.
    #[test]
    fn every_phase_and_transition_is_a_row() {
        #[rustfmt::skip]
        let rows = [
            ("nothing was ever promoted", Phase::Founding, Facts { founded: false, wanted: Wanted::New, ..SETTLED }),
            ("nothing was ever promoted and the wish is refused", Phase::Founding, Facts { founded: false, wanted: Wanted::Refused, ..SETTLED }),
            ("founding does not need a strategy", Phase::Founding, Facts { founded: false, strategy: Strategy::InPlace, ..SETTLED }),
            ("founded and live is wanted", Phase::Settled, SETTLED),
            ("an approval at rest is kept for the next revision", Phase::Settled, Facts { approved: true, ..SETTLED }),
            ("a refused wish at rest changes nothing", Phase::Settled, Facts { wanted: Wanted::Refused, ..SETTLED }),
            ("the wish changed", Phase::Staging, Facts { wanted: Wanted::New, ..SETTLED }),
            ("the candidate is not ready", Phase::Staging, STAGED),
            ("the candidate is not ready though approved", Phase::Staging, Facts { approved: true, ..STAGED }),
            ("a refused wish does not stop the moving upgrade", Phase::Staging, Facts { wanted: Wanted::Refused, ..STAGED }),
            ("ready, connection not asked yet", Phase::Judging, Facts { candidate: Candidate::Unknown, ..STAGED }),
            ("ready, the preview Service is silent", Phase::Judging, Facts { candidate: Candidate::Silent, ..STAGED }),
            ("ready and answering, gates undecided", Phase::Judging, Facts { candidate: Candidate::Answers, ..STAGED }),
            ("an approval does not outrun the gates", Phase::Judging, Facts { candidate: Candidate::Answers, approved: true, ..STAGED }),
            ("gates passed but the Service fell silent", Phase::Judging, Facts { candidate: Candidate::Silent, ..JUDGED }),
            ("a gate was added while a person is awaited", Phase::Judging, Facts { gates: Judgement::Undecided, approved: true, ..JUDGED }),
            ("Pods broke while judging", Phase::Staging, Facts { candidate: Candidate::NotReady, ..JUDGED }),
            ("a gate said no", Phase::Refused, Facts { gates: Judgement::Failed, ..JUDGED }),
            ("a gate could not say", Phase::Refused, Facts { gates: Judgement::Held, ..JUDGED }),
            ("an approval does not outrank a no", Phase::Refused, Facts { gates: Judgement::Failed, approved: true, ..JUDGED }),
            ("an approval does not outrank missing knowledge", Phase::Refused, Facts { gates: Judgement::Held, approved: true, ..JUDGED }),
            ("a refused upgrade whose Pods break is staged again", Phase::Staging, Facts { gates: Judgement::Failed, candidate: Candidate::NotReady, ..JUDGED }),
            ("a refused wish behind a refused upgrade", Phase::Refused, Facts { gates: Judgement::Failed, wanted: Wanted::Refused, ..JUDGED }),
            ("all gates passed, nobody approved", Phase::Waiting, JUDGED),
            ("all gates passed, approved, the Service not asked since a restart", Phase::Waiting, Facts { candidate: Candidate::Unknown, approved: true, ..JUDGED }),
            ("gates emptied while pending", Phase::Waiting, Facts { gated: false, ..JUDGED }),
            ("no policy, ready, nobody approved", Phase::Waiting, Facts { candidate: Candidate::Unknown, ..FREE }),
            ("no policy, not ready", Phase::Staging, FREE),
            ("no policy, ready and approved", Phase::Switching, Facts { candidate: Candidate::Unknown, approved: true, ..FREE }),
            ("approved while a policy is paused", Phase::Waiting, Facts { approved: true, paused: true, ..JUDGED }),
            ("gates are asked while a policy is paused", Phase::Judging, Facts { gates: Judgement::Undecided, paused: true, ..JUDGED }),
            ("armed, and then paused", Phase::Waiting, Facts { approved: true, paused: true, traffic: Traffic::Armed, ..JUDGED }),
            ("paused when a Service has switched: only forward", Phase::Switching, Facts { paused: true, traffic: Traffic::Moving, ..JUDGED }),
            ("paused while the old side drains", Phase::Draining, Facts { paused: true, traffic: Traffic::Moved, ..JUDGED }),
            ("reverted while a person is awaited", Phase::Settled, Facts { wanted: Wanted::Live, ..JUDGED }),
            ("all gates passed and approved", Phase::Switching, Facts { approved: true, ..JUDGED }),
            ("armed, everything still holds", Phase::Switching, Facts { approved: true, traffic: Traffic::Armed, ..JUDGED }),
            ("armed, a judged Pod was replaced", Phase::Judging, Facts { approved: true, traffic: Traffic::Armed, gates: Judgement::Undecided, ..JUDGED }),
            ("armed, the candidate broke", Phase::Staging, Facts { approved: true, traffic: Traffic::Armed, candidate: Candidate::NotReady, ..JUDGED }),
            ("armed, the approval was taken back", Phase::Waiting, Facts { traffic: Traffic::Armed, ..JUDGED }),
            ("one Service switched: only forward", Phase::Switching, Facts { traffic: Traffic::Moving, candidate: Candidate::NotReady, gates: Judgement::Undecided, ..STAGED }),
            ("switched, traffic not yet there", Phase::Switching, Facts { traffic: Traffic::Moving, ..JUDGED }),
            ("too late: back to stable", Phase::Switching, Facts { traffic: Traffic::Returning, ..JUDGED }),
            ("back at stable", Phase::Switching, Facts { traffic: Traffic::Returned, ..JUDGED }),
            ("the revision had to be moved back", Phase::Rejected, Facts { upgrade: Upgrade::Rejected, wanted: Wanted::New, ..SETTLED }),
            ("given up before it was ready", Phase::Rejected, Facts { upgrade: Upgrade::Rejected, ..STAGED }),
            ("given up though it passed and was approved", Phase::Rejected, Facts { upgrade: Upgrade::Rejected, approved: true, ..JUDGED }),
            ("given up when armed", Phase::Rejected, Facts { upgrade: Upgrade::Rejected, approved: true, traffic: Traffic::Armed, ..JUDGED }),
            ("given up behind a refused wish", Phase::Settled, Facts { upgrade: Upgrade::Rejected, wanted: Wanted::Refused, ..JUDGED }),
            ("a rejection outranks evidence and approval", Phase::Rejected, Facts { upgrade: Upgrade::Rejected, approved: true, gates: Judgement::Passed, ..JUDGED }),
            ("a rejected revision is taken up again", Phase::Staging, Facts { upgrade: Upgrade::Open, ..STAGED }),
            ("somebody wants it back while traffic moves", Phase::Switching, Facts { stopped: true, traffic: Traffic::Moving, ..JUDGED }),
            ("somebody wants it back while the old side drains", Phase::Switching, Facts { stopped: true, traffic: Traffic::Moved, ..JUDGED }),
            ("a failed revision is not what is wanted any more", Phase::Settled, Facts { upgrade: Upgrade::Rejected, ..SETTLED }),
            ("another revision after a failed one", Phase::Staging, Facts { wanted: Wanted::New, ..SETTLED }),
            ("traffic has moved", Phase::Draining, Facts { traffic: Traffic::Moved, ..JUDGED }),
            ("traffic has moved, and gates judge behind the live Services", Phase::Verifying, Facts { traffic: Traffic::Moved, gates: Judgement::Undecided, ..JUDGED }),
            ("a later edit waits for the verdict", Phase::Verifying, Facts { traffic: Traffic::Moved, gates: Judgement::Undecided, wanted: Wanted::New, upgrade: Upgrade::Absent, ..JUDGED }),
            ("a gate said no behind the live Services: back", Phase::Switching, Facts { traffic: Traffic::Moved, gates: Judgement::Failed, ..JUDGED }),
            ("a gate could not say behind the live Services: back", Phase::Switching, Facts { traffic: Traffic::Moved, gates: Judgement::Held, ..JUDGED }),
            ("somebody wants it back while gates judge", Phase::Switching, Facts { traffic: Traffic::Moved, gates: Judgement::Undecided, stopped: true, ..JUDGED }),
            ("a later edit waits for the drain", Phase::Draining, Facts { traffic: Traffic::Moved, wanted: Wanted::New, upgrade: Upgrade::Absent, ..JUDGED }),
            ("drained", Phase::Settled, SETTLED),
            ("no strategy, no policy: in place", Phase::InPlace, Facts { strategy: Strategy::InPlace, ..FREE }),
            ("strategy removed while a gated revision is pending", Phase::Ungated, Facts { strategy: Strategy::InPlace, ..JUDGED }),
            ("strategy removed while a policy without gates is paused", Phase::Ungated, Facts { strategy: Strategy::InPlace, gated: false, paused: true, ..JUDGED }),
            ("strategy removed at rest", Phase::InPlace, Facts { strategy: Strategy::InPlace, ..SETTLED }),
        ];
        for (row, phase, facts) in rows {
            assert_eq!(of(&facts), phase, "{row}");
        }
    }

    /// The first promise, over every combination of facts there is.
    #[test]
    fn nothing_begins_to_move_unless_ready_passed_and_approved() {
        combinations::each(|facts| {
            if of(&facts) == Phase::Switching && matches!(facts.traffic, Traffic::Stable | Traffic::Armed) {
                assert!(facts.approved && !facts.paused && facts.candidate != Candidate::NotReady, "{facts:?}");
                assert!(
                    !facts.governed || (facts.gates == Judgement::Passed && facts.candidate == Candidate::Answers),
                    "{facts:?}"
                );
            }
        });
    }

    /// No path leads from a rejection to a switch.
    #[test]
    fn what_was_rejected_does_not_begin_to_move() {
        combinations::each(|facts| {
            if facts.upgrade == Upgrade::Rejected && matches!(facts.traffic, Traffic::Stable | Traffic::Armed) {
                assert_ne!(of(&facts), Phase::Switching, "{facts:?}");
            }
        });
    }

    /// The replaced side is let go only when every gate has passed, and nobody wants it back.
    #[test]
    fn nothing_is_final_unless_it_passed_behind_the_live_services() {
        combinations::each(|facts| {
            if of(&facts) == Phase::Draining {
                assert!(
                    facts.traffic == Traffic::Moved && facts.gates == Judgement::Passed && !facts.stopped,
                    "{facts:?}"
                );
            }
        });
    }

    mod combinations {
        use super::*;

        /// Calls `check` with every combination of facts.
        pub(super) fn each(check: impl Fn(Facts)) {
            let bools = [false, true];
            for strategy in [Strategy::InPlace, Strategy::BlueGreen] {
                for wanted in [Wanted::Live, Wanted::New, Wanted::Refused] {
                    for upgrade in [Upgrade::Absent, Upgrade::Open, Upgrade::Rejected] {
                        for candidate in
                            [Candidate::NotReady, Candidate::Unknown, Candidate::Silent, Candidate::Answers]
                        {
                            for gates in [Judgement::Undecided, Judgement::Failed, Judgement::Held, Judgement::Passed] {
                                for traffic in [
                                    Traffic::Stable,
                                    Traffic::Armed,
                                    Traffic::Moving,
                                    Traffic::Returning,
                                    Traffic::Returned,
                                    Traffic::Moved,
                                ] {
                                    for bits in 0..64_usize {
                                        let bit = |n: usize| bools[(bits >> n) & 1];
                                        check(Facts {
                                            strategy,
                                            founded: bit(0),
                                            wanted,
                                            governed: bit(1),
                                            gated: bit(2),
                                            paused: bit(4),
                                            upgrade,
                                            candidate,
                                            gates,
                                            approved: bit(3),
                                            stopped: bit(5),
                                            traffic,
                                        });
                                    }
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
