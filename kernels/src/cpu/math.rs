//! Elementary functions that vectorise, and the activations made of them.

use super::by_level;
use crate::Activation;

/// `a * b + c`; `FUSED` machines round it once.
#[inline(always)]
pub(crate) fn mul_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// `e^x` for `x <= 88`, to 2 units in the last place. 0 where the result would be subnormal; NaN stays NaN.
///
/// Source: the polynomial of Cephes' `expf` (Moshier) on `[-ln 2 / 2, ln 2 / 2]`.
#[inline(always)]
pub(crate) fn exp_below_88<const FUSED: bool>(x: f32) -> f32 {
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let shifted = mul_add::<FUSED>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = mul_add::<FUSED>(n, -LN_2_HIGH, x);
    let r = mul_add::<FUSED>(n, -LN_2_LOW, r);
    let mut p = 1.987_569_1e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = mul_add::<FUSED>(p, r, c);
    }
    let p = mul_add::<FUSED>(p * r, r, r) + 1.0;
    let scaled = f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23));
    // A comparison that NaN fails, so that it comes through.
    if x < -87.336_54 { 0.0 } else { scaled }
}

/// `e^x`, as [`exp_below_88`], for any `x`.
#[inline(always)]
pub(crate) fn exp<const FUSED: bool>(x: f32) -> f32 {
    if x > 88.722_83 { f32::INFINITY } else { exp_below_88::<FUSED>(x) }
}

/// Folds sixteen lanes into one, halves first: the order is fixed, and each step is one instruction.
#[inline(always)]
pub(crate) fn fold(mut lanes: [f32; 16], f: impl Fn(f32, f32) -> f32) -> f32 {
    for half in [8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] = f(lanes[i], lanes[i + half]);
        }
    }
    lanes[0]
}

/// `1 / (1 + e^-x)`
#[inline(always)]
fn sigmoid<const FUSED: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FUSED>(-x))
}

/// `x * sigmoid(x)`
#[inline(always)]
pub(crate) fn silu<const FUSED: bool>(x: f32) -> f32 {
    x / (1.0 + exp::<FUSED>(-x))
}

/// `x * Phi(x)` with `Phi(-a) = e^(-a^2/2) t P(t)`, `t = 1 / (1 + 0.3 a)`: the form of Abramowitz and Stegun 7.1.26.
/// `P` is fitted to a relative error of 5e-8 on `0 <= a <= 9`; beyond, the result is 0 or `x`.
#[inline(always)]
pub(crate) fn gelu<const FUSED: bool>(x: f32) -> f32 {
    const P: [f32; 8] = [
        0.119_605_49,
        0.121_105_75,
        0.097_783_64,
        0.135_421_04,
        -0.066_404_04,
        0.219_972_65,
        -0.165_020_39,
        0.037_535_87,
    ];
    let a = x.abs();
    let t = 1.0 / mul_add::<FUSED>(0.3, a, 1.0);
    let mut p = P[7];
    for i in (0..7).rev() {
        p = mul_add::<FUSED>(p, t, P[i]);
    }
    let tail = p * t * exp_below_88::<FUSED>(-0.5 * a * a);
    x * if x < 0.0 { tail } else { 1.0 - tail }
}

/// `0.5 x (1 + tanh(u))` is `x * sigmoid(2 u)`.
#[inline(always)]
pub(crate) fn gelu_tanh<const FUSED: bool>(x: f32) -> f32 {
    const SQRT_8_OVER_PI: f32 = 1.595_769_1;
    x * sigmoid::<FUSED>(SQRT_8_OVER_PI * x * mul_add::<FUSED>(0.044715 * x, x, 1.0))
}

/// [`activate`] within a function compiled for a level.
#[inline(always)]
pub(crate) fn activate_body<const FUSED: bool>(activation: Activation, x: &mut [f32]) {
    // One loop a function, so that each vectorises.
    match activation {
        Activation::None => {}
        Activation::Silu => x.iter_mut().for_each(|x| *x = silu::<FUSED>(*x)),
        Activation::Gelu => x.iter_mut().for_each(|x| *x = gelu::<FUSED>(*x)),
        Activation::GeluTanh => x.iter_mut().for_each(|x| *x = gelu_tanh::<FUSED>(*x)),
        Activation::QuickGelu => x.iter_mut().for_each(|x| *x *= sigmoid::<FUSED>(1.702 * *x)),
        Activation::Relu => x.iter_mut().for_each(|x| *x = if *x < 0.0 { 0.0 } else { *x }),
    }
}

by_level! {
    /// Applies `activation` to every element.
    pub(crate) fn activate(activation: Activation, x: &mut [f32]) = activate_body;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Level;

    fn exp_all<const FUSED: bool>(x: &mut [f32]) {
        x.iter_mut().for_each(|x| *x = exp::<FUSED>(*x));
    }

    by_level! { fn exps(x: &mut [f32]) = exp_all; }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for level in Level::available() {
            let x: Vec<f32> = (-87_000..88_700).map(|i| i as f32 * 1e-3 + 1e-4).collect();
            let mut y = x.clone();
            exps(level, &mut y);
            for (x, y) in x.iter().zip(y) {
                let exact = f64::from(*x).exp();
                let unit = f64::from((exact as f32).next_up() - exact as f32);
                assert!(
                    (f64::from(y) - exact).abs() <= 2.0 * unit,
                    "{level:?}: exp({x}) is {exact}, got {y}"
                );
            }
            let mut edges = [f32::NEG_INFINITY, -1e9, -88.0, 0.0, 88.8, 1e9, f32::INFINITY, f32::NAN];
            exps(level, &mut edges);
            assert_eq!(edges[..7], [0.0, 0.0, 0.0, 1.0, f32::INFINITY, f32::INFINITY, f32::INFINITY]);
            assert!(edges[7].is_nan());
        }
    }

    /// The formulas written out in f64; `erf` is the series of its definition.
    fn exact(activation: Activation, x: f64) -> f64 {
        let erf = |z: f64| {
            let (mut term, mut sum) = (z, z);
            for n in 1..200 {
                term *= -z * z / f64::from(n);
                sum += term / f64::from(2 * n + 1);
            }
            sum * std::f64::consts::FRAC_2_SQRT_PI
        };
        match activation {
            Activation::None => x,
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Gelu if x < -5.0 => 0.0,
            Activation::Gelu if x > 5.0 => x,
            Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
            Activation::GeluTanh => {
                let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
                0.5 * x * (1.0 + u.tanh())
            }
            Activation::QuickGelu => x / (1.0 + (-1.702 * x).exp()),
            Activation::Relu => x.max(0.0),
        }
    }

    #[test]
    fn activations_are_their_formulas() {
        let x: Vec<f32> = (-20_000..20_000).map(|i| i as f32 * 5e-4).chain([-1e4, 1e4, 0.0]).collect();
        use Activation::*;
        for (level, f) in Level::available()
            .into_iter()
            .flat_map(|l| [None, Silu, Gelu, GeluTanh, QuickGelu, Relu].map(|f| (l, f)))
        {
            let mut y = x.clone();
            activate(level, f, &mut y);
            for (x, y) in x.iter().zip(y) {
                let expected = exact(f, f64::from(*x));
                let allowed =
                    1e-6 * expected.abs().max(1.0) + if f == Gelu && x.abs() > 5.0 { 1e-5 } else { 0.0 };
                assert!(
                    (f64::from(y) - expected).abs() <= allowed,
                    "{level:?}: {f:?}({x}) is {expected}, got {y}"
                );
            }
            let mut nan = [f32::NAN; 20];
            activate(level, f, &mut nan);
            assert!(nan.iter().all(|v| v.is_nan()), "{level:?}: {f:?} hides NaN");
        }
    }
}
