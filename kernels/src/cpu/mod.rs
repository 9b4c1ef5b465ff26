//! What the ops' CPU arms are made of.

mod gemm;
mod level;
pub(crate) mod math;
mod panels;
mod parallel;
mod quantised;
mod simd;
mod tensor;
mod tile;
mod weight;

pub(crate) use gemm::{Epilogue, Rows, multiply};
pub(crate) use level::{Level, by_level};
pub(crate) use panels::Line;
pub(crate) use parallel::{STEPS_A_FLOAT, Shared, for_each_chunk, for_each_piece};
pub(crate) use tensor::{elements, from_chunks, from_parts, written};
pub(crate) use tile::{PANEL, multiply_all};
pub(crate) use weight::CpuWeight;
