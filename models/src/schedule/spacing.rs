//! Which of the training timesteps a run of a few steps visits.
//!
//! Source: Lin et al. 2023, table 2, <https://arxiv.org/abs/2305.08891>; arithmetic and rounding as in numpy.

/// The way the timesteps are spread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spacing {
    /// Multiples of a whole number of timesteps, from 0 on.
    Leading,
    /// Evenly from the last timestep down.
    Trailing,
    /// Evenly, both ends included.
    Linspace,
}

impl Spacing {
    /// `n` timesteps of `0..train`, the noisiest first. Those of `Linspace` need not be whole.
    ///
    /// `offset` is added by `Leading`.
    pub fn timesteps(self, train: usize, n: usize, offset: usize) -> Vec<f64> {
        match self {
            Self::Leading => leading(train / n, n, offset),
            Self::Trailing => trailing(train as f64, train as f64 / n as f64),
            Self::Linspace => {
                let mut t = linspace(0.0, train as f64 - 1.0, n);
                t.reverse();
                t
            }
        }
    }

    /// The same for the solvers that count the clean sample as the last of their points, and so never visit
    /// timestep 0 with `Leading` and `Linspace`: whole numbers from the first `last` of `train` timesteps.
    pub fn solver_timesteps(self, train: usize, last: usize, n: usize, offset: usize) -> Vec<f64> {
        let mut t = match self {
            Self::Leading => leading(last / (n + 1), n + 1, offset),
            Self::Trailing => return trailing(last as f64, train as f64 / n as f64),
            Self::Linspace => {
                let t = linspace(0.0, last as f64 - 1.0, n + 1);
                t.into_iter().rev().map(f64::round_ties_even).collect()
            }
        };
        t.pop();
        t
    }
}

fn leading(ratio: usize, n: usize, offset: usize) -> Vec<f64> {
    (0..n).rev().map(|i| (i * ratio) as f64 + offset as f64).collect()
}

/// `np.arange(start, 0, -step).round() - 1`. Rounding makes numpy yield one value more at some lengths (61 steps of
/// 1000, for one), which would be timestep -1: it is left out.
fn trailing(start: f64, step: f64) -> Vec<f64> {
    let n = (start / step).ceil() as usize;
    // numpy multiplies the difference of the first two values, which is not the step to the last bit.
    let difference = (start - step) - start;
    let t = (0..n).map(|i| (start + i as f64 * difference).round_ties_even() - 1.0);
    t.filter(|t| *t >= 0.0).collect()
}

/// `np.linspace(start, stop, n)`.
pub(crate) fn linspace(start: f64, stop: f64, n: usize) -> Vec<f64> {
    let step = if n > 1 { (stop - start) / (n - 1) as f64 } else { 0.0 };
    let mut values: Vec<f64> = (0..n).map(|i| i as f64 * step + start).collect();
    if let (Some(end), true) = (values.last_mut(), n > 1) {
        *end = stop;
    }
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_steps_of_a_thousand() {
        // Table 2 of the paper, with timesteps counted from 0.
        let leading = [900.0, 800.0, 700.0, 600.0, 500.0, 400.0, 300.0, 200.0, 100.0, 0.0];
        assert_eq!(Spacing::Leading.timesteps(1000, 10, 0), leading);
        let trailing = [999.0, 899.0, 799.0, 699.0, 599.0, 499.0, 399.0, 299.0, 199.0, 99.0];
        assert_eq!(Spacing::Trailing.timesteps(1000, 10, 0), trailing);
        let linspace = [999.0, 888.0, 777.0, 666.0, 555.0, 444.0, 333.0, 222.0, 111.0, 0.0];
        assert_eq!(Spacing::Linspace.timesteps(1000, 10, 0), linspace);
    }

    #[test]
    fn one_step() {
        assert_eq!(Spacing::Leading.timesteps(1000, 1, 1), [1.0]);
        assert_eq!(Spacing::Trailing.timesteps(1000, 1, 1), [999.0]);
        assert_eq!(Spacing::Linspace.timesteps(1000, 1, 1), [0.0]);
        assert_eq!(Spacing::Leading.solver_timesteps(1000, 1000, 1, 1), [501.0]);
        assert_eq!(Spacing::Linspace.solver_timesteps(1000, 1000, 1, 1), [999.0]);
    }

    #[test]
    fn trailing_never_has_a_timestep_too_many() {
        for n in 1..=1000 {
            let t = Spacing::Trailing.timesteps(1000, n, 0);
            assert_eq!((t.len(), t[0]), (n, 999.0));
            assert!(t.windows(2).all(|w| w[0] > w[1]), "{n}: {t:?}");
        }
    }
}
