//! From a request to a picture: encode, start, step, decode.

pub mod request;
