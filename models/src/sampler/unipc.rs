//! UniPC: Zhao et al. 2023, <https://arxiv.org/abs/2302.04867>. Each evaluation first corrects the step that led to
//! it, then predicts the next.

use std::collections::VecDeque;

use candle_core::Tensor;

use super::dpm::lambda;
use super::plan::{Evaluation, Plan, Solver};
use super::schedule::{Schedule, choice, unsupported};
use crate::Result;
use crate::noise::TorchGenerator;
use crate::schedule::{FinalSigma, NoiseLevel, SchedulerConfig};

/// What UniPC reads from the config.
#[derive(Clone, Debug)]
pub(super) struct UniPc {
    order: usize,
    variant: Variant,
    /// Whether the predicted sample is integrated, or the predicted noise.
    predict_x0: bool,
    lower_order_final: bool,
    disable_corrector: Vec<usize>,
}

/// The function `B(h)` of the paper.
#[derive(Clone, Copy, Debug)]
enum Variant {
    /// `h`.
    Bh1,
    /// `e^h - 1`.
    Bh2,
}

impl UniPc {
    pub(super) fn from_config(config: &SchedulerConfig, final_sigma: FinalSigma) -> Result<Self> {
        // The values of other multistep schedulers are read as the default, as in diffusers.
        let variants = [
            ("bh1", Variant::Bh1),
            ("bh2", Variant::Bh2),
            ("midpoint", Variant::Bh2),
            ("heun", Variant::Bh2),
            ("logrho", Variant::Bh2),
        ];
        let unipc = Self {
            order: config.solver_order.unwrap_or(2),
            variant: choice("solver_type", config.solver_type.as_deref(), Variant::Bh2, &variants)?,
            predict_x0: config.predict_x0.unwrap_or(true),
            lower_order_final: config.lower_order_final.unwrap_or(true),
            disable_corrector: config.disable_corrector.clone().unwrap_or_default(),
        };
        if !(1..=3).contains(&unipc.order) {
            return Err(unsupported("solver_order", unipc.order, "1 to 3"));
        }
        let reaches_zero = unipc.predict_x0 && (unipc.lower_order_final || unipc.order == 1);
        if final_sigma == FinalSigma::Zero && !reaches_zero {
            let allowed = "sigma_min, unless predict_x0 and lower_order_final are true";
            return Err(unsupported("final_sigmas_type", "zero", allowed));
        }
        if config.solver_p.as_ref().is_some_and(|p| !p.is_null()) {
            return Err(unsupported("solver_p", "set", "null"));
        }
        Ok(unipc)
    }

    pub(super) fn start(&self, schedule: &Schedule, n: usize) -> Result<(Plan, Box<dyn Solver>)> {
        let train = schedule.num_train_timesteps;
        let plan = Plan::preserving(schedule, schedule.spacing, n, train, true)?;
        if plan.sigmas.windows(2).last().is_some_and(|pair| pair[0] <= pair[1]) {
            let allowed = "zero, as this run visits the least sigma before its end";
            return Err(unsupported("final_sigmas_type", "sigma_min", allowed));
        }
        Ok((plan, Box::new(Steps { settings: self.clone(), history: VecDeque::new(), last: None })))
    }
}

#[derive(Debug)]
struct Steps {
    settings: UniPc,
    /// What is integrated, the newest first.
    history: VecDeque<Tensor>,
    /// The sample that the last step went from, and that step's order.
    last: Option<(Tensor, usize)>,
}

impl Solver for Steps {
    fn step(&mut self, at: Evaluation<'_>, _noise: &mut TorchGenerator) -> Result<Tensor> {
        let value = if self.settings.predict_x0 { at.denoised()? } else { at.epsilon()? };
        let sample = match self.last.take() {
            Some((from, order)) if !self.settings.disable_corrector.contains(&(at.index - 1)) => {
                self.update(at.plan, at.index - 1, &from, order, Some(&value))?
            }
            _ => at.sample.clone(),
        };
        self.history.push_front(value);
        self.history.truncate(self.settings.order);

        let mut order = self.history.len();
        if self.settings.lower_order_final {
            order = order.min(at.plan.timesteps.len() - at.index);
        }
        let next = self.update(at.plan, at.index, &sample, order, None)?;
        self.last = Some((sample, order));
        Ok(next)
    }
}

impl Steps {
    /// The step from `from`, the sample at evaluation `index`, to the next. `arrived`: the value there, where it is
    /// known and the step is a correction.
    fn update(
        &self,
        plan: &Plan,
        index: usize,
        from: &Tensor,
        order: usize,
        arrived: Option<&Tensor>,
    ) -> Result<Tensor> {
        let step = lambda(plan, index + 1) - lambda(plan, index);
        let [start, end] = [index, index + 1].map(|i| NoiseLevel::preserving(plan.sigmas[i]));
        let (h, of_sample, scale) = match self.settings.predict_x0 {
            true => (-step, end.sigma / start.sigma, -end.alpha),
            false => (step, end.alpha / start.alpha, -end.sigma),
        };
        // Where the values are known, in units of the step: 0 is `index`, 1 is the next.
        let earlier = (1..order).map(|k| lambda(plan, index - k) - lambda(plan, index));
        let mut places: Vec<f64> = earlier.map(|distance| distance / step).collect();
        places.extend(arrived.map(|_| 1.0));

        let b = match self.settings.variant {
            Variant::Bh1 => h,
            Variant::Bh2 => h.exp_m1(),
        };
        let rhos = if order + usize::from(arrived.is_some()) == 2 { vec![0.5] } else { rhos(&places, h, b) };
        let differences: Vec<f64> =
            rhos.iter().zip(&places).map(|(rho, place)| scale * b * rho / place).collect();
        let newest = scale * h.exp_m1() - differences.iter().sum::<f64>();

        let mut terms = vec![(of_sample, from)];
        let values = self.history.iter().take(order).chain(arrived);
        terms.extend([newest].into_iter().chain(differences).zip(values));
        Ok(aquatint_kernels::weighted_sum(&terms)?)
    }
}

/// The weights of the differences between the value here and those at `places`, which make the step exact for
/// polynomials: the solution of `sum_k place_k^i rho_k = i! phi_{i+2}(h) h / b`.
fn rhos(places: &[f64], h: f64, b: f64) -> Vec<f64> {
    let mut phi = h.exp_m1() / h - 1.0;
    let mut factorial = 1.0;
    let mut row = |i: usize| {
        let mut row: Vec<f64> = places.iter().map(|place| place.powi(i as i32)).collect();
        row.push(phi * factorial / b);
        factorial *= (i + 2) as f64;
        phi = phi / h - 1.0 / factorial;
        row
    };
    solve((0..places.len()).map(&mut row).collect())
}

/// Gaussian elimination with pivoting; each row ends with its right-hand side.
fn solve(mut rows: Vec<Vec<f64>>) -> Vec<f64> {
    let n = rows.len();
    for i in 0..n {
        if let Some(pivot) = (i..n).max_by(|a, b| rows[*a][i].abs().total_cmp(&rows[*b][i].abs())) {
            rows.swap(i, pivot);
        }
        let pivot = rows[i].clone();
        for (_, row) in rows.iter_mut().enumerate().filter(|(k, _)| *k != i) {
            let factor = row[i] / pivot[i];
            row.iter_mut().zip(&pivot).for_each(|(value, p)| *value -= factor * p);
        }
    }
    rows.iter().enumerate().map(|(i, row)| row[n] / row[i]).collect()
}

#[cfg(test)]
mod tests {
    use super::solve;

    #[test]
    fn a_system_that_needs_pivoting() {
        // 2y = 4, x + y + z = 6, 3x - z = 0 (after the swap): x = 1, y = 2, z = 3.
        let rows = vec![vec![0.0, 2.0, 0.0, 4.0], vec![1.0, 1.0, 1.0, 6.0], vec![3.0, 0.0, -1.0, 0.0]];
        assert_eq!(solve(rows), [1.0, 2.0, 3.0]);
    }
}
