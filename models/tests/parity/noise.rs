//! `TorchGenerator` against `torch.randn`, recorded by `reference/noise.py`.

use std::collections::BTreeSet;

use aquatint_models::noise::TorchGenerator;
use candle_core::{Device, Tensor};

use crate::common::{Fixture, assert_close, channels_last};

/// libm and torch's vectorised logarithm and cosine differ by a few units in the last place.
const TOLERANCE: f32 = 1e-6;

fn numbers(fixture: &Fixture, name: &str) -> Vec<u64> {
    fixture.tensor(name).to_vec1::<i64>().unwrap().into_iter().map(|n| n as u64).collect()
}

/// The positions that the script keeps of a draw of `n`.
fn kept(n: usize) -> Vec<usize> {
    let sieve = (0..n).step_by(997);
    (0..n.min(40)).chain(n.saturating_sub(40)..n).chain(sieve).collect::<BTreeSet<_>>().into_iter().collect()
}

fn tensor(values: Vec<f32>) -> Tensor {
    let n = values.len();
    Tensor::from_vec(values, n, &Device::Cpu).unwrap()
}

#[test]
fn randn_of_every_seed_and_length() {
    let fixture = Fixture::open("noise");
    let (seeds, lengths) = (numbers(&fixture, "seeds"), numbers(&fixture, "lengths"));
    assert_eq!((seeds.len(), *lengths.last().unwrap()), (12, 70_000));
    for seed in seeds {
        for &n in &lengths {
            let drawn = TorchGenerator::new(seed).randn(n as usize);
            assert_eq!(drawn.len(), n as usize);
            let actual = kept(n as usize).into_iter().map(|i| drawn[i]).collect();
            let name = format!("{seed}.{n}");
            assert_close(&name, &tensor(actual), &fixture.tensor(&name), TOLERANCE);
        }
    }
}

#[test]
fn successive_draws_continue_the_stream() {
    let fixture = Fixture::open("noise");
    let lengths = numbers(&fixture, "successive");
    for seed in numbers(&fixture, "seeds") {
        let mut generator = TorchGenerator::new(seed);
        let actual = lengths.iter().flat_map(|&n| generator.randn(n as usize)).collect();
        let name = format!("{seed}.successive");
        assert_close(&name, &tensor(actual), &fixture.tensor(&name), TOLERANCE);
    }
}

#[test]
fn latents_are_drawn_channel_by_channel() {
    let fixture = Fixture::open("noise");
    let actual = TorchGenerator::new(7).latents(4, 3, 5, &Device::Cpu).unwrap();
    assert_close("latents", &actual, &channels_last(&fixture.tensor("latents")), TOLERANCE);
}

#[test]
fn a_seed_counts_modulo_two_to_the_32() {
    assert_eq!(TorchGenerator::new(42).randn(20), TorchGenerator::new((1 << 32) + 42).randn(20));
    assert_ne!(TorchGenerator::new(42).randn(20), TorchGenerator::new(43).randn(20));
}
