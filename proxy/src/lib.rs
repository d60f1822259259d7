//! The data plane.

pub mod nft;
pub mod redirect;
