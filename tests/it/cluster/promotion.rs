//! Promotions and rollbacks of a real gateway while its users ask: none of them loses a request.

use anyhow::{Result, ensure};
use sluice_harness::{
    figures::promotion::{Entrance, series},
    kit,
    load::{Kind, Tally},
};

/// Where those who are not in the cluster come from.
const OUTSIDE: &str = "192.0.2.2 ";

#[test]
fn nobody_loses_a_request_while_gateways_are_promoted_and_moved_back() -> Result<()> {
    kit::run(async |kit| {
        let measured = series(kit, Entrance::Service, 5, 2).await?;
        assert_eq!((measured.over_delay.len(), measured.rollbacks.len()), (5, 2));
        ensure!(measured.over_delay.iter().all(|over| *over >= 0.0), "gone too early: {:?}", measured.over_delay);
        let all = Tally::of_all(measured.users.values());
        ensure!(all.lost == 0, "{all:?}");
        for kind in Kind::ALL {
            let asked = measured.users.get(&kind).map_or(0, |tally| tally.requests);
            ensure!(asked > all.requests / 5, "{kind:?}: {asked} of {} requests", all.requests);
        }
        Ok(())
    })
}

/// Who comes from outside is served by Pods of the node that was asked, and of no other.
#[test]
fn nor_with_external_traffic_policy_local() -> Result<()> {
    kit::run(async |kit| {
        let measured = series(kit, Entrance::Node, 2, 1).await?;
        let all = Tally::of_all(measured.users.values());
        ensure!(all.lost == 0 && all.requests > 100, "{all:?}");
        // With the other policy the node would ask in their place.
        let log = kit.kubectl(&["logs", "--selector=app=bluegreen", "--tail=1000"])?;
        ensure!(log.contains(OUTSIDE), "nobody came from {OUTSIDE}: {log}");
        Ok(())
    })
}
