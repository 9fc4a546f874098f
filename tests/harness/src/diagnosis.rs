//! What there is to know of a namespace when something in it went wrong.

use crate::kubectl::Kubectl;

/// The conditions of every object; a DataPlane has them in two places.
const CONDITIONS: &str = r#"{{define "c"}}{{range .conditions}}    {{.type}}={{.status}} {{.reason}}: {{.message}}{{"\n"}}{{end}}{{end -}}
{{range .items}}  {{.kind}}/{{.metadata.name}}{{"\n"}}{{with .status}}{{template "c" .}}{{with .rollout}}{{template "c" .}}{{end}}{{end}}{{end}}"#;

/// Prints a namespace's events, conditions and logs.
pub fn print(kubectl: &Kubectl, namespace: &str) {
    let kubectl = kubectl.namespaced(namespace);
    eprintln!("---- namespace {namespace} ----");
    print_answer(&kubectl, "events", &["get", "events", "--sort-by=.lastTimestamp"]);
    let kinds = kubectl.run(&["api-resources", "--namespaced", "--verbs=list", "--output=name"]).unwrap_or_default();
    // Events were printed; Secrets are nobody's business.
    let kinds: Vec<&str> = kinds.lines().filter(|kind| !kind.starts_with("events") && *kind != "secrets").collect();
    let template = format!("go-template={CONDITIONS}");
    print_answer(&kubectl, "conditions", &["get", &kinds.join(","), "--output", &template]);
    let every_pod = ["logs", "--selector=!none", "--all-containers", "--prefix", "--tail=50", "--max-log-requests=50"];
    print_answer(&kubectl, "Pod logs", &every_pod);
}

fn print_answer(kubectl: &Kubectl, title: &str, arguments: &[&str]) {
    match kubectl.run(arguments) {
        Ok(text) => eprintln!("{title}:\n{text}"),
        Err(error) => eprintln!("{title}: {error:#}"),
    }
}
