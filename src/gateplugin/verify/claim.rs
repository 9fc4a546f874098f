//! What somebody says to have signed, before any of it is believed.

/// A claim: these bytes were signed by somebody, and a log may have seen it.
#[derive(Clone, Debug, Default)]
pub(super) struct Claim {
    /// What was signed.
    pub(super) signed: Vec<u8>,
    /// The signatures of it.
    pub(super) signatures: Vec<Vec<u8>>,
    /// The part of it whose sha256 is in the log.
    pub(super) logged: Vec<u8>,
    /// The certificate of who signed, in DER; none where a key is known without.
    pub(super) certificate: Option<Vec<u8>>,
    /// What the log is said to have of it.
    pub(super) entries: Vec<Entry>,
}

/// An entry of a transparency log, with the log's promise.
#[derive(Clone, Debug, Default)]
pub(super) struct Entry {
    /// sha256 of the log's public key.
    pub(super) log: Vec<u8>,
    /// Its number there.
    pub(super) index: i64,
    /// Seconds since 1970, when it came there.
    pub(super) time: i64,
    /// What it says, as base64 of JSON.
    pub(super) body: String,
    /// The log's signature of all of the above.
    pub(super) promise: Vec<u8>,
}
