//! temp
fn main() {
    for crd in sluice::api::crds() {
        println!("---\n{}", serde_norway::to_string(&crd).unwrap());
    }
}
