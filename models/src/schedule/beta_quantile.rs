//! The quantile function of the Beta(0.6, 0.6) distribution, by which "beta sigmas" are spaced.

const SHAPE: f64 = 0.6;

/// The `x` below which a share `p` of Beta(0.6, 0.6) lies; `p` and `x` are 0 to 1.
///
/// The distribution is symmetric, so the upper half mirrors the lower, where Newton's method is run on `x^0.6`: of
/// that the distribution function is almost linear.
pub fn beta_quantile(p: f64) -> f64 {
    if p > 0.5 {
        return 1.0 - beta_quantile(1.0 - p);
    }
    if p <= 0.0 {
        return 0.0;
    }
    // The integral up to 1/2 is half the whole, which gives the normalisation without a gamma function.
    let whole = 2.0 * integral(0.5);
    let target = p * whole;
    let mut u = target * SHAPE;
    for _ in 0..20 {
        let x = u.powf(1.0 / SHAPE);
        // d integral / d u = (1 - x)^(SHAPE - 1) / SHAPE
        let change = (target - integral(x)) * SHAPE * (1.0 - x).powf(1.0 - SHAPE);
        u += change;
        if change.abs() <= 1e-16 * u {
            break;
        }
    }
    u.powf(1.0 / SHAPE)
}

/// `integral of (s (1 - s))^(SHAPE - 1) ds` from 0 to `x <= 1/2`, by the binomial series of the second factor.
fn integral(x: f64) -> f64 {
    let (mut sum, mut binomial) = (0.0, 1.0);
    for n in 0..64 {
        let k = f64::from(n);
        sum += binomial / (SHAPE + k);
        binomial *= (1.0 - SHAPE + k) / (k + 1.0) * x;
    }
    x.powf(SHAPE) * sum
}

#[cfg(test)]
mod tests {
    use super::beta_quantile;

    #[test]
    fn values_of_scipy() {
        // [scipy.stats.beta.ppf(p, 0.6, 0.6) for p in ...]
        let expected = [
            (1e-6, 1.855_882_462_405_304_3e-10),
            (0.001, 1.855_873_851_745_199e-5),
            (0.05, 1.255_445_687_361_139_9e-2),
            (0.25, 0.175_680_378_652_694_98),
            (1.0 / 3.0, 0.275_413_290_777_623_4),
            (0.49, 0.486_128_914_278_159_9),
            (0.75, 0.824_319_621_347_305),
            (0.95, 0.987_445_543_126_388_5),
            (0.999, 0.999_981_441_261_482_6),
        ];
        for (p, x) in expected {
            assert!((beta_quantile(p) - x).abs() <= 1e-13, "{p}: {} is not {x}", beta_quantile(p));
        }
    }

    #[test]
    fn ends_and_middle() {
        assert_eq!((beta_quantile(0.0), beta_quantile(1.0)), (0.0, 1.0));
        assert!((beta_quantile(0.5) - 0.5).abs() < 1e-15);
    }
}
