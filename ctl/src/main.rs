//! Placeholder until the command line is mounted: the modules compile and are tested.
#![allow(dead_code)]

mod client;
mod pki;

fn main() {}
