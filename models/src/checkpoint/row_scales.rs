//! Scales that stand beside weights of eight-bit floats: `layer.scale_weight` or `layer.weight_scale` for
//! `layer.weight`, one number or one for each row.
//!
//! The file then marks itself with a tensor `scaled_fp8`, or the layer with one, `comfy_quant`. Scales of a layer's input (`scale_input`, `input_scale`) are
//! for products in eight bits: with a decoded weight nothing is to be done about them.

/// Names of a weight's scales within its layer.
const OF_WEIGHTS: [&str; 2] = ["scale_weight", "weight_scale"];
const OF_INPUTS: [&str; 2] = ["scale_input", "input_scale"];
/// Marks of a file and of a layer.
const MARK: &str = "scaled_fp8";
const MARK_OF_LAYER: &str = "comfy_quant";

type ShapeOf<'a> = &'a dyn Fn(&str) -> Option<Vec<usize>>;

fn layer_and_param(name: &str) -> (&str, &str) {
    name.rsplit_once('.').unwrap_or(("", name))
}

/// Whether a tensor is only there for the sake of another one.
pub(super) fn belongs_to_another(name: &str, shape_of: ShapeOf<'_>) -> bool {
    let (layer, param) = layer_and_param(name);
    let beside = OF_WEIGHTS.contains(&param) || OF_INPUTS.contains(&param) || param == MARK_OF_LAYER;
    param == MARK || beside && shape_of(&format!("{layer}.weight")).is_some()
}

/// The name of a tensor's scales. The error is a reason.
pub(super) fn of(name: &str, shape_of: ShapeOf<'_>) -> Result<Option<String>, String> {
    let (layer, "weight") = layer_and_param(name) else { return Ok(None) };
    let mut found = OF_WEIGHTS.iter().map(|scale| format!("{layer}.{scale}"));
    let Some((scales, shape)) = found.find_map(|name| Some((name.clone(), shape_of(&name)?))) else {
        return Ok(None);
    };
    let rows = shape_of(name).and_then(|shape| shape.first().copied()).unwrap_or(0);
    let one = shape.iter().all(|&extent| extent == 1);
    let by_row = shape.first() == Some(&rows) && shape.iter().skip(1).all(|&extent| extent == 1);
    if rows > 0 && (one || by_row) {
        return Ok(Some(scales));
    }
    Err(format!("{scales} has shape {shape:?}: one scale or one for each of the {rows} rows is supported"))
}
