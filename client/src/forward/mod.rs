//! The forward tunnel's client side.

mod plan;
