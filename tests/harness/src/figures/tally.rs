//! What the operator asked of the apiserver, counted in the audit log by its ServiceAccount.

use std::collections::BTreeMap;

use anyhow::Result;

use super::row::count;
use crate::audit::{Audit, Request};
use crate::operator;

/// The version that a write names which has to create its object: none has it.
const ABSENT: &str = "1";

/// The operator's requests in a stretch of the log, Leases apart: they are renewed at any time.
#[derive(Debug, Default)]
pub struct Tally(Vec<Request>);

impl Tally {
    /// Since a moment.
    pub fn since(audit: &Audit) -> Result<Self> {
        Ok(Self::of(audit.requests()?))
    }

    fn of(requests: Vec<Request>) -> Self {
        let ours = |request: &Request| request.is_from(operator::NAMESPACE, operator::NAME);
        Self(requests.into_iter().filter(|request| ours(request) && request.resource() != "leases").collect())
    }

    /// Every request, watches too.
    pub fn requests(&self) -> usize {
        self.0.len()
    }

    /// Requests that changed something, or should have. Events are counted apart.
    pub fn writes(&self) -> usize {
        self.0.iter().filter(|request| request.is_write() && request.resource() != "events").count()
    }

    /// Events, one for each transition that people are told.
    pub fn events(&self) -> usize {
        self.0.iter().filter(|request| request.is_write() && request.resource() == "events").count()
    }

    /// Gets and lists, watches aside.
    pub fn reads(&self) -> usize {
        self.0.iter().filter(|request| request.is_read()).count()
    }

    /// Writes that lost to somebody else's though they did not make their own fate depend on it.
    pub fn unexpected_conflicts(&self) -> usize {
        self.0.iter().filter(|request| is_unexpected_conflict(request)).count()
    }

    /// Prints how many there were of each kind for each of so many objects.
    pub fn print(&self, objects: usize) {
        let each = |number: usize| count(number) / count(objects);
        let (writes, events, reads) = (each(self.writes()), each(self.events()), each(self.reads()));
        println!("      for each of {objects}: {writes:.2} writes, {events:.2} Events, {reads:.2} reads");
        for (kind, number) in self.kinds() {
            println!("      {:>8.2} {kind}", each(number));
        }
    }

    /// How many of each kind, the most frequent first.
    fn kinds(&self) -> Vec<(String, usize)> {
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for request in &self.0 {
            let conflict = match (request.is_conflict(), is_unexpected_conflict(request)) {
                (true, true) => " (409, unexpected)",
                (true, false) => " (409)",
                (false, _) => "",
            };
            *kinds.entry(request.kind() + conflict).or_default() += 1;
        }
        let mut kinds: Vec<_> = kinds.into_iter().collect();
        kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        kinds
    }
}

fn is_unexpected_conflict(request: &Request) -> bool {
    request.is_write() && request.is_conflict() && !is_conditional(request)
}

/// Whether it names the version it was decided on: the record of an upgrade, the status that freezes the spec, a Service
/// or a Deployment that is there, a deletion. Such a write is meant to fail when something has changed.
fn is_conditional(request: &Request) -> bool {
    let object = request.object_ref.as_ref();
    let guarded = object.is_some_and(|object| match (request.verb.as_str(), object.resource.as_str()) {
        ("delete", _) => true,
        (_, "promotions" | "dataplanes") => object.subresource == "status",
        (_, "services" | "deployments") => object.subresource.is_empty(),
        _ => false,
    });
    guarded && request.only_if().is_some_and(|version| version != ABSENT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn request(verb: &str, resource: &str, subresource: &str, code: u16, version: Option<&str>) -> Request {
        let mut line = json!({
            "requestReceivedTimestamp": "2026-11-27T01:15:51.174000Z",
            "verb": verb,
            "user": { "username": operator::account() },
            "objectRef": { "resource": resource, "subresource": subresource },
            "responseStatus": { "code": code },
        });
        if let Some(version) = version {
            let place = if verb == "delete" { "preconditions" } else { "metadata" };
            line["requestObject"] = json!({ place: { "resourceVersion": version } });
        }
        serde_json::from_value(line).expect("a request")
    }

    #[test]
    fn others_and_leases_are_not_counted_and_events_apart() {
        let mut foreign = request("patch", "services", "", 200, None);
        foreign.user.username = "somebody".into();
        let tally = Tally::of(vec![
            foreign,
            request("update", "leases", "", 200, None),
            request("create", "events", "", 201, None),
            request("patch", "deployments", "", 200, None),
            request("patch", "deployments", "", 200, None),
            request("get", "dataplanes", "", 200, None),
            request("watch", "pods", "", 200, None),
        ]);
        assert_eq!((tally.requests(), tally.writes(), tally.events(), tally.reads()), (5, 2, 1, 1));
        assert_eq!(tally.kinds()[0], ("patch deployments".to_owned(), 2));
    }

    #[test]
    fn a_conflict_is_expected_only_where_the_write_asked_for_it() {
        let rows = [
            (request("patch", "promotions", "status", 409, Some("7")), 0),
            (request("patch", "dataplanes", "status", 409, Some("7")), 0),
            (request("patch", "services", "", 409, Some("7")), 0),
            (request("patch", "services", "", 409, Some(ABSENT)), 1),
            (request("patch", "services", "", 409, None), 1),
            (request("patch", "dataplanes", "", 409, Some("7")), 1),
            (request("patch", "deployments", "", 409, Some("7")), 0),
            (request("patch", "deployments", "", 409, None), 1),
            (request("delete", "deployments", "", 409, Some("7")), 0),
            (request("delete", "deployments", "", 409, None), 1),
            (request("patch", "deployments", "", 200, None), 0),
        ];
        for (request, unexpected) in rows {
            let tally = Tally::of(vec![request]);
            assert_eq!(tally.unexpected_conflicts(), unexpected, "{tally:?}");
        }
    }
}
