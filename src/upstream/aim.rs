//! Which endpoint a request wants, where that is not all the same.

/// What decides which endpoint a request goes to, beside the backend's policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Aim {
    #[default]
    Anywhere,
    /// The hash of its key: requests of one key meet at one endpoint, for as long as that is fit.
    Key(u64),
    /// The one that this tells from others, if it is fit.
    Endpoint(u64),
    /// The one that a random number falls to, among those that are fit.
    Seat(u64),
}
