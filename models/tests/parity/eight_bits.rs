//! Denoisers that multiply in eight bits against diffusers' with torch's rounding (`tests/reference/eight_bits.py`).

use aquatint_models::pipeline::EightBits;
use candle_core::Tensor;

use crate::common::{Fixture, channels_last};
use crate::{flux_transformer, unet};

const KINDS: [(EightBits, &str); 2] = [(EightBits::F8E4M3, "fp8"), (EightBits::Int8, "int8")];

/// The root of the mean square of a difference.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let square = (a - b).unwrap().sqr().unwrap().mean_all().unwrap();
    f64::from(square.to_scalar::<f32>().unwrap()).sqrt()
}

/// A value between two codes goes to either by its last bit, which is not torch's: so outputs are held against how far
/// rounding has moved the reference's.
#[test]
fn rounded_layers_are_those_that_torch_rounds() {
    let fixture = Fixture::open("eight_bits");
    let expected = |name: &str, part: &str| channels_last(&fixture.tensor(&format!("{name}.{part}")));
    let run = |name: &str, to: Option<EightBits>| {
        if name == "dev" {
            let mut case = flux_transformer::Case::open_in(&fixture, name);
            case.quantisation = to;
            case.run()
        } else {
            unet::Case::open_with(&fixture, name, to).run()
        }
    };
    let mut far = Vec::new();
    for name in ["sd21", "sdxl", "dev"] {
        let exact = expected(name, "y");
        assert!(distance(&run(name, None), &exact) < 1e-4, "{name}");
        for (to, kind) in KINDS {
            let (ours, theirs) = (run(name, Some(to)), expected(name, kind));
            let (apart, moved) = (distance(&ours, &theirs), distance(&theirs, &exact));
            println!(
                "{name}, {kind}: rounding moves it by {moved:.2e}, ours and torch's are {apart:.2e} apart"
            );
            if apart > 0.1 * moved {
                far.push(format!("{name}, {kind}"));
            }
        }
    }
    assert!(far.is_empty(), "{far:?}");
}

/// What a LoRA does: other weights are rounded as the first were, and the first come back to the bit.
#[test]
fn merged_weights_are_rounded_and_undone() {
    let fixture = Fixture::open("eight_bits");
    let case = unet::Case::open_with(&fixture, "sdxl", Some(EightBits::Int8));
    let (weights, layer) = (case.weights(), "mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0");
    let shape = &weights.layer_shapes()[layer];
    let elements = shape.iter().product::<usize>() as u64;
    assert_eq!(weights.weight_bytes(layer).unwrap(), (elements, elements));
    assert!(!weights.is_encoded(layer), "a LoRA need not stay beside it");
    let before = case.run();
    weights.replace(layer, &(weights.base(layer).unwrap() * 1.5).unwrap()).unwrap();
    assert_eq!(weights.weight_bytes(layer).unwrap(), (elements, elements));
    assert!(distance(&case.run(), &before) > 1e-3);
    weights.restore(layer).unwrap();
    assert_eq!(distance(&case.run(), &before), 0.0);
    // Not in the blocks: as it was stored.
    let shape = &weights.layer_shapes()["time_embedding.linear_1"];
    let bytes = 4 * shape.iter().product::<usize>() as u64;
    assert_eq!(weights.weight_bytes("time_embedding.linear_1").unwrap(), (bytes, bytes));
}
